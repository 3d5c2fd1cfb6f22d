"""Ops that scale an operand by a Python number, where that number changes from call to call: a learning rate.

Enters: nothing. Leaves: {OpOverload: function} for ops with such a coefficient.

    add(x, y, alpha=lr)            ->  x + y * lr           lr: SymFloat
    mul(x, -lr)                    ->  -(x * lr)
    addcdiv(x, a, b, value=lr)     ->  x + (a / b) * lr
    add(x, y, alpha=0.1)           ->  NotImplemented: the op stays

Dynamo passes a float that changed as a 0-d tensor, and AOTAutograd rewrites sums, products and quotients with it; a
number that goes into anything else is compiled anew for each value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["coefficient_table", "scaled_sum"]

aten = torch.ops.aten
_LOW_PRECISION = (torch.float16, torch.bfloat16)


def scaled_sum(x: Tensor, factor: Any, *operands: Tensor, combine: Callable[..., Tensor] = lambda y: y) -> Tensor:
    """x + factor * combine(*operands), rounded once as by the op that it stands for."""
    dtype = x.dtype
    if dtype not in _LOW_PRECISION or any(y.dtype is not dtype for y in operands):
        total: Tensor = x + combine(*operands) * factor
        return total
    wide = [y.to(torch.float32) for y in operands]
    total = x.to(torch.float32) + combine(*wide) * factor
    return total.to(dtype)


def _changes(value: Any, x: Any) -> bool:
    return isinstance(value, torch.SymFloat) and isinstance(x, Tensor) and x.is_floating_point()


def _add(x: Any, y: Any, *, alpha: Any = 1) -> Any:
    return scaled_sum(x, alpha, y) if _changes(alpha, x) and isinstance(y, Tensor) else NotImplemented


def _sub(x: Any, y: Any, *, alpha: Any = 1) -> Any:
    return scaled_sum(x, -alpha, y) if _changes(alpha, x) and isinstance(y, Tensor) else NotImplemented


def _mul(x: Any, y: Any) -> Any:
    """torch 2.11 finds the tensor again that lr is, but not of -lr, an expression of it."""
    if not isinstance(x, Tensor) or not isinstance(y, torch.SymFloat):
        return NotImplemented
    opposite = -y  # type: ignore[operator]
    return -(x * opposite) if opposite.node.expr.is_Symbol else NotImplemented


def _addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: Any = 1) -> Any:
    return scaled_sum(x, value, a, b, combine=torch.mul) if _changes(value, x) else NotImplemented


def _addcdiv(x: Tensor, a: Tensor, b: Tensor, *, value: Any = 1) -> Any:
    return scaled_sum(x, value, a, b, combine=torch.div) if _changes(value, x) else NotImplemented


def _lerp(x: Tensor, y: Tensor, weight: Any) -> Any:
    return scaled_sum(x, weight, x, y, combine=lambda a, b: b - a) if _changes(weight, x) else NotImplemented


def coefficient_table() -> dict[Any, Callable[..., Any]]:
    """{OpOverload: function of the same signature, or NotImplemented where the number is a constant}; a fresh dict."""
    return {
        aten.add.Tensor: _add,
        aten.sub.Tensor: _sub,
        aten.mul.Tensor: _mul,
        aten.addcmul.default: _addcmul,
        aten.addcdiv.default: _addcdiv,
        aten.lerp.Scalar: _lerp,
    }
