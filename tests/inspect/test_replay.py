"""Replay: a correct program agrees with eager everywhere; a planted fault is found at the line that has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fusec.capture.dynamo import backend
from fusec.capture.graph import CapturedGraph
from fusec.config import Config
from fusec.inspect.replay import Difference, Replay, replay_graph
from fusec.inspect.rows import GraphRecord
from fusec.ir.kernels import KernelPlan
from fusec.pipeline import Stats, compile_passes
from fusec.runtime.executable import Executable


def compiled(function: Callable[..., Any], *inputs: torch.Tensor) -> tuple[GraphRecord, Executable]:
    found: list[tuple[GraphRecord, Executable]] = []

    def compile_graph(graph: CapturedGraph) -> Callable[..., Any]:
        found.append(compile_passes(graph, Config(cache=False), Stats()))
        return found[-1][1]

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(function, backend=lambda gm, x: backend(gm, x, compile_graph=compile_graph))(*inputs)
    return found[0]


def rms_norm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    mean = (x * x).mean(-1, keepdim=True)
    return x * torch.rsqrt(mean + 1e-6) * w


def mixed(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.softmax(x @ w, -1)
    return y.t() + 1, torch.cat([y, x], 1).amax(0)


def sabotaged(record: GraphRecord, op: str, to: str) -> GraphRecord:
    """The plans with every `op` replaced by `to`: what the text does not do."""

    def changed(plan: KernelPlan) -> KernelPlan:
        phases = tuple(tuple(replace(i, op=to) if i.op == op else i for i in phase) for phase in plan.phases)
        return replace(plan, phases=phases)

    steps = tuple(changed(s) if isinstance(s, KernelPlan) else s for s in record.schedule.steps)
    return replace(record, schedule=replace(record.schedule, steps=steps))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_agrees_inside_and_out(dtype: torch.dtype) -> None:
    inputs = torch.randn(17, 33).to(dtype), torch.randn(33).to(dtype)
    record, executable = compiled(rms_norm, *inputs)
    replay = replay_graph(record, executable, inputs)
    assert replay, str(replay)
    assert replay.launches == len(record.plans) and replay.buffers >= 1
    assert replay.values >= 4  # square, mean, rsqrt, product
    assert "all agree with eager" in str(replay)


def test_values_that_eager_rounds_and_a_fused_chain_does_not_agree() -> None:
    def add_norm(x: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        h = x + r  # bfloat16 in eager mode, float32 inside the kernel
        return (h.float() * h.float().pow(2).mean(-1, keepdim=True)).to(x.dtype)

    inputs = torch.randn(9, 64).bfloat16(), torch.randn(9, 64).bfloat16()
    record, executable = compiled(add_norm, *inputs)
    replay = replay_graph(record, executable, inputs)
    assert len(record.plans) == 1 and replay, str(replay)


def test_library_calls_views_and_segments_agree() -> None:
    inputs = torch.randn(5, 4), torch.randn(4, 4)
    record, executable = compiled(mixed, *inputs)
    replay = replay_graph(record, executable, inputs)
    assert replay, str(replay)
    assert replay.values >= 2


def test_a_fault_inside_a_kernel_is_found_at_its_line() -> None:
    inputs = torch.rand(6, 8) + 1, torch.randn(8)
    record, executable = compiled(rms_norm, *inputs)
    replay = replay_graph(sabotaged(record, "rsqrt", "sqrt"), executable, inputs)
    first = replay.first
    assert not replay and first is not None
    assert first.where == "value" and first.name.endswith("= sqrt")
    assert first.origin is not None and "rsqrt" in first.origin.code
    mean = (inputs[0] ** 2).mean(-1, keepdim=True) + 1e-6
    assert first.expected == pytest.approx(float(mean.rsqrt()[0]))
    assert first.got == pytest.approx(float(mean.sqrt()[0]))
    assert first.wrong == 6 and "test_replay.py" in str(replay)


def test_text_that_does_not_do_what_its_plan_says_is_found() -> None:
    inputs = torch.rand(6, 8) + 1, torch.randn(8)
    record, executable = compiled(rms_norm, *inputs)
    runtime = executable.runtime

    def broken(*arguments: Any) -> None:
        runtime.launch[0](*arguments)
        arguments[-1].reshape(-1)[11] += 1.0

    executable.runtime = replace(runtime, launch=(broken, *runtime.launch[1:]))
    replay = replay_graph(record, executable, inputs)
    assert replay.first is not None and replay.first.where == "text"
    assert replay.first.index == (1, 3) and replay.first.wrong == 1
    assert replay.first.largest == pytest.approx(1.0, rel=1e-5)
    assert executable.runtime.launch[0] is broken  # what was there before


def test_the_difference_prints_where_and_how_much() -> None:
    d = Difference("k", "buffer", "buf1", None, (3, 1), 0.5, 1.0, 0.5, 2, 8)
    text = str(Replay("graph_0", 1, 2, 1, (d,)))
    assert "kernel k, buffer buf1" in text
    assert "at (3, 1): eager 0.5, here 1; largest difference 0.5, 2 of 8 values" in text
