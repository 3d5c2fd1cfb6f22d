"""Pointwise ops: one nest over the result's shape, computed in the promoted dtype.

@pointwise(aten.silu)                      nest n0 (p0<17):
def silu(nest, x):                           %0:bf16 = load x[p0]
    return x / (1 + exp(-x))                 %1:f32 = cast %0
                                             ...
                                             store silu[p0], %5
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket

from fusec.ir.index import Expr
from fusec.lowering.builder import LOW_PRECISION, NestBuilder, Value, compute_dtype
from fusec.lowering.context import Context
from fusec.lowering.numbers import converted
from fusec.lowering.promotion import Kind, common_dtype
from fusec.lowering.ref import Ref
from fusec.lowering.registry import lowering
from fusec.lowering.symbols import SymbolicFloat

aten = torch.ops.aten
Formula = Callable[..., Value]


def pointwise(
    *targets: OpOverload | OpOverloadPacket, operands: int = 1, kind: Kind = Kind.DEFAULT, rounds: bool = False
) -> Callable[[Formula], Formula]:
    """Register formula(nest, value, ..., other arguments) as the lowering of pointwise ops.

    operands: how many leading arguments take part in type promotion; they arrive as Values of the compute dtype
        (numbers as constants, None as None). The rest arrive as they are in the graph.
    kind: INT_TO_FLOAT for ops that turn integers into the default float dtype.
    rounds: numbers are rounded to a low-precision operand's dtype first (comparisons, min, max, clamp).
    """

    def register(formula: Formula) -> Formula:
        def lower_pointwise(ctx: Context, *args: Any, **kwargs: Any) -> Ref:
            return emit(ctx, formula, args[:operands], args[operands:], kwargs, kind, rounds)

        lowering(*targets)(lower_pointwise)
        return formula

    return register


def emit(
    ctx: Context,
    formula: Formula,
    operands: Sequence[Any],
    rest: Sequence[Any],
    kwargs: dict[str, Any],
    kind: Kind = Kind.DEFAULT,
    rounds: bool = False,
) -> Ref:
    """One nest that stores formula(nest, *values, *rest) as the op's result."""
    out = ctx.result()
    common = common_dtype(tuple(operands), kind)
    with ctx.nest(out.shape) as nest:
        values = [operand(nest, o, out.shape, common, rounds) for o in operands]
        nest.store(out, nest.p, formula(nest, *values, *rest, **kwargs))
    return out


def operand(
    nest: NestBuilder, value: Any, shape: Sequence[Any], common: torch.dtype, rounds: bool = False
) -> Value | None:
    """A promoted operand in the compute dtype: a tensor's element, or a constant."""
    dtype = compute_dtype(common)
    if isinstance(value, Ref):
        loaded = nest.load(value.expand(shape), nest.p)
        if common in LOW_PRECISION and loaded.dtype is not common and value.device != "cpu":
            loaded = nest.cast(loaded, common)  # eager brings a wider 0-dim tensor to the common dtype first
        return nest.cast(loaded, dtype)
    if value is None:
        return None
    if isinstance(value, Expr | SymbolicFloat):  # a number of sizes
        return nest.cast(nest.const(value, common), dtype) if rounds else nest.const(value, dtype)
    return nest.const(converted(value, common) if rounds else value, dtype)
