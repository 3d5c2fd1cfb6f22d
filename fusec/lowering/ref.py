"""A lowered tensor is a `Ref`: a view of a buffer, given by an index expression. No memory moves.

Enters: a buffer and the coordinates of a view. Leaves: the element offset to read.

    x      : bf16[2, 8]   index 8*c0 + c1
    x.t()  : bf16[8, 2]   index c0 + 8*c1
    x[:, 3]: bf16[2]      index 8*c0 + 3

The index is written over coordinate symbols c0, c1, ... whose ranges are the view's shape, so that
two views compare, hash and print like any other value. While it stays affine with nonnegative strides the
view is also a `TensorView`, which a library call can receive and a program can return.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fusec.ir.index import (
    Expr,
    IndexLike,
    as_expr,
    as_int,
    axis_symbol,
    delinearize,
    is_nonnegative,
    linearize,
    substitute,
)
from fusec.ir.sizes import affine
from fusec.ir.types import TensorView

Shape = tuple[IndexLike, ...]
CoordinateMap = Callable[[tuple[Expr, ...]], Sequence[IndexLike]]


def coordinates(shape: Sequence[IndexLike]) -> tuple[Expr, ...]:
    """The coordinate symbols of a view of this shape: c0 in [0, shape[0]), and so on."""
    return tuple(axis_symbol(f"c{i}", extent) for i, extent in enumerate(shape))


def contiguous_strides(shape: Sequence[IndexLike]) -> Shape:
    """Row-major strides, as PyTorch counts them: an extent of 0 counts as 1."""
    strides: list[IndexLike] = []
    step: IndexLike = 1
    for extent in reversed(shape):
        strides.append(step)
        step = step * (1 if extent == 0 else extent)
    return tuple(reversed(strides))


@dataclass(frozen=True, slots=True)
class Ref:
    """A view of a buffer.

    buffer:  its name.             dtype: of the values; a dtype other than `stored` means a bitcast of each element.
    shape:   of the view.          index: element offset in the buffer over c0, c1, ...
    stored:  dtype of the buffer.  device: where the buffer lives, "cuda:0" or "cpu".
    """

    buffer: str
    dtype: torch.dtype
    shape: Shape
    index: Expr
    stored: torch.dtype
    device: str

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    def at(self, where: Sequence[IndexLike]) -> Expr:
        """The offset of the element at these coordinates."""
        assert len(where) == len(self.shape), f"{len(where)} coordinates for a view of shape {self.shape}"
        return substitute(self.index, {f"c{i}": c for i, c in enumerate(where)})

    def view(self, shape: Sequence[IndexLike], mapping: CoordinateMap) -> Ref:
        """A view of this view: mapping takes coordinates in `shape` to coordinates here.

        ref.view((8, 2), lambda c: (c[1], c[0]))   # transpose of a (2, 8)
        """
        return self.reindexed(shape, self.at(mapping(coordinates(shape))))

    def reindexed(self, shape: Sequence[IndexLike], index: Expr) -> Ref:
        """The same buffer under another shape and index."""
        return Ref(self.buffer, self.dtype, tuple(shape), index, self.stored, self.device)

    @classmethod
    def of_view(cls, view: TensorView, dtype: torch.dtype, device: str) -> Ref:
        """The Ref of a strided view."""
        index = linearize(coordinates(view.shape), view.strides, view.offset)
        return cls(view.buffer, dtype, view.shape, index, dtype, device)

    def reshape(self, shape: Sequence[IndexLike]) -> Ref:
        """Row-major reshape of any view: linearize over the new shape, delinearize over the old."""
        if tuple(shape) == self.shape:
            return self
        strides = contiguous_strides(shape)
        return self.view(shape, lambda c: delinearize(linearize(c, strides), self.shape))

    def expand(self, shape: Sequence[IndexLike]) -> Ref:
        """Broadcast to `shape`: leading dimensions are added, extents of 1 repeated."""
        if tuple(shape) == self.shape:
            return self
        lead = len(shape) - self.ndim
        return self.view(shape, lambda c: [0 if n == 1 else c[lead + i] for i, n in enumerate(self.shape)])

    def permute(self, dims: Sequence[int]) -> Ref:
        inverse = {d % self.ndim: i for i, d in enumerate(dims)}
        return self.view([self.shape[d] for d in dims], lambda c: [c[inverse[i]] for i in range(self.ndim)])

    def strided(self, strides_of_ones: Sequence[IndexLike] | None = None) -> tuple[Shape, IndexLike] | None:
        """(strides, offset) when the index is affine with nonnegative strides, else None.

        strides_of_ones: the strides to report for dimensions of extent 0 or 1, where any stride is true.
        """
        found = affine(self.index)
        if found is None:
            return None
        by_name = {symbol.name: coefficient for symbol, coefficient in found[0].items()}
        free = contiguous_strides(self.shape) if strides_of_ones is None else strides_of_ones
        strides: list[IndexLike] = []
        for i, extent in enumerate(self.shape):
            coefficient = by_name.pop(f"c{i}", 0)
            strides.append(free[i] if extent in (0, 1) else coefficient)
        nonnegative = all(is_nonnegative(s) for s in strides)
        return (tuple(strides), found[1]) if nonnegative and not by_name else None

    def tensor_view(self, strides_of_ones: Sequence[IndexLike] | None = None) -> TensorView | None:
        """This view as a TensorView, or None when it is not a strided view of the stored dtype."""
        found = self.strided(strides_of_ones)
        if found is None or self.dtype is not self.stored:
            return None
        return TensorView(self.buffer, self.shape, found[0], found[1])

    @classmethod
    def whole(
        cls, buffer: str, dtype: torch.dtype, shape: Sequence[IndexLike], strides: Sequence[IndexLike], device: str
    ) -> Ref:
        """The view that is the whole buffer."""
        return cls(buffer, dtype, tuple(shape), linearize(coordinates(shape), strides), dtype, device)


def is_int(value: IndexLike) -> bool:
    return as_int(as_expr(value)) is not None
