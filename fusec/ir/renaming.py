"""Sizes named in the order in which the program meets them: s0, s1, ...; u0, u1, ... where no input has them.

Enters: a Program whose size symbols have torch's names (s77, s27, u0). Leaves: the same Program, so that equal graphs
give equal text whatever torch called their sizes.

    in  x: f32[s77, 64]      ->      in  x: f32[s0, 64]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fusec.ir.analysis import map_exprs
from fusec.ir.index import Expr, IndexLike, Sym, axis_symbol, size_symbol, substitute, symbols_of, value_symbol
from fusec.ir.kernels import KernelPlan
from fusec.ir.sizes import as_symbol, has_sizes, plain, sizes_in
from fusec.ir.types import Axis, Buffer, Instr, LoopNest, Node, Program, Relation, TensorView, size_exprs

__all__ = ["Renaming", "renamed", "renamed_sizes"]


def renamed_sizes(program: Program) -> Program:
    """The program with new names for its sizes; as it is when it has none."""
    first = [e for _, e in program.numbers]
    first += [e for name in program.inputs if name for e in _extents(program.table[name])]
    found = sizes_in(first)
    rest = [s for s in sizes_in([e for node in program.nodes for e in size_exprs(node)]) if s not in found]
    rest += [s for s in sizes_in([e for b in program.buffers for e in _extents(b)]) if s not in (*found, *rest)]
    if not found and not rest:
        return program
    names = {s.name: f"s{k}" for k, s in enumerate(found)} | {s.name: f"u{k}" for k, s in enumerate(rest)}
    return Renaming({s.name: renamed(s, names[s.name]) for s in (*found, *rest)}).program(program)


def _extents(buffer: Buffer) -> tuple[IndexLike, ...]:
    return (*buffer.shape, *buffer.strides)


def renamed(symbol: Sym, name: str) -> Expr:
    """A size by another name, with the same range and hint."""
    assert symbol.hi is None or isinstance(symbol.hi, int)
    return size_symbol(name, symbol.lo, symbol.hi, symbol.hint)


class Renaming:
    """Puts other symbols in the place of sizes. sizes: old name -> new symbol."""

    def __init__(self, sizes: Mapping[str, Expr]) -> None:
        self.sizes = sizes

    def program(self, program: Program) -> Program:
        return replace(
            program,
            buffers=tuple(self._buffer(b) for b in program.buffers),
            nodes=tuple(self._node(n) for n in program.nodes),
            outputs=tuple(self._value(o) for o in program.outputs),
            numbers=tuple((p, self._value(e)) for p, e in program.numbers),
        )

    def kernel(self, plan: KernelPlan) -> KernelPlan:
        """A kernel over other sizes; not one of several parts, whose sizes are numbers."""
        return replace(
            plan,
            axes=tuple(Axis(a.name, self._value(a.extent), a.kind) for a in plan.axes),
            phases=tuple(tuple(self._instr(i) for i in phase) for phase in plan.phases),
            buffers=tuple(self._buffer(b) for b in plan.buffers),
        )

    def _buffer(self, buffer: Buffer) -> Buffer:
        return replace(buffer, shape=self._value(buffer.shape), strides=self._value(buffer.strides))

    def _node(self, node: Node) -> Node:
        if isinstance(node, LoopNest):
            axes = tuple(Axis(a.name, self._value(a.extent), a.kind) for a in node.axes)
            return LoopNest(node.name, axes, tuple(self._instr(i) for i in node.body))
        kwargs = tuple((k, self._value(v)) for k, v in node.kwargs)
        defines = tuple(None if n is None else as_symbol(self.sizes[n]) if n in self.sizes else n for n in node.defines)
        return replace(node, args=self._value(node.args), kwargs=kwargs, defines=defines)

    def _instr(self, instr: Instr) -> Instr:
        """Index expressions are over axes and values too, whose bounds hold sizes."""
        mapping: dict[str, IndexLike] = dict(self.sizes)
        for symbol in {s for e in instr.index_exprs for s in symbols_of(e)}:
            if isinstance(symbol.hi, Expr) and has_sizes(symbol.hi):
                top = substitute(symbol.hi, self.sizes)
                axis = symbol.kind == "axis"
                mapping[symbol.name] = axis_symbol(symbol.name, top + 1) if axis else value_symbol(symbol.name, top)
        return map_exprs(instr, mapping)

    def _value(self, value: Any) -> Any:
        if isinstance(value, Expr):
            return plain(substitute(value, self.sizes))
        if isinstance(value, TensorView):
            shape, strides = self._value(value.shape), self._value(value.strides)
            return TensorView(value.buffer, shape, strides, self._value(value.offset))
        if isinstance(value, Relation):
            return Relation(value.op, self._value(value.left), self._value(value.right))
        if isinstance(value, tuple):
            return tuple(self._value(v) for v in value)
        if isinstance(value, list):
            return [self._value(v) for v in value]
        if isinstance(value, dict):
            return {k: self._value(v) for k, v in value.items()}
        return value
