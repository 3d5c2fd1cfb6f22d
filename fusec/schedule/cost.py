"""What a kernel costs, in predicted seconds: launch + max(bytes / bandwidth, instructions / rate).

Enters: a body over axes and a device model. Leaves: a KernelCost. Bytes are distinct bytes of global memory;
passes over a row too long to hold, and launches too small to fill the device, make it worse.

    rms_norm of 16384 x 4096 bf16, sm_90: 134.2 MB read, 134.2 MB written, 69.6 us
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from fusec.ir.analysis import instr_axes, varying
from fusec.ir.index import as_int, symbols_of
from fusec.ir.kernels import KernelCost
from fusec.ir.ops import OPS
from fusec.ir.types import Access, Axis, Buffer, Instr, LoopNest
from fusec.schedule.online import online_sums
from fusec.schedule.phases import split_phases
from fusec.schedule.predicted import predicted_buffers, predicted_nest
from fusec.schedule.reduced import (
    ROW_STAGES,
    WHOLE_LIMIT,
    ReducedShape,
    Use,
    column_use,
    next_power_of_2,
    reduced_shape,
    rows_at_once,
)
from fusec.schedule.strides import stride_of, unit_axis, unit_axis_of, weighted_accesses
from fusec.schedule.traffic import traffic


@dataclass(frozen=True, slots=True)
class DeviceModel:
    """The figures the cost model needs.

    bandwidth: bytes a second a copy reaches.   launch: seconds a kernel launch costs.
    rate:      simple f32 instructions a second over the whole chip.
    cache:     bytes of the second-level cache.
    """

    name: str
    bandwidth: float
    launch: float
    multiprocessors: int
    rate: float
    cache: int


# Copy bandwidth: vendor peak times 0.9; rate: multiprocessors x 128 lanes x clock.
DEVICES = {
    "sm_80": DeviceModel("sm_80", 1.8e12, 3e-6, 108, 1.9e13, 40 << 20),
    "sm_90": DeviceModel("sm_90", 4.3e12, 3e-6, 132, 3.0e13, 50 << 20),
    "sm_100": DeviceModel("sm_100", 7.0e12, 3e-6, 148, 3.4e13, 120 << 20),
}
PERSISTENT_LIMIT = 16384  # elements of a row that one program may hold in registers
ACROSS = 8  # times the seconds a byte takes when a row is read with a stride: group norm of a channels-last image, H200
SECTOR = 32  # bytes that memory hands out at least
SHORT_RUN = 8
REREAD = 0.5  # a second pass over a row mostly hits L2
LOAD, SUM = 0.5e-6, 0.1e-6  # seconds that a program waits for what it loads, and for a sum over its threads
HELD_POINTS, HELD_VALUES = 8192, 40960  # of a tile that is held: points, and live values at all of them


def device_model(target: str | None) -> DeviceModel:
    """The model for a target such as "sm_90"; the default where the target names no architecture."""
    return DEVICES.get(target or "", DEVICES["sm_90"])


def estimate(nest: LoopNest, table: Mapping[str, Buffer], device: DeviceModel) -> KernelCost:
    """The cost of one launch that runs this body; at the sizes of the first call."""
    return _at_predicted_sizes(nest, table, device)[0]


def splitting_pays(nest: LoopNest, table: Mapping[str, Buffer], device: DeviceModel) -> bool:
    """True when two launches a pass at full speed are predicted to beat one launch by as few programs as rows."""
    prices = _at_predicted_sizes(nest, table, device)[1]
    return prices.split_rows < prices.whole_rows


def _at_predicted_sizes(nest: LoopNest, table: Mapping[str, Buffer], device: DeviceModel) -> tuple[KernelCost, _Prices]:
    nest, table = predicted_nest(nest), predicted_buffers(table, (*nest.reads, *nest.writes))
    return _estimate(nest.body, nest.axes, tuple((b, table[b]) for b in (*nest.reads, *nest.writes)), device)


@dataclass(frozen=True, slots=True)
class _Prices:
    """Seconds when one program works on each row, and when rows are split over programs (inf where they cannot be)."""

    whole_rows: float
    split_rows: float = float("inf")


@lru_cache(maxsize=4096)
def _estimate(
    body: tuple[Instr, ...], axes: tuple[Axis, ...], buffers: tuple[tuple[str, Buffer], ...], device: DeviceModel
) -> tuple[KernelCost, _Prices]:
    table = dict(buffers)
    moved = traffic(body, axes, table)
    read, written = moved.bytes_read(table), moved.bytes_written(table)
    shape = reduced_shape(body, axes)
    assert isinstance(shape, ReducedShape), shape
    phases = _phases(body, axes, shape)
    passes = _passes(phases, {name: n * table[name].itemsize for name, n in moved.read.items()})
    flops = _instructions(tuple(i for phase in phases for i in phase), axes)
    registers = 24 + 8 * max_live(body, axes)
    walking = _walking(phases, body, axes, shape)
    nest = LoopNest("", axes, body)
    strided = (ACROSS - 1) * bytes_across(nest, table)
    prices = _prices(nest, shape, read, written + strided, flops, passes, walking, device)
    seconds = min(prices.whole_rows, prices.split_rows)
    return KernelCost(read, written, sum(passes), flops, registers, seconds), prices


def bytes_across(nest: LoopNest, table: Mapping[str, Buffer]) -> int:
    """Bytes that a kernel with reductions touches an element at a time: its lanes lie along another axis.

    A kernel without reductions has a tile with two long sides for these.
    """
    if nest.is_pointwise:
        return 0
    extents = {a.name: as_int(a.extent) or 1 for a in nest.axes}
    accesses = weighted_accesses(nest, table)
    along: dict[str, int] = {}
    for weight, access in accesses:
        unit = unit_axis_of(access, nest.axes)
        if unit is not None and _contiguous(access, extents) >= SHORT_RUN:
            along[unit] = along.get(unit, 0) + weight
    if not along:
        return 0
    lanes = max(along, key=lambda axis: along[axis])
    sizes = {access: table[access.buffer].itemsize for _, access in accesses}
    return sum(w for w, a in accesses if is_strided(a, lanes, extents, sizes[a]))


def is_strided(access: Access, lanes: str, extents: Mapping[str, int], itemsize: int) -> bool:
    """True when neighbours along an axis lie in memory so far apart that each is a transfer of its own."""
    return abs(stride_of(access.index, lanes, extents)) * itemsize >= SECTOR


def _contiguous(access: Access, extents: Mapping[str, int]) -> int:
    """Elements that lie side by side, over all axes: 49 of x[49*p + 7*i + j], i<7, j<7."""
    strides = {abs(stride_of(access.index, axis, extents)): extent for axis, extent in extents.items()}
    run = 1
    while run in strides and strides[run] > 1:
        run *= strides[run]
    return run


def _phases(body: tuple[Instr, ...], axes: tuple[Axis, ...], shape: ReducedShape) -> tuple[tuple[Instr, ...], ...]:
    """The passes over what is looped; one where registers suffice for a row, or for all rows of a program."""
    if shape.loop:
        if _points(shape.whole, axes) > WHOLE_LIMIT:
            return split_phases(body, axes, shape.whole)
        once = column_use(body, axes, shape.loop) is not Use.AGAIN or held_at_once(body, axes, shape)
    else:
        once = _points(shape.whole, axes) <= PERSISTENT_LIMIT
    looped = shape.loop or shape.whole
    return (body,) if once else split_phases(online_sums(body, axes, looped), axes, looped)


def _passes(phases: Sequence[Sequence[Instr]], reads: Mapping[str, int]) -> list[int]:
    """Bytes that each phase reads. reads: distinct bytes of each buffer."""
    if len(phases) == 1:
        return [sum(reads.values())]
    loaded = [{i.access.buffer for i in p if i.op == "load" and i.access is not None} for p in phases]
    return [sum(reads.get(name, 0) for name in names) for names in loaded if names]


def held_at_once(body: Sequence[Instr], axes: Sequence[Axis], shape: ReducedShape) -> bool:
    """True when registers suffice for all rows and columns of a program, in a tile whose sides are powers of two."""
    tile = next_power_of_2(_points(shape.loop, axes)) * next_power_of_2(_points(shape.whole, axes))
    return tile <= HELD_POINTS and tile * max_live(body, axes) <= HELD_VALUES


def _points(names: Set[str], axes: Sequence[Axis]) -> int:
    return prod(as_int(a.extent) or 1 for a in axes if a.name in names)


def _prices(
    nest: LoopNest,
    shape: ReducedShape,
    read: int,
    written: int,
    flops: int,
    passes: Sequence[int],
    walking: float,
    device: DeviceModel,
) -> _Prices:
    """passes: bytes that each pass over the rows reads. walking: seconds of a program's steps."""
    rows = prod(as_int(a.extent) or 1 for a in nest.axes if a.name not in shape.axes)
    moved = read + written + REREAD * (sum(passes) - read)
    work = max(moved / device.bandwidth, flops / device.rate)
    if not shape.axes:
        programs = max(rows // 1024, 1)
    elif rows > 1 and not shape.loop and unit_axis(nest) not in shape.axes:
        programs = max(rows // 64, 1)  # neighbouring rows are adjacent in memory and share a program
    else:
        programs = rows
    work = work / min(1.0, programs / device.multiprocessors)
    whole = device.launch + max(work, walking)
    if not shape.axes or shape.loop or nest.scans or programs >= device.multiprocessors:
        return _Prices(whole)
    # A reduction with few rows can be split: two launches a pass, at full speed.
    fast = max((sum(passes) + written) / device.bandwidth, flops / device.rate)
    return _Prices(whole, 2 * max(len(passes), 1) * device.launch + fast)


def _walking(
    phases: Sequence[Sequence[Instr]], body: tuple[Instr, ...], axes: tuple[Axis, ...], shape: ReducedShape
) -> float:
    """Seconds that a program waits which walks over its rows.

    At each step it waits for memory, then for the sums of rows, one after the other. Where nothing goes on from what
    the rows add up to, the next steps' rows are loaded meanwhile, but not from positions that are loaded themselves.
    """
    if not shape.loop:
        return 0.0
    use = column_use(body, axes, shape.loop)
    rows, columns = _points(shape.loop, axes), _points(shape.whole, axes)
    steps = 1.0 if use is not Use.NONE and held_at_once(body, axes, shape) else rows / rows_at_once(rows, columns, use)
    seconds = 0.0
    for phase in phases:
        sought = any(s.kind == "value" for i in phase if i.access is not None for s in symbols_of(i.access.index))
        waited = LOAD if use is not Use.NONE else LOAD / ROW_STAGES + LOAD * sought
        seconds += waited + SUM * sum(not shape.loop.issuperset(i.reduced_axes) for i in phase)
    return steps * seconds


def _instructions(body: Sequence[Instr], axes: Sequence[Axis]) -> int:
    values = varying(body, axes)
    extents = {a.name: as_int(a.extent) or 0 for a in axes}
    return sum(OPS[i.op].cost * prod(extents[a] for a in instr_axes(i, values) if a in extents) for i in body)


def max_live(body: Sequence[Instr], axes: Sequence[Axis]) -> int:
    """The most values that vary over all the tile's axes and are alive at once: what registers must hold."""
    values = varying(body, axes)
    widest = max((len(v) for v in values.values()), default=0)
    last = {operand: p for p, i in enumerate(body) for operand in i.value_operands}
    alive: set[str] = set()
    most = 0
    for position, instr in enumerate(body):
        if instr.out is not None and len(values[instr.out]) == widest and OPS[instr.op].name not in ("const", "index"):
            alive.add(instr.out)
        most = max(most, len(alive))
        alive = {v for v in alive if last.get(v, -1) > position}
    return most
