"""Stages as numbered text files, kernels as scripts that run alone.

Enters: a stage's text, or a KernelPlan with its KernelSource. Leaves: files.

    FUSEC_DUMP=out python model.py
    out/g0/01_program.txt  02_simplified.txt  03_schedule.txt  04_buffers.txt  05_wrapper.txt
    out/g0/kernels/fused_rms_norm_0.py       python out/g0/kernels/fused_rms_norm_0.py runs it

A kernel script holds the kernel's text unchanged, makes inputs, runs it, checks it against the same
SSA lines written in plain PyTorch, then times it. On a GPU it needs torch and triton, and `fusec.kernels`
where the kernel calls a device helper; on CPU tensors, fusec, which interprets it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from fusec.inspect.reference import buffer_literal, expression_text, identifier, index_bounds, reference_text
from fusec.ir.index import as_int
from fusec.ir.kernels import Grid, KernelPlan, KernelSource, Tile
from fusec.ir.sizes import at_hints
from fusec.ir.types import Buffer
from fusec.runtime.grid import block_values
from fusec.schedule.predicted import predicted_buffers, predicted_plan, size_hints

__all__ = ["dump_stage", "kernel_script", "write_kernel_script"]

# Largest difference to the reference: (relative, absolute). The reference sums in another order.
_TOLERANCE = {torch.float64: (1e-9, 1e-9), torch.float32: (2e-5, 2e-5), torch.float16: (4e-3, 4e-3)}
_LOW_TOLERANCE = (2e-2, 2e-2)  # bfloat16 and 8-bit floats


def dump_stage(directory: str | Path, number: int, name: str, text: str) -> Path:
    """Write one stage: dump_stage("out", 3, "schedule", text) -> out/03_schedule.txt."""
    path = Path(directory) / f"{number:02d}_{_file_name(name)}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
    return path


def write_kernel_script(path: str | Path, plan: KernelPlan, source: KernelSource, table: Mapping[str, Buffer]) -> Path:
    """Write the kernel as a script that runs alone. `table`: the Schedule's buffers by name."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(kernel_script(plan, source, table), encoding="utf-8")
    return path


def kernel_script(plan: KernelPlan, source: KernelSource, table: Mapping[str, Buffer]) -> str:
    """The script's text. Sizes that are symbolic have their values of the first call."""
    sizes = size_hints(plan)
    if sizes:
        plan, table = predicted_plan(plan), predicted_buffers(table, [b.name for b in plan.buffers])
    pointers = [p.name for p in source.params if p.kind == "pointer"]
    assert len(pointers) == len(plan.buffers), f"{plan.name}: {len(pointers)} pointers, {len(plan.buffers)} buffers"
    names = {b.name: identifier(pointer) for b, pointer in zip(plan.buffers, pointers, strict=True)}
    kernel_text = re.sub(r"^from __future__ import .*\n+", "", source.text, flags=re.MULTILINE)
    strategy = f"{len(plan.parts)} kernels side by side" if plan.parts else plan.strategy.value
    parts = (
        _HEADER.format(name=source.name, strategy=strategy),
        kernel_text.strip("\n"),
        _RULE.format("inputs, reference, launch"),
        _buffers_text(plan, names, table),
        _MAKE_INPUTS,
        reference_text(plan, names),
        _launch_text(source, names, plan, sizes),
        _MAIN.format(name=source.name, bytes=plan.cost.bytes_read + plan.cost.bytes_written),
    )
    return "\n\n\n".join(parts)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)[:120] or "unnamed"


def _literal(value: object) -> str:
    """As Python, with double quotes; the strings are identifiers."""
    return repr(value).replace("'", '"')


def _buffers_text(plan: KernelPlan, names: Mapping[str, str], table: Mapping[str, Buffer]) -> str:
    limits = index_bounds(plan)
    reads = [b for b in plan.buffers if b.name in plan.reads]
    rows = [f'    "{names[b.name]}": {buffer_literal(table.get(b.name, b))},' for b in plan.buffers]
    tolerances = {
        names[b.name]: _TOLERANCE.get(b.dtype, _LOW_TOLERANCE) if b.dtype.is_floating_point else (0.0, 0.0)
        for b in plan.buffers
        if b.name in plan.writes
    }
    used = {names[name]: limit for name, limit in limits.items()}
    return "\n".join(
        (
            "# name: (dtype, shape, strides)",
            "BUFFERS = {",
            *rows,
            "}",
            f"READS = {_literal(tuple(names[b.name] for b in reads))}",
            f"TOLERANCE = {_literal(tolerances)}  # of each output: relative, absolute",
            f"LARGEST = {_literal(used)}  # of integers that are used as an index",
        )
    )


def _launch_text(source: KernelSource, names: Mapping[str, str], plan: KernelPlan, sizes: Mapping[str, int]) -> str:
    grid = ", ".join(_programs(source.grid))
    if source.parts:  # one grid axis: the parts' programs follow one another
        grid = " + ".join(" * ".join(_programs(part)) or "1" for part in source.parts)
    arguments = [names[b.name] for b in plan.buffers]
    given = [*arguments, *(str(sizes[p.passed]) for p in source.params if p.kind == "size")]
    tensors = ", ".join(f'"{p.name}": {a}' for p, a in zip(source.params, given, strict=False))
    return "\n".join(
        (
            "# blocks, warps, stages",
            f"GPU_TILE = {_tile_literal(source, source.tile)}",
            f"INTERPRETER_TILE = {_tile_literal(source, source.interpreter_tile)}",
            "",
            "",
            f"def launch(tile, {', '.join(arguments)}):",
            "    blocks, warps, stages = tile",
            f"    grid = ({grid},)",
            f"    if {arguments[0]}.is_cuda:",
            f"        {source.name}[grid]({', '.join(given)}, **blocks, num_warps=warps, num_stages=stages)",
            "    else:",
            f"        interpret({source.name}, grid, {{{tensors}}}, blocks)",
        )
    )


def _programs(grid: Grid) -> list[str]:
    """The number of programs along each axis, as Python."""
    return [
        f'triton.cdiv({extent}, blocks["{block}"])' if block else extent
        for extent, block in ((expression_text(at_hints(e)), b) for e, b in grid)
    ]


def _tile_literal(source: KernelSource, tile: Tile) -> str:
    return _literal((block_values(source, tile), tile.num_warps, tile.num_stages))


def static(buffer: Buffer) -> bool:
    """True when a script can be written for it: every extent is a number."""
    return all(as_int(n) is not None for n in (*buffer.shape, *buffer.strides))


_HEADER = '''"""{name}: {strategy}. This script checks the kernel against plain PyTorch, then times it."""

import time

import torch

if not torch.cuda.is_available():
    from fusec.inspect.script import interpret'''

_RULE = "# -- {} " + "-" * 60

_MAKE_INPUTS = '''def make(name, device, generator):
    """A tensor of the buffer's dtype, shape and strides: normal values, or random integers and bits."""
    dtype, shape, strides = BUFFERS[name]
    reach = sum((n - 1) * s for n, s in zip(shape, strides)) + 1 if 0 not in shape else 0
    if name not in READS:
        memory = torch.zeros(reach, dtype=dtype)
    elif dtype is torch.bool:
        memory = torch.rand(reach, generator=generator) < 0.5
    elif dtype.is_floating_point:
        memory = torch.randn(reach, generator=generator).to(dtype)
    else:
        memory = torch.randint(0, LARGEST.get(name, 100) + 1, (reach,), generator=generator).to(dtype)
    return memory.to(device).as_strided(shape, strides)


def make_inputs(device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: make(name, device, generator) for name in BUFFERS}


def copy(tensors):
    """Same values, same strides, other memory."""
    return {name: flat(t).clone().as_strided(t.shape, t.stride()) for name, t in tensors.items()}'''

_MAIN = '''def check(tile, inputs):
    """The kernel against the reference; returns the largest difference."""
    expected, got = copy(inputs), copy(inputs)
    reference(next(iter(inputs.values())).device, **expected)
    launch(tile, **got)
    largest = 0.0
    for name, (relative, absolute) in TOLERANCE.items():
        torch.testing.assert_close(
            got[name], expected[name], rtol=relative, atol=absolute, equal_nan=True, msg=lambda m: f"{{name}}: {{m}}"
        )
        difference = (got[name].double() - expected[name].double()).abs().nan_to_num(0.0, 0.0, 0.0)
        largest = max(largest, difference.max().item() if difference.numel() else 0.0)
    return largest


def main():
    gpu = torch.cuda.is_available()
    inputs = make_inputs("cuda" if gpu else "cpu")
    tile = GPU_TILE if gpu else INTERPRETER_TILE
    print(f"{name}: ok, largest difference {{check(tile, inputs):.3g}}")
    if gpu:
        milliseconds = triton.testing.do_bench(lambda: launch(tile, **inputs))
        rate = {bytes} / milliseconds / 1e6
        print(f"{{milliseconds * 1e3:.1f}} us, {{rate:.0f}} GB/s on {{torch.cuda.get_device_name()}}")
    else:
        start = time.perf_counter()
        launch(tile, **inputs)
        print(f"{{(time.perf_counter() - start) * 1e3:.1f}} ms in the interpreter: no GPU here")


if __name__ == "__main__":
    main()
'''
