"""A module twice, compiled and not, from equal weights: after equal steps gradients and weights must be equal."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fusec

STRICT = {"strict": True}
X = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two linear layers around a norm and a GELU: kernels and library calls, f32[n, 16] -> f32[n, 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(16, 24), nn.LayerNorm(24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.norm(self.up(x))))


class Twins:
    """modules: one to be compiled and one to stay. calls: how each is called, compiled and eager.

    prepare: done to each before it is compiled (hooks, frozen parameters).
    wrap:    what to compile of a module; the module itself by default.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module] = Net,
        prepare: Callable[[Any], object] = lambda module: None,
        wrap: Callable[[Any], Callable[..., Any]] = lambda module: module,
    ) -> None:
        torch.manual_seed(0)
        module = make()
        self.modules: list[Any] = [module, copy.deepcopy(module)]
        for each in self.modules:
            prepare(each)
        ours, theirs = (wrap(module) for module in self.modules)
        self.calls = (fusec.compile(ours, options=STRICT), theirs)

    def each(self, step: Callable[[Callable[..., Any], Any], Any]) -> list[Any]:
        """step(call, module) of both, compiled first."""
        return [step(call, module) for call, module in zip(self.calls, self.modules)]

    def backward(self, *inputs: Tensor, loss: Callable[[Tensor], Tensor] = lambda y: y.square().sum()) -> None:
        self.each(lambda call, _: loss(call(*inputs)).backward())

    def gradients(self) -> list[list[Tensor | None]]:
        return [[p.grad for p in module.parameters()] for module in self.modules]

    def agree(self, tolerance: float = 1e-4) -> None:
        """Gradients, parameters and buffers of both; None where the other has None."""
        for ours, theirs in zip(*self.gradients(), strict=True):
            assert (ours is None) == (theirs is None)
        for ours, theirs in (self.gradients(), [[*m.parameters(), *m.buffers()] for m in self.modules]):
            pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None]
            for a, b in pairs:
                torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance / 10)


def same_gradients(fn: Callable[..., Any], *inputs: Tensor, loss: Callable[[Any], Tensor] = torch.sum) -> None:
    """Of every floating-point input, by the compiled function and by fn itself."""
    found = []
    for call in (fusec.compile(fn, options=STRICT), fn):
        given = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
        loss(call(*given)).backward()
        found.append([x.grad for x in given])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
