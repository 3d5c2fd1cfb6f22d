"""A kernel whose extents are arguments: which of its binaries runs for the sizes of a launch.

Enters: a KernelSource with size parameters, and what builds a Kernel of one. Leaves: launches.

    sizes (17, 64)          the text as it is, any sizes
    sizes (1024, 64)        the same text, compiled for sizes that are multiples of 16: accesses are 16 bytes wide
    sizes (17, 4096)        the same text with a tile for longer rows, where rows have a symbolic length
    sizes (2**20, 4096)     the text with 64-bit sizes, because 2**32 is past what 32 bits hold

The first two are built with the graph, the others at the first launch that wants them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from fusec.ir.kernels import KernelSource, Tile
from fusec.runtime.launch import Kernel, Launcher
from fusec.runtime.sizes import size_function
from fusec.runtime.target import Target

__all__ = ["DIVISOR", "SizedKernel", "divisible"]

DIVISOR = 16
INT32_MAX = 2**31 - 1
REMEMBERED = 4096  # tuples of sizes whose kernel is kept at hand

BuildKernel = Callable[[KernelSource], Kernel]


def divisible(source: KernelSource) -> KernelSource:
    """The same text for sizes that are all multiples of 16."""
    params = tuple(replace(p, aligned=True) if p.kind == "size" else p for p in source.params)
    return replace(source, params=params)


class SizedKernel(Kernel):
    """A kernel with size parameters. Its own binary serves all sizes that fit 32 bits.

    even:  the same for sizes that are multiples of 16; None where nothing is compiled.
    build: makes the Kernel of another source when a launch first wants it.
    """

    def __init__(self, source: KernelSource, target: Target, even: Kernel | None, build: BuildKernel) -> None:
        super().__init__(source, target)
        self.even, self.build = even, build
        self.wide: Kernel | None = None
        self.others: dict[Tile, Kernel] = {}  # for rows of other lengths
        names = [p.size for p in source.params if p.kind == "size"]
        self._limits = size_function(source.limits, names)
        self._row = size_function([dict(source.extents).get("r", 1)], names)
        self._chosen: dict[tuple[int, ...], Kernel | None] = {}

    def __call__(self, *arguments: Any) -> None:
        """Launch: pointer tensors in parameter order, then the sizes."""
        kernel = self._choose(arguments[self.pointers :])
        if kernel is None:
            super().__call__(*arguments)
        else:
            kernel(*arguments)

    def loaded(self, index: int) -> Launcher:
        """The kernel itself: sizes decide what launches."""
        return self

    def interpret(self, tensors: Sequence[torch.Tensor], sizes: Sequence[int] = (), tile: Tile | None = None) -> None:
        """Run on CPU tensors, with large blocks unless a tile is given."""
        kernel = self._choose(tuple(sizes))
        if kernel is None or kernel is self.even:
            super().interpret(tensors, sizes, tile)
        else:
            kernel.interpret(tensors, sizes, tile)

    def variants(self) -> tuple[Kernel, ...]:
        """Every kernel built so far: this one first."""
        others = [v for other in self.others.values() for v in other.variants()]
        return (self, *(k for k in (self.even, self.wide) if k is not None), *others)

    def _tile(self, length: int) -> Tile:
        """The tile for rows of this length. The interpreter chooses its own."""
        if not self.source.buckets or not self.target.archs:
            return self.source.tile
        return next(tile for longest, tile in self.source.buckets if longest is None or length <= longest)

    def _choose(self, sizes: tuple[int, ...]) -> Kernel | None:
        """The kernel for these sizes; None for this one."""
        if sizes not in self._chosen:
            if len(self._chosen) >= REMEMBERED:
                self._chosen.clear()
            self._chosen[sizes] = self._suiting(sizes)
        return self._chosen[sizes]

    def _suiting(self, sizes: tuple[int, ...]) -> Kernel | None:
        if self.source.wide is not None and any(v > INT32_MAX for v in self._limits(*sizes)):
            if self.wide is None:
                self.wide = self.build(self.source.wide)
            return self.wide
        tile = self._tile(*self._row(*sizes))
        if tile != self.source.tile:
            if tile not in self.others:
                self.others[tile] = self.build(replace(self.source, tile=tile, buckets=()))
            return self.others[tile]
        return self.even if all(n % DIVISOR == 0 for n in sizes) else None
