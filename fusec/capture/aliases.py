"""Inputs that share memory: a graph that writes its inputs is right for one way of overlapping only.

Enters: the tensors of a call. Leaves: which of them overlap, and where.

    f(base[:6], base[4:])   ->   ((0, 1, 16),)      # float32: the second begins 16 bytes after the first
    f(a, b)                 ->   ()

AOTAutograd compiles for the overlap it traced and does not guard it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import Parameter

__all__ = ["GuardedAliases", "overlaps", "share_memory"]

Overlaps = tuple[tuple[int, int, int], ...]


def overlaps(values: Sequence[Any]) -> Overlaps:
    """(i, j, bytes from the start of i to that of j) for neighbours in memory that overlap, by position."""
    found: list[tuple[int, int, int]] = []
    for group in _by_storage(values):
        if len(group) > 1:
            found += _neighbours(values, group)
    return tuple(found)


def share_memory(values: Sequence[Any]) -> bool:
    """Whether two of the values have one storage; asks no sizes, which may be symbolic."""
    return any(len(group) > 1 for group in _by_storage(values))


def _by_storage(values: Sequence[Any]) -> Collection[list[int]]:
    shared: dict[int, list[int]] = {}
    for position, value in enumerate(values):
        if _may_share(value):
            shared.setdefault(value.untyped_storage()._cdata, []).append(position)
    return shared.values()


def _may_share(value: Any) -> bool:
    """Parameters own their memory; a subclass may have none. Asked of every argument of a call: by type first."""
    plain = type(value) is Tensor or (type(value) is FakeTensor and not isinstance(value, Parameter))
    return plain and value.layout is torch.strided


def _neighbours(values: Sequence[Any], group: Sequence[int]) -> list[tuple[int, int, int]]:
    spans = sorted((values[i].storage_offset() * values[i].element_size(), i) for i in group if values[i].numel())
    found: list[tuple[int, int, int]] = []
    reach, last, start = -1, -1, -1  # of the tensor that extends furthest so far
    for begin, position in spans:
        if begin < reach:
            found.append((last, position, begin - start))
        end = begin + _extent(values[position])
        if end > reach:
            reach, last, start = end, position, begin
    return found


def _extent(x: Tensor) -> int:
    """Bytes from the first element to the last, both included."""
    last = sum((int(n) - 1) * int(s) for n, s in zip(x.shape, x.stride(), strict=True))
    return (last + 1) * x.element_size()


class GuardedAliases:
    """A compiled function that runs `eager` where its arguments overlap otherwise than in its first call.

    on_eager: told the first time that happens.
    """

    def __init__(self, compiled: Callable[..., Any], eager: Callable[..., Any], on_eager: Callable[[], None]) -> None:
        self.compiled, self.eager, self.on_eager = compiled, eager, on_eager
        self.traced: Overlaps | None = None
        self.told = False

    def __call__(self, *args: Any) -> Any:
        found = overlaps(args)
        if self.traced is None:
            self.traced = found
        if found == self.traced:
            return self.compiled(*args)
        if not self.told:
            self.told = True
            self.on_eager()
        return self.eager(*args)
