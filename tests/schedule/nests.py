"""Nests and programs in few words, for the tests of the scheduler.

left, right = nests('''
nest a (p0<64):
  %0:f32 = load x[p0]
  store t[p0], %0
nest b (p0<64):
  ...
''', x="f32[64]", t="f32[64]")
steps = scheduled(lambda x: torch.softmax(x, -1), torch.randn(64, 1000))
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch

from fusec.config import Config
from fusec.ir.evaluate import evaluate_program, evaluate_schedule
from fusec.ir.kernels import KernelPlan, Schedule
from fusec.ir.parser import parse_program
from fusec.ir.types import LoopNest, Program
from fusec.ir.verify import verify_schedule
from fusec.lowering import lower
from fusec.schedule import schedule, simplify
from tests.property.harness import close_to_eager, trace


def program(text: str, *, returns: str = "", inputs: str = "", **buffers: str) -> Program:
    """A Program from its nests' text; buffers are contiguous, `x="f32[64, 8]"`."""
    lines = [f"program f ({inputs})"]
    returned, given = returns.replace(" ", "").split(","), inputs.replace(" ", "").split(",")
    for name, described in buffers.items():
        shape = [int(n) for n in described[described.index("[") + 1 : -1].split(",") if n.strip()]
        strides = ", ".join(str(prod(shape[i + 1 :])) for i in range(len(shape)))
        role = "out" if name in returned else "in" if name in given else "tmp"
        lines.append(f"{role} {name}: {described} ({strides}) cpu")
    return parse_program("\n".join([*lines, text, f"return {returns or None}"]))


def nests(text: str, **buffers: str) -> tuple[LoopNest, ...]:
    return tuple(n for n in program(text, **buffers).nodes if isinstance(n, LoopNest))


def scheduled(fn: Callable[..., Any], *inputs: torch.Tensor, config: Config | None = None) -> Schedule:
    """The schedule of a traced function, once it is proved to answer as eager mode does."""
    config = config or Config(verify=True)
    lowered = simplify(lower(trace(fn, *inputs), config), config)
    steps = schedule(lowered, config)
    verify_schedule(steps)
    want, exact = (
        [out] if isinstance(out, torch.Tensor) else list(out)
        for out in (fn(*inputs), fn(*(x.double() if x.is_floating_point() else x for x in inputs)))
    )
    close_to_eager(evaluate_schedule(steps, inputs), want, exact, "schedule")
    return steps


def agrees(before: Program, *inputs: torch.Tensor, precision: str = "fast") -> Schedule:
    """The schedule of a Program, once it is proved to return what the Program does."""
    steps = schedule(before, Config(precision=precision))
    verify_schedule(steps)
    want = evaluate_program(before, [x.clone() for x in inputs])
    got = evaluate_schedule(steps, [x.clone() for x in inputs])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-5, equal_nan=True)
    return steps


def kernels(steps: Schedule) -> list[KernelPlan]:
    """The launches of a schedule, combined ones as their parts."""
    return [leaf for step in steps.steps if isinstance(step, KernelPlan) for leaf in step.leaves]


def ops(plan: KernelPlan) -> list[str]:
    return [i.op for i in plan.body]


def reasons(steps: Schedule, *, accepted: bool) -> list[str]:
    return [d.reason for d in steps.decisions if d.accepted is accepted]
