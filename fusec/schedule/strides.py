"""How accesses walk through memory: the stride of each axis in each access, measured on the index itself.

x[4096*p0 + p1] ++ y[64*p1 + p0]     ->  p1 is x's unit axis, p0 is y's
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from math import gcd, prod

from fusec.ir.analysis import index_axes, varying
from fusec.ir.index import Expr, as_int, evaluate, symbols_of
from fusec.ir.types import Access, Axis, Buffer, Instr, LoopNest
from fusec.schedule.predicted import extent_hint, predicted_nest

HEAVY = 0.2  # share of the heaviest access above which an access deserves coalescing


def stride_of(index: Expr, axis: str, extents: Mapping[str, int]) -> int:
    """The most common change of the index when the axis advances by one; 0 when it does not use the axis."""
    names = {s.name: s for s in symbols_of(index)}
    if axis not in names or names[axis].kind != "axis" or extents[axis] < 2:
        return 0
    linear = index.linear()
    if linear is not None:
        return next((c for s, c in linear.items() if s.name == axis), 0)
    steps: list[int] = []
    for fraction in (0, 1, 2):
        point = dict.fromkeys(names, 0) | {a: (extents[a] - 1) * fraction // 3 for a in extents if a in names}
        here = min(point[axis], extents[axis] - 2)
        steps.append(evaluate(index, {**point, axis: here + 1}) - evaluate(index, {**point, axis: here}))
    return max(steps, key=steps.count)


def weighted_accesses(nest: LoopNest, table: Mapping[str, Buffer] | None = None) -> list[tuple[int, Access]]:
    """(bytes or elements touched, access), heaviest first; stores before loads of equal weight.

    Accesses, like every measure of this file, are those at the sizes of the first call.
    """
    nest = predicted_nest(nest)
    values = varying(nest.body, nest.axes)
    extents = {a.name: extent_hint(a.extent) or 1 for a in nest.axes}
    found: dict[tuple[str, Expr], tuple[int, int, Access]] = {}
    for instr in nest.body:
        if instr.access is not None:
            axes = index_axes(instr.access.index, values)
            weight = prod(extents[a] for a in axes if a in extents) * _size(instr, table)
            found.setdefault((instr.access.buffer, instr.access.index), (weight, instr.out is None, instr.access))
    ordered = sorted(found.values(), key=lambda item: (-item[0], not item[1]))
    return [(weight, access) for weight, _, access in ordered]


def heavy_accesses(nest: LoopNest, table: Mapping[str, Buffer]) -> list[Access]:
    """The accesses that move at least a fifth of the bytes of the heaviest, heaviest first."""
    accesses = weighted_accesses(nest, table)
    heaviest = accesses[0][0] if accesses else 0
    return [access for weight, access in accesses if weight >= HEAVY * heaviest]


def _size(instr: Instr, table: Mapping[str, Buffer] | None) -> int:
    return table[instr.access.buffer].itemsize if table is not None and instr.access is not None else 1


def axis_order(nest: LoopNest, axes: Sequence[Axis], table: Mapping[str, Buffer]) -> list[Axis]:
    """Axes from the largest stride to the smallest, by the heaviest access that uses each."""
    extents = {a.name: extent_hint(a.extent) or 1 for a in nest.axes}
    accesses = [access for _, access in weighted_accesses(nest, table)]

    def key(axis: Axis) -> tuple[int, ...]:
        return tuple(abs(stride_of(a.index, axis.name, extents)) for a in accesses)

    # An access that does not use an axis says nothing: compare by the first access that uses both.
    result: list[Axis] = []
    for axis in axes:
        mine = key(axis)
        spot = len(result)
        for position, other in enumerate(result):
            theirs = key(other)
            decided = next(((m, t) for m, t in zip(mine, theirs, strict=True) if m and t), None)
            if decided is not None and decided[0] > decided[1]:
                spot = position
                break
        result.insert(spot, axis)
    return result


def unit_axis(nest: LoopNest, table: Mapping[str, Buffer] | None = None) -> str | None:
    """The axis along which the heaviest access is contiguous, or None."""
    for _, access in weighted_accesses(nest, table):
        found = unit_axis_of(access, nest.axes)
        if found is not None:
            return found
    return None


def unit_axis_of(access: Access, axes: Sequence[Axis]) -> str | None:
    """The axis along which one access is contiguous, or None."""
    extents = {a.name: extent_hint(a.extent) or 1 for a in axes}
    return next((a.name for a in axes if stride_of(access.index, a.name, extents) == 1), None)


def uses(access: Access, axes: Set[str]) -> bool:
    """True when an access varies along one of the axes."""
    return any(s.name in axes for s in symbols_of(access.index))


def neighbours_of(access: Access, axes: Sequence[Axis], itemsize: int) -> int:
    """Points along the last axis that one access of 16 bytes takes, of a nest whose axes are one long row; 1 where
    they do not lie side by side, or not where such an access may begin."""
    inner = axes[-1]
    rest = access.index - inner.symbol
    if any(s.name == inner.name for s in symbols_of(rest)):
        return 1
    ends = [as_int(inner.extent) or 1] if len(axes) > 1 else []
    return gcd(max(16 // itemsize, 1), *ends, *(coefficient for _, coefficient in rest.terms))
