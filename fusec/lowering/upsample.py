"""Nearest-neighbour upsampling in one, two or three dimensions.

Enters: a view and an output size or scale factors. Leaves: one nest, a load at scaled coordinates.

    upsample_nearest2d(x, (8, 8)) of f32[1, 3, 4, 4]

    nest n0 (p1<3, p2<8, p3<8):
      %0:f32 = load x[16*p1 + 4*((p2)//2) + (p3)//2]
      store upsample[64*p1 + 8*p2 + p3], %0

PyTorch takes element floor(o * scale) with a float32 scale ("nearest-exact": floor((o + 0.5) * scale)). The
sizes are known, so the elements it takes are computed here once. Where they are those of an integer
division the coordinate is an index expression; elsewhere the kernel does the same float32 arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fusec.ir.index import Expr, as_int, floordiv
from fusec.ir.modes import real_tensors
from fusec.lowering.builder import NestBuilder
from fusec.lowering.context import Context
from fusec.lowering.ref import Ref
from fusec.lowering.registry import NotLowered, lowering

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Resampling:
    """One dimension: output coordinate o takes input element min(floor((o + shift) * scale), size - 1)."""

    size: int
    out: int
    scale: float  # a float32 value
    shift: float  # 0.0, or 0.5 for nearest-exact

    def elements(self) -> list[int]:
        """The input element of every output coordinate, in float32 arithmetic as PyTorch's."""
        with real_tensors():
            o = torch.arange(self.out, dtype=torch.float32) + self.shift
            scaled = torch.floor(o * torch.tensor(self.scale, dtype=torch.float32))
            found: list[int] = scaled.to(torch.int64).clamp(0, max(self.size - 1, 0)).tolist()
            return found

    def coordinate(self, nest: NestBuilder, o: Expr) -> Expr:
        exact = self._division(o)
        if exact is not None:
            return exact
        position = nest.index(o, torch.float32)
        scaled = nest.op("floor", (position + self.shift if self.shift else position) * self.scale)
        element = nest.op("minimum", nest.cast(scaled, torch.int64), self.size - 1)
        return nest.as_index(element, self.size)

    def _division(self, o: Expr) -> Expr | None:
        """(2*o + 2*shift) * size // (2 * out) if that takes the same elements."""
        twice = int(2 * self.shift)
        if self.out and self.elements() == [(2 * i + twice) * self.size // (2 * self.out) for i in range(self.out)]:
            return floordiv((2 * o + twice) * self.size, 2 * self.out)
        return None


def step(factor: float | None, size: int, out: int) -> float:
    """The step from one output to the next in input elements: 1 / factor if a factor was given, else size / out."""
    numerator, denominator = (1.0, factor) if factor is not None and factor > 0 else (float(size), float(out))
    if factor is not None and factor > 0:
        return torch.tensor(numerator / denominator, dtype=torch.float32).item()
    return (torch.tensor(numerator, dtype=torch.float32) / torch.tensor(denominator, dtype=torch.float32)).item()


def _nearest(ctx: Context, x: Ref, factors: Sequence[float | None], n: int, shift: float) -> Ref:
    out = ctx.result()
    sizes = [as_int(s) for s in x.shape[-n:]]
    outs = [as_int(s) for s in out.shape[-n:]]
    plans: list[Resampling] = []
    for size, extent, factor in zip(sizes, outs, factors, strict=True):
        if size is None or extent is None:
            raise NotLowered("upsampling by sizes known only at run time")
        plans.append(Resampling(size, extent, step(factor, size, extent), shift))
    with ctx.nest(out.shape) as nest:
        lead = nest.p[: len(nest.p) - n]
        where = [plan.coordinate(nest, o) for plan, o in zip(plans, nest.p[-n:], strict=True)]
        nest.store(out, nest.p, nest.load(x, (*lead, *where)))
    return out


def _register(name: str, n: int, shift: float) -> None:
    packet = getattr(aten, name)

    def default(ctx: Context, x: Ref, output_size: Sequence[int], *factors: float | None, **named: float | None) -> Ref:
        given = [*factors, *named.values()]
        return _nearest(ctx, x, [*given, *[None] * (n - len(given))], n, shift)

    def vec(ctx: Context, x: Ref, output_size: Sequence[int] | None, scale_factors: Sequence[float] | None) -> Ref:
        return _nearest(ctx, x, scale_factors or [None] * n, n, shift)

    lowering(packet.default)(default)
    lowering(packet.vec)(vec)


for _n in (1, 2, 3):
    _register(f"upsample_nearest{_n}d", _n, 0.0)
    _register(f"_upsample_nearest_exact{_n}d", _n, 0.5)
