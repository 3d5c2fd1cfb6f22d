"""Which dimensions a kernel's tile has, which of them need masks, and the interpreter's block sizes.

Enters: a KernelPlan. Leaves: a `Dim` per tile dimension of extent above 1, and Tiles.

    extent 4096, GPU block 1024   ->  no mask; the interpreter's block divides 4096 too
    extent 1000, GPU block 1024   ->  mask

The text is one for the GPU and the interpreter, and for every candidate tile; a dimension goes without a mask only
if all their blocks divide its extent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fusec.codegen.names import Names
from fusec.ir.index import Expr, IndexLike, as_expr, as_int, axis_symbol, bounds, delinearize
from fusec.ir.kernels import DimKind, KernelPlan, Strategy, Tile, TileDim
from fusec.ir.sizes import hint_of
from fusec.ir.types import Axis

# The interpreter's cost is per program and op, not per point: few large programs.
INTERPRETER_POINTS = 1 << 16
# Triton's limit for the elements of one tensor, tl.TRITON_MAX_TENSOR_NUMEL.
TENSOR_POINTS = 1 << 20
INTERPRETER_BLOCK = 1 << 10  # of a symbolic extent; a launch that knows the extent chooses anew
# Above so many programs a mask is cheaper in the interpreter than blocks that divide the extent.
INTERPRETER_PROGRAMS = 4096


@dataclass(frozen=True, slots=True)
class Dim:
    """A tile dimension as the text sees it.

    variable: holds the flattened index (`row`, `col`, `i`); mask: holds `variable < extent`, if it is needed.
    position: among the kernel's `rank` dimensions; program: grid axis, or None.
    instance: text of the program instance's number along that axis.
    guarded: the launch checks that the flattened index fits 32 bits.
    """

    name: str
    kind: DimKind
    extent: IndexLike
    axes: tuple[Axis, ...]
    variable: str
    mask: str | None
    position: int
    rank: int
    program: int | None
    instance: str
    guarded: bool = False

    @property
    def block(self) -> str:
        return f"{self.name.upper()}BLOCK"

    @property
    def symbol(self) -> Expr:
        return axis_symbol(self.variable, self.extent)

    @property
    def wide(self) -> bool:
        """True when the flattened index itself needs 64 bits."""
        extent = as_int(self.extent)
        highest = extent if extent is not None else bounds(self.extent)[1]
        return not self.guarded and (highest is None or highest + INTERPRETER_POINTS >= 2**31)

    @property
    def subscript(self) -> str:
        """What turns a 1-D range into this dimension of the tile: "[:, None]"."""
        if self.rank == 1:
            return ""
        return "[" + ", ".join(":" if p == self.position else "None" for p in range(self.rank)) + "]"

    def axis_exprs(self) -> dict[str, Expr]:
        """Each kernel axis of the dimension over the flattened index."""
        if as_int(self.extent) == 0:  # its accesses must keep their mask, which is false everywhere
            return {a.name: self.symbol if a.extent == 0 else as_expr(0) for a in self.axes}
        values = delinearize(self.symbol, [a.extent for a in self.axes])
        return {a.name: v for a, v in zip(self.axes, values, strict=True)}


@dataclass(frozen=True, slots=True)
class Tiling:
    dims: tuple[Dim, ...]
    interpreter: Tile
    candidates: tuple[Tile, ...]


def choose_tiling(
    plan: KernelPlan, variables: dict[str, str], names: Names, program: str | None = None, guarded: bool = False
) -> Tiling:
    """Dims of extent above 1 in tile order, with masks where a block may not divide; the interpreter's blocks.

    program: the variable that holds the number of the program instance, where it is not the grid's.
    guarded: the launch checks that symbolic extents fit 32 bits.
    """
    live = [d for d in plan.dims if as_int(plan.extent(d)) != 1]
    blocks: dict[str, int] = {d.name: 1 for d in plan.dims}
    masked: dict[str, bool] = {}
    budget = INTERPRETER_POINTS
    for dim in reversed(live):
        extent = as_int(plan.extent(dim))
        block, masked[dim.name] = _interpreter_block(plan, dim, extent, max(1, budget))
        blocks[dim.name] = block
        budget //= block
    programs = _program_axes(plan, live)
    dims = tuple(
        Dim(
            name=d.name,
            kind=d.kind,
            extent=plan.extent(d),
            axes=tuple(a for a in plan.axes if a.name in d.axes),
            variable=variables[d.name],
            mask=names.fresh("mask" if len(live) == 1 else f"{variables[d.name]}_mask") if masked[d.name] else None,
            position=position,
            rank=len(live),
            program=programs.get(d.name),
            instance=program or f"tl.program_id({programs.get(d.name)})",
            guarded=guarded and as_int(plan.extent(d)) is None,
        )
        for position, d in enumerate(live)
    )
    interpreter = replace(plan.tile, blocks=tuple((d.name, blocks[d.name]) for d in plan.dims), num_warps=1)
    usable = tuple(
        t for t in plan.candidates if all(masked[d.name] or _divides(plan, d, t.block(d.name)) for d in live)
    )
    return Tiling(dims, interpreter, usable)


def _tiles(plan: KernelPlan) -> tuple[Tile, ...]:
    """The tiles that every launch may take: of symbolic rows, those of all lengths."""
    return (plan.tile, *(tile for _, tile in plan.buckets))


def _divides(plan: KernelPlan, dim: TileDim, block: int) -> bool:
    extent = as_int(plan.extent(dim))
    return extent is not None and (extent == block if dim.kind is DimKind.WHOLE else extent % block == 0)


def _interpreter_block(plan: KernelPlan, dim: TileDim, extent: int | None, budget: int) -> tuple[int, bool]:
    """(block, masked) of one dimension."""
    if dim.kind is DimKind.WHOLE:
        return plan.tile.block(dim.name), extent != plan.tile.block(dim.name)
    if dim.kind is DimKind.PARTS:  # the text has as many sums along the columns as there are parts
        return plan.tile.block(dim.name), not _divides(plan, dim, plan.tile.block(dim.name))
    if extent is None:
        return min(budget, INTERPRETER_BLOCK), True
    covering = min(budget, 1 << max(extent - 1, 0).bit_length())
    if not extent or not all(_divides(plan, dim, t.block(dim.name)) for t in _tiles(plan)):
        return covering, True
    dividing = min(covering, extent & -extent)
    if extent // dividing > INTERPRETER_PROGRAMS and dividing < covering:
        return covering, True
    return dividing, False


def _program_axes(plan: KernelPlan, live: list[TileDim]) -> dict[str, int]:
    """Grid axis of each grid dimension. Grid axes past the first hold 65535 programs: the longest is first.

    Programs that run one after the other walk along the first: along the row where the tile is a piece of one, and
    along the axis that most bytes are contiguous in (17 % on an H200 for a transposed operand beside two that are not).
    """
    grid = [d for d in live if d.kind is DimKind.GRID]
    if plan.strategy in (Strategy.ROW_TILE, Strategy.TILE_2D):
        grid.reverse()
    programs = {d.name: -(-hint_of(plan.extent(d)) // plan.tile.block(d.name)) for d in grid}
    if any(programs[d.name] > 65535 for d in grid[1:]):
        grid.sort(key=lambda d: -programs[d.name])
    return {d.name: k for k, d in enumerate(grid)}
