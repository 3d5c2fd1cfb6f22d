"""Ops whose result is put together from segments: cat, stack, pad, scatters of slices.

    aten.cat([a: f32[3], b: f32[5]])     nest n0 (p0<8):
                                           %0 = index p0; %1 = lt %0, 3
                                           %2 = load a[p0], %1
                                           %3 = not %1
                                           %4 = load b[p0 - 3], %3
                                           %5 = where %1, %2, %4
                                           store cat[p0], %5

Each segment is loaded under a mask, so that nothing out of its range is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fusec.ir.index import IndexLike, floordiv, mod
from fusec.ir.types import AccessMode
from fusec.lowering.builder import NestBuilder, Value
from fusec.lowering.context import Context, static
from fusec.lowering.numbers import Number
from fusec.lowering.positions import both
from fusec.lowering.reduction import require_floating
from fusec.lowering.ref import Ref
from fusec.lowering.registry import NotLowered, lowering
from fusec.lowering.scatter import accumulated
from fusec.lowering.views import unsqueezed

aten, prims = torch.ops.aten, torch.ops.prims
MAX_SEGMENTS = 16  # a longer chain of masks costs more than the library's copy of each segment


# -- joining --------------------------------------------------------------------------------------


@lowering(aten.cat, aten.concat, prims.cat)
def cat(ctx: Context, tensors: Sequence[Ref], dim: int = 0) -> Ref:
    ndim = max(t.ndim for t in tensors)
    parts = [t for t in tensors if t.ndim == ndim and (ndim != 1 or t.shape[0] != 0)]
    return joined(ctx, parts, dim % ndim)


@lowering(aten.stack)
def stack(ctx: Context, tensors: Sequence[Ref], dim: int = 0) -> Ref:
    return joined(ctx, [unsqueezed(t, dim % (t.ndim + 1)) for t in tensors], dim % (tensors[0].ndim + 1))


def joined(ctx: Context, parts: Sequence[Ref], dim: int) -> Ref:
    """The parts one after another along dim, in one nest."""
    if len(parts) > MAX_SEGMENTS:
        raise NotLowered(f"{len(parts)} tensors joined, more than {MAX_SEGMENTS}")
    out = ctx.result()
    with ctx.nest(out.shape) as nest:
        if not parts:
            nest.store(out, nest.p, nest.const(0, out.dtype))
            return out
        nest.store(out, nest.p, _segment_chain(nest, parts, dim, out.dtype))
    return out


def _segment_chain(nest: NestBuilder, parts: Sequence[Ref], dim: int, dtype: torch.dtype) -> Value:
    """where(i < end_0, part_0[i], where(i < end_1, part_1[i - end_0], ...))."""
    position = nest.index(nest.p[dim])
    starts: list[IndexLike] = [0]
    for part in parts:
        starts.append(starts[-1] + part.shape[dim])
    if len(parts) == 1:
        return nest.cast(nest.load(parts[0], nest.p), dtype)
    values: list[Value] = []
    before: list[Value] = []  # before[k]: the position lies in front of the end of part k
    for k, part in enumerate(parts):
        last = k == len(parts) - 1
        if not last:
            before.append(position < nest.index(starts[k + 1]))
        if k == 0:
            mask = before[0]
        elif last:
            mask = ~before[k - 1]
        else:
            mask = before[k] & ~before[k - 1]
        where = [c - starts[k] if i == dim else c for i, c in enumerate(nest.p)]
        values.append(nest.cast(nest.load(part, where, mask), dtype))
    result = values[-1]
    for value, inside in zip(reversed(values[:-1]), reversed(before), strict=True):
        result = nest.where(inside, value, result)
    return result


# -- padding --------------------------------------------------------------------------------------


def _pads(x: Ref, pad: Sequence[int]) -> list[tuple[int, int]]:
    """(left, right) per dimension from PyTorch's list, which starts at the last dimension."""
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]
    return [(0, 0)] * (x.ndim - len(pairs)) + pairs[::-1]


@lowering(aten.constant_pad_nd)
def constant_pad(ctx: Context, x: Ref, pad: Sequence[int], value: Number = 0) -> Ref:
    pads = _pads(x, pad)
    out = ctx.result()
    with ctx.nest(out.shape) as nest:
        mask: Value | None = None
        for c, n, (left, right) in zip(nest.p, x.shape, pads, strict=True):
            position = nest.index(c)
            if not isinstance(left, int) or left > 0:
                mask = both(mask, position >= left)
            if not isinstance(right, int) or right > 0:
                mask = both(mask, position < nest.index(n + left))
        where = [c - left for c, (left, _) in zip(nest.p, pads, strict=True)]
        nest.store(out, nest.p, nest.load(x, where, mask, value))
    return out


Fold = Callable[[NestBuilder, Value, int], Value]


def _reflect(nest: NestBuilder, i: Value, n: int) -> Value:
    """i -> |i|, then n - 1 - |n - 1 - i|: mirrored at both ends, which are not repeated."""
    return (n - 1) - nest.op("abs", (n - 1) - nest.op("abs", i))


def _replicate(nest: NestBuilder, i: Value, n: int) -> Value:
    return nest.op("minimum", nest.op("maximum", i, 0), n - 1)


def _folded(ctx: Context, x: Ref, pad: Sequence[int], fold: Fold) -> Ref:
    """Every coordinate outside x is folded back into it."""
    out = ctx.result()
    with ctx.nest(out.shape) as nest:
        nest.store(out, nest.p, nest.load(x, _source(nest, x, pad, fold)))
    return out


def _source(nest: NestBuilder, x: Ref, pad: Sequence[int], fold: Fold) -> list[IndexLike]:
    """Where in x the element of the padded tensor comes from."""
    where: list[IndexLike] = []
    for c, extent, (left, right) in zip(nest.p, x.shape, _pads(x, pad), strict=True):
        if left == right == 0:
            where.append(c)
            continue
        n = static(extent)
        where.append(nest.as_index(fold(nest, nest.index(c - left), n), n))
    return where


def _folded_gradient(ctx: Context, grad: Ref, x: Ref, pad: Sequence[int], fold: Fold) -> Ref:
    """Every element of x sums up the gradients of its copies."""

    def add(total: Ref) -> None:
        with ctx.nest(grad.shape) as nest:
            value = nest.load_f32(grad, nest.p)
            nest.store(total, _source(nest, x, pad, fold), value, None, AccessMode.ATOMIC_ADD)

    require_floating(grad)
    return accumulated(ctx, ctx.result(), add)


@lowering(aten.reflection_pad1d, aten.reflection_pad2d, aten.reflection_pad3d)
def reflection_pad(ctx: Context, x: Ref, pad: Sequence[int]) -> Ref:
    return _folded(ctx, x, pad, _reflect)


@lowering(aten.replication_pad1d, aten.replication_pad2d, aten.replication_pad3d)
def replication_pad(ctx: Context, x: Ref, pad: Sequence[int]) -> Ref:
    return _folded(ctx, x, pad, _replicate)


@lowering(aten.reflection_pad1d_backward, aten.reflection_pad2d_backward, aten.reflection_pad3d_backward)
def reflection_pad_backward(ctx: Context, grad: Ref, x: Ref, pad: Sequence[int]) -> Ref:
    return _folded_gradient(ctx, grad, x, pad, _reflect)


@lowering(aten.replication_pad1d_backward, aten.replication_pad2d_backward, aten.replication_pad3d_backward)
def replication_pad_backward(ctx: Context, grad: Ref, x: Ref, pad: Sequence[int]) -> Ref:
    return _folded_gradient(ctx, grad, x, pad, _replicate)


# -- writing a part -------------------------------------------------------------------------------


def _replaced(
    ctx: Context, x: Ref, part: Ref, inside: Callable[[NestBuilder], tuple[Value | None, list[IndexLike]]]
) -> Ref:
    """x with some elements replaced: inside(nest) gives the mask and the coordinates in `part`."""
    out = ctx.result()
    with ctx.nest(out.shape) as nest:
        mask, where = inside(nest)
        new = nest.cast(nest.load(part, where, mask), out.dtype)
        nest.store(out, nest.p, new if mask is None else nest.where(mask, new, nest.load(x, nest.p)))
    return out


@lowering(aten.slice_scatter)
def slice_scatter(
    ctx: Context, x: Ref, part: Ref, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Ref:
    dim %= x.ndim
    n = static(x.shape[dim])
    first, last, _ = slice(start, end, step).indices(n)

    def inside(nest: NestBuilder) -> tuple[Value | None, list[IndexLike]]:
        i, mask = nest.p[dim], None
        if first > 0:
            mask = both(mask, nest.index(i) >= first)
        if last < n:
            mask = both(mask, nest.index(i) < last)
        if step > 1:
            mask = both(mask, nest.index(mod(i + (-first) % step, step)).eq(0))
        # (i - first) // step, written so that it never goes below zero
        shifted = floordiv(i + (-first) % step, step) - (first + (-first) % step) // step
        return mask, [shifted if d == dim else c for d, c in enumerate(nest.p)]

    return _replaced(ctx, x, part, inside)


@lowering(aten.select_scatter)
def select_scatter(ctx: Context, x: Ref, part: Ref, dim: int, index: int) -> Ref:
    dim %= x.ndim
    at = index % static(x.shape[dim])
    part = unsqueezed(part, dim)

    def inside(nest: NestBuilder) -> tuple[Value | None, list[IndexLike]]:
        mask = nest.index(nest.p[dim]).eq(at)
        return mask, [0 if d == dim else c for d, c in enumerate(nest.p)]

    return _replaced(ctx, x, part, inside)


@lowering(aten.diagonal_scatter)
def diagonal_scatter(ctx: Context, x: Ref, part: Ref, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Ref:
    rows, columns = dim1 % x.ndim, dim2 % x.ndim

    def inside(nest: NestBuilder) -> tuple[Value | None, list[IndexLike]]:
        row, column = nest.p[rows], nest.p[columns]
        mask = (nest.index(column) - nest.index(row)).eq(offset)
        batch: list[IndexLike] = [c for d, c in enumerate(nest.p) if d not in (rows, columns)]
        return mask, [*batch, column if offset < 0 else row]

    return _replaced(ctx, x, part, inside)
