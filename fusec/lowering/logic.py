"""Comparisons, minima and maxima, selection, tests of floating-point values.

aten.where(c, x, 0.0)      ->  %3 = where %0, %1, %2
aten.clamp(x, 0.0, 6.0)    ->  %2 = maximum %0, 0.0; %4 = minimum %2, 6.0     # NaN stays NaN
"""

from __future__ import annotations

import math

import torch

from fusec.lowering.builder import NestBuilder, Value
from fusec.lowering.context import Context
from fusec.lowering.pointwise import Formula, operand, pointwise
from fusec.lowering.promotion import common_dtype
from fusec.lowering.ref import Ref
from fusec.lowering.registry import lowering

aten, prims = torch.ops.aten, torch.ops.prims

# -- comparisons ----------------------------------------------------------------------------------


def _comparison(op: str) -> Formula:
    def formula(nest: NestBuilder, a: Value, b: Value) -> Value:
        if a.dtype is torch.bool and op not in ("eq", "ne"):  # a one-bit True is -1 to a signed comparison
            a, b = nest.cast(a, torch.int32), nest.cast(b, torch.int32)
        return nest.op(op, a, b)

    return formula


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    pointwise(getattr(aten, _name), getattr(prims, _name), operands=2, rounds=True)(_comparison(_name))


def truth(nest: NestBuilder, x: Value) -> Value:
    """x != 0; NaN is true."""
    return nest.cast(x, torch.bool)


for _name, _op in (("logical_and", "and"), ("logical_or", "or"), ("logical_xor", "xor")):

    def _logical(nest: NestBuilder, a: Value, b: Value, op: str = _op) -> Value:
        return nest.op(op, truth(nest, a), truth(nest, b))

    @lowering(getattr(aten, _name))
    def _lower_logical(ctx: Context, a: Ref, b: Ref, op: str = _op) -> Ref:
        # Each operand is tested in its own dtype: promotion could round a tiny value to zero.
        return ctx.pointwise([a, b], lambda nest, x, y: nest.op(op, truth(nest, x), truth(nest, y)))


@pointwise(aten.logical_not)
def logical_not(nest: NestBuilder, x: Value) -> Value:
    return ~truth(nest, x)


# -- minima and maxima ----------------------------------------------------------------------------


def extreme(op: str) -> Formula:
    """minimum, maximum (NaN if either is) and fmin, fmax (the other operand if one is NaN)."""
    logical = "and" if op.endswith("min") or op == "minimum" else "or"
    total = "minimum" if logical == "and" else "maximum"

    def formula(nest: NestBuilder, a: Value, b: Value) -> Value:
        if a.dtype is torch.bool:
            return nest.op(logical, a, b)
        return nest.op(op if a.dtype.is_floating_point else total, a, b)

    return formula


minimum, maximum = extreme("minimum"), extreme("maximum")
pointwise(aten.minimum, aten.min.other, prims.minimum, operands=2, rounds=True)(minimum)
pointwise(aten.maximum, aten.max.other, prims.maximum, operands=2, rounds=True)(maximum)
pointwise(aten.fmin, prims.fmin, operands=2, rounds=True)(extreme("fmin"))
pointwise(aten.fmax, prims.fmax, operands=2, rounds=True)(extreme("fmax"))


@pointwise(aten.clamp, aten.clip, operands=3, rounds=True)
def clamp(nest: NestBuilder, x: Value, low: Value | None = None, high: Value | None = None) -> Value:
    x = x if low is None else maximum(nest, x, low)
    return x if high is None else minimum(nest, x, high)


@pointwise(aten.clamp_min, operands=2, rounds=True)
def clamp_min(nest: NestBuilder, x: Value, low: Value) -> Value:
    return maximum(nest, x, low)


@pointwise(aten.clamp_max, operands=2, rounds=True)
def clamp_max(nest: NestBuilder, x: Value, high: Value) -> Value:
    return minimum(nest, x, high)


# -- selection ------------------------------------------------------------------------------------


@lowering(aten.where.self, aten.where.Scalar, aten.where.ScalarSelf, aten.where.ScalarOther, prims.where)
def where(ctx: Context, condition: Ref, a: Ref | float, b: Ref | float) -> Ref:
    out = ctx.result()
    common = common_dtype((a, b))
    with ctx.nest(out.shape) as nest:
        chosen = truth(nest, nest.load(condition.expand(out.shape), nest.p))
        left, right = (operand(nest, v, out.shape, common, rounds=True) for v in (a, b))
        assert left is not None and right is not None
        nest.store(out, nest.p, nest.where(chosen, left, right))
    return out


@lowering(aten.masked_fill)
def masked_fill(ctx: Context, x: Ref, mask: Ref, value: Ref | float) -> Ref:
    out = ctx.result()
    with ctx.nest(out.shape) as nest:
        chosen = truth(nest, nest.load(mask.expand(out.shape), nest.p))
        kept, fill = operand(nest, x, out.shape, x.dtype), operand(nest, value, out.shape, x.dtype, rounds=True)
        assert kept is not None and fill is not None
        nest.store(out, nest.p, nest.where(chosen, fill, kept))
    return out


# -- floating-point values ------------------------------------------------------------------------


def _always(answer: bool, op: str) -> Formula:
    """A test of floating-point values; integers have one answer."""

    def formula(nest: NestBuilder, x: Value) -> Value:
        return nest.op(op, x) if x.dtype.is_floating_point else nest.const(answer, torch.bool)

    return formula


isnan, isinf = _always(False, "isnan"), _always(False, "isinf")
pointwise(aten.isnan)(isnan)
pointwise(aten.isinf)(isinf)


@pointwise(aten.isfinite, prims.isfinite)
def isfinite(nest: NestBuilder, x: Value) -> Value:
    return ~(isnan(nest, x) | isinf(nest, x))


@pointwise(aten.isposinf)
def isposinf(nest: NestBuilder, x: Value) -> Value:
    return x.eq(math.inf) if x.dtype.is_floating_point else nest.const(False, torch.bool)


@pointwise(aten.isneginf)
def isneginf(nest: NestBuilder, x: Value) -> Value:
    return x.eq(-math.inf) if x.dtype.is_floating_point else nest.const(False, torch.bool)


@pointwise(aten.signbit, prims.signbit)
def signbit(nest: NestBuilder, x: Value) -> Value:
    if x.dtype.is_floating_point:
        return nest.op("signbit", x)
    return nest.const(False, torch.bool) if x.dtype in (torch.bool, torch.uint8) else x < 0


@lowering(aten.nan_to_num)
def nan_to_num(
    ctx: Context, x: Ref, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> Ref:
    if not x.dtype.is_floating_point:
        return ctx.pointwise([x], lambda nest, v: v)
    limits = torch.finfo(x.dtype)
    high = limits.max if posinf is None else posinf
    low = limits.min if neginf is None else neginf

    def formula(nest: NestBuilder, v: Value) -> Value:
        v = nest.where(v.eq(math.inf), high, nest.where(v.eq(-math.inf), low, v))
        return nest.where(nest.op("isnan", v), 0.0 if nan is None else nan, v)

    return ctx.pointwise([x], formula)
