"""A body for predictions: every size replaced by its value at the first call.

Enters: lines, axes, buffers. Leaves: the same without symbolic sizes; as they are when there are none.

    nest (p0<s0, r0<64): load x[64*p0 + r0]     s0 was 16     ->     nest (p0<16, r0<64): load x[64*p0 + r0]

Costs, orders of axes and block sizes are predictions and may be taken from here. What must hold for every size (which
nests may share a kernel, what an address is) is decided on the sizes themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from math import prod

from fusec.ir.index import Expr, IndexLike, atom_expr
from fusec.ir.kernels import KernelPlan
from fusec.ir.sizes import at_hints, has_sizes, hint_of, sizes_in
from fusec.ir.types import Axis, Buffer, Instr, LoopNest, size_exprs

__all__ = [
    "extent_hint",
    "points",
    "predicted_buffers",
    "predicted_nest",
    "predicted_plan",
    "size_hints",
]


def extent_hint(extent: IndexLike) -> int:
    """An extent at the first call; a symbolic one is taken to be 1 at least."""
    return extent if isinstance(extent, int) else max(hint_of(extent), 1) if has_sizes(extent) else hint_of(extent)


def points(axes: Iterable[Axis]) -> int:
    """The product of the extents, predicted."""
    return prod(extent_hint(a.extent) for a in axes)


def predicted_nest(nest: LoopNest) -> LoopNest:
    """The nest at the sizes of the first call."""
    return _predicted(nest) if any(has_sizes(e) for e in size_exprs(nest)) else nest


@lru_cache(maxsize=4096)
def _predicted(nest: LoopNest) -> LoopNest:
    axes = tuple(Axis(a.name, extent_hint(a.extent), a.kind) for a in nest.axes)
    return LoopNest(nest.name, axes, tuple(_line(i) for i in nest.body))


def _line(instr: Instr) -> Instr:
    access = instr.access
    if access is not None and has_sizes(access.index):
        access = replace(access, index=at_hints(access.index))
    attrs = tuple((k, at_hints(v) if isinstance(v, Expr) else v) for k, v in instr.attrs)
    return replace(instr, access=access, attrs=attrs)


def predicted_buffers(table: Mapping[str, Buffer], names: Iterable[str]) -> dict[str, Buffer]:
    """These buffers at the sizes of the first call."""
    return {n: _buffer(table[n]) for n in names}


def _buffer(buffer: Buffer) -> Buffer:
    if all(isinstance(n, int) for n in (*buffer.shape, *buffer.strides)):
        return buffer
    shape = tuple(extent_hint(n) for n in buffer.shape)
    return replace(buffer, shape=shape, strides=tuple(hint_of(n) for n in buffer.strides))


def predicted_plan(plan: KernelPlan) -> KernelPlan:
    """A kernel at the sizes of the first call."""
    axes = tuple(Axis(a.name, extent_hint(a.extent), a.kind) for a in plan.axes)
    phases = tuple(tuple(_line(i) for i in phase) for phase in plan.phases)
    parts = tuple(predicted_plan(p) for p in plan.parts)
    return replace(plan, axes=axes, phases=phases, buffers=tuple(_buffer(b) for b in plan.buffers), parts=parts)


def size_hints(plan: KernelPlan) -> dict[str, int]:
    """The sizes that a kernel's lines hold, by name, at the first call."""
    return {s.name: hint_of(atom_expr(s)) for s in sizes_in(plan.exprs)}
