"""Predicted bytes are metered bytes: what the cost model counts per launch is what the interpreter sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fusec.config import Config
from fusec.ir.kernels import KernelPlan
from fusec.lowering import lower
from fusec.runtime.meter import meter
from fusec.schedule import schedule, simplify
from tests.property.harness import build_for_cpu, trace

BF16, F16 = torch.bfloat16, torch.float16


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(dtype)


def sums_of_sums(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    sums = x.sum(-1)
    return sums, x - (sums * w).sum(-1).reshape(-1, 1, 1)


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), -1)


def rms_norm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * w


def split_heads(qkv: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    q, k, v = ((qkv + b).view(2, 16, 3, 4, 8).permute(2, 0, 3, 1, 4)).unbind(0)
    return q.contiguous() * 0.125, k.contiguous(), v.contiguous()


def causal_softmax(x: torch.Tensor) -> torch.Tensor:
    later = torch.ones(x.shape[-2:]).triu(1).bool()
    return x.masked_fill(later, float("-inf")).softmax(-1)


PATTERNS: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]] = {
    "bias_gelu": (lambda x, b: F.gelu(x + b), (randn(64, 128, dtype=BF16), randn(128, dtype=BF16))),
    "swiglu": (lambda g, u: F.silu(g) * u, (randn(17, 333), randn(17, 333))),
    "chain_1000": (lambda x: torch.tanh(x * 2 + 1).abs(), (randn(1000),)),
    "scalar": (lambda x: x * 3, (torch.tensor(2.0),)),
    "broadcast_rows": (lambda x, y: x + y, (randn(31, 1), randn(1, 65))),
    "expanded": (lambda x: x.expand(8, 9, 10) + 1, (randn(9, 1),)),
    "transposed": (lambda x, y: torch.relu(x.t() + y), (randn(40, 70), randn(70, 40))),
    "sliced": (lambda x: x[:, 3:17:2] * 2, (randn(33, 20),)),
    "flip": (lambda x: x.flip(1) + x, (randn(12, 19),)),
    "roll": (lambda x: torch.roll(x, 3, 0) - x, (randn(50),)),
    "pad": (lambda x: F.pad(x, (1, 2, 3, 0)) * 2, (randn(10, 11),)),
    "cat": (lambda x, y: torch.cat((x * 2, y), 1), (randn(9, 5), randn(9, 7))),
    "stack": (lambda x, y: torch.stack((x, y), 1), (randn(9, 5), randn(9, 5))),
    "rope": (lambda q, c, s: q * c + rotate_half(q) * s, (randn(2, 3, 8, 16), randn(8, 16), randn(8, 16))),
    "split_heads": (split_heads, (randn(2, 16, 96), randn(96))),
    "two_outputs": (lambda x: (x + 1, (x + 1) * 2), (randn(77),)),
    "where_mask": (lambda x, m: torch.where(m, x, 0.0), (randn(13, 14), randn(13, 14) > 0)),
    "causal_softmax": (causal_softmax, (randn(4, 24, 24),)),
    "row_sum": (lambda x: x.sum(1), (randn(100, 257),)),
    "column_sum": (lambda x: x.sum(0), (randn(257, 100),)),
    "full_sum": (lambda x: x.sum(), (randn(60, 70),)),
    "split_sum": (lambda x: x.sum(), (randn(300, 700),)),
    "softmax": (lambda x: x.softmax(-1), (randn(37, 1000, dtype=BF16),)),
    "log_softmax": (lambda x: x.log_softmax(-1), (randn(37, 129),)),
    "softmax_columns": (lambda x: x.softmax(0), (randn(129, 37),)),
    "long_softmax": (lambda x: x.softmax(-1), (randn(2, 40000),)),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (384,), w, b), (randn(64, 384), randn(384), randn(384))),
    "residual_norm": (
        lambda x, r, w, b: (x + r, F.layer_norm(x + r, (96,), w, b)),
        (randn(20, 96), randn(20, 96), randn(96), randn(96)),
    ),
    "rms_norm": (rms_norm, (randn(33, 200, dtype=BF16), randn(200, dtype=BF16))),
    "group_norm": (lambda x, w, b: F.silu(F.group_norm(x, 4, w, b)), (randn(2, 16, 6, 6), randn(16), randn(16))),
    "group_norm_nhwc": (
        lambda x: F.group_norm(x, 4),
        (randn(2, 16, 6, 6).contiguous(memory_format=torch.channels_last),),
    ),
    "sums_of_sums_held": (sums_of_sums, (randn(140, 4, 50), randn(4))),
    "sums_of_sums_walked_twice": (sums_of_sums, (randn(140, 10, 1000), randn(10))),
    "variance": (lambda x: torch.var_mean(x, 1), (randn(50, 60),)),
    "argmax": (lambda x: x.argmax(-1), (randn(21, 90),)),
    "amax_scale": (lambda x: x / x.abs().amax(-1, keepdim=True), (randn(21, 90, dtype=F16),)),
    "logsumexp": (lambda x: torch.logsumexp(x, -1), (randn(21, 90),)),
    "integers": (lambda x: (x * 3 + 1) // 2, (torch.arange(500),)),
    "avg_pool": (lambda x: F.avg_pool2d(x, 2), (randn(2, 3, 8, 8),)),
    "max_pool": (lambda x: F.max_pool2d(x, 3, 2, 1), (randn(2, 3, 9, 9),)),
    "upsample": (lambda x: F.interpolate(x, scale_factor=2) + 1, (randn(2, 3, 5, 5),)),
    "empty": (lambda x: x + 1, (randn(0, 4),)),
}  # fmt: skip


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("fusion", [True, False], ids=["fused", "unfused"])
def test_predicted_bytes_equal_metered_bytes(name: str, fusion: bool) -> None:
    fn, inputs = PATTERNS[name]
    config = Config(fusion=fusion)
    steps = schedule(simplify(lower(trace(fn, *inputs), config), config), config)
    plans = [step for step in steps.steps if isinstance(step, KernelPlan)]
    with meter() as metered:
        build_for_cpu(steps, config)(*inputs)
    assert plans, f"{name} made no kernel"
    launched = [t for _, t in metered.launches]
    running = [p for p in plans if p.cost.bytes_read + p.cost.bytes_written]
    assert len(launched) == len(running)
    for plan, traffic in zip(running, launched, strict=True):
        seen = sum(t.read for t in traffic.values()), sum(t.written for t in traffic.values())
        assert (plan.cost.bytes_read, plan.cost.bytes_written) == seen, plan.name


def test_there_are_at_least_thirty_patterns() -> None:
    assert len(PATTERNS) >= 30
