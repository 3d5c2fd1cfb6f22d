"""Range checks, index tensors as coordinates, and where the dimensions of an advanced index stand.

x[i, :, j] of f32[4, 6, 5], i and j of shape [3]

%0:i64 = load i[p0];  %1:bool = 0 <= %0 < 4;  ...    coordinates (%0, p1, %2), mask %1 & %3
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fusec.ir.index import Expr, IndexLike, is_nonnegative, less_than
from fusec.lowering.builder import NestBuilder, Value
from fusec.lowering.ref import Ref
from fusec.lowering.registry import LibraryCall, NotLowered

_INDEX_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8)


def both(a: Value | None, b: Value | None) -> Value | None:
    """The conjunction of two conditions; None is one that always holds."""
    return b if a is None else a if b is None else a & b


def inside(nest: NestBuilder, where: Expr, extent: IndexLike) -> Value | None:
    """Whether 0 <= where < extent; None when that is proved."""
    found = None if is_nonnegative(where) else nest.index(where) >= 0
    return both(found, below(nest, where, extent))


def below(nest: NestBuilder, where: IndexLike, end: IndexLike) -> Value | None:
    """Whether where < end; None when that is proved."""
    return None if less_than(where, end) else nest.index(where) < nest.index(end)


class Checked:
    """Index values used as coordinates, and the mask that holds where all of them are in range.

    An index out of range is an error; the mask keeps the access itself within the tensor.
    """

    def __init__(self, nest: NestBuilder) -> None:
        self.nest = nest
        self.mask: Value | None = None

    def coordinate(self, value: Value, extent: IndexLike, *, wrap: bool = False, safe: bool = False) -> Expr:
        """An index value as a coordinate in [0, extent). wrap: -1 is the last. safe: known to be in range."""
        return self.nest.as_index(self.value(value, extent, wrap=wrap, safe=safe), extent)

    def value(self, value: Value, extent: IndexLike, *, wrap: bool = False, safe: bool = False) -> Value:
        """The same, as a value."""
        nest = self.nest
        value, size = nest.cast(value, torch.int64), nest.index(extent)
        if wrap:
            value = nest.where(value < 0, value + size, value)
        inside = (value >= 0) & (value < size)
        self.require(inside)
        return value if safe else nest.checked(inside, value)

    def require(self, condition: Value) -> None:
        """One more condition of the mask."""
        self.mask = both(self.mask, condition)


def require_integers(*indices: Ref) -> None:
    """NotLowered unless every index is a tensor of integers."""
    for index in indices:
        if index.dtype in (torch.bool, torch.uint8):
            raise LibraryCall("how many elements a mask picks depends on values")
        if index.dtype not in _INDEX_DTYPES:
            raise NotLowered(f"an index of dtype {str(index.dtype).removeprefix('torch.')}")


def at_least_1d(x: Ref) -> Ref:
    """A scalar as a view of shape (1,)."""
    return x.reshape((1,)) if x.ndim == 0 else x


class IndexPlan:
    """Which result dimensions an advanced index makes: the broadcast ones, and those of x that are kept.

    x[i, :, j] with i, j of shape B: the broadcast dimensions come first, unless all indices are adjacent; then
    they stand where the indices stood.
    """

    def __init__(self, x: Ref, indices: Sequence[Ref | None]) -> None:
        self.x = x
        self.indexed = {d: index for d, index in enumerate(indices) if index is not None}
        if not self.indexed:
            raise NotLowered("an index without index tensors")
        require_integers(*self.indexed.values())
        self.rank = max(index.ndim for index in self.indexed.values())
        self.kept = [d for d in range(x.ndim) if d not in self.indexed]
        self.lines = [x.shape[d] for d in self.kept]
        dims = sorted(self.indexed)
        adjacent = dims == list(range(dims[0], dims[-1] + 1))
        self.start = dims[0] if adjacent else 0

    def coordinates(self, checked: Checked, *, clamp: bool = False, safe: bool = False) -> list[Expr]:
        """Where in x the element at the nest's point lies. clamp: indices are brought into range; safe: they are."""
        nest, x = checked.nest, self.x
        broadcast = nest.p[self.start : self.start + self.rank]
        rest = (*nest.p[: self.start], *nest.p[self.start + self.rank :])
        where = dict(zip(self.kept, rest, strict=True))
        for d, index in self.indexed.items():
            value = nest.cast(nest.load(index, _broadcast_at(index, broadcast)), torch.int64)
            if clamp:
                size = nest.index(x.shape[d])
                value = nest.op("maximum", nest.op("minimum", value, size - 1), nest.op("neg", size))
            where[d] = checked.coordinate(value, x.shape[d], wrap=True, safe=clamp or safe)
        return [where[d] for d in range(x.ndim)]

    @property
    def shape(self) -> tuple[IndexLike, ...]:
        """The shape of x[indices]."""
        broadcast: list[IndexLike] = [1] * self.rank
        for index in self.indexed.values():
            for k, n in enumerate(index.shape, start=self.rank - index.ndim):
                broadcast[k] = n if broadcast[k] == 1 else broadcast[k]
        return (*self.lines[: self.start], *broadcast, *self.lines[self.start :])


def _broadcast_at(index: Ref, where: Sequence[Expr]) -> tuple[IndexLike, ...]:
    """Coordinates of an index tensor inside the shape all indices broadcast to."""
    tail = where[len(where) - index.ndim :]
    return tuple(0 if n == 1 else c for n, c in zip(index.shape, tail, strict=True))
