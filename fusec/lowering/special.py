"""Special functions: polygammas, modified Bessel functions, scaled error functions, the normal quantile.

aten.special_i0e(x)   ->   %1:f32 = i0e %0          # exp(-|x|) I0(x)
aten.polygamma(1, x)  ->   %1:f32 = trigamma %0

What they compute is in `kernels/elementwise.py`: libdevice's functions where it has them, else the series of Cephes.
"""

from __future__ import annotations

import math

import torch

from fusec.lowering.builder import LOW_PRECISION, NestBuilder, Value
from fusec.lowering.context import Context
from fusec.lowering.pointwise import Formula, emit, pointwise
from fusec.lowering.promotion import Kind
from fusec.lowering.ref import Ref
from fusec.lowering.registry import NotLowered, lowering

aten, prims = torch.ops.aten, torch.ops.prims

FUNCTIONS = {
    "digamma": (aten.digamma, prims.digamma),
    "i0": (aten.i0, aten.special_modified_bessel_i0, prims.bessel_i0),
    "i0e": (aten.special_i0e, prims.bessel_i0e),
    "i1": (aten.special_i1, aten.special_modified_bessel_i1, prims.bessel_i1),
    "i1e": (aten.special_i1e, prims.bessel_i1e),
    "erfcx": (aten.special_erfcx, prims.erfcx),
    "ndtri": (aten.special_ndtri, prims.ndtri),
}


def _function(op: str) -> Formula:
    return lambda nest, x: nest.op(op, x)


for _name, _packets in FUNCTIONS.items():
    pointwise(*_packets, kind=Kind.INT_TO_FLOAT)(_function(_name))


@lowering(aten.polygamma.default)
def polygamma(ctx: Context, n: int, x: Ref) -> Ref:
    """The n-th derivative of digamma, for n = 0 and 1."""
    if n > 1:
        raise NotLowered(f"polygamma of order {n}")
    return emit(ctx, _function("trigamma" if n else "digamma"), (x,), (), {}, Kind.INT_TO_FLOAT)


@pointwise(aten.angle, kind=Kind.INT_TO_FLOAT)
def angle(nest: NestBuilder, x: Value) -> Value:
    """pi for negative numbers, 0 for others; NaN stays."""
    return nest.where(nest.op("isnan", x), x, nest.where(x < 0, nest.const(math.pi, x.dtype), 0))


@lowering(aten.nextafter.default, prims.nextafter)
def nextafter(ctx: Context, a: Ref, b: Ref) -> Ref:
    if a.dtype in LOW_PRECISION or b.dtype in LOW_PRECISION or not a.dtype.is_floating_point:
        raise NotLowered("the next number of a dtype other than float32 and float64")
    return emit(ctx, lambda nest, x, y: nest.op("nextafter", x, y), (a, b), (), {})
