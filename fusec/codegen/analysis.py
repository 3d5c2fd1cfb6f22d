"""What the emitter asks of a plan before it writes: shapes, regions and uses of values.

Enters: a KernelPlan and its Dims. Leaves:

    varying[v]   the tile dimensions along which value v varies
    region[k]    where line k is written: before, in or after the loop of its phase, and in which walk along a row
    uses[v]      how often v is read, and in which regions
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from fusec.codegen.tiles import Dim
from fusec.errors import FusecError
from fusec.ir.index import Expr, symbols_of
from fusec.ir.kernels import DimKind, KernelPlan
from fusec.ir.ops import is_reduction, is_scan
from fusec.ir.types import Instr


class Part(IntEnum):
    """Part of a phase. A kernel without a loop has only BEFORE."""

    BEFORE = 0
    LOOP = 1
    AFTER = 2


class Region(NamedTuple):
    """Where a line is written: in which phase, and before, in or after its loop.

    walk, inside: where a row is walked along in parts, in which of the walks that follow one another there, and before,
    in or after the loop over the parts.
    """

    phase: int
    part: Part
    walk: int = 0
    inside: Part = Part.BEFORE

    @property
    def order(self) -> tuple[int, int]:
        """Passes over the same memory, first ones first."""
        return self.phase, self.walk

    @property
    def around(self) -> Region:
        """The region around the loop over the parts."""
        return Region(self.phase, self.part)


@dataclass(frozen=True)
class Analysis:
    """See the module's docstring; lines are numbered over plan.body. live: whether a line must be written."""

    varying: dict[str, frozenset[str]]
    regions: tuple[Region, ...]
    live: tuple[bool, ...]
    uses: Counter[str]
    users: dict[str, tuple[int, ...]]
    defined: dict[str, int]


def analyze(plan: KernelPlan, dims: tuple[Dim, ...]) -> Analysis:
    """Shapes, regions and uses of every line of the plan."""
    dim_of_axis = {a.name: d.name for d in dims for a in d.axes}
    loop = next((d.name for d in dims if d.kind is DimKind.LOOP), None)
    varying: dict[str, frozenset[str]] = {}
    regions: list[Region] = []
    for number, phase in enumerate(plan.phases):
        after: set[str] = set()
        for instr in phase:
            spread = spread_of(instr, varying, dim_of_axis)
            along: frozenset[str] = row_dims(plan, instr, dims) if instr.row_axes else frozenset()
            removed: frozenset[str] = along if is_reduction(instr.op) else frozenset()
            if instr.out is not None:
                varying[instr.out] = spread - removed
            part = Part.BEFORE
            if loop is not None:
                if any(v in after for v in instr.value_operands):
                    part = Part.AFTER
                elif loop in spread or loop in removed:
                    part = Part.LOOP
            if part is Part.AFTER and loop in spread:
                raise FusecError(
                    f"{plan.name}: {instr.op} {instr.out or ''} varies along the loop and needs a reduction of its own "
                    "phase; it belongs to the next phase"
                )
            ends_loop = loop is not None and loop in removed  # a reduction over axes of extent 1 is a copy
            if instr.out is not None and (part is Part.AFTER or ends_loop):
                after.add(instr.out)
            regions.append(Region(number, part))
    live, uses, users, defined = _uses(plan.body)
    parts = next((d.name for d in dims if d.kind is DimKind.PARTS), None)
    if parts is not None:
        regions = _walks(plan, regions, users, varying, parts, dim_of_axis)
    return Analysis(varying, tuple(regions), live, uses, users, defined)


def _walks(
    plan: KernelPlan,
    regions: list[Region],
    users: dict[str, tuple[int, ...]],
    varying: dict[str, frozenset[str]],
    parts: str,
    dim_of_axis: dict[str, str],
) -> list[Region]:
    """The regions of a kernel that walks along its rows in parts; all that varies along a row is in such a walk.

    What needs a sum of the row belongs to the next walk: the plan has the lines that both need twice.
    """
    result = list(regions)
    summed: dict[str, int] = {}  # what exists only once a walk has ended -> that walk
    walk_of: dict[str, int] = {}
    along = [parts in spread_of(i, varying, dim_of_axis) for i in plan.body]
    for k, instr in enumerate(plan.body):
        late = [summed[v] for v in instr.value_operands if v in summed]
        walk = max(
            [w + 1 if along[k] else w for w in late] + [walk_of.get(v, 0) for v in instr.value_operands], default=0
        )
        part = Part.LOOP if along[k] and regions[k].part is Part.BEFORE else regions[k].part
        walk = 0 if part is Part.AFTER else walk
        inside = Part.LOOP if along[k] else Part.AFTER if late else Part.BEFORE
        result[k] = Region(regions[k].phase, part, walk, inside)
        if instr.out is not None:
            walk_of[instr.out] = walk
            if inside is Part.AFTER or (along[k] and parts not in varying[instr.out]):
                summed[instr.out] = walk
    for k in range(len(plan.body) - 1, -1, -1):  # a line and its reader are in one walk
        instr = plan.body[k]
        readers = [result[u] for u in users.get(instr.out or "", ()) if along[u]]
        if along[k] and instr.out is not None and parts in varying[instr.out] and readers:
            same = [r for r in readers if r.part is result[k].part]
            result[k] = max([result[k], *same], key=lambda r: r.walk)
    return result


def spread_of(instr: Instr, varying: dict[str, frozenset[str]], dim_of_axis: dict[str, str]) -> frozenset[str]:
    """Dimensions over which a line is computed: those of its operands and of its index expressions."""
    found: set[str] = set()
    for name in instr.value_operands:
        found |= varying[name]
    for expr in instr.index_exprs:
        found |= dims_of(expr, dim_of_axis)
    found.update(dim_of_axis[a] for a in instr.scanned_axes if a in dim_of_axis)
    return frozenset(found)


def dims_of(expr: Expr, dim_of_axis: dict[str, str]) -> set[str]:
    """Tile dimensions whose axes an expression holds."""
    return {dim_of_axis[s.name] for s in symbols_of(expr) if s.kind == "axis" and s.name in dim_of_axis}


def row_dims(plan: KernelPlan, instr: Instr, dims: Iterable[Dim]) -> frozenset[str]:
    """The tile dimension a reduction removes or a scan runs along: a whole one, or none when its axes have extent 1."""
    extents = {a.name: a.extent for a in plan.axes}
    axes = [a for a in instr.row_axes if extents[a] != 1]
    if not axes:
        return frozenset()
    for dim in dims:
        own = [a.name for a in dim.axes if a.extent != 1]
        same = own == axes if is_scan(instr.op) else set(own) == set(axes)
        if same and dim.kind is not DimKind.GRID:
            return frozenset({dim.name})
    kinds = ", ".join(f"{d.name} ({d.kind.value}): {' '.join(a.name for a in d.axes)}" for d in dims)
    verb, can = ("scans", "scan, in its order,") if is_scan(instr.op) else ("removes", "reduce")
    raise FusecError(
        f"{plan.name}: {instr.op} {instr.out} {verb} the axes {' '.join(axes)}; a kernel can {can} all axes "
        f"of its reduced dimension, and nothing else. Its dimensions: {kinds}"
    )


def _uses(
    body: tuple[Instr, ...],
) -> tuple[tuple[bool, ...], Counter[str], dict[str, tuple[int, ...]], dict[str, int]]:
    """Dead lines are dropped: a line is live when it stores or a live line reads it."""
    live = [False] * len(body)
    uses: Counter[str] = Counter()
    users: dict[str, list[int]] = defaultdict(list)
    defined = {i.out: k for k, i in enumerate(body) if i.out is not None}
    for k in range(len(body) - 1, -1, -1):
        instr = body[k]
        live[k] = instr.out is None or uses[instr.out] > 0
        if live[k]:
            operands = list(instr.args) + [n for n in instr.value_operands if n not in instr.args]
            uses.update(operands)
            for name in dict.fromkeys(operands):
                users[name].append(k)
    return tuple(live), uses, {n: tuple(reversed(ks)) for n, ks in users.items()}, defined
