"""View ops: no nest, no memory, only a new index over the same buffer.

    aten.permute(x: f32[4, 6], [1, 0])   x[6*c0 + c1]  ->  f32[6, 4]   x[c0 + 6*c1]
    aten.view(x: f32[4, 6], [24])        x[6*c0 + c1]  ->  f32[24]     x[c0]

Ops that eager answers with a copy, but that only move elements (flip, roll, repeat, pixel_shuffle), are views here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fusec.errors import LoweringError
from fusec.ir.index import (
    Expr,
    IndexLike,
    SymbolicSize,
    as_expr,
    floordiv,
    is_nonnegative,
    linearize,
    mod,
    product,
)
from fusec.lowering.context import Context, sizes, static, strides_of
from fusec.lowering.ref import Ref, coordinates
from fusec.lowering.registry import LibraryCall, NotLowered, lowering
from fusec.lowering.symbols import extent_of, new_size

aten, prims = torch.ops.aten, torch.ops.prims
Coords = tuple[Expr, ...]


def along(dim: int, change: Callable[[Expr], IndexLike]) -> Callable[[Coords], list[IndexLike]]:
    """A coordinate map that changes one coordinate."""
    return lambda c: [change(v) if i == dim else v for i, v in enumerate(c)]


def resized(shape: Sequence[IndexLike], dim: int, extent: IndexLike) -> tuple[IndexLike, ...]:
    return tuple(extent if i == dim else n for i, n in enumerate(shape))


# -- shape ----------------------------------------------------------------------------------------


@lowering(
    aten.view.default, aten.reshape, aten._unsafe_view, aten._reshape_alias, aten.view_copy.default, prims.reshape
)
def view(ctx: Context, x: Ref, shape: Sequence[int], *rest: Any) -> Ref:
    return x.reshape(sizes(ctx.meta.shape))


@lowering(aten.flatten.using_ints, aten.unflatten.int, aten.view_as, aten.reshape_as)
def flatten(ctx: Context, x: Ref, *rest: Any) -> Ref:
    return x.reshape(sizes(ctx.meta.shape))


@lowering(aten.expand, aten.expand_copy, aten.expand_as, aten.broadcast_to)
def expand(ctx: Context, x: Ref, *rest: Any, implicit: bool = False) -> Ref:
    return x.expand(sizes(ctx.meta.shape))


@lowering(prims.broadcast_in_dim)
def broadcast_in_dim(ctx: Context, x: Ref, shape: Sequence[int], dims: Sequence[int]) -> Ref:
    return x.view(shape, lambda c: [0 if n == 1 else c[d] for n, d in zip(x.shape, dims, strict=True)])


@lowering(aten.squeeze, aten.squeeze_copy, prims.squeeze)
def squeeze(ctx: Context, x: Ref, dims: int | Sequence[int] | None = None) -> Ref:
    wanted = range(x.ndim) if dims is None else (dims,) if isinstance(dims, int) else dims
    gone = {d % x.ndim for d in wanted if x.ndim and x.shape[d] == 1}
    kept = [d for d in range(x.ndim) if d not in gone]
    return x.view([x.shape[d] for d in kept], lambda c: [c[kept.index(d)] if d in kept else 0 for d in range(x.ndim)])


@lowering(aten.unsqueeze, aten.unsqueeze_copy)
def unsqueeze(ctx: Context, x: Ref, dim: int) -> Ref:
    return unsqueezed(x, dim)


def unsqueezed(x: Ref, dim: int) -> Ref:
    dim %= x.ndim + 1
    return x.view((*x.shape[:dim], 1, *x.shape[dim:]), lambda c: [*c[:dim], *c[dim + 1 :]])


@lowering(aten.alias, aten.alias_copy, aten.detach, aten.detach_copy, aten.lift_fresh_copy, aten.lift_fresh, aten.lift)
def alias(ctx: Context, x: Ref) -> Ref:
    if x.device != ctx.device and x.ndim > 0:
        raise LibraryCall(f"a tensor on {x.device}, while the kernels run on {ctx.device}")
    return x


@lowering(prims.view_of)
def view_of(ctx: Context, x: Ref) -> Ref:
    return x


# -- order ----------------------------------------------------------------------------------------


@lowering(aten.permute, aten.permute_copy, prims.transpose)
def permute(ctx: Context, x: Ref, dims: Sequence[int]) -> Ref:
    return x.permute(dims)


@lowering(aten.transpose.int, aten.transpose_copy.int, aten.swapaxes, aten.swapdims)
def transpose(ctx: Context, x: Ref, a: int, b: int) -> Ref:
    if x.ndim == 0:
        return x
    dims = list(range(x.ndim))
    dims[a], dims[b] = dims[b], dims[a]
    return x.permute(dims)


@lowering(aten.t, aten.t_copy, aten.numpy_T, aten.mT, aten.adjoint)
def matrix_transpose(ctx: Context, x: Ref) -> Ref:
    return x if x.ndim < 2 else transpose(ctx, x, -2, -1)


@lowering(aten.movedim.int, aten.movedim.intlist, aten.moveaxis)
def movedim(ctx: Context, x: Ref, source: int | Sequence[int], target: int | Sequence[int]) -> Ref:
    sources = [s % x.ndim for s in ((source,) if isinstance(source, int) else source)]
    targets = [t % x.ndim for t in ((target,) if isinstance(target, int) else target)]
    placed = dict(zip(targets, sources, strict=True))
    rest = iter(d for d in range(x.ndim) if d not in sources)
    return x.permute([placed[d] if d in placed else next(rest) for d in range(x.ndim)])


@lowering(aten.flip, prims.rev)
def flip(ctx: Context, x: Ref, dims: Sequence[int]) -> Ref:
    flipped = {d % x.ndim for d in dims} if x.ndim else set()
    return x.view(x.shape, lambda c: [x.shape[i] - 1 - v if i in flipped else v for i, v in enumerate(c)])


@lowering(aten.roll)
def roll(ctx: Context, x: Ref, shifts: int | Sequence[int], dims: int | Sequence[int] = ()) -> Ref:
    amounts = [shifts] if isinstance(shifts, int) else list(shifts)
    axes = [dims] if isinstance(dims, int) else list(dims)
    if not axes:
        return rolled(x.reshape([product(x.shape)]), amounts[0], 0).reshape(x.shape)
    for amount, dim in zip(amounts, axes, strict=True):
        x = rolled(x, amount, dim % x.ndim)
    return x


def rolled(x: Ref, amount: int, dim: int) -> Ref:
    n = x.shape[dim]
    if n == 0:
        return x
    return x.view(x.shape, along(dim, lambda v: mod(v + mod(-amount, n), n)))


# -- parts ----------------------------------------------------------------------------------------


@lowering(aten.slice.Tensor, aten.slice_copy.Tensor)
def slice_(ctx: Context, x: Ref, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Ref:
    dim %= x.ndim
    first = _first(start, end, step, x.shape[dim])
    length = new_size(ctx.meta.shape[dim], ctx.known_sizes)
    if length is not None:  # the end depends on values
        ends = (x.shape[dim], 0 if start is None else start, end, step)
        ctx.extern(slice_length, ends, outputs=[None], defines=[length])
    return x.view(sizes(ctx.meta.shape), along(dim, lambda v: v * step + first))


def slice_length(extent: int, start: int, end: int, step: int) -> int:
    """How many elements of range(extent) the slice start:end:step takes."""
    return len(range(extent)[start:end:step])


def _first(start: IndexLike | None, end: IndexLike | None, step: int, extent: IndexLike) -> IndexLike:
    """Where a slice begins; with symbolic sizes a start past the end may be returned: the slice is empty then."""
    if all(v is None or isinstance(v, int) for v in (start, end, extent)):
        return slice(start, end, step).indices(static(extent))[0]
    return from_front(0 if start is None else start, extent)


def from_front(index: IndexLike, extent: IndexLike) -> IndexLike:
    """A position counted from the front; a SymbolicSize error where its sign, or its place, is not proved."""
    if is_nonnegative(index):
        return index
    from_end = index + extent
    if is_nonnegative(-as_expr(index) - 1) and is_nonnegative(from_end):
        return from_end
    raise SymbolicSize(f"whether {index} counts from the end depends on sizes")


@lowering(aten.narrow)
def narrow(ctx: Context, x: Ref, dim: int, start: IndexLike, length: IndexLike) -> Ref:
    return narrowed(x, dim % x.ndim, from_front(start, x.shape[dim]), length)


def narrowed(x: Ref, dim: int, start: IndexLike, length: IndexLike) -> Ref:
    """x[..., start : start + length, ...] along dim."""
    return x.view(resized(x.shape, dim, length), along(dim, lambda v: v + start))


@lowering(aten.select.int, aten.select_copy.int)
def select(ctx: Context, x: Ref, dim: int, index: int) -> Ref:
    return selected(x, dim % x.ndim, index)


def selected(x: Ref, dim: int, index: int) -> Ref:
    """x[..., index, ...] at dim."""
    where = from_front(index, x.shape[dim])
    return x.view((*x.shape[:dim], *x.shape[dim + 1 :]), lambda c: [*c[:dim], where, *c[dim:]])


@lowering(aten.split.Tensor, aten.split_copy.Tensor, aten.unsafe_split.Tensor)
def split(ctx: Context, x: Ref, size: int, dim: int = 0) -> tuple[Ref, ...]:
    return _consecutive(ctx, x, dim)


@lowering(aten.split_with_sizes, aten.split_with_sizes_copy, aten.unsafe_split_with_sizes, aten.split.sizes)
def split_with_sizes(ctx: Context, x: Ref, lengths: Sequence[int], dim: int = 0) -> tuple[Ref, ...]:
    return _consecutive(ctx, x, dim)


@lowering(aten.chunk, aten.tensor_split, aten.unsafe_chunk)
def chunk(ctx: Context, x: Ref, parts: Any, dim: int = 0) -> tuple[Ref, ...]:
    return _consecutive(ctx, x, dim)


def _consecutive(ctx: Context, x: Ref, dim: int) -> tuple[Ref, ...]:
    """The pieces of x whose lengths the results' shapes give."""
    dim %= x.ndim
    parts, start = [], 0
    for piece in ctx.meta:
        length = sizes(piece.shape)[dim]
        parts.append(narrowed(x, dim, start, length))
        start += length
    return tuple(parts)


@lowering(aten.unbind.int, aten.unbind_copy.int)
def unbind(ctx: Context, x: Ref, dim: int = 0) -> tuple[Ref, ...]:
    return tuple(selected(x, dim % x.ndim, i) for i in range(len(ctx.meta)))


@lowering(aten.diagonal, aten.diagonal_copy)
def diagonal(ctx: Context, x: Ref, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Ref:
    rows, columns = dim1 % x.ndim, dim2 % x.ndim
    shape = sizes(ctx.meta.shape)

    def where(c: Coords) -> list[IndexLike]:
        rest = iter(c[:-1])
        step = c[-1]
        at = {rows: step - min(offset, 0), columns: step + max(offset, 0)}
        return [at[d] if d in at else next(rest) for d in range(x.ndim)]

    return x.view(shape, where)


@lowering(aten.unfold)
def unfold(ctx: Context, x: Ref, dim: int, size: int, step: int) -> Ref:
    if x.ndim == 0:
        return unsqueezed(x, 0)
    dim %= x.ndim
    shape = sizes(ctx.meta.shape)
    return x.view(shape, lambda c: [v * step + c[-1] if i == dim else v for i, v in enumerate(c[:-1])])


@lowering(aten.as_strided, aten.as_strided_copy, prims.as_strided)
def as_strided(ctx: Context, x: Ref, size: Sequence[int], stride: Sequence[int], offset: int | None = None) -> Ref:
    """Addresses the storage itself; the view must lie in it as the fake tensor does."""
    source = ctx.node.args[0].meta["val"]  # type: ignore[union-attr]
    strides = strides_of(source)
    found = x.strided(strides)
    if found is None or tuple(found[0]) != strides:
        raise NotLowered("as_strided of a view that is not laid out as in eager")
    first = found[1] if offset is None else offset - extent_of(source.storage_offset()) + found[1]
    buffer = ctx.buffers[x.buffer]
    if static(first) < 0 or _last(size, stride, first) > _last(buffer.shape, buffer.strides, 0):
        raise LoweringError("as_strided reaches outside of the memory of its tensor")
    return x.reindexed(tuple(size), linearize(coordinates(size), stride, first))


def _last(shape: Sequence[IndexLike], strides: Sequence[IndexLike], first: IndexLike) -> int:
    """The largest offset that a strided view addresses."""
    if any(n == 0 for n in shape):
        return 0
    return static(first + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)))


# -- repetition and blocks ------------------------------------------------------------------------


@lowering(aten.repeat, aten.tile)
def repeat(ctx: Context, x: Ref, repeats: Sequence[int]) -> Ref:
    shape = sizes(ctx.meta.shape)
    lead = len(shape) - x.ndim
    return x.view(shape, lambda c: [mod(c[lead + i], n) if n != 0 else c[lead + i] for i, n in enumerate(x.shape)])


@lowering(aten.repeat_interleave.self_int)
def repeat_interleave(
    ctx: Context, x: Ref, repeats: int, dim: int | None = None, *, output_size: int | None = None
) -> Ref:
    if dim is None:
        x, dim = x.reshape([product(x.shape)]), 0
    dim %= x.ndim
    return x.view(sizes(ctx.meta.shape), along(dim, lambda v: floordiv(v, repeats) if repeats != 0 else v))


@lowering(aten.pixel_shuffle)
def pixel_shuffle(ctx: Context, x: Ref, factor: int) -> Ref:
    *batch, c, h, w = x.shape
    n = len(batch)
    x = x.reshape([*batch, floordiv_int(c, factor * factor), factor, factor, h, w])
    return x.permute([*range(n), n, n + 3, n + 1, n + 4, n + 2]).reshape(sizes(ctx.meta.shape))


@lowering(aten.pixel_unshuffle)
def pixel_unshuffle(ctx: Context, x: Ref, factor: int) -> Ref:
    *batch, c, h, w = x.shape
    n = len(batch)
    x = x.reshape([*batch, c, floordiv_int(h, factor), factor, floordiv_int(w, factor), factor])
    return x.permute([*range(n), n, n + 2, n + 4, n + 1, n + 3]).reshape(sizes(ctx.meta.shape))


@lowering(aten.channel_shuffle)
def channel_shuffle(ctx: Context, x: Ref, groups: int) -> Ref:
    batch, c, *rest = x.shape
    x = x.reshape([batch, groups, floordiv_int(c, groups), *rest])
    return x.permute([0, 2, 1, *range(3, x.ndim)]).reshape(sizes(ctx.meta.shape))


def floordiv_int(extent: IndexLike, by: int) -> IndexLike:
    return extent // by
