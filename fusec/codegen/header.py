"""The comment above a kernel: where it comes from, what it moves, how it runs, why it ends.

Enters: a KernelPlan and its names. Leaves: comment lines; they are no part of the cache key.

    # softmax_kernel: persistent row, XBLOCK=1 RBLOCK=1024, 4 warps
    #
    # model.py:31    scores.softmax(-1)
    # ops            aten._softmax.default (softmax)
    # reads          scores: bf16[64, 1000] (1000, 1)
    # writes         out: bf16[64, 1000] (1000, 1)
    # bytes          128.0 kB read, 128.0 kB written
    # boundary       the next step is a library call
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch

from fusec.codegen.names import comment, op_name
from fusec.ir.index import as_int
from fusec.ir.kernels import KernelPlan
from fusec.ir.types import Buffer, Origin

_SHORT = {
    torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.float64: "f64", torch.bool: "bool",
    torch.int8: "i8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64", torch.uint8: "u8",
}  # fmt: skip
_MAX_LINES = 16
_MAX_WIDTH = 110


def header(plan: KernelPlan, name: str, pointers: Mapping[str, str]) -> list[str]:
    """Comment lines for a kernel called `name`."""
    rows: list[tuple[str, str]] = []
    for label, wanted in (("reads", plan.reads), ("writes", plan.writes)):
        buffers = [b for b in plan.buffers if b.name in wanted]
        rows += [(label if k == 0 else "", _buffer(b, pointers[b.name])) for k, b in enumerate(buffers)]
    return _comment(f"{name}: {plan.strategy.value}, {_tile(plan)}", plan, _ops(plan.origins), rows)


def combined_header(plan: KernelPlan, name: str, served: Sequence[tuple[str, int]]) -> list[str]:
    """Comment lines for a kernel of several parts; served: each part's function, and how many parts it serves."""
    rows = [("parts" if k == 0 else "", f"{function} x {count}") for k, (function, count) in enumerate(served)]
    warps = f"{plan.tile.num_warps} warp{'s' if plan.tile.num_warps > 1 else ''}"
    ops = list(dict.fromkeys(op_name(o.op) for o in plan.origins))
    return _comment(f"{name}: {len(plan.parts)} kernels side by side, {warps}", plan, ops, rows)


def _comment(title: str, plan: KernelPlan, ops: Sequence[str], about: Sequence[tuple[str, str]]) -> list[str]:
    rows = _source_lines(plan.origins)
    rows += [("ops" if k == 0 else "", line) for k, line in enumerate(_wrapped(ops, ", "))]
    rows += about
    rows.append(("bytes", f"{_size(plan.cost.bytes_read)} read, {_size(plan.cost.bytes_written)} written"))
    if plan.boundary:
        rows.append(("boundary", plan.boundary))
    width = max(len(label) for label, _ in rows) + 2
    return [f"# {title}", "#"] + [("# " + label.ljust(width) + comment(text)).rstrip() for label, text in rows]


def _tile(plan: KernelPlan) -> str:
    live = {d.name for d in plan.dims if as_int(plan.extent(d)) != 1}
    blocks = " ".join(f"{dim.upper()}BLOCK={block}" for dim, block in plan.tile.blocks if dim in live)
    warps = f"{plan.tile.num_warps} warp{'s' if plan.tile.num_warps > 1 else ''}"
    return f"{blocks}, {warps}" if blocks else warps


def _source_lines(origins: Sequence[Origin]) -> list[tuple[str, str]]:
    """The user's lines, each once, in the order of the kernel."""
    seen = dict.fromkeys((o.file, o.line, o.code) for o in origins if o.code or o.file)
    rows = [(comment(f"{os.path.basename(file)}:{line}")[:32], code[:_MAX_WIDTH]) for file, line, code in seen]
    return rows if len(rows) <= _MAX_LINES else [*rows[:_MAX_LINES], ("...", f"{len(rows) - _MAX_LINES} more lines")]


def _ops(origins: Sequence[Origin]) -> list[str]:
    """FX nodes with the op they call, where the name does not say it."""
    shown: list[str] = []
    for origin in dict.fromkeys((o.node, o.op) for o in origins):
        node, op = origin
        base = op.split(".")[1] if op.count(".") else op
        shown.append(node if node.startswith(base) else f"{node} = {op}")
    return shown if len(shown) <= 3 * _MAX_LINES else [*shown[: 3 * _MAX_LINES], f"{len(shown) - 3 * _MAX_LINES} more"]


def _wrapped(items: Sequence[str], separator: str) -> list[str]:
    lines: list[str] = []
    for item in items:
        if lines and len(lines[-1]) + len(item) < 90:
            lines[-1] += separator + item
        else:
            lines.append(item)
    return lines


def _buffer(buffer: Buffer, pointer: str) -> str:
    shape = ", ".join(str(n) for n in buffer.shape)
    strides = ", ".join(str(n) for n in buffer.strides)
    dtype = _SHORT.get(buffer.dtype, str(buffer.dtype).removeprefix("torch."))
    return f"{pointer}: {dtype}[{shape}] ({strides})"


def _size(count: int) -> str:
    """Bytes in units of 1000, as bandwidths are given."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
