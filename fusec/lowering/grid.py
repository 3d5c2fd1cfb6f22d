"""grid_sample in two and three dimensions: an image read at positions that data gives.

Enters: an image of shape [n, c, ..., h, w], a grid of positions in [-1, 1] per output, its last dimension (x, y, ..).
Leaves: one nest over the output that loads the neighbours of each position and weighs them.

    ix = ((x + 1)*w - 1) / 2                            # corners not aligned
    bilinear   floor(ix) and the next element, by distance; zero outside of the image
    nearest    the element at round(ix), half to even
    bicubic    four elements a dimension, each folded back into the image by itself

padding "border" clamps a position into the image, "reflection" mirrors it at the borders first.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import reduce

import torch

from fusec.ir.index import Expr
from fusec.lowering.builder import NestBuilder, Value, compute_dtype
from fusec.lowering.context import Context, static
from fusec.lowering.interpolate import cubic_weights, weighed
from fusec.lowering.reduction import require_floating
from fusec.lowering.ref import Ref
from fusec.lowering.registry import NotLowered, lowering

aten = torch.ops.aten

_BILINEAR, _NEAREST, _BICUBIC = range(3)
_ZEROS, _BORDER, _REFLECTION = range(3)


@dataclass(frozen=True, slots=True)
class _Tap:
    """A neighbour along one dimension: its coordinate, and whether it is in the image."""

    at: Expr
    inside: Value


@dataclass(frozen=True, slots=True)
class _Dimension:
    """How positions of one dimension of `size` elements are read."""

    size: int
    padding: int
    align: bool

    def position(self, value: Value) -> Value:
        """[-1, 1] to elements."""
        if self.align:
            return (value + 1.0) / 2.0 * (self.size - 1.0)
        return ((value + 1.0) * float(self.size) - 1.0) / 2.0

    def folded(self, nest: NestBuilder, position: Value) -> Value:
        if self.padding == _ZEROS:
            return position
        if self.padding == _REFLECTION:
            position = self._reflected(nest, position)
        # A NaN becomes 0, as in eager.
        return nest.op("fmin", nest.op("fmax", position, 0.0), self.size - 1.0)

    def _reflected(self, nest: NestBuilder, position: Value) -> Value:
        low, high = (0.0, self.size - 1.0) if self.align else (-0.5, self.size - 0.5)
        if low == high:
            return nest.const(0, position.dtype)
        span = high - low
        distance = nest.op("abs", position - low)
        extra = nest.op("fmod", distance, span)
        flips = nest.op("floor", distance / span)
        even = nest.op("fmod", flips, 2.0).eq(0.0)
        return nest.where(even, extra + low, span - extra + low)

    def tap(self, nest: NestBuilder, element: Value) -> _Tap:
        """The neighbour at a whole position; outside the image its coordinate is not used."""
        inside = (element >= 0.0) & (element <= self.size - 1.0)
        return _Tap(nest.as_index(nest.cast(element, torch.int64), self.size), inside)

    def taps(self, nest: NestBuilder, position: Value, mode: int) -> list[tuple[_Tap, Value | None]]:
        """The neighbours of a position and their weights (None: 1)."""
        if mode == _BICUBIC:
            base = nest.op("floor", position)
            weights = cubic_weights(position - base)
            return [(self.tap(nest, self.folded(nest, base + (k - 1.0))), w) for k, w in enumerate(weights)]
        position = self.folded(nest, position)
        if mode == _NEAREST:
            return [(self.tap(nest, nest.op("round", position)), None)]
        base = nest.op("floor", position)
        t = position - base
        near = 1.0 - t
        return [(self.tap(nest, base), near), (self.tap(nest, base + 1.0), t)]


def _sampled(ctx: Context, x: Ref, grid: Ref, mode: int, padding: int, align: bool, n: int) -> Ref:
    require_floating(x, grid)
    if mode == _BICUBIC and n != 2:
        raise NotLowered("bicubic sampling in three dimensions")
    out, dtype = ctx.result(), compute_dtype(x.dtype)
    dimensions = [_Dimension(static(size), padding, align) for size in x.shape[-n:]]
    if any(d.size == 0 for d in dimensions):
        raise NotLowered("sampling of an empty image")
    with ctx.nest(out.shape) as nest:
        batch, channel, *places = nest.p
        taps = []
        for d, dimension in enumerate(dimensions):
            value = nest.cast(nest.load(grid, (batch, *places, n - 1 - d)), dtype)
            taps.append(dimension.taps(nest, dimension.position(value), mode))

        def load(chosen: tuple[_Tap, ...]) -> Value:
            mask = reduce(operator.and_, (tap.inside for tap in chosen))
            return nest.cast(nest.load(x, (batch, channel, *(tap.at for tap in chosen)), mask), dtype)

        nest.store(out, nest.p, weighed(taps, load))
    return out


@lowering(aten.grid_sampler_2d.default)
def grid_sampler_2d(ctx: Context, x: Ref, grid: Ref, mode: int, padding: int, align: bool) -> Ref:
    return _sampled(ctx, x, grid, mode, padding, align, 2)


@lowering(aten.grid_sampler_3d.default)
def grid_sampler_3d(ctx: Context, x: Ref, grid: Ref, mode: int, padding: int, align: bool) -> Ref:
    return _sampled(ctx, x, grid, mode, padding, align, 3)
