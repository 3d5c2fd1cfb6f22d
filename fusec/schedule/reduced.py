"""How a body's reductions and scans share a tile: which axes of the row are held whole and which may be looped.

    all reduce {r}             one reduced dimension, whole or looped as its size asks
    some {p}, others {c}       row and column: a program walks over its rows p (a loop) and holds the columns c whole;
                               row results are complete in each step, column results add up along the loop; what
                               needs those at every row is a later phase, which walks over the rows again
                               columns too long to be held beside their sums are walked along in parts, in each step
                               once for the sums of the row and once, from the caches, for what needs them

A scan needs its row as a reduction does, in one order; a row-and-column program has none.

Enters: a body over axes. Leaves: a ReducedShape, or a sentence that says why one kernel cannot do it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from fusec.ir.analysis import instr_axes, varying
from fusec.ir.index import as_int, product
from fusec.ir.types import Axis, Instr, LoopNest
from fusec.schedule.strides import unit_axis

WHOLE_LIMIT = 8192  # columns that a row-and-column program holds whole; of more, parts
PART = 2048  # columns of a part, or twice as many
PART_ALIGNMENT = 8  # columns: rows of parts begin where an access of 16 bytes may
# (columns, sums along columns) that a program has registers for which walks in parts, of 16-bit elements and of wider
# ones: 24576 sums are 48 registers of each of 512 threads.
PART_ROOM = {True: (16384, 24576), False: (12288, 20480)}
STEP_POINTS = 4096  # points of one step of its walk
ROW_STAGES = 3  # steps that load while one is worked on: a norm's backward on an H200 takes 106 us, with one 162
_OF_PARTS = ("sum", "prod", "max", "min", "any", "all")
IDLE = 1.25  # lanes over points of a walk that need not divide its rows


@dataclass(frozen=True, slots=True)
class ReducedShape:
    """whole: reduced axes of one row. loop: reduced axes a row-and-column program walks along; else empty."""

    whole: frozenset[str]
    loop: frozenset[str] = frozenset()

    @property
    def axes(self) -> frozenset[str]:
        return self.whole | self.loop


class Use(Enum):
    """What becomes of sums along the columns."""

    NONE = "stored, or computed with"
    AFTER = "reduced once more, when the loop has ended"
    AGAIN = "needed at the rows, which are walked again"


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
    if not has_room(body, axes, loop, whole):
        return f"{refusal}; the row is too long to be held beside the sums along the columns"
    return ReducedShape(whole, loop)


def has_room(body: Sequence[Instr], axes: Sequence[Axis], loop: frozenset[str], whole: frozenset[str]) -> bool:
    """True when a program that walks along rows and adds up the columns `whole` has registers for it."""
    columns = as_int(product(a.extent for a in axes if a.name in whole))
    if columns is None or columns <= WHOLE_LIMIT:
        return columns is not None
    values = varying(body, axes)
    narrow = all(i.dtype.itemsize <= 2 for i in body if i.op == "load" and i.out is not None and values[i.out] & whole)
    most, most_sums = PART_ROOM[narrow]
    fits = columns <= most and columns * sums_across(body, loop) <= most_sums
    return fits and columns % PART_ALIGNMENT == 0 and _suits_parts(body, axes, loop)


def sums_across(body: Sequence[Instr], loop: frozenset[str]) -> int:
    """How many results a program adds up along its rows."""
    return sum(1 for i in body if set(i.reduced_axes) & loop)


def _suits_parts(body: Sequence[Instr], axes: Sequence[Axis], loop: frozenset[str]) -> bool:
    """True when columns are only added up and stored, rows are reduced step by step, and no store is over a load."""
    across = [i for i in body if set(i.reduced_axes) & loop]
    along = [i for i in body if i.reduced_axes and not set(i.reduced_axes) & loop]
    if column_use(tuple(body), tuple(axes), loop) is not Use.NONE or any(i.op != "sum" for i in across):
        return False
    if any(i.op not in _OF_PARTS for i in along):
        return False
    values = varying(body, axes)
    late = {i.out for i in across}
    loaded: set[str] = set()
    for instr in body:
        if late & set(instr.value_operands):
            late.add(instr.out)
            if any(values[v] for v in instr.value_operands if v not in late):
                return False
        if instr.access is not None and instr.op == "load":
            loaded.add(instr.access.buffer)
        elif instr.access is not None and instr.access.buffer in loaded:
            return False
    return all(values[i.args[0]] & loop for i in along)


@lru_cache(maxsize=4096)
def column_use(body: tuple[Instr, ...], axes: tuple[Axis, ...], loop: frozenset[str]) -> Use:
    """Who needs, in the same kernel, what a loop over rows adds up to."""
    values = varying(body, axes)
    late: set[str | None] = set()
    found = Use.NONE
    for instr in body:
        if late & set(instr.value_operands):
            if (instr_axes(instr, values) | set(instr.reduced_axes)) & loop:
                return Use.AGAIN
            found = Use.AFTER if instr.reduced_axes else found
            late.add(instr.out)
        elif set(instr.reduced_axes) & loop:
            late.add(instr.out)
    return found


def rows_at_once(rows: int, columns: int, use: Use) -> int:
    """Rows a row-and-column program takes in a step: few lanes are idle; none where rows are long and nobody waits."""
    fitting = (n for n in (64, 32, 16, 8, 4, 2) if n * next_power_of_2(columns) <= STEP_POINTS)
    return next((n for n in fitting if -(-rows // n) * n <= (rows if use is Use.NONE and n <= 8 else IDLE * rows)), 1)


def next_power_of_2(value: int) -> int:
    """The least power of two that is at least value; 1 for 0."""
    return 1 << max(value - 1, 0).bit_length()
