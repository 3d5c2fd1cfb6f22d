"""Random programs with symbolic sizes: right at every stage, whatever the sizes of the first call are believed to be.

A size's hint may decide what a kernel costs and how it is tiled, never what it computes: here every hint is a lie.
"""

from __future__ import annotations

import random
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

from fusec.config import Config
from fusec.errors import LoweringError
from fusec.ir.evaluate import evaluate_program, evaluate_schedule
from fusec.ir.index import size_symbol, symbols_of
from fusec.ir.renaming import Renaming
from fusec.ir.types import Program
from fusec.ir.verify import verify_program, verify_schedule
from fusec.lowering import lower
from fusec.runtime.sizes import CallSizes
from fusec.schedule import schedule, simplify
from tests.property.harness import TracedGraph, build_for_cpu, close_to_eager
from tests.property.programs import RandomProgram, random_program

PROGRAMS = 60
CHUNK = 20
HINTS = (2, 3, 64, 1000, 5000)


def traced(program: RandomProgram) -> TracedGraph:
    """The aten graph with a symbol for every size that the program does not fix."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    fakes = [mode.from_tensor(x) for x in program.inputs]
    with torch.no_grad(), mode:
        module = make_fx(lambda *args: tuple(pytree.tree_leaves(program.fn(*args))))(*fakes)
    module.graph.eliminate_dead_code()
    return TracedGraph(module, [f"x{i}" for i in range(len(fakes))])


def lied_to(program: Program, rng: random.Random) -> Program:
    """The program with other hints: numbers its sizes never had."""
    sizes = {
        s.name: size_symbol(s.name, s.lo, s.hi, max(rng.choice(HINTS), s.lo))
        for b in program.buffers
        for e in (*b.shape, *b.strides)
        for s in symbols_of(e)
    }
    return Renaming(sizes).program(program)


def check(program: RandomProgram) -> int:
    """Assert that every stage answers as eager does; returns how many sizes are symbolic."""
    config = Config(verify=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = program.fn(*program.inputs)
        exact = program.fn(*(x.double() if x.is_floating_point() else x for x in program.inputs))
    try:
        lowered = lied_to(lower(traced(program), config), random.Random(program.seed))
    except LoweringError as error:
        assert "not known at compile time" in str(error)  # the last rung: a version for each tuple of sizes
        return 0
    verify_program(lowered)
    steps = schedule(simplify(lowered, config), config)
    verify_schedule(steps)
    sizes = CallSizes(steps).named(program.inputs)
    got = evaluate_program(lowered, program.inputs, sizes=sizes)
    close_to_eager(got, want, exact, f"{program}\nevaluate_program")
    got = evaluate_schedule(steps, program.inputs, sizes=sizes)
    close_to_eager(got, want, exact, f"{program}\nevaluate_schedule")
    close_to_eager(build_for_cpu(steps, config)(*program.inputs), want, exact, f"{program}\nkernels")
    return len(sizes)


@pytest.mark.parametrize("first", range(0, PROGRAMS, CHUNK))
def test_random_programs_with_symbolic_sizes(first: int) -> None:
    symbols = [check(random_program(seed)) for seed in range(first, first + CHUNK)]
    assert sum(n > 0 for n in symbols) >= CHUNK // 2, f"too few sizes stayed symbolic to prove anything: {symbols}"
