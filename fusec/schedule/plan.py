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
from fusec.ir.index import IndexLike, as_int, product, symbols_of
from fusec.ir.kernels import DimKind, KernelPlan, Strategy, Tile, TileDim
from fusec.ir.ops import MOMENTS, OPS
from fusec.ir.types import Axis, Buffer, Instr, LoopNest
from fusec.schedule.algebra import simplify_body
from fusec.schedule.axes import merge_axes, rewrite_axes
from fusec.schedule.cost import HELD_POINTS, PERSISTENT_LIMIT, DeviceModel, estimate, max_live
from fusec.schedule.fuse import Group
from fusec.schedule.once import Once
from fusec.schedule.online import online_sums, two_passes
from fusec.schedule.phases import split_phases
from fusec.schedule.predicted import extent_hint
from fusec.schedule.reduced import (
    ROW_STAGES,
    WHOLE_LIMIT,
    ReducedShape,
    Use,
    column_use,
    next_power_of_2,
    reduced_axes,
    reduced_shape,
    rows_at_once,
)
from fusec.schedule.split import is_workspace
from fusec.schedule.strides import axis_order, unit_axis_of, weighted_accesses

MIN_TILE_EXTENT = 8  # a shorter contiguous run gains nothing from a second tile dimension
MIN_ROW_TILE_POINTS = 1 << 22  # a kernel with fewer points takes a few microseconds either way
MIN_ROW_WORK = 6  # instructions a row shares: below, two grid dimensions gain nothing
MIN_ROWS = 64
ROW_ALIGNMENT = 16  # elements: every row starts where a 16-byte access may
SOME_IDLE, MAX_IDLE = 1.05, 1.15  # lanes over points
HEAVY = 0.2  # share of the heaviest access above which an access deserves coalescing
SPARE_REGISTERS = 40  # addresses, masks, loop counters


Buckets = tuple[tuple[int | None, Tile], ...]


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
    extents = {a.name: _typical(a.extent, MIN_TILE_EXTENT) or 1 for a in axes}
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
        if length % ROW_ALIGNMENT or _row_block(length) is None:
            continue
        outer = {a.name for a in axes[:rows]}
        same = sum(cost for used, cost in work if used and used <= outer)
        if same >= saved and prod(extents[:rows]) >= MIN_ROWS:
            best, saved = rows, same
    return best


def _row_block(length: int) -> int | None:
    """Points of a row a program takes: the first block that leaves few lanes idle; None when all leave many."""
    for idle in (SOME_IDLE, MAX_IDLE):
        for block in (1024, 2048, 512, 256):
            if block <= next_power_of_2(length) and -(-length // block) * block <= idle * length:
                return block
    return None


def _heavy_unit_axes(nest: LoopNest, table: Mapping[str, Buffer]) -> list[str]:
    """The axes along which heavy accesses are contiguous, heaviest first."""
    accesses = weighted_accesses(nest, table)
    heaviest = accesses[0][0] if accesses else 0
    units: list[str] = []
    for weight, access in accesses:
        unit = unit_axis_of(access, nest.axes)
        if unit is not None and weight >= HEAVY * heaviest and unit not in units:
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
        buckets = _buckets(nest, shape, tiles, device)
        tiles = [bucket_of(buckets, extent_hint(length))]
    along = frozenset(dict(shape.dims)[looped] if looped else ())
    nest = replace(nest, body=renumber(two_passes(nest.body, nest.axes, reduced - along)))
    if looped:
        phases = split_phases(online_sums(nest.body, nest.axes, along), nest.axes, along)
        names = renumber(tuple(i for phase in phases for i in phase))
        phases = tuple(_regrouped(names, [len(p) for p in phases]))
    else:
        phases = (nest.body,)
    kinds = {"x": DimKind.GRID, "y": DimKind.GRID, "r": DimKind.WHOLE, "q": DimKind.WHOLE}
    if looped:
        kinds[looped] = DimKind.LOOP
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
    extents = {"x": 1} | {d: _typical(n, _TYPICAL[d]) for d, n in lengths.items()}
    known = as_int(lengths.get("r", 1)) is not None
    live = max(max_live(nest.body, nest.axes), 1)
    if not reduced:
        if shape.rows:
            return Strategy.ROW_TILE, _row_tile(extents, live), ""
        if len(shape.dims) == 2:
            return Strategy.TILE_2D, _tile_2d(extents, live), ""
        return Strategy.FLAT, _flat(extents["x"], nest, table, live, device), ""
    if "q" in extents:
        use = column_use(nest.body, nest.axes, frozenset(dict(shape.dims)["q"]))
        known = use is not Use.NONE and as_int(lengths["q"]) is not None
        held = _held_tile(extents, live, device) if known else None
        if held is not None:
            return Strategy.PERSISTENT_ROW, [held], ""
        return Strategy.ROW_AND_COLUMN, _row_and_column_tiles(nest, extents, live, use), "q"
    split = any(is_workspace(table[b]) for b in nest.writes)
    units = _heavy_unit_axes(nest, table)
    if units and units[0] not in reduced and extents["x"] > 1:
        tiles, looped = _column_tiles(extents, live, known)
    else:
        along = [a for a in nest.loads if any(s.name in reduced for s in symbols_of(a.index))]
        sizes = [table[a.buffer].itemsize for a in along]
        online = online_sums(nest.body, nest.axes, frozenset(dict(shape.dims)["r"])) if again else ()
        # A running mean has its first value and a count beside it; a scan keeps all of a block.
        states = 3 * (bool(nest.scans) or any(i.op in MOMENTS for i in online))
        tiles, looped = _row_tiles(extents, live, states, sizes, device, known, again)
    row = Strategy.LOOPED_ROW if looped else Strategy.PERSISTENT_ROW
    return (Strategy.SPLIT_ROW if split and not looped else row), tiles, "r" if looped else ""


CACHED_BLOCK, CACHED_LIVE = 32768, 3  # a row a multiprocessor: it is still in the second cache when read again
RESIDENT_WARPS = 64  # of a multiprocessor: where rows are few, each has more of them
IN_FLIGHT = 64  # bytes a thread of a looped row waits for: 2048 threads of a multiprocessor ask for 128 KB
SHORT_ROWS = (64, 256, 1024)  # longest rows of a bucket


def _buckets(nest: LoopNest, shape: _Shape, tiles: Sequence[Tile], device: DeviceModel) -> Buckets:
    """Tiles for rows of every length: short ones share a program, so that no lane goes without a point."""
    live = max(max_live(nest.body, nest.axes), 1)
    short = ((longest, _persistent_tile(_TYPICAL["x"], longest, live, device)) for longest in SHORT_ROWS)
    return (*((longest, tile) for longest, tile in short if tile is not None), (None, tiles[0]))


def bucket_of(buckets: Buckets, length: int) -> Tile:
    """The tile for rows of this length."""
    return next(tile for longest, tile in buckets if longest is None or length <= longest)


# What a symbolic extent is taken for at least: block sizes must suit the long sizes, short ones are quick anyway.
_TYPICAL = {"x": 1 << 20, "y": 1 << 10, "r": 1 << 14, "q": 8}


def _typical(extent: IndexLike, least: int) -> int:
    """An extent for choosing blocks."""
    return extent if isinstance(extent, int) else max(extent_hint(extent), least)


def _flat(points: int, nest: LoopNest, table: Mapping[str, Buffer], live: int, device: DeviceModel) -> list[Tile]:
    """Two 16-byte accesses a thread and buffer where few values live: GELU of bf16 on an H200 takes 64 us, not 72."""
    accesses = [table[a.buffer].itemsize for a in (*nest.loads, *nest.stores)]
    narrowest = min(accesses, default=4)
    lanes = max(16 // narrowest, 1) if narrowest > 1 else 8  # elements of a 16-byte access
    lanes = min(lanes, 8)
    if live > 12:
        lanes = min(lanes, 4)
    warps = 4
    block = 32 * warps * lanes * (2 if live <= 6 and len(accesses) <= 7 else 1)
    while block > 128 and points < block * device.multiprocessors:
        block //= 2
        warps = min(max(block // (32 * lanes), 1), warps)
    others = [Tile((("x", block * 2),), min(warps * 2, 8)), Tile((("x", block * 2),), warps)]
    return [Tile((("x", block),), warps), *others, *([Tile((("x", block // 2),), warps)] if block > 256 else [])]


def _tile_2d(extents: Mapping[str, int], live: int) -> list[Tile]:
    side = 64 if live <= 6 else 32
    x = min(side, next_power_of_2(extents["x"]))
    y = min(side, next_power_of_2(extents["y"]))
    tiles = [Tile((("y", y), ("x", x)), 8 if x * y >= 4096 else 4)]
    if side == 64:
        tiles.append(Tile((("y", min(y, 32)), ("x", min(x, 32))), 4))
    return tiles


def _row_tile(extents: Mapping[str, int], live: int) -> list[Tile]:
    """About a thousand points a program: of one row, or of a few short ones."""
    x = _row_block(extents["x"])
    assert x is not None, "only rows that blocks cover well are tiled"
    y = max(1024 // x, 1)
    warps = 8 if live > 12 or x > 1024 else 4
    return [Tile((("y", y), ("x", x)), warps), Tile((("y", 2 * y), ("x", x)), 8)]


def _row_tiles(
    extents: Mapping[str, int],
    live: int,
    states: int,
    sizes: Sequence[int],
    device: DeviceModel,
    known: bool,
    again: bool,
) -> tuple[list[Tile], bool]:
    """states: values that a loop carries beside sums. sizes: bytes of a point, of each access along the row. known: the
    length of a row is a number; else only a loop suits every length. again: a looped row is read more than once."""
    rows, columns = extents["x"], extents["r"]
    whole = next_power_of_2(max(columns, 1))
    if known and whole <= 2 * PERSISTENT_LIMIT:
        tile = _persistent_tile(rows, whole, live, device)
        if tile is not None:
            return [tile], False
    loaded = sum(sizes)
    tiles: list[Tile] = []
    kept = columns * loaded * device.multiprocessors <= device.cache and rows >= device.multiprocessors
    if again and kept and whole >= CACHED_BLOCK and live + states <= CACHED_LIVE:
        tiles.append(Tile((("x", 1), ("r", CACHED_BLOCK)), 32))
    resident = max(RESIDENT_WARPS // -(-rows // device.multiprocessors), 1)
    for block in (4096, 2048, 1024, 512):
        warps = min(max(block // 512, 4), 16)
        while warps < 16 and block * loaded > IN_FLIGHT * 32 * warps:
            warps *= 2
        while warps < 16 and warps < resident and block * min(sizes, default=4) >= 2 * 16 * 32 * warps:
            warps *= 2
        if registers_needed(block, warps, live) <= 128:
            tiles.append(Tile((("x", 1), ("r", min(block, whole))), warps))
    return tiles or [Tile((("x", 1), ("r", min(256, whole))), 4)], True


def _persistent_tile(rows: int, whole: int, live: int, device: DeviceModel) -> Tile | None:
    block = 1
    while block * whole < 1024 and block * 2 * device.multiprocessors <= rows:
        block *= 2
    points = block * whole
    warps = 1
    while warps < 32 and points // (32 * warps) > 16:
        warps *= 2
    while warps < 16 and registers_needed(points, warps, live) > 128 and points // (32 * warps) > 4:
        warps *= 2
    limit = min(200, 65536 // (32 * warps) - 8)
    return Tile((("x", block), ("r", whole)), warps) if registers_needed(points, warps, live) <= limit else None


def _column_tiles(extents: Mapping[str, int], live: int, known: bool) -> tuple[list[Tile], bool]:
    rows, columns = extents["x"], extents["r"]
    x = min(64, next_power_of_2(rows))
    whole = next_power_of_2(max(columns, 1))
    if known and whole * x <= 4096 and registers_needed(whole * x, 4, live) <= 160:
        return [Tile((("x", x), ("r", whole)), 4)], False
    r = max(min(4096 // x if live <= 4 else 2048 // x, whole), 1)
    return [Tile((("x", x), ("r", r)), 8)], True


def _held_tile(extents: Mapping[str, int], live: int, device: DeviceModel) -> Tile | None:
    """All rows of a program at once, when registers suffice: then none is read again."""
    rows, columns = next_power_of_2(extents["q"]), next_power_of_2(extents["r"])
    tile = _persistent_tile(extents["x"], rows * columns, live, device) if rows * columns <= HELD_POINTS else None
    return replace(tile, blocks=(("x", tile.block("x")), ("q", rows), ("r", columns))) if tile is not None else None


def _row_and_column_tiles(nest: LoopNest, extents: Mapping[str, int], live: int, use: Use) -> list[Tile]:
    """A few rows a step, so that the sums along the columns stay in registers beside the rows."""
    sums = sum(1 for i in nest.body if i.reduced_axes)
    whole, most = next_power_of_2(extents["r"]), rows_at_once(extents["q"], extents["r"], use)
    rows, warps = most, 16
    limits, steps = ((4, 208), (8, 176)), (most, most // 2)  # the estimate is a third above what the compiler needs
    if use is Use.AGAIN:  # but for what later phases compute again; and each step is waited for
        limits, steps = ((4, 128), (8, 128)), (most, 0)
    for fewer, limit in limits:
        fitting = [n for n in steps if n and registers_needed(n * whole, fewer, live + sums) <= limit]
        if fitting:
            rows, warps = fitting[0], fewer
            break
    written = set(nest.writes)
    in_place = any(a.buffer in written for a in nest.loads)
    ahead = ROW_STAGES if whole <= WHOLE_LIMIT else ROW_STAGES - 1  # what is loaded ahead lies in shared memory
    blocks, stages = (("x", 1), ("q", rows), ("r", whole)), 1 if in_place else ahead
    return [Tile(blocks, warps, stages), *([Tile(blocks, 2 * warps, stages)] if use is Use.AGAIN else [])]


def registers_needed(points: int, warps: int, live: int) -> int:
    """Estimated 32-bit registers a thread: each live value's share of the tile, and some to spare."""
    return SPARE_REGISTERS + live * -(-points // (32 * warps))


__all__ = ["plan_group", "registers_needed"]
