"""Optimizers' steps on the GPU: parameters as eager leaves them, in a few launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import fusec
from bench.cases import CASES
from bench.schema import versions

# Kernels of a step of 16 tensors: the step counts and the tensors; SGD counts no steps.
LAUNCHES = {"adamw_step": 2, "sgd_momentum_step": 1}


def after_two_steps(name: str, device: str, compiled: Callable[[Callable[..., Any]], Callable[..., Any]]) -> list[Any]:
    torch.manual_seed(0)
    work = CASES[name].build(device, small=True)
    step = compiled(work.fn)
    for _ in range(2):
        step()
    return [p.detach() for p in work.parameters]


def check(name: str, device: str) -> None:
    want = after_two_steps(name, device, lambda fn: fn)
    fusec.reset()
    got = after_two_steps(name, device, lambda fn: fusec.compile(fn, fullgraph=True))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6, msg=lambda text: f"{text}\n{versions()}")
    stats = fusec.stats()
    assert [f for f in stats["fallbacks"] if f["level"] != "op"] == []
    assert stats["kernels_launched"] == 2 * LAUNCHES.get(name, stats["kernels_launched"] // 2)


@pytest.mark.parametrize("name", ["adamw_step", "clip_adamw_step", "sgd_momentum_step"])
def test_a_step_equals_eager(name: str) -> None:
    check(name, "cuda")
