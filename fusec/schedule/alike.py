"""When two kernels have the same text: exactly, or but for the number of points they run over.

Enters: KernelPlans. Leaves: hashable keys; a plan with symbols in place of its extents.

    signature(a) == signature(b)    two layers of a model: one text, one binary
    likeness(a) == likeness(b)      AdamW of a weight and of a bias: one device function with other pointers and n

    kernel (x0<4096): store y[x0], ...   ->   kernel (x0<n): store y[x0], ...        n = 4096
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import fields, replace

from fusec.ir.index import as_int, size_symbol
from fusec.ir.kernels import DimKind, KernelPlan
from fusec.ir.types import Axis, Buffer, Instr
from fusec.schedule.axes import rewrite_axes
from fusec.schedule.once import plain_hint

ALIGNED = 16  # elements: an extent divisible by this keeps masked accesses 16 bytes wide
SHORT = 1024  # a row's block up to this may as well be this
_NAMES = {"x": "n", "r": "length"}


def signature(plan: KernelPlan) -> Hashable:
    """All that a kernel's text says: every field of the plan, its buffers by position and without their names."""
    position = {b.name: i for i, b in enumerate(plan.buffers)}
    ops = tuple(origin.op for origin in plan.origins)
    buffers = tuple(_unnamed(b) for b in plan.buffers)
    parts = tuple((signature(p), tuple(position[b.name] for b in p.buffers)) for p in plan.parts)
    others = tuple(getattr(plan, f.name) for f in fields(plan) if f.name not in _APART)
    return others, buffers, _lines(plan, position), parts, ops


_NOT_IN_TEXT = frozenset({"name", "nests", "internal", "boundary", "cost"})  # fields of a plan
_APART = _NOT_IN_TEXT | {"buffers", "phases", "parts"}


def _unnamed(buffer: Buffer) -> Hashable:
    """A buffer but for its name."""
    hint = plain_hint(buffer)
    return tuple(hint if f.name == "hint" else getattr(buffer, f.name) for f in fields(buffer) if f.name != "name")


def likeness(plan: KernelPlan) -> Hashable:
    """Equal for plans that one device function serves: `generic` gives them the same lines."""
    general = generic(plan, {})
    position = {b.name: i for i, b in enumerate(plan.buffers)}
    blocks = dict(plan.tile.blocks)
    whole = tuple(max(blocks[d.name], SHORT) for d in plan.dims if d.kind is DimKind.WHOLE)
    aligned = tuple(n % ALIGNED == 0 for n in sizes(plan).values())
    buffers = tuple((b.dtype, b.device) for b in plan.buffers)
    return general.axes, plan.dims, whole, aligned, buffers, _lines(general, position)


def sizes(plan: KernelPlan) -> dict[str, int]:
    """Extents that may be symbols: of each tile dimension, that of its outermost axis. By the symbol's name."""
    found: dict[str, int] = {}
    for axis, name in _outermost(plan):
        extent = as_int(axis.extent)
        assert extent is not None, f"{plan.name} has a symbolic extent already"
        found[name] = extent
    return found


def generic(plan: KernelPlan, highest: Mapping[str, int]) -> KernelPlan:
    """The plan with symbols for these extents. highest: what is known of each, by the symbol's name."""
    chosen = {a.name: Axis(a.name, size_symbol(n, 2, highest.get(n)), a.kind) for a, n in _outermost(plan)}
    axes = tuple(chosen.get(a.name, a) for a in plan.axes)
    mapping = {name: axis.symbol for name, axis in chosen.items()}
    return replace(plan, axes=axes, phases=tuple(rewrite_axes(phase, mapping, {}) for phase in plan.phases))


def _outermost(plan: KernelPlan) -> list[tuple[Axis, str]]:
    """The inner axes of a dimension divide its flattened index, so their extents stay numbers."""
    found = []
    for dim in plan.dims:
        axes = [a for a in plan.axes if a.name in dim.axes and as_int(a.extent) != 1]
        if axes:
            found.append((axes[0], _NAMES.get(dim.name, f"n_{dim.name}")))
    return found


def _lines(plan: KernelPlan, position: Mapping[str, int]) -> Hashable:
    return tuple(tuple(_line(i, position) for i in phase) for phase in plan.phases)


def _line(instr: Instr, position: Mapping[str, int]) -> Hashable:
    """A line but for its origin."""
    access = instr.access and tuple(
        position[instr.access.buffer] if f.name == "buffer" else getattr(instr.access, f.name)
        for f in fields(instr.access)
    )
    own = tuple(getattr(instr, f.name) for f in fields(instr) if f.name not in ("access", "origin"))
    return own, access


def buffers_of(plans: tuple[KernelPlan, ...]) -> tuple[Buffer, ...]:
    """The buffers of several plans, each once: what is read, then what is written."""
    read = {name for p in plans for name in p.reads}
    every = {b.name: b for p in plans for b in p.buffers}
    return (*(b for b in every.values() if b.name in read), *(b for b in every.values() if b.name not in read))
