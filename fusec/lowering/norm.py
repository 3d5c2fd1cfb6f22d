"""Normalisations: layer, group, batch, instance and root-mean-square norm.

Enters: a view, optional weight and bias. Leaves: a mean nest, a centred variance nest that ends in rsqrt, and a
pointwise nest; a batch norm with running statistics is the pointwise nest alone.

    layer_norm(x, (768,), w, b) of bf16[64, 768]

    nest n0 (p0<64, r0<768):  mean[p0] = sum(x) / 768
    nest n1 (p0<64, r0<768):  rstd[p0] = rsqrt(sum((x - mean)^2) / 768 + eps)
    nest n2 (p0<64, p1<768):  out = (x - mean) * rstd * w + b

Statistics of float16 and bfloat16 are float32 and are not rounded on the way to the result, whatever dtype the
op returns them in.

Lowered directly, so capture may keep them whole: native_layer_norm, native_group_norm, _fused_rms_norm,
native_batch_norm, cudnn_batch_norm, _native_batch_norm_legit.no_stats, _native_batch_norm_legit_functional,
_native_batch_norm_legit_no_training, _batch_norm_no_update, _batch_norm_with_update_functional.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fusec.ir.index import IndexLike, as_expr, as_int
from fusec.lowering.builder import NestBuilder, Number, Value, compute_dtype
from fusec.lowering.context import Context
from fusec.lowering.reduction import (
    Coordinates,
    Finish,
    Split,
    as_result,
    is_used,
    mean_of,
    reduce_rows,
    require_floating,
    row_temporary,
    spread_of,
)
from fusec.lowering.ref import Ref
from fusec.lowering.registry import NotLowered, lowering

aten = torch.ops.aten

Where = Callable[[Coordinates], Coordinates]  # coordinates of x -> coordinates of a weight or a statistic


def _rsqrt_of(count: IndexLike, eps: float) -> Finish:
    return lambda nest, total: nest.op("rsqrt", total / count + eps)


def _moments(ctx: Context, x: Ref, split: Split, eps: float) -> tuple[Ref, Ref]:
    """(mean, rstd), one value a row, in the accumulation dtype."""
    mean = mean_of(ctx, x, split)
    rstd = row_temporary(ctx, split, compute_dtype(x.dtype), "rstd")
    return mean, spread_of(ctx, x, split, rstd, _rsqrt_of(split.count, eps))


def _scale_shift(
    nest: NestBuilder, value: Value, weight: Ref | None, bias: Ref | None, where: Sequence[IndexLike]
) -> Value:
    """value * weight + bias, each of them optional."""
    if weight is not None:
        value = value * nest.cast(nest.load(weight, where), value.dtype)
    return value if bias is None else value + nest.cast(nest.load(bias, where), value.dtype)


def _normalize(
    ctx: Context, x: Ref, mean: Ref, rstd: Ref, weight: Ref | None, bias: Ref | None, row: Where, column: Where
) -> Ref:
    """out = (x - mean) * rstd * weight + bias over the points of the op's first result."""
    out = ctx.result(0)
    with ctx.nest(out.shape) as nest:
        centred = nest.load_f32(x, nest.p) - nest.load(mean, row(nest.p))
        value = centred * nest.load(rstd, row(nest.p))
        nest.store(out, nest.p, _scale_shift(nest, value, weight, bias, column(nest.p)))
    return out


def _statistic(ctx: Context, rows: Ref, index: int) -> Ref | None:
    return as_result(ctx, rows, index) if is_used(ctx.node, index) else None


# -- layer and rms norm ---------------------------------------------------------------------------


def _trailing(x: Ref, normalized_shape: Sequence[int]) -> Split:
    n = len(normalized_shape)
    return Split.of(x, range(x.ndim - n, x.ndim))


@lowering(aten.native_layer_norm.default)
def layer_norm(
    ctx: Context, x: Ref, normalized_shape: Sequence[int], weight: Ref | None, bias: Ref | None, eps: float
) -> tuple[Ref | None, ...]:
    require_floating(x, weight, bias)
    split = _trailing(x, normalized_shape)
    mean, rstd = _moments(ctx, x, split, eps)
    lead = x.ndim - len(normalized_shape)
    out = _normalize(ctx, x, mean, rstd, weight, bias, lambda p: p[:lead], lambda p: p[lead:])
    return out, _statistic(ctx, mean, 1), _statistic(ctx, rstd, 2)


@lowering(aten._fused_rms_norm.default)
def rms_norm(
    ctx: Context, x: Ref, normalized_shape: Sequence[int], weight: Ref | None, eps: float | None
) -> tuple[Ref | None, ...]:
    """x * rsqrt(mean(x^2) + eps) * weight; eps None is the epsilon of the dtype that is computed in."""
    require_floating(x, weight)
    split, dtype = _trailing(x, normalized_shape), compute_dtype(x.dtype)
    epsilon = torch.finfo(dtype).eps if eps is None else eps

    def square(nest: NestBuilder, where: Coordinates) -> Value:
        value = nest.load_f32(x, where)
        return value * value

    rstd = row_temporary(ctx, split, dtype, "rstd")
    reduce_rows(ctx, split, "sum", square, dtype, rstd, _rsqrt_of(split.count, epsilon))
    out, lead = ctx.result(0), x.ndim - len(normalized_shape)
    with ctx.nest(out.shape) as nest:
        value = nest.load_f32(x, nest.p) * nest.load(rstd, nest.p[:lead])
        nest.store(out, nest.p, _scale_shift(nest, value, weight, None, nest.p[lead:]))
    return out, _statistic(ctx, rstd, 1)


# -- group norm -----------------------------------------------------------------------------------


@lowering(aten.native_group_norm.default)
def group_norm(
    ctx: Context,
    x: Ref,
    weight: Ref | None,
    bias: Ref | None,
    n: int,
    c: int,
    hxw: int,
    group: int,
    eps: float,
) -> tuple[Ref | None, ...]:
    """Statistics over each group of c / group channels of each sample."""
    require_floating(x, weight, bias)
    each = c // group
    grouped = x.view((n, group, each, *x.shape[2:]), lambda q: (q[0], as_expr(q[1]) * each + q[2], *q[3:]))
    mean, rstd = _moments(ctx, grouped, Split.of(grouped, range(2, grouped.ndim)), eps)
    out = _normalize(ctx, x, mean, rstd, weight, bias, lambda p: (p[0], as_expr(p[1]) // each), lambda p: (p[1],))
    return out, _statistic(ctx, mean, 1), _statistic(ctx, rstd, 2)


# -- batch and instance norm ----------------------------------------------------------------------


def _channel(p: Coordinates) -> Coordinates:
    return (p[1],)


def _with_running_statistics(
    ctx: Context, x: Ref, weight: Ref | None, bias: Ref | None, mean: Ref | None, var: Ref | None, eps: float
) -> Ref:
    """Eval mode: out = (x - running_mean) * rsqrt(running_var + eps) * weight + bias."""
    require_floating(x, weight, bias, mean, var)
    if mean is None or var is None:
        raise NotLowered("a batch norm in eval mode without running statistics")
    out = ctx.result(0)
    with ctx.nest(out.shape) as nest:
        value = nest.load_f32(x, nest.p)
        centre = nest.cast(nest.load(mean, (nest.p[1],)), value.dtype)
        rstd = nest.op("rsqrt", nest.cast(nest.load(var, (nest.p[1],)), value.dtype) + eps)
        value = (value - centre) * rstd
        nest.store(out, nest.p, _scale_shift(nest, value, weight, bias, (nest.p[1],)))
    return out


def _nothing(ctx: Context, first: int) -> tuple[Ref | None, ...]:
    """The results that eval mode leaves empty; one that is read all the same is an empty tensor."""
    found: list[Ref | None] = []
    for index in range(first, len(ctx.meta)):
        if not is_used(ctx.node, index):
            found.append(None)
            continue
        out = ctx.result(index)
        if as_int(out.shape[0]) != 0:
            raise NotLowered("a batch norm in eval mode whose saved statistics are read")
        with ctx.nest(out.shape) as nest:
            nest.store(out, nest.p, nest.const(0, out.dtype))
        found.append(out)
    return tuple(found)


def _channel_split(x: Ref) -> Split:
    return Split.of(x, [d for d in range(x.ndim) if d != 1])


def _with_batch_statistics(
    ctx: Context, x: Ref, weight: Ref | None, bias: Ref | None, eps: float
) -> tuple[Ref, Ref, Ref, Ref]:
    """Training mode: (out, mean, rstd, biased variance), one statistic a channel."""
    require_floating(x, weight, bias)
    split, dtype = _channel_split(x), compute_dtype(x.dtype)
    count = split.count
    mean = mean_of(ctx, x, split)
    var = row_temporary(ctx, split, dtype, "var")
    spread_of(ctx, x, split, var, lambda nest, total: total / count)
    rstd = row_temporary(ctx, split, dtype, "rstd")
    with ctx.nest(rstd.shape) as nest:
        nest.store(rstd, nest.p, nest.op("rsqrt", nest.load(var, nest.p) + eps))
    return _normalize(ctx, x, mean, rstd, weight, bias, _channel, _channel), mean, rstd, var


def _blend(ctx: Context, running: Ref, fresh: Ref, momentum: float, count: IndexLike | None, index: int) -> Ref:
    """running * (1 - momentum) + fresh * factor * momentum, as the op's index-th result.

    count: elements a biased variance was taken over; factor count / (count - 1) makes it unbiased. None: factor 1.
    """
    out = ctx.result(index)
    with ctx.nest(out.shape) as nest:
        value = nest.load(fresh, nest.p)
        old = nest.cast(nest.load(running, nest.p), value.dtype)
        if isinstance(count, int):
            value = value * (count / (count - 1))
        elif count is not None:
            value = value * (nest.index(count, value.dtype) / nest.index(count - 1, value.dtype))
        nest.store(out, nest.p, old * (1 - momentum) + value * momentum)
    return out


def _updated(
    ctx: Context, x: Ref, running: tuple[Ref, Ref], fresh: tuple[Ref, Ref], momentum: float, first: int
) -> tuple[Ref | None, Ref | None]:
    """The new running mean and (unbiased) variance, as results `first` and `first + 1`."""
    count = _channel_split(x).count
    if isinstance(count, int) and count < 2:
        raise NotLowered("the running variance of one element a channel")
    return tuple(  # type: ignore[return-value]
        _blend(ctx, running[i], fresh[i], momentum, count if i else None, first + i)
        if is_used(ctx.node, first + i)
        else None
        for i in range(2)
    )


@lowering(aten._native_batch_norm_legit_no_training.default)
def batch_norm_eval(
    ctx: Context, x: Ref, weight: Ref | None, bias: Ref | None, mean: Ref, var: Ref, momentum: float, eps: float
) -> tuple[Ref | None, ...]:
    return _with_running_statistics(ctx, x, weight, bias, mean, var, eps), *_nothing(ctx, 1)


@lowering(aten._batch_norm_no_update.default)
def batch_norm_no_update(
    ctx: Context, x: Ref, weight: Ref | None, bias: Ref | None, mean: Ref, var: Ref, momentum: float, eps: float
) -> tuple[Ref | None, ...]:
    return _with_running_statistics(ctx, x, weight, bias, mean, var, eps), *_nothing(ctx, 1)


@lowering(aten.native_batch_norm.default, aten.cudnn_batch_norm.default)
def batch_norm(
    ctx: Context,
    x: Ref,
    weight: Ref | None,
    bias: Ref | None,
    mean: Ref | None,
    var: Ref | None,
    training: bool,
    momentum: Number,
    eps: float,
) -> tuple[Ref | None, ...]:
    if training and mean is None and var is None:
        out, row_mean, rstd, _ = _with_batch_statistics(ctx, x, weight, bias, eps)
        return out, _statistic(ctx, row_mean, 1), _statistic(ctx, rstd, 2), *_nothing(ctx, 3)
    if training:
        raise NotLowered("a batch norm that writes its running statistics in place")
    return _with_running_statistics(ctx, x, weight, bias, mean, var, eps), *_nothing(ctx, 1)


@lowering(aten._native_batch_norm_legit.no_stats)
def batch_norm_no_stats(
    ctx: Context, x: Ref, weight: Ref | None, bias: Ref | None, training: bool, momentum: float, eps: float
) -> tuple[Ref | None, ...]:
    """Instance norm is this op over (1, batch * channels, ...)."""
    out, mean, rstd, _ = _with_batch_statistics(ctx, x, weight, bias, eps)
    return out, _statistic(ctx, mean, 1), _statistic(ctx, rstd, 2)


@lowering(aten._native_batch_norm_legit_functional.default)
def batch_norm_functional(
    ctx: Context,
    x: Ref,
    weight: Ref | None,
    bias: Ref | None,
    running_mean: Ref,
    running_var: Ref,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Ref | None, ...]:
    if not training:
        raise NotLowered("a functional batch norm in eval mode")
    out, mean, rstd, var = _with_batch_statistics(ctx, x, weight, bias, eps)
    statistics = _statistic(ctx, mean, 1), _statistic(ctx, rstd, 2)
    return out, *statistics, *_updated(ctx, x, (running_mean, running_var), (mean, var), momentum, 3)


@lowering(aten._batch_norm_with_update_functional.default)
def batch_norm_with_update(
    ctx: Context,
    x: Ref,
    weight: Ref | None,
    bias: Ref | None,
    running_mean: Ref,
    running_var: Ref,
    momentum: float,
    eps: float,
) -> tuple[Ref | None, ...]:
    if is_used(ctx.node, 3):
        raise NotLowered("a batch norm whose library workspace is read")
    out, mean, rstd, var = _with_batch_statistics(ctx, x, weight, bias, eps)
    statistics = _statistic(ctx, mean, 1), _statistic(ctx, rstd, 2), None
    return out, *statistics, *_updated(ctx, x, (running_mean, running_var), (mean, var), momentum, 4)
