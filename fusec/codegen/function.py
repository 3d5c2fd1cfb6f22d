"""A `@triton.jit` function as text, and the module around it.

Enters: a name, arguments, lines of a body. Leaves: lines, and the hash of all that decides the binary.

    definition("add_kernel", ["x_ptr", "out_ptr", "XBLOCK: tl.constexpr"], ["i = ..."])
"""

from __future__ import annotations

import hashlib
import inspect
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fusec.codegen.tiles import Tiling
from fusec.config import Config
from fusec.ir.index import IndexLike
from fusec.ir.kernels import Grid, Param, Tile
from fusec.kernels import device

_DEVICE_TEXT = hashlib.sha256("".join(map(inspect.getsource, device.PARTS)).encode()).hexdigest()
_MAX_SIGNATURE = 100
_MANY = 24  # arguments


@dataclass(frozen=True)
class Function:
    """A function written: its parameters, the lines of its body, its grid, and the comment above it.

    limits: what must be below 2**31 for its 32-bit indices to be right.
    """

    name: str
    params: tuple[Param, ...]
    body: tuple[str, ...]
    grid: Grid
    tiling: Tiling
    comment: tuple[str, ...]
    limits: frozenset[IndexLike] = frozenset()

    @property
    def arguments(self) -> list[str]:
        return [f"{p.name}: tl.constexpr" if p.kind == "block" else p.name for p in self.params]


def definition(name: str, arguments: Sequence[str], body: Iterable[str]) -> list[str]:
    """The lines of a function; its arguments one a line where they are many, and packed where they are very many."""
    signature = f"def {name}({', '.join(arguments)}):"
    if len(signature) > _MAX_SIGNATURE:
        joined = ", ".join(arguments)
        inner = [f"    {joined}"] if len(joined) < _MAX_SIGNATURE else [f"    {a}," for a in arguments]
        if len(inner) > _MANY:
            inner = [f"    {line}" for line in textwrap.wrap(f"{joined},", _MAX_SIGNATURE, break_long_words=False)]
        signature = "\n".join([f"def {name}(", *inner, "):"])
    return ["@triton.jit", signature, *(f"    {line}" if line else "" for line in body)]


def prologue(body: Iterable[str]) -> list[str]:
    """The imports that these lines need."""
    lines = ["import triton", "import triton.language as tl"]
    return [*lines, "", "from fusec.kernels import device"] if any("device." in line for line in body) else lines


def cache_key(
    code: Iterable[str], params: Iterable[Param], grids: Iterable[Grid], tiles: Iterable[Tile], config: Config
) -> str:
    """SHA-256 of all that decides the binary and its launch: no comments, no buffer names."""
    parts: list[object] = [
        "\n".join(code),
        [(p.name, p.kind, str(p.dtype), p.aligned) for p in params],
        [[(str(extent), block) for extent, block in grid] for grid in grids],
        list(tiles),
        config.code_key(),
        _DEVICE_TEXT,
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()
