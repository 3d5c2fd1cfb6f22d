"""Arithmetic: unary functions, add to pow, remainders, bit operations.

aten.remainder(x, 3)   ->  %1 = const 3; %2 = mod %0, %1
aten.pow(x, 2)         ->  %1 = mul %0, %0
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from fusec.lowering.builder import NestBuilder, Value, compute_dtype
from fusec.lowering.context import Context
from fusec.lowering.numbers import Number
from fusec.lowering.pointwise import Formula, emit, operand, pointwise
from fusec.lowering.promotion import Kind, common_dtype
from fusec.lowering.ref import Ref
from fusec.lowering.registry import NotLowered, lowering

aten, prims = torch.ops.aten, torch.ops.prims

# -- unary ----------------------------------------------------------------------------------------

FLOAT_FUNCTIONS = (
    "exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal sigmoid sin cos tan asin acos atan sinh cosh tanh "
    "asinh acosh atanh erf erfc erfinv lgamma"
)
SPECIAL_PRIMS = {"erfinv": "erf_inv"}  # where prims spells the op's name its own way


def _same_name(op: str) -> Formula:
    def formula(nest: NestBuilder, x: Value) -> Value:
        return nest.op(op, x)

    return formula


def _register_float_functions() -> None:
    for name in FLOAT_FUNCTIONS.split():
        packets = [getattr(aten, name), getattr(prims, SPECIAL_PRIMS.get(name, name), None)]
        pointwise(*(p for p in packets if p is not None), kind=Kind.INT_TO_FLOAT)(_same_name(name))


_register_float_functions()


def _rounding(op: str) -> Formula:
    """floor and its kin: integers are already whole."""

    def formula(nest: NestBuilder, x: Value) -> Value:
        return nest.op(op, x) if x.dtype.is_floating_point else x

    return formula


for _name in ("floor", "ceil", "trunc"):
    pointwise(getattr(aten, _name), getattr(prims, _name))(_rounding(_name))
pointwise(aten.round.default, prims.round)(_rounding("round"))


@pointwise(aten.round.decimals)
def round_decimals(nest: NestBuilder, x: Value, *, decimals: int) -> Value:
    if not x.dtype.is_floating_point:
        return x
    scale = float(10 ** abs(decimals))
    if decimals >= 0:
        return nest.op("round", x * scale) / scale
    return nest.op("round", x / scale) * scale


@pointwise(aten.frac)
def frac(nest: NestBuilder, x: Value) -> Value:
    return x - nest.op("trunc", x)


@pointwise(aten.neg, prims.neg)
def neg(nest: NestBuilder, x: Value) -> Value:
    return -x


@pointwise(aten.abs, prims.abs)
def absolute(nest: NestBuilder, x: Value) -> Value:
    unsigned = x.dtype in (torch.bool, torch.uint8)
    return x if unsigned else nest.op("abs", x)


@pointwise(aten.sign, aten.sgn, prims.sign)
def sign(nest: NestBuilder, x: Value) -> Value:
    return x if x.dtype is torch.bool else nest.op("sign", x)


@pointwise(aten.square)
def square(nest: NestBuilder, x: Value) -> Value:
    return x * x


@pointwise(aten.positive)
def positive(nest: NestBuilder, x: Value) -> Value:
    return x


@pointwise(aten.sinc, kind=Kind.INT_TO_FLOAT)
def sinc(nest: NestBuilder, x: Value) -> Value:
    angle = x * math.pi
    return nest.where(x.eq(0), 1, nest.op("sin", angle) / angle)


@pointwise(aten.logit, kind=Kind.INT_TO_FLOAT)
def logit(nest: NestBuilder, x: Value, eps: float | None = None) -> Value:
    if eps is not None:
        x = nest.where(x < eps, eps, nest.where(x > 1.0 - eps, 1.0 - eps, x))
    return nest.op("log", x / (1.0 - x))


# -- binary ---------------------------------------------------------------------------------------


def scaled(nest: NestBuilder, value: Value, alpha: Number) -> Value:
    return value if alpha == 1 else value * alpha


@pointwise(aten.add.Tensor, aten.add.Scalar, prims.add, operands=2)
def add(nest: NestBuilder, a: Value, b: Value, alpha: Number = 1) -> Value:
    if a.dtype is torch.bool:
        return a | b if alpha else a
    return a + scaled(nest, b, alpha)


@pointwise(aten.sub.Tensor, aten.sub.Scalar, prims.sub, operands=2)
def sub(nest: NestBuilder, a: Value, b: Value, alpha: Number = 1) -> Value:
    return a - scaled(nest, b, alpha)


@pointwise(aten.rsub.Tensor, aten.rsub.Scalar, operands=2)
def rsub(nest: NestBuilder, a: Value, b: Value, alpha: Number = 1) -> Value:
    return b - scaled(nest, a, alpha)


@pointwise(aten.mul.Tensor, aten.mul.Scalar, prims.mul, operands=2)
def mul(nest: NestBuilder, a: Value, b: Value) -> Value:
    return a & b if a.dtype is torch.bool else a * b


def div(nest: NestBuilder, a: Value, b: Value) -> Value:
    return a / b


def _reciprocal(b: Number, dtype: torch.dtype) -> float:
    """1 / b as a kernel computes it; by NumPy, as a tensor would be a fake one while AOTAutograd traces."""
    number = np.float64 if dtype is torch.float64 else np.float32
    with np.errstate(divide="ignore", over="ignore", under="ignore"):
        return float(number(1.0) / number(b))


@lowering(aten.div.Tensor, aten.div.Scalar, aten.true_divide)
def true_divide(ctx: Context, a: Ref | Number, b: Ref | Number) -> Ref:
    """a / b; by a number, eager mode on CUDA multiplies with the reciprocal, which rounds otherwise."""
    if ctx.device != "cpu" and isinstance(a, Ref) and isinstance(b, int | float):
        inverse = _reciprocal(b, compute_dtype(common_dtype((a, b), Kind.INT_TO_FLOAT)))
        if inverse and math.isfinite(inverse):
            return emit(ctx, mul, (a, inverse), (), {}, Kind.INT_TO_FLOAT)
    return emit(ctx, div, (a, b), (), {}, Kind.INT_TO_FLOAT)


def divided(nest: NestBuilder, a: Value, b: Value, rounding_mode: str) -> Value:
    """Division rounded toward zero ("trunc") or down ("floor"); bool counts as 0 and 1."""
    op = "truncdiv" if rounding_mode == "trunc" else "floordiv"
    if a.dtype is torch.bool:
        return a
    return nest.op(op, a, b)


@lowering(aten.div.Tensor_mode, aten.div.Scalar_mode)
def div_mode(ctx: Context, a: Ref, b: Ref | Number, *, rounding_mode: str | None = None) -> Ref:
    if rounding_mode is None:
        return emit(ctx, div, (a, b), (), {}, Kind.INT_TO_FLOAT)
    return emit(ctx, divided, (a, b), (rounding_mode,), {})


@pointwise(prims.div, operands=2)
def prims_div(nest: NestBuilder, a: Value, b: Value) -> Value:
    return a / b if a.dtype.is_floating_point else divided(nest, a, b, "trunc")


@pointwise(aten.floor_divide, operands=2)
def floor_divide(nest: NestBuilder, a: Value, b: Value) -> Value:
    return divided(nest, a, b, "floor")


@pointwise(aten.remainder, operands=2)
def remainder(nest: NestBuilder, a: Value, b: Value) -> Value:
    return nest.op("mod", a, b)


@pointwise(aten.fmod, prims.fmod, operands=2)
def fmod(nest: NestBuilder, a: Value, b: Value) -> Value:
    return nest.op("fmod", a, b)


@pointwise(aten.atan2, prims.atan2, operands=2, kind=Kind.INT_TO_FLOAT)
def atan2(nest: NestBuilder, a: Value, b: Value) -> Value:
    return nest.op("atan2", a, b)


@pointwise(aten.copysign, operands=2, kind=Kind.INT_TO_FLOAT)
def copysign(nest: NestBuilder, a: Value, b: Value) -> Value:
    return nest.op("copysign", a, b)


@pointwise(aten.hypot, prims.hypot, operands=2)
def hypot(nest: NestBuilder, a: Value, b: Value) -> Value:
    # larger * sqrt(1 + (smaller / larger)^2) does not overflow where a*a + b*b would.
    a, b = nest.op("abs", a), nest.op("abs", b)
    larger, smaller = nest.op("maximum", a, b), nest.op("minimum", a, b)
    ratio = smaller / larger
    length = larger * nest.op("sqrt", ratio * ratio + 1)
    length = nest.where(larger.eq(0), larger, length)
    infinite = nest.op("isinf", a) | nest.op("isinf", b)
    return nest.where(infinite, math.inf, length)


@pointwise(aten.logaddexp, operands=2, kind=Kind.INT_TO_FLOAT)
def logaddexp(nest: NestBuilder, a: Value, b: Value) -> Value:
    same_infinity = nest.op("isinf", a) & a.eq(b)
    total = nest.op("maximum", a, b) + nest.op("log1p", nest.op("exp", -nest.op("abs", a - b)))
    return nest.where(same_infinity, a, total)


@pointwise(aten.xlogy, operands=2, kind=Kind.INT_TO_FLOAT)
def xlogy(nest: NestBuilder, a: Value, b: Value) -> Value:
    product = nest.where(a.eq(0), 0, a * nest.op("log", b))
    return nest.where(nest.op("isnan", b), math.nan, product)


@pointwise(aten.heaviside, operands=2)
def heaviside(nest: NestBuilder, x: Value, at_zero: Value) -> Value:
    return nest.where(x.eq(0), at_zero, nest.cast(x > 0, x.dtype))


# -- powers ---------------------------------------------------------------------------------------


@pointwise(aten.pow.Tensor_Tensor, prims.pow, operands=2)
def pow_tensor(nest: NestBuilder, base: Value, exponent: Value) -> Value:
    if not base.dtype.is_floating_point:
        raise NotLowered("an integer power with a tensor exponent")
    return nest.op("pow", base, exponent)


@pointwise(aten.pow.Scalar, operands=2)
def pow_scalar_base(nest: NestBuilder, base: Value, exponent: Value) -> Value:
    return pow_tensor(nest, base, exponent)


@lowering(aten.pow.Tensor_Scalar)
def pow_scalar(ctx: Context, x: Ref, exponent: Number) -> Ref:
    out = ctx.result()
    common = common_dtype((x, exponent))
    with ctx.nest(out.shape) as nest:
        base = operand(nest, x, out.shape, common)
        assert base is not None
        nest.store(out, nest.p, power(nest, base, exponent))
    return out


def power(nest: NestBuilder, base: Value, exponent: Number) -> Value:
    """base ** number: products for small whole exponents, as eager computes them; roots and reciprocals."""
    integral = not base.dtype.is_floating_point
    if exponent == 0:
        return nest.const(1, base.dtype)
    if integral and exponent < 0:
        raise NotLowered("an integer to a negative power")
    if math.isfinite(exponent) and exponent == int(exponent):
        n = abs(int(exponent))
        if integral or n <= 4:
            result = _whole_power(base, n)
            return result if exponent > 0 else 1.0 / result
    if exponent == 0.5:
        return nest.op("sqrt", base)
    if exponent == -0.5:
        return nest.op("rsqrt", base)
    return nest.op("pow", base, exponent)


def _whole_power(base: Value, n: int) -> Value:
    """base ** n, n > 0, by repeated squaring: x^3 = x*x*x, x^4 = (x*x)*(x*x)."""
    if n == 1:
        return base
    half = _whole_power(base, n // 2)
    squared = half * half
    return squared * base if n % 2 else squared


# -- bits -----------------------------------------------------------------------------------------

for _name, _op in (("and", "and"), ("or", "or"), ("xor", "xor")):

    def _bitwise(nest: NestBuilder, a: Value, b: Value, op: str = _op) -> Value:
        if a.dtype.is_floating_point:
            raise NotLowered("bits of a floating-point tensor")  # eager mode has no such op either
        return nest.op(op, a, b)

    _packets: list[Any] = [getattr(aten, f"bitwise_{_name}"), getattr(aten, f"__{_name}__")]
    pointwise(*_packets, getattr(prims, f"bitwise_{_name}"), operands=2)(_bitwise)


@pointwise(aten.bitwise_not, prims.bitwise_not)
def bitwise_not(nest: NestBuilder, x: Value) -> Value:
    if x.dtype.is_floating_point:
        raise NotLowered("bits of a floating-point tensor")
    return ~x


@pointwise(aten.bitwise_left_shift, aten.__lshift__, prims.shift_left, operands=2)
def shift_left(nest: NestBuilder, a: Value, b: Value) -> Value:
    return _shift(nest, "shl", a, b)


@pointwise(aten.bitwise_right_shift, aten.__rshift__, prims.shift_right_arithmetic, operands=2)
def shift_right(nest: NestBuilder, a: Value, b: Value) -> Value:
    return _shift(nest, "shr", a, b)


def _shift(nest: NestBuilder, op: str, a: Value, b: Value) -> Value:
    if a.dtype.is_floating_point:
        raise NotLowered("a shift of a floating-point tensor")
    return nest.op(op, a, b)


# -- three operands -------------------------------------------------------------------------------


@pointwise(aten.lerp, operands=3)
def lerp(nest: NestBuilder, start: Value, end: Value, weight: Value) -> Value:
    # Eager's two forms: exact at weight 0 and at weight 1.
    difference = end - start
    near = nest.op("abs", weight) < 0.5
    return nest.where(near, start + weight * difference, end - difference * (1 - weight))


@pointwise(aten.addcmul, operands=3)
def addcmul(nest: NestBuilder, x: Value, a: Value, b: Value, value: Number = 1) -> Value:
    return x + scaled(nest, a, value) * b


@pointwise(aten.addcdiv, operands=3)
def addcdiv(nest: NestBuilder, x: Value, a: Value, b: Value, value: Number = 1) -> Value:
    return x + scaled(nest, a, value) / b
