"""The search: which nests share a kernel.

    fuse(program, config, once, apart) -> (groups and externs in order, decisions)

A priority queue over pairs of groups that touch a common buffer, best predicted saving first. A pair is merged when
`legality` finds common axes, and predicted seconds do not grow. What must run between its two halves joins them, all or
nothing:

    n1: s = sum[r] x      n2: m = sum[q] w*s      n3: y = x + m       n1 and n3 share x, n2 stands between
    ->  n1, n2 and n3 together, or as they were

Every answer leaves a FusionDecision.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Union

from fusec.config import Config
from fusec.ir.kernels import FusionDecision
from fusec.ir.types import Buffer, Extern, LoopNest, Program, Role
from fusec.schedule.axes import split_for_linearity, without_unit_axes
from fusec.schedule.cost import DeviceModel, device_model, estimate
from fusec.schedule.dependence import Dependence
from fusec.schedule.legality import Refusal, fuse_nests, with_reduction_kinds
from fusec.schedule.merge import with_unique_values, without_stores
from fusec.schedule.once import Once
from fusec.schedule.reduced import reduced_shape

MANY_READERS = 24  # a buffer with more readers (a scalar, a mask) suggests no pairs among them
MOST_BETWEEN = 4  # groups that must run between two which are fused together with them


@dataclass(frozen=True, slots=True)
class Group:
    """A fused nest and the lowered nests it covers. internal: buffers that no longer exist in memory."""

    nest: LoopNest
    members: tuple[str, ...]
    position: int
    internal: tuple[str, ...] = ()


Item = Union[Group, Extern]


@dataclass(slots=True)
class _Search:
    program: Program
    config: Config
    device: DeviceModel
    once: Once
    dependence: Dependence
    items: dict[int, Item]
    apart: Set[str]
    readers: dict[str, set[int]] = field(default_factory=dict)
    writers: dict[str, set[int]] = field(default_factory=dict)
    decisions: list[FusionDecision] = field(default_factory=list)
    queue: list[tuple[int, int, int]] = field(default_factory=list)

    def run(self) -> None:
        for a, b in self._initial_pairs():
            self._push(a, b)
        while self.queue:
            _, a, b = heapq.heappop(self.queue)
            if a in self.items and b in self.items:
                self._try(a, b)

    def _stands_alone(self, i: int) -> bool:
        item = self.items[i]
        return isinstance(item, Group) and not self.apart.isdisjoint(item.members)

    def _initial_pairs(self) -> Iterator[tuple[int, int]]:
        pairs: set[tuple[int, int]] = set()
        for buffer in {*self.readers, *self.writers}:
            writers, touching = self._touching(buffer)
            first = touching if len(touching) <= MANY_READERS else writers
            pairs |= {(min(a, b), max(a, b)) for a in first for b in touching if a != b}
        yield from sorted(pairs)

    def _touching(self, buffer: str) -> tuple[set[int], set[int]]:
        """The groups that write a buffer, and those that write or read it."""
        writers = {i for i in self.writers.get(buffer, ()) if isinstance(self.items[i], Group)}
        return writers, writers | {i for i in self.readers.get(buffer, ()) if isinstance(self.items[i], Group)}

    def _push(self, a: int, b: int) -> None:
        if self._stands_alone(a) or self._stands_alone(b):
            return
        gain = self._shared_bytes(a, b)
        if gain > 0:
            heapq.heappush(self.queue, (-gain, min(a, b), max(a, b)))

    def _shared_bytes(self, a: int, b: int) -> int:
        left, right = self._group(a), self._group(b)
        total = 0
        flows = False
        for name in (set(left.nest.reads) | set(left.nest.writes)) & (set(right.nest.reads) | set(right.nest.writes)):
            size = self.program.table[name].nbytes
            writes = (name in left.nest.writes) or (name in right.nest.writes)
            flows = flows or writes
            total += size * (2 if writes and not self._needed_elsewhere(name, (a, b)) else 1)
        return max(total, 1) if flows else total

    def _group(self, i: int) -> Group:
        item = self.items[i]
        assert isinstance(item, Group)
        return item

    def _needed_elsewhere(self, buffer: str, among: Sequence[int]) -> bool:
        """True when someone besides these groups needs the buffer in memory."""
        if buffer in self.program.returned or self.program.table[buffer].role in (Role.INPUT, Role.CONSTANT):
            return True
        return bool(self.readers.get(buffer, set()).difference(among))

    def _try(self, a: int, b: int) -> None:
        if self.dependence.ordered(b, a):
            a, b = b, a
        left, right = self._group(a), self._group(b)
        between = self.dependence.between(a, b)
        obstacle = self._obstacle(between, left, right)
        if len(between) > MOST_BETWEEN or any(map(self._stays, between)):
            self._decide(left, right, False, obstacle)
            return
        chain = (a, *between, b)
        nests = [self._group(i).nest for i in chain]
        needed = tuple(self._needed_elsewhere(name, chain) for nest in nests for name in nest.writes)
        answer = self.once(_fusion, nests, self.program.table, needed, self.config.precision, self.device)
        reason = answer.reason if answer.nest is not None or not between else f"{obstacle}: {answer.reason}"
        self._decide(left, right, answer.nest is not None, reason, answer.bytes_saved, answer.seconds_saved)
        if answer.nest is not None:
            self._replace(chain, answer.nest, answer.internal)

    def _obstacle(self, between: Sequence[int], left: Group, right: Group) -> str:
        return f"{self._name(between[0])} must run between {left.nest.name} and {right.nest.name}" if between else ""

    def _stays(self, i: int) -> bool:
        return not isinstance(self.items[i], Group) or self._stands_alone(i)

    def _replace(self, chain: Sequence[int], fused: LoopNest, internal: tuple[str, ...]) -> None:
        groups = [self._group(i) for i in chain]
        new, *rest = chain
        for other in rest:
            new = self.dependence.merge(new, other)
        members = tuple(name for group in groups for name in group.members)
        inside = (*(name for group in groups for name in group.internal), *internal)
        self.items[new] = Group(fused, members, max(group.position for group in groups), inside)
        for i, group in zip(chain, groups, strict=True):
            del self.items[i]
            for name in group.nest.reads:
                self.readers[name].discard(i)
            for name in group.nest.writes:
                self.writers[name].discard(i)
        for name in fused.reads:
            self.readers[name].add(new)
        for name in fused.writes:
            self.writers[name].add(new)
        neighbours: set[int] = set()
        for name in (*fused.reads, *fused.writes):
            writers, touching = self._touching(name)
            neighbours |= touching if len(touching) <= MANY_READERS or new in writers else writers
        for other in sorted(neighbours - {new}):
            self._push(other, new)

    def _decide(
        self, left: Group, right: Group, accepted: bool, reason: str, bytes_saved: int = 0, seconds: float = 0.0
    ) -> None:
        self.decisions.append(FusionDecision(left.nest.name, right.nest.name, accepted, reason, bytes_saved, seconds))

    def _name(self, node: int) -> str:
        item = self.items.get(node)
        return "another node" if item is None else item.name if isinstance(item, Extern) else item.nest.name


@dataclass(frozen=True, slots=True)
class _Fusion:
    """nest: all as one, None when refused. internal: buffers that are then no longer stored."""

    nest: LoopNest | None
    reason: str
    bytes_saved: int = 0
    seconds_saved: float = 0.0
    internal: tuple[str, ...] = ()


def _fusion(
    nests: Sequence[LoopNest],
    table: Mapping[str, Buffer],
    needed: tuple[bool, ...],
    precision: str,
    device: DeviceModel,
) -> _Fusion:
    """Whether nests, in an order they may run in, become one.

    needed: which of the buffers they write, in order, someone else reads.
    """
    fused, *rest = nests
    for right in rest:
        joined = fuse_nests(fused, right, precision)
        if isinstance(joined, Refusal):
            return _Fusion(None, joined.reason)
        fused = replace(joined, name=nests[0].name)
    written = [name for nest in nests for name in nest.writes]
    internal = frozenset(name for name, wanted in zip(written, needed, strict=True) if not wanted)
    fused = with_reduction_kinds(replace(fused, body=without_stores(fused.body, internal)))
    shape = reduced_shape(fused.body, fused.axes)  # what is no longer stored no longer says which axis is the row
    if isinstance(shape, str):
        return _Fusion(None, f"{nests[0].name} and {nests[-1].name} {shape}")
    costs = [estimate(nest, table, device) for nest in nests]
    cost = estimate(fused, table, device)
    between = device.launch * (len(nests) - 2)  # might be saved as well where these join the first or the last
    saved = sum(c.seconds for c in costs) - between - cost.seconds
    bytes_saved = sum(c.bytes_read + c.bytes_written for c in costs) - cost.bytes_read - cost.bytes_written
    if saved < 0:
        reason = f"one kernel would take {-saved * 1e6:.1f} us longer: it fills the device less well"
        return _Fusion(None, reason, bytes_saved, saved)
    return _Fusion(fused, _why(bytes_saved, len(rest), internal), bytes_saved, saved, tuple(sorted(internal)))


def _why(bytes_saved: int, launches: int, internal: frozenset[str]) -> str:
    kept = f", {', '.join(sorted(internal))} never reaches memory" if internal else ""
    return f"saves {bytes_saved / 1e6:.2f} MB and {'a launch' if launches == 1 else f'{launches} launches'}{kept}"


def prepared(nest: LoopNest) -> LoopNest:
    """A lowered nest made ready: unit axes gone, indices linear in the axes, SSA names unique in the program."""
    return with_unique_values(split_for_linearity(without_unit_axes(nest)))


def _prepared(nests: Sequence[LoopNest], _table: Mapping[str, Buffer]) -> LoopNest:
    return prepared(nests[0])


def fuse(
    program: Program, config: Config, once: Once, apart: Set[str]
) -> tuple[tuple[Item, ...], tuple[FusionDecision, ...]]:
    """Group the nests of a program; the result is in an order that respects every dependence.

    apart: nests that are groups of their own.
    """
    items: dict[int, Item] = {}
    for position, node in enumerate(program.nodes):
        if isinstance(node, Extern):
            items[position] = node
        else:
            items[position] = Group(once(_prepared, (node,), program.table), (node.name,), position)
    search = _Search(program, config, device_model(config.target), once, Dependence(program.nodes), items, apart)
    search.readers = {name: set(at) for name, at in program.readers.items()}
    search.writers = {name: set(at) for name, at in program.writers.items()}
    if config.fusion:
        search.run()
    return _in_order(search), tuple(search.decisions)


def _in_order(search: _Search) -> tuple[Item, ...]:
    """A topological order that stays close to the program's own."""
    waiting = {i: search.dependence.before[i] & _mask(search.items) for i in search.items}
    done = 0
    ready: list[tuple[int, int]] = []
    order: list[Item] = []
    positions = {i: item.position if isinstance(item, Group) else i for i, item in search.items.items()}
    for i, needs in waiting.items():
        if not needs:
            heapq.heappush(ready, (positions[i], i))
    pending = {i for i, needs in waiting.items() if needs}
    while ready:
        _, i = heapq.heappop(ready)
        order.append(search.items[i])
        done |= 1 << i
        for j in [j for j in pending if search.dependence.before[j] >> i & 1 and not waiting[j] & ~done]:
            pending.discard(j)
            heapq.heappush(ready, (positions[j], j))
    assert len(order) == len(search.items), "fusion made a cycle"
    return tuple(order)


def _mask(items: dict[int, Item]) -> int:
    result = 0
    for i in items:
        result |= 1 << i
    return result


__all__ = ["Group", "Item", "fuse", "prepared"]
