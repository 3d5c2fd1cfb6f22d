"""Indexing by tensors: embedding, index_select, gather, index, take, and scatters that write one place a line.

Enters: a view and index tensors. Leaves: one nest that loads the index and uses the value as a coordinate.

    embedding(weight, ids) of f32[30522, 384], i64[8, 16]

    nest n0 (p0<8, p1<16, p2<384):
      %0:i64 = load ids[16*p0 + p1]
      %1:bool = 0 <= %0 < 30522
      %4:f32 = load weight[384*%0 + p2] where %1 else 0
      store embedding[6144*p0 + 384*p1 + p2], %4

An index out of range reads nothing: the load is masked and gives 0 where eager on a CPU raises IndexError (on a
GPU eager stops with a device assertion). Negative indices count from the end where eager's do (index, take).
A boolean mask as an index makes a result whose size depends on data: that stays a library call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fusec.ir.index import Expr, IndexLike, product
from fusec.lowering.builder import NestBuilder, Number, Value, compute_dtype
from fusec.lowering.context import Context
from fusec.lowering.ref import Ref
from fusec.lowering.registry import NotLowered, lowering

aten = torch.ops.aten

_INDEX_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8)


class _Checked:
    """Index values used as coordinates, and the mask that holds where all of them are in range."""

    def __init__(self, nest: NestBuilder) -> None:
        self.nest = nest
        self.mask: Value | None = None

    def coordinate(self, value: Value, extent: IndexLike, *, wrap: bool = False) -> Expr:
        """An index value as a coordinate in [0, extent). wrap: -1 is the last."""
        nest = self.nest
        value, size = nest.cast(value, torch.int64), nest.index(extent)
        if wrap:
            value = nest.where(value < 0, value + size, value)
        inside = (value >= 0) & (value < size)
        self.mask = inside if self.mask is None else self.mask & inside
        return nest.as_index(value, extent)


def _require_integers(*indices: Ref) -> None:
    for index in indices:
        if index.dtype not in _INDEX_DTYPES:
            raise NotLowered(f"an index of dtype {str(index.dtype).removeprefix('torch.')}")


def _at_least_1d(x: Ref) -> Ref:
    return x.reshape((1,)) if x.ndim == 0 else x


# -- one index along one dimension ----------------------------------------------------------------


@lowering(aten.embedding.default)
def embedding(
    ctx: Context,
    weight: Ref,
    indices: Ref,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Ref:
    _require_integers(indices)
    out = ctx.result()
    with ctx.nest(out.shape) as nest:
        checked = _Checked(nest)
        row = checked.coordinate(nest.load(indices, nest.p[:-1]), weight.shape[0])
        nest.store(out, nest.p, nest.load(weight, (row, nest.p[-1]), checked.mask))
    return out


@lowering(aten.index_select.default)
def index_select(ctx: Context, x: Ref, dim: int, index: Ref) -> Ref:
    _require_integers(index)
    out, x, index = ctx.result(), _at_least_1d(x), _at_least_1d(index)
    dim %= x.ndim
    with ctx.nest(out.shape) as nest:
        p = nest.p or (Expr(()),)
        checked = _Checked(nest)
        picked = checked.coordinate(nest.load(index, (p[dim],)), x.shape[dim])
        nest.store(out, nest.p, nest.load(x, (*p[:dim], picked, *p[dim + 1 :]), checked.mask))
    return out


@lowering(aten.gather.default)
def gather(ctx: Context, x: Ref, dim: int, index: Ref, *, sparse_grad: bool = False) -> Ref:
    _require_integers(index)
    out, x, index = ctx.result(), _at_least_1d(x), _at_least_1d(index)
    dim %= x.ndim
    with ctx.nest(out.shape) as nest:
        p = nest.p or (Expr(()),)
        checked = _Checked(nest)
        picked = checked.coordinate(nest.load(index, p), x.shape[dim])
        nest.store(out, nest.p, nest.load(x, (*p[:dim], picked, *p[dim + 1 :]), checked.mask))
    return out


@lowering(aten.take.default)
def take(ctx: Context, x: Ref, index: Ref) -> Ref:
    _require_integers(index)
    out, flat = ctx.result(), x.reshape((product(x.shape),))
    with ctx.nest(out.shape) as nest:
        checked = _Checked(nest)
        picked = checked.coordinate(nest.load(index, nest.p), flat.shape[0], wrap=True)
        nest.store(out, nest.p, nest.load(flat, (picked,), checked.mask))
    return out


# -- several indices ------------------------------------------------------------------------------


class _Plan:
    """Which result dimensions an advanced index makes: the broadcast ones, and those of x that are kept.

    x[i, :, j] with i, j of shape B: the broadcast dimensions come first, unless all indices are adjacent; then
    they stand where the indices stood.
    """

    def __init__(self, x: Ref, indices: Sequence[Ref | None]) -> None:
        self.indexed = {d: index for d, index in enumerate(indices) if index is not None}
        if not self.indexed:
            raise NotLowered("an index without index tensors")
        _require_integers(*self.indexed.values())
        self.rank = max(index.ndim for index in self.indexed.values())
        self.kept = [d for d in range(x.ndim) if d not in self.indexed]
        dims = sorted(self.indexed)
        adjacent = dims == list(range(dims[0], dims[-1] + 1))
        self.start = dims[0] if adjacent else 0

    def split(self, p: Sequence[Expr]) -> tuple[tuple[Expr, ...], dict[int, Expr]]:
        """Result coordinates as (coordinates of the broadcast indices, {dimension of x: coordinate})."""
        broadcast = tuple(p[self.start : self.start + self.rank])
        rest = (*p[: self.start], *p[self.start + self.rank :])
        return broadcast, dict(zip(self.kept, rest, strict=True))


def _broadcast_at(index: Ref, where: Sequence[Expr]) -> tuple[IndexLike, ...]:
    """Coordinates of an index tensor inside the shape all indices broadcast to."""
    tail = where[len(where) - index.ndim :]
    return tuple(0 if n == 1 else c for n, c in zip(index.shape, tail, strict=True))


def _indexed(ctx: Context, x: Ref, indices: Sequence[Ref | None], mask: Ref | None = None, fill: Number = 0) -> Ref:
    """x[indices]; with a mask, `fill` where it is false, and indices out of range are clamped."""
    out, plan = ctx.result(), _Plan(x, indices)
    with ctx.nest(out.shape) as nest:
        broadcast, where = plan.split(nest.p)
        checked = _Checked(nest)
        for d, index in plan.indexed.items():
            value = nest.cast(nest.load(index, _broadcast_at(index, broadcast)), torch.int64)
            if mask is not None:
                size = nest.index(x.shape[d])
                value = nest.op("maximum", nest.op("minimum", value, size - 1), nest.op("neg", size))
            where[d] = checked.coordinate(value, x.shape[d], wrap=True)
        inside = checked.mask
        if mask is not None and inside is not None:
            inside = inside & nest.load(mask.expand(out.shape), nest.p)
        nest.store(out, nest.p, nest.load(x, [where[d] for d in range(x.ndim)], inside, fill))
    return out


@lowering(aten.index.Tensor, aten._unsafe_index.Tensor)
def index_tensor(ctx: Context, x: Ref, indices: Sequence[Ref | None]) -> Ref:
    return _indexed(ctx, x, indices)


@lowering(aten._unsafe_masked_index.default)
def masked_index(ctx: Context, x: Ref, mask: Ref, indices: Sequence[Ref | None], fill: Number) -> Ref:
    """x[indices] where the mask holds, else fill; indices are clamped into range."""
    return _indexed(ctx, x, indices, mask, fill)


# -- scatters that write one place a line ---------------------------------------------------------


def _scatter(ctx: Context, x: Ref, dim: int, index: Ref, source: Ref | Number) -> Ref:
    """out[.., c, ..] = source if c == index[.., 0, ..] else x[.., c, ..], for an index of extent 1 along dim."""
    _require_integers(index)
    if x.ndim == 0:
        raise NotLowered("a scatter into a scalar")
    dim %= x.ndim
    expected = (*x.shape[:dim], 1, *x.shape[dim + 1 :])
    if index.shape != expected or (isinstance(source, Ref) and source.dtype is not x.dtype):
        raise NotLowered("a scatter that may write a place more than once, or writes only part of the lines")
    out = ctx.result()
    with ctx.nest(out.shape) as nest:
        line: tuple[IndexLike, ...] = (*nest.p[:dim], 0, *nest.p[dim + 1 :])
        hit = nest.index(nest.p[dim]).eq(nest.cast(nest.load(index, line), torch.int64))
        old = nest.load_f32(x, nest.p)
        new = nest.load_f32(source, line) if isinstance(source, Ref) else nest.const(source, compute_dtype(x.dtype))
        nest.store(out, nest.p, nest.where(hit, new, old))
    return out


@lowering(aten.scatter.value)
def scatter_value(ctx: Context, x: Ref, dim: int, index: Ref, value: Number) -> Ref:
    return _scatter(ctx, x, dim, index, value)


@lowering(aten.scatter.src)
def scatter_source(ctx: Context, x: Ref, dim: int, index: Ref, source: Ref) -> Ref:
    return _scatter(ctx, x, dim, index, source)


@lowering(aten.index_put.default)
def index_put(ctx: Context, x: Ref, indices: Sequence[Ref | None], values: Ref, accumulate: bool = False) -> Ref:
    """One place a line, as in a key-value cache that grows by a token.

    out = values where the coordinates are those of the index, else x.
    """
    plan = _Plan(x, indices)
    if accumulate or any(product(index.shape) != 1 for index in plan.indexed.values()):
        raise NotLowered("an index_put that may write a place more than once")
    if values.dtype is not x.dtype:
        raise NotLowered("an index_put that converts its values")
    out = ctx.result()
    with ctx.nest(out.shape) as nest:
        hit: Value | None = None
        for d, index in plan.indexed.items():
            value = nest.cast(nest.load(index, [0] * index.ndim), torch.int64)
            value = nest.where(value < 0, value + nest.index(x.shape[d]), value)
            same = nest.index(nest.p[d]).eq(value)
            hit = same if hit is None else hit & same
        assert hit is not None
        lines = [x.shape[d] for d in plan.kept]
        source = values.expand((*lines[: plan.start], *[1] * plan.rank, *lines[plan.start :]))
        kept = [nest.p[d] for d in plan.kept]
        where: list[IndexLike] = [*kept[: plan.start], *[0] * plan.rank, *kept[plan.start :]]
        nest.store(out, nest.p, nest.where(hit, nest.load_f32(source, where), nest.load_f32(x, nest.p)))
    return out
