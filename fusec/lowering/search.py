"""Searching in sorted rows: searchsorted and bucketize, a binary search unrolled over the bits of the row's length.

Enters: sorted boundaries and values. Leaves: one nest over the values.

    bucketize(x, b) of f32[n], f32[100]

    low, high = 0, 100;  seven times:  mid = (low + high)//2;  b[mid] < x ? low = mid + 1 : high = mid

A NaN is larger than every boundary, as in eager.
"""

from __future__ import annotations

import torch

from fusec.ir.index import IndexLike
from fusec.lowering.builder import NestBuilder, Value, compute_dtype
from fusec.lowering.context import Context, static
from fusec.lowering.numbers import Number
from fusec.lowering.ref import Ref
from fusec.lowering.registry import NotLowered, lowering

aten = torch.ops.aten


def _position(
    nest: NestBuilder, boundaries: Ref, row: tuple[IndexLike, ...], value: Value, right: bool, sorter: Ref | None
) -> Value:
    """How many boundaries of the row are smaller than the value; with `right`, not larger."""
    extent = static(boundaries.shape[-1])
    low, high = nest.const(0, torch.int64), nest.const(extent, torch.int64)
    for _ in range(extent.bit_length()):
        middle = nest.op("shr", low + high, 1)
        open_ = low < high
        at = nest.as_index(middle, extent)
        if sorter is not None:
            at = nest.as_index(nest.load(sorter, (*row, at), open_), extent)
        found = nest.cast(nest.load(boundaries, (*row, at), open_), value.dtype)
        beyond = (found > value) if right else (found >= value)
        low, high = (
            nest.where(open_ & ~beyond, middle + 1, low),
            nest.where(open_ & beyond, middle, high),
        )
    return low


def _search(ctx: Context, boundaries: Ref, values: Ref | Number, right: bool, sorter: Ref | None = None) -> Ref:
    if isinstance(values, Ref) and values.dtype is not boundaries.dtype:
        raise NotLowered("a search for values of another dtype than the boundaries")
    if boundaries.dtype is torch.bool:
        raise NotLowered("a search among bools")
    out, dtype = ctx.result(), compute_dtype(boundaries.dtype)
    with ctx.nest(out.shape) as nest:
        row = () if boundaries.ndim == 1 else nest.p[:-1]
        value = nest.load_f32(values, nest.p) if isinstance(values, Ref) else nest.const(values, dtype)
        nest.store(out, nest.p, _position(nest, boundaries, row, value, right, sorter))
    return out


@lowering(aten.searchsorted.Tensor, aten.searchsorted.Scalar)
def searchsorted(
    ctx: Context,
    boundaries: Ref,
    values: Ref | Number,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Ref | None = None,
) -> Ref:
    return _search(ctx, boundaries, values, right or side == "right", sorter)


@lowering(aten.bucketize.Tensor, aten.bucketize.Scalar)
def bucketize(
    ctx: Context, values: Ref | Number, boundaries: Ref, *, out_int32: bool = False, right: bool = False
) -> Ref:
    return _search(ctx, boundaries, values, right)
