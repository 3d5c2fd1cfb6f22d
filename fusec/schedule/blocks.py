"""Block sizes, warps and stages of a kernel's tile, first the one to use, then others worth measuring.

Enters: the extents of the tile's dimensions, how many values live at once, what is loaded. Leaves: Tiles.

    flat, 67M points of bf16       XBLOCK=2048, 4 warps      two accesses of 16 bytes a thread
    rows of 4096, held             XBLOCK=1 RBLOCK=4096, 8 warps
    sums along columns             XBLOCK=64 RBLOCK=64, 8 warps, 3 stages

Times in comments are those of measurements on the named GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fusec.ir.index import IndexLike, as_int
from fusec.ir.kernels import Tile
from fusec.ir.types import Buffer, LoopNest
from fusec.schedule.cost import HELD_POINTS, PERSISTENT_LIMIT, DeviceModel
from fusec.schedule.predicted import extent_hint, predicted_nest
from fusec.schedule.reduced import PART, ROW_STAGES, WHOLE_LIMIT, Use, next_power_of_2, rows_at_once, sums_across
from fusec.schedule.strides import heavy_accesses, neighbours_of, stride_of, uses

SOME_IDLE, MAX_IDLE = 1.05, 1.15  # lanes over points
SPARE_REGISTERS = 40  # addresses, masks, loop counters
CACHED_BLOCK, CACHED_LIVE = 32768, 3  # a row a multiprocessor: it is still in the second cache when read again
RESIDENT_WARPS = 64  # of a multiprocessor: where rows are few, each has more of them
IN_FLIGHT = 64  # bytes a thread of a looped row waits for: 2048 threads of a multiprocessor ask for 128 KB
SHORT_STEP = 2048  # points of a step of a walk along rows that is over so soon that one more is loaded ahead
LONG_WALK = 8  # steps of a loop that are worth loading ahead of
AHEAD_BYTES = 48 << 10  # of shared memory for what a program loads ahead
MANY_APART = 4  # loads whose neighbours cannot be one access, before the points of a thread are fewer
SHORT_ROWS = (64, 256, 1024)  # longest rows of a bucket

Buckets = tuple[tuple[int | None, Tile], ...]


def buckets_of(live: int, tiles: Sequence[Tile], device: DeviceModel) -> Buckets:
    """Tiles for rows of every length: short ones share a program, so that no lane goes without a point."""
    short = ((longest, persistent_tile(TYPICAL["x"], longest, live, device)) for longest in SHORT_ROWS)
    return (*((longest, tile) for longest, tile in short if tile is not None), (None, tiles[0]))


def bucket_of(buckets: Buckets, length: int) -> Tile:
    """The tile for rows of this length."""
    return next(tile for longest, tile in buckets if longest is None or length <= longest)


# What a symbolic extent is taken for at least: block sizes must suit the long sizes, short ones are quick anyway.
TYPICAL = {"x": 1 << 20, "y": 1 << 10, "r": 1 << 14, "q": 8}


def typical(extent: IndexLike, least: int) -> int:
    """An extent for choosing blocks."""
    return extent if isinstance(extent, int) else max(extent_hint(extent), least)


def flat_tiles(points: int, nest: LoopNest, table: Mapping[str, Buffer], live: int, device: DeviceModel) -> list[Tile]:
    """Two 16-byte accesses a thread and buffer where few values live: GELU of bf16 on an H200 takes 64 us, not 72.

    Where neighbours cannot be one access, each thread's points lie apart for every load, and fewer of them are quicker:
    on an H100 a 3 x 3 pooling of bf16 takes 107 us with 4 points a thread and 174 with 8; of stride 2, 72 us with 2
    points and 140 with 8.
    """
    nest = predicted_nest(nest)
    accesses = heavy_accesses(nest, table)
    sizes = [table[a.buffer].itemsize for a in accesses]
    apart = [a for a, n in zip(accesses, sizes, strict=True) if nest.axes and neighbours_of(a, nest.axes, n) * n <= 4]
    narrowest = min(sizes, default=4)
    lanes = max(16 // narrowest, 1) if narrowest > 1 else 8  # elements of a 16-byte access
    lanes = min(lanes, 8)
    if live > 12:
        lanes = min(lanes, 4)
    if len(apart) >= MANY_APART:
        extents = {a.name: as_int(a.extent) or 1 for a in nest.axes}
        steps = [abs(stride_of(a.index, nest.axes[-1].name, extents)) for a in apart]
        lanes = min(lanes, 2 if 2 * sum(step > 1 for step in steps) > len(steps) else 4)
    warps = 4
    light = live <= 4 or (live <= 6 and len(nest.loads) + len(nest.stores) <= 7)
    twice = light and 2 * len(apart) < len(accesses)
    block = 32 * warps * lanes * (2 if twice else 1)
    while block > 128 and points < block * device.multiprocessors:
        block //= 2
        warps = min(max(block // (32 * lanes), 1), warps)
    others = [Tile((("x", block * 2),), min(warps * 2, 8)), Tile((("x", block * 2),), warps)]
    return [Tile((("x", block),), warps), *others, *([Tile((("x", block // 2),), warps)] if block > 256 else [])]


def tiles_of_two_sides(extents: Mapping[str, int], live: int) -> list[Tile]:
    side = 64 if live <= 6 else 32
    x = min(side, next_power_of_2(extents["x"]))
    y = min(side, next_power_of_2(extents["y"]))
    tiles = [Tile((("y", y), ("x", x)), 8 if x * y >= 4096 else 4)]
    if side == 64:
        tiles.append(Tile((("y", min(y, 32)), ("x", min(x, 32))), 4))
    return tiles


def rowwise_tiles(extents: Mapping[str, int], live: int) -> list[Tile]:
    """About a thousand points a program: of one row, or of a few short ones."""
    x = row_block(extents["x"])
    assert x is not None, "only rows that blocks cover well are tiled"
    y = max(1024 // x, 1)
    warps = 8 if live > 12 or x > 1024 else 4
    return [Tile((("y", y), ("x", x)), warps), Tile((("y", 2 * y), ("x", x)), 8)]


def row_tiles(
    extents: Mapping[str, int],
    live: int,
    states: int,
    sizes: Sequence[int],
    device: DeviceModel,
    known: bool,
    again: bool,
) -> tuple[list[Tile], bool]:
    """states: values that a loop carries beside sums. sizes: bytes of a point, of each access along the row. known: the
    length of a row is a number; else only a loop suits every length. again: a looped row is read more than once.

    Nothing is loaded ahead: softmax over 131072 would take 531 us on an H100, not 395.
    """
    rows, columns = extents["x"], extents["r"]
    whole = next_power_of_2(max(columns, 1))
    if known and whole <= 2 * PERSISTENT_LIMIT:
        tile = persistent_tile(rows, whole, live, device)
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


def persistent_tile(rows: int, whole: int, live: int, device: DeviceModel) -> Tile | None:
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


def column_tiles(
    extents: Mapping[str, int], live: int, sizes: Sequence[int], device: DeviceModel, known: bool, in_place: bool
) -> tuple[list[Tile], bool]:
    """Neighbouring columns in a program. sizes: bytes of a point, of each access along the rows.

    What the next steps need is loaded meanwhile, and where there are programs enough each has half the warps: batch
    norm's backward sums of a channels-last image take 84 us on an H100, not 116.
    """
    rows, columns = extents["x"], extents["r"]
    x = min(64, next_power_of_2(rows))
    whole = next_power_of_2(max(columns, 1))
    if known and whole * x <= 4096 and registers_needed(whole * x, 4, live) <= 160:
        return [Tile((("x", x), ("r", whole)), 4)], False
    many = rows >= 3 * x * device.multiprocessors
    points, warps = (2048, 4) if many else (4096, 8)
    r = max(min((points if live <= 4 else points // 2) // x, whole), 1)
    ahead = 1 if in_place or whole < LONG_WALK * r else ROW_STAGES
    while ahead > 1 and (ahead - 1) * x * r * sum(sizes) > AHEAD_BYTES:
        ahead -= 1
    return [Tile((("x", x), ("r", r)), warps, ahead)], True


def held_tile(extents: Mapping[str, int], live: int, device: DeviceModel) -> Tile | None:
    """All rows of a program at once, when registers suffice: then none is read again."""
    rows, columns = next_power_of_2(extents["q"]), next_power_of_2(extents["r"])
    tile = persistent_tile(extents["x"], rows * columns, live, device) if rows * columns <= HELD_POINTS else None
    return replace(tile, blocks=(("x", tile.block("x")), ("q", rows), ("r", columns))) if tile is not None else None


def row_and_column_tiles(
    nest: LoopNest, extents: Mapping[str, int], live: int, sizes: Sequence[int], use: Use, loop: frozenset[str]
) -> list[Tile]:
    """A few rows a step, so that the sums along the columns stay in registers beside the rows.

    sizes: bytes of a point, of each access along the row.
    """
    if extents["r"] > WHOLE_LIMIT:
        return part_tiles(extents["r"], sums_across(nest.body, loop))
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
    ahead = ROW_STAGES
    if rows * whole <= SHORT_STEP and ROW_STAGES * rows * whole * sum(sizes) <= AHEAD_BYTES:
        ahead = ROW_STAGES + 1  # layer norm's backward step of 2048 columns on an H100: 150 us, not 162
    blocks, stages = (("x", 1), ("q", rows), ("r", whole)), 1 if overwrites_loads(nest, loop) else ahead
    return [Tile(blocks, warps, stages), *([Tile(blocks, 2 * warps, stages)] if use is Use.AGAIN else [])]


def part_tiles(columns: int, sums: int) -> list[Tile]:
    """A row whose sums along the columns leave too few registers for it, part by part, within what does not spill.

    Layer norm's backward step of 4096 rows of 12288 columns takes 125 us on an H100 in parts of 4096 by 16 warps, and
    154 by 8; of 10240 columns, 118 us in parts of 2048.
    """
    part, warps = PART, (16, 8)  # half the warps where those spill: other lines than a norm's
    if sums > 1 and columns > 5 * PART:
        part, warps = 2 * PART, (8, 16) if columns % (2 * PART) else (16, 8)
    return [Tile((("x", 1), ("q", 1), ("r", part)), n) for n in warps]


def overwrites_loads(nest: LoopNest, loop: frozenset[str]) -> bool:
    """It stores where it loads from along a loop: nothing may be loaded ahead."""
    written = set(nest.writes)
    return any(a.buffer in written and uses(a, loop) for a in nest.loads)


def registers_needed(points: int, warps: int, live: int) -> int:
    """Estimated 32-bit registers a thread: each live value's share of the tile, and some to spare."""
    return SPARE_REGISTERS + live * -(-points // (32 * warps))


def row_block(length: int) -> int | None:
    """Points of a row a program takes: the first block that leaves few lanes idle; None when all leave many."""
    for idle in (SOME_IDLE, MAX_IDLE):
        for block in (1024, 2048, 512, 256):
            if block <= next_power_of_2(length) and -(-length // block) * block <= idle * length:
                return block
    return None
