"""Example inputs for a GPU that is not here: same shapes, strides and dtypes, no memory.

Enters: a function or module and its arguments. Leaves: the same on fake `cuda` tensors, and the mode they live in.

    module, (x,), mode = on_fake_cuda(model, (torch.randn(4, 8),))   # x: FakeTensor(device="cuda:0", size=(4, 8))

Without a CUDA build no fake CUDA tensor may require a gradient (PyTorch ends the process), so none does.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

# torch._subclasses.fake_tensor, torch.utils._pytree: checked with torch 2.11.0 and 2.13.0.

__all__ = ["on_fake_cuda"]


def on_fake_cuda(fn: Any, arguments: Any) -> tuple[Any, Any, FakeTensorMode]:
    """(fn, arguments, mode): parameters, buffers and arguments replaced by fake tensors on `cuda`."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        with mode, torch.no_grad():
            made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
        return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made

    module = fn if isinstance(fn, nn.Module) else getattr(fn, "__self__", None)
    if isinstance(module, nn.Module):
        memo: dict[int, Any] = {id(t): fake(t) for t in (*module.parameters(), *module.buffers())}
        moved = copy.deepcopy(module, memo)
        fn = moved if fn is module else getattr(moved, fn.__name__)
    return fn, tree_map_only(torch.Tensor, fake, arguments), mode
