"""Block values and grids: how many program instances a launch has.

Enters: a KernelSource, a Tile, the values of its sizes. Leaves: block parameters by name, and the grid.

    block_values(source, Tile((("x", 1024),))) == {"XBLOCK": 1024}
    launch_grid(source, tile, ()) == (4,)            # ceil(4000 / 1024)

The parts of a combined kernel follow one another along one grid axis: their program instances add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from fusec.codegen.tiles import INTERPRETER_POINTS
from fusec.ir.index import IndexLike, as_int, evaluate
from fusec.ir.kernels import Grid, KernelSource, Tile


def block_values(source: KernelSource, tile: Tile) -> dict[str, int]:
    """Value of every block parameter: XBLOCK is the block of tile dimension "x"."""
    blocks = dict(tile.blocks)
    values = {}
    for param in source.params:
        if param.kind == "block":
            value = blocks.get(param.name.removesuffix("BLOCK").lower(), blocks.get(param.name))
            assert value is not None, f"{source.name}: no block size for {param.name} among {sorted(blocks)}"
            values[param.name] = value
    return values


def launch_grid(source: KernelSource, tile: Tile, sizes: Sequence[int]) -> tuple[int, ...]:
    """Program instances along each grid axis; 0 where there is nothing to do."""
    values = _size_values(source, sizes)
    blocks = block_values(source, tile)

    def programs(grid: Grid) -> tuple[int, ...]:
        return tuple(-(-_extent(e, values) // (1 if b is None else blocks[b])) for e, b in grid)

    if source.parts:
        return (sum(prod(programs(part)) for part in source.parts),)
    return programs(source.grid) or (1,)


def interpreter_tile(source: KernelSource, sizes: Sequence[int]) -> Tile:
    """Blocks for one interpreted launch: symbolic extents are covered whole, as far as INTERPRETER_POINTS go."""
    values = _size_values(source, sizes)
    blocks = dict(source.interpreter_tile.blocks)
    symbolic = [(name, _extent(e, values)) for name, e in source.extents if as_int(e) is None]
    room = INTERPRETER_POINTS // prod(blocks[name] for name, e in source.extents if as_int(e) is not None)
    for name, extent in reversed(symbolic):
        blocks[name] = max(min(room, 1 << max(extent - 1, 0).bit_length()), 1)
        room //= blocks[name]
    return replace(source.interpreter_tile, blocks=tuple(blocks.items()))


def _size_values(source: KernelSource, sizes: Sequence[int]) -> dict[str, int]:
    return dict(zip((p.size for p in source.params if p.kind == "size"), sizes, strict=True))


def _extent(extent: IndexLike, values: dict[str, int]) -> int:
    known = as_int(extent)
    return known if known is not None else int(evaluate(extent, values))
