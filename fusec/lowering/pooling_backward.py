"""Gradients of pooling, gathered: every element of the input sums up what the windows that hold it send back.

Enters: the windows' gradients (and the positions of their maxima). Leaves: one nest over the input.

    max_pool2d_with_indices_backward, kernel 3, stride 2, padding 1

    nest (p0<n, p1<c, p2<h, p3<w):  windows (p2 + 1)//2 - j, (p3 + 1)//2 - k for j, k in 0, 1:
                                    total += grad[window] if indices[window] == w*p2 + p3 else 0

Where an element lies in more windows than are worth unrolling, averages are reduced over them and maxima scattered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch

from fusec.capture.pooling import POOL_BACKWARD, Offsets
from fusec.ir.index import Expr, IndexLike, as_expr, delinearize, floordiv, is_nonnegative, linearize, product
from fusec.ir.types import AccessMode
from fusec.lowering.builder import NestBuilder, Value, compute_dtype
from fusec.lowering.context import Context, sizes, static
from fusec.lowering.pooling import Taps, Window, adaptive_window, fixed_windows
from fusec.lowering.positions import Checked, below, both, inside
from fusec.lowering.reduction import require_floating
from fusec.lowering.ref import Ref, contiguous_strides
from fusec.lowering.registry import lowering
from fusec.lowering.scatter import Updates, refuse_where_deterministic, summed

aten = torch.ops.aten
Place = Callable[[NestBuilder], tuple[Sequence[IndexLike], Value | None]]


@dataclass(frozen=True, slots=True)
class Cover:
    """The windows along one dimension that may hold an element.

    first: element -> the last window that may; the others come before it, down to first - count + 1.
    """

    window: Window
    count: int
    last: Callable[[IndexLike], Expr]

    @classmethod
    def fixed(cls, window: Window, stride: int) -> Cover:
        reach = (window.taps - 1) * window.step
        return cls(window, reach // stride + 1, lambda i: floordiv(as_expr(i) + window.padding, stride))

    @classmethod
    def adaptive(cls, window: Window) -> Cover:
        """Windows [floor(o*n/m), ceil((o+1)*n/m)): element i lies in those from floor(i*m/n) to ceil((i+1)*m/n) - 1."""
        n, m = window.size, window.out

        def last(i: IndexLike) -> Expr:
            return floordiv((as_expr(i) + 1) * m + n - 1, n) - 1

        spans = [static(last(i)) - i * m // n + 1 for i in range(n)]
        return cls(window, max(spans, default=1), last)

    def holds(self, nest: NestBuilder, o: Expr) -> Value | None:
        """Whether window o exists; None when that is proved."""
        return inside(nest, o, self.window.out)

    def contains(self, nest: NestBuilder, i: Expr, o: Expr) -> Value | None:
        """Whether element i lies in window o, for windows without dilation; None when that is proved."""
        window = self.window
        distance = as_expr(i) - window.start(o)
        found = None if is_nonnegative(distance) else nest.index(distance) >= 0
        end = window.stop(o) if window.stop else window.start(o) + window.taps
        return both(found, below(nest, i, end))


def _gathered(
    ctx: Context,
    covers: Sequence[Cover],
    term: Callable[[NestBuilder, tuple[Expr, ...], tuple[Expr, ...], Value | None], Value],
    divisor: int = 1,
) -> Ref:
    """out[i] = sum over the windows o that may hold element i of term(i, o, whether they exist), divided."""
    out = ctx.result()
    taps = _taps(covers)
    with ctx.nest(out.shape, taps.reduced) as nest:
        element = nest.p[len(nest.p) - len(covers) :]

        def sent(back: Sequence[IndexLike]) -> Value:
            windows = tuple(c.last(i) - b for c, i, b in zip(covers, element, back, strict=True))
            exist: Value | None = None
            for cover, o in zip(covers, windows, strict=True):
                exist = both(exist, cover.holds(nest, o))
            return term(nest, element, windows, exist)

        total = taps.reduce(nest, sent)
        nest.store(out, nest.p, total if divisor == 1 else total / divisor)
    return out


def _fixed_covers(
    x: Ref,
    grad: Ref,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: int | Sequence[int],
    n: int,
) -> list[Cover]:
    windows, strides = fixed_windows(x.shape[-n:], grad.shape[-n:], kernel, stride, padding, dilation, n)
    return [Cover.fixed(w, s) for w, s in zip(windows, strides, strict=True)]


def _adaptive_covers(x: Ref, grad: Ref, n: int) -> list[Cover]:
    return [Cover.adaptive(adaptive_window(a, b)) for a, b in zip(x.shape[-n:], grad.shape[-n:], strict=True)]


def _taps(covers: Sequence[Cover]) -> Taps:
    return Taps(tuple(cover.count for cover in covers))


# -- maximum --------------------------------------------------------------------------------------


Position = Callable[[NestBuilder, Sequence[Expr], Sequence[Expr]], Value]


def _max_gradient(
    ctx: Context, grad: Ref, at: Ref, covers: Sequence[Cover], position: Position, place: Place | None = None
) -> Ref:
    """Each window sends its gradient to its maximum.

    position: (nest, element, window) -> what `at` holds of a window whose maximum is that element.
    place:    where a window's maximum lies; the position in the plane if None.
    """
    require_floating(grad)
    lead = grad.ndim - len(covers)
    if not _taps(covers).unrolled:
        place = place or _in_planes(ctx, at, len(covers), safe=True)
        return summed(ctx, None, Updates(grad.shape, place, lambda nest: nest.load(grad, nest.p)))
    dtype = compute_dtype(grad.dtype)

    def term(nest: NestBuilder, element: tuple[Expr, ...], windows: tuple[Expr, ...], exist: Value | None) -> Value:
        where = (*nest.p[:lead], *windows)
        expected = position(nest, element, windows)
        hit = nest.cast(nest.load(at, where, exist, -1), expected.dtype).eq(expected)
        return nest.where(hit, nest.cast(nest.load(grad, where, exist), dtype), 0)

    return _gathered(ctx, covers, term)


def _max_gradient_of_indices(ctx: Context, grad: Ref, indices: Ref, covers: Sequence[Cover]) -> Ref:
    strides = contiguous_strides([c.window.size for c in covers])
    return _max_gradient(ctx, grad, indices, covers, lambda nest, element, _: nest.index(linearize(element, strides)))


@lowering(POOL_BACKWARD)
def max_pool2d_with_offsets_backward(
    ctx: Context,
    grad: Ref,
    offsets: Ref,
    shape: Sequence[int],
    strides: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Ref:
    windows, steps = fixed_windows(shape[-2:], grad.shape[-2:], kernel, stride, padding, dilation, 2)
    pitch = Offsets.of(kernel, stride, padding, dilation).pitch

    def position(nest: NestBuilder, element: Sequence[Expr], window: Sequence[Expr]) -> Value:
        way = [i - w.start(o) for w, i, o in zip(windows, element, window, strict=True)]
        return nest.index(linearize(way, (pitch, 1)), torch.int32)

    def place(nest: NestBuilder) -> tuple[Sequence[IndexLike], Value | None]:
        checked, offset = Checked(nest), nest.cast(nest.load(offsets, nest.p), torch.int64)
        way = nest.op("floordiv", offset, pitch), nest.op("mod", offset, pitch)
        coordinates = [
            checked.coordinate(nest.index(w.start(o)) + far, w.size, safe=True)
            for w, o, far in zip(windows, nest.p[-2:], way, strict=True)
        ]
        return (*nest.p[:-2], *coordinates), checked.mask

    covers = [Cover.fixed(w, s) for w, s in zip(windows, steps, strict=True)]
    return _max_gradient(ctx, grad, offsets, covers, position, place)


def _in_planes(ctx: Context, indices: Ref, n: int, safe: bool) -> Place:
    """Where in the result each window's maximum lies; indices are positions within a plane of the last n dimensions."""
    extents = sizes(ctx.meta.shape[-n:])

    def place(nest: NestBuilder) -> tuple[Sequence[IndexLike], Value | None]:
        checked = Checked(nest)
        at = checked.coordinate(nest.load(indices, nest.p), product(extents), safe=safe)
        return (*nest.p[: len(nest.p) - n], *delinearize(at, extents)), checked.mask

    return place


def _unpooled(ctx: Context, x: Ref, indices: Ref, n: int) -> Ref:
    """zeros with each window's maximum back in its place."""
    refuse_where_deterministic("maxima that may meet at one place")
    out = ctx.result()
    with ctx.nest(out.shape) as nest:
        nest.store(out, nest.p, nest.const(0, out.dtype))
    updates = Updates(x.shape, _in_planes(ctx, indices, n, safe=False), lambda nest: nest.load(x, nest.p))
    updates.apply(ctx, out, AccessMode.OVERWRITE, lambda nest, v: v)
    return out


@lowering(aten.max_unpool2d.default)
def max_unpool2d(ctx: Context, x: Ref, indices: Ref, size: Sequence[int]) -> Ref:
    return _unpooled(ctx, x, indices, 2)


@lowering(aten.max_unpool3d.default)
def max_unpool3d(
    ctx: Context, x: Ref, indices: Ref, size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Ref:
    return _unpooled(ctx, x, indices, 3)


def _max_pool_backward(
    ctx: Context,
    grad: Ref,
    x: Ref,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Ref,
) -> Ref:
    n = 2 if len(kernel) <= 2 and ctx.node.target is aten.max_pool2d_with_indices_backward.default else 3
    return _max_gradient_of_indices(ctx, grad, indices, _fixed_covers(x, grad, kernel, stride, padding, dilation, n))


lowering(aten.max_pool2d_with_indices_backward.default, aten.max_pool3d_with_indices_backward.default)(
    _max_pool_backward
)


@lowering(aten.adaptive_max_pool2d_backward.default)
def adaptive_max_pool2d_backward(ctx: Context, grad: Ref, x: Ref, indices: Ref) -> Ref:
    return _max_gradient_of_indices(ctx, grad, indices, _adaptive_covers(x, grad, 2))


@lowering(aten.adaptive_max_pool3d_backward.default)
def adaptive_max_pool3d_backward(ctx: Context, grad: Ref, x: Ref, indices: Ref) -> Ref:
    return _max_gradient_of_indices(ctx, grad, indices, _adaptive_covers(x, grad, 3))


# -- average --------------------------------------------------------------------------------------


def _average_gradient(
    ctx: Context, grad: Ref, covers: Sequence[Cover], include_padding: bool = True, divisor: int | None = None
) -> Ref:
    """Each window sends its gradient, divided by how many elements it averaged, to each of them."""
    require_floating(grad)
    dtype = compute_dtype(grad.dtype)

    def term(nest: NestBuilder, element: tuple[Expr, ...], windows: tuple[Expr, ...], exist: Value | None) -> Value:
        count: Value | None = None
        for cover, i, o in zip(covers, element, windows, strict=True):
            exist = both(exist, cover.contains(nest, i, o))
            if divisor is None:
                own = cover.window.divisor(nest, o, include_padding, dtype)
                if isinstance(own, Value):
                    count = own if count is None else count * own
        value = nest.cast(nest.load(grad, (*nest.p[: len(nest.p) - len(covers)], *windows), exist), dtype)
        if count is None:
            return value
        return value / count if exist is None else nest.where(exist, value / count, 0)

    common = prod(cover.window.common_span(include_padding) or 1 for cover in covers)
    return _gathered(ctx, covers, term, common if divisor is None else divisor)


def _avg_pool_backward(
    ctx: Context,
    grad: Ref,
    x: Ref,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    include_padding: bool,
    divisor: int | None,
) -> Ref:
    n = 2 if ctx.node.target is aten.avg_pool2d_backward.default else 3
    covers = _fixed_covers(x, grad, kernel, stride, padding, 1, n)
    return _average_gradient(ctx, grad, covers, include_padding, divisor)


lowering(aten.avg_pool2d_backward.default, aten.avg_pool3d_backward.default)(_avg_pool_backward)


@lowering(aten._adaptive_avg_pool2d_backward.default)
def adaptive_avg_pool2d_backward(ctx: Context, grad: Ref, x: Ref) -> Ref:
    return _average_gradient(ctx, grad, _adaptive_covers(x, grad, 2))


@lowering(aten._adaptive_avg_pool3d_backward.default)
def adaptive_avg_pool3d_backward(ctx: Context, grad: Ref, x: Ref) -> Ref:
    return _average_gradient(ctx, grad, _adaptive_covers(x, grad, 3))
