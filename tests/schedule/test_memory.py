"""Where buffers live: reuse of dead memory, what is never handed on, and a peak that reuse does not raise."""

from __future__ import annotations

import torch

from fusec.ir.kernels import BufferPlan, KernelPlan, Schedule
from fusec.schedule import plan_memory
from fusec.schedule.memory import _plan
from tests.property.programs import random_program
from tests.schedule.nests import agrees, program, scheduled

MM = "extern {n}: {out} = aten.{op}.default({args})\n"


def nest(name: str, source: str, target: str, width: int = 8) -> str:
    head = f"nest {name} (p0<{width}, p1<8):\n%0:f32 = load {source}[8*p0 + p1]\n"
    return head + f"%1:f32 = exp %0\nstore {target}[8*p0 + p1], %1\n"


def planned(text: str, returns: str, **more: str) -> tuple[Schedule, BufferPlan]:
    sizes = {**dict.fromkeys(("x", "a", "b", "c", "d", "u", "v", "y"), "f32[8, 8]"), **more}
    used = {k: s for k, s in sizes.items() if k in text or k == "x"}
    steps = agrees(program(text, inputs="x", returns=returns, **used), torch.randn(8, 8).clamp(-1, 0))
    return steps, plan_memory(steps)


def reuses(plan: BufferPlan) -> dict[str, str]:
    return {a.buffer: a.reuses for step in plan.before for a in step if a.reuses is not None}


CHAIN = (
    nest("n0", "x", "a") + MM.format(n="e0", out="u", op="mm", args="a, x")
    + nest("n1", "u", "b") + MM.format(n="e1", out="v", op="mm", args="b, x") + nest("n2", "v", "y")
)  # fmt: skip


def test_a_dead_buffer_is_taken_over() -> None:
    _, plan = planned(CHAIN, "y")
    assert reuses(plan) in ({"b": "a"}, {"b": "a", "y": "b"}, {"y": "b"})
    gone = [name for step in plan.after for name in step]
    assert len(gone) == len(set(gone)) and "y" not in gone


def test_a_buffer_taken_over_is_not_given_back() -> None:
    _, plan = planned(CHAIN, "y")
    assert not set(reuses(plan).values()) & {name for step in plan.after for name in step}


def test_memory_that_a_call_may_return_a_view_of_is_never_handed_on() -> None:
    text = nest("n0", "x", "a") + MM.format(n="e0", out="u", op="t", args="a")
    text += nest("n1", "u", "b") + MM.format(n="e1", out="v", op="mm", args="b, x") + nest("n2", "v", "y")
    _, plan = planned(text, "y, u", u="f32[8, 8]")
    assert "a" not in reuses(plan).values()


def test_other_sizes_and_gaps_are_not_taken_over() -> None:
    text = CHAIN.replace("nest n2 (p0<8", "nest n2 (p0<4")
    _, plan = planned(text, "y", y="f32[4, 8]")
    assert "y" not in reuses(plan)


def test_reuse_never_raises_the_peak_and_every_buffer_is_allocated_once() -> None:
    for seed in range(20):
        chosen = random_program(seed)
        steps = scheduled(chosen.fn, *chosen.inputs)
        plan = plan_memory(steps)
        assert plan.peak_bytes <= _plan(steps, reuse=False).peak_bytes
        made = [a.buffer for step in plan.before for a in step]
        written = {w for s in steps.steps if isinstance(s, KernelPlan) for w in s.writes}
        assert sorted(made) == sorted(written)
