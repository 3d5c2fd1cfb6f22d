"""The differential harness: a function in, its lowered Program evaluated on CPU against eager PyTorch.

differential(lambda x: torch.relu(x) + 1, randn(4, 17))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from fusec.capture.graph import CapturedGraph
from fusec.config import Config
from fusec.ir.evaluate import evaluate_program
from fusec.ir.types import Extern, Program
from fusec.ir.verify import verify_program
from fusec.lowering import lower

STRICT = Config().updated({"strict": True})

# Rounding once from float32, as kernels do, against eager's own; one unit in the last place and a little.
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-5, torch.float64: 1e-12}


def capture(function: Callable[..., Any], *inputs: Any) -> CapturedGraph:
    """The aten graph of a function, with fake tensors as metadata and nothing decomposed."""
    graph_module = make_fx(lambda *args: function(*args), tracing_mode="fake")(*inputs)
    return CapturedGraph(graph_module, inputs, tuple(f"arg{i}" for i in range(len(inputs))), "inference")


def lowered(function: Callable[..., Any], *inputs: Any) -> Program:
    program = lower(capture(function, *inputs), STRICT)
    verify_program(program)
    return program


def externs(program: Program) -> list[Extern]:
    return [n for n in program.nodes if isinstance(n, Extern)]


def assert_same(actual: torch.Tensor, expected: torch.Tensor, scale: float = 1.0) -> None:
    """Equal metadata; equal values, to rounding for floats. -0.0 and 0.0 are equal, NaN equals NaN."""
    assert actual.dtype is expected.dtype
    assert actual.shape == expected.shape
    free = [i for i, n in enumerate(expected.shape) if n != 1] if expected.numel() else []
    assert [actual.stride(i) for i in free] == [expected.stride(i) for i in free]
    tolerance = TOLERANCE.get(expected.dtype, 0.0) * scale
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.fixture
def differential() -> Callable[..., Program]:
    """differential(f, *inputs, scale=1, library=False): lowered == eager; no library calls unless allowed."""

    def check(function: Callable[..., Any], *inputs: Any, scale: float = 1.0, library: bool = False) -> Program:
        program = lowered(function, *inputs)
        assert library or not externs(program), (
            f"library calls: {[(str(e.target), e.reason) for e in externs(program)]}"
        )
        expected = pytree.tree_leaves(function(*pytree.tree_map_only(torch.Tensor, _copied, inputs)))
        actual = evaluate_program(program, list(inputs))
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert_same(a, e, scale) if isinstance(e, torch.Tensor) else pytest.fail(f"not a tensor: {e}")
        return program

    return check


def _copied(x: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x) if 0 not in x.stride() else x.clone()
