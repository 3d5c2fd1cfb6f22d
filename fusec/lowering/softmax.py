"""softmax and log_softmax over any dimension: maximum, sum of exponentials, result.

Enters: a view and a dimension. Leaves: three nests; the scheduler makes them one kernel.

    softmax(x, -1) of bf16[64, 4096]

    nest n0 (p0<64, r0<4096):  row_max[p0] = max x
    nest n1 (p0<64, r0<4096):  row_sum[p0] = sum exp(x - row_max)
    nest n2 (p0<64, p1<4096):  out = exp(x - row_max) / row_sum

A row of -inf gives NaN, as in PyTorch: -inf - (-inf). `_safe_softmax` gives zeros there instead.
"""

from __future__ import annotations

import torch

from fusec.lowering.builder import NestBuilder, Value, compute_dtype
from fusec.lowering.context import Context
from fusec.lowering.reduction import Split, max_of, require_floating, row_temporary, sum_exp_of
from fusec.lowering.ref import Ref
from fusec.lowering.registry import lowering

aten = torch.ops.aten


def _softmax(ctx: Context, x: Ref, dim: int, *, log: bool, safe: bool = False) -> Ref:
    """exp(x - max) / sum(exp(x - max)), or x - max - log(sum(exp(x - max)))."""
    require_floating(x)
    out, split = ctx.result(), Split.of(x, dim)
    largest = max_of(ctx, x, split)
    total = row_temporary(ctx, split, compute_dtype(x.dtype), "row_sum")

    def logarithm(nest: NestBuilder, value: Value) -> Value:
        return nest.op("log", value)

    sum_exp_of(ctx, x, split, largest, total, logarithm if log else None)
    with ctx.nest(out.shape) as nest:
        row = split.row_of(nest.p)
        top = nest.load(largest, row)
        shifted = nest.load_f32(x, nest.p) - top
        value = shifted - nest.load(total, row) if log else nest.op("exp", shifted) / nest.load(total, row)
        if safe:
            value = nest.where(top.eq(float("-inf")), 0, value)
        nest.store(out, nest.p, value)
    return out


@lowering(aten._softmax.default)
def softmax(ctx: Context, x: Ref, dim: int, half_to_float: bool) -> Ref:
    return _softmax(ctx, x, dim, log=False)


@lowering(aten._log_softmax.default)
def log_softmax(ctx: Context, x: Ref, dim: int, half_to_float: bool) -> Ref:
    return _softmax(ctx, x, dim, log=True)


@lowering(aten._safe_softmax.default)
def safe_softmax(ctx: Context, x: Ref, dim: int, dtype: torch.dtype | None = None) -> Ref:
    """softmax with zeros for a row of -inf (a fully masked row of attention)."""
    if dtype is not None and dtype is not x.dtype:
        x = ctx.materialize(x, dtype=dtype)
    return _softmax(ctx, x, dim, log=False, safe=True)
