"""Scans: cumulative sums, products, extremes with their positions, and logcumsumexp along one dimension.

Enters: a view and a dimension. Leaves: one nest with one scan; it fuses with what comes before and after in its row.

    x.cumsum(1) of bf16[64, 4096]

    nest n0 (p0<64, r0<4096):
      %0:bf16 = load x[4096*p0 + r0]
      %1:f32 = cast %0
      %2:f32 = cumsum %1 over r0
      store cumsum[4096*p0 + r0], %2

A few long rows would keep a few programs busy for long. They are cut into slices: the slices' totals are scanned, and
each slice goes on from the total before it.

    totals[p, s] = sum over j of x[p, s*c + j]
    ends[p, s]   = cumsum of totals over s
    out          = ends[p, s - 1] + cumsum of x[p, s*c + j] over j
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fusec.ir.index import IndexLike, as_int, product
from fusec.ir.ops import identity
from fusec.lowering.builder import KERNEL_DTYPES, NestBuilder, Value, compute_dtype
from fusec.lowering.context import Context, interleave
from fusec.lowering.positions import at_least_1d
from fusec.lowering.reduction import comparable, comparable_dtype, is_used, require_floating
from fusec.lowering.ref import Ref
from fusec.lowering.registry import NotLowered, lowering

aten = torch.ops.aten

FEW_ROWS = 64  # rows that leave most of a device idle
LONG = 1 << 15  # elements of a row worth slicing
SLICE = 4096

Load = Callable[[NestBuilder, Sequence[IndexLike]], Value]  # the value to scan, at coordinates of the tensor
_REDUCTION = {"cumsum": "sum", "cumprod": "prod", "cummax": "max", "cummin": "min"}
_JOIN = {"cumsum": "add", "cumprod": "mul", "cummax": "maximum", "cummin": "minimum"}


@dataclass(frozen=True, slots=True)
class _Row:
    """The shape of what is scanned, and along which dimension."""

    shape: tuple[IndexLike, ...]
    dim: int

    @property
    def kept(self) -> tuple[int, ...]:
        return tuple(d for d in range(len(self.shape)) if d != self.dim)

    @property
    def rows(self) -> tuple[IndexLike, ...]:
        return tuple(self.shape[d] for d in self.kept)

    @property
    def length(self) -> IndexLike:
        return self.shape[self.dim]

    def at(self, p: Sequence[IndexLike], along: IndexLike) -> tuple[IndexLike, ...]:
        return interleave(len(self.shape), self.kept, p, (self.dim,), (along,))


def _is_trivial(row: _Row) -> bool:
    """Nothing, or one element a row: the values themselves."""
    length = as_int(row.length)
    return length is not None and length <= 1


def _scan(ctx: Context, op: str, row: _Row, load: Load, dtype: torch.dtype, out: Ref) -> None:
    """out = op of load along row.dim. dtype: of the scanned values."""
    length, rows = as_int(row.length), as_int(product(row.rows))
    if op in _REDUCTION and length is not None and length >= LONG and rows is not None and 0 < rows <= FEW_ROWS:
        _sliced(ctx, op, row, load, dtype, out, length)
        return
    if _is_trivial(row):
        with ctx.nest(row.shape) as nest:
            nest.store(out, nest.p, load(nest, nest.p))
        return
    with ctx.nest(row.rows, (row.length,)) as nest:
        where = row.at(nest.p, nest.r[0])
        nest.store(out, where, nest.scan(op, load(nest, where)))


def _sliced(ctx: Context, op: str, row: _Row, load: Load, dtype: torch.dtype, out: Ref, length: int) -> None:
    """The same with each row in slices; the module's docstring has the equations."""
    slices = -(-length // SLICE)
    start = identity(op, dtype)
    totals = ctx.temporary(dtype, (*row.rows, slices), hint="totals")
    ends = ctx.temporary(dtype, (*row.rows, slices), hint="ends")

    def value_in(nest: NestBuilder) -> tuple[Value, Value | None, tuple[IndexLike, ...]]:
        """The value, whether it is in the row, its coordinates; of the last slice some are not."""
        position = nest.p[-1] * SLICE + nest.r[0]
        if length % SLICE == 0:
            where = row.at(nest.p[:-1], position)
            return load(nest, where), None, where
        inside = nest.index(position) < length
        clamped = nest.op("minimum", nest.index(position), length - 1)
        where = row.at(nest.p[:-1], nest.as_index(clamped, length))
        return nest.where(inside, load(nest, where), start), inside, where

    with ctx.nest((*row.rows, slices), (SLICE,)) as nest:
        nest.store(totals, nest.p, nest.reduce(_REDUCTION[op], value_in(nest)[0]))
    with ctx.nest(row.rows, (slices,)) as nest:
        nest.store(ends, (*nest.p, nest.r[0]), nest.scan(op, nest.load(totals, (*nest.p, nest.r[0]))))
    with ctx.nest((*row.rows, slices), (SLICE,)) as nest:
        value, inside, where = value_in(nest)
        later = nest.index(nest.p[-1]) > 0
        before = nest.load(ends, (*nest.p[:-1], nest.p[-1] - 1), later, start)
        nest.store(out, where, nest.op(_JOIN[op], before, nest.scan(op, value)), inside)


# -- sums and products ----------------------------------------------------------------------------


def _accumulated(ctx: Context, op: str, x: Ref, dim: int) -> Ref:
    """The values are converted to the result's dtype first; float16 and bfloat16 accumulate in float32."""
    out = ctx.result()
    through = out.dtype
    if through is torch.bool or through not in KERNEL_DTYPES:
        raise NotLowered(f"a {op} in {str(through).removeprefix('torch.')} is left to PyTorch")
    wide = compute_dtype(through) if through.is_floating_point or through.itemsize >= 4 else torch.int32

    def load(nest: NestBuilder, where: Sequence[IndexLike]) -> Value:
        return nest.cast(nest.cast(nest.load(x, where), through), wide)

    x, to = at_least_1d(x), at_least_1d(out)
    _scan(ctx, op, _Row(x.shape, dim % x.ndim), load, wide, to)
    return out


@lowering(aten.cumsum.default)
def cumsum(ctx: Context, x: Ref, dim: int, *, dtype: torch.dtype | None = None) -> Ref:
    return _accumulated(ctx, "cumsum", x, dim)


@lowering(aten.cumprod.default)
def cumprod(ctx: Context, x: Ref, dim: int, *, dtype: torch.dtype | None = None) -> Ref:
    return _accumulated(ctx, "cumprod", x, dim)


@lowering(aten.logcumsumexp.default, aten._logcumsumexp.default)
def logcumsumexp(ctx: Context, x: Ref, dim: int) -> Ref:
    require_floating(x)
    out = ctx.result()
    x, to = at_least_1d(x), at_least_1d(out)
    _scan(ctx, "logcumsumexp", _Row(x.shape, dim % x.ndim), lambda n, w: n.load_f32(x, w), compute_dtype(x.dtype), to)
    return out


# -- extremes -------------------------------------------------------------------------------------


def _extremes(ctx: Context, op: str, x: Ref, dim: int) -> tuple[Ref | None, Ref | None]:
    """Running extremes, NaN from the first one on, and the latest positions that hold them."""
    values = ctx.result(0) if is_used(ctx.node, 0) else None
    positions = ctx.result(1) if is_used(ctx.node, 1) else None
    x = at_least_1d(x)
    row, dtype = _Row(x.shape, dim % x.ndim), comparable_dtype(x.dtype)

    def load(nest: NestBuilder, where: Sequence[IndexLike]) -> Value:
        return comparable(nest, nest.load(x, where))

    if values is not None:
        _scan(ctx, op, row, load, dtype, at_least_1d(values))
    if positions is not None:
        _positions(ctx, op.replace("cum", "cumarg"), row, load, at_least_1d(positions))
    return values, positions


def _positions(ctx: Context, op: str, row: _Row, load: Load, out: Ref) -> None:
    if _is_trivial(row):
        with ctx.nest(row.shape) as nest:
            nest.store(out, nest.p, nest.const(0, torch.int64))
        return
    with ctx.nest(row.rows, (row.length,)) as nest:
        where = row.at(nest.p, nest.r[0])
        nest.store(out, where, nest.scan(op, load(nest, where), nest.index(nest.r[0])))


@lowering(aten.cummax.default)
def cummax(ctx: Context, x: Ref, dim: int) -> tuple[Ref | None, Ref | None]:
    return _extremes(ctx, "cummax", x, dim)


@lowering(aten.cummin.default)
def cummin(ctx: Context, x: Ref, dim: int) -> tuple[Ref | None, Ref | None]:
    return _extremes(ctx, "cummin", x, dim)


# -- positions counted by a scan ------------------------------------------------------------------


@lowering(aten.masked_scatter.default)
def masked_scatter(ctx: Context, x: Ref, mask: Ref, source: Ref) -> Ref:
    """x, with the elements of source in order where the mask holds: the n-th place takes source.flatten()[n]."""
    if mask.dtype is not torch.bool or source.dtype is not x.dtype:
        raise NotLowered("a masked_scatter that converts its mask or source")
    out = ctx.result()
    mask, count = mask.expand(out.shape), product(out.shape)
    flat, values = mask.reshape((count,)), source.reshape((product(source.shape),))
    places = ctx.temporary(torch.int64, (count,), hint="places")
    row = _Row((count,), 0)
    _scan(ctx, "cumsum", row, lambda nest, where: nest.cast(nest.load(flat, where), torch.int64), torch.int64, places)
    counted = places.reshape(out.shape)
    with ctx.nest(out.shape) as nest:
        hit = nest.load(mask, nest.p)
        at = nest.load(counted, nest.p) - 1
        there = ~hit | (at < nest.index(values.shape[0]))
        new = nest.load_f32(values, (nest.as_index(nest.checked(there, at), values.shape[0]),), hit & there)
        nest.store(out, nest.p, nest.where(hit, new, nest.load_f32(x.expand(out.shape), nest.p)))
    return out
