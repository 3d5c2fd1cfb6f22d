"""Linear and cubic upsampling in one, two or three dimensions, and the gradients of all upsampling.

Enters: a view and an output size, with scale factors where they were given. Leaves: one nest that loads the
neighbours of every output's source position and weighs them; its gradient adds weighed values at the same places.

    upsample_linear1d(x, 8) of f32[2, 4]

    nest n0 (p0<2, p1<8):   s = max((p1 + 0.5)*0.5 - 0.5, 0);  i = floor(s);  t = s - i
                            y = (1 - t)*x[i] + t*x[min(i + 1, 3)]

Positions and weights are computed as PyTorch does, in float32 (float64 for float64). The cubic convolution has
A = -0.75 (Keys, 1981). A gradient is gathered: every element sums up what the outputs it may have gone into send back,
of which there are equally many for all. Only where those are too many it is summed atomically.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from fusec.ir.index import Expr, IndexLike, as_int, floordiv
from fusec.ir.types import AccessMode
from fusec.lowering.builder import NestBuilder, Value, compute_dtype
from fusec.lowering.context import Context, static
from fusec.lowering.pooling import Pool
from fusec.lowering.pooling import Taps as Window
from fusec.lowering.positions import both, inside
from fusec.lowering.reduction import require_floating
from fusec.lowering.ref import Ref
from fusec.lowering.registry import NotLowered, lowering
from fusec.lowering.scatter import accumulated
from fusec.lowering.upsample import Resampling, step

aten = torch.ops.aten

A = -0.75

MOST_OUTPUTS = 512  # that an element looks at: more are cheaper to add atomically

Place = TypeVar("Place")  # what says where a neighbour is
Taps = list[tuple[Expr, Value]]  # coordinate and weight of each neighbour


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension: `out` outputs from `size` elements, `scale` elements apart, the corners aligned or not."""

    size: int
    out: int
    scale: float
    align: bool

    @classmethod
    def of(cls, size: IndexLike, out: IndexLike, align: bool, factor: float | None, dtype: torch.dtype) -> Axis:
        n, m = as_int(size), as_int(out)
        if n is None or m is None:
            raise NotLowered("upsampling by sizes known only at run time")
        exact = dtype is torch.float64
        if align:
            scale = (n - 1) / (m - 1) if m > 1 else 0.0
        elif exact:
            scale = 1.0 / factor if factor is not None and factor > 0 else n / m
        else:
            scale = step(factor, n, m)
        return cls(n, m, scale if exact else torch.tensor(scale, dtype=torch.float32).item(), align)

    def position(self, nest: NestBuilder, o: Expr, dtype: torch.dtype) -> Value:
        at = nest.index(o, dtype)
        return at * self.scale if self.align else (at + 0.5) * self.scale - 0.5

    def linear(self, nest: NestBuilder, o: Expr, dtype: torch.dtype) -> Taps:
        if self.size == self.out:
            return [(o, nest.const(1, dtype))]
        source = nest.op("maximum", self.position(nest, o, dtype), 0.0)
        first = nest.op("minimum", nest.cast(source, torch.int64), self.size - 1)
        second = nest.op("minimum", first + 1, self.size - 1)
        t = nest.op("minimum", nest.op("maximum", source - nest.cast(first, dtype), 0.0), 1.0)
        return [(nest.as_index(first, self.size), 1.0 - t), (nest.as_index(second, self.size), t)]

    def cubic(self, nest: NestBuilder, o: Expr, dtype: torch.dtype) -> Taps:
        source = self.position(nest, o, dtype)
        floor = nest.op("floor", source)
        base = nest.cast(floor, torch.int64)
        found: Taps = []
        for k, weight in enumerate(cubic_weights(source - floor)):
            at = nest.op("minimum", nest.op("maximum", base + (k - 1), 0), self.size - 1)
            found.append((nest.as_index(at, self.size), weight))
        return found


def cubic_weights(t: Value) -> list[Value]:
    """Weights of the elements at -1, 0, 1 and 2 for a position t in [0, 1) behind element 0."""

    def near(d: Value) -> Value:
        return (d * (A + 2) - (A + 3)) * d * d + 1.0

    def far(d: Value) -> Value:
        return ((d * A - 5 * A) * d + 8 * A) * d - 4 * A

    return [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]


def weighed(
    taps: Sequence[Sequence[tuple[Place, Value | None]]],
    load: Callable[[tuple[Place, ...]], Value],
    where: tuple[Place, ...] = (),
) -> Value:
    """Sum of weight * load over all combinations of the dimensions' neighbours, innermost dimension first.

    A weight of None is 1.
    """
    if not taps:
        return load(where)
    total: Value | None = None
    for at, weight in taps[0]:
        term = weighed(taps[1:], load, (*where, at))
        term = term if weight is None else term * weight
        total = term if total is None else total + term
    assert total is not None
    return total


Kind = Callable[[Axis, NestBuilder, Expr, torch.dtype], Taps]


def _upsample(ctx: Context, x: Ref, n: int, kind: Kind, align: bool, factors: Sequence[float | None]) -> Ref:
    require_floating(x)
    out, dtype = ctx.result(), compute_dtype(x.dtype)
    axes = _axes(x.shape[-n:], out.shape[-n:], align, factors, dtype)
    with ctx.nest(out.shape) as nest:
        lead = nest.p[:-n]
        taps = [kind(axis, nest, o, dtype) for axis, o in zip(axes, nest.p[-n:], strict=True)]
        nest.store(out, nest.p, weighed(taps, lambda where: nest.load_f32(x, (*lead, *where))))
    return out


def _axes(
    sizes: Sequence[IndexLike],
    outs: Sequence[IndexLike],
    align: bool,
    factors: Sequence[float | None],
    dtype: torch.dtype,
) -> list[Axis]:
    return [Axis.of(n, m, align, f, dtype) for n, m, f in zip(sizes, outs, factors, strict=True)]


@dataclass(frozen=True, slots=True)
class Reach:
    """The outputs along one dimension that element i may have gone into: `count` of them from `start(i)` on."""

    size: int
    out: int
    before: int
    count: int

    @classmethod
    def of(cls, size: int, out: int, elements: Sequence[tuple[int, int]]) -> Reach:
        """elements: the first and the last that each output may be made of."""
        outputs: dict[int, list[int]] = {}
        for o, (low, high) in enumerate(elements):
            for i in range(low, high + 1):
                outputs.setdefault(i, []).append(o)
        before = max(i * out // size - found[0] for i, found in outputs.items())
        return cls(size, out, before, max(found[-1] - i * out // size for i, found in outputs.items()) + before + 1)

    def start(self, i: Expr) -> Expr:
        return floordiv(i * self.out, self.size) - self.before


Sources = Callable[[NestBuilder, Expr], Taps]  # the elements an output is made of, and their weights


def _gathered(ctx: Context, grad: Ref, reaches: Sequence[Reach], sources: Sequence[Sources]) -> Ref | None:
    """result[i] = sum of grad[o] * (the weight of element i in output o); None where there are too many outputs."""
    n, result = len(reaches), ctx.result()
    window = Window(tuple(r.count for r in reaches))
    if window.number > MOST_OUTPUTS:
        return None
    with ctx.nest(result.shape, window.reduced) as nest:
        element = nest.p[-n:]

        def sent(forth: Sequence[IndexLike]) -> Value:
            outputs = [r.start(i) + k for r, i, k in zip(reaches, element, forth, strict=True)]
            exist: Value | None = None
            for r, o in zip(reaches, outputs, strict=True):
                exist = both(exist, inside(nest, o, r.out))
            value = nest.load_f32(grad, (*nest.p[:-n], *outputs), exist)
            for source, o, i in zip(sources, outputs, element, strict=True):
                value = value * _share(nest, source(nest, o), i, value.dtype)
            return value

        nest.store(result, nest.p, window.reduce(nest, sent))
    return result


def _share(nest: NestBuilder, taps: Taps, i: Expr, dtype: torch.dtype) -> Value:
    """The weight of element i among the taps."""
    shares = [nest.where(nest.index(at - i).eq(0), weight, 0.0) for at, weight in taps]
    return functools.reduce(lambda a, b: a + b, shares)


def _reach(axis: Axis, kind: Kind) -> Reach:
    """What the float32 arithmetic of a kernel may round to is in reach, too."""
    beside = 1 if kind is Axis.cubic else 0

    def element(position: float) -> int:
        return min(max(math.floor(position), 0), axis.size - 1)

    sources = [o * axis.scale if axis.align else (o + 0.5) * axis.scale - 0.5 for o in range(axis.out)]
    taken = [(element(s - 1e-3 - beside), element(s + 1e-3 + 1 + beside)) for s in sources]
    return Reach.of(axis.size, axis.out, taken)


def _gradient(ctx: Context, grad: Ref, n: int, kind: Kind, align: bool, factors: Sequence[float | None]) -> Ref:
    """The transpose of _upsample: every output's gradient goes back to the neighbours it was made of."""
    require_floating(grad)
    dtype = compute_dtype(grad.dtype)
    result = ctx.result()
    axes = _axes(result.shape[-n:], grad.shape[-n:], align, factors, dtype)
    if all(a.size and a.out for a in axes):
        sources = [functools.partial(_taps, kind, a, dtype) for a in axes]
        gathered = _gathered(ctx, grad, [_reach(a, kind) for a in axes], sources)
        if gathered is not None:
            return gathered

    def add(total: Ref) -> None:
        with ctx.nest(grad.shape) as nest:
            value, lead = nest.load_f32(grad, nest.p), nest.p[:-n]
            taps = [kind(axis, nest, o, dtype) for axis, o in zip(axes, nest.p[-n:], strict=True)]
            for combination in itertools.product(*taps):
                term = value
                for _, weight in combination:
                    term = term * weight
                where = (*lead, *(at for at, _ in combination))
                nest.store(total, where, term, None, AccessMode.ATOMIC_ADD)

    return accumulated(ctx, result, add)


def _taps(kind: Kind, axis: Axis, dtype: torch.dtype, nest: NestBuilder, o: Expr) -> Taps:
    return kind(axis, nest, o, dtype)


def _register(name: str, n: int, kind: Kind) -> None:
    packet, backward = getattr(aten, name), getattr(aten, f"{name}_backward")

    def default(ctx: Context, x: Ref, size: Sequence[int], align: bool, *factors: float | None, **k: float) -> Ref:
        return _upsample(ctx, x, n, kind, align, _given(n, factors, k))

    def vec(
        ctx: Context, x: Ref, size: Sequence[int] | None, align: bool, factors: Sequence[float] | None = None
    ) -> Ref:
        return _upsample(ctx, x, n, kind, align, factors or [None] * n)

    def gradient(
        ctx: Context, grad: Ref, out: Sequence[int], size: Sequence[int], align: bool, *f: float | None, **k: float
    ) -> Ref:
        return _gradient(ctx, grad, n, kind, align, _given(n, f, k))

    lowering(packet.default)(default)
    lowering(packet.vec)(vec)
    lowering(backward.default)(gradient)


def _given(n: int, positional: Sequence[float | None], named: dict[str, float]) -> list[float | None]:
    given = [*positional, *named.values()]
    return [*given, *[None] * (n - len(given))]


_register("upsample_linear1d", 1, Axis.linear)
_register("upsample_bilinear2d", 2, Axis.linear)
_register("upsample_trilinear3d", 3, Axis.linear)
_register("upsample_bicubic2d", 2, Axis.cubic)


# -- gradients of nearest neighbours --------------------------------------------------------------


def _nearest_gradient(ctx: Context, grad: Ref, n: int, shift: float, factors: Sequence[float | None]) -> Ref:
    """Sums of the outputs that each element was copied to."""
    require_floating(grad)
    dtype, result = compute_dtype(grad.dtype), ctx.result()
    axes = _axes(result.shape[-n:], grad.shape[-n:], False, factors, torch.float32)
    plans = [Resampling(a.size, a.out, a.scale, shift) for a in axes]
    blocks = [_block(plan) for plan in plans]
    if all(block is not None for block in blocks):
        whole = [block or 1 for block in blocks]
        pool = Pool.fixed(grad, [static(s) for s in result.shape], whole, whole, 0, 1, n)
        with ctx.nest(result.shape, pool.taps.reduced) as nest:
            nest.store(result, nest.p, pool.reduce(nest, "sum", "add", dtype))
        return result

    if all(plan.size and plan.out for plan in plans):
        reaches = [Reach.of(plan.size, plan.out, [(i, i) for i in plan.elements()]) for plan in plans]
        gathered = _gathered(ctx, grad, reaches, [functools.partial(_only, plan, dtype) for plan in plans])
        if gathered is not None:
            return gathered

    def add(total: Ref) -> None:
        with ctx.nest(grad.shape) as nest:
            where = [plan.coordinate(nest, o) for plan, o in zip(plans, nest.p[-n:], strict=True)]
            nest.store(total, (*nest.p[:-n], *where), nest.load_f32(grad, nest.p), None, AccessMode.ATOMIC_ADD)

    return accumulated(ctx, result, add)


def _only(plan: Resampling, dtype: torch.dtype, nest: NestBuilder, o: Expr) -> Taps:
    return [(plan.coordinate(nest, o), nest.const(1, dtype))]


def _block(plan: Resampling) -> int | None:
    """How many outputs in a row copy each element, when all elements are copied equally often."""
    if not plan.size or plan.out % plan.size:
        return None
    every = plan.out // plan.size
    return every if plan.elements() == [o // every for o in range(plan.out)] else None


def _register_nearest(name: str, n: int, shift: float) -> None:
    def gradient(ctx: Context, grad: Ref, out: Sequence[int], size: Sequence[int], *f: float | None, **k: float) -> Ref:
        return _nearest_gradient(ctx, grad, n, shift, _given(n, f, k))

    lowering(getattr(aten, f"{name}_backward").default)(gradient)


for _n in (1, 2, 3):
    _register_nearest(f"upsample_nearest{_n}d", _n, 0.0)
    _register_nearest(f"_upsample_nearest_exact{_n}d", _n, 0.5)
