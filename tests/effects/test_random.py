"""Random numbers in kernels: reproducible, independent of how a kernel runs, the same in backward, well distributed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fusec
from fusec.kernels.philox import philox
from tests.effects.captured import capture

pytestmark = pytest.mark.usefixtures("clean")
STRICT = {"strict": True}
N = 20_000


def seeded(fn: Callable[..., Any], *args: Any, seed: int = 7) -> Any:
    torch.manual_seed(seed)
    return fn(*args)


def block(counter: tuple[int, int, int, int], key: int) -> list[int]:
    """Philox4x32-10 in Python's integers."""
    a, b, c, d = counter
    for step in range(10):
        k0, k1 = ((key >> 32 * half) + step * weyl for half, weyl in enumerate((0x9E3779B9, 0xBB67AE85)))
        p, q = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (x & 0xFFFFFFFF for x in ((q >> 32) ^ b ^ k0, q, (p >> 32) ^ d ^ k1, p))
    return [a, b, c, d]


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (1 << 64) - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 0x299F31D0A4093822, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_the_blocks_are_the_published_ones(counter: tuple[int, int, int, int], key: int, answer: str) -> None:
    """Known answers of Random123."""
    assert " ".join(f"{word:08x}" for word in block(counter, key)) == answer


@pytest.mark.parametrize("seed", [0, 5, -12345678901234567])
def test_four_neighbours_share_a_block(seed: int) -> None:
    for index in (0, 1, 2, 3, 4, 1001, (1 << 35) + 2, (1 << 62) + 7):
        for word in range(4):
            counter = (index // 4 & 0xFFFFFFFF, index >> 34, word, 0)
            got = int(philox(torch.tensor(seed), torch.tensor(index), word)) & 0xFFFFFFFF
            assert got == block(counter, seed & (1 << 64) - 1)[index % 4]


def test_a_call_is_reproduced_by_its_seed_and_by_a_saved_state() -> None:
    draw = fusec.compile(lambda x: torch.rand_like(x) + torch.randn(3, 1), options=STRICT)
    x = torch.zeros(3, 17)
    first = seeded(draw, x)
    state = torch.get_rng_state()
    second = draw(x)
    assert torch.equal(first, seeded(draw, x)) and not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(second, draw(x))


def test_two_draws_of_one_call_differ_and_eager_code_sees_an_advanced_generator() -> None:
    pair = fusec.compile(lambda x: (torch.rand_like(x), torch.rand_like(x)), options=STRICT)
    a, b = seeded(pair, torch.zeros(100))
    after = torch.rand(1)
    assert not torch.equal(a, b) and not torch.equal(after, seeded(torch.rand, 1))


def test_numbers_do_not_depend_on_strides_or_on_the_kernel() -> None:
    def alone(x: Tensor) -> Tensor:
        return torch.rand_like(x)

    def among_others(x: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.rand_like(x)
        return noise.clone(), (x * noise).sum(0)

    x = torch.ones(31, 47)
    plain = seeded(fusec.compile(alone, options=STRICT), x)
    transposed = seeded(fusec.compile(alone, options=STRICT), torch.ones(47, 31).t())
    fused, total = seeded(fusec.compile(among_others, options=STRICT), x)
    unfused = seeded(fusec.compile(alone, options={**STRICT, "fusion": False}), x)
    assert transposed.stride() == (1, 31)
    assert all(torch.equal(plain, other) for other in (transposed, fused, unfused))
    torch.testing.assert_close(total, plain.sum(0))


@pytest.mark.parametrize("size", [(1,), (3,), (17,), (1000,), (4097,), (3, 1), (5, 12), (7, 13), (2, 3, 20)])
@pytest.mark.parametrize("dynamic", [False, True])
def test_every_size_and_layout_gives_the_same_numbers(size: tuple[int, ...], dynamic: bool) -> None:
    """Where neighbours lie side by side in a tile and where they do not: the numbers of the ops run by PyTorch."""

    def draw(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.rand_like(x) + 0 * x, torch.randint_like(x, 1 << 40, dtype=torch.int64)

    backwards = torch.zeros(size[::-1]).permute(*reversed(range(len(size))))
    sliced = torch.zeros(*size[:-1], 2 * size[-1])[..., ::2]
    (graph,) = capture(draw, torch.zeros(size))
    want = seeded(graph.graph_module, torch.zeros(size))
    for x in (torch.zeros(size), backwards, sliced):
        got = seeded(fusec.compile(draw, dynamic=dynamic, options=STRICT), x)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(got, want, strict=True))


def test_a_graph_that_runs_eagerly_draws_the_same_numbers() -> None:
    def draw(x: Tensor) -> tuple[Tensor, ...]:
        whole = torch.randint(-3, 12, (5, 9), device=x.device)
        return torch.rand_like(x), torch.randn_like(x), whole, torch.rand(3, 3, dtype=torch.float64)

    x = torch.zeros(5, 300, dtype=torch.float32)
    (graph,) = capture(draw, x)
    got, want = seeded(fusec.compile(draw, options=STRICT), x), seeded(graph.graph_module, x)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert torch.equal(got[0], want[0]) and torch.equal(got[2], want[2]) and torch.equal(got[3], want[3])


# -- dropout --------------------------------------------------------------------------------------


def norm_of_dropped(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    return F.layer_norm(residual + F.dropout(x, 0.25), (64,), weight)


def test_residual_dropout_norm_is_one_kernel() -> None:
    x = torch.randn(8, 64)
    found = fusec.explain(norm_of_dropped)(x, x, torch.ones(64))
    assert len(found.kernels) == 1


@pytest.mark.parametrize("size", [(6, 64), (6, 37), (37, 6)])
def test_rows_and_columns_drop_the_same(size: tuple[int, int]) -> None:
    """Forward normalizes rows; backward also sums over rows, with neighbours along another dimension of its tile."""

    def fn(x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        dropped = F.dropout(x + bias, 0.5)
        return dropped, F.layer_norm(dropped, size[1:])

    x, bias = torch.rand(size, requires_grad=True), torch.rand(size[1:], requires_grad=True)
    dropped, _ = fusec.compile(fn, options=STRICT)(x, bias)
    by_x, by_bias = torch.autograd.grad(dropped.sum(), (x, bias))
    assert torch.equal(by_x, torch.where(dropped == 0, 0.0, 2.0)) and torch.equal(by_bias, by_x.sum(0))


def test_forward_and_backward_drop_the_same_and_no_mask_is_kept() -> None:
    def fn(x: Tensor) -> Tensor:
        return F.dropout(x * 2, 0.5)

    saved: list[Tensor] = []
    x = torch.randn(64, 33, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        out = fusec.compile(fn, options=STRICT)(x)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad == 0, out == 0) and torch.equal(x.grad.unique(), torch.tensor([0.0, 4.0]))
    assert saved and all(t.numel() == 1 and t.dtype is torch.int64 for t in saved)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_drops_the_same_again(reentrant: bool) -> None:
    def block(x: Tensor) -> Tensor:
        return F.dropout(torch.sin(x), 0.5)

    def fn(x: Tensor) -> Tensor:
        return checkpoint(block, x, use_reentrant=reentrant) * 3  # type: ignore[no-any-return]

    x = torch.randn(16, 40, requires_grad=True)
    out = fusec.compile(fn)(x)
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.where(out == 0, 0.0, 6 * torch.cos(x)))


def test_dropout_of_nothing_of_everything_and_in_evaluation() -> None:
    x = torch.randn(5, 7)
    for p, want in ((0.0, x), (1.0, torch.zeros_like(x))):
        assert torch.equal(fusec.compile(lambda x, p=p: F.dropout(x, p), options=STRICT)(x), want)
    layer = nn.Dropout(0.5).eval()
    assert torch.equal(fusec.compile(layer)(x), x)


# -- eager's own stream ---------------------------------------------------------------------------


def test_eager_mode_draws_the_numbers_of_eager() -> None:
    def fn(x: Tensor) -> tuple[Tensor, ...]:
        return F.dropout(x, 0.3), torch.rand_like(x), torch.randn(5), torch.randint(0, 9, (4,)), x.bernoulli(0.2)

    x = torch.randn(10, 10)
    got, want = seeded(fusec.compile(fn, options={"random": "eager"}), x), seeded(fn, x)
    for ours, theirs in zip(got, want, strict=True):
        assert torch.equal(ours, theirs)


# -- distributions --------------------------------------------------------------------------------


def drawn(fn: Callable[[], Tensor]) -> Tensor:
    return fusec.compile(fn, options=STRICT)().double()


def fits(sample: Tensor, cumulative: Callable[[Tensor], Tensor]) -> bool:
    """Kolmogorov and Smirnov: the largest distance of the two distribution functions, at the 0.1 % level."""
    values = sample.flatten().sort().values
    n = values.numel()
    steps = torch.arange(1, n + 1, dtype=torch.float64) / n
    distance = torch.maximum((steps - cumulative(values)).abs(), (steps - 1 / n - cumulative(values)).abs()).max()
    return bool(distance < 1.95 / math.sqrt(n))


def normal_cdf(v: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(v / math.sqrt(2)))


CONTINUOUS: list[tuple[str, Callable[[], Tensor], Callable[[Tensor], Tensor]]] = [
    ("rand", lambda: torch.rand(N), lambda v: v),
    ("rand f64", lambda: torch.rand(N, dtype=torch.float64), lambda v: v),
    ("randn", lambda: torch.randn(N), normal_cdf),
    ("randn f64", lambda: torch.randn(N, dtype=torch.float64), normal_cdf),
    ("uniform_", lambda: torch.empty(N).uniform_(-2, 6), lambda v: (v + 2) / 8),
    ("normal_", lambda: torch.empty(N).normal_(3, 2), lambda v: normal_cdf((v - 3) / 2)),
    ("normal", lambda: torch.normal(torch.full((N,), 3.0), 2.0), lambda v: normal_cdf((v - 3) / 2)),
    ("exponential_", lambda: torch.empty(N).exponential_(0.5), lambda v: 1 - torch.exp(-0.5 * v)),
    ("cauchy_", lambda: torch.empty(N).cauchy_(1, 2), lambda v: 0.5 + torch.atan((v - 1) / 2) / math.pi),
    ("log_normal_", lambda: torch.empty(N).log_normal_(0, 1), lambda v: normal_cdf(v.log())),
]


@pytest.mark.parametrize(("name", "fn", "cumulative"), CONTINUOUS, ids=[c[0] for c in CONTINUOUS])
def test_continuous_distributions(name: str, fn: Callable[[], Tensor], cumulative: Callable[[Tensor], Tensor]) -> None:
    sample = drawn(fn)
    assert fits(sample, cumulative)
    assert sample.unique().numel() > 0.99 * N


DISCRETE: list[tuple[str, Callable[[], Tensor], float, float, float, float]] = [
    # name, draw, lowest, highest, mean, variance
    ("randint", lambda: torch.randint(-5, 20, (N,)), -5, 19, 7, 52),
    ("randint_like", lambda: torch.randint_like(torch.zeros(N), 8), 0, 7, 3.5, 5.25),
    ("random_", lambda: torch.empty(N, dtype=torch.int64).random_(0, 10), 0, 9, 4.5, 8.25),
    ("bernoulli", lambda: torch.bernoulli(torch.full((N,), 0.3)), 0, 1, 0.3, 0.21),
    ("bernoulli_", lambda: torch.empty(N).bernoulli_(0.7), 0, 1, 0.7, 0.21),
    ("geometric_", lambda: torch.empty(N).geometric_(0.5), 1, 12, 2, 2),
    ("dropout", lambda: F.dropout(torch.ones(N), 0.2), 0, 1.25, 1, 0.25),
]


@pytest.mark.parametrize(
    ("name", "fn", "lowest", "highest", "mean", "variance"), DISCRETE, ids=[d[0] for d in DISCRETE]
)
def test_discrete_distributions(
    name: str, fn: Callable[[], Tensor], lowest: float, highest: float, mean: float, variance: float
) -> None:
    sample = drawn(fn)
    assert sample.min() == lowest and (sample.max() == highest or name == "geometric_")
    assert abs(sample.mean() - mean) < 4 * math.sqrt(variance / N)
    assert abs(sample.var() - variance) < 0.1 * variance


def test_wide_integers_and_low_precision() -> None:
    wide = drawn(lambda: torch.randint(-(1 << 40), 1 << 40, (N,)))
    assert fits(wide / (1 << 41) + 0.5, lambda v: v)
    for dtype, digits in ((torch.bfloat16, 8), (torch.float16, 11)):
        sample = fusec.compile(lambda dtype=dtype: torch.rand(N, dtype=dtype))()
        assert sample.dtype is dtype and sample.max() == 1 - 2**-digits and sample.min() == 0


def test_neighbours_are_independent() -> None:
    x = drawn(lambda: torch.randn(N))
    for lag in (1, 2, 31, 1024):
        assert abs((x[lag:] * x[:-lag]).mean()) < 4 / math.sqrt(N)
