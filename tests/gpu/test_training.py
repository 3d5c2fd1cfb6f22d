"""Training on the GPU: autocast, loss scaling, library attention, convolutions, dropout; gradients as eager's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fusec
from bench.measure import relative_error
from bench.schema import versions

DEVICE = "cuda"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    fusec.reset()
    yield
    fusec.reset()


class Block(nn.Module):
    """A transformer's block with library attention."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp(x)


def gradients(step: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> list[Tensor]:
    """The loss, and the gradients of the parameters."""
    module.zero_grad()
    loss = step(x).float().square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    block, x = Block().to(DEVICE), torch.randn(3, 17, 64, device=DEVICE)
    compiled = fusec.compile(block, fullgraph=True)

    def under(module: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def step(t: Tensor) -> Tensor:
            with torch.autocast(DEVICE, dtype):
                return module(t)

        return step

    want, got = gradients(under(block), block, x), gradients(under(compiled), block, x)
    assert relative_error(got, want) <= 3e-2, versions()
    assert [f for f in fusec.stats()["fallbacks"] if f["level"] != "op"] == []


def test_a_scaled_loss_and_an_optimizer() -> None:
    def run(compiled: bool) -> tuple[list[float], float]:
        torch.manual_seed(0)
        block = Block().to(DEVICE)
        forward = fusec.compile(block) if compiled else block
        optimizer = torch.optim.SGD(block.parameters(), 1e-2)
        scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**24)  # overflows at first
        x, losses = torch.randn(5, 17, 64, device=DEVICE), []
        for _ in range(12):
            optimizer.zero_grad()
            with torch.autocast(DEVICE, torch.float16):
                loss = (forward(x) - 1).float().square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
        return losses, scaler.get_scale()

    (want, scale), (got, other_scale) = run(False), run(True)
    assert scale < 2.0**24 and 0.5 <= scale / other_scale <= 2
    assert got == pytest.approx(want, rel=2e-2) and got[-1] < got[0]


def test_convolution_batch_norm_and_pooling_in_channels_last() -> None:
    layers = (
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(16, 8, 1),
    )
    net = nn.Sequential(*layers).to(DEVICE, memory_format=torch.channels_last)
    x = torch.randn(4, 3, 33, 35, device=DEVICE).to(memory_format=torch.channels_last)
    statistics = [net[1].running_mean.clone(), net[1].running_var.clone()]
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        want = gradients(net, net, x)
        after = [net[1].running_mean.clone(), net[1].running_var.clone()]
        net[1].running_mean.copy_(statistics[0])
        net[1].running_var.copy_(statistics[1])
        got = gradients(fusec.compile(net), net, x)
    assert relative_error(got, want) <= 1e-3, versions()
    torch.testing.assert_close([net[1].running_mean, net[1].running_var], after, rtol=1e-5, atol=1e-6)


def test_dropout_is_the_same_forward_and_backward_and_follows_the_seed() -> None:
    def dropped(x: Tensor) -> Tensor:
        return F.dropout(x * 2, 0.3)

    compiled, x = fusec.compile(dropped), torch.ones(1000, 1001, device=DEVICE, requires_grad=True)
    torch.manual_seed(5)
    first = compiled(x)
    (grad,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(grad, first.detach())
    second = compiled(x)
    torch.manual_seed(5)
    again = compiled(x)
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert (first == 0).float().mean().item() == pytest.approx(0.3, abs=3e-3)


@pytest.mark.parametrize(
    ("rows", "words", "dtype"),
    [
        (64, 7, torch.float32),  # a reduction
        (64, 50, torch.float32),  # atomic sums
        (512, 12, torch.float32),  # the same, in copies
        (64, 40000, torch.bfloat16),  # sums of the tokens alone
    ],
)
def test_an_embedding_that_many_rows_share(rows: int, words: int, dtype: torch.dtype) -> None:
    ids = torch.randint(0, words, (rows, 33), device=DEVICE)
    ids[::2] = 5
    weight = torch.randn(words, 96, device=DEVICE, dtype=dtype, requires_grad=True)

    def embed(ids: Tensor, weight: Tensor) -> Tensor:
        return F.layer_norm(F.embedding(ids, weight) * 3, (96,))

    incoming = torch.randn(rows, 33, 96, device=DEVICE, dtype=dtype)
    (want,) = torch.autograd.grad(embed(ids, weight.double()), weight, incoming.double())
    (got,) = torch.autograd.grad(fusec.compile(embed)(ids, weight), weight, incoming)
    assert relative_error(got, want) <= (1e-5 if dtype is torch.float32 else 8e-3)


@pytest.mark.parametrize("columns", [4096, 8192, 9000, 9001, 12288, 16384])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_norms_of_long_rows(columns: int, dtype: torch.dtype) -> None:
    """Rows held whole, rows in parts, and one sum along the columns in a launch of its own."""
    x, weight, bias = torch.randn(2050, columns) + 3, torch.randn(columns), torch.randn(columns)
    leaves = [t.to(DEVICE, dtype) for t in (x, weight, bias)]
    incoming = torch.randn(2050, columns, device=DEVICE, dtype=dtype)

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, (columns,), weight, bias)

    def gradients(fn: Callable[..., Tensor], of: torch.dtype) -> tuple[Tensor, ...]:
        given = [t.to(of).requires_grad_() for t in leaves]
        return torch.autograd.grad(fn(*given), given, incoming.to(of))

    want, got = gradients(norm, torch.float64), gradients(fusec.compile(norm), dtype)
    limit = 1e-5 if dtype is torch.float32 else 8e-3
    assert all(relative_error(a.double(), b) <= limit for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("mode", ["max-autotune", "reduce-overhead"])
def test_other_modes(mode: str) -> None:
    block = Block().to(DEVICE)
    compiled = fusec.compile(block, mode=mode)
    for rows in (3, 3, 3, 5):
        x = torch.randn(rows, 17, 64, device=DEVICE)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), block(x), rtol=1e-3, atol=1e-4)


def test_tuning_chooses_among_tiles() -> None:
    compiled = fusec.compile(lambda x, y: F.gelu(x + y), mode="max-autotune")
    x, y = torch.randn(4096, 1024, device=DEVICE), torch.randn(4096, 1024, device=DEVICE)
    for _ in range(2):
        torch.testing.assert_close(compiled(x, y), F.gelu(x + y))
