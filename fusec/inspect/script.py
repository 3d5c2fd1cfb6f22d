"""What a kernel script needs to run on CPU tensors: the kernel's text in Triton's interpreter.

Enters: a `@triton.jit` function of a script and its arguments. Leaves: the tensors it stores to.

    interpret(scale_rows, (3,), {"x_ptr": x, "out_ptr": out}, {"XBLOCK": 2, "RBLOCK": 32})
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

from fusec.kernels import device
from fusec.kernels.interpreted import device as interpreted_device
from fusec.runtime.interpret import interpreted, run_grid

__all__ = ["interpret"]


def interpret(
    kernel: Any, grid: tuple[int, ...], tensors: Mapping[str, torch.Tensor], blocks: Mapping[str, int]
) -> None:
    """Run every program instance of a kernel, one after the other."""
    run_grid(kernel.__name__, _interpreted(kernel.fn), tensors, blocks, grid)


@cache
def _interpreted(function: types.FunctionType) -> Callable[..., Any]:
    """The function with device helpers as whole-array operations: the interpreter has no libdevice."""
    names = {n: interpreted_device if v is device else v for n, v in function.__globals__.items()}
    return interpreted(types.FunctionType(function.__code__, names, function.__name__, function.__defaults__))
