"""The functions that benchmarks measure, with the sizes they are measured at.

Enters: a Case, a device, and whether sizes are full or small. Leaves: a Work, a function and its inputs.

    work = CASES["bias_gelu"].build("cuda")
    work.fn(*work.args)

`full` sizes are those of the committed tables; `small` ones keep the shape of the problem and run on a CPU.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from bench import models
from fusec.kernels import layer_norm as layer_norm_kernel
from fusec.kernels import rms_norm as rms_norm_kernel
from fusec.kernels import softmax as softmax_kernel
from fusec.kernels import swiglu as swiglu_kernel

Tensor = torch.Tensor
Tensors = list[torch.Tensor] | tuple[torch.Tensor, ...]
Sizes = dict[str, int]
BF16 = torch.bfloat16


@dataclass(frozen=True)
class Work:
    """yardstick: the same by a hand-written kernel, or None. parameters: of fn, beside its arguments.

    incoming: of a training step, the gradients of fn's outputs. moved: the bytes that a step must move, where they are
    not those of its inputs and outputs once.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    yardstick: Callable[..., Any] | None = None
    parameters: tuple[Tensor, ...] = ()
    incoming: tuple[Tensor, ...] = ()
    moved: int = 0


def infer(work: Work, fn: Callable[..., Any]) -> Any:
    """One call of `fn`, which is work.fn or a compiled form of it; no gradient is wanted."""
    with torch.no_grad():
        return fn(*work.args)


@dataclass(frozen=True)
class Case:
    """text: what is computed, for tables. run: one step of a work, by any form of its fn.

    whole: a model or an optimizer's step, with parameters of its own.
    random: it draws random numbers, so that answers cannot be compared.
    """

    name: str
    text: str
    make: Callable[..., Work]
    full: Sizes
    small: Sizes
    whole: bool = False
    run: Callable[[Work, Callable[..., Any]], Any] = infer
    random: bool = False

    def build(self, device: str, small: bool = False) -> Work:
        with torch.device(device):
            return self.make(**(self.small if small else self.full))

    @property
    def sizes(self) -> str:
        return " ".join(f"{k}={v}" for k, v in self.full.items())


def normal(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(shape, dtype=dtype)


def _bias_gelu(rows: int, columns: int) -> Work:
    def bias_gelu(x: Tensor, b: Tensor) -> Tensor:
        return F.gelu(x + b)

    return Work(bias_gelu, (normal(rows, columns), normal(columns)))


def _swiglu(rows: int, columns: int) -> Work:
    def swiglu(gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up

    return Work(swiglu, (normal(rows, columns), normal(rows, columns)), swiglu_kernel.swiglu)


def llama_rms(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """RMSNorm as written in Llama."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def _rms(rows: int, columns: int) -> Work:
    return Work(llama_rms, (normal(rows, columns), normal(columns)), rms_norm_kernel.rms_norm)


def _layer_norm(rows: int, columns: int) -> Work:
    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, (columns,), weight, bias)

    return Work(norm, (normal(rows, columns), normal(columns), normal(columns)), layer_norm_kernel.layer_norm)


def _residual_rms(rows: int, columns: int) -> Work:
    def residual_rms(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return llama_rms(total, weight), total

    return Work(residual_rms, (normal(rows, columns), normal(rows, columns), normal(columns)))


def _softmax(rows: int, columns: int) -> Work:
    def softmax(x: Tensor) -> Tensor:
        return torch.softmax(x, -1)

    return Work(softmax, (normal(rows, columns),), softmax_kernel.softmax)


def rotate_half(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((-b, a), -1)


def _rope(batch: int, tokens: int, heads: int, kv_heads: int, width: int) -> Work:
    def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin

    q = normal(batch, tokens, heads, width).transpose(1, 2)
    k = normal(batch, tokens, kv_heads, width).transpose(1, 2)
    return Work(rope, (q, k, normal(tokens, width), normal(tokens, width)))


def _transpose_pointwise(batch: int, rows: int, columns: int) -> Work:
    def transpose_pointwise(x: Tensor, y: Tensor) -> Tensor:
        return F.relu(x.transpose(1, 2) + y) * 0.5

    return Work(transpose_pointwise, (normal(batch, rows, columns), normal(batch, columns, rows)))


def _split_heads(batch: int, tokens: int, heads: int, width: int) -> Work:
    def split_heads(qkv: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = (qkv + bias).split(heads * width, -1)
        q, k, v = (p.view(batch, tokens, heads, width).transpose(1, 2) for p in parts)
        return q * (1.0 / math.sqrt(width)), k.contiguous(), v.contiguous()

    return Work(split_heads, (normal(batch, tokens, 3 * heads * width), normal(3 * heads * width)))


def _group_norm_silu(batch: int, channels: int, side: int, groups: int) -> Work:
    def group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.silu(F.group_norm(x, groups, weight, bias))

    x = normal(batch, channels, side, side).to(memory_format=torch.channels_last)
    return Work(group_norm_silu, (x, normal(channels), normal(channels)))


def _quant_fp8(rows: int, columns: int) -> Work:
    def quant_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
        scale = x.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / 448.0
        return (x.float() / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn), scale

    return Work(quant_fp8, (normal(rows, columns),))


def _cross_entropy(rows: int, columns: int) -> Work:
    def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss(F.log_softmax(logits.float(), -1), target)

    return Work(cross_entropy, (normal(rows, columns), torch.randint(0, columns, (rows,))))


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    return torch.softmax((scores * 0.125).masked_fill(mask, float("-inf")).float(), -1).to(scores.dtype)


def _masked_softmax(batch: int, heads: int, tokens: int) -> Work:
    mask = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    return Work(masked_softmax, (normal(batch, heads, tokens, tokens), mask))


def _sum_all_axes(rows: int, columns: int) -> Work:
    def sum_all_axes(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = x * y
        return z.sum(0), z.sum(1), z.sum()

    f32 = torch.float32
    return Work(sum_all_axes, (normal(rows, columns, dtype=f32), normal(rows, columns, dtype=f32)))


def _parameters(width: int) -> list[Tensor]:
    """20 tensors of the shapes of four transformer layers."""
    shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width), (width,)] * 4
    return [normal(*s, dtype=torch.float32) for s in shapes]


def _clip_grad_norm(width: int) -> Work:
    def clip_grad_norm(grads: Sequence[Tensor]) -> list[Tensor]:
        total = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads]))
        scale = torch.clamp(1.0 / (total + 1e-6), max=1.0)
        return [g * scale for g in grads]

    return Work(clip_grad_norm, (_parameters(width),))


def _adamw(width: int) -> Work:
    lr, beta1, beta2, eps, decay, step = 1e-3, 0.9, 0.999, 1e-8, 0.01, 7

    def adamw(params: Tensors, grads: Tensors, means: Tensors, squares: Tensors) -> tuple[Tensors, Tensors, Tensors]:
        means = torch._foreach_lerp(means, grads, 1 - beta1)
        squares = torch._foreach_addcmul(torch._foreach_mul(squares, beta2), grads, grads, 1 - beta2)
        roots = torch._foreach_div(torch._foreach_sqrt(squares), math.sqrt(1 - beta2**step))
        denominators = torch._foreach_add(roots, eps)
        decayed = torch._foreach_mul(params, 1 - lr * decay)
        return torch._foreach_addcdiv(decayed, means, denominators, -lr / (1 - beta1**step)), means, squares

    squares = [s.square() for s in _parameters(width)]
    return Work(adamw, (_parameters(width), _parameters(width), _parameters(width), squares))


def _gpt2_parameters(width: int, layers: int, vocabulary: int) -> list[torch.nn.Parameter]:
    """12 tensors a layer and 4 more, of GPT-2's shapes: 148 of them for 12 layers."""
    w = width
    layer = [(w,), (w,), (w, 3 * w), (3 * w,), (w, w), (w,), (w,), (w,), (w, 4 * w), (4 * w,), (4 * w, w), (w,)]
    shapes = [(vocabulary, w), (1024, w), *(layer * layers), (w,), (w,)]
    return [torch.nn.Parameter(normal(*s, dtype=torch.float32)) for s in shapes]


def _step_of(
    kind: type[torch.optim.Optimizer],
    options: dict[str, Any],
    passes: int,
    max_norm: float | None = None,
    **sizes: int,
) -> Work:
    """The second step of an optimizer, without the graph breaks that torch puts around it; its gradients clipped.

    passes: how often memory of the parameters' size is read or written at least.
    """
    parameters = _gpt2_parameters(**sizes)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = kind(parameters, foreach=True, **options)  # type: ignore[call-arg]
    optimizer.step()
    step = inspect.unwrap(kind.step)

    @torch.no_grad()
    def clip_and_step() -> None:
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        step(optimizer)

    moved = passes * sum(p.numel() * p.element_size() for p in parameters)
    return Work(clip_and_step, (), parameters=tuple(parameters), moved=moved)


def _adamw_step(**sizes: int) -> Work:
    return _step_of(torch.optim.AdamW, {}, 7, **sizes)


def _clip_adamw_step(**sizes: int) -> Work:
    return _step_of(torch.optim.AdamW, {}, 9, 1.0, **sizes)


def _momentum_step(**sizes: int) -> Work:
    return _step_of(torch.optim.SGD, {"momentum": 0.9}, 5, **sizes)


def _model(build: Callable[..., Callable[[Tensor], Tensor]], batch: int, tokens: int, **sizes: int) -> Work:
    return Work(build(**sizes), (torch.randint(0, sizes["vocabulary"], (batch, tokens)),))


def _llama(**sizes: int) -> Work:
    return _model(models.llama, **sizes)


def _bert(**sizes: int) -> Work:
    return _model(models.bert, **sizes)


def _gpt2(**sizes: int) -> Work:
    return _model(models.gpt2, **sizes)


def _rows(rows: int, columns: int) -> Sizes:
    return {"rows": rows, "columns": columns}


_HEADS = {"batch": 8, "tokens": 2048, "heads": 16, "width": 64}
_ROPE = {"batch": 4, "tokens": 2048, "heads": 32, "kv_heads": 8, "width": 128}
_IMAGE = {"batch": 16, "channels": 320, "side": 64, "groups": 32}
_LLAMA = {
    "batch": 16, "tokens": 1024, "hidden": 1024, "heads": 16, "kv_heads": 4, "intermediate": 2816, "vocabulary": 32000
}  # fmt: skip
_BERT = {"batch": 64, "tokens": 256, "hidden": 384, "heads": 12, "vocabulary": 30522}
_GPT2_PARAMETERS = {"width": 768, "layers": 12, "vocabulary": 50257}
_GPT2 = {"batch": 32, "tokens": 512, "hidden": 768, "heads": 12, "vocabulary": 50257}

_ALL = (
    Case("bias_gelu", "gelu(x + b)", _bias_gelu, _rows(16384, 4096), _rows(5, 33)),
    Case("swiglu", "silu(gate) * up", _swiglu, _rows(8192, 11008), _rows(5, 33)),
    Case("rms", "RMSNorm as written in Llama", _rms, _rows(16384, 4096), _rows(5, 33)),
    Case("rms_32768", "the same, 32768 columns", _rms, _rows(4096, 32768), _rows(3, 130)),
    Case("rms_262144", "the same, 262144 columns", _rms, _rows(512, 262144), _rows(2, 700)),
    Case("layer_norm", "layer_norm with weight and bias", _layer_norm, _rows(16384, 4096), _rows(5, 33)),
    Case("residual_rms", "x + r, and its RMSNorm", _residual_rms, _rows(16384, 4096), _rows(5, 33)),
    Case("softmax_8192", "softmax", _softmax, _rows(16384, 8192), _rows(5, 33)),
    Case("softmax_131072", "softmax", _softmax, _rows(2048, 131072), _rows(2, 700)),
    Case("rope_qk", "rotary embedding of q and k", _rope, _ROPE,
         {"batch": 2, "tokens": 5, "heads": 4, "kv_heads": 2, "width": 8}),
    Case("transpose_pointwise", "relu(x.transpose(1, 2) + y) * 0.5", _transpose_pointwise,
         {"batch": 128, "rows": 1024, "columns": 2048}, {"batch": 2, "rows": 6, "columns": 9}),
    Case("split_heads_scale", "qkv + bias, split into heads, q scaled", _split_heads, _HEADS,
         {"batch": 2, "tokens": 5, "heads": 4, "width": 8}),
    Case("group_norm_silu_nhwc", "silu(group_norm(x)), channels last", _group_norm_silu, _IMAGE,
         {"batch": 2, "channels": 8, "side": 5, "groups": 4}),
    Case("quant_fp8_rowwise", "row amax, scale, clamp, e4m3", _quant_fp8, _rows(16384, 4096), _rows(5, 33)),
    Case("cross_entropy", "nll_loss(log_softmax(x.float()))", _cross_entropy, _rows(8192, 32000), _rows(5, 33)),
    Case("masked_softmax", "scaled, masked, f32 softmax", _masked_softmax,
         {"batch": 64, "heads": 16, "tokens": 512}, {"batch": 2, "heads": 2, "tokens": 7}),
    Case("sum_all_axes_scaled", "x * y summed over rows, columns, both", _sum_all_axes,
         _rows(16384, 2048), _rows(9, 33)),
    Case("clip_grad_norm", "global norm of 20 gradients, scale each", _clip_grad_norm, {"width": 1024}, {"width": 3}),
    Case("adamw_foreach", "AdamW over 20 parameters", _adamw, {"width": 1024}, {"width": 3}),
    Case("adamw_step", "AdamW.step() over GPT-2's 148 parameters", _adamw_step, _GPT2_PARAMETERS,
         {"width": 3, "layers": 1, "vocabulary": 5}, whole=True),
    Case("clip_adamw_step", "clip_grad_norm_, then AdamW.step()", _clip_adamw_step, _GPT2_PARAMETERS,
         {"width": 3, "layers": 1, "vocabulary": 5}, whole=True),
    Case("sgd_momentum_step", "SGD.step() with momentum, the same", _momentum_step, _GPT2_PARAMETERS,
         {"width": 3, "layers": 1, "vocabulary": 5}, whole=True),
    Case("llama_infer", "2-layer Llama, logits", _llama, _LLAMA,
         {"batch": 2, "tokens": 8, "hidden": 32, "heads": 4, "kv_heads": 2, "intermediate": 48, "vocabulary": 50},
         whole=True),
    Case("bert_infer", "2-layer BERT", _bert, _BERT,
         {"batch": 2, "tokens": 8, "hidden": 32, "heads": 4, "vocabulary": 50}, whole=True),
    Case("gpt2_infer", "2-layer GPT-2, logits", _gpt2, _GPT2,
         {"batch": 2, "tokens": 8, "hidden": 32, "heads": 4, "vocabulary": 50}, whole=True),
)  # fmt: skip

CASES: dict[str, Case] = {c.name: c for c in _ALL}
