"""The memory a kernel sees in the interpreter: one segment of a synthetic address space per pointer parameter.

Enters: one CPU tensor per pointer parameter. Leaves: NumPy loads and stores at the addresses the kernel computes.

    segment 1: x    0x0000_0100_0000_0000 ..  + 4 * 4096 bytes
    segment 2: out  0x0000_0200_0000_0000 ..

Parameters are 2**40 bytes apart, so an address names the nearest one even when two share storage or an index is
negative; an access outside a tensor is an error that names it instead of a crash, and a meter counts per parameter
exactly.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from fusec.errors import VerificationError

_SEGMENT_BITS = 40

_INTEGER_VIEW = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NO_NUMPY = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


def base_address(position: int) -> int:
    """Address of the first element of the pointer parameter at `position`."""
    return (position + 1) << _SEGMENT_BITS


class Segment:
    """One tensor as a flat array, from its first element to its last in memory."""

    def __init__(self, name: str, tensor: torch.Tensor, position: int) -> None:
        self.name = name
        self.base = np.uint64(base_address(position))
        self.itemsize = tensor.element_size()
        self.shift = np.int64(self.itemsize.bit_length() - 1)
        self.count = span(tensor)
        self.flat = flat_array(tensor, self.count)
        self._views: dict[Any, Any] = {}
        self.read: Any = None  # bool per element, once metered
        self.written: Any = None
        self.requested = 0

    def array(self, dtype: Any) -> Any:
        """The memory as elements of a dtype of the same size (bool memory is loaded as int8)."""
        found = self._views.get(dtype)
        if found is None:
            found = self._views[dtype] = self.flat.view(dtype)
        return found

    def meter(self) -> None:
        self.read = np.zeros(self.count, dtype=bool)
        self.written = np.zeros(self.count, dtype=bool)


class Memory:
    """All segments of one launch."""

    def __init__(self, kernel: str, tensors: Iterable[tuple[str, torch.Tensor]], metered: bool) -> None:
        self.kernel = kernel
        self.metered = metered
        self.segments = [Segment(name, tensor, i) for i, (name, tensor) in enumerate(tensors)]
        if metered:
            for segment in self.segments:
                segment.meter()

    def load(self, pointers: Any, mask: Any, other: Any, dtype: Any) -> Any:
        """Elements at `pointers`; `other` (or zero) where `mask` is False. mask None: every lane is active."""
        if mask is None or mask.all():
            segment, index = self._locate(pointers, "load")
            if self.metered:
                segment.read[index] = True
                segment.requested += index.size * segment.itemsize
            return segment.array(dtype).take(index)
        shape = np.broadcast_shapes(pointers.shape, mask.shape)
        result = np.zeros(shape, dtype=dtype)
        if other is not None:
            result[...] = other
        mask = np.broadcast_to(mask, shape)
        active = np.broadcast_to(pointers, shape)[mask]
        if active.size:
            segment, index = self._locate(active, "load")
            if self.metered:
                segment.read[index] = True
                segment.requested += index.size * segment.itemsize
            result[mask] = segment.array(dtype).take(index)
        return result

    def store(self, pointers: Any, value: Any, mask: Any) -> None:
        """Write `value` where `mask` is True; the last lane wins where two lanes write one element."""
        segment, index, value = self._active(pointers, value, mask, "store")
        if segment is not None:
            segment.array(value.dtype)[index] = value

    def atomic(self, pointers: Any, value: Any, mask: Any, combine: Any) -> Any:
        """Read-modify-write of every active lane, in lane order; the old values (zero where masked)."""
        old = self.load(pointers, mask, None, value.dtype)
        segment, index, value = self._active(pointers, value, mask, "atomic")
        if segment is not None:
            memory = segment.array(value.dtype)
            if combine is None:
                memory[index] = value
            else:
                combine.at(memory, index, value)
        return old

    def _active(self, pointers: Any, value: Any, mask: Any, verb: str) -> tuple[Segment | None, Any, Any]:
        value = np.broadcast_to(value, pointers.shape)
        if mask is not None and not mask.all():
            mask = np.broadcast_to(mask, pointers.shape)
            pointers, value = pointers[mask], value[mask]
            if not pointers.size:
                return None, None, value
        segment, index = self._locate(pointers, verb)
        if self.metered:
            segment.written[index] = True
            segment.requested += index.size * segment.itemsize
        return segment, index, value

    def _locate(self, pointers: Any, verb: str) -> tuple[Segment, Any]:
        position = ((int(pointers.flat[0]) + (1 << (_SEGMENT_BITS - 1))) >> _SEGMENT_BITS) - 1
        if not 0 <= position < len(self.segments):
            raise VerificationError(f"kernel {self.kernel}: {verb} at an address that belongs to no parameter")
        segment = self.segments[position]
        index = (pointers - segment.base).view(np.int64)
        index >>= segment.shift
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= segment.count:
            worst = low if low < 0 else high
            raise VerificationError(
                f"kernel {self.kernel}: {verb} of {segment.name}[{worst}], which has {segment.count} elements"
            )
        return segment, index


def span(tensor: torch.Tensor) -> int:
    """Elements from the first to the last in memory, both included; 0 for an empty tensor."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def flat_array(tensor: torch.Tensor, count: int) -> Any:
    """A one-dimensional NumPy array over the tensor's memory; 16-bit and 8-bit floats NumPy lacks come as integers."""
    flat = tensor.detach().as_strided((count,), (1,))
    if flat.dtype in _NO_NUMPY:
        flat = flat.view(_INTEGER_VIEW[flat.element_size()])
    return flat.numpy()
