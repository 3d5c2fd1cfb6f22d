"""Phases: the passes a program makes over a reduced extent that is looped rather than held in registers.

Before: one body                          After: two phases
  %0 = load x[4096*x0 + r0]                 %0 = load x[4096*x0 + r0]
  %1 = sum[r0] %0                           %1 = sum[r0] %0
  %2 = sub %0, %1                           --
  store y[4096*x0 + r0], %2                 %2 = load x[4096*x0 + r0]
                                            %3 = sub %2, %1
                                            store y[4096*x0 + r0], %3

A value that varies along R lives within one phase; a later phase computes it again, from memory if it was stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fusec.ir.analysis import instr_axes, rename, varying
from fusec.ir.index import symbols_of
from fusec.ir.types import AccessMode, Axis, Instr


def levels(body: Sequence[Instr], axes: Sequence[Axis], reduced: frozenset[str]) -> dict[int, int]:
    """The earliest phase of each line, by its position in the body."""
    values = varying(body, axes)
    level: dict[str, int] = {}
    result: dict[int, int] = {}
    finished: dict[str, int] = {}  # values that exist only once the loop of that phase has ended
    loaded = {i.access.buffer for i in body if i.op == "load" and i.access is not None}
    for position, instr in enumerate(body):
        along = _runs_along(instr, values, reduced)
        needs = 0
        for operand in instr.value_operands:
            late = operand in finished and along
            needs = max(needs, finished[operand] + 1 if late else level[operand])
        result[position] = needs
        if instr.out is not None:
            level[instr.out] = needs
            if set(instr.reduced_axes) & reduced or (not along and any(o in finished for o in instr.value_operands)):
                finished[instr.out] = needs
    last = max(result.values(), default=0)
    for position, instr in enumerate(body):
        if instr.op == "store" and instr.access is not None and instr.access.buffer in loaded:
            result[position] = last  # a later phase would load what this one has overwritten
    return result


def split_phases(body: Sequence[Instr], axes: Sequence[Axis], reduced: frozenset[str]) -> tuple[tuple[Instr, ...], ...]:
    """The body as one tuple of lines a phase, values along R recomputed where a later phase needs them."""
    found = levels(body, axes, reduced)
    values = varying(body, axes)
    stored = {i.args[0]: (p, i) for p, i in enumerate(body) if _holds_its_value(i)}
    phases: list[tuple[Instr, ...]] = []
    for phase in range(max(found.values(), default=0) + 1):
        roots = [
            p
            for p, i in enumerate(body)
            if found[p] == phase
            and (i.out is None or set(i.reduced_axes) & reduced or not _runs_along(i, values, reduced))
        ]
        lines = _needed(body, roots, values, reduced)
        if phase:
            earlier = {v: s for v, (p, s) in stored.items() if found[p] < phase}
            lines = _reloaded(lines, earlier, frozenset(body[p].out for p in roots))
            made = [i.out for i in lines if i.out is not None]
            local = {v: f"{v}~{phase}" for v in made if v not in values or values[v] & reduced}
            lines = rename(lines, local)
        phases.append(tuple(lines))
    return tuple(phases)


def _holds_its_value(instr: Instr) -> bool:
    """A store that leaves its value at an address of its own: no sum of several, no position that may come twice."""
    if instr.op != "store" or len(instr.args) != 1 or instr.access is None:
        return False
    scattered = any(s.kind == "value" for s in symbols_of(instr.access.index))
    return instr.access.mode is AccessMode.STORE and not scattered


def _runs_along(instr: Instr, values: dict[str, frozenset[str]], reduced: frozenset[str]) -> bool:
    return bool(set(instr.reduced_axes) & reduced) or bool(instr_axes(instr, values) & reduced)


def _needed(
    body: Sequence[Instr],
    roots: Sequence[int],
    values: dict[str, frozenset[str]],
    reduced: frozenset[str],
) -> tuple[Instr, ...]:
    """The root lines, and every line that varies along R they are computed from, in the body's order."""
    wanted = set(roots)
    position = {i.out: p for p, i in enumerate(body) if i.out is not None}
    stack = list(roots)
    while stack:
        for operand in body[stack.pop()].value_operands:
            if values[operand] & reduced and position[operand] not in wanted:
                wanted.add(position[operand])
                stack.append(position[operand])
    return tuple(body[p] for p in sorted(wanted))


def _reloaded(lines: tuple[Instr, ...], stored: dict[str, Instr], roots: frozenset[str | None]) -> tuple[Instr, ...]:
    """Read a value back where an earlier phase stored it, when computing it again takes more than one load."""
    result: list[Instr] = []
    for instr in lines:
        store = stored.get(instr.out) if instr.out is not None else None
        if store is None or instr.op == "load" or not _takes_loads(instr, lines):
            result.append(instr)
            continue
        assert store.access is not None and instr.out is not None
        raw = instr.out if store.dtype == instr.dtype else f"{instr.out}.stored"
        access = replace(store.access, mode=AccessMode.LOAD)
        result.append(Instr(raw, "load", (), store.dtype, access, (), instr.origin))
        if raw != instr.out:
            result.append(Instr(instr.out, "cast", (raw,), instr.dtype, None, (), instr.origin))
    return _pruned(result, roots)


def _takes_loads(instr: Instr, lines: tuple[Instr, ...]) -> bool:
    by_name = {i.out: i for i in lines if i.out is not None}
    loads: set[str] = set()
    stack = [instr]
    while stack:
        current = stack.pop()
        if current.op == "load" and current.out is not None:
            loads.add(current.out)
        stack += [by_name[o] for o in current.value_operands if o in by_name]
    return len(loads) > 1


def _pruned(lines: Sequence[Instr], roots: frozenset[str | None]) -> tuple[Instr, ...]:
    """Only the stores, the roots and what they are computed from."""
    needed: set[str] = set()
    kept: list[Instr] = []
    for instr in reversed(lines):
        if instr.out is None or instr.out in roots or instr.out in needed:
            kept.append(instr)
            needed.update(instr.value_operands)
    return tuple(reversed(kept))
