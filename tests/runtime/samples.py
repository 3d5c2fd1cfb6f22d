"""Hand-written kernels and one-kernel programs for the tests of the runtime."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from fusec.ir.kernels import BufferPlan, KernelCost, KernelPlan, KernelSource, Param, Schedule, Strategy, Tile
from fusec.ir.types import Buffer, Extern, Role, TensorView
from fusec.runtime.cache import digest
from fusec.runtime.grid import launch_grid
from fusec.runtime.interpret import InterpretedKernel

HEADER = "import triton\nimport triton.language as tl\n\n\n@triton.jit\n"


def kernel(
    name: str,
    body: str,
    pointers: dict[str, torch.dtype],
    blocks: dict[str, int],
    grid: Sequence[tuple[int, str | None]],
    aligned: bool = True,
    **tile: int,
) -> KernelSource:
    """A KernelSource from the body of its function."""
    params = [Param(n, "pointer", n.removesuffix("_ptr"), d, aligned) for n, d in pointers.items()]
    params += [Param(f"{n.upper()}BLOCK", "block") for n in blocks]
    signature = ", ".join(p.name + (": tl.constexpr" if p.kind == "block" else "") for p in params)
    text = f"{HEADER}def {name}({signature}):\n{textwrap.indent(textwrap.dedent(body).strip(), '    ')}\n"
    chosen = Tile(tuple(blocks.items()), **tile)
    return KernelSource(
        name, text, tuple(params), tuple(grid), chosen, chosen, digest([text, repr(chosen), repr(params)])
    )


def run(source: KernelSource, *tensors: torch.Tensor) -> None:
    """Interpret a source with its tile."""
    InterpretedKernel(source).launch(tensors, (), launch_grid(source, source.tile, ()), source.tile)


def add_one(n: int, dtype: torch.dtype = torch.float32, block: int = 256, name: str = "add_one") -> KernelSource:
    body = f"""
        x0 = tl.program_id(0) * XBLOCK + tl.arange(0, XBLOCK)
        mask = x0 < {n}
        x = tl.load(x_ptr + x0, mask, other=0.0)
        tl.store(out_ptr + x0, x + 1.0, mask)
    """
    return kernel(name, body, {"x_ptr": dtype, "out_ptr": dtype}, {"x": block}, [(n, "XBLOCK")])


def row_softmax(rows: int, columns: int, block: int, dtype: torch.dtype = torch.float32) -> KernelSource:
    body = f"""
        row = tl.program_id(0) * XBLOCK + tl.arange(0, XBLOCK)[:, None]
        col = tl.arange(0, RBLOCK)[None, :]
        mask = (row < {rows}) & (col < {columns})
        x = tl.load(x_ptr + row * {columns} + col, mask, other=float("-inf")).to(tl.float32)
        top = tl.max(x, 1)[:, None]
        e = tl.exp(x - top)
        total = tl.sum(tl.where(mask, e, 0.0), 1)[:, None]
        tl.store(out_ptr + row * {columns} + col, e / total, mask)
    """
    pointers = {"x_ptr": dtype, "out_ptr": dtype}
    blocks = {"x": block, "r": 1 << max(0, (columns - 1).bit_length())}
    return kernel("row_softmax", body, pointers, blocks, [(rows, "XBLOCK")])


def counters() -> SimpleNamespace:
    return SimpleNamespace(kernels_built=0, kernels_launched=0, extern_calls=0, cache_hits=0)


def program(source: KernelSource, x: torch.Tensor, externs: Sequence[Any] = ()) -> tuple[Schedule, BufferPlan, str]:
    """x -> out through one kernel; then each extern of one argument."""
    shape, strides = tuple(x.shape), tuple(x.stride())
    buffers = [
        Buffer("x", x.dtype, shape, strides, str(x.device), Role.INPUT),
        Buffer("out", x.dtype, shape, strides, str(x.device), Role.OUTPUT),
    ]
    plan = KernelPlan(
        source.name, (), (), (), tuple(buffers), Strategy.FLAT, source.tile, KernelCost(0, 0, 0, 0, 0, 0.0)
    )
    steps = (plan, *(Extern(f"e{i}", target, (), (), (f"y{i}",)) for i, target in enumerate(externs)))
    schedule = Schedule("sample", tuple(buffers), steps, ("x",), (TensorView("out", shape, strides),))
    lines = [
        "import torch",
        "def call(args, rt):",
        "    (x,) = args",
        "    args.clear()",
        f"    out = rt.empty[{str(x.device)!r}]({shape}, {strides}, {x.dtype})",
        "    rt.launch[0](x, out)",
        *(f"    out = rt.extern[{i}](out)" for i in range(len(externs))),
        "    return (out,)",
    ]
    return schedule, BufferPlan(((),) * len(steps), ((),) * len(steps), 0), "\n".join(lines) + "\n"
