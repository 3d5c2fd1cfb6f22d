"""Scatters: values written, added or compared into a copy of a tensor, at positions that data gives.

Enters: a view, index tensors, values. Leaves: a copy of the view, then one nest over the values:

    x.index_add(0, i, s) of f32[10, 4], i64[100], f32[100, 4]

    nest n0 (p0<10, p1<4):                    store out[4*p0 + p1], x
    nest n1 (p0<100, p1<4):
      %0:i64 = load i[p0]
      %1:bool = 0 <= %0 < 10
      %2:f32 = load s[4*p0 + p1]
      atomic_add out[4*%0 + p1], %2, mask=%1 over p0, p1

Sums of float16 and bfloat16 are kept in float32 and rounded once at the end; narrow integers in int32. Largest and
smallest are kept as integers in the order of the floats, NaN on the winning side, so that their order does not
matter. A scatter of one element a line is a comparison instead, and a sum into few lines a reduction: both fuse.
Where many updates go to each place, as in the table of a relative position bias, atomic sums would wait for each other:
they are made in several copies of the result, each update in another than its neighbour, and added up at the end.
Sums of floats in an order of chance, and the last of several writes, are left to PyTorch where deterministic
algorithms are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch

from fusec.ir.index import IndexLike, as_int, delinearize, linearize, product
from fusec.ir.ops import identity
from fusec.ir.types import AccessMode
from fusec.lowering.builder import NestBuilder, Number, Value, compute_dtype
from fusec.lowering.context import Context, is_dense, sizes, strides_of
from fusec.lowering.positions import Checked, IndexPlan, at_least_1d, both, require_integers
from fusec.lowering.ref import Ref, contiguous_strides
from fusec.lowering.registry import NotLowered, lowering
from fusec.lowering.symbols import extent_of

aten = torch.ops.aten

FEW = 8  # lines into which a sum is a reduction that compares, free of contention
MEETING = 256  # updates of one place that may wait for each other in a sum: copies take 1/256 of their elements

Where = Sequence[IndexLike]
Fill = Callable[[NestBuilder], Value]
_ATOMIC = {"sum": AccessMode.ATOMIC_ADD, "max": AccessMode.ATOMIC_MAX, "min": AccessMode.ATOMIC_MIN}


@dataclass(frozen=True, slots=True)
class Updates:
    """The updates of a scatter: one a point of `shape`.

    place: the coordinates in the result that a point's update goes to, and the mask that holds where there are any.
    value: the update.
    among: the dimensions of `shape` along which many updates may meet at one place.
    """

    shape: tuple[IndexLike, ...]
    place: Callable[[NestBuilder], tuple[Where, Value | None]]
    value: Callable[[NestBuilder], Value]
    among: tuple[int, ...] = ()

    @property
    def are_none(self) -> bool:
        return any(n == 0 for n in self.shape)

    def apply(self, ctx: Context, out: Ref, mode: AccessMode, change: Callable[[NestBuilder, Value], Value]) -> None:
        """One nest that stores change(value) with this mode."""
        if self.are_none or any(n == 0 for n in out.shape):
            return
        with ctx.nest(self.shape) as nest:
            where, mask = self.place(nest)
            nest.store(out, where, change(nest, self.value(nest)), mask, mode)

    def add(self, ctx: Context, total: Ref) -> None:
        """One nest that adds the updates atomically."""
        self.apply(ctx, total, AccessMode.ATOMIC_ADD, lambda nest, v: nest.cast(v, total.dtype))

    def copies(self, out: Ref) -> int:
        """Into how many copies of a result sums should go, so that few updates meet; 1 for sizes that may change."""
        updates, places = as_int(product(self.shape)), as_int(product(out.shape))
        meeting = updates // places if self.among and updates and places else 0
        return 1 << max((meeting // MEETING).bit_length() - 1, 0)

    def spread(self, copies: int) -> Updates:
        """The same updates for a result of shape (copies, *shape): neighbours go to different copies."""

        def place(nest: NestBuilder) -> tuple[Where, Value | None]:
            where, mask = self.place(nest)
            lines = [self.shape[d] for d in self.among]
            number = linearize([nest.p[d] for d in self.among], contiguous_strides(lines))
            return [number % copies, *where], mask

        return replace(self, place=place)


def along(x: Ref, dim: int, index: Ref, source: Ref | Number) -> Updates:
    """Updates at x[.., index[p], ..] with source[p], as in scatter: index has x's rank. Scalars count as lines of 1."""
    x, index = at_least_1d(x), at_least_1d(index)
    dim %= x.ndim

    def place(nest: NestBuilder) -> tuple[Where, Value | None]:
        checked = Checked(nest)
        at = checked.coordinate(nest.load(index, nest.p), x.shape[dim])
        return [*nest.p[:dim], at, *nest.p[dim + 1 :]], checked.mask

    require_integers(index)
    if not isinstance(source, Ref):
        return Updates(index.shape, place, lambda nest: nest.const(source, x.dtype), (dim,))
    values = at_least_1d(source)
    return Updates(index.shape, place, lambda nest: nest.load(values, nest.p), (dim,))


def advanced(plan: IndexPlan, values: Ref, mask: Ref | None = None) -> Updates:
    """Updates at x[indices]; with a mask, only where it holds, and indices are clamped into range."""
    values = values.expand(plan.shape)

    def place(nest: NestBuilder) -> tuple[Where, Value | None]:
        checked = Checked(nest)
        where = plan.coordinates(checked, clamp=mask is not None)
        if mask is not None:
            checked.require(nest.load(mask.expand(plan.shape), nest.p))
        return where, checked.mask

    lines = tuple(range(plan.start, plan.start + plan.rank))
    return Updates(plan.shape, place, lambda nest: nest.load(values, nest.p), lines)


# -- what is done with them -----------------------------------------------------------------------


def copied(ctx: Context, x: Ref, out: Ref, change: Callable[[NestBuilder, Value], Value]) -> None:
    """out[p] = change(x[p])."""
    with ctx.nest(out.shape) as nest:
        nest.store(out, nest.p, change(nest, nest.load(x, nest.p)))


def overwritten(ctx: Context, x: Ref, updates: Updates) -> Ref:
    """A copy of x with the updates; of several to one place any wins."""
    refuse_where_deterministic("writes that may meet at one place")
    out = at_least_1d(result := ctx.result())
    copied(ctx, at_least_1d(x), out, lambda nest, v: v)
    updates.apply(ctx, out, AccessMode.OVERWRITE, lambda nest, v: nest.cast(v, out.dtype))
    return result


def summed(ctx: Context, x: Ref | None, updates: Updates) -> Ref:
    """x (zeros if None) plus all updates."""

    result = ctx.result()
    copies = updates.copies(result)
    if copies == 1:
        return accumulated(ctx, result, lambda total: updates.add(ctx, total), x)
    out, wide = at_least_1d(result), sum_dtype(result.dtype)
    total = ctx.temporary(wide, (copies, *out.shape), hint="total")
    zeroed(ctx, total)
    updates.spread(copies).add(ctx, total)
    with ctx.nest(out.shape, (copies,)) as nest:
        added = nest.reduce("sum", nest.load(total, (*nest.r, *nest.p)))
        nest.store(out, nest.p, added if x is None else nest.cast(nest.load(at_least_1d(x), nest.p), wide) + added)
    return result


def zeroed(ctx: Context, total: Ref) -> None:
    with ctx.nest(total.shape) as nest:
        nest.store(total, nest.p, nest.const(0, total.dtype))


def accumulated(ctx: Context, result: Ref, add: Callable[[Ref], None], x: Ref | None = None) -> Ref:
    """result = x (zeros if None) plus what `add` adds atomically to the tensor it is given, of a wide enough dtype."""
    out, wide = at_least_1d(result), sum_dtype(result.dtype)
    total = out if wide is out.dtype else ctx.temporary(wide, out.shape, hint="total")
    if x is None:
        zeroed(ctx, total)
    else:
        copied(ctx, at_least_1d(x), total, lambda nest, v: nest.cast(v, wide))
    add(total)
    if total is not out:
        copied(ctx, total, out, lambda nest, v: v)
    return result


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype atomic sums are kept in; NotLowered where there is none, or their order must not be left to chance."""
    if dtype is torch.bool:
        raise NotLowered("sums of bools are not kept atomically")
    if dtype.is_floating_point:
        refuse_where_deterministic("sums of floats in any order")
        return compute_dtype(dtype)
    return dtype if dtype.itemsize >= 4 else torch.int32


def refuse_where_deterministic(what: str) -> None:
    if torch.are_deterministic_algorithms_enabled():
        raise NotLowered(f"{what}, while deterministic algorithms are asked for")


def reduced(ctx: Context, x: Ref, updates: Updates, op: str, include_self: bool) -> Ref:
    """x reduced with its updates by op: sum, mean, max or min. include_self: whether x's own value takes part.

    A place without updates keeps x's value.
    """
    if op == "sum" and include_self:
        return summed(ctx, x, updates)
    if op not in ("sum", "mean", "max", "min"):
        raise NotLowered(f"a scatter that reduces by {op}")
    if x.dtype is torch.bool:
        raise NotLowered("a scatter that reduces bools")
    result, x = ctx.result(), at_least_1d(x)
    out = at_least_1d(result)
    wide = sum_dtype(x.dtype) if op in ("sum", "mean") else _ordered_dtype(x.dtype)
    into = "sum" if op == "mean" else op

    def encoded(nest: NestBuilder, v: Value) -> Value:
        return nest.cast(v, wide) if into == "sum" else _ordered(nest, v, op, wide)

    total = ctx.temporary(wide, out.shape, hint="total")
    start = identity(into, wide)
    copied(ctx, x, total, lambda nest, v: encoded(nest, v) if include_self else nest.const(start, wide))
    updates.apply(ctx, total, _ATOMIC[into], encoded)
    count = _counted(ctx, out.shape, updates, 1 if include_self and op == "mean" else 0, exact=op == "mean")
    with ctx.nest(out.shape) as nest:
        value, n = nest.load(total, nest.p), nest.load(count, nest.p)
        value = _mean(nest, value, n) if op == "mean" else value
        value = value if into == "sum" else _unordered(nest, value, x.dtype)
        own = nest.load_f32(x, nest.p)
        nest.store(out, nest.p, nest.where(n > 0, nest.cast(value, own.dtype), own))
    return result


def _counted(ctx: Context, shape: Sequence[IndexLike], updates: Updates, start: int, exact: bool) -> Ref:
    """How many updates each place gets, plus `start`; not exact: only whether there are any."""
    count = ctx.temporary(torch.int32, shape, hint="count")
    with ctx.nest(shape) as nest:
        nest.store(count, nest.p, nest.const(start, torch.int32))
    mode = AccessMode.ATOMIC_ADD if exact else AccessMode.OVERWRITE
    updates.apply(ctx, count, mode, lambda nest, v: nest.const(1, torch.int32))
    return count


def _mean(nest: NestBuilder, total: Value, count: Value) -> Value:
    divisor = nest.cast(nest.op("maximum", count, 1), total.dtype)
    return total / divisor if total.dtype.is_floating_point else nest.op("floordiv", total, divisor)


def _ordered_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.int64 if dtype.itemsize == 8 else torch.int32


def _flipped(nest: NestBuilder, bits: Value) -> Value:
    """Bits of a float as an integer of the same order, and back: negative numbers count the other way."""
    return nest.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits)


def _ordered(nest: NestBuilder, value: Value, op: str, wide: torch.dtype) -> Value:
    if not value.dtype.is_floating_point:
        return nest.cast(value, wide)
    value = nest.cast(value, compute_dtype(value.dtype))
    winner = identity("min" if op == "max" else "max", wide)
    return nest.where(nest.op("isnan", value), winner, _flipped(nest, nest.bitcast(value, wide)))


def _unordered(nest: NestBuilder, value: Value, dtype: torch.dtype) -> Value:
    if not dtype.is_floating_point:
        return value
    return nest.bitcast(_flipped(nest, value), compute_dtype(dtype))


# -- scatter --------------------------------------------------------------------------------------


def _one_a_line(ctx: Context, x: Ref, dim: int, index: Ref, source: Ref | Number) -> Ref:
    """out[.., c, ..] = source if c == index[.., 0, ..] else x[.., c, ..], for an index of extent 1 along dim."""
    out = ctx.result()
    with ctx.nest(out.shape) as nest:
        line: tuple[IndexLike, ...] = (*nest.p[:dim], 0, *nest.p[dim + 1 :])
        at = Checked(nest).value(nest.load(index, line), x.shape[dim])
        hit = nest.index(nest.p[dim]).eq(at)
        old = nest.load_f32(x, nest.p)
        new = nest.load_f32(source, line) if isinstance(source, Ref) else nest.const(source, compute_dtype(x.dtype))
        nest.store(out, nest.p, nest.where(hit, new, old))
    return out


def _scatter(ctx: Context, x: Ref, dim: int, index: Ref, source: Ref | Number) -> Ref:
    require_integers(index)
    if isinstance(source, Ref) and source.dtype is not x.dtype:
        raise NotLowered("a scatter that converts its source")
    if x.ndim and index.shape == (*x.shape[: dim % x.ndim], 1, *x.shape[dim % x.ndim + 1 :]):
        return _one_a_line(ctx, x, dim % x.ndim, index, source)
    return overwritten(ctx, x, along(x, dim, index, source))


@lowering(aten.scatter.value)
def scatter_value(ctx: Context, x: Ref, dim: int, index: Ref, value: Number) -> Ref:
    return _scatter(ctx, x, dim, index, value)


@lowering(aten.scatter.src)
def scatter_source(ctx: Context, x: Ref, dim: int, index: Ref, src: Ref) -> Ref:
    return _scatter(ctx, x, dim, index, src)


@lowering(aten.scatter.reduce, aten.scatter.value_reduce)
def scatter_combine(ctx: Context, x: Ref, dim: int, index: Ref, source: Ref | Number, *, reduce: str) -> Ref:
    if reduce != "add":
        raise NotLowered(f"a scatter with reduce={reduce!r}")
    return summed(ctx, x, along(x, dim, index, source))


@lowering(aten.scatter_add.default)
def scatter_add(ctx: Context, x: Ref, dim: int, index: Ref, src: Ref) -> Ref:
    return summed(ctx, x, along(x, dim, index, src))


_REDUCE_NAMES = {"amax": "max", "amin": "min"}


@lowering(aten.scatter_reduce.two)
def scatter_reduce(
    ctx: Context, x: Ref, dim: int, index: Ref, src: Ref, reduce: str, *, include_self: bool = True
) -> Ref:
    return reduced(ctx, x, along(x, dim, index, src), _REDUCE_NAMES.get(reduce, reduce), include_self)


@lowering(aten.index_reduce.default)
def index_reduce(
    ctx: Context, x: Ref, dim: int, index: Ref, source: Ref, reduce: str, *, include_self: bool = True
) -> Ref:
    source = at_least_1d(source)
    across = at_least_1d(index).view(source.shape, lambda c: (c[dim],))  # the same along all other dimensions
    return reduced(ctx, x, along(x, dim, across, source), _REDUCE_NAMES.get(reduce, reduce), include_self)


# -- lines ----------------------------------------------------------------------------------------


def are_few(n: IndexLike, source: Ref) -> bool:
    """Whether a sum of lines of source into n lines is better compared than scattered."""
    few = as_int(n)
    return few is not None and few <= FEW and source.dtype is not torch.bool and not any(n == 0 for n in source.shape)


def into_few(
    ctx: Context, x: Ref | None, dim: int, index: Ref, source: Ref, skip: int | None = None, wrap: bool = False
) -> Ref:
    """x plus lines of source added at index along dim; index has one dimension. skip: an index that adds nothing.

    out[.., w, ..] = x[.., w, ..] + sum over r of (source[.., r, ..] if index[r] == w else 0)
    """
    result = ctx.result()
    out = at_least_1d(result)
    wide = compute_dtype(result.dtype) if result.dtype.is_floating_point else torch.int64
    with ctx.nest(out.shape, (index.shape[0],)) as nest:
        (r,) = nest.r
        at = nest.cast(nest.load(index, (r,)), torch.int64)
        if wrap:
            at = nest.where(at < 0, at + nest.index(out.shape[dim]), at)
        hit = nest.index(nest.p[dim]).eq(at)
        if skip is not None:
            hit = hit & at.ne(skip)
        value = nest.cast(nest.load(source, (*nest.p[:dim], r, *nest.p[dim + 1 :])), wide)
        value = nest.where(hit, value, 0)
        total = value if as_int(index.shape[0]) == 1 else nest.reduce("sum", value)
        nest.store(out, nest.p, total if x is None else nest.cast(nest.load(x, nest.p), wide) + total)
    return result


# -- several indices ------------------------------------------------------------------------------


def _one_place(ctx: Context, x: Ref, plan: IndexPlan, values: Ref) -> Ref:
    """One place a line, as in a key-value cache that grows by a token.

    out = values where the coordinates are those of the index, else x.
    """
    out = ctx.result()
    with ctx.nest(out.shape) as nest:
        hit: Value | None = None
        for d, index in plan.indexed.items():
            value = Checked(nest).value(nest.load(index, [0] * index.ndim), x.shape[d], wrap=True)
            hit = both(hit, nest.index(nest.p[d]).eq(value))
        assert hit is not None
        source = values.expand((*plan.lines[: plan.start], *[1] * plan.rank, *plan.lines[plan.start :]))
        kept = [nest.p[d] for d in plan.kept]
        where: list[IndexLike] = [*kept[: plan.start], *[0] * plan.rank, *kept[plan.start :]]
        nest.store(out, nest.p, nest.where(hit, nest.load_f32(source, where), nest.load_f32(x, nest.p)))
    return out


def _at_mask(ctx: Context, x: Ref, indices: Sequence[Ref | None], values: Ref, accumulate: bool) -> Ref:
    """x[mask] = values, where all places get the same: out = where(mask, values, x), or x + values there."""
    given = [(d, index) for d, index in enumerate(indices) if index is not None]
    if len(given) != 1 or given[0][1].dtype is not torch.bool:
        raise NotLowered("an index_put by a mask and other indices")
    dim, mask = given[0]
    at = values.ndim - (x.ndim - dim - mask.ndim) - 1  # the dimension that goes through the places of the mask
    if at >= 0 and values.shape[at] != 1:
        raise NotLowered("an index_put by a mask whose values are one after the other")
    if at >= 0:
        values = values.reshape((*values.shape[:at], *[1] * mask.ndim, *values.shape[at + 1 :]))
    spread = mask.view(x.shape, lambda c: c[dim : dim + mask.ndim])
    out, wide = ctx.result(), compute_dtype(x.dtype)
    with ctx.nest(out.shape) as nest:
        old, new = nest.load_f32(x, nest.p), nest.cast(nest.load(values.expand(x.shape), nest.p), wide)
        if accumulate:
            new = old | new if wide is torch.bool else old + new
        nest.store(out, nest.p, nest.where(nest.load(spread, nest.p), new, old))
    return out


@lowering(aten.index_put.default, aten._unsafe_index_put.default)
def index_put(ctx: Context, x: Ref, indices: Sequence[Ref | None], values: Ref, accumulate: bool = False) -> Ref:
    if values.dtype is not x.dtype:
        raise NotLowered("an index_put that converts its values")
    if any(index is not None and index.dtype is torch.bool for index in indices):
        return _at_mask(ctx, x, indices, values, accumulate)
    plan = IndexPlan(x, indices)
    if not accumulate:
        if all(product(index.shape) == 1 for index in plan.indexed.values()):
            return _one_place(ctx, x, plan, values)
        return overwritten(ctx, x, advanced(plan, values))
    if len(plan.indexed) == 1:
        ((dim, index),) = plan.indexed.items()
        source = values.expand(plan.shape)
        if index.ndim == 1 and are_few(x.shape[dim], source):
            return into_few(ctx, x, dim, index, source, wrap=True)
    return summed(ctx, x, advanced(plan, values))


@lowering(aten._unsafe_masked_index_put_accumulate.default)
def masked_index_put(ctx: Context, x: Ref, mask: Ref, indices: Sequence[Ref | None], values: Ref) -> Ref:
    """x plus values at the indices where the mask holds; indices are clamped into range."""
    return summed(ctx, x, advanced(IndexPlan(x, indices), values, mask))


@lowering(aten.put.default)
def put(ctx: Context, x: Ref, index: Ref, source: Ref, accumulate: bool = False) -> Ref:
    """x.flatten()[index] = source."""
    require_integers(index)
    if source.dtype is not x.dtype:
        raise NotLowered("a put that converts its source")
    shape, source = at_least_1d(x).shape, source.reshape(index.shape)

    def place(nest: NestBuilder) -> tuple[Where, Value | None]:
        checked = Checked(nest)
        at = checked.coordinate(nest.load(index, nest.p), product(shape), wrap=True)
        return delinearize(at, shape), checked.mask

    updates = Updates(index.shape, place, lambda nest: nest.load(source, nest.p))
    return summed(ctx, x, updates) if accumulate else overwritten(ctx, x, updates)


@lowering(aten.as_strided_scatter.default)
def as_strided_scatter(
    ctx: Context, x: Ref, part: Ref, size: Sequence[int], stride: Sequence[int], offset: int | None = None
) -> Ref:
    """A copy of x whose memory holds part at these strides."""
    source = ctx.node.args[0].meta["val"]  # type: ignore[union-attr]
    shape, strides = sizes(source.shape), strides_of(source)
    if not is_dense(shape, strides) or strides != strides_of(ctx.meta):
        raise NotLowered("as_strided_scatter into a view with gaps")
    start = extent_of(source.storage_offset())
    first = 0 if offset is None else offset - start
    last = first + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if first < 0 or last >= prod(shape):
        raise NotLowered("as_strided_scatter outside of its tensor's memory")
    out = ctx.result()
    flat = Ref.whole(out.buffer, out.dtype, (product(shape),), (1,), out.device)
    copied(ctx, x, out, lambda nest, v: v)

    def place(nest: NestBuilder) -> tuple[Where, Value | None]:
        return (linearize(nest.p, stride, first),), None

    updates = Updates(tuple(size), place, lambda nest: nest.load(part, nest.p))
    updates.apply(ctx, flat, AccessMode.OVERWRITE, lambda nest, v: v)
    return out
