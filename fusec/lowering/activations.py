"""Activations and their derivatives, each by the formula eager PyTorch uses on a GPU.

aten.silu(x)   ->   x / (1 + exp(-x))
"""

from __future__ import annotations

import math

import torch

from fusec.lowering.builder import NestBuilder, Value
from fusec.lowering.context import Context
from fusec.lowering.logic import clamp as clamp_formula
from fusec.lowering.logic import maximum, minimum
from fusec.lowering.numbers import Number
from fusec.lowering.pointwise import pointwise
from fusec.lowering.reduction import is_used
from fusec.lowering.ref import Ref
from fusec.lowering.registry import NotLowered, lowering
from fusec.lowering.views import narrowed

aten = torch.ops.aten


def _exp(x: Value) -> Value:
    return x.nest.op("exp", x)


@pointwise(aten.relu)
def relu(nest: NestBuilder, x: Value) -> Value:
    return maximum(nest, x, nest.const(0, x.dtype))


@pointwise(aten.relu6)
def relu6(nest: NestBuilder, x: Value) -> Value:
    return clamp_formula(nest, x, nest.const(0, x.dtype), nest.const(6, x.dtype))


@pointwise(aten.hardtanh)
def hardtanh(nest: NestBuilder, x: Value, min_val: Number = -1, max_val: Number = 1) -> Value:
    return clamp_formula(nest, x, nest.const(min_val, x.dtype), nest.const(max_val, x.dtype))


@pointwise(aten.leaky_relu)
def leaky_relu(nest: NestBuilder, x: Value, negative_slope: Number = 0.01) -> Value:
    return nest.where(x > 0, x, x * negative_slope)


@pointwise(aten._prelu_kernel, aten.prelu, operands=2)
def prelu(nest: NestBuilder, x: Value, weight: Value) -> Value:
    return nest.where(x > 0, x, x * weight)


@pointwise(aten.elu)
def elu(nest: NestBuilder, x: Value, alpha: Number = 1, scale: Number = 1, input_scale: Number = 1) -> Value:
    below = nest.op("expm1", _times(x, input_scale)) * (float(alpha) * float(scale))
    return nest.where(x > 0, _times(x, scale), below)


@pointwise(aten.selu)
def selu(nest: NestBuilder, x: Value) -> Value:
    return elu(nest, x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


@pointwise(aten.celu)
def celu(nest: NestBuilder, x: Value, alpha: Number = 1.0) -> Value:
    return elu(nest, x, alpha, 1.0, 1.0 / alpha)


def _times(x: Value, factor: Number) -> Value:
    return x if factor == 1 else x * factor


@pointwise(aten.gelu)
def gelu(nest: NestBuilder, x: Value, *, approximate: str = "none") -> Value:
    if approximate == "tanh":
        inner = (x + x * x * x * 0.044715) * math.sqrt(2.0 / math.pi)
        return x * 0.5 * (nest.op("tanh", inner) + 1.0)
    return x * nest.op("ndtr", x)


@pointwise(aten.silu)
def silu(nest: NestBuilder, x: Value) -> Value:
    return x / (_exp(-x) + 1.0)


@pointwise(aten.mish)
def mish(nest: NestBuilder, x: Value) -> Value:
    return x * nest.op("tanh", nest.op("log1p", _exp(x)))


@pointwise(aten.softplus)
def softplus(nest: NestBuilder, x: Value, beta: Number = 1, threshold: Number = 20) -> Value:
    scaled = _times(x, beta)
    return nest.where(scaled > threshold, x, nest.op("log1p", _exp(scaled)) / beta)


@pointwise(aten.hardswish)
def hardswish(nest: NestBuilder, x: Value) -> Value:
    return x * _relu6(nest, x + 3.0) * (1.0 / 6.0)


@pointwise(aten.hardsigmoid)
def hardsigmoid(nest: NestBuilder, x: Value) -> Value:
    return _relu6(nest, x + 3.0) * (1.0 / 6.0)


def _relu6(nest: NestBuilder, x: Value) -> Value:
    return clamp_formula(nest, x, nest.const(0, x.dtype), nest.const(6, x.dtype))


@pointwise(aten.threshold)
def threshold(nest: NestBuilder, x: Value, limit: Number, value: Number) -> Value:
    return nest.where(x <= limit, value, x)


@pointwise(aten.hardshrink)
def hardshrink(nest: NestBuilder, x: Value, lambd: Number = 0.5) -> Value:
    return nest.where((x >= -lambd) & (x <= lambd), 0, x)


@pointwise(aten.softshrink)
def softshrink(nest: NestBuilder, x: Value, lambd: Number = 0.5) -> Value:
    # x * 0 for the middle keeps NaN.
    return nest.where(x > lambd, x - lambd, nest.where(x < -lambd, x + lambd, x * 0))


def log_sigmoid_formula(nest: NestBuilder, x: Value) -> Value:
    return minimum(nest, x, nest.const(0, x.dtype)) - nest.op("log1p", _exp(-nest.op("abs", x)))


pointwise(aten.log_sigmoid)(log_sigmoid_formula)


@lowering(aten.log_sigmoid_forward)
def log_sigmoid_forward(ctx: Context, x: Ref) -> tuple[Ref, Ref | None]:
    """The value, and on a CPU exp(-|x|), which the gradient reads."""
    value = ctx.pointwise([x], log_sigmoid_formula, ctx.result(0))
    if not is_used(ctx.node, 1) or ctx.meta[1].shape != ctx.meta[0].shape:
        return value, None
    return value, ctx.pointwise([x], lambda nest, v: _exp(-nest.op("abs", v)), ctx.result(1))


@lowering(aten.glu)
def glu(ctx: Context, x: Ref, dim: int = -1) -> Ref:
    dim %= x.ndim
    out = ctx.result()
    half = out.shape[dim]
    first, second = narrowed(x, dim, 0, half), narrowed(x, dim, half, half)
    return ctx.pointwise([first, second], lambda nest, a, b: a * nest.op("sigmoid", b), out)


# -- derivatives ----------------------------------------------------------------------------------


@pointwise(aten.threshold_backward, operands=2)
def threshold_backward(nest: NestBuilder, grad: Value, x: Value, limit: Number) -> Value:
    return nest.where(x <= limit, 0, grad)


@pointwise(aten.sigmoid_backward, operands=2)
def sigmoid_backward(nest: NestBuilder, grad: Value, y: Value) -> Value:
    return grad * (1 - y) * y


@pointwise(aten.tanh_backward, operands=2)
def tanh_backward(nest: NestBuilder, grad: Value, y: Value) -> Value:
    return grad * (1 - y * y)


@pointwise(aten.silu_backward, operands=2)
def silu_backward(nest: NestBuilder, grad: Value, x: Value) -> Value:
    s = nest.op("sigmoid", x)
    return grad * s * (x * (1 - s) + 1)


@pointwise(aten.gelu_backward, operands=2)
def gelu_backward(nest: NestBuilder, grad: Value, x: Value, *, approximate: str = "none") -> Value:
    if approximate == "tanh":
        beta, kappa = math.sqrt(2.0 / math.pi), 0.044715
        t = nest.op("tanh", (x + x * x * x * kappa) * beta)
        inner = (x * x * (3 * kappa) + 1) * beta
        return grad * ((t + 1) * 0.5 + x * 0.5 * (1 - t * t) * inner)
    pdf = _exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi))
    return grad * (nest.op("ndtr", x) + x * pdf)


@pointwise(aten.leaky_relu_backward, operands=2)
def leaky_relu_backward(nest: NestBuilder, grad: Value, x: Value, slope: Number, self_is_result: bool) -> Value:
    return nest.where(x > 0, grad, grad * slope)


@pointwise(aten.hardtanh_backward, operands=2)
def hardtanh_backward(nest: NestBuilder, grad: Value, x: Value, low: Number, high: Number) -> Value:
    return nest.where((x <= low) | (x >= high), 0, grad)


@pointwise(aten.hardswish_backward, operands=2)
def hardswish_backward(nest: NestBuilder, grad: Value, x: Value) -> Value:
    middle = grad * (x * (1 / 3) + 0.5)
    return nest.where(x <= -3, 0, nest.where(x < 3, middle, grad))


@pointwise(aten.hardsigmoid_backward, operands=2)
def hardsigmoid_backward(nest: NestBuilder, grad: Value, x: Value) -> Value:
    return nest.where((x > -3) & (x < 3), grad * (1 / 6), 0)


@pointwise(aten.softplus_backward, operands=2)
def softplus_backward(nest: NestBuilder, grad: Value, x: Value, beta: Number, threshold: Number) -> Value:
    scaled = _times(x, beta)
    return nest.where(scaled > threshold, grad, grad * nest.op("sigmoid", scaled))


@lowering(aten.elu_backward)
def elu_backward(
    ctx: Context, grad: Ref, alpha: float, scale: float, input_scale: float, is_result: bool, x: Ref
) -> Ref:
    below = float(alpha) * float(scale)

    def formula(nest: NestBuilder, g: Value, v: Value) -> Value:
        slope = v + below if is_result else _exp(_times(v, input_scale)) * below
        return nest.where(v <= 0, _times(g, input_scale) * slope, _times(g, scale))

    return ctx.pointwise([grad, x], formula)


@lowering(aten.native_dropout_backward)
def native_dropout_backward(ctx: Context, grad: Ref, mask: Ref, scale: Number) -> Ref:
    if not grad.dtype.is_floating_point:
        raise NotLowered("dropout of integers")
    return ctx.pointwise([grad, mask], lambda nest, g, kept: g * nest.cast(kept, g.dtype) * scale)
