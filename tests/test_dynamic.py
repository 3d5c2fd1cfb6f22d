"""One compilation serves every size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fusec

LENGTHS = (2, 17, 1000, 1023, 1024, *range(3, 993, 22))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    fusec.reset()
    torch.manual_seed(0)
    yield
    fusec.reset()


class Block(nn.Module):
    """Norm, qkv projection, attention, residual; norm, MLP with gelu, residual."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_mlp = nn.LayerNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = self.qkv(self.norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm_mlp(x))))


def assert_one_compilation(
    fn: Callable[..., Any], arguments: Callable[[int], tuple[Any, ...]], sizes: tuple[int, ...], **options: Any
) -> None:
    """Equal to eager for every size; compiled for the first one, and once more for all others."""
    compiled = fusec.compile(fn, **options)
    for n in sizes:
        given = arguments(n)
        torch.testing.assert_close(compiled(*given), fn(*given), rtol=1e-4, atol=1e-4)
    found = fusec.stats()
    assert found["fallbacks"] == [] and found["graphs"] <= 2 and found["recompiles"] <= 1


def test_fifty_lengths_of_a_transformer_block_are_compiled_twice() -> None:
    block = Block().eval()
    with torch.no_grad():
        assert_one_compilation(block, lambda n: (torch.randn(1, n, 16),), LENGTHS)
    built = fusec.stats()["kernels_built"] + fusec.stats()["cache_hits"]
    assert len(LENGTHS) == 50 and built <= 8


def cross_entropy(x: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(x, labels)


ROWS: dict[str, Callable[..., Any]] = {
    "softmax": lambda x: x.softmax(-1),
    "log_softmax of columns": lambda x: x.log_softmax(0),
    "layer_norm": lambda x: F.layer_norm(x, (x.shape[-1],)),
    "rms_norm": lambda x: F.rms_norm(x, (x.shape[-1],)),
    "broadcast": lambda x: F.silu(x) * x[:1] + x[:, :1] * x.shape[0],
    "rows and columns": lambda x: (x.sum(1), x.sum(0), x.amax()),
    "variance": lambda x: x.var(-1) + x.mean(-1) / x.shape[-1],
    "positions": lambda x: (x.argmax(-1), x.max(0)),
    "transpose": lambda x: (x * 2).t().contiguous(),
    "cat and slice": lambda x: torch.cat([x, x + 1], 0)[1:-1],
    "flat": lambda x: x.reshape(-1)[x.shape[0] :] + 1,
    "view and expand": lambda x: x.view(x.shape[0], 1, x.shape[1]).expand(-1, 3, -1).sum(1),
    "sizes": lambda x: (x.shape[0] * x.shape[1] + 1, x * x.shape[0] ** 0.5, x.new_zeros(x.shape[1], 2)),
}
SIZES = (2, 17, 1024, 33, 1000, 4)


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_changing_number(name: str) -> None:
    assert_one_compilation(ROWS[name], lambda n: (torch.randn(n, 6),), SIZES)


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_changing_length(name: str) -> None:
    assert_one_compilation(ROWS[name], lambda n: (torch.randn(3, n),), SIZES)


@pytest.mark.parametrize("name", ROWS)
def test_both_sizes_change(name: str) -> None:
    assert_one_compilation(ROWS[name], lambda n: (torch.randn(n, 2 * n % 37 + 3),), SIZES[:3], dynamic=True)


def test_cross_entropy_over_a_changing_batch() -> None:
    assert_one_compilation(cross_entropy, lambda n: (torch.randn(n, 11), torch.randint(11, (n,))), SIZES)


def gradients(run: Callable[..., Tensor], module: nn.Module, x: Tensor) -> list[Tensor | None]:
    module.zero_grad()
    leaf = x.detach().requires_grad_()
    run(leaf).square().mean().backward()
    return [leaf.grad, *(p.grad for p in module.parameters())]


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.down(F.gelu(self.up(self.norm(x))))).softmax(0)


@pytest.mark.parametrize("module", [Mlp, nn.RMSNorm, Block])
def test_training_steps_over_changing_sizes(module: Any) -> None:
    made = module(8) if module is not Mlp else module()
    compiled = fusec.compile(made)
    for n in (3, 17, 64, 33):
        x = torch.randn(2, n, 8)
        torch.testing.assert_close(gradients(compiled, made, x), gradients(made, made, x), rtol=1e-3, atol=1e-5)
    found = fusec.stats()
    assert found["graphs"] <= 4 and found["recompiles"] <= 1  # forward and backward, for one size and for all
    assert all(f["level"] == "op" for f in found["fallbacks"])
