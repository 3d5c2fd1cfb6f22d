"""Simplify a Program before it is scheduled: nothing is computed twice, nothing is computed for nobody.

Enters: a Program as lowered. Leaves: a Program with the same outputs.

    nest n0 (p0<64):  y[p0] = exp x[p0]            nest n0 (p0<64):  y[p0] = exp x[p0]
    nest n1 (p0<64):  z[p0] = exp x[p0]      ->    nest n2 (p0<64):  out[p0] = y[p0] + y[p0]
    nest n2 (p0<64):  out[p0] = y[p0] + z[p0]
    nest n3 (p0<64):  unused[p0] = neg y[p0]

Inside a nest: common subexpressions, algebra, dead lines (fusec.schedule.algebra). Across nests: the passes below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fusec.config import Config
from fusec.ir.analysis import attr_key, instr_key, renumber, substitute_axes
from fusec.ir.index import symbols_of
from fusec.ir.types import (
    AccessMode,
    Axis,
    AxisKind,
    Buffer,
    Extern,
    Instr,
    LoopNest,
    Node,
    Program,
    Role,
)
from fusec.schedule.algebra import simplify_body
from fusec.schedule.axes import rewrite_axes
from fusec.schedule.direct import copied_buffer, write_directly
from fusec.schedule.partial import reuse_partial_reductions
from fusec.schedule.rename import read_from, rename_extern, rename_output

__all__ = ["remove_dead", "share_equal", "simplify", "simplify_nest"]


def simplify(program: Program, config: Config) -> Program:
    """The passes of this page in order.

    share_equal              equal nests and calls run once, copies that change nothing disappear
    write_directly           what is copied over an input is computed into it
    reuse_partial_reductions a full sum is taken over row sums that exist already
    remove_dead              what reaches no output is gone
    """
    program = write_directly(share_equal(program))
    program = reuse_partial_reductions(program, reorder_floats=config.precision == "fast")
    return remove_dead(program)


# -- one nest -------------------------------------------------------------------------------------


def simplify_nest(nest: LoopNest) -> LoopNest:
    """Algebra on the lines, then without axes that nothing runs over.

    nest n0 (p0<64, r0<1):  %1 = sum %0 over r0;  store y[p0], %1    ->    nest n0 (p0<64):  store y[p0], %0
    """
    body = simplify_body(nest.body, nest.axes)
    used = {s.name for i in body for e in i.index_exprs for s in symbols_of(e)}
    used.update(a for i in body for a in i.axes)
    # An empty axis stays: its nest runs for no point.
    axes = tuple(a for a in nest.axes if a.extent == 0 or (a.name in used and a.extent != 1))
    gone = {a.name for a in nest.axes} - {a.name for a in axes}
    if gone:  # an axis of extent 1 counts once, and by no name
        body = rewrite_axes(body, {}, dict.fromkeys(gone, ()))
    return nest if body == nest.body and axes == nest.axes else replace_nest(nest, axes=axes, body=body)


def replace_nest(nest: LoopNest, *, axes: tuple[Axis, ...] | None = None, body: tuple[Instr, ...]) -> LoopNest:
    return LoopNest(nest.name, nest.axes if axes is None else axes, body)


# -- equal nodes, copies --------------------------------------------------------------------------


def share_equal(program: Program) -> Program:
    """Each distinct nest and each distinct pure call once; a copy with the same strides is its source.

        n0: y[p0] = exp x[p0]          n0: y[p0] = exp x[p0]
        n1: z[p0] = exp x[p0]    ->    n2: out[p0] = neg y[p0]
        n2: out[p0] = neg z[p0]

    Two buffers that are both returned keep memory of their own: the one nest then stores twice.
    """
    sharing = _Sharing(program)
    for node in program.nodes:
        if isinstance(node, Extern):
            sharing.extern(node)
        else:
            sharing.nest(node)
    return sharing.result()


@dataclass
class _Sharing:
    """The nodes kept so far; `alias` maps a buffer that is gone to the equal one."""

    program: Program
    table: dict[str, Buffer] = field(default_factory=dict)
    alias: dict[str, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    seen: dict[object, int] = field(default_factory=dict)  # key -> position in nodes
    returned: set[str] = field(default_factory=set)
    fixed: set[str] = field(default_factory=set)  # buffers in several hands: in segments, or changed in place
    kept_twice: set[str] = field(default_factory=set)  # returned buffers whose readers read an equal one

    def __post_init__(self) -> None:
        self.table = dict(self.program.table)
        self.returned = set(self.program.returned)
        self.fixed = set(self.program.changing)

    # A node arrives: rename what it reads, then ask whether it is a copy or known already.

    def nest(self, nest: LoopNest) -> None:
        nest = simplify_nest(read_from(nest, self.alias))
        copied = copied_buffer(nest)
        if copied is not None and self._forward(nest.writes[0], copied):
            return
        key = self._nest_key(nest)
        if key is None or not self._merge_nests(nest, self.seen.get(key)):
            if key is not None:
                self.seen.setdefault(key, len(self.nodes))
            self.nodes.append(nest)

    def extern(self, extern: Extern) -> None:
        extern = rename_extern(extern, self.alias)
        key = self._extern_key(extern)
        position = None if key is None else self.seen.get(key)
        if position is not None:
            first = self.nodes[position]
            assert isinstance(first, Extern)
            pairs = [(mine, theirs) for mine, theirs in zip(extern.outputs, first.outputs, strict=True) if mine]
            if all(theirs is not None and self._can_forward(mine, theirs) for mine, theirs in pairs):
                for mine, theirs in pairs:
                    assert theirs is not None
                    self._forward(mine, theirs)
                return
        if key is not None:
            self.seen.setdefault(key, len(self.nodes))
        self.nodes.append(extern)

    # Aliasing

    def _can_forward(self, gone: str, kept: str) -> bool:
        if gone in self.fixed or kept in self.fixed:
            return False
        a, b = self.table[gone], self.table[kept]
        if (a.dtype, a.device) != (b.dtype, b.device):
            return False
        if gone not in self.returned:
            return (a.shape, a.strides) == (b.shape, b.strides) or _last_element(a) == _last_element(b)
        # What is returned needs memory that is neither an input nor returned already.
        own = kept not in self.returned and b.role in (Role.TEMPORARY, Role.OUTPUT)
        return own and (a.shape, a.strides) == (b.shape, b.strides)

    def _forward(self, gone: str, kept: str) -> bool:
        """Read `kept` wherever `gone` was read; False when they must stay apart."""
        if not self._can_forward(gone, kept):
            return False
        if gone in self.returned:
            self.returned.add(kept)
            self.table[kept] = replace(self.table[kept], role=Role.OUTPUT)
        self.alias[gone] = kept
        return True

    def _merge_nests(self, nest: LoopNest, position: int | None) -> bool:
        if position is None:
            return False
        first = self.nodes[position]
        assert isinstance(first, LoopNest)
        pairs = list(zip(nest.stores, first.stores, strict=True))
        for mine, theirs in pairs:
            if self._forward(mine.buffer, theirs.buffer):
                continue
            # Both are returned: the first nest stores to both.
            stores = [i for i in first.body if i.access == theirs]
            assert stores[0].access is not None
            again = replace(stores[0], access=replace(stores[0].access, buffer=mine.buffer))
            first = replace_nest(first, body=(*first.body, again))
            self.alias[mine.buffer] = theirs.buffer
            self.kept_twice.add(mine.buffer)
        self.nodes[position] = first
        return True

    # Keys

    def _nest_key(self, nest: LoopNest) -> object | None:
        if any(name in self.fixed for name in (*nest.reads, *nest.writes)):
            return None
        if len(nest.stores) != len(nest.writes) or any(a.mode is not AccessMode.STORE for a in nest.stores):
            return None
        axes, body = canonical(nest)
        places = {name: f"out{k}" for k, name in enumerate(nest.writes)}
        lines: list[object] = []
        for instr in body:
            if instr.op == "store":
                assert instr.access is not None
                buffer = self.table[instr.access.buffer]
                instr = replace(instr, access=replace(instr.access, buffer=places[buffer.name]))
                lines.append((instr_key(instr), buffer.dtype, buffer.device, buffer.shape, buffer.strides))
            else:
                lines.append((instr_key(instr), instr.out))
        return (axes, tuple(lines))

    def _extern_key(self, extern: Extern) -> object | None:
        tags = getattr(extern.target, "tags", None)
        if extern.mutates or tags is None or torch.Tag.nondeterministic_seeded in tags:
            return None
        if any(name in self.fixed for name in (*extern.reads, *extern.writes)):
            return None
        return ("extern", extern.target, argument_key(extern.args), argument_key(dict(extern.kwargs)))

    def result(self) -> Program:
        gone = {name: kept for name, kept in self.alias.items() if name not in self.kept_twice}
        outputs = tuple(rename_output(o, gone) for o in self.program.outputs)
        buffers = tuple(self.table[b.name] for b in self.program.buffers if b.name not in gone)
        return replace(self.program, buffers=buffers, nodes=tuple(self.nodes), outputs=outputs)


def _last_element(buffer: Buffer) -> object:
    if 0 in buffer.shape:
        return -1
    return sum((n - 1) * s for n, s in zip(buffer.shape, buffer.strides, strict=True))


def canonical(nest: LoopNest) -> tuple[tuple[tuple[object, AxisKind], ...], tuple[Instr, ...]]:
    """Axes by extent and kind, and lines with axes and values renamed by position: equal for equal nests."""
    mapping = {}
    names = {}
    for position, axis in enumerate(nest.axes):
        name = f"{'r' if axis.is_reduction else 'p'}{position}"
        if name != axis.name:
            mapping[axis.name] = Axis(name, axis.extent).symbol
        names[axis.name] = name
    body = substitute_axes(renumber(nest.body), mapping)
    lines = []
    for instr in body:
        if instr.axes:
            axes = tuple(names[a] for a in instr.axes)
            instr = replace(instr, attrs=tuple((n, axes if n == "axes" else v) for n, v in instr.attrs))
        lines.append(instr)
    return tuple((a.extent, a.kind) for a in nest.axes), tuple(lines)


def argument_key(value: Any) -> object:
    """A hashable key of an extern's arguments."""
    if isinstance(value, dict):
        return ("dict", *((k, argument_key(v)) for k, v in value.items()))
    if isinstance(value, tuple | list):
        return ("list", *(argument_key(v) for v in value))
    try:
        hash(value)
    except TypeError:
        return ("object", id(value))
    return attr_key(value)


# -- dead code ------------------------------------------------------------------------------------


def remove_dead(program: Program) -> Program:
    """Without nests, stores and pure calls that reach no output and no input, and without the buffers only they used.

        n0: y[p0] = exp x[p0]                n0: y[p0] = exp x[p0]
        n1: unused[p0] = neg y[p0]     ->    return y
        return y

    Calls with effects stay: those that change a buffer in place, return nothing or draw random numbers.
    """
    needed = set(program.returned) | {b.name for b in program.buffers if b.role is Role.INPUT}
    kept: list[Node] = []
    for node in reversed(program.nodes):
        if isinstance(node, LoopNest):
            trimmed = _without_dead_stores(node, needed)
            if trimmed is None:
                continue
            node = trimmed
        elif not needed.intersection(node.writes) and not _has_effects(node):
            continue
        kept.append(node)
        needed.update(node.reads)
        needed.update(node.writes)
    kept.reverse()
    inputs = {b.name for b in program.buffers if b.role is Role.INPUT}
    buffers = tuple(b for b in program.buffers if b.name in needed or b.name in inputs)
    alive = {b.name for b in buffers}
    constants = tuple((name, value) for name, value in program.constants if name in alive)
    return replace(program, buffers=buffers, nodes=tuple(kept), constants=constants)


def _without_dead_stores(nest: LoopNest, needed: set[str]) -> LoopNest | None:
    if all(name in needed for name in nest.writes):
        return nest if nest.writes else None
    body = tuple(i for i in nest.body if i.op != "store" or (i.access is not None and i.access.buffer in needed))
    if not any(i.op == "store" for i in body):
        return None
    return simplify_nest(replace_nest(nest, body=body))


def _has_effects(extern: Extern) -> bool:
    tags: Sequence[torch.Tag] | None = getattr(extern.target, "tags", None)
    if extern.mutates or not any(o is not None for o in extern.outputs):
        return True
    return tags is None or torch.Tag.nondeterministic_seeded in tags
