"""Training cases: functions whose forward and backward graphs are one step.

    work = TRAINING["ln_train"].build("cpu", small=True)
    gradients = step(work, fusec.compile(work.fn))

Sizes and dtypes are those of the peer's figures in bench/peer.py. Inputs that need a gradient say so; what comes back
from outside (the gradient of the outputs) is an input of the step, as it is in a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from bench.cases import BF16, CASES, Case, Tensor, Work, masked_softmax, normal, rotate_half
from bench.models import llama_loss

__all__ = ["EVERY", "TRAINING", "step", "with_incoming"]

F32 = torch.float32


def step(work: Work, fn: Callable[..., Any]) -> tuple[Tensor, ...]:
    """One step: the outputs of fn, then the gradients of the inputs that need one."""
    outputs = _tuple(fn(*work.args))
    wanted = [a for a in (*work.args, *work.parameters) if isinstance(a, Tensor) and a.requires_grad]
    gradients = torch.autograd.grad(outputs, wanted, work.incoming)
    return (*(o.detach() for o in outputs), *gradients)


def _tuple(outputs: Any) -> tuple[Tensor, ...]:
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


def with_incoming(make: Callable[..., Work]) -> Callable[..., Work]:
    """The same work with gradients of its outputs, which a step needs."""

    def build(**sizes: int) -> Work:
        work = make(**sizes)
        with torch.no_grad():
            outputs = _tuple(work.fn(*work.args))
        return replace(work, incoming=tuple(torch.randn_like(o) if o.dim() else torch.ones_like(o) for o in outputs))

    return build


def _leaf(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return normal(*shape, dtype=dtype).requires_grad_()


def _swiglu(rows: int, columns: int) -> Work:
    def swiglu(gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up

    return Work(swiglu, (_leaf(rows, columns), _leaf(rows, columns)))


def _geglu(rows: int, columns: int) -> Work:
    def geglu(both: Tensor) -> Tensor:
        gate, up = both.chunk(2, -1)
        return F.gelu(gate) * up

    return Work(geglu, (_leaf(rows, 2 * columns),))


def _softmax(rows: int, columns: int) -> Work:
    def softmax(x: Tensor) -> Tensor:
        return torch.softmax(x, -1)

    return Work(softmax, (_leaf(rows, columns),))


def _rope(batch: int, tokens: int, heads: int, kv_heads: int, width: int) -> Work:
    def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin

    q = normal(batch, tokens, heads, width).transpose(1, 2).requires_grad_()
    k = normal(batch, tokens, kv_heads, width).transpose(1, 2).requires_grad_()
    return Work(rope, (q, k, normal(tokens, width), normal(tokens, width)))


def _layer_norm(rows: int, columns: int) -> Work:
    def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, (columns,), weight, bias)

    return Work(layer_norm, (_leaf(rows, columns), _leaf(columns), _leaf(columns)))


def _rms_norm(rows: int, columns: int) -> Work:
    def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (columns,), weight, 1e-6)

    return Work(rms_norm, (_leaf(rows, columns), _leaf(columns)))


def _residual_dropout_layer_norm(rows: int, columns: int) -> Work:
    def residual_dropout_layer_norm(r: Tensor, x: Tensor, bias: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
        return F.layer_norm(r + F.dropout(x + bias, 0.1), (columns,), weight, shift)

    return Work(
        residual_dropout_layer_norm,
        (_leaf(rows, columns), _leaf(rows, columns), _leaf(columns), _leaf(columns), _leaf(columns)),
    )


def _group_norm_silu(batch: int, channels: int, side: int, groups: int) -> Work:
    def group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.silu(F.group_norm(x, groups, weight, bias))

    return Work(group_norm_silu, (_leaf(batch, channels, side, side), _leaf(channels), _leaf(channels)))


def _batch_norm_relu(batch: int, channels: int, side: int) -> Work:
    def batch_norm_relu(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return F.relu(F.batch_norm(x, mean, variance, weight, bias, training=True))

    statistics = (torch.zeros(channels), torch.ones(channels))
    parameters = (_leaf(channels, dtype=F32), _leaf(channels, dtype=F32))
    return Work(batch_norm_relu, (_leaf(batch, channels, side, side), *parameters, *statistics))


def _batch_norm_relu_nhwc(batch: int, channels: int, side: int) -> Work:
    work = _batch_norm_relu(batch, channels, side)
    x = work.args[0].detach().to(memory_format=torch.channels_last).requires_grad_()
    return replace(work, args=(x, *work.args[1:]))


def _masked_softmax(batch: int, heads: int, tokens: int) -> Work:
    mask = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    return Work(masked_softmax, (_leaf(batch, heads, tokens, tokens), mask))


def _cross_entropy(rows: int, columns: int) -> Work:
    def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss(F.log_softmax(logits.float(), -1), target)

    return Work(cross_entropy, (_leaf(rows, columns), torch.randint(0, columns, (rows,))))


def _huber(rows: int, columns: int) -> Work:
    def huber(x: Tensor, y: Tensor) -> Tensor:
        return F.huber_loss(x, y)

    return Work(huber, (_leaf(rows, columns, dtype=F32), normal(rows, columns, dtype=F32)))


def _embedding(batch: int, tokens: int, vocabulary: int, width: int) -> Work:
    def embedding(ids: Tensor, weight: Tensor) -> Tensor:
        return F.embedding(ids, weight) * math.sqrt(width)

    return Work(embedding, (torch.randint(0, vocabulary, (batch, tokens)), _leaf(vocabulary, width)))


def _relative_bias(tokens: int, buckets: int, heads: int) -> Work:
    def relative_bias(distances: Tensor, weight: Tensor) -> Tensor:
        return F.embedding(distances, weight).permute(2, 0, 1)

    return Work(relative_bias, (torch.randint(0, buckets, (tokens, tokens)), _leaf(buckets, heads)))


def _max_pool_relu(batch: int, channels: int, side: int) -> Work:
    def max_pool_relu(x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(x), 3, 2, 1)

    return Work(max_pool_relu, (_leaf(batch, channels, side, side),))


def _llama(batch: int, tokens: int, **sizes: int) -> Work:
    loss, parameters = llama_loss(**sizes)
    ids = torch.randint(0, sizes["vocabulary"], (batch, tokens + 1))
    return Work(loss, (ids[:, :-1].contiguous(), ids[:, 1:].contiguous()), parameters=parameters)


def _rows(rows: int, columns: int) -> dict[str, int]:
    return {"rows": rows, "columns": columns}


_ALL = (
    Case("swiglu_train", "silu(gate) * up", _swiglu, _rows(8192, 11008), _rows(5, 33)),
    Case("geglu_train", "gelu(gate) * up of one projection's two halves", _geglu, _rows(8192, 11008), _rows(5, 33)),
    Case("softmax_train", "softmax", _softmax, _rows(16384, 8192), _rows(5, 33)),
    Case("rope_qk_train", "rotary embedding of q and k", _rope,
         {"batch": 4, "tokens": 2048, "heads": 32, "kv_heads": 8, "width": 128},
         {"batch": 2, "tokens": 5, "heads": 4, "kv_heads": 2, "width": 8}),
    Case("ln_train", "layer_norm", _layer_norm, _rows(16384, 4096), _rows(9, 33)),
    Case("ln_16384_train", "layer_norm, 16384 columns", _layer_norm, _rows(4096, 16384), _rows(3, 90)),
    Case("rms_train", "rms_norm", _rms_norm, _rows(16384, 4096), _rows(9, 33)),
    Case("residual_dropout_ln_train", "layer_norm(r + dropout(x + bias))", _residual_dropout_layer_norm,
         _rows(32768, 1024), _rows(9, 33), random=True),
    Case("group_norm_silu_train", "silu(group_norm(x))", _group_norm_silu,
         {"batch": 16, "channels": 320, "side": 64, "groups": 32}, {"batch": 2, "channels": 8, "side": 5, "groups": 4}),
    Case("batch_norm_relu_train", "relu(batch_norm(x))", _batch_norm_relu,
         {"batch": 64, "channels": 256, "side": 56}, {"batch": 3, "channels": 4, "side": 5}),
    Case("batch_norm_relu_nhwc_train", "the same, channels-last", _batch_norm_relu_nhwc,
         {"batch": 64, "channels": 256, "side": 56}, {"batch": 3, "channels": 4, "side": 5}),
    Case("masked_attn_softmax_train", "scaled, masked, f32 softmax", _masked_softmax,
         {"batch": 64, "heads": 16, "tokens": 512}, {"batch": 2, "heads": 2, "tokens": 7}),
    Case("xent_32000_train", "nll_loss(log_softmax(x.float()))", _cross_entropy, _rows(8192, 32000), _rows(5, 33)),
    Case("xent_131072_train", "the same, 131072 classes", _cross_entropy, _rows(2048, 131072), _rows(5, 700)),
    Case("xent_262144_train", "the same, 262144 classes", _cross_entropy, _rows(1024, 262144), _rows(3, 900)),
    Case("huber_train", "huber_loss", _huber, _rows(8192, 4096), _rows(5, 33)),
    Case("embedding_train", "embedding(ids, w) * c", _embedding,
         {"batch": 64, "tokens": 512, "vocabulary": 8000, "width": 768},
         {"batch": 2, "tokens": 9, "vocabulary": 7, "width": 8}),
    Case("embedding_large_train", "the same, of 128256 words", _embedding,
         {"batch": 8, "tokens": 1024, "vocabulary": 128256, "width": 2048},
         {"batch": 2, "tokens": 9, "vocabulary": 99, "width": 8}),
    Case("relative_bias_train", "a relative position bias, embedding(distances, w)", _relative_bias,
         {"tokens": 1024, "buckets": 32, "heads": 16}, {"tokens": 7, "buckets": 9, "heads": 4}),
    Case("max_pool_relu_train", "max_pool2d(relu(x), 3, 2, 1)", _max_pool_relu,
         {"batch": 64, "channels": 64, "side": 112}, {"batch": 2, "channels": 3, "side": 9}),
    Case("llama_train", "2-layer Llama, loss", _llama, CASES["llama_infer"].full, CASES["llama_infer"].small,
         whole=True),
)  # fmt: skip

TRAINING: dict[str, Case] = {c.name: replace(c, run=step, make=with_incoming(c.make)) for c in _ALL}
EVERY: dict[str, Case] = {**CASES, **TRAINING}
