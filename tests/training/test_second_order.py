"""Gradients of gradients: right, by eager mode, with one warning; else an error; never None or zeros."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fusec
from fusec.errors import FallbackWarning, FusecError
from tests.training.helpers import STRICT, Net, Twins, X

pytestmark = pytest.mark.usefixtures("clean")


def tanh_cubed(x: Tensor, w: Tensor) -> Tensor:
    return torch.tanh(x @ w).pow(3).sum()


def given(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(s, dtype=dtype, requires_grad=True) for s in shapes]


def of_the_gradient(fn: Callable[..., Tensor], x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    (first,) = torch.autograd.grad(fn(x, w), x, create_graph=True)
    return torch.autograd.grad(first.square().sum(), (x, w))


def as_a_penalty(fn: Callable[..., Tensor], x: Tensor, w: Tensor) -> tuple[Any, ...]:
    x.grad = w.grad = None
    loss = fn(x, w)
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    (loss + first.square().sum()).backward()
    return x.grad, w.grad


def hessian(fn: Callable[..., Tensor], x: Tensor, w: Tensor) -> tuple[Any, ...]:
    found: tuple[Any, ...] = torch.autograd.functional.hessian(fn, (x, w))  # unused gradients are zeros to it
    return tuple(h for row in found for h in row)


def third(fn: Callable[..., Tensor], x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    (first,) = torch.autograd.grad(fn(x, w), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    return torch.autograd.grad(second.sin().sum(), (x, w))


def from_one_another(fn: Callable[..., Tensor], x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """One input is computed from the other."""
    (first,) = torch.autograd.grad(fn(x * w.mean(), w), (x, w)[1], create_graph=True)
    return torch.autograd.grad(first.square().sum(), (x, w))


ORDERS = [of_the_gradient, as_a_penalty, hessian, third, from_one_another]


@pytest.mark.parametrize("order", ORDERS)
def test_higher_derivatives_are_those_of_eager_mode(order: Callable[..., tuple[Tensor, ...]]) -> None:
    inputs = given((3, 4), (4, 5))
    compiled = fusec.compile(tanh_cubed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = [t.clone() for t in order(compiled, *inputs)]
    torch.testing.assert_close(ours, list(order(tanh_cubed, *inputs)), rtol=1e-4, atol=1e-5)
    (message,) = [str(w.message) for w in caught if issubclass(w.category, FallbackWarning)]
    assert "create_graph=True" in message and "tanh_cubed" in message
    assert {f["level"] for f in fusec.stats()["fallbacks"]} == {"graph"}


def test_against_finite_differences() -> None:
    compiled = fusec.compile(lambda x, w: F.layer_norm(torch.sin(x @ w), (5,)))
    with pytest.warns(FallbackWarning):
        assert torch.autograd.gradgradcheck(compiled, given((3, 4), (4, 5), dtype=torch.float64))


def test_parameters_views_and_several_outputs() -> None:
    class Split(Net):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
            y = super().forward(x)
            return y.t(), y[1:] * 2, x.view(-1)

    twins = Twins(Split)
    twins.calls = (fusec.compile(twins.modules[0]), twins.modules[1])

    def step(call: Any, module: Any) -> None:
        x = X.clone().requires_grad_()
        loss = sum(o.pow(3).sum() for o in call(x))
        grads = torch.autograd.grad(loss, (x, module.up.weight), create_graph=True)
        sum(g.square().sum() for g in grads).backward()  # type: ignore[union-attr]

    with pytest.warns(FallbackWarning):
        twins.each(step)
    twins.agree(1e-3)


def test_autocast_is_as_it_was_in_the_call() -> None:
    twins = Twins()
    twins.calls = (fusec.compile(twins.modules[0]), twins.modules[1])

    def step(call: Any, module: Any) -> None:
        x = X.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = call(x).float().pow(2).sum()
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        first.square().sum().backward()

    with pytest.warns(FallbackWarning):
        twins.each(step)
    for a, b in zip(*twins.gradients(), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a - b).norm() <= 5e-2 * b.norm() + 1e-3


def test_a_graph_that_nobody_differentiates_twice_stays_compiled() -> None:
    x, w = given((3, 4), (4, 5))
    ours = torch.autograd.grad(fusec.compile(tanh_cubed, options=STRICT)(x, w), x, create_graph=True)
    torch.testing.assert_close(ours, torch.autograd.grad(tanh_cubed(x, w), x, create_graph=True))
    assert ours[0].requires_grad and not fusec.stats()["fallbacks"]


def test_strict_makes_it_an_error() -> None:
    with pytest.raises(FusecError, match=r"tanh_cubed.*create_graph=True"):
        of_the_gradient(fusec.compile(tanh_cubed, options=STRICT), *given((3, 4), (4, 5)))


def dropped(x: Tensor, w: Tensor) -> Tensor:
    return F.dropout(x @ w, 0.5).pow(3).sum()


def test_random_numbers_are_an_error() -> None:
    with pytest.raises(FusecError, match="random numbers"), pytest.warns(FallbackWarning):
        of_the_gradient(fusec.compile(dropped), *given((3, 4), (4, 5)))


def test_an_input_that_changed_or_is_gone_is_an_error() -> None:
    (x,) = given((3, 4))
    compiled = fusec.compile(lambda x, b: (x.tanh() + b).pow(3).sum())
    bias = torch.zeros(4)
    loss = compiled(x, bias)
    bias.add_(1)  # read by no first derivative
    with pytest.raises((FusecError, RuntimeError), match="in place|inplace"):
        torch.autograd.grad(loss, x, create_graph=True)
    of_sums = fusec.compile(lambda x, b: (x.sum(0) * b).pow(3).sum())
    for _ in range(2):  # what compiles keeps its arguments for a while
        loss = of_sums(x * 2, bias)  # backward reads the sum: nothing keeps the product
    with pytest.raises(FusecError, match="no longer exists"):
        torch.autograd.grad(loss, x, create_graph=True)
