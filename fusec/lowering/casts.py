"""Conversions and copies: dtype casts, clone, copy, fill, bit reinterpretation.

    aten._to_copy(x, dtype=torch.bfloat16)   ->   %1:bf16 = cast %0; store to[p0], %1

The cast stands before the store, so that it survives when the store disappears in fusion.
"""

from __future__ import annotations

from typing import Any

import torch

from fusec.lowering.builder import NestBuilder, Value
from fusec.lowering.context import Context
from fusec.lowering.numbers import Number
from fusec.lowering.pointwise import operand, pointwise
from fusec.lowering.ref import Ref
from fusec.lowering.registry import LibraryCall, NotLowered, lowering

aten, prims = torch.ops.aten, torch.ops.prims


def converted(ctx: Context, x: Ref) -> Ref:
    """A copy of x with the dtype, shape and strides of the op's result; x is broadcast to it."""
    out = ctx.result()
    with ctx.nest(out.shape) as nest:
        nest.store(out, nest.p, nest.cast(nest.load(x.expand(out.shape), nest.p), out.dtype))
    return out


@lowering(aten._to_copy)
def to_copy(ctx: Context, x: Ref, **options: Any) -> Ref:
    number = x.device == "cpu" and x.ndim == 0  # a kernel reads it where it is
    if x.device != str(ctx.meta.device) and not number:
        raise LibraryCall(f"a copy from {x.device} to {ctx.meta.device}")
    return converted(ctx, x)


@lowering(prims.convert_element_type)
def convert_element_type(ctx: Context, x: Ref, dtype: torch.dtype) -> Ref:
    return converted(ctx, x)


@lowering(prims.device_put)
def device_put(ctx: Context, x: Ref, device: torch.device, non_blocking: bool = False) -> Ref:
    return to_copy(ctx, x)


@lowering(aten.clone, prims.clone, aten.contiguous)
def clone(ctx: Context, x: Ref, *, memory_format: torch.memory_format | None = None) -> Ref:
    return x if x.buffer in ctx.numbers else converted(ctx, x)


@lowering(aten.copy.default)
def copy(ctx: Context, x: Ref, source: Ref, non_blocking: bool = False) -> Ref:
    return to_copy(ctx, source)


@pointwise(aten.fill)
def fill(nest: NestBuilder, x: Value, value: Ref | Number) -> Value:
    filled = operand(nest, value, (1,) * len(nest.p), x.dtype) if isinstance(value, Ref) else nest.const(value, x.dtype)
    assert filled is not None
    return filled


@lowering(aten.view.dtype)
def view_dtype(ctx: Context, x: Ref, dtype: torch.dtype) -> Ref:
    """Other meaning, same bits: a view while the element size stays."""
    if dtype.itemsize != x.itemsize:
        raise NotLowered("a reinterpretation that changes the element size")
    return Ref(x.buffer, dtype, x.shape, x.index, x.stored, x.device)
