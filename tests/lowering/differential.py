"""Lower a function op by op, evaluate the Program on CPU, and hold the results against eager.

    assert_lowered_like_eager(lambda x: x.softmax(-1), x)      # no library calls unless `externs` says so

The graph is traced without AOTAutograd's rewrites (decompose=False also keeps composite aten ops whole), so
what is tested is the lowering of the op itself.
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

from fusec.config import Config
from fusec.ir.evaluate import evaluate_program, evaluate_schedule
from fusec.ir.kernels import Schedule
from fusec.ir.printer import format_program
from fusec.ir.types import AccessMode, Extern, LoopNest, Program
from fusec.ir.verify import verify_program, verify_schedule
from fusec.lowering import lower
from fusec.schedule import schedule, simplify
from tests.property.harness import build_for_cpu, close_to_eager

# Error allowed beyond eager's own, in the result's dtype.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


@dataclass(frozen=True)
class TracedGraph:
    graph_module: fx.GraphModule
    names: Sequence[str]


def make(shape: Sequence[int], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """A tensor of small values, both signs, the same on every run."""
    generator = torch.Generator().manual_seed(seed + len(shape) + sum(shape))
    values = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    if dtype is torch.bool:
        return values > 0
    if dtype is torch.uint8:
        return (values * 3).abs().to(dtype)
    return (values if dtype.is_floating_point else values * 9).to(dtype)


def trace(fn: Callable[..., Any], *inputs: torch.Tensor, decompose: bool = True) -> TracedGraph:
    """An aten graph with fake-tensor metadata. decompose=False: composite ops stay whole."""
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(x, static_shapes=True) for x in inputs]

    def flat(*args: torch.Tensor) -> tuple[Any, ...]:
        return tuple(pytree.tree_leaves(fn(*args)))

    with torch.no_grad(), mode:
        module = make_fx(flat, pre_dispatch=not decompose)(*fakes)
    module.graph.eliminate_dead_code()
    return TracedGraph(module, [f"x{i}" for i in range(len(inputs))])


def lower_function(fn: Callable[..., Any], *inputs: torch.Tensor, decompose: bool = True) -> Program:
    """The verified Program of a function."""
    program = lower(trace(fn, *inputs, decompose=decompose))
    verify_program(program)
    return program


def externs_of(program: Program) -> list[Extern]:
    return [n for n in program.nodes if isinstance(n, Extern)]


def store_modes(program: Program) -> set[AccessMode]:
    """How the nests write: stores, overwrites, atomic updates."""
    return {a.mode for n in program.nodes if isinstance(n, LoopNest) for a in n.stores}


def assert_lowered_like_eager(
    fn: Callable[..., Any],
    *inputs: torch.Tensor,
    externs: int | None = 0,
    decompose: bool = True,
    against_double: bool = False,
) -> None:
    """Same dtypes, shapes, strides and values as eager.

    externs: how many library calls the Program may and must hold; None: any number.
    against_double: the error against float64 is at most 1.5 times eager's (beyond one unit in the last place) in
    place of equal values.
    """
    program = lower_function(fn, *inputs, decompose=decompose)
    text = format_program(program)
    found = [f"{e.target}: {e.reason}" for e in externs_of(program)]
    assert externs is None or len(found) == externs, f"library calls: {found}\n{text}"
    results = evaluate_program(program, inputs)
    with torch.no_grad():
        expected = pytree.tree_leaves(fn(*inputs))
        doubles = [x.double() if x.is_floating_point() else x for x in inputs]
        exact = pytree.tree_leaves(fn(*doubles)) if against_double else expected
    assert len(results) == len(expected)
    for got, want, true in zip(results, expected, exact, strict=True):
        _same_form(got, want, text)
        if against_double and want.is_floating_point():
            unit = torch.finfo(want.dtype).eps * true.abs().max()
            assert _error(got, true) <= 1.5 * _error(want, true) + unit, text
        else:
            _same_values(got, want, text)


def assert_kernels_like_eager(fn: Callable[..., Any], *inputs: torch.Tensor, externs: int | None = 0) -> Schedule:
    """The same of every stage: evaluated Program, evaluated Schedule, interpreted kernels. Returns the Schedule."""
    assert_lowered_like_eager(fn, *inputs, externs=externs)
    config = Config()
    steps = schedule(simplify(lower_function(fn, *inputs), config), config)
    verify_schedule(steps)
    with torch.no_grad():
        want = pytree.tree_leaves(fn(*inputs))
        exact = pytree.tree_leaves(fn(*(x.double() if x.is_floating_point() else x for x in inputs)))
    close_to_eager(evaluate_schedule(steps, inputs), want, exact, "the evaluated schedule")
    close_to_eager(build_for_cpu(steps, config)(*inputs), want, exact, "the kernels")
    return steps


def _error(value: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    return (value.double() - true).abs().max()


def _same_form(got: torch.Tensor, want: torch.Tensor, text: str) -> None:
    seen, wanted = (f"{x.dtype} {tuple(x.shape)} {x.stride()}" for x in (got, want))
    assert got.dtype == want.dtype and got.shape == want.shape, f"{seen}, eager {wanted}\n{text}"
    if want.numel() > 0:
        strides = [(g, w) for g, w, n in zip(got.stride(), want.stride(), want.shape, strict=True) if n > 1]
        assert all(g == w for g, w in strides), f"{seen}, eager {wanted}\n{text}"


def _same_values(got: torch.Tensor, want: torch.Tensor, text: str) -> None:
    tolerance = TOLERANCE.get(want.dtype, 0.0)
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda m: f"{m}\n{text}")
