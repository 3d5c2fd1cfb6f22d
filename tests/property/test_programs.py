"""500 random programs: eager = evaluated Program = evaluated Schedule = generated Triton in the interpreter."""

from __future__ import annotations

import warnings

import pytest
import torch

from fusec.config import Config
from fusec.ir.evaluate import evaluate_program, evaluate_schedule
from fusec.ir.kernels import KernelPlan
from fusec.ir.verify import verify_program, verify_schedule
from fusec.lowering import lower
from fusec.schedule import simplify
from tests.property.harness import build_for_cpu, close_to_eager, schedule_of, trace
from tests.property.programs import RandomProgram, random_program

PROGRAMS = 500
CHUNK = 25


def check(program: RandomProgram, precision: str = "fast") -> int:
    """Assert that every stage answers as eager does; returns the number of kernels that ran."""
    config = Config(precision=precision, verify=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # eager's own: empty reductions, deprecated promotions
        want = program.fn(*program.inputs)
        exact = program.fn(*(x.double() if x.is_floating_point() else x for x in program.inputs))
    lowered = lower(trace(program.fn, *program.inputs), config)
    verify_program(lowered)
    close_to_eager(evaluate_program(lowered, program.inputs), want, exact, f"{program}\nevaluate_program")
    steps = schedule_of(simplify(lowered, config), config)
    verify_schedule(steps)
    close_to_eager(evaluate_schedule(steps, program.inputs), want, exact, f"{program}\nevaluate_schedule")
    executable = build_for_cpu(steps, config)
    close_to_eager(executable(*program.inputs), want, exact, f"{program}\nkernels")
    return sum(isinstance(step, KernelPlan) for step in steps.steps)


@pytest.mark.parametrize("first", range(0, PROGRAMS, CHUNK))
def test_random_programs_answer_as_eager_at_every_stage(first: int) -> None:
    kernels = [check(random_program(seed)) for seed in range(first, first + CHUNK)]
    assert sum(kernels) >= CHUNK // 2, f"too few kernels were generated to prove anything: {kernels}"


@pytest.mark.parametrize("seed", range(10_000, 10_020))
def test_random_programs_with_eager_rounding(seed: int) -> None:
    check(random_program(seed), precision="eager")


def test_a_program_is_the_same_for_the_same_seed() -> None:
    assert str(random_program(3)) == str(random_program(3)) != str(random_program(4))
    assert all(torch.equal(a, b) for a, b in zip(random_program(3).inputs, random_program(3).inputs, strict=True))
