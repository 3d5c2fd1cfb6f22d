"""Several independent kernels as one: each has its own range of program instances.

Enters: a combined KernelPlan. Leaves: a KernelSource whose text has one device function a distinct body:

    @triton.jit
    def mul_part(program, x_ptr, out_ptr, n, XBLOCK: tl.constexpr):
        i = program * XBLOCK + tl.arange(0, XBLOCK)
        mask = i < n
        tl.store(out_ptr + i, tl.load(x_ptr + i, mask) * 2.0, mask)

    @triton.jit
    def mul_kernel(x_ptr, x_1_ptr, out_ptr, out_1_ptr, XBLOCK: tl.constexpr):
        program = tl.program_id(0)
        end_0: tl.constexpr = triton.cdiv(4096, XBLOCK)
        if program < end_0:
            first, n, x, out = 0, 4096, x_ptr, out_ptr
        else:
            first, n, x, out = end_0, 1000, x_1_ptr, out_1_ptr
        mul_part(program - first, x, out, n, XBLOCK)

Pointers are selected before the one call, so a kernel of many equal parts is no longer than one of few: the compiler
makes a chain of branches that every thread of a program takes alike.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import prod

from fusec.codegen.function import Function, cache_key, definition, prologue
from fusec.codegen.header import combined_header
from fusec.codegen.names import Names, kernel_name
from fusec.codegen.tiles import TENSOR_POINTS, Dim
from fusec.config import Config
from fusec.ir.index import as_int
from fusec.ir.kernels import DimKind, Grid, KernelPlan, KernelSource, Param, Tile
from fusec.ir.types import Buffer
from fusec.schedule.alike import generic, likeness, sizes

_MAX_LINE = 92
_LONG_CHAIN = 16  # branches

# A plan as a function whose first argument is `program`, under a name.
WritePart = Callable[[KernelPlan, Mapping[str, Buffer], Config, str], Function]


@dataclass(frozen=True)
class _Family:
    """Parts that one device function serves. values: per part, the arguments for the function's sizes."""

    function: Function
    members: tuple[KernelPlan, ...]
    values: tuple[tuple[str, ...], ...]
    blocks: Mapping[str, str]  # the function's block parameters -> the kernel's


def generate_combined(
    plan: KernelPlan,
    table: Mapping[str, Buffer],
    config: Config,
    pointer_names: Callable[[KernelPlan, Mapping[str, Buffer], Names], dict[str, str]],
    write_part: WritePart,
) -> KernelSource:
    """The text of a combined plan."""
    names = Names()
    name = names.fresh(kernel_name(o.op for o in plan.origins))
    blocks = _Blocks()
    families = tuple(_family(group, table, config, names, blocks, write_part) for group in _groups(plan))
    for family in families:  # a block that parts share is the largest of theirs, beside one part's long rows too
        blocks.fit(family.blocks.values())
    for reserved in ("program", "first"):
        names.fresh(reserved)
    pointers = pointer_names(plan, table, names)
    params = tuple(Param(pointers[b.name], "pointer", b.name, table[b.name].dtype) for b in plan.buffers)
    params += tuple(Param(block, "block") for block in blocks.gpu)
    counts = [_programs(family, part) for family in families for part in family.members]
    body = _body(families, counts, pointers, names)
    arguments = [f"{p.name}: tl.constexpr" if p.kind == "block" else p.name for p in params]
    parts = [definition(f.function.name, ["program", *f.function.arguments], f.function.body) for f in families]
    main = definition(name, arguments, body)
    imports = prologue(line for f in families for line in f.function.body)
    served = [(f.function.name, len(f.members)) for f in families]
    commented = [[*f.function.comment, *part, "", ""] for f, part in zip(families, parts, strict=True)]
    lines = [*imports, "", "", *chain(*commented), *combined_header(plan, name, served), *main]
    grids = tuple(_grid(family, part) for family in families for part in family.members)
    tile = replace(plan.tile, blocks=tuple(blocks.gpu.items()))
    interpreter = Tile(tuple(blocks.interpreter.items()), 1, plan.tile.num_stages)
    code = [*imports, *chain(*parts), *main]
    return KernelSource(
        name=name,
        text="\n".join(lines) + "\n",
        params=params,
        grid=(),
        tile=tile,
        interpreter_tile=interpreter,
        cache_key=cache_key(code, params, grids, (tile, interpreter), config),
        fuse_multiply_add=config.precision != "eager",
        parts=grids,
    )


class _Blocks:
    """Block parameters of the kernel. Parts share one when their blocks on the GPU agree, and in the interpreter too,
    where any block serves a dimension that is masked."""

    def __init__(self) -> None:
        self.gpu: dict[str, int] = {}
        self.interpreter: dict[str, int] = {}
        self.masked: dict[str, bool] = {}

    def name(self, dim: Dim, gpu: int, interpreter: int) -> str:
        masked = dim.mask is not None and dim.kind is DimKind.GRID
        for name in (dim.block, *(f"{dim.block}_{k}" for k in range(1, len(self.gpu) + 1))):
            if name not in self.gpu:
                self.gpu[name], self.interpreter[name], self.masked[name] = gpu, interpreter, masked
                return name
            if self.gpu[name] != gpu:
                continue
            if masked and self.masked[name]:
                self.interpreter[name] = max(self.interpreter[name], interpreter)
            if masked or self.interpreter[name] == interpreter:
                return name
            if self.masked[name]:
                self.interpreter[name], self.masked[name] = interpreter, False
                return name
        raise AssertionError(f"no name for {dim.block}")

    def fit(self, names: Iterable[str]) -> None:
        """Halve the interpreter's shared blocks until a tile of these is a tensor that Triton allows."""
        tile = tuple(names)
        while prod(self.interpreter[n] for n in tile) > TENSOR_POINTS:
            largest = max((n for n in tile if self.masked[n]), key=lambda n: self.interpreter[n])
            self.interpreter[largest] //= 2


def _groups(plan: KernelPlan) -> list[tuple[KernelPlan, ...]]:
    groups: dict[object, list[KernelPlan]] = {}
    for part in plan.parts:
        groups.setdefault(likeness(part), []).append(part)
    return [tuple(group) for group in groups.values()]


def _family(
    members: tuple[KernelPlan, ...],
    table: Mapping[str, Buffer],
    config: Config,
    names: Names,
    blocks: _Blocks,
    write_part: WritePart,
) -> _Family:
    """One function for alike parts; with numbers in place of sizes where all have the same."""
    extents = [sizes(m) for m in members]
    first = members[0]
    written = first
    if any(e != extents[0] for e in extents):
        written = generic(first, {n: max(e[n] for e in extents) for n in extents[0]})
    function = write_part(written, table, config, names.fresh(f"{kernel_name(o.op for o in first.origins)}_part"))
    wanted = [p.name for p in function.params if p.kind == "size"]
    gpu, interpreter = dict(first.tile.blocks), dict(function.tiling.interpreter.blocks)
    mine = {d.block: blocks.name(d, gpu[d.name], interpreter[d.name]) for d in function.tiling.dims}
    used = {p.name for p in function.params if p.kind == "block"}
    values = tuple(tuple(str(e[n]) for n in wanted) for e in extents)
    return _Family(function, members, values, {b: n for b, n in mine.items() if b in used})


def _grid(family: _Family, part: KernelPlan) -> Grid:
    """The part's own grid, in the kernel's block parameters."""
    dims = [d for d in part.dims if d.kind is DimKind.GRID and as_int(part.extent(d)) != 1]
    return tuple((part.extent(d), family.blocks[f"{d.name.upper()}BLOCK"]) for d in dims)


def _programs(family: _Family, part: KernelPlan) -> str:
    """Text of the number of program instances a part takes."""
    return " * ".join(f"triton.cdiv({extent}, {block})" for extent, block in _grid(family, part)) or "1"


# -- the kernel -----------------------------------------------------------------------------------


def _body(families: Sequence[_Family], counts: Sequence[str], pointers: Mapping[str, str], names: Names) -> list[str]:
    """Where each part ends, then a branch for each function."""
    ends = [names.fresh(f"end_{k}") for k in range(len(counts) - 1)]
    lines = ["program = tl.program_id(0)"]
    for k, (end, count) in enumerate(zip(ends, counts, strict=False)):
        lines.append(f"{end}: tl.constexpr = {f'{ends[k - 1]} + ' if k else ''}{count}")
    starts = ["0", *ends]
    position = 0
    for number, family in enumerate(families):
        mine = slice(position, position + len(family.members))
        position = mine.stop
        branch = _dispatch(family, starts[mine], [*ends, ""][mine], pointers, names)
        if len(families) == 1:
            return lines + branch
        last = number == len(families) - 1
        condition = "else:" if last else f"{'elif' if number else 'if'} program < {ends[position - 1]}:"
        lines += [condition, *(f"    {line}" for line in branch)]
    return lines


def _dispatch(
    family: _Family, starts: Sequence[str], ends: Sequence[str], pointers: Mapping[str, str], names: Names
) -> list[str]:
    """Select what differs between the parts of a family, then call its function."""
    function = family.function
    wanted = [p.name for p in function.params if p.kind != "block"]
    given = [
        [*(pointers[b.name] for b in part.buffers), *values]
        for part, values in zip(family.members, family.values, strict=True)
    ]
    blocks = [family.blocks[p.name] for p in function.params if p.kind == "block"]
    if len(given) == 1:
        program = "program" if starts[0] == "0" else f"program - {starts[0]}"
        return _call(function.name, [program, *given[0], *blocks])
    varies = [k for k in range(len(wanted)) if len({row[k] for row in given}) > 1]
    chosen = {k: names.fresh(wanted[k].removesuffix("_ptr")) for k in varies}
    targets = ["first", *chosen.values()]
    rows = [_assignments(targets, [start, *(row[v] for v in varies)]) for start, row in zip(starts, given, strict=True)]
    arguments = [chosen.get(k, given[0][k]) for k in range(len(wanted))]
    return [*_chain(rows, ends), *_call(function.name, ["program - first", *arguments, *blocks])]


def _chain(rows: Sequence[list[str]], ends: Sequence[str]) -> list[str]:
    """`if program < end_0: ... elif program < end_1: ...`: branches, where a tree becomes selections.

    Selections hold every pointer of a launch in registers. A long chain is a chain of chains: every program walks along
    it before its first load.
    """
    if len(rows) <= _LONG_CHAIN:
        return _branches([(end, row) for end, row in zip(ends, rows, strict=True)])
    size = math.isqrt(len(rows) - 1) + 1
    groups = [slice(k, k + size) for k in range(0, len(rows), size)]
    return _branches([(ends[g][-1], _branches(list(zip(ends[g], rows[g], strict=True)))) for g in groups])


def _branches(blocks: Sequence[tuple[str, list[str]]]) -> list[str]:
    """(where it ends, lines) of blocks that follow one another; the last has all programs that are left."""
    if len(blocks) == 1:
        return blocks[0][1]
    lines: list[str] = []
    for k, (end, block) in enumerate(blocks):
        condition = "else" if k == len(blocks) - 1 else f"{'elif' if k else 'if'} program < {end}"
        lines += [f"{condition}:", *(f"    {line}" for line in block)]
    return lines


def _assignments(targets: Sequence[str], values: Sequence[str]) -> list[str]:
    """`a, b = v, w`, as many to a line as it holds."""
    lines: list[str] = []
    pending: list[tuple[str, str]] = []
    for pair in zip(targets, values, strict=True):
        if len(_assignment([*pending, pair])) > _MAX_LINE:
            lines.append(_assignment(pending))
            pending = []
        pending.append(pair)
    return [*lines, _assignment(pending)]


def _assignment(pairs: Sequence[tuple[str, str]]) -> str:
    return f"{', '.join(t for t, _ in pairs)} = {', '.join(v for _, v in pairs)}"


def _call(name: str, arguments: Sequence[str]) -> list[str]:
    line = f"{name}({', '.join(arguments)})"
    if len(line) <= _MAX_LINE:
        return [line]
    return [f"{name}(", *(f"    {line}" for line in textwrap.wrap(", ".join(arguments) + ",", _MAX_LINE)), ")"]
