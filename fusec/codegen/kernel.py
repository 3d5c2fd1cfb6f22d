"""KernelPlan -> KernelSource: one readable Triton function, with what is needed to compile and launch it.

Enters: a KernelPlan, the table of buffers, the Config. Leaves: a KernelSource whose text is a whole module:

    import triton
    import triton.language as tl

    from fusec.kernels import device

    # softmax_kernel: persistent row, XBLOCK=1 RBLOCK=1024, 4 warps
    # ...
    @triton.jit
    def softmax_kernel(x_ptr, out_ptr, XBLOCK: tl.constexpr, RBLOCK: tl.constexpr):
        row = tl.program_id(0) * XBLOCK + tl.arange(0, XBLOCK)[:, None]
        col = tl.arange(0, RBLOCK)[None, :]
        mask = col < 1000
        ...

Tile dimensions are called `i` and `j` in pointwise kernels, `row` and `col` in kernels that reduce: `col` is the
dimension that is contiguous in memory; where a program walks over rows, `i` is the program's. Two launches whose
plans differ only in names of layers, in comments or in the buffers they touch have the same text and cache key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import torch

from fusec.codegen.addresses import Widths
from fusec.codegen.analysis import analyze
from fusec.codegen.combined import generate_combined
from fusec.codegen.emit import Emitter
from fusec.codegen.function import Function, cache_key, definition, prologue
from fusec.codegen.header import header
from fusec.codegen.hints import buffer_hint, value_hints
from fusec.codegen.names import Names, kernel_name
from fusec.codegen.padding import choose_padding
from fusec.codegen.tiles import Tiling, choose_tiling
from fusec.config import Config
from fusec.ir.index import as_int, symbols_of
from fusec.ir.kernels import DimKind, Grid, KernelPlan, KernelSource, Param
from fusec.ir.sizes import has_sizes, size_names
from fusec.ir.types import Buffer


def generate_kernel(plan: KernelPlan, table: Mapping[str, Buffer], config: Config) -> KernelSource:
    """The plan as Triton text. Shapes, masks and integer widths are those of the plan's extents.

    FusecError when the plan reduces a part of a dimension, or a value has no Triton type.
    """
    if plan.parts:
        return generate_combined(plan, table, config, _pointer_names, _write_part)
    if not any(has_sizes(e) for e in plan.exprs):
        return _source(plan, table, config, Widths.AS_KNOWN)
    source = _source(plan, table, config, Widths.GUARDED)
    return replace(source, wide=_source(plan, table, config, Widths.WIDE)) if source.limits else source


def _source(plan: KernelPlan, table: Mapping[str, Buffer], config: Config, widths: Widths) -> KernelSource:
    names = Names()
    function = _write(plan, table, config, names, names.fresh(kernel_name(o.op for o in plan.origins)), widths=widths)
    imports = prologue(function.body)
    code = definition(function.name, function.arguments, function.body)
    tiling = function.tiling
    tiles = (plan.tile, tiling.interpreter, *tiling.candidates)
    return KernelSource(
        name=function.name,
        text="\n".join([*imports, "", *function.comment, *code]) + "\n",
        params=function.params,
        grid=function.grid,
        tile=plan.tile,
        interpreter_tile=tiling.interpreter,
        cache_key=cache_key([*imports, *code], function.params, (function.grid,), tiles, config),
        candidates=tiling.candidates,
        fuse_multiply_add=config.precision != "eager",
        buckets=plan.buckets,
        extents=() if widths is Widths.AS_KNOWN else tuple((d.name, d.extent) for d in tiling.dims),
        limits=tuple(sorted(function.limits, key=str)),
    )


def _write_part(plan: KernelPlan, table: Mapping[str, Buffer], config: Config, name: str) -> Function:
    """A part of a combined kernel: a function that is told which of its program instances it is."""
    names = Names()
    names.fresh(name)
    return _write(plan, table, config, names, name, names.fresh("program"))


def _write(
    plan: KernelPlan,
    table: Mapping[str, Buffer],
    config: Config,
    names: Names,
    name: str,
    program: str | None = None,
    widths: Widths = Widths.AS_KNOWN,
) -> Function:
    """program: the variable that holds the number of the program instance; None where the grid gives it."""
    variables = _dimension_names(plan, names)
    pointers = _pointer_names(plan, table, names)
    tiling = choose_tiling(plan, variables, names, program, widths is Widths.GUARDED)
    analysis = analyze(plan, tiling.dims)
    padding = choose_padding(plan, analysis, tiling.dims)
    hints = value_hints(plan, table)
    precision = _precision(plan, table, config)
    emitter = Emitter(plan, tiling.dims, analysis, names, hints, padding, pointers, precision, widths)
    body = emitter.emit() or ["pass"]
    grid, addresses = _grid(tiling), emitter.addresses
    if widths is not Widths.AS_KNOWN:  # the launch computes its grid from them
        addresses.require(size_names((*(extent for extent, _ in grid), *addresses.limits)))
    params = _params(plan, table, pointers, addresses.sizes, tiling, body, widths)
    comment = tuple(header(plan, name, pointers))
    return Function(name, params, tuple(body), grid, tiling, comment, addresses.limits)


def _precision(plan: KernelPlan, table: Mapping[str, Buffer], config: Config) -> str:
    """ "rough" when all real numbers that leave the kernel are rounded to 16 bits, in precision "fast"."""
    real = [table[name].dtype for name in plan.writes if table[name].dtype.is_floating_point]
    if any(dtype.itemsize == 1 for dtype in real):
        return "eager"  # the last bit of a float32 quotient can decide a whole step of an 8-bit float
    rough = config.precision == "fast" and bool(real) and all(dtype.itemsize <= 2 for dtype in real)
    return "rough" if rough else config.precision


def _dimension_names(plan: KernelPlan, names: Names) -> dict[str, str]:
    """Tile dimension -> variable: i, j without a reduction; row and col with one."""
    grid = [d.name for d in plan.dims if d.kind is DimKind.GRID and as_int(plan.extent(d)) != 1]
    reduced = [d.name for d in plan.dims if d.kind is not DimKind.GRID]
    if len(reduced) == 2:  # a loop over rows, and the columns they have
        wanted = dict(zip([*reduced, *grid], ("row", "col", "i", "j"), strict=False))
    elif len(grid) == 1 and reduced and as_int(plan.extent(plan.dims[-1])) != 1:
        contiguous = _unit_stride_dims(plan)
        across = contiguous[grid[0]] > contiguous[reduced[0]]
        wanted = {grid[0]: "col" if across else "row", reduced[0]: "row" if across else "col"}
    else:
        letters = ("i", "j", "k", "l")
        wanted = dict(zip([*grid, *reduced], letters, strict=False))
    chosen = {dim: names.fresh(variable) for dim, variable in wanted.items()}
    return {d.name: chosen.get(d.name, d.name) for d in plan.dims}


def _unit_stride_dims(plan: KernelPlan) -> Counter[str]:
    """How many accesses that vary along several tile dimensions move by one element along each."""
    dim_of_axis = {a: d.name for d in plan.dims for a in d.axes}
    found: Counter[str] = Counter()
    for instr in plan.body:
        if instr.access is None:
            continue
        index = instr.access.index
        if len({dim_of_axis[s.name] for s in symbols_of(index) if s.name in dim_of_axis}) < 2:
            continue
        for monomial, coefficient in index.terms:
            if coefficient == 1 and len(monomial) == 1 and monomial[0].key in dim_of_axis:
                found[dim_of_axis[monomial[0].key]] += 1
    return found


def _pointer_names(plan: KernelPlan, table: Mapping[str, Buffer], names: Names) -> dict[str, str]:
    """`x_ptr`, `weight_ptr`; a single result is `out_ptr`. Loaded values take the same name without `_ptr`."""
    written = [b.name for b in plan.buffers if b.name in plan.writes and b.name not in plan.reads]
    hints: Counter[str] = Counter()
    result: dict[str, str] = {}
    for buffer in plan.buffers:
        hint = buffer_hint(table[buffer.name])
        if written == [buffer.name] or (buffer.name in written and hint in ("tmp", "source")):
            hint = "out"
        hints[hint] += 1
        result[buffer.name] = names.fresh(f"{hint}_ptr" if hints[hint] == 1 else f"{hint}_{hints[hint] - 1}_ptr")
    return result


def _params(
    plan: KernelPlan,
    table: Mapping[str, Buffer],
    pointers: Mapping[str, str],
    sizes: Mapping[str, str],
    tiling: Tiling,
    body: list[str],
    widths: Widths,
) -> tuple[Param, ...]:
    """Pointers in the plan's order, then sizes, then the blocks that the text or the grid uses."""
    result = [Param(pointers[b.name], "pointer", b.name, table[b.name].dtype) for b in plan.buffers]
    dtype = torch.int64 if widths is Widths.WIDE else torch.int32
    result += [Param(text, "size", None, dtype, False, name) for name, text in sorted(sizes.items())]
    joined = "\n".join(body)
    result += [Param(d.block, "block") for d in tiling.dims if d.block in joined or d.program is not None]
    return tuple(result)


def _grid(tiling: Tiling) -> Grid:
    programs = sorted((d for d in tiling.dims if d.program is not None), key=lambda d: d.program or 0)
    return tuple((d.extent, d.block) for d in programs)
