"""Layers whose sizes have names of their own: one text, one binary, each launched with its own sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.fx.experimental import _config

import fusec


def layers(states: list[Tensor], caches: list[Tensor]) -> list[Tensor]:
    return [torch.softmax(cache * 2, -1) @ state for state, cache in zip(states, caches, strict=True)]


def inputs(*lengths: int) -> tuple[list[Tensor], list[Tensor]]:
    return [torch.randn(n, 3) for n in lengths], [torch.randn(4, n) for n in lengths]


@pytest.mark.usefixtures("clean")
def test_layers_with_sizes_of_their_own_share_a_kernel() -> None:
    with _config.patch(use_duck_shape=False):  # equal sizes are symbols of their own
        explanation = fusec.explain(layers, dynamic=True, strict=True, target="sm_90")(*inputs(6, 6, 6))
    (kernel,) = explanation.kernels
    assert kernel.launches == 3 and "f32[s0, s1]" in kernel.source
    assert fusec.stats()["recompiles"] == 0


@pytest.mark.usefixtures("clean")
def test_each_launch_has_its_own_sizes() -> None:
    compiled = fusec.compile(layers, dynamic=True, options={"strict": True})
    with _config.patch(use_duck_shape=False):
        for lengths in ((6, 6, 6), (5, 17, 130), (2, 1000, 3)):
            given = inputs(*lengths)
            for got, want in zip(compiled(*given), layers(*given), strict=True):
                torch.testing.assert_close(got, want)
    assert fusec.stats()["graphs"] == 1
