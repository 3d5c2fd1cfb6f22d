"""Writes to a tensor that exists already: an input, or a view of one.

aten.copy_(cache[:, 2:3], rows)      nest n0 (p0<2, p1<3): %0 = load rows[3*p0 + p1]; store cache[18*p0 + p1 + 6], %0

A kernel may write what it reads, as long as each point reads what it writes: `schedule.legality` asks for equal
indices. Here the same holds within the nest: a value that is another view of the written memory is copied first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fusec.ir.index import IndexLike, as_int
from fusec.lowering.builder import KERNEL_DTYPES
from fusec.lowering.context import Context
from fusec.lowering.ref import Ref
from fusec.lowering.registry import NotLowered, lowering

aten = torch.ops.aten


@lowering(aten.copy_.default)
def copy_(ctx: Context, target: Ref, value: Ref, non_blocking: bool = False) -> Ref:
    """target[p] = value[p], converted to the target's dtype."""
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
    if found is None or not _apart(target.shape, found[0]):
        return "elements of what is written may share memory"
    return None


def _apart(shape: Sequence[IndexLike], strides: Sequence[IndexLike]) -> bool:
    """True when no two elements are at one place: each stride steps over all smaller ones together."""
    dims = [(as_int(s), as_int(n)) for s, n in zip(strides, shape, strict=True) if n != 1]
    if any(stride is None or extent is None for stride, extent in dims):
        return _nested(shape, strides)
    reach = 0
    for stride, extent in sorted((s or 0, n or 0) for s, n in dims):
        if extent == 0:
            return True
        if stride <= reach:
            return False
        reach += stride * (extent - 1)
    return True


def _nested(shape: Sequence[IndexLike], strides: Sequence[IndexLike]) -> bool:
    """For symbolic sizes: every stride is the product of what lies inside it."""
    return all(as_int(strides[d + 1] * shape[d + 1] - strides[d]) == 0 for d in range(len(shape) - 1))
