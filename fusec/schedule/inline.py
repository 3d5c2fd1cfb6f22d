"""Inlining: a pointwise producer is computed inside its consumers, at the positions they read.

Before                                        After
  nest n0 (p0<64): store t[p0], exp(x[p0])      nest n1 (p0<32): store y[p0], exp(x[2*p0 + 1])
  nest n1 (p0<32): store y[p0], t[2*p0 + 1]

This is the recomputing half of fusion: it needs no common axes, so it reaches through slices, transposes,
concatenations and broadcasts. It is done when predicted seconds do not grow: always for one consumer that reads
each element about once, for several when the producer's inputs are no larger than its result and it is cheap.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from math import prod

import torch

from fusec.config import Config
from fusec.ir.analysis import excused, index_axes, rename, varying
from fusec.ir.index import Expr, IndexLike, axis_symbol, floordiv, is_nonnegative, mod, product, substitute
from fusec.ir.kernels import FusionDecision
from fusec.ir.ops import OPS
from fusec.ir.sizes import affine, hint_of
from fusec.ir.types import AccessMode, Buffer, Extern, Instr, LoopNest, Node, Program, Role
from fusec.schedule.axes import rewrite_axes
from fusec.schedule.cost import ACROSS, SHORT_RUN, DeviceModel, device_model, estimate, is_strided
from fusec.schedule.merge import join, without_stores
from fusec.schedule.once import Once
from fusec.schedule.predicted import extent_hint, predicted_nest
from fusec.schedule.ranges import Range, mask_ranges
from fusec.schedule.simplify import simplify_nest
from fusec.schedule.strides import unit_axis_of
from fusec.schedule.traffic import traffic

# (axis, stride, extent or None for the outermost): axis = (offset // stride) % extent
Coordinate = tuple[str, IndexLike, IndexLike | None]


def inline(program: Program, config: Config, once: Once, apart: Set[str]) -> tuple[Program, tuple[FusionDecision, ...]]:
    """Move cheap pointwise producers into their consumers; buffers nobody reads any more disappear.

    apart: nests that stay as they are.
    """
    device = device_model(config.target)
    nodes: list[Node | None] = list(program.nodes)
    decisions: list[FusionDecision] = []
    escaping = _escaping(program)
    readers = dict(program.readers)
    for position, producer in enumerate(nodes):
        if not isinstance(producer, LoopNest):
            continue
        store = _only_store(producer)
        if store is None or store.access is None or store.access.buffer in escaping:
            continue
        buffer = store.access.buffer
        consumers = [p for p in readers.get(buffer, ()) if isinstance(nodes[p], LoopNest)]
        nests = [n for n in (nodes[p] for p in consumers) if isinstance(n, LoopNest)]
        if not nests or not apart.isdisjoint(n.name for n in (producer, *nests)):
            continue
        if _overwritten(producer, position, consumers, program.writers):
            continue
        rows = any(_makes_rows(n, nodes, readers) for n in nests)
        answer = once(_inlining, (producer, *nests), program.table, device, config.precision, rows, buffer=buffer)
        if answer is None:
            continue
        reason = answer.reason
        saved = 0 if reason else program.table[buffer].nbytes * (1 + len(nests))
        text = reason or f"{producer.name} is computed where {buffer} is read"
        decisions += [FusionDecision(producer.name, n.name, reason is None, text, saved) for n in nests]
        if reason is not None:
            continue
        for p, nest in zip(consumers, answer.consumers, strict=True):
            nodes[p] = nest
            for name in producer.reads:
                known = readers.get(name, ())
                readers[name] = known if p in known else (*known, p)
        nodes[position] = None
    kept = tuple(n for n in nodes if n is not None)
    used = {b for n in kept for b in (*n.reads, *n.writes)} | program.returned
    buffers = tuple(b for b in program.buffers if b.name in used or b.role in (Role.INPUT, Role.CONSTANT))
    return replace(program, nodes=kept, buffers=buffers), tuple(decisions)


@dataclass(frozen=True, slots=True)
class _Inlining:
    """reason: why not, or None. consumers: with the producer's lines in place of their loads."""

    reason: str | None
    consumers: tuple[LoopNest, ...] = ()


def _makes_rows(nest: LoopNest, nodes: Sequence[Node | None], readers: Mapping[str, Sequence[int]]) -> bool:
    """A nest that reduces, or one that only casts for such nests."""
    if not nest.is_pointwise:
        return True
    if [i.op for i in nest.body] != ["load", "cast", "store"]:
        return False
    following = [n for name in nest.writes for n in (nodes[p] for p in readers.get(name, ()))]
    return any(isinstance(n, LoopNest) and not n.is_pointwise for n in following)


def _inlining(
    nests: Sequence[LoopNest],
    table: Mapping[str, Buffer],
    device: DeviceModel,
    precision: str,
    rows: bool,
    buffer: str,
) -> _Inlining | None:
    """A producer and the consumers of its buffer; None when its lines cannot be computed from an element's offset.

    rows: some of these consumers reduce, or cast for nests that do.
    """
    producer, *consumers = nests
    store = _only_store(producer)
    assert store is not None and store.access is not None, "asked of producers with one store"
    coordinates = _inverse(producer, store.access.index)
    if coordinates is None:
        return None
    reason = _refusal(producer, consumers, buffer, table, device, rows)
    if reason is not None:
        return _Inlining(reason)
    inlined = (_inlined(producer, store, coordinates, c, buffer, precision) for c in consumers)
    return _Inlining(None, tuple(simplify_nest(nest) for nest in inlined))


def _escaping(program: Program) -> frozenset[str]:
    """Buffers that someone other than a nest needs in memory, or that are written more than once."""
    externs = [node for node in program.nodes if isinstance(node, Extern)]
    touched = {name for node in externs for name in (*node.reads, *node.writes)}
    return program.returned | program.changing | touched


def _overwritten(
    producer: LoopNest, position: int, consumers: Sequence[int], writers: Mapping[str, tuple[int, ...]]
) -> bool:
    """True when something the producer reads is written before a consumer, or by it: it would read the new value."""
    return any(position < w <= max(consumers) for name in producer.reads for w in writers.get(name, ()))


def _only_store(nest: LoopNest) -> Instr | None:
    stores = [i for i in nest.body if i.access is not None and i.op != "load"]
    if not nest.is_pointwise or len(stores) != 1 or len(stores[0].args) != 1:
        return None
    access = stores[0].access
    return stores[0] if access is not None and access.mode is AccessMode.STORE else None


def _inverse(nest: LoopNest, index: Expr) -> list[Coordinate] | None:
    """(axis, stride, extent or None for the outermost) so that axis = (offset // stride) % extent."""
    found = affine(index)
    if found is None or any(s.kind != "axis" for s in found[0]):
        return None
    extents = {a.name: a.extent for a in nest.axes if a.extent != 1}
    strides = {s.name: c for s, c in found[0].items()}
    if strides.keys() != extents.keys():
        return None
    result: list[Coordinate] = []
    room: IndexLike = 1
    for name, stride in sorted(strides.items(), key=lambda item: hint_of(item[1])):
        extent = extents[name]
        if not is_nonnegative(stride - room) or not is_nonnegative(stride - 1):
            return None
        room = product((stride, extent))
        result.append((name, stride, extent))
    if result:
        name, stride, _ = result[-1]
        result[-1] = (name, stride, None)
    return result


def _refusal(
    producer: LoopNest,
    consumers: list[LoopNest],
    buffer: str,
    table: Mapping[str, Buffer],
    device: DeviceModel,
    rows: bool,
) -> str | None:
    """Why not, or None when computing again costs no more than storing and reading back."""
    size = hint_of(table[buffer].numel)
    if size <= 0:
        return f"{producer.name} has no elements"
    cost = sum(OPS[i.op].cost for i in producer.body if i.op not in ("load", "store", "const"))
    loads = sum(i.op == "load" for i in producer.body)
    evaluations = sum(_points(nest, buffer) for nest in consumers)
    moved = traffic(producer.body, producer.axes, table)
    size_bytes = table[buffer].nbytes
    read = moved.bytes_read(table)
    share = evaluations / size  # how often each element is computed, all consumers together
    saved = size_bytes * (1 + share) + read * (1 - share)
    across = _read_across(producer, table) if rows else 0
    if across * (ACROSS - 1) > 2 * size_bytes + device.launch * device.bandwidth:
        return f"a row of the consumer would read {across / 1e6:.1f} MB across memory, an element at a time"
    if len(consumers) == 1 and cost + loads <= 2:
        return None  # a copy or a cast: reading through it is free
    if len(consumers) > 1 and saved <= 0:
        return (
            f"{producer.name} reads {read / 1e6:.2f} MB to make {size_bytes / 1e6:.2f} MB: "
            f"too much to read again for {len(consumers)} consumers"
        )
    again = max(sum(_points(nest, buffer, flat=nest.is_pointwise) for nest in consumers) - size, 0)
    extra = again * (cost + 2 * loads) / device.rate - sum(_idle(nest, table, device) for nest in consumers)
    if extra > saved / device.bandwidth + (device.launch if len(consumers) == 1 else 0.0):
        return (
            f"computing {producer.name} again {again / size:.1f} times costs {extra * 1e6:.1f} us, "
            f"more than {saved / 1e6:.1f} MB of traffic"
        )
    return None


def _read_across(producer: LoopNest, table: Mapping[str, Buffer]) -> int:
    """Bytes that consumers which reduce would read with a stride, where the producer turns them into rows."""
    nest = predicted_nest(producer)
    extents = {a.name: extent_hint(a.extent) or 1 for a in nest.axes}
    (along,) = (unit_axis_of(a, nest.axes) for a in nest.stores)
    if along is None or extents[along] < SHORT_RUN:
        return 0
    strided = [a for a in nest.loads if is_strided(a, along, extents, table[a.buffer].itemsize)]
    return sum(prod(extents.values()) * table[a.buffer].itemsize for a in strided)


def _points(nest: LoopNest, buffer: str, flat: bool = False) -> int:
    """How many values of `buffer` the nest computes when it computes rather than loads them.

    flat: in a kernel with one flattened dimension a value is computed at every point, even where it does not vary.
    """
    nest = predicted_nest(nest)
    values = varying(nest.body, nest.axes)
    extents = {a.name: extent_hint(a.extent) for a in nest.axes}
    found = {a.index for a in nest.loads if a.buffer == buffer}
    if flat:
        return len(found) * prod(extents.values())
    return sum(prod(extents[a] for a in index_axes(index, values) if a in extents) for index in found)


def _idle(nest: LoopNest, table: Mapping[str, Buffer], device: DeviceModel) -> float:
    """Seconds of arithmetic a nest can take on while it waits for memory."""
    cost = estimate(nest, table, device)
    return max((cost.bytes_read + cost.bytes_written) / device.bandwidth - cost.flops / device.rate, 0.0)


def _inlined(
    producer: LoopNest,
    store: Instr,
    coordinates: list[Coordinate],
    consumer: LoopNest,
    buffer: str,
    precision: str,
) -> LoopNest:
    assert store.access is not None
    body: list[Instr] = []
    aliases: dict[tuple[Expr, tuple[str, ...]], str] = {}
    defined = {i.out: i for i in consumer.body if i.out is not None}
    for position, instr in enumerate(consumer.body):
        if instr.op != "load" or instr.access is None or instr.access.buffer != buffer:
            body.append(instr)
            continue
        key = (instr.access.index, instr.args)
        if key not in aliases:
            aliases[key] = f"{buffer}@{len(aliases)}"
            ranges = mask_ranges(instr.args[0], defined) if instr.args else []
            local = replace(producer, body=_prefixed(producer.body, f"{producer.name}@{position}."))
            body += _at(local, store, coordinates, instr.access.index, aliases[key], instr.args, ranges)
        body.append(replace(instr, access=replace(instr.access, buffer=aliases[key])))
    joined = without_stores(join((), body, precision), frozenset(aliases.values()))
    return replace(consumer, body=joined)


def _solved(offset: Expr, coordinates: list[Coordinate], ranges: list[Range]) -> dict[str, Expr]:
    """The producer's axes in terms of the element's offset.

    Where a mask bounds an expression, it stands as one symbol of that range while the divisions are simplified:
    under d < 16 the last coordinate of t[16*p + d] is d, for any extent of d. Outside the mask nothing is read.
    """
    back: dict[str, Expr] = {}
    for number, known in enumerate(ranges):
        rest = known.extracted(offset)
        if rest is not None:
            name = f"~range{number}"
            factor, remainder = rest
            offset = remainder + axis_symbol(name, known.extent) * factor
            back[name] = known.expr - known.low
    mapping: dict[str, Expr] = {}
    for name, stride, extent in coordinates:
        quotient = floordiv(offset, stride)
        mapping[name] = substitute(quotient if extent is None else mod(quotient, extent), back)
    return mapping


def _prefixed(lines: tuple[Instr, ...], prefix: str) -> tuple[Instr, ...]:
    return rename(lines, {i.out: f"%{prefix}{i.out.removeprefix('%')}" for i in lines if i.out is not None})


def _at(
    producer: LoopNest,
    store: Instr,
    coordinates: list[Coordinate],
    index: Expr,
    alias: str,
    mask: tuple[str, ...],
    ranges: list[Range],
) -> tuple[Instr, ...]:
    """The producer's lines with its axes solved for the element at `index`, storing to `alias`."""
    assert store.access is not None
    start = affine(store.access.index)
    assert start is not None, "the store's index has an inverse"
    mapping = _solved(index - start[1], coordinates, ranges)
    lines: list[Instr] = []
    taken = {i.out for i in producer.body}
    for instr in rewrite_axes(producer.body, mapping, {}):
        if instr.out is None:
            assert instr.access is not None
            instr = replace(instr, access=replace(instr.access, buffer=alias, index=index))
        elif instr.op == "load" and mask:
            instr, extra = _masked(instr, mask[0], taken)
            lines += extra
            taken.update(i.out for i in extra)
        elif instr.op == "checked" and mask:
            instr, extra = excused(instr, mask[0], taken)
            lines += extra
            taken.update(i.out for i in extra)
        lines.append(instr)
    return tuple(lines)


def _masked(load: Instr, mask: str, taken: Container[str | None]) -> tuple[Instr, list[Instr]]:
    """The load touches memory only where the consumer's mask holds, too.

    taken: names in use. A load that was masked in an earlier step has its own name with a suffix among them.
    """
    if not load.args:
        return replace(load, args=(mask,)), []
    name = f"{load.out}.mask"
    while name in taken:
        name += "s"
    both = Instr(name, "and", (load.args[0], mask), torch.bool, None, (), load.origin)
    return replace(load, args=(name,)), [both]
