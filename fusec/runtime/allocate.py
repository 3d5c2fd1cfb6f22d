"""New memory for a call, by device.

Enters: the devices of a program's buffers. Leaves: for each what makes an uninitialised tensor there.

    allocators(["cpu", "cuda:0"])["cuda:0"]((64, 32), (32, 1), torch.bfloat16)

`_empty_strided_cpu` and `_empty_strided_cuda` (private, in torch._C._dynamo.guards; checked with PyTorch 2.11 and 2.13)
skip the dispatcher: a call allocates every output and temporary, and the look-up costs more than the allocation. The
second allocates on the current device, and so stands in where that is known to be the one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

__all__ = ["Allocate", "allocators"]

Allocate = Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], torch.Tensor]

_guards: Any = torch._C._dynamo.guards


def allocators(devices: Iterable[str], current: str | None = None) -> dict[str, Allocate]:
    """By device, a function of shape, strides and dtype. current: the CUDA device known to be the current one."""
    return {device: _allocator(device, device == current) for device in devices}


def _allocator(device: str, is_current: bool) -> Allocate:
    name = "_empty_strided_cpu" if device == "cpu" else "_empty_strided_cuda" if is_current else ""
    found: Allocate | None = getattr(_guards, name, None) if name else None
    return _through_dispatcher(torch.device(device)) if found is None else found


def _through_dispatcher(device: torch.device) -> Allocate:
    def allocate(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty_strided(shape, strides, dtype=dtype, device=device)

    return allocate
