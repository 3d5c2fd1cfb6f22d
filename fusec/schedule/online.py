"""Online reductions: what takes two passes over a row, the second with a result of the first, in one.

Before: two passes                    After: one pass
  %1 = max[r0] %0                       %1 = max[r0] %0
  %2 = sub %0, %1                       %2 = exp_sum[r0] %0
  %3 = exp %2
  %4 = sum[r0] %3

  %1 = sum[r0] %0                       %1 = sum[r0] %0
  %2 = mul %1, 1/n                      %2 = mul %1, 1/n
  %3 = sub %0, %2                       %3 = dev_sum[r0] %0
  %4 = mul %3, %3
  %5 = sum[r0] %4

Milakov and Gimelshein, "Online normalizer calculation for softmax": every lane keeps its running maximum m and a
sum s relative to it; a larger value rescales s by exp(m - m'). Welford: every lane keeps its running mean, and the sum
of squares relative to it. Worth it only where rows are looped: a row that is held in registers is read once in any
case, and there `two_passes` takes the mean first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from fusec.ir.analysis import eliminate_dead
from fusec.ir.index import as_expr, as_int, product
from fusec.ir.ops import MOMENTS
from fusec.ir.types import Attr, Axis, Instr
from fusec.schedule.algebra import simplify_body

__all__ = ["online_sums", "two_passes"]


def online_sums(body: Sequence[Instr], axes: Sequence[Axis], looped: frozenset[str]) -> tuple[Instr, ...]:
    """The body with every sum of exp(x - max x), and of (x - mean x)^2, over looped axes computed online."""
    lines = {i.out: i for i in body if i.out is not None}
    return eliminate_dead(tuple(_online(i, lines, axes) if looped.intersection(i.reduced_axes) else i for i in body))


def _online(instr: Instr, lines: Mapping[str, Instr], axes: Sequence[Axis]) -> Instr:
    if instr.op != "sum" or not instr.dtype.is_floating_point:
        return instr
    summed = lines[instr.args[0]]
    if summed.op == "exp":
        difference, name, inner = lines[summed.args[0]], "exp_sum", "max"
    elif summed.op == "mul" and summed.args[0] == summed.args[1]:
        difference, name, inner = lines[summed.args[0]], "dev_sum", "sum"
    else:
        return instr
    if difference.op != "sub":
        return instr
    value, centre = difference.args[0], lines[difference.args[1]]
    if name == "dev_sum":
        total = _averaged(centre, lines, _points(instr, axes))
        if total is None:
            return instr
        centre = total
    same = centre.op == inner and centre.args[0] == value and set(centre.reduced_axes) == set(instr.reduced_axes)
    return replace(instr, op=name, args=(value,)) if same else instr


def _points(reduction: Instr, axes: Sequence[Axis]) -> int | None:
    return as_int(product(a.extent for a in axes if a.name in reduction.reduced_axes))


def _averaged(mean: Instr, lines: Mapping[str, Instr], points: int | None) -> Instr | None:
    """The sum that a mean of that many points was taken of."""
    if mean.op not in ("mul", "div") or points is None:
        return None
    total, factor = (lines[a] for a in mean.args)
    if factor.op != "const" or total.op != "sum":
        return None
    wanted = torch.tensor(points if mean.op == "div" else 1 / points, dtype=mean.dtype)
    return total if torch.tensor(factor.attr("value"), dtype=mean.dtype).equal(wanted) else None


def two_passes(body: Sequence[Instr], axes: Sequence[Axis], held: frozenset[str]) -> tuple[Instr, ...]:
    """The body with every dev_sum and mean over axes that are held whole in two steps over the row in registers.

    dev_sum: the sum of (x - mean)^2, the mean taken first. mean: corrected by what rounding a large sum lost.
    """
    if not any(i.op in MOMENTS and held.issuperset(i.reduced_axes) for i in body):
        return tuple(body)
    result: list[Instr] = []
    for instr in body:
        held_whole = instr.op in MOMENTS and held.issuperset(instr.reduced_axes)
        result += _centred(instr, axes) if held_whole else [instr]
    return simplify_body(result, axes)


def _centred(instr: Instr, axes: Sequence[Axis]) -> list[Instr]:
    """mean = sum x / n, then sum (x - mean)^2, or mean + sum (x - mean) / n (Chan, Golub and LeVeque, 1983)."""
    (value,), dtype, out = instr.args, instr.dtype, instr.out

    def line(name: str, op: str, *args: str, of: torch.dtype = dtype, **attrs: Attr) -> Instr:
        return Instr(f"{out}{name}", op, args, of, None, tuple(attrs.items()), instr.origin)

    points = product(a.extent for a in axes if a.name in instr.reduced_axes)
    number, over = as_int(points), instr.attr("axes")
    if number is None:
        counted = [
            line(".points", "index", of=torch.int64, expr=as_expr(points)),
            line(".count", "cast", f"{out}.points"),
        ]
    else:
        counted = [line(".count", "const", value=float(number))]
    found = [
        line(".total", "sum", value, axes=over),
        *counted,
        line(".mean", "div", f"{out}.total", f"{out}.count"),
        line(".apart", "sub", value, f"{out}.mean"),
    ]
    if instr.op == "dev_sum":
        square = line(".square", "mul", f"{out}.apart", f"{out}.apart")
        return [*found, square, line("", "sum", f"{out}.square", axes=over)]
    return [
        *found,
        line(".left", "sum", f"{out}.apart", axes=over),
        line(".drift", "div", f"{out}.left", f"{out}.count"),
        line(".exact", "add", f"{out}.mean", f"{out}.drift"),
        line(".infinite", "isnan", f"{out}.exact", of=torch.bool),  # of such a row the drift is inf - inf
        line("", "where", f"{out}.infinite", f"{out}.mean", f"{out}.exact"),
    ]
