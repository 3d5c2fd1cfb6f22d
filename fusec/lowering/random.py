"""Random numbers as index -> Philox: what `fusec.capture.random` leaves in a graph.

    u = fusec.random_uniform(seeds, 0, [64, 128], [0, 1], float32)
    nest n0 (p0<64, p1<128): %0 = load seeds[0]; %1 = index 128*p0 + p1; %2:i32 = philox %0, %1, 0;
                             %3 = and %2, 16777215; %4:f32 = cast %3; %5 = mul %4, 5.9604645e-08; store u[...], %5

The numbers follow the row-major position of the element, whatever the strides. Four neighbours share a block of
Philox (see kernels/philox.py): word w of each costs a quarter of one where a thread holds all four.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from fusec.capture.random import uniform_digits
from fusec.ir.index import IndexLike, linearize
from fusec.lowering.builder import NestBuilder, Value
from fusec.lowering.context import Context
from fusec.lowering.ref import Ref, contiguous_strides
from fusec.lowering.registry import lowering

ops = torch.ops.fusec


class _Draw:
    """The random words of an element, as Values."""

    def __init__(self, nest: NestBuilder, seeds: Ref, which: int, shape: tuple[IndexLike, ...]) -> None:
        self.nest = nest
        self.seed = nest.load(seeds, [which])
        self.position = nest.index(linearize(nest.p, contiguous_strides(shape)))

    def word(self, number: int, bits: int) -> Value:
        """The lowest `bits` (at most 31) bits of a word."""
        return self.nest.op("and", self.nest.philox(self.seed, self.position, number), (1 << bits) - 1)

    def unit(self, first: int, digits: int, dtype: torch.dtype) -> Value:
        """A multiple of 2**-digits in [0, 1)."""
        if digits <= 31:
            return self.nest.cast(self.word(first, digits), dtype) * 2.0**-digits
        whole = self.nest.cast(self.nest.philox(self.seed, self.position, first), torch.int64)
        low = self.nest.op("and", whole, 0xFFFFFFFF)
        high = self.nest.op("shl", self.nest.cast(self.word(first + 1, digits - 32), torch.int64), 32)
        return self.nest.cast(self.nest.op("or", low, high), dtype) * 2.0**-digits


@lowering(ops.random_uniform)
def random_uniform(ctx: Context, seeds: Ref, which: int, *_: Any) -> Ref:
    out = ctx.result()
    digits = uniform_digits(out.dtype)
    with ctx.nest(out.shape) as nest:
        draw = _Draw(nest, seeds, which, out.shape)
        dtype = torch.float64 if digits > 31 else torch.float32
        nest.store(out, nest.p, draw.unit(0, digits, dtype))
    return out


@lowering(ops.random_normal)
def random_normal(ctx: Context, seeds: Ref, which: int, *_: Any) -> Ref:
    """Box and Muller: sqrt(-2 ln u) cos(2 pi v), u in (0, 1]."""
    out = ctx.result()
    with ctx.nest(out.shape) as nest:
        draw = _Draw(nest, seeds, which, out.shape)
        if out.dtype is torch.float64:
            u = nest.op("sub", nest.const(1.0, torch.float64), draw.unit(0, 53, torch.float64))
            v = draw.unit(2, 53, torch.float64)
        else:
            u = nest.cast(draw.word(0, 31), torch.float32) * 2.0**-31 + 2.0**-32
            v = draw.unit(1, 24, torch.float32)
        radius = nest.op("sqrt", nest.op("log", u) * -2.0)
        nest.store(out, nest.p, radius * nest.op("cos", v * (2 * math.pi)))
    return out


@lowering(ops.random_integers)
def random_integers(ctx: Context, seeds: Ref, which: int, low: int, high: int, *_: Any) -> Ref:
    out = ctx.result()
    with ctx.nest(out.shape) as nest:
        draw = _Draw(nest, seeds, which, out.shape)
        upper = nest.op("shl", nest.cast(draw.word(0, 31), torch.int64), 31)
        bits = nest.op("or", upper, nest.cast(draw.word(1, 31), torch.int64))
        span = nest.index(high - low)
        nest.store(out, nest.p, nest.cast(nest.op("mod", bits, span) + nest.index(low), out.dtype))
    return out
