"""May two nests share a kernel? A fused nest, or a Refusal whose reason is a sentence.

The rule: bring both onto one set of axes; every value that moves between them must then be read where it was
written; all reductions must remove the same axes R, or some the rows and others the columns (`reduced.py`); every
axis outside R must be run over by both sides, else one side's work would be repeated by other program instances.

    n3 (p0<64, r0<4096): ss[p0] = sum x*x       n7 (p0<64, p1<4096): y[4096*p0 + p1] = x * ss[p0]
    ->  axes (p0<64, r0<4096), R = {r0}; n7 runs over both, n3 too
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fusec.ir.index import symbols_of
from fusec.ir.types import Access, AccessMode, AxisKind, Instr, LoopNest
from fusec.schedule.axes import Alignment, Matcher, align, rewrite_axes
from fusec.schedule.merge import join
from fusec.schedule.reduced import reduced_axes, reduced_shape


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why two nests may not share a kernel."""

    reason: str


def fuse_nests(left: LoopNest, right: LoopNest, precision: str) -> LoopNest | Refusal:
    """The nest that does left's work, then right's; right must not be needed by left."""
    if any(a.extent == 0 for a in (*left.axes, *right.axes)):
        return Refusal(f"{left.name} or {right.name} has no elements")
    flows = _flows(left, right)
    if isinstance(flows, Refusal):
        return flows
    matcher = Matcher.of(left.axes, right.axes)
    for written, read in flows:
        if not matcher.pair(written.index, read.index):
            return Refusal(_mismatch(left, right, written, read))
    _pair_shared_loads(matcher, left, right)
    matcher.pair_rest()
    alignment = align(matcher, left.axes, right.axes)
    left_body = rewrite_axes(left.body, alignment.left, alignment.left_names)
    right_body = rewrite_axes(right.body, alignment.right, alignment.right_names)
    refusal = _check_axes(left, right, left_body, right_body, alignment)
    refusal = refusal or _check_flows(left, right, left_body, right_body)
    if refusal is not None:
        return refusal
    body = join(left_body, right_body, precision)
    shape = reduced_shape(body, alignment.axes)  # once more: now values flow from one side to the other
    if isinstance(shape, str):
        return Refusal(f"{left.name} and {right.name} {shape}")
    return with_reduction_kinds(LoopNest(f"{left.name}+{right.name}", alignment.axes, body))


def _stores(nest: LoopNest) -> dict[str, list[Instr]]:
    found: dict[str, list[Instr]] = {}
    for instr in nest.body:
        if instr.access is not None and instr.op != "load":
            found.setdefault(instr.access.buffer, []).append(instr)
    return found


def _flows(left: LoopNest, right: LoopNest) -> list[tuple[Access, Access]] | Refusal:
    """(access in left, access in right) pairs that must meet at the same element."""
    pairs: list[tuple[Access, Access]] = []
    written, rewritten = _stores(left), _stores(right)
    for name in written.keys() & rewritten.keys():
        return Refusal(f"{left.name} and {right.name} both write {name}")
    for load in right.loads:
        for store in written.get(load.buffer, ()):
            assert store.access is not None
            if len(written[load.buffer]) > 1 or len(store.args) > 1 or store.access.mode is not AccessMode.STORE:
                return Refusal(f"{left.name} writes {load.buffer} in segments and {right.name} reads it")
            if any(s.kind == "value" for s in symbols_of(load.index)):
                return Refusal(f"{right.name} reads {load.buffer} at positions it loads, {left.name} computes it")
            pairs.append((store.access, load))
    for load in left.loads:
        for store in rewritten.get(load.buffer, ()):
            assert store.access is not None
            if len(store.args) > 1 or store.access.mode is not AccessMode.STORE:
                return Refusal(f"{right.name} overwrites part of {load.buffer}, which {left.name} reads")
            pairs.append((load, store.access))
    return pairs


def _pair_shared_loads(matcher: Matcher, left: LoopNest, right: LoopNest) -> None:
    by_buffer: dict[str, list[Access]] = {}
    for access in left.loads:
        by_buffer.setdefault(access.buffer, []).append(access)
    # The widest accesses first: they fix the most axes.
    for access in sorted(right.loads, key=lambda a: -len(a.index.terms)):
        for other in by_buffer.get(access.buffer, ()):
            if matcher.pair(other.index, access.index):
                break


def _check_axes(
    left: LoopNest, right: LoopNest, left_body: tuple[Instr, ...], right_body: tuple[Instr, ...], alignment: Alignment
) -> Refusal | None:
    extents = {a.name: a.extent for a in alignment.axes}
    shape = reduced_shape((*left_body, *right_body), alignment.axes)
    if isinstance(shape, str):
        return Refusal(f"{left.name} and {right.name} {shape}")
    sides = ((left, alignment.left_names), (right, alignment.right_names))
    for nest, names in sides:
        covered = {n for axis in nest.axes for n in names[axis.name]}
        missing = extents.keys() - covered
        if missing - shape.axes:
            axis = sorted(missing - shape.axes)[0]
            other = f"{axis}<{extents[axis]}, which the other nest runs over in parallel"
            return Refusal(f"{nest.name} does not run over {other}")
        for part in (shape.whole, shape.loop):
            if missing & part and covered & part:
                return Refusal(f"{nest.name} runs over only a part of the reduced axes")
    return None


def _check_flows(
    left: LoopNest, right: LoopNest, left_body: tuple[Instr, ...], right_body: tuple[Instr, ...]
) -> Refusal | None:
    written = {i.access.buffer: i.access for i in left_body if i.access is not None and i.op != "load"}
    for instr in right_body:
        access = instr.access
        met = written.get(access.buffer) if instr.op == "load" and access is not None else None
        if met is not None and access is not None and met.index != access.index:
            return Refusal(_mismatch(left, right, met, access))
    overwritten = {i.access.buffer: i.access for i in right_body if i.access is not None and i.op != "load"}
    for instr in left_body:
        access = instr.access
        met = overwritten.get(access.buffer) if instr.op == "load" and access is not None else None
        if met is not None and access is not None and met.index != access.index:
            return Refusal(_mismatch(left, right, access, met))
    return None


def _mismatch(left: LoopNest, right: LoopNest, here: Access, there: Access) -> str:
    return f"{right.name} {_does(there)}, {left.name} {_does(here)}"


def _does(access: Access) -> str:
    verb = "reads" if access.mode is AccessMode.LOAD else "writes"
    return f"{verb} {access.buffer}[{access.index}]"


def with_reduction_kinds(nest: LoopNest) -> LoopNest:
    """Mark exactly the reduced axes as REDUCTION."""
    reduced = reduced_axes(nest.body)
    kinds: Mapping[bool, AxisKind] = {True: AxisKind.REDUCTION, False: AxisKind.PARALLEL}
    return replace(nest, axes=tuple(replace(a, kind=kinds[a.name in reduced]) for a in nest.axes))
