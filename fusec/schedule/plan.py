"""Plan: a group becomes a KernelPlan: ordered axes, tile dimensions, a strategy, block sizes, phases.

    group (p0<64, r0<4096), reduces r0, 3 live values
    ->  dims x=(x0) grid, r=(r0) whole;  persistent row;  XBLOCK=1 RBLOCK=4096, 8 warps

No reduction: flat; a 2-D tile when two heavy accesses are contiguous along different axes; a row tile when much of the
work is the same for a whole row. With one, or a scan: a row is held in registers when they suffice, else looped, one
phase a pass. Where rows need what a loop over rows adds up to, all of a program's rows are held or walked over again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from fusec.ir.analysis import instr_axes, renumber, varying
from fusec.ir.index import as_int, product
from fusec.ir.kernels import DimKind, KernelPlan, Strategy, Tile, TileDim
from fusec.ir.ops import MOMENTS, OPS
from fusec.ir.types import Axis, Buffer, Instr, LoopNest
from fusec.schedule.algebra import simplify_body
from fusec.schedule.axes import merge_axes, rewrite_axes
from fusec.schedule.blocks import (
    TYPICAL,
    Buckets,
    bucket_of,
    buckets_of,
    column_tiles,
    flat_tiles,
    held_tile,
    overwrites_loads,
    row_and_column_tiles,
    row_block,
    row_tiles,
    rowwise_tiles,
    tiles_of_two_sides,
    typical,
)
from fusec.schedule.cost import DeviceModel, estimate, max_live
from fusec.schedule.fuse import Group
from fusec.schedule.once import Once
from fusec.schedule.online import online_sums, two_passes
from fusec.schedule.phases import split_phases
from fusec.schedule.predicted import extent_hint
from fusec.schedule.reduced import ReducedShape, Use, column_use, reduced_axes, reduced_shape
from fusec.schedule.split import is_workspace
from fusec.schedule.strides import axis_order, heavy_accesses, unit_axis_of, uses

MIN_TILE_EXTENT = 8  # a shorter contiguous run gains nothing from a second tile dimension
MIN_ROW_TILE_POINTS = 1 << 22  # a kernel with fewer points takes a few microseconds either way
MIN_ROW_WORK = 6  # instructions a row shares: below, two grid dimensions gain nothing
MIN_ROWS = 64
ROW_ALIGNMENT = 16  # elements: every row starts where a 16-byte access may


@dataclass(frozen=True, slots=True)
class _Shape:
    """A nest with its axes in tile order, and which axes form each tile dimension.

    rows: the first of two grid dimensions numbers rows.
    """

    nest: LoopNest
    dims: tuple[tuple[str, tuple[str, ...]], ...]
    rows: bool = False


def plan_group(
    group: Group, name: str, table: Mapping[str, Buffer], device: DeviceModel, boundary: str, once: Once
) -> KernelPlan:
    """The launch that runs a group."""
    plan = once(_plan, (group.nest,), table, device)
    return replace(plan, name=name, nests=group.members, internal=group.internal, boundary=boundary)


def _plan(nests: Sequence[LoopNest], table: Mapping[str, Buffer], device: DeviceModel) -> KernelPlan:
    """The launch that runs one nest; its name and what it covers are not filled in."""
    (nest,) = nests
    nest = replace(nest, body=simplify_body(nest.body, nest.axes))
    reduced = reduced_axes(nest.body)
    if reduced:
        shape = _row_shape(nest, reduced, table)
    elif any(a.extent == 0 for a in nest.axes):
        shape = _Shape(nest, (("x", tuple(a.name for a in nest.axes)),))
    else:
        shape = _pointwise_shape(nest, table)
    return _finish_plan(_renamed(_merged(shape)), table, device)


def _row_shape(nest: LoopNest, reduced: frozenset[str], table: Mapping[str, Buffer]) -> _Shape:
    rows = axis_order(nest, [a for a in nest.axes if a.name not in reduced], table)
    shape = reduced_shape(nest.body, nest.axes)
    assert isinstance(shape, ReducedShape), shape
    loop = axis_order(nest, [a for a in nest.axes if a.name in shape.loop], table)
    columns = axis_order(nest, [a for a in nest.axes if a.name in shape.whole], table)
    if nest.scans:
        order = nest.scans[0].scanned_axes
        columns = sorted(columns, key=lambda a: order.index(a.name))
    dims = tuple(
        (dim, tuple(a.name for a in axes))
        for dim, axes in (("x", rows), ("q", loop), ("r", columns))
        if axes or dim == "x"
    )
    return _Shape(replace(nest, axes=(*rows, *loop, *columns)), dims)


def _pointwise_shape(nest: LoopNest, table: Mapping[str, Buffer]) -> _Shape:
    axes = axis_order(nest, nest.axes, table)
    extents = {a.name: typical(a.extent, MIN_TILE_EXTENT) or 1 for a in axes}
    units = _heavy_unit_axes(nest, table)
    wide = [u for u in units if extents[u] >= MIN_TILE_EXTENT]
    if len(wide) < 2:
        names = tuple(a.name for a in axes)
        rows = _row_axes(nest, axes)
        dims = (("y", names[:rows]), ("x", names[rows:])) if rows else (("x", names),)
        return _Shape(replace(nest, axes=tuple(axes)), dims, rows > 0)
    first, second = wide[0], wide[1]
    others = [a for a in axes if a.name not in (first, second)]
    by_name = {a.name: a for a in axes}
    ordered = (*others, by_name[second], by_name[first])
    return _Shape(replace(nest, axes=ordered), (("y", tuple(a.name for a in ordered[:-1])), ("x", (first,))))


def _row_axes(nest: LoopNest, axes: Sequence[Axis]) -> int:
    """How many of the outer axes number rows, where work that is the same for a whole row is worth doing once; else 0.

    y[3136*p0 + p1] = (x[3136*p0 + p1] - mean[p0]) * rsqrt(var[p0] + eps)   ->   1: p0 numbers rows of 3136 points
    """
    extents = [as_int(a.extent) or 0 for a in axes]
    if prod(extents) < MIN_ROW_TILE_POINTS:
        return 0
    values = varying(nest.body, nest.axes)
    work = [(instr_axes(i, values), OPS[i.op].cost + 2 * (i.op == "load")) for i in nest.body if i.out is not None]
    best, saved = 0, MIN_ROW_WORK
    for rows in range(1, len(axes)):
        length = prod(extents[rows:])
        if length % ROW_ALIGNMENT or row_block(length) is None:
            continue
        outer = {a.name for a in axes[:rows]}
        same = sum(cost for used, cost in work if used and used <= outer)
        if same >= saved and prod(extents[:rows]) >= MIN_ROWS:
            best, saved = rows, same
    return best


def _heavy_unit_axes(nest: LoopNest, table: Mapping[str, Buffer]) -> list[str]:
    """The axes along which heavy accesses are contiguous, heaviest first."""
    units: list[str] = []
    for access in heavy_accesses(nest, table):
        unit = unit_axis_of(access, nest.axes)
        if unit is not None and unit not in units:
            units.append(unit)
    return units


def _merged(shape: _Shape) -> _Shape:
    """Join axes inside each tile dimension where every index allows it: fewer divisions to find them again."""
    owner = {axis: dim for dim, names in shape.dims for axis in names}
    if any(a.extent == 0 for a in shape.nest.axes):
        return shape
    nest = merge_axes(shape.nest, lambda a, b: owner[a.name] == owner[b.name])
    left = {a.name for a in nest.axes}
    dims = tuple((dim, tuple(n for n in names if n in left)) for dim, names in shape.dims)
    return replace(shape, nest=nest, dims=dims)


def _renamed(shape: _Shape) -> _Shape:
    """Axes named after their dimension (x0, x1, r0): equal kernels get equal text."""
    names = {axis: f"{dim}{i}" for dim, axes in shape.dims for i, axis in enumerate(axes)}
    dims = tuple((dim, tuple(names[a] for a in axes)) for dim, axes in shape.dims)
    return replace(shape, nest=_rename_axes(shape.nest, names), dims=dims)


def _rename_axes(nest: LoopNest, names: Mapping[str, str]) -> LoopNest:
    axes = tuple(Axis(names[a.name], a.extent, a.kind) for a in nest.axes)
    mapping = {old.name: new.symbol for old, new in zip(nest.axes, axes, strict=True)}
    body = rewrite_axes(nest.body, mapping, {old: (new,) for old, new in names.items()})
    order = {a.name: i for i, a in enumerate(axes)}
    return replace(nest, axes=axes, body=tuple(_sorted_axes(i, order) for i in body))


def _sorted_axes(instr: Instr, order: Mapping[str, int]) -> Instr:
    """The axes a line names in tile order; axes joined into another one are gone."""
    if not instr.axes:
        return instr
    axes = tuple(sorted((a for a in instr.axes if a in order), key=order.__getitem__))
    return replace(instr, attrs=tuple((k, axes if k == "axes" else v) for k, v in instr.attrs))


def _finish_plan(shape: _Shape, table: Mapping[str, Buffer], device: DeviceModel) -> KernelPlan:
    nest = replace(shape.nest, body=renumber(shape.nest.body))
    cost = estimate(nest, table, device)
    reduced = reduced_axes(nest.body)
    again = cost.requested_bytes > cost.bytes_read
    strategy, tiles, looped = _strategy(nest, shape, reduced, table, device, again)
    length = product(a.extent for a in nest.axes if a.name in dict(shape.dims).get("r", ()))
    buckets: Buckets = ()
    if looped == "r" and as_int(length) is None and tiles[0].block("x") == 1:
        buckets = buckets_of(max(max_live(nest.body, nest.axes), 1), tiles, device)
        tiles = [bucket_of(buckets, extent_hint(length))]
    along = frozenset(dict(shape.dims)[looped] if looped else ())
    nest = replace(nest, body=renumber(two_passes(nest.body, nest.axes, reduced - along)))
    kinds = {"x": DimKind.GRID, "y": DimKind.GRID, "r": DimKind.WHOLE, "q": DimKind.WHOLE}
    if looped:
        kinds[looped] = DimKind.LOOP
    phases: tuple[tuple[Instr, ...], ...] = (nest.body,)
    if looped == "q" and tiles[0].block("r") < (as_int(length) or 0):
        kinds["r"] = DimKind.PARTS
        walks = split_phases(nest.body, nest.axes, frozenset(dict(shape.dims)["r"]))
        phases = (renumber(tuple(i for walk in walks for i in walk)),)
    elif looped:
        phases = split_phases(online_sums(nest.body, nest.axes, along), nest.axes, along)
        names = renumber(tuple(i for phase in phases for i in phase))
        phases = tuple(_regrouped(names, [len(p) for p in phases]))
    dims = tuple(TileDim(d, axes, kinds[d]) for d, axes in shape.dims)
    dims = tuple(d for d in dims if d.axes) or dims[:1]
    buffers = tuple(table[b] for b in dict.fromkeys((*nest.reads, *nest.writes)))
    return KernelPlan(
        name="",
        axes=nest.axes,
        dims=dims,
        phases=phases,
        buffers=buffers,
        strategy=strategy,
        tile=_only(tiles[0], dims),
        cost=cost,
        candidates=tuple(_only(t, dims) for t in tiles[1:]),
        buckets=tuple((longest, _only(t, dims)) for longest, t in buckets),
    )


def _only(tile: Tile, dims: tuple[TileDim, ...]) -> Tile:
    names = {d.name for d in dims}
    return replace(tile, blocks=tuple(b for b in tile.blocks if b[0] in names))


def _regrouped(lines: tuple[Instr, ...], sizes: list[int]) -> list[tuple[Instr, ...]]:
    result: list[tuple[Instr, ...]] = []
    start = 0
    for size in sizes:
        result.append(lines[start : start + size])
        start += size
    return result


def _strategy(
    nest: LoopNest,
    shape: _Shape,
    reduced: frozenset[str],
    table: Mapping[str, Buffer],
    device: DeviceModel,
    again: bool,
) -> tuple[Strategy, list[Tile], str]:
    """The strategy, tiles to use (the first) or to measure (the rest), and the looped tile dimension or "".

    again: a row that is looped is read more than once.
    """
    lengths = {d: product(a.extent for a in nest.axes if a.name in axes) for d, axes in shape.dims}
    extents = {"x": 1} | {d: typical(n, TYPICAL[d]) for d, n in lengths.items()}
    known = as_int(lengths.get("r", 1)) is not None
    live = max(max_live(nest.body, nest.axes), 1)
    if not reduced:
        if shape.rows:
            return Strategy.ROW_TILE, rowwise_tiles(extents, live), ""
        if len(shape.dims) == 2:
            return Strategy.TILE_2D, tiles_of_two_sides(extents, live), ""
        return Strategy.FLAT, flat_tiles(extents["x"], nest, table, live, device), ""
    if "q" in extents:
        loop, columns = (frozenset(dict(shape.dims)[d]) for d in "qr")
        use = column_use(nest.body, nest.axes, loop)
        known = use is not Use.NONE and as_int(lengths["q"]) is not None
        held = held_tile(extents, live, device) if known else None
        if held is not None:
            return Strategy.PERSISTENT_ROW, [held], ""
        sizes = [table[a.buffer].itemsize for a in nest.loads if uses(a, loop) and uses(a, columns)]
        return Strategy.ROW_AND_COLUMN, row_and_column_tiles(nest, extents, live, sizes, use, loop), "q"
    sizes = [table[a.buffer].itemsize for a in nest.loads if uses(a, reduced)]
    split = any(is_workspace(table[b]) for b in nest.writes)
    units = _heavy_unit_axes(nest, table)
    if units and units[0] not in reduced and extents["x"] > 1:
        tiles, looped = column_tiles(extents, live, sizes, device, known, overwrites_loads(nest, reduced))
    else:
        online = online_sums(nest.body, nest.axes, frozenset(dict(shape.dims)["r"])) if again else ()
        # A running mean has its first value and a count beside it; a scan keeps all of a block.
        states = 3 * (bool(nest.scans) or any(i.op in MOMENTS for i in online))
        tiles, looped = row_tiles(extents, live, states, sizes, device, known, again)
    row = Strategy.LOOPED_ROW if looped else Strategy.PERSISTENT_ROW
    return (Strategy.SPLIT_ROW if split and not looped else row), tiles, "r" if looped else ""
