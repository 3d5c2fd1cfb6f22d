"""Pooling: max, average and adaptive windows over the last one, two or three dimensions.

Enters: a view and window geometry. Leaves: one nest. A window of up to 27 elements is unrolled, a pointwise nest
that fuses with what comes before and after it; a larger one is reduced over axes.

    avg_pool2d(x, 2) of f32[1, 8, 4, 4]

    nest n0 (p0<1, p1<8, p2<2, p3<2):
      %0:f32 = load x[16*p1 + 8*p2 + 2*p3]
      %1:f32 = load x[16*p1 + 8*p2 + 2*p3 + 1]
      %2:f32 = add %0, %1
      ...
      %8:f32 = div %6, 4.0

Padding is never read: a load is masked where its coordinate is not proved to be inside, with the identity of
the reduction in its place. Window starts and ends are index expressions: o*stride - padding for a fixed window,
floor(o*n/m) and ceil((o+1)*n/m) for an adaptive one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fusec.capture.pooling import POOL, UNROLLED, Offsets
from fusec.ir.index import Expr, IndexLike, as_expr, as_int, floordiv, is_nonnegative, linearize
from fusec.ir.ops import identity
from fusec.lowering.builder import NestBuilder, Value, compute_dtype
from fusec.lowering.context import Context, sizes
from fusec.lowering.positions import below, both, inside
from fusec.lowering.reduction import is_used, require_floating
from fusec.lowering.ref import Ref, contiguous_strides
from fusec.lowering.registry import NotLowered, lowering

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Window:
    """The windows along one dimension.

    size:  of the input.                     taps: elements of the longest window.
    start: output coordinate -> coordinate of the window's first element; may be negative in padding.
    stop:  output coordinate -> one past its last element, beyond which a tap is skipped; None: start + all taps.
    step:  dilation.                         padding: elements before and after that count as part of a window.
    """

    size: int
    out: int
    taps: int
    start: Callable[[IndexLike], Expr]
    stop: Callable[[IndexLike], Expr] | None = None
    step: int = 1
    padding: int = 0

    def tap(self, o: IndexLike, k: IndexLike) -> Expr:
        return self.start(o) + as_expr(k) * self.step

    def inside(self, nest: NestBuilder, o: IndexLike, k: IndexLike) -> Value | None:
        """Whether tap k of window o is an element of the input; None when that is proved."""
        where = self.tap(o, k)
        found = inside(nest, where, self.size)
        return both(found, below(nest, where, self.stop(o))) if self.stop else found

    def span(self, o: int, include_padding: bool) -> int:
        """How many elements window o averages over."""
        first = _number(self.start(o))
        last = _number(self.stop(o)) if self.stop else min(first + self.taps, self.size + self.padding)
        return last - first if include_padding else min(last, self.size) - max(first, 0)

    def common_span(self, include_padding: bool) -> int | None:
        """How many elements every window averages over; None when they differ."""
        spans = {self.span(i, include_padding) for i in range(self.out)}
        return spans.pop() if len(spans) == 1 else None

    def divisor(self, nest: NestBuilder, o: Expr, include_padding: bool, dtype: torch.dtype) -> Value | int:
        """The same for a window that is known only in the kernel; an int when all windows agree."""
        common = self.common_span(include_padding)
        if common is not None:
            return common
        first = nest.index(self.start(o))
        if self.stop:
            last = nest.index(self.stop(o))
        else:
            last = nest.op("minimum", nest.index(self.start(o) + self.taps), self.size + self.padding)
        if not include_padding:
            first, last = nest.op("maximum", first, 0), nest.op("minimum", last, self.size)
        return nest.cast(last - first, dtype)


def _number(expr: IndexLike) -> int:
    value = as_int(expr)
    assert value is not None, f"{expr} is not a number"
    return value


def _static(values: Sequence[IndexLike]) -> list[int]:
    found = [as_int(v) for v in values]
    if None in found:
        raise NotLowered("pooling over an extent known only at run time")
    return [v for v in found if v is not None]


def _per_dimension(value: int | Sequence[int], n: int) -> list[int]:
    if isinstance(value, int):
        return [value] * n
    return list(value) * n if len(value) == 1 else list(value)


def _fixed(size: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> Window:
    return Window(size, out, kernel, lambda o: as_expr(o) * stride - padding, None, dilation, padding)


def fixed_windows(
    sizes: Sequence[IndexLike],
    outs: Sequence[IndexLike],
    kernel: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    n: int,
) -> tuple[tuple[Window, ...], list[int]]:
    """The windows along the last n dimensions, and their strides. An empty stride is the kernel."""
    kernels = _per_dimension(kernel, n)
    strides = _per_dimension(stride, n) if isinstance(stride, int) or stride else kernels
    paddings, dilations = _per_dimension(padding, n), _per_dimension(dilation, n)
    geometry = zip(_static(sizes), _static(outs), kernels, strides, paddings, dilations, strict=True)
    return tuple(_fixed(*g) for g in geometry), strides


def adaptive_window(extent: IndexLike, outputs: IndexLike) -> Window:
    """Windows [floor(o*n/m), ceil((o+1)*n/m)) along one dimension: fixed ones when m divides n."""
    size, out = _static((extent, outputs))
    if out and size % out == 0:
        return _fixed(size, out, size // out, size // out, 0, 1)

    def start(o: IndexLike) -> Expr:
        return floordiv(as_expr(o) * size, out)

    def stop(o: IndexLike) -> Expr:
        return floordiv((as_expr(o) + 1) * size + out - 1, out)

    longest = max((_number(stop(o)) - _number(start(o)) for o in range(out)), default=1)
    return Window(size, out, longest, start, stop)


@dataclass(frozen=True, slots=True)
class Taps:
    """The places of a window, `counts` along each dimension: written out where they are few, else reduced axes."""

    counts: tuple[int, ...]

    @property
    def number(self) -> int:
        return math.prod(self.counts)

    @property
    def unrolled(self) -> bool:
        return self.number <= UNROLLED

    @property
    def reduced(self) -> tuple[int, ...]:
        """The reduced axes of the nest: none when the window is unrolled."""
        return () if self.unrolled else self.counts

    def offsets(self) -> list[tuple[int, ...]]:
        return list(itertools.product(*(range(n) for n in self.counts)))

    def reduce(
        self, nest: NestBuilder, term: Callable[[Sequence[IndexLike]], Value], op: str = "sum", combine: str = "add"
    ) -> Value:
        """The terms of all places: unrolled with `combine`, or over the reduced axes with `op`."""
        if not self.unrolled:
            return nest.reduce(op, term(nest.r))
        first, *rest = self.offsets()
        total = term(first)
        for offset in rest:
            total = nest.op(combine, total, term(offset))
        return total


@dataclass(frozen=True, slots=True)
class Pool:
    """One pooling: the input, its result's shape and the windows along the last dimensions."""

    x: Ref
    shape: tuple[int, ...]
    windows: tuple[Window, ...]

    @classmethod
    def fixed(
        cls,
        x: Ref,
        shape: Sequence[int],
        kernel: int | Sequence[int],
        stride: int | Sequence[int],
        padding: int | Sequence[int],
        dilation: int | Sequence[int],
        n: int,
    ) -> Pool:
        """n: how many dimensions are pooled. An empty stride is the kernel."""
        windows, _ = fixed_windows(x.shape[-n:], shape[-n:], kernel, stride, padding, dilation, n)
        return cls(x, tuple(shape), windows)

    @classmethod
    def adaptive(cls, x: Ref, shape: Sequence[int], n: int) -> Pool:
        sizes = zip(x.shape[-n:], shape[-n:], strict=True)
        return cls(x, tuple(shape), tuple(adaptive_window(size, out) for size, out in sizes))

    @property
    def taps(self) -> Taps:
        return Taps(tuple(w.taps for w in self.windows))

    def tap(
        self, nest: NestBuilder, offset: Sequence[IndexLike], op: str, dtype: torch.dtype
    ) -> tuple[Value, Value | None, tuple[Expr, ...]]:
        """(value, mask, coordinates) of one element of the window; the identity of `op` outside the input."""
        o = nest.p[len(nest.p) - len(self.windows) :]
        where = tuple(w.tap(i, k) for w, i, k in zip(self.windows, o, offset, strict=True))
        mask: Value | None = None
        for w, i, k in zip(self.windows, o, offset, strict=True):
            mask = both(mask, w.inside(nest, i, k))
        lead = nest.p[: len(nest.p) - len(self.windows)]
        loaded = nest.load(self.x, (*lead, *where), mask, identity(op, self.x.dtype) if mask is not None else 0)
        return nest.cast(loaded, dtype), mask, where

    def reduce(self, nest: NestBuilder, op: str, combine: str, dtype: torch.dtype) -> Value:
        """The window reduced: unrolled with `combine`, or over the reduced axes with `op`."""
        return self.taps.reduce(nest, lambda offset: self.tap(nest, offset, op, dtype)[0], op, combine)


# -- average --------------------------------------------------------------------------------------


def _average(ctx: Context, pool: Pool, include_padding: bool = True, divisor: int | None = None) -> Ref:
    require_floating(pool.x)
    out, dtype = ctx.result(), compute_dtype(pool.x.dtype)
    with ctx.nest(out.shape, pool.taps.reduced) as nest:
        total = pool.reduce(nest, "sum", "add", dtype)
        fixed: int = 1 if divisor is None else divisor
        varying: Value | None = None
        if divisor is None:
            o = nest.p[len(nest.p) - len(pool.windows) :]
            for w, i in zip(pool.windows, o, strict=True):
                count = w.divisor(nest, i, include_padding, dtype)
                if isinstance(count, int):
                    fixed *= count
                else:
                    varying = count if varying is None else varying * count
        if varying is not None:
            total = total / (varying if fixed == 1 else varying * fixed)
        elif fixed != 1:
            total = total / fixed
        nest.store(out, nest.p, total)
    return out


def _shape(ctx: Context, index: int | None = None) -> tuple[int, ...]:
    meta = ctx.meta if index is None else ctx.meta[index]
    return tuple(_static(sizes(meta.shape)))


def _avg_pool(
    ctx: Context,
    x: Ref,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    n: int,
) -> Ref:
    pool = Pool.fixed(x, _shape(ctx), kernel_size, stride, padding, 1, n)
    return _average(ctx, pool, count_include_pad, divisor_override)


@lowering(aten.avg_pool1d.default)
def avg_pool1d(ctx: Context, x: Ref, *args: object, **kwargs: object) -> Ref:
    return _avg_pool(ctx, x, *args, n=1, **kwargs)  # type: ignore[arg-type]


@lowering(aten.avg_pool2d.default)
def avg_pool2d(ctx: Context, x: Ref, *args: object, **kwargs: object) -> Ref:
    return _avg_pool(ctx, x, *args, n=2, **kwargs)  # type: ignore[arg-type]


@lowering(aten.avg_pool3d.default)
def avg_pool3d(ctx: Context, x: Ref, *args: object, **kwargs: object) -> Ref:
    return _avg_pool(ctx, x, *args, n=3, **kwargs)  # type: ignore[arg-type]


@lowering(aten.adaptive_avg_pool1d.default)
def adaptive_avg_pool1d(ctx: Context, x: Ref, output_size: Sequence[int]) -> Ref:
    return _average(ctx, Pool.adaptive(x, _shape(ctx), 1))


@lowering(aten._adaptive_avg_pool2d.default, aten.adaptive_avg_pool2d.default)
def adaptive_avg_pool2d(ctx: Context, x: Ref, output_size: Sequence[int]) -> Ref:
    return _average(ctx, Pool.adaptive(x, _shape(ctx), 2))


@lowering(aten._adaptive_avg_pool3d.default, aten.adaptive_avg_pool3d.default)
def adaptive_avg_pool3d(ctx: Context, x: Ref, output_size: Sequence[int]) -> Ref:
    return _average(ctx, Pool.adaptive(x, _shape(ctx), 3))


# -- maximum --------------------------------------------------------------------------------------


def _max_value(ctx: Context, pool: Pool, out: Ref) -> Ref:
    dtype = compute_dtype(pool.x.dtype)
    with ctx.nest(out.shape, pool.taps.reduced) as nest:
        nest.store(out, nest.p, pool.reduce(nest, "max", "maximum", dtype))
    return out


def _max_position(
    ctx: Context, pool: Pool, values: Ref | None, out: Ref, strides: Sequence[IndexLike], in_window: bool = False
) -> None:
    """The position of each window's maximum: the first one, but the last NaN, as eager counts.

    best, at = -inf, first element;  then for each tap  best, at = (x, k) if x > best or isnan(x) else (best, at)

    A position is linearized with these strides: coordinates of the input or, in_window, the way from the window's
    first place, counted in 32 bits.
    """
    if not pool.taps.unrolled:
        raise NotLowered(f"max pooling with indices over windows of {pool.taps.number} elements")
    dtype = compute_dtype(pool.x.dtype)
    integer = torch.int32 if in_window else torch.int64
    with ctx.nest(out.shape) as nest:
        o = nest.p[len(nest.p) - len(pool.windows) :]

        def position(offset: Sequence[int]) -> Value:
            way = [k * w.step for w, k in zip(pool.windows, offset, strict=True)]
            start = [0 if in_window else w.start(i) for w, i in zip(pool.windows, o, strict=True)]
            return nest.index(linearize([as_expr(a) + b for a, b in zip(start, way, strict=True)], strides), integer)

        first, *rest = pool.taps.offsets()
        best, _, _ = pool.tap(nest, first, "max", dtype)
        at = position(first)
        for w, i, stride in zip(pool.windows, o, strides, strict=True):
            skipped = floordiv(w.start(i), w.step) * -w.step  # negative where the window starts inside
            if not is_nonnegative(-skipped):
                at = at + nest.op("maximum", nest.index(skipped * stride, integer), 0)
        for offset in rest:
            value, _, _ = pool.tap(nest, offset, "max", dtype)
            better = value > best
            if dtype.is_floating_point:
                better = better | nest.op("isnan", value)
            best = nest.where(better, value, best)
            at = nest.where(better, position(offset), at)
        nest.store(out, nest.p, at)
        if values is not None:
            nest.store(values, nest.p, best)


def _maximum(ctx: Context, pool: Pool) -> tuple[Ref | None, Ref | None]:
    if not is_used(ctx.node, 1):
        return _max_value(ctx, pool, ctx.result(0)), None
    values = ctx.result(0) if is_used(ctx.node, 0) else None
    positions = ctx.result(1)
    _max_position(ctx, pool, values, positions, contiguous_strides([w.size for w in pool.windows]))
    return values, positions


def _max_pool(
    ctx: Context,
    x: Ref,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    *,
    n: int,
) -> tuple[Ref | None, Ref | None]:
    return _maximum(ctx, Pool.fixed(x, _shape(ctx, 0), kernel_size, stride, padding, dilation, n))


@lowering(aten.max_pool2d_with_indices.default)
def max_pool2d(ctx: Context, x: Ref, *args: object, **kwargs: object) -> tuple[Ref | None, Ref | None]:
    return _max_pool(ctx, x, *args, n=2, **kwargs)  # type: ignore[arg-type]


@lowering(POOL)
def max_pool2d_with_offsets(
    ctx: Context,
    x: Ref,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> tuple[Ref | None, Ref]:
    pool = Pool.fixed(x, _shape(ctx, 0), kernel, stride, padding, dilation, 2)
    values, offsets = ctx.result(0) if is_used(ctx.node, 0) else None, ctx.result(1)
    pitch = Offsets.of(kernel, stride, padding, dilation).pitch
    _max_position(ctx, pool, values, offsets, (pitch, 1), in_window=True)
    return values, offsets


@lowering(aten.max_pool3d_with_indices.default)
def max_pool3d(ctx: Context, x: Ref, *args: object, **kwargs: object) -> tuple[Ref | None, Ref | None]:
    return _max_pool(ctx, x, *args, n=3, **kwargs)  # type: ignore[arg-type]


@lowering(aten.adaptive_max_pool2d.default)
def adaptive_max_pool2d(ctx: Context, x: Ref, output_size: Sequence[int]) -> tuple[Ref | None, Ref | None]:
    return _maximum(ctx, Pool.adaptive(x, _shape(ctx, 0), 2))


@lowering(aten.adaptive_max_pool3d.default)
def adaptive_max_pool3d(ctx: Context, x: Ref, output_size: Sequence[int]) -> tuple[Ref | None, Ref | None]:
    return _maximum(ctx, Pool.adaptive(x, _shape(ctx, 0), 3))
