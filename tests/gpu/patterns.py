"""Functions and inputs of the differential suite: each is one row, compiled and compared with eager mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

Tensor = torch.Tensor
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Pattern:
    """make(device) gives the inputs. kernels: generated launches at most, where fusion is promised.

    tolerance: where eager mode rounds inside the chain more coarsely than its result shows.
    """

    name: str
    fn: Callable[..., Any]
    make: Callable[[str], tuple[Any, ...]]
    kernels: int | None = None
    tolerance: float = 0.0


def randn(*shape: int, dtype: torch.dtype = F32) -> Callable[[str], Tensor]:
    return lambda device: torch.randn(shape, device=device).to(dtype)


def integers(high: int, *shape: int) -> Callable[[str], Tensor]:
    return lambda device: torch.randint(0, high, shape, device=device)


def inputs(*makers: Callable[[str], Tensor]) -> Callable[[str], tuple[Any, ...]]:
    return lambda device: tuple(m(device) for m in makers)


def changed(maker: Callable[[str], Tensor], view: Callable[[Tensor], Tensor]) -> Callable[[str], Tensor]:
    """The maker's tensor seen through a view: transposed, sliced, expanded."""
    return lambda device: view(maker(device))


def rms(x: Tensor, w: Tensor) -> Tensor:
    wide = x.float()
    return w * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    def half(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat((-b, a), -1)

    return q * cos + half(q) * sin, k * cos + half(k) * sin


def split_heads(x: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    parts = (x + b).split(64, -1)
    return tuple(p.view(2, 33, 4, 16).transpose(1, 2).contiguous() for p in parts)


def attention(x: Tensor, w: Tensor) -> Tensor:
    q, k, v = (x @ w).view(2, 17, 3, 4, 16).permute(2, 0, 3, 1, 4)
    return F.relu(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 17, 64)) + x


def mixed_integers(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    b = b + 1
    return a // b, a % b, (a > b) & (a % 2 == 0), torch.where(a > b, a, -b), a.float() / b


def statistics(x: Tensor) -> tuple[Tensor, ...]:
    var, mean = torch.var_mean(x, -1)
    return var, mean, x.amax(-1), x.argmax(-1), x.amin(0), x.logsumexp(-1), x.sum()


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = x.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / 127.0
    return torch.round(x.float() / scale).clamp(-128, 127).to(torch.int8), scale


def cross_entropy(x: Tensor, y: Tensor) -> Tensor:
    return F.nll_loss(F.log_softmax(x.float(), -1), y)


def mixed_views(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    z = torch.cat([x, y * 2], 1)
    return z.flip(0) + 1, z.roll(3, 1) * 2, F.pad(z, (2, 3)) - 1, torch.stack([x, y], 1).sum(1)


def dtype_chain(x: Tensor) -> Tensor:
    return ((x.to(torch.bfloat16) * 3).float() + x).half().float() * 0.5


PATTERNS = (
    Pattern("bias_gelu", lambda x, b: F.gelu(x + b), inputs(randn(257, 4097, dtype=BF16), randn(4097, dtype=BF16)), 1),
    Pattern("chain", lambda x, y: torch.tanh(x * y + x).sigmoid() - y.exp(),
            inputs(randn(1000, 17), randn(1000, 17)), 1),
    Pattern("one_element", lambda x: torch.sin(x) + 1, inputs(randn(1)), 1),
    Pattern("no_elements", lambda x: torch.sin(x) + 1, inputs(randn(0, 5))),
    Pattern("scalar_input", lambda x, s: x * s + 1, inputs(randn(1000), randn()), 1),
    Pattern("several_outputs", lambda x: (x.exp(), x.abs() + 1, (x > 0)), inputs(randn(63, 65, dtype=F16)), 1),
    Pattern("broadcast", lambda x, r, c: x * r + c, inputs(randn(129, 65), randn(129, 1), randn(65)), 1),
    Pattern("integers", mixed_integers, inputs(integers(1000, 4097), integers(9, 4097))),
    Pattern("dtype_chain", dtype_chain, inputs(randn(4097)), 1, tolerance=8e-3),
    Pattern("swiglu", lambda g, u: F.silu(g) * u,
            inputs(randn(64, 11008, dtype=BF16), randn(64, 11008, dtype=BF16)), 1),
    Pattern("masked_fill", lambda x, m: x.masked_fill(m > 0, float("-inf")).softmax(-1),
            inputs(randn(4, 8, 63, 65, dtype=BF16), randn(63, 65)), 1),
    Pattern("softmax_short", lambda x: x.softmax(-1), inputs(randn(1000, 17, dtype=BF16)), 1),
    Pattern("softmax_long", lambda x: x.softmax(-1), inputs(randn(3, 131072, dtype=BF16))),
    Pattern("softmax_columns", lambda x: x.softmax(0), inputs(randn(1000, 33))),
    Pattern("log_softmax", lambda x: x.log_softmax(-1), inputs(randn(33, 4097)), 1),
    Pattern("layer_norm", lambda x, w, b: F.layer_norm(x, (4097,), w, b),
            inputs(randn(33, 4097), randn(4097), randn(4097)), 1),
    Pattern("layer_norm_gelu_residual", lambda x, r, w, b: F.gelu(F.layer_norm(x + r, (768,), w, b)) + r,
            inputs(randn(65, 768, dtype=BF16), randn(65, 768, dtype=BF16),
                   randn(768, dtype=BF16), randn(768, dtype=BF16)), 1),
    Pattern("rms_norm", rms, inputs(randn(65, 4096, dtype=BF16), randn(4096, dtype=BF16)), 1),
    Pattern("rms_norm_long", rms, inputs(randn(3, 100003, dtype=BF16), randn(100003, dtype=BF16))),
    Pattern("group_norm_silu", lambda x, w, b: F.silu(F.group_norm(x, 8, w, b)),
            inputs(randn(4, 64, 9, 9), randn(64), randn(64))),
    Pattern("group_norm_silu_nhwc", lambda x, w, b: F.silu(F.group_norm(x, 8, w, b)),
            inputs(changed(randn(4, 64, 16, 16, dtype=BF16), lambda t: t.to(memory_format=torch.channels_last)),
                   randn(64, dtype=BF16), randn(64, dtype=BF16))),
    Pattern("batch_norm_eval", lambda x, m, v: F.relu(F.batch_norm(x, m, v.abs() + 0.1)),
            inputs(randn(4, 33, 17, 17), randn(33), randn(33))),
    Pattern("statistics", statistics, inputs(randn(129, 1000))),
    Pattern("sums", lambda x: (x.sum(0), x.sum(1), x.sum()), inputs(randn(1000, 257))),
    Pattern("sum_everything", lambda x: (x * x).sum(), inputs(randn(3_000_017))),
    Pattern("middle_sum", lambda x: x.mean(1) + 1, inputs(randn(17, 1000, 33))),
    Pattern("quantize", quantize, inputs(randn(257, 4096, dtype=BF16))),
    Pattern("cross_entropy", cross_entropy, inputs(randn(65, 32000, dtype=BF16), integers(32000, 65))),
    Pattern("transpose_add", lambda x, y: F.relu(x.transpose(1, 2) + y) * 0.5,
            inputs(randn(3, 129, 257, dtype=BF16), randn(3, 257, 129, dtype=BF16)), 1),
    Pattern("transposed_input", lambda x: x * 2 + 1, inputs(changed(randn(65, 129), lambda t: t.t())), 1),
    Pattern("misaligned_slice", lambda x: x * 2 + 1, inputs(changed(randn(4099), lambda t: t[1:4098])), 1),
    Pattern("strided_slice", lambda x: x.sum(-1), inputs(changed(randn(33, 1000), lambda t: t[:, ::3]))),
    Pattern("expanded_input", lambda x, y: x + y,
            inputs(changed(randn(1, 65), lambda t: t.expand(17, 65)), randn(17, 65)), 1),
    Pattern("split_heads", split_heads, inputs(randn(2, 33, 192, dtype=BF16), randn(192, dtype=BF16))),
    Pattern("rope", rope, inputs(
        changed(randn(2, 33, 8, 64, dtype=BF16), lambda t: t.transpose(1, 2)),
        changed(randn(2, 33, 2, 64, dtype=BF16), lambda t: t.transpose(1, 2)),
        randn(33, 64, dtype=BF16), randn(33, 64, dtype=BF16))),
    Pattern("views", mixed_views, inputs(randn(17, 33), randn(17, 33))),
    Pattern("embedding", lambda ids, w: F.layer_norm(F.embedding(ids, w), (96,)),
            inputs(integers(1000, 4, 33), randn(1000, 96))),
    Pattern("gather", lambda x, i: x.gather(1, i) * 2, inputs(randn(33, 100), integers(100, 33, 7))),
    Pattern("upsample", lambda x: F.interpolate(x, scale_factor=2.0).relu(), inputs(randn(2, 3, 17, 19))),
    Pattern("pooling", lambda x: F.max_pool2d(x, 3, 2, 1) + F.avg_pool2d(x, 3, 2, 1), inputs(randn(2, 5, 33, 33))),
    Pattern("matmul_bias_relu", lambda x, w, b: F.relu(x @ w + b), inputs(randn(65, 64), randn(64, 33), randn(33)), 1),
    Pattern("attention", attention, inputs(randn(2, 17, 64), randn(64, 192))),
    Pattern("sort_between", lambda x: (x * 2).sort(-1).values + 1, inputs(randn(33, 100))),
)  # fmt: skip
