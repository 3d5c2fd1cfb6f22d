"""Max pooling whose windows say where inside themselves the maximum is: what a training step saves of it.

    y, at = aten.max_pool2d_with_indices(x, [3, 3], [2, 2], [1, 1])      at: i64, positions in a plane
    y, at = fusec.max_pool2d_with_offsets(x, [3, 3], [2, 2], [1, 1])     at: i8, positions in a window

An offset is `down * pitch + right`, in elements of the input from the window's first place. The pitch exceeds the
distance to the right of every element from the first place of every window that may hold it, so backward compares the
offset with one number an element and a window: no division, and no two places share an offset. A dilated window that
steps over the whole input has the offset of its first tap past the padding, which no element has: it sends nothing.
Nor does a window with the offset -1, where elements compare themselves with offsets (`Offsets.is_gathered`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["NOWHERE", "POOL", "POOL_BACKWARD", "UNROLLED", "Offsets"]

aten = torch.ops.aten
Pair = tuple[int, int]

UNROLLED = 27  # elements of the largest window that kernels unroll, 3 x 3 x 3; maxima of larger ones are library calls
NOWHERE = -1  # the offset of a window that sends no gradient: no element has it


@dataclass(frozen=True, slots=True)
class Offsets:
    """Positions inside the windows of one pooling; each field a pair, rows and columns."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    @classmethod
    def of(
        cls, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
    ) -> Offsets:
        """An empty stride is the kernel."""
        pairs = [(s[0], s[-1]) for s in (kernel, stride or kernel, padding, dilation)]
        return cls(*pairs)

    @property
    def is_unrolled(self) -> bool:
        return self.kernel[0] * self.kernel[1] <= UNROLLED

    @property
    def _reach(self) -> Pair:
        """How far the last element of a window lies from its first place."""
        return (self.kernel[0] - 1) * self.dilation[0], (self.kernel[1] - 1) * self.dilation[1]

    @property
    def is_gathered(self) -> bool:
        """Whether few windows may hold an element: each element compares its offset with theirs."""
        down, right = (reach // step + 1 for reach, step in zip(self._reach, self.stride, strict=True))
        return down * right <= UNROLLED

    @property
    def pitch(self) -> int:
        """reach // stride + 1 windows in a row may hold an element: the first place of the furthest is closer."""
        return (self._reach[1] // self.stride[1] + 1) * self.stride[1]

    @property
    def dtype(self) -> torch.dtype | None:
        """The smallest one that holds every offset; None when 16 bits do not."""
        largest = self._reach[0] * self.pitch + self._reach[1]
        return torch.int8 if largest < 1 << 7 else torch.int16 if largest < 1 << 15 else None

    def _corner(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column of the input where the window of each result begins."""
        rows, columns = (torch.arange(n, device=like.device) for n in like.shape[-2:])
        return (
            (rows * self.stride[0] - self.padding[0]).unsqueeze(-1),
            columns * self.stride[1] - self.padding[1],
        )

    def offset(self, index: Tensor, width: int) -> Tensor:
        """Offsets from positions in planes of this width."""
        row, column = self._corner(index)
        assert self.dtype is not None, f"{self} has no dtype"
        return ((index // width - row) * self.pitch + index % width - column).to(self.dtype)

    def index(self, offset: Tensor, width: int) -> Tensor:
        """Positions in planes of this width from offsets."""
        row, column = self._corner(offset)
        return (row + offset // self.pitch) * width + column + offset % self.pitch


# -- the ops --------------------------------------------------------------------------------------

_LIBRARY = torch.library.Library("fusec", "FRAGMENT")
_LIBRARY.define(
    "max_pool2d_with_offsets(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, "
    "int[2] dilation=1, bool ceil_mode=False) -> (Tensor, Tensor)"
)
_LIBRARY.define(
    "max_pool2d_with_offsets_backward(Tensor grad, Tensor offsets, int[] shape, int[] strides, int[2] kernel_size, "
    "int[2] stride, int[2] padding, int[2] dilation, bool ceil_mode) -> Tensor"
)


def _pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    values, index = aten.max_pool2d_with_indices(x, kernel, stride, padding, dilation, ceil_mode)
    offset = Offsets.of(kernel, stride, padding, dilation).offset(index, x.shape[-1])
    return values, torch.empty_like(index, dtype=offset.dtype).copy_(offset)


def _gradient(
    grad: Tensor, offsets: Tensor, shape: Sequence[int], strides: Sequence[int], *geometry: Sequence[int] | bool
) -> Tensor:
    """The gradient of an input of this shape, with these strides."""
    *window, _ = geometry
    nowhere = offsets == NOWHERE
    index = Offsets.of(*window).index(offsets, shape[-1]).masked_fill(nowhere, 0)  # type: ignore[arg-type]
    grad = grad.masked_fill(nowhere, 0)
    x = grad.new_empty_strided(shape, strides)  # only its shape is read
    return x.copy_(aten.max_pool2d_with_indices_backward(grad, x, *geometry, index))


def _fake_gradient(grad: Tensor, offsets: Tensor, shape: Sequence[int], strides: Sequence[int], *_: object) -> Tensor:
    return grad.new_empty_strided(shape, strides)


_LIBRARY.impl("max_pool2d_with_offsets", _pool, "CompositeExplicitAutograd")
_LIBRARY.impl("max_pool2d_with_offsets_backward", _gradient, "CompositeExplicitAutograd")
torch.library.register_fake("fusec::max_pool2d_with_offsets", _pool, lib=_LIBRARY)
torch.library.register_fake("fusec::max_pool2d_with_offsets_backward", _fake_gradient, lib=_LIBRARY)

POOL = torch.ops.fusec.max_pool2d_with_offsets.default
POOL_BACKWARD = torch.ops.fusec.max_pool2d_with_offsets_backward.default
