"""Sliding blocks: im2col, its transpose col2im, and the gradient of Tensor.unfold.

Enters: a view and the geometry of blocks. Leaves: one nest; an element of a sum over blocks gathers what lies over it.

    im2col of f32[n, c, h, w], kernel 3, padding 1

    nest (p0<n, p1<c, p2<3, p3<3, p4<oh, p5<ow):  out = x[p0, p1, p4 + p2 - 1, p5 + p3 - 1], 0 outside

    col2im:  y[h, w] = sum over (a, b) of col[a, b, (h + 1 - a), (w + 1 - b)] where that is a block
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fusec.ir.index import Expr, IndexLike, as_expr, floordiv, mod
from fusec.lowering.builder import NestBuilder, Value, compute_dtype
from fusec.lowering.context import Context, static
from fusec.lowering.pooling import Taps
from fusec.lowering.positions import both, inside
from fusec.lowering.reduction import require_floating
from fusec.lowering.ref import Ref
from fusec.lowering.registry import NotLowered, lowering

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks along one dimension of `size` elements: tap k of block o is element o*step - padding + k*dilation."""

    size: int
    taps: int
    count: int
    step: int
    padding: int
    dilation: int

    @classmethod
    def of(cls, size: IndexLike, kernel: int, dilation: int, padding: int, stride: int) -> Blocks:
        n = static(size)
        return cls(n, kernel, (n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1, stride, padding, dilation)

    def element(self, o: IndexLike, k: IndexLike) -> Expr:
        return as_expr(o) * self.step - self.padding + as_expr(k) * self.dilation

    def over(self, nest: NestBuilder, i: IndexLike, k: IndexLike) -> tuple[Expr, Value | None]:
        """The block whose tap k is element i, and whether there is one."""
        distance = as_expr(i) + self.padding - as_expr(k) * self.dilation
        block = floordiv(distance, self.step)
        found = None if self.step == 1 else nest.index(mod(distance, self.step)).eq(0)
        return block, both(found, inside(nest, block, self.count))


def _blocks(
    sizes: Sequence[IndexLike],
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> list[Blocks]:
    return [Blocks.of(*g) for g in zip(sizes, kernel, dilation, padding, stride, strict=True)]


@lowering(aten.im2col.default)
def im2col(
    ctx: Context, x: Ref, kernel: Sequence[int], dilation: Sequence[int], padding: Sequence[int], stride: Sequence[int]
) -> Ref:
    rows, columns = blocks = _blocks(x.shape[-2:], kernel, dilation, padding, stride)
    lead = x.shape[:-2]
    out = ctx.result()
    shape = (*lead, rows.taps, columns.taps, rows.count, columns.count)
    spread = out.reshape(shape)
    with ctx.nest(shape) as nest:
        *front, a, b, o, q = nest.p
        where = [block.element(at, k) for block, at, k in zip(blocks, (o, q), (a, b), strict=True)]
        mask: Value | None = None
        for block, at in zip(blocks, where, strict=True):
            mask = both(mask, inside(nest, at, block.size))
        nest.store(spread, nest.p, nest.load(x, (*front, *where), mask))
    return out


@lowering(aten.col2im.default)
def col2im(
    ctx: Context,
    x: Ref,
    size: Sequence[int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Ref:
    require_floating(x)
    out, dtype = ctx.result(), compute_dtype(x.dtype)
    blocks = _blocks(out.shape[-2:], kernel, dilation, padding, stride)
    spread = x.reshape((*out.shape[:-2], *(b.taps for b in blocks), *(b.count for b in blocks)))
    taps = Taps(tuple(b.taps for b in blocks))
    with ctx.nest(out.shape, taps.reduced) as nest:

        def over(k: Sequence[IndexLike]) -> Value:
            found = [b.over(nest, i, tap) for b, i, tap in zip(blocks, nest.p[-2:], k, strict=True)]
            mask = both(found[0][1], found[1][1])
            return nest.cast(nest.load(spread, (*nest.p[:-2], *k, *(o for o, _ in found)), mask), dtype)

        nest.store(out, nest.p, taps.reduce(nest, over))
    return out


@lowering(aten.unfold_backward.default)
def unfold_backward(ctx: Context, grad: Ref, sizes: Sequence[int], dim: int, size: int, step: int) -> Ref:
    """Every element sums up the gradients of the windows it lies in."""
    require_floating(grad)
    if not sizes:
        raise NotLowered("the gradient of unfolding a scalar")
    out, dtype = ctx.result(), compute_dtype(grad.dtype)
    dim %= len(sizes)
    windows, taps = static(grad.shape[dim]), Taps(((size - 1) // step + 1,))
    with ctx.nest(out.shape, taps.reduced) as nest:
        last = floordiv(nest.p[dim], step)

        def over(back: Sequence[IndexLike]) -> Value:
            o = last - as_expr(back[0])
            tap = nest.p[dim] - o * step
            mask = both(inside(nest, o, windows), inside(nest, tap, size))
            where = (*nest.p[:dim], o, *nest.p[dim + 1 :], tap)
            return nest.cast(nest.load(grad, where, mask), dtype)

        nest.store(out, nest.p, taps.reduce(nest, over))
    return out
