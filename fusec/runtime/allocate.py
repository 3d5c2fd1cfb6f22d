"""New memory for a call, by device.

Enters: the devices of a program's buffers. Leaves: for each what makes an uninitialised tensor there.

    allocators(["cpu", "cuda:0"])["cuda:0"]((64, 32), (32, 1), torch.bfloat16)

`_empty_strided_cpu` and `_empty_strided_cuda` (private, in torch._C._dynamo.guards; checked with PyTorch 2.11 and 2.13)
skip the dispatcher: a call allocates every output and temporary, and the look-up costs more than the allocation. The
second allocates on the current device.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import Any

import torch

__all__ = ["Allocate", "allocators"]

Allocate = Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], torch.Tensor]

_guards: Any = torch._C._dynamo.guards


def allocators(devices: Iterable[str], direct: Container[str] = ()) -> dict[str, Allocate]:
    """By device, a function of shape, strides and dtype.

    direct: where it passes by the dispatcher, and so by FakeTensorMode and its kin: on the CPU, and on the CUDA device
    that is known to be the current one.
    """
    return {device: _allocator(device, device in direct) for device in devices}


def _allocator(device: str, direct: bool) -> Allocate:
    name = f"_empty_strided_{torch.device(device).type}"
    found: Allocate | None = getattr(_guards, name, None) if direct else None
    return _through_dispatcher(torch.device(device)) if found is None else found


def _through_dispatcher(device: torch.device) -> Allocate:
    def allocate(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty_strided(shape, strides, dtype=dtype, device=device)

    return allocate
