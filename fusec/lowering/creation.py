"""Tensors from nothing: constants, ranges, identity, triangles, one-hot.

aten.arange.start_step(0, 10, 2)   nest n0 (p0<5): %0 = index 2*p0; store arange[p0], %0
aten.tril(x)                       %2 = le %1, 0; %3 = where %2, x, 0      # column - row <= diagonal
"""

from __future__ import annotations

from typing import Any

import torch

from fusec.ir.index import Expr, IndexLike, as_expr
from fusec.lowering.builder import NestBuilder, Value, compute_dtype
from fusec.lowering.context import Context, is_dense, sizes, strides_of
from fusec.lowering.numbers import Number
from fusec.lowering.ref import Ref
from fusec.lowering.registry import LibraryCall, NotLowered, lowering

aten, prims = torch.ops.aten, torch.ops.prims


def filled(ctx: Context, value: Number) -> Ref:
    """The op's result, every element the same number."""
    out = ctx.result()
    with ctx.nest(out.shape) as nest:
        nest.store(out, nest.p, nest.const(value, out.dtype))
    return out


@lowering(aten.full)
def full(ctx: Context, size: Any, value: Number, **options: Any) -> Ref:
    return filled(ctx, value)


@lowering(aten.full_like, aten.scalar_tensor)
def full_like(ctx: Context, *args: Any, **options: Any) -> Ref:
    return filled(ctx, args[-1] if "fill_value" not in options else options["fill_value"])


@lowering(aten.new_full)
def new_full(ctx: Context, x: Ref, size: Any, value: Number, **options: Any) -> Ref:
    return filled(ctx, value)


@lowering(prims.full, prims.full_like)
def prims_full(ctx: Context, like: Any, value: Number, **options: Any) -> Ref:
    return filled(ctx, value)


# Memory that eager leaves uninitialised is zero here: a result that does not change between runs.
@lowering(
    *(aten.zeros, aten.zeros_like, aten.new_zeros, aten.empty, aten.empty_like, aten.new_empty),
    *(aten.empty_permuted, prims.empty_permuted),
)
def zeros(ctx: Context, *args: Any, **options: Any) -> Ref:
    return filled(ctx, 0)


@lowering(aten.empty_strided, aten.new_empty_strided, prims.empty_strided)
def empty_strided(ctx: Context, *args: Any, **options: Any) -> Ref:
    if not is_dense(sizes(ctx.meta.shape), strides_of(ctx.meta)):
        raise LibraryCall("memory with gaps or overlaps is allocated as it is asked for")
    return filled(ctx, 0)


@lowering(aten.ones, aten.ones_like, aten.new_ones)
def ones(ctx: Context, *args: Any, **options: Any) -> Ref:
    return filled(ctx, 1)


# -- ranges ---------------------------------------------------------------------------------------


@lowering(aten.arange.default)
def arange(ctx: Context, end: Number, **options: Any) -> Ref:
    return ranged(ctx, 0, 1)


@lowering(aten.arange.start)
def arange_start(ctx: Context, start: Number, end: Number, **options: Any) -> Ref:
    return ranged(ctx, start, 1)


@lowering(aten.arange.start_step)
def arange_step(ctx: Context, start: Number, end: Number, step: Number = 1, **options: Any) -> Ref:
    return ranged(ctx, start, step)


@lowering(prims.iota)
def iota(ctx: Context, length: int, *, start: int, step: int, **options: Any) -> Ref:
    return ranged(ctx, start, step)


def ranged(ctx: Context, start: Number, step: Number) -> Ref:
    """start + step * i."""
    out = ctx.result()
    with ctx.nest(out.shape) as nest:
        nest.store(out, nest.p, nest.cast(_progression(nest, nest.p[0], start, step, out.dtype), out.dtype))
    return out


def _progression(nest: NestBuilder, i: IndexLike, start: Number, step: Number, dtype: torch.dtype) -> Value:
    if isinstance(start, Expr) or isinstance(step, Expr):
        return nest.index(as_expr(start) + i * as_expr(step))
    if not dtype.is_floating_point:
        return nest.index(int(start) + i * int(step))
    if float(start).is_integer() and float(step).is_integer():
        return nest.index(int(start) + i * int(step))
    computed = compute_dtype(dtype)
    return nest.cast(nest.index(i), computed) * float(step) + float(start)


@lowering(aten.linspace.default)
def linspace(ctx: Context, start: Number, end: Number, steps: int, **options: Any) -> Ref:
    """From both ends toward the middle, as eager: start + i*d in the first half, end - (n-1-i)*d in the second."""
    if not ctx.meta.dtype.is_floating_point:
        raise NotLowered("a linspace of integers: truncation makes every rounding visible")
    if steps < 2:
        return filled(ctx, start)
    out = ctx.result()
    d = (end - start) / (steps - 1)
    with ctx.nest(out.shape) as nest:
        i = nest.cast(nest.index(nest.p[0]), compute_dtype(out.dtype))
        upward, downward = i * d + float(start), float(end) - (float(steps - 1) - i) * d
        nest.store(out, nest.p, nest.where(i < steps // 2, upward, downward))
    return out


# -- masks ----------------------------------------------------------------------------------------


def offset_of(nest: NestBuilder, column: IndexLike, row: IndexLike) -> Value:
    """column - row, as a value."""
    return nest.index(column) - nest.index(row)


@lowering(aten.eye)
def eye(ctx: Context, *args: Any, **options: Any) -> Ref:
    out = ctx.result()
    with ctx.nest(out.shape) as nest:
        on = nest.index(nest.p[0]).eq(nest.index(nest.p[1]))
        nest.store(out, nest.p, nest.cast(on, out.dtype))
    return out


@lowering(aten.tril)
def tril(ctx: Context, x: Ref, diagonal: int = 0) -> Ref:
    return _triangle(ctx, x, lambda offset: offset <= diagonal)


@lowering(aten.triu)
def triu(ctx: Context, x: Ref, diagonal: int = 0) -> Ref:
    return _triangle(ctx, x, lambda offset: offset >= diagonal)


def _triangle(ctx: Context, x: Ref, keep: Any) -> Ref:
    out = ctx.result()
    with ctx.nest(out.shape) as nest:
        kept = keep(offset_of(nest, nest.p[-1], nest.p[-2]))
        nest.store(out, nest.p, nest.where(kept, nest.load(x, nest.p), 0))
    return out


@lowering(aten.one_hot)
def one_hot(ctx: Context, x: Ref, num_classes: int = -1) -> Ref:
    out = ctx.result()
    with ctx.nest(out.shape) as nest:
        label = nest.cast(nest.load(x, nest.p[:-1]), torch.int64)
        nest.store(out, nest.p, nest.cast(label.eq(nest.index(nest.p[-1])), out.dtype))
    return out


@lowering(aten.diag_embed)
def diag_embed(ctx: Context, x: Ref, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Ref:
    out = ctx.result()
    rows, columns = dim1 % out.ndim, dim2 % out.ndim
    with ctx.nest(out.shape) as nest:
        batch = [c for i, c in enumerate(nest.p) if i not in (rows, columns)]
        on = offset_of(nest, nest.p[columns], nest.p[rows]).eq(offset)
        along = nest.p[rows] + min(offset, 0) if offset < 0 else nest.p[rows]
        nest.store(out, nest.p, nest.where(on, nest.load(x, [*batch, along], on), 0))
    return out
