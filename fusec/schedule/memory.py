"""Lifetimes and reuse: where each buffer lives and when it dies.

    k0 writes t0; k1 reads t0, writes t1; k2 reads t1, writes t2     (equal sizes)
    ->  before k2: t2 takes over t0's memory;  after k2: t1 is given back

A buffer whose memory another one takes over is not listed as given back. Reuse is kept only when it does not raise
the peak: memory waiting to be taken over is memory held. What a training step saved for its backward graph is an input
there, and is given back as it is used: eager mode frees it so, too.
"""

from __future__ import annotations

from dataclasses import replace

from fusec.ir.index import IndexLike
from fusec.ir.kernels import Allocation, BufferPlan, KernelPlan, Schedule, Step
from fusec.ir.sizes import hint_of, plain
from fusec.ir.types import Buffer, Extern, Role, TensorView


def plan_memory(schedule: Schedule, give_inputs_back: bool = False) -> BufferPlan:
    """When each temporary and output is allocated and given back, and which dead buffer it takes over.

    give_inputs_back: inputs belong to the call, which lets go of each after the last step that reads it.
    """
    plain = _plan(schedule, reuse=False)
    shared = _plan(schedule, reuse=True)
    best = shared if shared.peak_bytes <= plain.peak_bytes else plain
    return _with_inputs(schedule, best) if give_inputs_back else best


def _with_inputs(schedule: Schedule, plan: BufferPlan) -> BufferPlan:
    """Inputs among what is dead after a step; after the last one all goes anyway."""
    inputs = {b.name for b in schedule.buffers if b.role is Role.INPUT}
    dying = [*_dying(schedule, inputs)[:-1], ()]
    return replace(plan, after=tuple((*a, *b) for a, b in zip(plan.after, dying)))


def _plan(schedule: Schedule, reuse: bool) -> BufferPlan:
    table = schedule.table
    owned = {b.name for b in schedule.buffers if b.role not in (Role.INPUT, Role.CONSTANT)}
    dying = _dying(schedule, owned)
    lent = _possibly_aliased(schedule.steps)
    before: list[tuple[Allocation, ...]] = []
    free: dict[tuple[object, str, IndexLike], list[str]] = {}
    taken: set[str] = set()
    allocated: set[str] = set()
    for i, step in enumerate(schedule.steps):
        allocations: list[Allocation] = []
        for name in step.writes if isinstance(step, KernelPlan) else ():
            if name not in owned or name in allocated:
                continue
            pool = free.get(_key(table[name]), []) if reuse else []
            source = pool.pop() if pool else None
            if source is not None:
                taken.add(source)
            allocated.add(name)
            allocations.append(Allocation(name, source))
        before.append(tuple(allocations))
        for name in dying[i]:
            if name in allocated and name not in lent:
                free.setdefault(_key(table[name]), []).append(name)
    after = tuple(tuple(n for n in names if n not in taken) for names in dying)
    return BufferPlan(tuple(before), after, _peak(schedule, before, after, owned))


def _dying(schedule: Schedule, owned: set[str]) -> list[tuple[str, ...]]:
    """Per step, the owned buffers that nobody needs afterwards."""
    returned = {o.buffer for o in schedule.outputs if isinstance(o, TensorView)}
    last = {name: i for i, step in enumerate(schedule.steps) for name in (*step.reads, *step.writes)}
    dying: list[list[str]] = [[] for _ in schedule.steps]
    for name, i in last.items():
        if name in owned and name not in returned:
            dying[i].append(name)
    return [tuple(sorted(names)) for names in dying]


def _possibly_aliased(steps: tuple[Step, ...]) -> set[str]:
    """Buffers a library call may return a view of: their memory is never handed on."""
    result: set[str] = set()
    for step in steps:
        if not isinstance(step, Extern):
            continue
        schema = getattr(step.target, "_schema", None)
        waits = getattr(step.target, "namespace", "") == "_c10d_functional"  # wait_tensor returns what it waits for
        if schema is None or waits or any(r.alias_info is not None for r in schema.returns):
            result.update(step.reads)
    return result


def _peak(
    schedule: Schedule, before: list[tuple[Allocation, ...]], after: tuple[tuple[str, ...], ...], owned: set[str]
) -> int:
    table = schedule.table
    alive = peak = 0
    for i, step in enumerate(schedule.steps):
        if isinstance(step, Extern):
            alive += sum(_bytes(table[n]) for n in step.outputs if n is not None and n in owned)
        alive += sum(_bytes(table[a.buffer]) for a in before[i] if a.reuses is None)
        peak = max(peak, alive)
        alive -= sum(_bytes(table[n]) for n in after[i])
    return peak


def _elements(buffer: Buffer) -> IndexLike:
    """Elements from the first to the last, gaps between rows included."""
    if buffer.numel == 0:
        return 0
    sizes = zip(buffer.shape, buffer.strides, strict=True)
    return plain(1 + sum((n - 1) * stride for n, stride in sizes))


def _bytes(buffer: Buffer) -> int:
    return hint_of(_elements(buffer)) * buffer.itemsize


def _key(buffer: Buffer) -> tuple[object, str, IndexLike]:
    # Equal dtype and room: the dead tensor's storage serves as it is, with new strides.
    return (buffer.dtype, buffer.device, _elements(buffer))
