"""Sizes named within one kernel: layers whose sizes have names of their own share one text and one binary.

Enters: a KernelPlan over sizes of its program. Leaves: the plan over s0, s1, ... in the order it meets them, and which
of the program's sizes each of them is.

    kernel k7: reads values: f32[1, 3, s30, 64]    ->    reads values: f32[1, 3, s0, 64];  {"s0": "s30"}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fusec.ir.kernels import KernelPlan, KernelSource
from fusec.ir.renaming import Renaming, renamed
from fusec.ir.sizes import sizes_in

__all__ = ["passing", "with_own_sizes"]


def with_own_sizes(plan: KernelPlan) -> tuple[KernelPlan, dict[str, str]]:
    """(plan, the program's name of each of its sizes); the plan as it is and {} where no name changes."""
    exprs = [e for b in plan.buffers for e in (*b.shape, *b.strides)]
    exprs += [a.extent for a in plan.axes] + [e for i in plan.body for e in i.index_exprs]
    met = sizes_in(exprs)
    names = {s.name: f"s{k}" for k, s in enumerate(met)}
    if plan.parts or all(old == new for old, new in names.items()):
        return plan, {}
    own = Renaming({s.name: renamed(s, names[s.name]) for s in met})
    return own.kernel(plan), {new: old for old, new in names.items()}


def passing(source: KernelSource, given: Mapping[str, str]) -> KernelSource:
    """The source, launched with these sizes of the program for its own."""
    return replace(source, params=tuple(replace(p, given=given.get(p.size)) for p in source.params))
