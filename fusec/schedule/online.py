"""Online softmax sums: the sum of exp(x - max x) in the same pass that finds the maximum.

Before: two passes                    After: one pass
  %1 = max[r0] %0                       %1 = max[r0] %0
  %2 = sub %0, %1                       %2 = exp_sum[r0] %0
  %3 = exp %2
  %4 = sum[r0] %3

Milakov and Gimelshein, "Online normalizer calculation for softmax": every lane keeps its running maximum m and a
sum s relative to it; a larger value rescales s by exp(m - m'). Worth it only where rows are looped: a row that is held
in registers is read once in any case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fusec.ir.analysis import eliminate_dead
from fusec.ir.types import Instr


def online_sums(body: Sequence[Instr]) -> tuple[Instr, ...]:
    """The body with every sum of exp(x - max x) computed online."""
    lines = {i.out: i for i in body if i.out is not None}
    return eliminate_dead(tuple(_online(i, lines) for i in body))


def _online(instr: Instr, lines: dict[str, Instr]) -> Instr:
    if instr.op != "sum" or not instr.dtype.is_floating_point:
        return instr
    exponential = lines[instr.args[0]]
    shifted = lines[exponential.args[0]] if exponential.op == "exp" else None
    if shifted is None or shifted.op != "sub":
        return instr
    value, largest = shifted.args[0], lines[shifted.args[1]]
    same = largest.op == "max" and largest.args[0] == value and set(largest.reduced_axes) == set(instr.reduced_axes)
    return replace(instr, op="exp_sum", args=(value,)) if same else instr
