"""Writes to a tensor that exists already: an input, or a view of one.

aten.copy_(cache[:, 2:3], rows)      nest n0 (p0<2, p1<3): %0 = load rows[3*p0 + p1]; store cache[18*p0 + p1 + 6], %0

A kernel may write what it reads, as long as each point reads what it writes: `schedule.legality` asks for equal
indices. Here the same holds within the nest: a value that is another view of the written memory is copied first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fusec.ir.index import IndexLike, as_expr, as_int
from fusec.ir.types import AccessMode, Buffer
from fusec.lowering.builder import KERNEL_DTYPES, Number
from fusec.lowering.context import Context
from fusec.lowering.positions import IndexPlan, at_least_1d
from fusec.lowering.ref import Ref, contiguous_strides
from fusec.lowering.registry import NotLowered, lowering
from fusec.lowering.scatter import Updates, advanced, along, refuse_where_deterministic, sum_dtype

aten = torch.ops.aten


@lowering(aten.copy_.default)
def copy_(ctx: Context, target: Ref, value: Ref, non_blocking: bool = False) -> Ref:
    """target[p] = value[p], converted to the target's dtype."""
    if any(n == 0 for n in target.shape):
        return target
    value = value.expand(target.shape)
    if value.buffer == target.buffer:
        if value.index == target.index and value.dtype is target.dtype:
            return target
        value = ctx.materialize(value)
    reason = why_not_writable(ctx, target, value)
    if reason is not None:
        return _called(ctx, target, value, reason)
    with ctx.nest(target.shape) as nest:
        nest.store(target, nest.p, nest.cast(nest.load(value, nest.p), target.dtype))
    return target


def _called(ctx: Context, target: Ref, value: Ref, reason: str) -> Ref:
    """The write as a library call; eager's own error where elements of the target share memory."""
    written = target.tensor_view()
    if written is None:
        raise NotLowered("a write through a view that is not strided")
    arguments = (written, ctx.view(value))
    ctx.extern(aten.copy_.default, arguments, outputs=[None], reason=reason, mutates=[target.buffer])
    return target


# -- scatters -------------------------------------------------------------------------------------


@lowering(aten.index_put_.default)
def index_put_(ctx: Context, target: Ref, indices: Sequence[Ref | None], values: Ref, accumulate: bool = False) -> Ref:
    _require_writable(ctx, target, values)
    values = _apart_from(ctx, target, values)
    return _scattered(ctx, target, advanced(IndexPlan(target, indices), values), accumulate)


@lowering(aten.scatter_.src)
def scatter_source_(ctx: Context, target: Ref, dim: int, index: Ref, src: Ref) -> Ref:
    return _scattered_along(ctx, target, dim, index, src, accumulate=False)


@lowering(aten.scatter_.value)
def scatter_value_(ctx: Context, target: Ref, dim: int, index: Ref, value: Number) -> Ref:
    return _scattered_along(ctx, target, dim, index, value, accumulate=False)


@lowering(aten.scatter_add_.default)
def scatter_add_(ctx: Context, target: Ref, dim: int, index: Ref, src: Ref) -> Ref:
    return _scattered_along(ctx, target, dim, index, src, accumulate=True)


def _scattered_along(ctx: Context, target: Ref, dim: int, index: Ref, source: Ref | Number, accumulate: bool) -> Ref:
    _require_writable(ctx, target, *((source,) if isinstance(source, Ref) else ()))
    if isinstance(source, Ref):
        source = _apart_from(ctx, target, source)
    _scattered(ctx, at_least_1d(target), along(target, dim, index, source), accumulate)
    return target


def _scattered(ctx: Context, target: Ref, updates: Updates, accumulate: bool) -> Ref:
    if accumulate and sum_dtype(target.dtype) is not target.dtype:
        raise NotLowered(f"sums in place of {str(target.dtype).removeprefix('torch.')}")
    refuse_where_deterministic("writes that may meet at one place")
    mode = AccessMode.ATOMIC_ADD if accumulate else AccessMode.OVERWRITE
    updates.apply(ctx, target, mode, lambda nest, v: nest.cast(v, target.dtype))
    return target


def _apart_from(ctx: Context, target: Ref, values: Ref) -> Ref:
    """The values in memory that the write does not change."""
    return ctx.materialize(values) if values.buffer == target.buffer else values


def _require_writable(ctx: Context, target: Ref, *values: Ref) -> None:
    reason = why_not_writable(ctx, target, *values)
    if reason is not None:
        raise NotLowered(reason)
    if any(v.dtype is not target.dtype for v in values):
        raise NotLowered("a scatter that converts its values")


# -- what can be written --------------------------------------------------------------------------


def why_not_writable(ctx: Context, target: Ref, *values: Ref) -> str | None:
    """Why a kernel cannot write these values to the view, one element to a place of its own; None when it can."""
    away = next((x for x in (target, *values) if x.device != ctx.device and x.buffer not in ctx.scalars), None)
    if away is not None:
        return f"{away.buffer} lives on {away.device}, the kernels run on {ctx.device}"
    odd = next((x for x in (target, *values) if x.dtype not in KERNEL_DTYPES), None)
    if odd is not None:
        return f"kernels do not hold {str(odd.dtype).removeprefix('torch.')}"
    if target.dtype is not target.stored:
        return "what is written is a view of another dtype"
    found = target.strided()
    if found is None or not _apart(target.shape, found[0], ctx.buffers[target.buffer]):
        return "elements of what is written may share memory"
    return None


def _apart(shape: Sequence[IndexLike], strides: Sequence[IndexLike], whole: Buffer) -> bool:
    """True when no two elements are at one place: each stride steps over all smaller ones together.

    A view with symbolic sizes is judged by what it is a view of: slices and selections of memory without overlap.
    """
    dims = [(as_int(s), as_int(n)) for s, n in zip(strides, shape, strict=True) if n != 1]
    if any(stride is None or extent is None for stride, extent in dims):
        return _nested(whole.shape, whole.strides) and all(stride != 0 for stride, _ in dims)
    reach = 0
    for stride, extent in sorted((s or 0, n or 0) for s, n in dims):
        if extent == 0:
            return True
        if stride <= reach:
            return False
        reach += stride * (extent - 1)
    return True


def _nested(shape: Sequence[IndexLike], strides: Sequence[IndexLike]) -> bool:
    """Every stride is the product of the extents inside it."""
    pairs = zip(strides, contiguous_strides(shape), strict=True)
    return all(as_int(as_expr(stride) - step) == 0 for stride, step in pairs)
