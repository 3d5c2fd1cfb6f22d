"""Full reductions over partial ones that exist already.

Enters: a Program. Leaves: a Program in which a reduction reads a smaller buffer where it can.

    n0 (p0<64, r0<4096):  rows[p0] = sum x[4096*p0 + r0] over r0
    n1 (r0<262144):       total[0] = sum x[r0] over r0
        ->
    n0 (p0<64, r0<4096):  rows[p0] = sum x[4096*p0 + r0] over r0
    n1 (r0<64):           total[0] = sum rows[r0] over r0

Exact for max, min, any, all and integers; floats are added in another order, as every split reduction does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations

from fusec.ir.analysis import eliminate_dead, instr_key, renumber, substitute_axes
from fusec.ir.index import IndexLike, delinearize, linearize, product, substitute
from fusec.ir.sizes import hint_of
from fusec.ir.types import Access, AccessMode, Axis, AxisKind, Instr, LoopNest, Program

__all__ = ["reuse_partial_reductions"]

OPS = ("sum", "prod", "max", "min", "any", "all")
MOST_AXES = 4  # orders of axes tried are factorial in this


@dataclass(frozen=True)
class _Reduction:
    """A nest with one reduction: its place in the program, the reducing line, and what that line reduces."""

    position: int
    nest: LoopNest
    instr: Instr
    operand: tuple[Instr, ...]  # the lines the operand needs, without the reduction
    partial: Access | None  # where the reduced value itself is stored, unrounded

    @property
    def reduced(self) -> tuple[str, ...]:
        return self.instr.reduced_axes


def reuse_partial_reductions(program: Program, *, reorder_floats: bool) -> Program:
    """Rewrite each reduction whose operand another nest already reduces over some of the same axes.

    rows[p0] = sum x[4096*p0 + r0] over r0          rows[p0] = sum x[4096*p0 + r0] over r0
    total[0] = sum x[r0] over r0              ->    total[0] = sum rows[r0] over r0
    """
    found = [r for r in _reductions(program) if reorder_floats or not _reorders_floats(r.instr)]
    nodes = list(program.nodes)
    moved: dict[int, list[int]] = {}  # position of a full reduction -> partial ones that must run before it
    used: set[int] = set()
    for full in sorted(found, key=lambda r: r.position):
        best: tuple[int, _Reduction, LoopNest] | None = None
        for other in found:
            if other.position == full.position or other.partial is None or other.position in moved:
                continue
            if full.position in used or not _can_precede(program, other, full):
                continue
            rewritten = _over_partial(full, other)
            size = hint_of(program.table[other.partial.buffer].numel)
            if rewritten is not None and (best is None or size < best[0]):
                best = (size, other, rewritten)
        if best is not None:
            _, other, rewritten = best
            nodes[full.position] = rewritten
            used.add(other.position)
            moved[full.position] = [other.position] if other.position > full.position else []
    early = {p for positions in moved.values() for p in positions}
    order: list[int] = []
    for position in range(len(nodes)):
        order += [p for p in moved.get(position, ()) if p not in order]
        if position not in early:
            order.append(position)
    return replace(program, nodes=tuple(nodes[p] for p in order)) if moved else program


def _reorders_floats(instr: Instr) -> bool:
    return instr.op in ("sum", "prod") and instr.dtype.is_floating_point


def _reductions(program: Program) -> Iterator[_Reduction]:
    for position, node in enumerate(program.nodes):
        if not isinstance(node, LoopNest) or len(node.reductions) != 1 or len(node.axes) > MOST_AXES:
            continue
        if program.changing.intersection(node.reads):  # equal loads need not see equal values
            continue
        instr = node.reductions[0]
        if instr.op not in OPS:
            continue
        ahead = node.body[: node.body.index(instr)]
        probe = Instr(None, "store", instr.args, instr.dtype)
        operand = eliminate_dead((*ahead, probe))
        partial = None
        for line in node.body:
            direct = line.op == "store" and line.args == (instr.out,) and line.dtype is instr.dtype
            if direct and line.access is not None and line.access.mode is AccessMode.STORE:
                partial = line.access if line.access.buffer not in program.changing else partial
        yield _Reduction(position, node, instr, operand, partial)


def _can_precede(program: Program, partial: _Reduction, full: _Reduction) -> bool:
    """The partial one is earlier already, or reads nothing that the full one does not."""
    return partial.position < full.position or set(partial.nest.reads) <= set(full.nest.reads)


def _over_partial(full: _Reduction, partial: _Reduction) -> LoopNest | None:
    """`full` reading the buffer of `partial`, or None when their operands or axes do not fit."""
    a, b = full.instr, partial.instr
    if (a.op, a.dtype, len(full.operand)) != (b.op, b.dtype, len(partial.operand)) or partial.partial is None:
        return None
    if [i.op for i in full.operand] != [i.op for i in partial.operand]:
        return None
    mine = [x for x in full.nest.axes if x.extent != 1]
    theirs = [x for x in partial.nest.axes if x.extent != 1]
    if product(x.extent for x in mine) != product(x.extent for x in theirs):
        return None
    expected = _keys(partial.operand)
    for order in permutations(theirs):
        groups = _group(mine, order)
        if groups is None or not _reduces_less(full, partial, mine, groups):
            continue
        mapping = {x.name: linearize([y.symbol for y in g], _strides(g)) for x, g in zip(mine, groups, strict=True)}
        if _keys(substitute_axes(full.operand, mapping)) == expected:
            return _rewrite(full, partial, partial.partial, mine, groups)
    return None


def _keys(operand: tuple[Instr, ...]) -> list[object]:
    return [instr_key(i) for i in renumber(operand)]


def _strides(group: tuple[Axis, ...]) -> list[IndexLike]:
    return [product(y.extent for y in group[i + 1 :]) for i in range(len(group))]


def _group(mine: list[Axis], order: tuple[Axis, ...]) -> list[tuple[Axis, ...]] | None:
    """Consecutive runs of `order`, one per axis of `mine`, with the same number of points each."""
    groups: list[tuple[Axis, ...]] = []
    rest = list(order)
    for axis in mine:
        taken: list[Axis] = []
        while rest and product(x.extent for x in taken) != axis.extent:
            taken.append(rest.pop(0))
        if not taken or product(x.extent for x in taken) != axis.extent:
            return None
        groups.append(tuple(taken))
    return None if rest else groups


def _reduces_less(full: _Reduction, partial: _Reduction, mine: list[Axis], groups: list[tuple[Axis, ...]]) -> bool:
    """The partial one reduces some of the axes that the full one reduces, and no others."""
    inside = {y.name for x, g in zip(mine, groups, strict=True) if x.name in full.reduced for y in g}
    done = {name for name in partial.reduced if any(name == y.name for g in groups for y in g)}
    return bool(done) and done < inside


def _rewrite(
    full: _Reduction, partial: _Reduction, place: Access, mine: list[Axis], groups: list[tuple[Axis, ...]]
) -> LoopNest:
    """load partial; reduce what is left; then the full one's own lines."""
    axes = [x for x in full.nest.axes if x.name not in full.reduced]
    coordinates: dict[str, IndexLike] = {}
    left: list[str] = []
    for axis, group in zip(mine, groups, strict=True):
        if axis.name not in full.reduced:
            parts = delinearize(axis.symbol, [y.extent for y in group])
            coordinates.update((y.name, part) for y, part in zip(group, parts, strict=True))
            continue
        for y in group:
            if y.name not in partial.reduced:
                name = next(f"r{k}" for k in range(len(axes) + 1) if all(f"r{k}" != x.name for x in axes))
                left.append(name)
                axes.append(Axis(name, y.extent, AxisKind.REDUCTION))
                coordinates[y.name] = axes[-1].symbol
    taken = {i.out for i in full.nest.body}
    value = next(f"%{k}" for k in range(len(taken) + 1) if f"%{k}" not in taken)
    load = Instr(
        value,
        "load",
        (),
        full.instr.dtype,
        Access(place.buffer, substitute(place.index, coordinates)),
        origin=full.instr.origin,
    )
    reduce = replace(full.instr, args=(value,), attrs=(("axes", tuple(left)),))
    body = tuple(reduce if i is full.instr else i for i in full.nest.body)
    return LoopNest(full.nest.name, tuple(axes), eliminate_dead((load, *body)))
