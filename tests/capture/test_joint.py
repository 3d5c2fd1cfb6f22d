"""What a training step saves between its two graphs, and that its gradients are eager's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fusec
from bench.cases import Case, Work
from bench.schedules import capture
from bench.training import step, with_incoming
from fusec.capture.graph import CapturedGraph


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    fusec.reset()
    yield
    fusec.reset()


def saved(fn: Callable[..., Tensor], *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The values that enter the backward graph and are no input of the function: on fake tensors, of any size."""

    def build() -> Work:
        return Work(fn, tuple(torch.randn(s, dtype=dtype, requires_grad=True) for s in shapes))

    forward, backward = capture(lambda device: with_incoming(build)(), step)
    return [
        x
        for x, name in zip(backward.example_inputs, backward.names, strict=True)
        if isinstance(x, Tensor) and name not in forward.names and not name.startswith("grad_")
    ]


def elements(values: list[Tensor]) -> list[int]:
    return sorted(x.numel() for x in values)


def test_a_softmax_saves_two_numbers_a_row() -> None:
    def f(x: Tensor) -> Tensor:
        return torch.softmax(x.float(), -1).to(x.dtype)

    assert elements(saved(f, (64, 1000), dtype=torch.bfloat16)) == [64, 64]


def test_a_cross_entropy_saves_no_row() -> None:
    target = torch.zeros(64, dtype=torch.int64)
    assert all(n <= 64 for n in elements(saved(lambda x: F.cross_entropy(x, target), (64, 1000))))


def test_a_batch_norm_with_relu_saves_its_statistics() -> None:
    def f(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.relu(F.batch_norm(x, None, None, w, b, training=True))

    assert elements(saved(f, (8, 4, 10, 10), (4,), (4,))) == [4, 4]


def test_what_a_library_call_of_backward_reads_is_saved() -> None:
    """The gradient of w is a matmul with the gate: written in forward already, it is not computed again."""

    def f(g: Tensor, u: Tensor, w: Tensor) -> Tensor:
        return (F.silu(g) * u) @ w

    assert 64 * 128 in elements(saved(f, (64, 128), (64, 128), (128, 32)))


def test_a_max_pooling_saves_bytes() -> None:
    indices = [x for x in saved(lambda x: F.max_pool2d(x, 3, 2, 1), (2, 4, 20, 20)) if not x.is_floating_point()]
    assert [(x.dtype, x.shape) for x in indices] == [(torch.int8, (2, 4, 10, 10))]


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 2},
        {"kernel_size": (3, 2), "stride": (1, 2), "padding": (1, 0)},
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
        {"kernel_size": (2, 3), "stride": 1, "dilation": (3, 2)},
        {"kernel_size": 2, "stride": 1, "dilation": (12, 10)},  # an offset that a byte cannot hold
        {"kernel_size": (12, 11), "stride": 3},  # a window that is not unrolled
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(2, 3, 13, 17), (1, 14, 12)])
def test_max_pool_gradients(settings: dict[str, Any], shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).round(decimals=1)  # ties
    fn = partial(F.max_pool2d, **settings)
    for a, b in zip(gradients(fusec.compile(lambda x: fn(x)), x), gradients(fn, x), strict=True):
        torch.testing.assert_close(a, b)


def test_a_window_that_steps_over_its_input_sends_nothing() -> None:
    """Eager's index of such a window lies outside the plane or in another row."""
    pool = fusec.compile(lambda x: F.max_pool2d(x, (1, 2), 1, (0, 1), (1, 3)))
    _, gradient = gradients(pool, torch.randn(1, 1, 4, 2))
    torch.testing.assert_close(gradient, torch.zeros(1, 1, 4, 2))


def test_a_max_pooling_whose_indices_are_used_keeps_them() -> None:
    def fn(x: Tensor) -> Tensor:
        y, at = F.max_pool2d(x, 3, 2, 1, return_indices=True)
        return y * at

    x = torch.randn(2, 3, 9, 11)
    for a, b in zip(gradients(fusec.compile(fn), x), gradients(fn, x), strict=True):
        torch.testing.assert_close(a, b)


def gradients(fn: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    inputs = tuple(x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs)
    out = fn(*inputs)
    (out.double() * torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape)).sum().backward()
    return (out.detach(), *(x.grad for x in inputs if x.grad is not None))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "dim"), [((5, 33), -1), ((33, 5), 0), ((2, 7, 3), 1), ((1,), 0), ((), 0), ((0, 4), 1)]
)
def test_softmax_gradients(log: bool, dtype: torch.dtype, shape: tuple[int, ...], dim: int) -> None:
    fn = F.log_softmax if log else F.softmax
    x = (torch.randn(shape) * 5).to(dtype)
    got, want = gradients(fusec.compile(lambda x: fn(x, dim)), x), gradients(lambda x: fn(x, dim), x)
    low = dtype is torch.bfloat16
    for a, b in zip(got, want, strict=True):
        assert a.dtype is b.dtype
        torch.testing.assert_close(a, b, rtol=1e-2 if low else 1e-5, atol=1e-2 if low else 1e-6)


def test_softmax_of_masked_rows() -> None:
    x = torch.tensor([[0.0, float("-inf")], [float("-inf")] * 2, [float("inf"), 0.0], [float("nan"), 1.0]])
    got, want = (gradients(f, x) for f in (fusec.compile(lambda x: x.softmax(-1)), lambda x: x.softmax(-1)))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("shape", "smoothing"), [((6, 9), 0.0), ((6, 9), 0.1), ((9,), 0.0), ((2, 9, 3, 4), 0.0)])
def test_cross_entropy_gradients(reduction: str, weighted: bool, shape: tuple[int, ...], smoothing: float) -> None:
    torch.manual_seed(0)
    weight = torch.rand(9) if weighted else None
    rest = shape[:1] + shape[2:] if len(shape) > 1 else ()
    target = torch.randint(0, 9, rest)
    if target.dim():
        target.view(-1)[1] = -100

    def f(x: Tensor) -> Tensor:
        return F.cross_entropy(x, target, weight, reduction=reduction, label_smoothing=smoothing)

    x = torch.randn(shape)
    for a, b in zip(gradients(fusec.compile(f), x), gradients(f, x), strict=True):
        torch.testing.assert_close(a, b)


def test_an_infinite_gradient_reaches_the_target_alone() -> None:
    """Eager writes one entry a row: zero times infinity never appears beside it."""

    def f(x: Tensor) -> Tensor:
        return F.nll_loss(x, torch.tensor([1, 0])) * float("inf")

    x = torch.randn(2, 3)
    (_, got), (_, want) = gradients(fusec.compile(f), x), gradients(f, x)
    torch.testing.assert_close(got, want)


def kinds(graphs: list[CapturedGraph]) -> list[str]:
    return [g.kind for g in graphs]


def test_every_training_case_has_two_graphs() -> None:
    from bench.training import TRAINING

    case: Case = TRAINING["ln_train"]
    assert kinds(capture(lambda device: case.build("cpu", small=True), case.run)) == ["forward", "backward"]
