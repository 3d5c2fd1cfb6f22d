"""Which composite aten ops are rewritten during capture, and into what.

Enters: nothing. Leaves: `decomposition_table()`, {OpOverload: function} for AOTAutograd.

    aten.native_layer_norm(x, [n], w, b, eps)  ->  var_mean, sub, add, rsqrt, mul, mul, add

Kept whole, because lowering knows a better form than the rewrite: softmax, log_softmax, var, var_mean,
mean, logsumexp, gelu, silu and the other named pointwise functions. Kept whole, because a library is
faster: matmuls (but for those in `aligned`), convolutions, scaled_dot_product_attention and its backends,
sort, topk. Every rewrite computes float16 and bfloat16 in float32 inside and rounds once, as the eager
kernel does; what those round inside is an op of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce, wraps
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch.utils._pytree import tree_map_only

from fusec.capture.aligned import alignment_table
from fusec.capture.coefficients import coefficient_table
from fusec.capture.foreach import foreach_table
from fusec.capture.random import random_table

# torch._decomp.get_decompositions, torch.utils._pytree: checked with torch 2.11.0 and 2.13.0.

__all__ = ["KEPT", "computation", "decomposition_table"]

aten = torch.ops.aten
prims = torch.ops.prims
Decomposition = Callable[..., Any]

# Rewrites of torch itself, by family. A name is an OpOverloadPacket, or an overload "name.overload".
_POINTWISE = """
    deg2rad rad2deg logaddexp2 mvlgamma special_log_ndtr huber_loss l1_loss mse_loss
    smooth_l1_loss soft_margin_loss binary_cross_entropy binary_cross_entropy_with_logits _euclidean_dist.default addr
    dist.default linalg_cross.default renorm.default multi_margin_loss
    multilabel_margin_loss_forward.default
"""
_FACTORIES = """
    arange.default arange.start block_diag diag_embed eye hann_window linspace logspace new_empty new_full new_ones
    new_zeros ones ones_like zeros zeros_like empty_like fill zero
    affine_grid_generator tril_indices triu_indices
"""
_VIEWS = """
    _reshape_alias detach channel_shuffle expand_as narrow pixel_shuffle pixel_unshuffle rot90 stack squeeze_copy
    split.Tensor t t_copy transpose.int transpose_copy unbind unfold_copy unsafe_split.Tensor unsafe_split_with_sizes
    unsqueeze_copy _unsafe_view view_as_complex expand_copy alias_copy diagonal_copy split_with_sizes_copy
"""
_REDUCTIONS = """
    trace nll_loss_forward nll_loss2d_forward
"""
_NORMS = """
    _native_batch_norm_legit _native_batch_norm_legit.no_stats _native_batch_norm_legit_functional
    _native_batch_norm_legit_no_training native_batch_norm cudnn_batch_norm _fused_rms_norm _weight_norm_interface
"""
_INDEXING = """
    index_add.default index_copy.default index_fill.int_Scalar index_fill.int_Tensor isin select_backward
    slice_backward diagonal_backward
"""
_BACKWARD = """
    elu_backward glu_backward hardsigmoid_backward hardswish_backward hardtanh_backward
    huber_loss_backward leaky_relu_backward log_sigmoid_backward _log_softmax_backward_data logit_backward
    mish_backward mse_loss_backward native_batch_norm_backward native_dropout_backward native_group_norm_backward
    native_layer_norm_backward _fused_rms_norm_backward _prelu_kernel_backward
    sigmoid_backward silu_backward silu_backward.grad_input smooth_l1_loss_backward soft_margin_loss_backward
    _softmax_backward_data softplus_backward tanh_backward threshold_backward binary_cross_entropy_backward
    cudnn_batch_norm_backward
"""

# Names that must never be rewritten; a test holds the table to it.
_KEPT_WHOLE = """
    _softmax _log_softmax var var_mean mean sum amax amin prod logsumexp gelu silu sigmoid tanh relu bmm
    baddbmm convolution scaled_dot_product_attention _scaled_dot_product_flash_attention
    _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
    _scaled_dot_product_flash_attention_for_cpu sort topk index gather scatter embedding
"""
KEPT = tuple(_KEPT_WHOLE.split())

_LOW_PRECISION = (torch.float16, torch.bfloat16)


def computation(x: Tensor) -> Tensor:
    """The values as kernels compute with them: float32 for float16 and bfloat16."""
    return x.to(torch.float32) if x.dtype in _LOW_PRECISION else x


def _scale_shift(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        x = x * weight
    return x if bias is None else x + bias


def _statistics_dtype(x: Tensor) -> torch.dtype | None:
    # CPU kernels return mean and rstd in the input's dtype, CUDA kernels in float32.
    return x.dtype if x.device.type == "cpu" else None


def _native_layer_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """y = (x - mean) * rsqrt(var + eps) * weight + bias over the last len(normalized_shape) dimensions."""
    values = computation(x)
    dims = list(range(x.dim() - len(normalized_shape), x.dim()))
    var, mean = torch.var_mean(values, dims, correction=0, keepdim=True)
    rstd = torch.rsqrt(var + eps)
    y = _scale_shift((values - mean) * rstd, weight, bias).to(x.dtype).contiguous()
    kept = _statistics_dtype(x)
    return (y, mean, rstd) if kept is None else (y, mean.to(kept), rstd.to(kept))


def _native_group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, c: int, hxw: int, group: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """y = (x - mean) * rsqrt(var + eps) * weight + bias; statistics over each of `group` sets of channels."""
    values = computation(x).reshape(n, group, c // group, hxw)
    var, mean = torch.var_mean(values, [2, 3], correction=0, keepdim=True)
    rstd = torch.rsqrt(var + eps)
    shape = [1, group, c // group, 1]
    weight, bias = (v if v is None else v.reshape(shape) for v in (weight, bias))
    y = _scale_shift((values - mean) * rstd, weight, bias).to(x.dtype).reshape(x.shape)
    mean, rstd = mean.reshape(n, group), rstd.reshape(n, group)
    kept = _statistics_dtype(x)
    return (y, mean, rstd) if kept is None else (y, mean.to(kept), rstd.to(kept))


def _weight_norm_backward(grad: Tensor, v: Tensor, g: Tensor, norms: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Gradients of w = v * g / |v|, with a norm for each index along dim.

    dg = sum(dw * v) / |v|,   dv = (dw - v * dg / |v|) * g / |v|
    """
    dims = [d for d in range(v.dim()) if d != dim % v.dim()]
    incoming, values, norm = computation(grad), computation(v), computation(norms)
    along = (incoming * values).sum(dims, keepdim=True) / norm
    back = (incoming - values * (along / norm)) * (computation(g) / norm)
    return back.to(v.dtype), along.to(g.dtype)


def _nll_loss_backward(
    grad: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int, total: Tensor
) -> Tensor:
    """-grad (over the total weight for a mean) at each row's target, zero elsewhere; x: [classes] or [n, classes, ...].

    In this form the sum over classes is one entry, and no row of zeros is ever made.
    """
    classes = 0 if x.dim() < 2 else 1
    if reduction == 1:
        grad = grad / total
    if weight is not None:
        entries = weight.index_select(0, target.clamp(0, x.shape[classes] - 1).reshape(-1))
        grad = grad * entries.reshape(target.shape)
    elif target.dim() != grad.dim():
        grad = grad.expand(target.shape)
    wanted = torch.where(target != ignore_index, target, -1).unsqueeze(classes)
    shape = [1] * x.dim()
    shape[classes] = -1
    position = torch.arange(x.shape[classes], device=x.device).reshape(shape)
    return torch.where(position == wanted, -grad.unsqueeze(classes), 0).to(x.dtype)


def _convert_element_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    return aten._to_copy.default(x, dtype=dtype)  # type: ignore[no-any-return]


def _fma(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return x * y + z  # Triton contracts it again


def _times_log(log: Callable[[Tensor], Tensor]) -> Decomposition:
    """x log(y), 0 where x is 0. Eager kernels of 16-bit numbers round the logarithm, too, so it is an op of its own."""

    def compute(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(torch.isnan(y), math.nan, torch.where(x == 0, 0, x * log(y)))

    return compute


def _entr(x: Tensor) -> Tensor:
    """-x log(x), 0 at 0, -inf below; with a rounded logarithm, as _times_log."""
    outside = torch.where(x == 0, 0, -math.inf).to(x.dtype if x.is_floating_point() else torch.float32)
    return torch.where(torch.isnan(x), x, torch.where(x > 0, x * -torch.log(x), outside))


def _checking_shapes(index_add: Decomposition) -> Decomposition:
    """torch's rewrite broadcasts a source whose shape the op itself refuses."""

    @wraps(index_add)
    def compute(x: Tensor, dim: int, index: Tensor, source: Tensor, **options: Any) -> Any:
        if x.dim() and source.dim():
            around = [[n for d, n in enumerate(t.shape) if d != dim % t.dim()] for t in (x, source)]
            torch._check(around[0] == around[1], lambda: f"index_add: a source of shape {source.shape} for {x.shape}")
        return index_add(x, dim, index, source, **options)

    return compute


def _in_float32(function: Decomposition) -> Decomposition:
    """f(x: bf16) -> f(x: f32).to(bf16): an eager kernel rounds once, where a rewrite of torch may round each step."""

    @wraps(function)
    def compute(*args: Any, **kwargs: Any) -> Any:
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.is_floating_point()]
        if not tensors:
            return function(*args, **kwargs)
        common = reduce(torch.promote_types, (t.dtype for t in tensors))
        if common not in _LOW_PRECISION:
            return function(*args, **kwargs)
        args, kwargs = tree_map_only(Tensor, computation, (args, kwargs))
        outputs = function(*args, **kwargs)
        return tree_map_only(Tensor, lambda t: t.to(common) if t.dtype is torch.float32 else t, outputs)

    return compute


def _own() -> dict[Any, Decomposition]:
    return {
        aten.native_layer_norm.default: _native_layer_norm,
        aten.native_group_norm.default: _native_group_norm,
        aten._weight_norm_interface_backward.default: _weight_norm_backward,
        aten.xlogy.Tensor: _times_log(torch.log),
        aten.special_xlog1py.default: _times_log(torch.log1p),
        aten.special_entr.default: _entr,
        aten.nll_loss_backward.default: _nll_loss_backward,
        aten.nll_loss2d_backward.default: _nll_loss_backward,
        # torch's own rewrites speak prims; lowering speaks aten.
        prims.convert_element_type.default: _convert_element_type,
    }


def _fma_table() -> dict[Any, Decomposition]:
    """prims.fma, which Dynamo of torch 2.12 on registers when it first traces an op that needs it: never cached."""
    return {prims.fma.default: _fma} if hasattr(prims, "fma") else {}


def _resolve(names: str) -> list[Any]:
    found: list[Any] = []
    for name in names.split():
        packet_name, _, overload = name.partition(".")
        packet = getattr(aten, packet_name, None)
        if packet is not None:  # an op of a newer torch
            found.append(getattr(packet, overload) if overload else packet)
    return found


@lru_cache(maxsize=1)
def _cached_table() -> dict[Any, Decomposition]:
    families = (_FACTORIES, _VIEWS, _REDUCTIONS, _NORMS, _INDEXING, _BACKWARD)
    table: dict[Any, Decomposition] = dict(get_decompositions(_resolve(" ".join(families))))
    table.update({op: _in_float32(f) for op, f in get_decompositions(_resolve(_POINTWISE)).items()})
    table[aten.index_add.default] = _checking_shapes(table[aten.index_add.default])
    table.update(foreach_table())
    table.update(coefficient_table())
    table.update(alignment_table())
    table.update(_own())
    return table


def decomposition_table(random: str = "philox") -> dict[Any, Decomposition]:
    """{OpOverload: function of the same signature}; a fresh dict, free to change. random: as in Config."""
    return {**_cached_table(), **_fma_table(), **(random_table() if random == "philox" else {})}
