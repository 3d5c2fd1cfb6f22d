"""From a function to a Schedule and an Executable without Dynamo, and the comparison with eager.

steps = schedule_of(simplify(lower(trace(fn, x)), config), config)
close_to_eager(build_for_cpu(steps, config)(x), eager, exact, "what is compared")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from fusec.codegen.kernel import generate_kernel
from fusec.codegen.wrapper import generate_wrapper
from fusec.config import Config
from fusec.ir.kernels import KernelPlan, Schedule
from fusec.ir.types import Program
from fusec.pipeline import Stats
from fusec.runtime.build import build
from fusec.runtime.executable import Executable
from fusec.schedule import plan_memory, schedule

# Error beyond eager's own, relative to the largest value: a few roundings of the widest chain.
SLACK = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@dataclass(frozen=True)
class TracedGraph:
    graph_module: fx.GraphModule
    names: Sequence[str]


def trace(fn: Callable[..., Any], *inputs: torch.Tensor) -> TracedGraph:
    """An aten graph of fn with fake-tensor metadata."""
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(x, static_shapes=True) for x in inputs]
    with torch.no_grad(), mode:
        module = make_fx(lambda *args: tuple(pytree.tree_leaves(fn(*args))))(*fakes)
    module.graph.eliminate_dead_code()
    return TracedGraph(module, [f"x{i}" for i in range(len(inputs))])


def schedule_of(program: Program, config: Config) -> Schedule:
    return schedule(program, config)


def build_for_cpu(steps: Schedule, config: Config) -> Executable:
    """Generated kernels, run by Triton's interpreter."""
    plans = [step for step in steps.steps if isinstance(step, KernelPlan)]
    sources = tuple(generate_kernel(plan, steps.table, config) for plan in plans)
    buffers = plan_memory(steps)
    return build(steps, buffers, sources, generate_wrapper(steps, buffers, sources), config, Stats())


def close_to_eager(got: Sequence[Any], want: Sequence[torch.Tensor], exact: Sequence[torch.Tensor], what: str) -> None:
    """Same dtype, shape and strides; integers equal; floats no further from float64 than eager, plus a little."""
    assert len(got) == len(want), what
    for i, (a, b, c) in enumerate(zip(got, want, exact, strict=True)):
        assert a.dtype == b.dtype and a.shape == b.shape, f"{what} [{i}]: {a.dtype}{a.shape}, eager {b.dtype}{b.shape}"
        if not b.is_floating_point():
            assert torch.equal(a, b), f"{what} [{i}]: {(a != b).sum()} of {b.numel()} differ"
            continue
        assert torch.equal(a.isnan(), b.isnan()), f"{what} [{i}]: NaN in different places"
        finite = b.isfinite() & c.isfinite() if c.shape == b.shape else b.isfinite()
        assert torch.equal(a[~b.isfinite() & ~b.isnan()], b[~b.isfinite() & ~b.isnan()]), (
            f"{what} [{i}]: infinities differ"
        )
        if not finite.any():
            continue
        true = c.double()[finite]
        error, eager_error = ((t.double()[finite] - true).abs().max().item() for t in (a, b))
        scale = max(true.abs().max().item(), 1.0)
        assert error <= 2 * eager_error + SLACK[b.dtype] * scale, f"{what} [{i}]: error {error}, eager's {eager_error}"
