"""How a body's reductions and scans share a tile: which axes of the row are held whole and which may be looped.

    all reduce {r}             one reduced dimension, whole or looped as its size asks
    some {p}, others {c}       row and column: a program walks over its rows p (a loop) and holds the columns c whole;
                               row results are complete in each step, column results add up along the loop

A scan needs its row as a reduction does, in one order; a row-and-column program has none.

Enters: a body over axes. Leaves: a ReducedShape, or a sentence that says why one kernel cannot do it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from fusec.ir.analysis import instr_axes, varying
from fusec.ir.index import as_int, product
from fusec.ir.types import Axis, Instr, LoopNest
from fusec.schedule.strides import unit_axis

WHOLE_LIMIT = 8192  # columns a row-and-column program holds, beside the sums along the columns


@dataclass(frozen=True, slots=True)
class ReducedShape:
    """whole: reduced axes of one row. loop: reduced axes a row-and-column program walks along; else empty."""

    whole: frozenset[str]
    loop: frozenset[str] = frozenset()

    @property
    def axes(self) -> frozenset[str]:
        return self.whole | self.loop


def reduced_axes(body: Sequence[Instr]) -> frozenset[str]:
    """Every axis that some reduction of the body removes or some scan runs along."""
    return frozenset(a for i in body for a in i.row_axes)


@lru_cache(maxsize=4096)
def reduced_shape(body: tuple[Instr, ...], axes: tuple[Axis, ...]) -> ReducedShape | str:
    """The shape of the reductions, or why they do not fit into one kernel."""
    extents = {a.name: a.extent for a in axes}
    sets = {frozenset(a for a in i.row_axes if a in extents) for i in body if i.row_axes} - {frozenset()}
    orders = {tuple(a for a in i.scanned_axes if a in extents) for i in body if i.scanned_axes}
    if len(orders) > 1:
        return "scan along different axes, or the same in different orders"
    if len(sets) <= 1:
        return ReducedShape(next(iter(sets), frozenset()))
    described = " and ".join(sorted("(" + ", ".join(f"{a}<{extents[a]}" for a in sorted(s)) + ")" for s in sets))
    refusal = f"reduce over different axes: {described}"
    if len(sets) > 2 or frozenset.intersection(*sets) or orders:
        return refusal
    unit = unit_axis(LoopNest("", axes, body))
    whole = next((s for s in sets if unit in s), None)
    if whole is None:
        return refusal
    (loop,) = sets - {whole}
    columns = as_int(product(extents[a] for a in whole))
    if columns is None or columns > WHOLE_LIMIT:
        return f"{refusal}; the row is too long to be held beside the sums along the columns"
    if _column_results_used(body, axes, loop):
        return f"{refusal}; what is summed along the rows would be needed inside the same loop"
    return ReducedShape(whole, loop)


def _column_results_used(body: tuple[Instr, ...], axes: tuple[Axis, ...], loop: frozenset[str]) -> bool:
    """True when a line that varies along the loop needs a result of the whole loop."""
    values = varying(body, axes)
    late: set[str | None] = set()
    for instr in body:
        if late & set(instr.value_operands):
            if instr.reduced_axes or instr_axes(instr, values) & loop:
                return True
            late.add(instr.out)
        elif set(instr.reduced_axes) & loop:
            late.add(instr.out)
    return False
