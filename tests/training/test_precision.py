"""Training in mixed precision: autocast around and inside, loss scaling, skipped steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fusec
from tests.training.helpers import Net, Twins, X

pytestmark = pytest.mark.usefixtures("clean")
LOW = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", LOW)
def test_autocast_around_a_call(dtype: torch.dtype) -> None:
    def step(call: Any, _: Any) -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            out: Tensor = call(X)
        out.float().square().mean().backward()
        return out

    twins = Twins()
    ours, theirs = twins.each(step)
    assert ours.dtype is theirs.dtype is dtype
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    twins.agree(3e-2)


@pytest.mark.parametrize("dtype", LOW)
def test_autocast_inside_a_call(dtype: torch.dtype) -> None:
    def wrap(module: Any) -> Any:
        def loss(x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=dtype):
                out = module(x)
                with torch.autocast("cpu", enabled=False):
                    return out.float().softmax(-1).square()  # type: ignore[no-any-return]

        return loss

    twins = Twins(wrap=wrap)
    twins.backward(X, loss=torch.sum)
    twins.agree(3e-2)


def test_a_gradient_scaler_scales_unscales_and_skips_a_step() -> None:
    def train(call: Any, module: Any) -> list[float]:
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**15)
        scales = []
        for step in range(4):
            x = X.clone()
            x[0, 0] = float("inf") if step == 2 else 0.0
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                loss = call(x).float().square().mean()
            before = [p.detach().clone() for p in module.parameters()]
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            assert all(torch.equal(a, b) for a, b in zip(before, module.parameters())) == (step == 2)
            scales.append(scaler.get_scale())
        return scales

    twins = Twins()
    ours, theirs = twins.each(train)
    assert ours == theirs == [2.0**15, 2.0**15, 2.0**14, 2.0**14]
    for a, b in zip(*[list(m.parameters()) for m in twins.modules], strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=5e-3)


def test_weights_in_bfloat16() -> None:
    twins = Twins(lambda: Net().bfloat16())
    twins.backward(X.bfloat16(), loss=lambda y: y.float().square().mean())
    twins.agree(5e-2)


def test_kernels_of_a_step_under_autocast_compile_for_a_gpu_without_spills() -> None:
    net = Net()

    def step(x: Tensor) -> None:
        with torch.autocast("cpu", dtype=torch.float16):
            loss = net(x).float().square().mean()
        loss.backward()

    found = fusec.explain(step, target="sm_90", strict=True)(X)
    assert [g.captured.kind for g in found.graphs] == ["forward", "backward"] and not found.fallbacks
    resources = [r for g in found.graphs for r in g.resources.values()]
    assert resources and all(r["spills"] == 0 for r in resources)
