"""What the scheduler hands to codegen, and codegen to the runtime.

    KernelPlan    one launch: a fused body over kernel axes, and how the axes are tiled
    KernelSource  the same launch as Triton text, with its parameters and grid
    Schedule      the whole program as KernelPlans and Externs in order

A KernelPlan is plain IR: every index is written over the kernel axes, every value that moves from one
fused nest to the next is an SSA value, and only real memory traffic is left as load and store. So the
same evaluator, printer and verifier that serve a LoopNest serve a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Union

from fusec.ir.index import IndexLike, product
from fusec.ir.types import Axis, Buffer, Extern, Instr, LoopNest, Origin, Output, size_exprs

if TYPE_CHECKING:
    import torch


class Strategy(Enum):
    FLAT = "flat"  # one grid dimension over all points
    TILE_2D = "2-D tile"  # two grid dimensions; memory orders differ between accesses
    ROW_TILE = "row tile"  # two grid dimensions; what belongs to a row is computed once, not at every point
    PERSISTENT_ROW = "persistent row"  # the reduced extent is one tile held in registers
    LOOPED_ROW = "looped row"  # the reduced extent is a loop; one phase per pass over it
    ROW_AND_COLUMN = "row and column"  # rows walked in a loop and reduced, columns summed along it
    SPLIT_ROW = "split row"  # one slice of a reduction per program; a second kernel finishes


class DimKind(Enum):
    GRID = "grid"  # program instances cover it, one block each
    WHOLE = "whole"  # one block covers it entirely (block = next power of two)
    LOOP = "loop"  # a loop inside the program covers it, block by block
    PARTS = "parts"  # a loop inside each step of the other loop covers it, once for each level of sums along it

    @property
    def is_walked(self) -> bool:
        """A loop covers it, and sums along it have accumulators."""
        return self in (DimKind.LOOP, DimKind.PARTS)


@dataclass(frozen=True, slots=True)
class TileDim:
    """One dimension of the tile: consecutive kernel axes, flattened row-major into one index.

    name: "x", "y" (grid), "r" (reduced) or "q" (rows that a row-and-column program walks along, or holds). The text
    calls its block XBLOCK, YBLOCK, RBLOCK, QBLOCK.
    """

    name: str
    axes: tuple[str, ...]
    kind: DimKind


@dataclass(frozen=True, slots=True)
class Tile:
    """Block size per tile dimension name, and launch options."""

    blocks: tuple[tuple[str, int], ...]  # powers of two
    num_warps: int = 4
    num_stages: int = 1

    def block(self, dim: str) -> int:
        return dict(self.blocks)[dim]


@dataclass(frozen=True, slots=True)
class KernelCost:
    """Predicted cost of one launch. Bytes are unique bytes of global memory.

    requested_bytes: bytes asked for, re-reads by later phases counted each time.
    registers: estimated 32-bit registers a thread.
    """

    bytes_read: int
    bytes_written: int
    requested_bytes: int
    flops: int
    registers: int
    seconds: float


@dataclass(frozen=True, slots=True)
class FusionDecision:
    """Why two nodes do, or do not, share a kernel. reason is a sentence a person can read."""

    producer: str
    consumer: str
    accepted: bool
    reason: str
    bytes_saved: int = 0
    seconds_saved: float = 0.0


@dataclass(frozen=True)
class KernelPlan:
    """One launch.

    axes:     kernel axes, in tile order; reduced axes last, with kind REDUCTION.
    dims:     tile dimensions; each kernel axis is in exactly one. Grid dimensions first, "r" last.
    phases:   SSA lines; more than one only with a LOOP dimension. A phase is one pass over it; a value that varies
              along it never crosses into the next phase, and never depends on a reduction of its own phase along it.
    buffers:  the buffers read or written, in parameter order (reads first, then writes).
    nests:    the names of the lowered nests it covers.
    internal: buffers that live only as SSA values here; kept for explanations.
    boundary: a sentence: why this kernel ends where it ends.
    parts:    a combined kernel: independent plans of one launch, each on its own range of program instances.
              Its own axes, dims and phases are empty; buffers, nests and cost are those of all parts.
    buckets:  of rows whose length is symbolic: (longest length, or None for any, tile), shortest first.
    """

    name: str
    axes: tuple[Axis, ...]
    dims: tuple[TileDim, ...]
    phases: tuple[tuple[Instr, ...], ...]
    buffers: tuple[Buffer, ...]
    strategy: Strategy
    tile: Tile
    cost: KernelCost
    nests: tuple[str, ...] = ()
    internal: tuple[str, ...] = ()
    boundary: str = ""
    candidates: tuple[Tile, ...] = ()  # other tiles worth measuring, best first
    parts: tuple[KernelPlan, ...] = ()
    buckets: tuple[tuple[int | None, Tile], ...] = ()

    @property
    def leaves(self) -> tuple[KernelPlan, ...]:
        """The plans that have lines: the parts of a combined kernel, else the kernel itself."""
        return self.parts or (self,)

    @cached_property
    def body(self) -> tuple[Instr, ...]:
        return tuple(i for phase in self.phases for i in phase)

    @cached_property
    def exprs(self) -> tuple[IndexLike, ...]:
        """The extents and the indices of its lines: every expression that may hold sizes."""
        leaves = (LoopNest(leaf.name, leaf.axes, leaf.body) for leaf in self.leaves)
        return tuple(e for leaf in leaves for e in size_exprs(leaf))

    @cached_property
    def reads(self) -> tuple[str, ...]:
        lines = (i for leaf in self.leaves for i in leaf.body)
        return tuple(dict.fromkeys(i.access.buffer for i in lines if i.op == "load" and i.access))

    @cached_property
    def writes(self) -> tuple[str, ...]:
        lines = (i for leaf in self.leaves for i in leaf.body)
        return tuple(dict.fromkeys(i.access.buffer for i in lines if i.op != "load" and i.access))

    @cached_property
    def origins(self) -> tuple[Origin, ...]:
        return tuple(dict.fromkeys(i.origin for leaf in self.leaves for i in leaf.body if i.origin is not None))

    def dim(self, name: str) -> TileDim | None:
        return next((d for d in self.dims if d.name == name), None)

    def extent(self, dim: TileDim) -> IndexLike:
        """Number of points of a tile dimension."""
        return product(a.extent for a in self.axes if a.name in dim.axes)


Step = Union[KernelPlan, Extern]


@dataclass(frozen=True)
class Schedule:
    """The program as launches and library calls, in order."""

    name: str
    buffers: tuple[Buffer, ...]  # every buffer that exists in memory
    steps: tuple[Step, ...]
    inputs: tuple[str | None, ...]
    outputs: tuple[Output, ...]
    decisions: tuple[FusionDecision, ...] = ()
    constants: tuple[tuple[str, torch.Tensor], ...] = field(default=(), compare=False)
    numbers: tuple[tuple[int, IndexLike], ...] = ()  # as in a Program

    @cached_property
    def table(self) -> dict[str, Buffer]:
        return {b.name: b for b in self.buffers}


@dataclass(frozen=True, slots=True)
class Allocation:
    """Where a temporary or output buffer lives: memory of its own, or what a dead buffer leaves."""

    buffer: str
    reuses: str | None = None  # same bytes, already dead


@dataclass(frozen=True)
class BufferPlan:
    """Lifetimes. before[i]: allocations made just before step i; after[i]: buffers dead after step i."""

    before: tuple[tuple[Allocation, ...], ...]
    after: tuple[tuple[str, ...], ...]
    peak_bytes: int  # temporaries and outputs alive at once, static shapes


@dataclass(frozen=True, slots=True)
class Param:
    """A kernel parameter. kind: "pointer", "size" (a symbolic extent), "block" (constexpr).

    symbol: of a size, the name of its symbol in the kernel; None when the parameter has that name.
    given:  of a size, the size of the program that a launch passes; None when it has that name.
    """

    name: str
    kind: str
    buffer: str | None = None  # name in the Schedule this source was first generated for; pointers only
    dtype: torch.dtype | None = None
    aligned: bool = True  # the pointer is 16-byte aligned
    symbol: str | None = None
    given: str | None = None

    @property
    def size(self) -> str:
        """The symbol that grid and limits of the kernel say this size parameter by."""
        return self.symbol or self.name

    @property
    def passed(self) -> str:
        """The size of the program that a launch passes for a size parameter."""
        return self.given or self.size


Grid = tuple[tuple[IndexLike, Union[str, None]], ...]  # per grid axis: extent, block parameter or None


@dataclass(frozen=True, slots=True)
class KernelSource:
    """Triton text and all that is needed to compile and launch it, on any target.

    text:      a whole Python module that defines `@triton.jit def <name>(...)`.
    params:    in the function's order: pointers, sizes, then blocks.
    grid:      per grid axis (extent, block parameter name or None): ceil(extent / block) programs.
    parts:     of a combined kernel: the grid of each part. They follow one another along the only grid axis.
    tile:      blocks used on a GPU. interpreter_tile: large blocks for the interpreter, same text.
    cache_key: hash of the text without comments and of everything else that decides the binary.
    extents:   points of each tile dimension, by name, where some are symbolic.
    buckets:   as in the plan: the same text has another tile for rows of another length.
    limits:    the text computes in 32 bits what is right only while these expressions over sizes are below 2**31;
    wide:      the same kernel with 64-bit sizes, for launches where they are not.
    """

    name: str
    text: str
    params: tuple[Param, ...]
    grid: Grid
    tile: Tile
    interpreter_tile: Tile
    cache_key: str
    candidates: tuple[Tile, ...] = ()
    fuse_multiply_add: bool = True  # False where every operation rounds as in eager mode
    parts: tuple[Grid, ...] = ()
    extents: tuple[tuple[str, IndexLike], ...] = ()
    buckets: tuple[tuple[int | None, Tile], ...] = ()
    limits: tuple[IndexLike, ...] = ()
    wide: KernelSource | None = None
