"""The scheduling passes in order: Program -> Schedule.

inline   pointwise producers into the places that read them
pieces   nests that compute parts of a whole: all parts at one point; then inline once more
fuse     groups of nests on common axes
split    reductions with too few rows; then fuse once more
plan     each group a launch
combine  independent small launches into one
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from fusec.config import Config
from fusec.errors import GroupError
from fusec.ir.kernels import FusionDecision, Schedule, Step
from fusec.ir.types import Extern, Origin, Program, Role
from fusec.schedule.combine import combine
from fusec.schedule.cost import device_model
from fusec.schedule.fuse import Group, Item, fuse
from fusec.schedule.inline import inline
from fusec.schedule.once import Once
from fusec.schedule.pieces import in_pieces
from fusec.schedule.plan import plan_group
from fusec.schedule.split import is_workspace, split_reductions


def schedule(program: Program, config: Config, once: Once | None = None, apart: Set[str] = frozenset()) -> Schedule:
    """Decide which nests share a launch, and how each launch is tiled.

    once: answers to take, and to add to.   apart: nests that get a launch of their own, whatever that costs.
    GroupError names the nests of a launch that cannot be planned.
    """
    once = once or Once()
    device = device_model(config.target)
    decisions: tuple[FusionDecision, ...] = ()
    if config.fusion:
        program, decisions = inline(program, config, once, apart)
        cut = in_pieces(program, once, apart)
        if cut is not None:
            accepted = tuple(d for d in decisions if d.accepted)  # the refused are asked again
            program, decisions = inline(cut, config, once, apart)
            decisions = (*accepted, *decisions)
    items, grouped = fuse(program, config, once, apart)
    if config.fusion:
        split = split_reductions(program, items, device, once, apart)
        if split is not None:
            program = split
            items, grouped = fuse(program, config, once, apart)
    decisions = (*decisions, *grouped)
    table = program.table
    boundaries = _Boundaries.of(items, program, decisions)
    steps: list[Step] = []
    for item in items:
        if isinstance(item, Extern):
            steps.append(item)
        else:
            try:
                steps.append(plan_group(item, f"k{len(steps)}", table, device, boundaries.of_group(item), once))
            except Exception as error:
                origins = [i.origin for i in item.nest.body if i.origin is not None]
                raise group_error(error, item.members, origins, decisions) from error
    used = {b for step in steps for b in (*step.reads, *step.writes)} | program.returned
    kept = tuple(b for b in program.buffers if b.name in used or b.role in (Role.INPUT, Role.CONSTANT))
    inputs, outputs = program.inputs, program.outputs
    planned = Schedule(program.name, kept, tuple(steps), inputs, outputs, decisions, program.constants, program.numbers)
    return combine(planned, device, once, apart) if config.fusion else planned


def group_error(
    error: Exception, members: Sequence[str], origins: Sequence[Origin], decisions: Sequence[FusionDecision]
) -> GroupError:
    """What failed for a kernel, with every lowered nest that is part of it: those inlined into its members, too."""
    nests = {name.removesuffix("_partial").removesuffix("_finish") for name in members} | set(members)
    for decision in reversed(decisions):  # a producer is inlined before its consumer is
        if decision.accepted and decision.consumer in nests:
            nests.add(decision.producer)
    lines = [f"{o.file}:{o.line}" for o in origins if o.file]
    ops = tuple(dict.fromkeys(o.op for o in origins))
    return GroupError(error, frozenset(nests), ops, next(iter(lines), ""), frozenset(o.node for o in origins))


@dataclass(frozen=True, slots=True)
class _Boundaries:
    """Why kernels end where they end: what takes their results, or why the next nest is not in them.

    calls:    the first library call that reads a buffer.
    refusals: by nest, why it is not with the last one it was tried with, and when that was.
    """

    program: Program
    calls: dict[str, Extern]
    refusals: dict[str, tuple[int, str]]

    @classmethod
    def of(cls, items: Sequence[Item], program: Program, decisions: Sequence[FusionDecision]) -> _Boundaries:
        calls: dict[str, Extern] = {}
        for item in items:
            if isinstance(item, Extern):
                for name in item.reads:
                    calls.setdefault(name, item)
        refusals = {d.producer: (i, d.reason) for i, d in enumerate(decisions) if not d.accepted}
        return cls(program, calls, refusals)

    def of_group(self, group: Group) -> str:
        writes = group.nest.writes
        if any(is_workspace(self.program.table[name]) for name in writes):
            return "programs hold slices of a reduction; a small kernel finishes it"
        for name in writes:
            if name in self.calls:
                return f"{name} goes to {_target(self.calls[name])}, a library call"
        refused = [self.refusals[name] for name in group.members if name in self.refusals]
        if refused:
            return max(refused)[1]
        if any(name in self.program.returned for name in writes):
            return "its result leaves the graph"
        return "nothing else reads or shares its data"


def _target(item: Extern) -> str:
    name = getattr(item.target, "name", None)
    return str(name() if callable(name) else item.target).replace("::", ".")
