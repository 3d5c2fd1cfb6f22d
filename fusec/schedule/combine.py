"""Combined kernels: independent kernels run side by side in one launch, whatever their sizes.

Enters: a Schedule of planned launches. Leaves: one with fewer.

    k0: p0 = adamw(p0, g0, ...)   x0<4096            k0: program < 8:      k0 with p0, g0, ... , n = 4096
    k1: p1 = adamw(p1, g1, ...)   x0<1000      ->        else:             k0 with p1, g1, ... , n = 1000
    k2: y = mm(...)                                  k2: y = mm(...)

A launch costs a few microseconds, so small kernels gain; a long one gains nothing and joins only kernels whose text
is its own but for the sizes (an optimizer's step). What must run between two kernels, or raises the peak of memory,
keeps them apart; so does a program that would end up with more distinct kernels than before.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import chain

from fusec.ir.index import as_int
from fusec.ir.kernels import DimKind, FusionDecision, KernelCost, KernelPlan, Schedule, Step, Strategy, Tile
from fusec.ir.sizes import has_sizes, hint_of
from fusec.ir.types import Buffer, LoopNest
from fusec.schedule.alike import buffers_of, likeness, signature
from fusec.schedule.cost import DeviceModel
from fusec.schedule.dependence import Dependence, bits
from fusec.schedule.memory import plan_memory
from fusec.schedule.once import Once
from fusec.schedule.traffic import traffic

MAX_POINTERS = 480  # 8 bytes each, of the 4096 bytes that the arguments of a launch may take
MAX_PARTS = 160  # one chain of branches, into which the compiler recurses: Python's limit is near 190
MAX_BODIES = 8  # distinct texts in one kernel
LONG = 20e-6  # seconds: a launch saved is lost in a kernel that takes this long
MEMORY_SLACK = 1 << 16  # bytes: the peak may rise by a few small temporaries
MEMORY_SHARE = 1 << 10  # or by this part of what the inputs hold
LIMIT = 2**30  # points of a dimension, so that flattened indices fit 32 bits

_ROWS = (Strategy.PERSISTENT_ROW, Strategy.LOOPED_ROW, Strategy.SPLIT_ROW)


@dataclass(slots=True)
class _Batch:
    """Kernels that may be one launch. node: what stands for them in the dependence graph."""

    node: int
    members: list[KernelPlan]
    positions: list[int]
    keys: set[Hashable]
    buffers: set[str]
    plan: KernelPlan | None = None  # the members as one, once the batch is complete

    @property
    def is_long(self) -> bool:
        return any(m.cost.seconds > LONG for m in self.members)


@dataclass(slots=True)
class _Search:
    dependence: Dependence
    batches: list[_Batch] = field(default_factory=list)

    def place(self, plan: KernelPlan, position: int, key: Hashable) -> None:
        """Into the first batch that can take it, batches of its own text first; else into a new one."""
        fitting = [b for b in self.batches if _takes(b, plan, key)]
        for batch in sorted(fitting, key=lambda b: key not in b.keys):
            if self._independent(batch.node, position):
                batch.node = self.dependence.merge(batch.node, position)
                batch.members.append(plan)
                batch.positions.append(position)
                batch.keys.add(key)
                batch.buffers |= {b.name for b in plan.buffers}
                return
        self.batches.append(_Batch(position, [plan], [position], {key}, {b.name for b in plan.buffers}))

    def _independent(self, a: int, b: int) -> bool:
        dependence = self.dependence
        return not dependence.ordered(a, b) and not dependence.ordered(b, a) and not dependence.between(a, b)


def combine(schedule: Schedule, device: DeviceModel, once: Once, apart: Set[str]) -> Schedule:
    """The schedule with independent kernels in common launches; each leaves a FusionDecision.

    apart: nests whose kernels are launched by themselves.
    """
    search = _Search(Dependence(schedule.steps))
    for position, step in enumerate(schedule.steps):
        if isinstance(step, KernelPlan) and apart.isdisjoint(step.nests) and _can_combine(step):
            search.place(step, position, likeness(step))
    batches = [b for b in search.batches if len(b.members) > 1]
    if not batches:
        return schedule
    for batch in batches:
        batch.plan = combined(batch.members, schedule.table, device, once)
    batches, decisions = _sharing_texts(schedule, batches, device)
    batches, refused = _within_memory(schedule, batches, device)
    decisions += refused
    for batch in batches:
        decisions += _accepted(batch, device)
    return replace(_rebuilt(schedule, batches), decisions=(*schedule.decisions, *decisions))


def _can_combine(plan: KernelPlan) -> bool:
    """One grid dimension at most, sizes that are known and not 0."""
    grid = [d for d in plan.dims if d.kind is DimKind.GRID and as_int(plan.extent(d)) != 1]
    extents = [as_int(plan.extent(d)) for d in plan.dims]
    known = all(e is not None and 0 < e < LIMIT for e in extents) and all(d.name in ("x", "r") for d in plan.dims)
    known = known and not any(has_sizes(e) for e in plan.exprs)
    return known and len(grid) <= 1 and _family(plan) is not None and len({b.device for b in plan.buffers}) == 1


def _family(plan: KernelPlan) -> str | None:
    if plan.strategy is Strategy.FLAT:
        return "flat"
    return "row" if plan.strategy in _ROWS else None


def _takes(batch: _Batch, plan: KernelPlan, key: Hashable) -> bool:
    first = batch.members[0]
    if _family(first) != _family(plan) or first.buffers[0].device != plan.buffers[0].device:
        return False
    if len(batch.members) == MAX_PARTS or len(batch.buffers | {b.name for b in plan.buffers}) > MAX_POINTERS:
        return False
    if key in batch.keys:
        return True
    # A text of its own shares registers with the others: a long kernel must not wait for what it does not need.
    return len(batch.keys) < MAX_BODIES and plan.cost.seconds <= LONG and not batch.is_long


# -- which batches pay ----------------------------------------------------------------------------


def _sharing_texts(
    schedule: Schedule, batches: list[_Batch], device: DeviceModel
) -> tuple[list[_Batch], list[FusionDecision]]:
    """Batches left when those of several texts are taken out that make more distinct kernels than there were."""
    count = Counter(signature(s) for s in schedule.steps if isinstance(s, KernelPlan))
    distinct = len(count)
    taken = {id(b): [signature(m) for m in b.members] for b in batches}
    for batch in batches:
        count.subtract(taken[id(batch)])
        count[signature(_plan_of(batch))] += 1
    decisions: list[FusionDecision] = []
    for batch in sorted(batches, key=lambda b: len(b.members)):
        if len(batch.keys) == 1 or sum(n > 0 for n in count.values()) <= distinct:
            continue
        count.update(taken[id(batch)])
        count[signature(_plan_of(batch))] -= 1
        batches = [b for b in batches if b is not batch]
        reason = "apart they share their text with equal kernels; one launch would be one more kernel to compile"
        decisions.append(_refused(batch, reason, device))
    return batches, decisions


def _within_memory(
    schedule: Schedule, batches: list[_Batch], device: DeviceModel
) -> tuple[list[_Batch], list[FusionDecision]]:
    """Batches left when, smallest first, as many are taken out as it takes to keep the peak of memory.

    First those without which the peak is lower; the others as well where that is not enough.
    """
    held = sum(hint_of(schedule.table[name].numel) * schedule.table[name].itemsize for name in schedule.inputs if name)
    allowed = plan_memory(schedule).peak_bytes + max(MEMORY_SLACK, held // MEMORY_SHARE)
    decisions: list[FusionDecision] = []
    peak = plan_memory(_rebuilt(schedule, batches)).peak_bytes
    for only_lower in (True, False):
        for batch in sorted(batches, key=lambda b: len(b.members)):
            if peak <= allowed:
                return batches, decisions
            others = [b for b in batches if b is not batch]
            without = plan_memory(_rebuilt(schedule, others)).peak_bytes
            if only_lower and without >= peak:
                continue
            reason = f"one launch for {len(batch.members)} kernels would raise peak memory by {peak - allowed} bytes"
            decisions.append(_refused(batch, reason, device))
            batches, peak = others, without
    return batches, decisions


def _plan_of(batch: _Batch) -> KernelPlan:
    assert batch.plan is not None, "a batch is combined once it is complete"
    return batch.plan


def _refused(batch: _Batch, reason: str, device: DeviceModel) -> FusionDecision:
    return replace(_accepted(batch, device)[0], accepted=False, reason=reason)


def _accepted(batch: _Batch, device: DeviceModel) -> list[FusionDecision]:
    first, *others = batch.members
    count = len(batch.members)
    like = "of the same text" if len(batch.keys) == 1 else f"of {len(batch.keys)} texts"
    reason = f"independent: {count} kernels {like} run side by side, saves a launch"
    return [FusionDecision(_name(first), _name(o), True, reason, 0, device.launch) for o in others]


def _name(plan: KernelPlan) -> str:
    return plan.nests[0] if plan.nests else plan.name


# -- the combined schedule ------------------------------------------------------------------------


def _rebuilt(schedule: Schedule, batches: Sequence[_Batch]) -> Schedule:
    """Steps in an order that respects every dependence, close to the one before."""
    batch_of = {p: number for number, batch in enumerate(batches) for p in batch.positions}
    last = {number: max(batch.positions) for number, batch in enumerate(batches)}
    steps: list[tuple[int, Step]] = []
    for position, step in enumerate(schedule.steps):
        if position not in batch_of:
            steps.append((position, step))
        elif last[batch_of[position]] == position:
            steps.append((position, _plan_of(batches[batch_of[position]])))
    return replace(schedule, steps=_in_order(schedule, steps))


def _in_order(schedule: Schedule, steps: Sequence[tuple[int, Step]]) -> tuple[Step, ...]:
    """A topological order of the merged steps by the dependences of the steps they hold."""
    owner: dict[str, int] = {}
    for number, (_, step) in enumerate(steps):
        for leaf in step.leaves if isinstance(step, KernelPlan) else (step,):
            owner[leaf.name] = number
    direct = Dependence(schedule.steps).direct
    needs: list[set[int]] = [set() for _ in steps]
    for position, step in enumerate(schedule.steps):
        mine = owner[step.name]
        needs[mine] |= {owner[schedule.steps[p].name] for p in bits(direct[position])} - {mine}
    users: list[list[int]] = [[] for _ in steps]
    for number, wanted in enumerate(needs):
        for other in wanted:
            users[other].append(number)
    ready = [(position, number) for number, (position, _) in enumerate(steps) if not needs[number]]
    heapq.heapify(ready)
    order: list[Step] = []
    while ready:
        _, number = heapq.heappop(ready)
        order.append(steps[number][1])
        for user in users[number]:
            needs[user].discard(number)
            if not needs[user]:
                heapq.heappush(ready, (steps[user][0], user))
    assert len(order) == len(steps), "combined kernels wait for each other"
    return tuple(order)


def combined(members: Sequence[KernelPlan], table: dict[str, Buffer], device: DeviceModel, once: Once) -> KernelPlan:
    """One plan of these; kernels of one text are neighbours, longest first, and share a tile."""
    groups: dict[Hashable, list[KernelPlan]] = {}
    for member in sorted(members, key=lambda p: -p.cost.seconds):  # most programs find their part at the first branch
        groups.setdefault(likeness(member), []).append(member)
    tiles = [_common_tile(group) for group in groups.values()]
    warps = max(t.num_warps for t in tiles)
    parts = tuple(
        replace(member, tile=_with_warps(tile, warps, member.strategy), candidates=())
        for group, tile in zip(groups.values(), tiles, strict=True)
        for member in group
    )
    first = parts[0]
    return KernelPlan(
        name=first.name,
        axes=(),
        dims=(),
        phases=(),
        buffers=buffers_of(parts),
        strategy=first.strategy,
        tile=Tile((), warps, first.tile.num_stages),
        cost=_cost(parts, table, device, once),
        nests=tuple(chain.from_iterable(p.nests for p in parts)),
        internal=tuple(chain.from_iterable(p.internal for p in parts)),
        boundary=first.boundary,
        parts=parts,
    )


def _common_tile(group: Sequence[KernelPlan]) -> Tile:
    """Of the longest rows, then of the most of them: masks make it fit the others."""

    def extent(plan: KernelPlan, name: str) -> int:
        dim = plan.dim(name)
        return 1 if dim is None else as_int(plan.extent(dim)) or 1

    return max(group, key=lambda p: (extent(p, "r"), extent(p, "x"))).tile


def _with_warps(tile: Tile, warps: int, strategy: Strategy) -> Tile:
    """More warps: as many points a thread where the kernel is flat, the same rows otherwise."""
    if strategy is not Strategy.FLAT or warps == tile.num_warps:
        return replace(tile, num_warps=warps)
    blocks = tuple((name, size * warps // tile.num_warps) for name, size in tile.blocks)
    return replace(tile, blocks=blocks, num_warps=warps)


def _cost(parts: Sequence[KernelPlan], table: dict[str, Buffer], device: DeviceModel, once: Once) -> KernelCost:
    """The sum of the parts with one launch; what several parts read counts once."""
    read = sum(p.cost.bytes_read for p in parts) - _read_again(parts, table, once)
    return KernelCost(
        bytes_read=read,
        bytes_written=sum(p.cost.bytes_written for p in parts),
        requested_bytes=sum(p.cost.requested_bytes for p in parts),
        flops=sum(p.cost.flops for p in parts),
        registers=max(p.cost.registers for p in parts),
        seconds=device.launch + sum(max(p.cost.seconds - device.launch, 0.0) for p in parts),
    )


def _read_again(parts: Sequence[KernelPlan], table: dict[str, Buffer], once: Once) -> int:
    """Bytes that more than one part reads, but for the first time. Exact where parts read the same elements."""
    readers: dict[str, int] = {}
    for name in chain.from_iterable(p.reads for p in parts):
        readers[name] = readers.get(name, 0) + 1
    shared = {name for name, count in readers.items() if count > 1}
    again = 0
    counts: dict[str, list[int]] = {name: [] for name in shared}
    for part in parts:
        if shared & set(part.reads):
            read = once(_elements_read, (LoopNest(part.name, part.axes, part.body),), table)
            for name, elements in read:
                if name in shared:
                    counts[name].append(elements)
    for name, found in counts.items():
        union = min(sum(found), hint_of(table[name].numel)) if len(set(found)) > 1 else found[0]
        again += (sum(found) - union) * table[name].itemsize
    return again


def _elements_read(nests: Sequence[LoopNest], table: Mapping[str, Buffer]) -> tuple[tuple[str, int], ...]:
    return tuple(traffic(nests[0].body, nests[0].axes, table).read.items())


__all__ = ["combine", "combined"]
