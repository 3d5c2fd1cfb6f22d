"""Split reductions: a reduction with few rows is cut into slices that many programs reduce, and a small finish.

Before                                         After
  nest n0 (p0<4, r0<1048576):                    nest n0_partial (p0<4, s<256, r0<4096):
    %0 = load x[1048576*p0 + r0]                   %0 = load x[1048576*p0 + 4096*s + r0]
    %1 = sum[r0] %0                                %1 = sum[r0] %0
    store y[p0], %1                                store y_partial[4*s + p0], %1
                                                 nest n0_finish (p0<4, r0<256):
                                                   %0 = load y_partial[4*r0 + p0]
                                                   %1 = sum[r0] %0
                                                   store y[p0], %1

It is decided after fusion, on groups whose rows cannot fill the device, and the program is fused again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import permutations

import torch

from fusec.ir.analysis import eliminate_dead, excused, varying
from fusec.ir.index import Expr, IndexLike, as_expr, linearize, product, symbols_of
from fusec.ir.ops import MOMENTS, identity
from fusec.ir.sizes import exact_quotient, plain
from fusec.ir.types import Access, AccessMode, Axis, AxisKind, Buffer, Instr, LoopNest, Node, Program, Role
from fusec.schedule.axes import merge_axes, rewrite_axes, without_unit_axes
from fusec.schedule.cost import DeviceModel, splitting_pays
from fusec.schedule.fuse import MANY_READERS, Group, Item
from fusec.schedule.once import Once
from fusec.schedule.predicted import extent_hint, points
from fusec.schedule.reduced import WHOLE_LIMIT, has_room, reduced_axes
from fusec.schedule.strides import unit_axis

MIN_POINTS = 1 << 15  # a reduction below this many points is over before a second launch would start
PROGRAMS_PER_MULTIPROCESSOR = 4
WALKERS_PER_MULTIPROCESSOR = 2  # programs that walk along rows; one where a row takes all registers
MIN_ROWS = 8  # rows a row-and-column program walks along at least
WORKSPACE = "partial"  # the hint of a buffer of partial results
MAX_ROWS = 16384  # slices of one row each, which a single program puts together
MIN_SLICE = 1024  # points of one slice, so that a program has something to do


def is_workspace(buffer: Buffer) -> bool:
    """True for the memory between the slices of a reduction and what finishes it."""
    return buffer.role is Role.TEMPORARY and buffer.hint == WORKSPACE


def split_reductions(
    program: Program,
    items: Sequence[Item],
    device: DeviceModel,
    once: Once,
    apart: Set[str],
) -> Program | None:
    """The program with the reductions of starving groups split, or None when there is none.

    apart: nests that stay whole.
    """
    wanted: dict[str, int] = {}
    groups = [item for item in items if isinstance(item, Group)]
    for group in groups:
        slices = once(_slices, (group.nest,), program.table, device)
        if slices > 1:
            wanted.update(dict.fromkeys(group.members, slices))
    beside: dict[str, int] = {}
    for rows, columns in _reading_together(groups):
        slices = once(_slices_beside, (rows.nest, columns.nest), program.table, device)
        if slices > 1:
            beside.update((name, max(slices, beside.get(name, 1))) for name in columns.members)
    wanted = {name: slices for name, slices in (wanted | beside).items() if name not in apart}
    if not wanted:
        return None
    nodes: list[Node] = []
    buffers = list(program.buffers)
    changed = False
    for node in program.nodes:
        parts = _split(node, wanted.get(node.name, 1), program) if isinstance(node, LoopNest) else None
        if parts is None:
            nodes.append(node)
            continue
        changed = True
        partial, finish, workspaces = parts
        nodes += [partial, finish]
        buffers += workspaces
    return replace(program, nodes=tuple(nodes), buffers=tuple(buffers)) if changed else None


def _reading_together(groups: Sequence[Group]) -> Iterator[tuple[Group, Group]]:
    """Pairs of groups that reduce and read a common buffer, or one what the other writes; few of all pairs do."""
    readers: dict[str, list[int]] = {}
    reducing = {i: g for i, g in enumerate(groups) if reduced_axes(g.nest.body)}
    for i, group in reducing.items():
        for name in (*group.nest.reads, *group.nest.writes):
            readers.setdefault(name, []).append(i)
    pairs = {pair for same in readers.values() if len(same) <= MANY_READERS for pair in permutations(same, 2)}
    for i, j in sorted(pairs):
        yield reducing[i], reducing[j]


def _slices(nests: Sequence[LoopNest], table: Mapping[str, Buffer], device: DeviceModel) -> int:
    (nest,) = nests
    slices = slices_for(nest, device)
    return slices if slices > 1 and splitting_pays(nest, table, device) else 1


def _slices_beside(nests: Sequence[LoopNest], table: Mapping[str, Buffer], device: DeviceModel) -> int:
    """How many slices to cut a reduction along columns into, so that it can share one read with one along rows.

    x.sum(1) and x.sum(0): each program then walks over its slice of rows, finishes every row and adds up the columns.
    """
    rows, columns = nests
    across, along = reduced_axes(rows.body), reduced_axes(columns.body)
    if not across or not along or unit_axis(rows) not in across or unit_axis(columns) in along:
        return 1
    if rows.scans or columns.scans:
        return 1
    shared = {*rows.reads, *rows.writes} & set(columns.reads)
    if 2 * sum(table[n].nbytes for n in shared) < sum(table[n].nbytes for n in columns.reads):
        return 1
    sizes = [
        points(a for a in nest.axes if (a.name in reduced) == inside)
        for nest, reduced in ((rows, across), (columns, along))
        for inside in (False, True)
    ]
    held = frozenset(a.name for a in columns.axes) - along
    if sizes[0] != sizes[3] or sizes[1] != sizes[2] or not has_room(columns.body, columns.axes, along, held):
        return 1
    walkers = 1 if sizes[1] > WHOLE_LIMIT else WALKERS_PER_MULTIPROCESSOR
    slices = min(device.multiprocessors * walkers, sizes[0] // MIN_ROWS)
    return 1 << (slices.bit_length() - 1) if slices > 1 else 1


def slices_for(nest: LoopNest, device: DeviceModel) -> int:
    """How many programs should share one row; 1 when the rows alone fill the device."""
    reduced = reduced_axes(nest.body)
    rows = max(points(a for a in nest.axes if a.name not in reduced), 1)
    columns = max(points(a for a in nest.axes if a.name in reduced), 1)
    if not reduced or nest.scans or rows * columns < MIN_POINTS:
        return 1
    if unit_axis(nest) not in reduced and rows > 1:
        rows = max(rows // 64, 1)  # neighbouring rows share a program: their elements are adjacent in memory
        least = 64
    else:
        least = MIN_SLICE
    if rows >= device.multiprocessors:
        return 1
    slices = min(device.multiprocessors * PROGRAMS_PER_MULTIPROCESSOR // rows, max(columns // least, 1))
    return 1 << (slices.bit_length() - 1) if slices > 1 else 1


def _split(nest: LoopNest, slices: int, program: Program) -> tuple[LoopNest, LoopNest, list[Buffer]] | None:
    if slices < 2 or len(nest.reductions) != 1 or nest.name.endswith("_finish"):
        return None
    reduction = nest.reductions[0]
    if reduction.op in ("argmax", "argmin"):
        return None  # a finish would need the positions, too
    if any(i.out is None for i in nest.body[: nest.body.index(reduction)]):
        return None
    flat = merge_axes(without_unit_axes(nest), lambda a, b: a.is_reduction and b.is_reduction)
    (reduction,) = flat.reductions
    assert reduction.out is not None
    rows = _row_axis(flat)
    if rows is None:
        axis = max((a for a in flat.axes if a.name in reduction.reduced_axes), key=lambda a: extent_hint(a.extent))
        slices, chunk = _cut(axis.extent, slices)
    else:
        axis, slices, chunk = rows, extent_hint(rows.extent), 1
    if slices < 2:
        return None
    cut = _Cut(flat, reduction, axis, Axis(f"{axis.name}s", slices), Axis(axis.name, chunk, AxisKind.REDUCTION))
    device = next(program.table[b].device for b in nest.writes)
    if reduction.op not in MOMENTS:
        workspace = cut.workspace(f"{nest.name}_partial", device)
        return _partial(cut, workspace), _finish(cut, workspace), [workspace]
    means = cut.workspace(f"{nest.name}_partial_mean", device)
    if reduction.op == "mean":
        return _partial(cut, None, means), _finish_mean(cut, means), [means]
    workspace = cut.workspace(f"{nest.name}_partial", device)
    return _partial(cut, workspace, means), _finish_deviations(cut, workspace, means), [workspace, means]


@dataclass(frozen=True)
class _Cut:
    """One axis of a nest's only reduction, cut into slices (outer) of some points (inner)."""

    nest: LoopNest
    reduction: Instr
    axis: Axis
    outer: Axis
    inner: Axis

    @property
    def kept(self) -> tuple[Axis, ...]:
        return tuple(a for a in self.nest.axes if not a.is_reduction)

    @property
    def parts(self) -> Axis:
        """The axis of a finish: it runs over the slices."""
        return Axis(f"{self.outer.name}r", self.outer.extent, AxisKind.REDUCTION)

    @property
    def exact(self) -> bool:
        return exact_quotient(self.axis.extent, self.inner.extent) is not None

    def workspace(self, name: str, device: str) -> Buffer:
        """One value of each slice: slices apart, rows adjacent."""
        shape = tuple(a.extent for a in (self.outer, *self.kept))
        return Buffer(name, self.reduction.dtype, shape, _contiguous(shape), device, Role.TEMPORARY, WORKSPACE)

    def at(self, workspace: Buffer, slice_: Axis, mode: AccessMode = AccessMode.LOAD) -> Access:
        where = linearize([a.symbol for a in (slice_, *self.kept)], workspace.strides)
        return Access(workspace.name, where, mode)

    def count(self, slice_: Axis, name: str) -> list[Instr]:
        """Lines that end in how many points a slice has, in the reduction's dtype."""
        dtype = self.reduction.dtype
        rest = product(a.extent for a in self.nest.axes if a.is_reduction and a.name != self.axis.name)
        points = product((self.inner.extent, rest))
        if self.exact and isinstance(points, int):
            return [Instr(name, "const", (), dtype, None, (("value", float(points)),))]
        left = (self.axis.extent - slice_.symbol * self.inner.extent) * rest
        parts = {"left": left, "most": points, "none": 0}
        lines = [
            Instr(f"{name}.{k}", "index", (), torch.int64, None, (("expr", as_expr(e)),)) for k, e in parts.items()
        ]
        lines.append(Instr(f"{name}.least", "minimum", (f"{name}.left", f"{name}.most"), torch.int64))
        lines.append(Instr(f"{name}.points", "maximum", (f"{name}.least", f"{name}.none"), torch.int64))
        return [*lines, Instr(name, "cast", (f"{name}.points",), dtype)]


def _row_axis(nest: LoopNest) -> Axis | None:
    """The axis that numbers rows, in a sum over all points of rows that have values of their own.

    sum over r0, r1 of t[r0, r1] * (x[r0, r1] - lse[r0])   ->   r0: with a slice for each row, the sum of a row can
    share a launch with what computes lse
    """
    reduced = {a.name: a for a in nest.axes if a.is_reduction}
    varied = {frozenset(s.name for s in symbols_of(access.index) if s.name in reduced) for access in nest.loads}
    rows = [next(iter(names)) for names in varied if len(names) == 1 and len(reduced) == 2]
    chosen = [reduced[name] for name in rows if name != unit_axis(nest)]
    if len(chosen) != 1 or frozenset(reduced) not in varied:
        return None
    (axis,) = chosen
    length = points(a for a in reduced.values() if a is not axis)
    return axis if isinstance(axis.extent, int) and 1 < axis.extent <= MAX_ROWS and length >= MIN_SLICE else None


def _cut(extent: IndexLike, slices: int) -> tuple[int, IndexLike]:
    """(slices, points of each). A symbolic extent is cut into as many slices for every size; the last may be empty."""
    if not isinstance(extent, int):
        return slices, plain((extent + slices - 1) // slices)
    chunk = _chunk(extent, min(slices, extent))
    return -(-extent // chunk), chunk


def _chunk(extent: int, slices: int) -> int:
    """Points a slice: an exact divisor near extent / slices if there is one, else the rounded-up quotient."""
    target = -(-extent // slices)
    for candidate in range(target, min(2 * target, extent) + 1):
        if extent % candidate == 0:
            return candidate
    return -(-target // 16) * 16


def _partial(cut: _Cut, target: Buffer | None, means: Buffer | None = None) -> LoopNest:
    """The nest of the slices. target: where their results go. means: where their means go, of a mean or a dev_sum."""
    nest, reduction, axis, outer, inner = cut.nest, cut.reduction, cut.axis, cut.outer, cut.inner
    position = outer.symbol * inner.extent + inner.symbol
    upto = nest.body[: nest.body.index(reduction)]
    body = list(rewrite_axes(upto, {axis.name: position}, {}))
    operand = reduction.args[0]
    if not cut.exact:
        body = _guarded(body, position, axis.extent)
        neutral = identity(reduction.op, reduction.dtype)
        body.append(Instr("%neutral", "const", (), reduction.dtype, None, (("value", neutral),)))
        body.append(Instr("%kept", "where", ("%inside", operand, "%neutral"), reduction.dtype))
        operand = "%kept"
    stored = {"%slice": target}
    if means is None or cut.exact:
        body.append(replace(reduction, out="%slice", args=(operand,)))
    if means is not None:
        body += _mean_of_slice(cut, operand)
        stored["%slice.mean"] = means
    if means is not None and not cut.exact:
        body.append(Instr("%apart", "sub", (operand, "%slice.mean"), reduction.dtype))
        body.append(Instr("%within", "where", ("%inside", "%apart", "%neutral"), reduction.dtype))
        body.append(Instr("%square", "mul", ("%within", "%within"), reduction.dtype))
        body.append(replace(reduction, out="%slice", op="sum", args=("%square",)))
    for value, buffer in stored.items():
        if buffer is not None:
            to = cut.at(buffer, outer, AccessMode.STORE)
            body.append(Instr(None, "store", (value,), reduction.dtype, to, (), reduction.origin))
    axes = tuple(outer if a.name == axis.name else a for a in nest.axes if not a.is_reduction or a.name == axis.name)
    rest = tuple(a for a in nest.axes if a.is_reduction and a.name != axis.name)
    return LoopNest(f"{nest.name}_partial", (*axes, *rest, inner), eliminate_dead(body))


def _mean_of_slice(cut: _Cut, operand: str) -> list[Instr]:
    reduction, dtype = cut.reduction, cut.reduction.dtype
    if cut.exact:
        return [replace(reduction, out="%slice.mean", op="mean", args=(operand,))]
    return [
        replace(reduction, out="%total", op="sum", args=(operand,)),
        *cut.count(cut.outer, "%points"),
        Instr("%one", "const", (), dtype, None, (("value", 1.0),)),
        Instr("%divisor", "maximum", ("%points", "%one"), dtype),  # the mean of no points is 0
        Instr("%slice.mean", "div", ("%total", "%divisor"), dtype, None, (), reduction.origin),
    ]


def _guarded(body: list[Instr], position: Expr, extent: IndexLike) -> list[Instr]:
    """Mask every load that runs along the split axis: the last slice may reach past its end."""
    known = isinstance(extent, int)
    op, attrs = ("const", (("value", extent),)) if known else ("index", (("expr", as_expr(extent)),))
    inside = [
        Instr("%position", "index", (), torch.int64, None, (("expr", position),)),
        Instr("%extent", op, (), torch.int64, None, attrs),
        Instr("%inside", "lt", ("%position", "%extent"), torch.bool),
    ]
    result: list[Instr] = list(inside)
    for number, instr in enumerate(body):
        if instr.op == "load":
            mask = "%inside"
            if instr.args:
                mask = f"%inside{number}"
                result.append(Instr(mask, "and", ("%inside", instr.args[0]), torch.bool))
            instr = replace(instr, args=(mask,), attrs=instr.attrs or (("other", 0),))
        elif instr.op == "checked":
            instr, extra = excused(instr, "%inside", {i.out for i in body})
            result += extra
        result.append(instr)
    return result


def _finish(cut: _Cut, workspace: Buffer) -> LoopNest:
    dtype, origin = cut.reduction.dtype, cut.reduction.origin
    axis = cut.parts
    body = (
        Instr("%part", "load", (), dtype, cut.at(workspace, axis), (), origin),
        replace(cut.reduction, args=("%part",), attrs=(("axes", (axis.name,)),)),
    )
    return _finishing(cut, axis, body)


def _finish_mean(cut: _Cut, means: Buffer) -> LoopNest:
    axis = cut.parts
    assert cut.reduction.out is not None
    return _finishing(cut, axis, _overall_mean(cut, axis, means, cut.reduction.out))


def _overall_mean(cut: _Cut, axis: Axis, means: Buffer, out: str) -> list[Instr]:
    """Lines that end in the mean of the slices' means, each counted as often as its slice has points."""
    dtype, origin = cut.reduction.dtype, cut.reduction.origin
    over = (("axes", (axis.name,)),)

    def line(out: str, op: str, *args: str, attrs: tuple[tuple[str, object], ...] = ()) -> Instr:
        return Instr(out, op, args, dtype, None, attrs, origin)

    part = Instr("%part_mean", "load", (), dtype, cut.at(means, axis), (), origin)
    if cut.exact:
        return [part, line(out, "mean", "%part_mean", attrs=over)]
    return [
        part,
        *cut.count(axis, "%points"),
        *_all_points(cut, axis),
        line("%weighted", "mul", "%part_mean", "%points"),
        line("%total", "sum", "%weighted", attrs=over),
        line("%about", "div", "%total", "%all"),
        line("%off", "sub", "%part_mean", "%about"),
        line("%weighted_off", "mul", "%off", "%points"),
        line("%left", "sum", "%weighted_off", attrs=over),
        line("%drift", "div", "%left", "%all"),
        line(out, "add", "%about", "%drift"),
    ]


def _finish_deviations(cut: _Cut, workspace: Buffer, means: Buffer) -> LoopNest:
    """sum of (x - mean)^2 = sum over slices of s + n * (m - mean)^2, for n points of mean m and the sum s about it.

    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances".
    """
    dtype, origin = cut.reduction.dtype, cut.reduction.origin
    axis = cut.parts

    def line(out: str, op: str, *args: str) -> Instr:
        return Instr(out, op, args, dtype, None, (), origin)

    body = (
        *_overall_mean(cut, axis, means, "%mean"),
        line("%apart", "sub", "%part_mean", "%mean"),
        line("%square", "mul", "%apart", "%apart"),
        *cut.count(axis, "%of_slice"),
        line("%between", "mul", "%square", "%of_slice"),
        Instr("%part", "load", (), dtype, cut.at(workspace, axis), (), origin),
        line("%both", "add", "%between", "%part"),
        replace(cut.reduction, op="sum", args=("%both",), attrs=(("axes", (axis.name,)),)),
    )
    return _finishing(cut, axis, body)


def _all_points(cut: _Cut, slices: Axis) -> list[Instr]:
    """Lines that end in how many points the whole reduction has."""
    points, dtype = product(a.extent for a in cut.nest.axes if a.is_reduction), cut.reduction.dtype
    if isinstance(points, int):
        return [Instr("%all", "const", (), dtype, None, (("value", float(points)),))]
    return [Instr("%all", "sum", ("%points",), dtype, None, (("axes", (slices.name,)),))]


def _finishing(cut: _Cut, axis: Axis, body: Sequence[Instr]) -> LoopNest:
    """The lines of a finish, with those of the nest that do not run along the row before and after them."""
    nest, position = cut.nest, cut.nest.body.index(cut.reduction)
    values, reduced = varying(nest.body, nest.axes), reduced_axes(nest.body)
    before = (i for i in nest.body[:position] if i.out is None or not values[i.out] & reduced)
    lines = (*before, *body, *nest.body[position + 1 :])
    return LoopNest(f"{nest.name}_finish", (*cut.kept, axis), eliminate_dead(lines))


def _contiguous(extents: Sequence[IndexLike]) -> tuple[IndexLike, ...]:
    return tuple(product(extents[i + 1 :]) for i in range(len(extents)))


__all__ = ["is_workspace", "slices_for", "split_reductions"]
