"""The scheduling passes in order: Program -> Schedule.

inline   pointwise producers into the places that read them
fuse     groups of nests on common axes
split    reductions with too few rows; then fuse once more
plan     each group a launch
combine  independent small launches into one
"""

from __future__ import annotations

from collections.abc import Sequence

from fusec.config import Config
from fusec.ir.kernels import FusionDecision, Schedule, Step
from fusec.ir.types import Extern, Program, Role
from fusec.schedule.combine import combine
from fusec.schedule.cost import device_model
from fusec.schedule.fuse import Item, fuse
from fusec.schedule.inline import inline
from fusec.schedule.plan import plan_group
from fusec.schedule.split import split_reductions


def schedule(program: Program, config: Config) -> Schedule:
    """Decide which nests share a launch, and how each launch is tiled."""
    device = device_model(config.target)
    decisions: tuple[FusionDecision, ...] = ()
    if config.fusion:
        program, decisions = inline(program, config)
    items, grouped = fuse(program, config)
    if config.fusion:
        split = split_reductions(program, items, device)
        if split is not None:
            program = split
            items, grouped = fuse(program, config)
    decisions = (*decisions, *grouped)
    table = program.table
    steps: list[Step] = []
    for item in items:
        if isinstance(item, Extern):
            steps.append(item)
        else:
            boundary = _boundary(item.nest.writes, item.members, items, program, decisions)
            steps.append(plan_group(item, f"k{len(steps)}", table, device, boundary))
    used = {b for step in steps for b in (*step.reads, *step.writes)} | program.returned
    kept = tuple(b for b in program.buffers if b.name in used or b.role in (Role.INPUT, Role.CONSTANT))
    inputs, outputs = program.inputs, program.outputs
    planned = Schedule(program.name, kept, tuple(steps), inputs, outputs, decisions, program.constants)
    return combine(planned, device) if config.fusion else planned


def _boundary(
    writes: Sequence[str],
    members: Sequence[str],
    items: Sequence[Item],
    program: Program,
    decisions: Sequence[FusionDecision],
) -> str:
    """Why a kernel ends where it ends: what takes its results, or why the next nest is not in it."""
    if any(name.endswith("_partial") for name in writes):
        return "programs hold slices of a reduction; a small kernel finishes it"
    for name in writes:
        for item in items:
            if isinstance(item, Extern) and name in item.reads:
                return f"{name} goes to {_target(item)}, a library call"
    for decision in reversed(decisions):
        if not decision.accepted and decision.producer in members:
            return decision.reason
    if any(name in program.returned for name in writes):
        return "its result leaves the graph"
    return "nothing else reads or shares its data"


def _target(item: Extern) -> str:
    name = getattr(item.target, "name", None)
    return str(name() if callable(name) else item.target).replace("::", ".")
