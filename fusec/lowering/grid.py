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

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fusec.ir.index import Expr
from fusec.lowering.builder import NestBuilder, Value, compute_dtype
from fusec.lowering.context import Context, static
from fusec.lowering.interpolate import cubic_weights
from fusec.lowering.reduction import require_floating
from fusec.lowering.ref import Ref
from fusec.lowering.registry import NotLowered, lowering

aten = torch.ops.aten

_BILINEAR, _NEAREST, _BICUBIC = range(3)
_ZEROS, _BORDER, _REFLECTION = range(3)


@dataclass(frozen=True, slots=True)
class _Tap:
    """A neighbour along one dimension: its coordinate, weight (None: 1), and whether it is in the image."""

    at: Expr
    weight: Value | None
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

    def tap(self, nest: NestBuilder, element: Value, weight: Value | None = None) -> _Tap:
        """The neighbour at a whole position; outside the image its coordinate is not used."""
        inside = (element >= 0.0) & (element <= self.size - 1.0)
        return _Tap(nest.as_index(nest.cast(element, torch.int64), self.size), weight, inside)

    def taps(self, nest: NestBuilder, position: Value, mode: int) -> list[_Tap]:
        if mode == _BICUBIC:
            base = nest.op("floor", position)
            weights = cubic_weights(position - base)
            return [self.tap(nest, self.folded(nest, base + (k - 1.0)), w) for k, w in enumerate(weights)]
        position = self.folded(nest, position)
        if mode == _NEAREST:
            return [self.tap(nest, nest.op("round", position))]
        base = nest.op("floor", position)
        t = position - base
        return [self.tap(nest, base, 1.0 - t), self.tap(nest, base + 1.0, t)]


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
        nest.store(out, nest.p, _weighed(nest, x, (batch, channel), taps, [], dtype))
    return out


def _weighed(
    nest: NestBuilder,
    x: Ref,
    lead: tuple[Expr, ...],
    taps: Sequence[Sequence[_Tap]],
    chosen: list[_Tap],
    dtype: torch.dtype,
) -> Value:
    """Sum over the neighbours of the dimensions that are left of weight * element."""
    if not taps:
        mask = chosen[0].inside
        for tap in chosen[1:]:
            mask = mask & tap.inside
        return nest.cast(nest.load(x, (*lead, *(t.at for t in chosen)), mask), dtype)
    total: Value | None = None
    for tap in taps[0]:
        term = _weighed(nest, x, lead, taps[1:], [*chosen, tap], dtype)
        term = term if tap.weight is None else term * tap.weight
        total = term if total is None else total + term
    assert total is not None
    return total


@lowering(aten.grid_sampler_2d.default)
def grid_sampler_2d(ctx: Context, x: Ref, grid: Ref, mode: int, padding: int, align: bool) -> Ref:
    return _sampled(ctx, x, grid, mode, padding, align, 2)


@lowering(aten.grid_sampler_3d.default)
def grid_sampler_3d(ctx: Context, x: Ref, grid: Ref, mode: int, padding: int, align: bool) -> Ref:
    return _sampled(ctx, x, grid, mode, padding, align, 3)
