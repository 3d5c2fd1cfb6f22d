"""Block values and grids: how many program instances a launch has.

Enters: a KernelSource, a Tile, the values of its sizes. Leaves: block parameters by name, and the grid.

    block_values(source, Tile((("x", 1024),))) == {"XBLOCK": 1024}
    launch_grid(source, tile, ()) == (4,)            # ceil(4000 / 1024)

The parts of a combined kernel follow one another along one grid axis: their program instances add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

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
    names = [p.name for p in source.params if p.kind == "size"]
    values = dict(zip(names, sizes, strict=True))
    blocks = block_values(source, tile)

    def programs(grid: Grid) -> tuple[int, ...]:
        return tuple(-(-_extent(e, values) // (1 if b is None else blocks[b])) for e, b in grid)

    if source.parts:
        return (sum(prod(programs(part)) for part in source.parts),)
    return programs(source.grid) or (1,)


def _extent(extent: IndexLike, values: dict[str, int]) -> int:
    known = as_int(extent)
    return known if known is not None else int(evaluate(extent, values))
