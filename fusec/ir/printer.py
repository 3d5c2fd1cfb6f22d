"""The IR as text: what a bug report, a golden test and a dump show.

Enters: any IR value. Leaves: text, one SSA line a line.

    program rms_norm
      in  x: bf16[64, 4096] (4096, 1)
      tmp ss: f32[64] (1)
    nest n0 (p0<64, r0<4096):                                   # pow, mean  model.py:31
      %0:bf16 = load x[4096*p0 + r0]
      %1:f32 = cast %0
      %2:f32 = mul %1, %1
      %3:f32 = sum %2 over r0
      store ss[p0], %3
    return ss
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from fusec.ir.kernels import KernelCost, KernelPlan, Schedule
from fusec.ir.types import Attr, Axis, Buffer, Extern, Instr, LoopNest, Origin, Output, Program, TensorView

__all__ = [
    "dtype_name",
    "format_body",
    "format_buffer",
    "format_bytes",
    "format_extern",
    "format_instr",
    "format_nest",
    "format_origins",
    "format_plan",
    "format_program",
    "format_schedule",
]

COMMENT_COLUMN = 60
SHORT_NAMES = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
}


def dtype_name(dtype: torch.dtype) -> str:
    """`bf16` for torch.bfloat16; the name without `torch.` for a dtype that has no short one."""
    return SHORT_NAMES.get(dtype) or str(dtype).removeprefix("torch.")


# -- instructions ---------------------------------------------------------------------------------


def _attr(value: Attr) -> str:
    if isinstance(value, torch.dtype):
        return dtype_name(value)
    if isinstance(value, tuple):
        return ", ".join(_attr(v) for v in value)
    return str(value) if not isinstance(value, str) else value


def format_instr(instr: Instr) -> str:
    """One SSA line without its comment: `%3:f32 = sum %2 over r0`, `store ss[p0], %3, mask=%4`."""
    place = "" if instr.access is None else f"{instr.access.buffer}[{instr.access.index}]"
    if instr.op == "store":
        verb = "store" if instr.access is None else instr.access.mode.value
        value, *mask = instr.args or ("?",)
        over = f" over {', '.join(instr.axes)}" if instr.axes else ""
        return f"{verb} {place}, {value}" + "".join(f", mask={m}" for m in mask) + over
    head = f"{instr.out}:{dtype_name(instr.dtype)} = {instr.op}"
    if instr.op == "load":
        return f"{head} {place}" + "".join(f", mask={m}, other={_attr(instr.attr('other', 0))}" for m in instr.args)
    operands = list(instr.args)
    if instr.op in ("const", "index"):
        operands.append(_attr(instr.attr("value" if instr.op == "const" else "expr")))
    text = f"{head} {', '.join(operands)}"
    if instr.axes:
        text += f" over {', '.join(instr.axes)}"
    known = {"const": ("value",), "index": ("expr",)}.get(instr.op, ("axes",))
    return text + "".join(f", {name}={_attr(value)}" for name, value in instr.attrs if name not in known)


def op_name(op: str) -> str:
    """`add` for `aten.add.Tensor`."""
    parts = op.split(".")
    return parts[1] if len(parts) > 1 and parts[0] in ("aten", "prims") else op


def format_origins(origins: Iterable[Origin]) -> str:
    """`pow, mean  model.py:31, 32`: op names in order, then the user's lines by file."""
    origins = list(origins)
    ops = ", ".join(dict.fromkeys(op_name(o.op) for o in origins))
    lines: dict[str, list[int]] = {}
    for origin in origins:
        if origin.file and origin.line not in lines.setdefault(os.path.basename(origin.file), []):
            lines[os.path.basename(origin.file)].append(origin.line)
    places = "; ".join(f"{file}:{', '.join(map(str, numbers))}" for file, numbers in lines.items())
    return "  ".join(part for part in (ops, places) if part)


def _commented(line: str, comment: str) -> str:
    if not comment:
        return line
    comment = " ".join(comment.split())
    return f"{line:<{COMMENT_COLUMN - 2}}  # {comment}"


def format_body(body: Sequence[Instr], indent: str = "  ", *, comments: bool = True) -> list[str]:
    """One line an instruction; a comment where the origin changes, if there is more than one."""
    several = len({i.origin for i in body if i.origin is not None}) > 1
    lines: list[str] = []
    previous: Origin | None = None
    for instr in body:
        note = ""
        if comments and several and instr.origin is not None and instr.origin != previous:
            note = format_origins([instr.origin])
        previous = instr.origin or previous
        lines.append(_commented(indent + format_instr(instr), note))
    return lines


def format_axes(axes: Iterable[Axis]) -> str:
    return ", ".join(f"{a.name}<{a.extent}" for a in axes)


# -- nodes ----------------------------------------------------------------------------------------


def format_nest(nest: LoopNest) -> str:
    header = _commented(f"nest {nest.name} ({format_axes(nest.axes)}):", format_origins(nest.origins))
    return "\n".join([header, *format_body(nest.body)])


def _tuple(values: Iterable[object]) -> str:
    return "(" + ", ".join(map(str, values)) + ")"


def _shape(values: Iterable[object]) -> str:
    return "[" + ", ".join(map(str, values)) + "]"


def format_buffer(buffer: Buffer) -> str:
    """`in  x: bf16[64, 4096] (4096, 1)`; a hint and a device that is not the usual one follow."""
    hint = f" {buffer.hint!r}" if buffer.hint and buffer.hint != buffer.name else ""
    text = f"{buffer.role.value:<5} {buffer.name}: {dtype_name(buffer.dtype)}{_shape(buffer.shape)}"
    return f"{text} {_tuple(buffer.strides)} {buffer.device}{hint}"


def format_view(view: TensorView, table: Mapping[str, Buffer]) -> str:
    """The buffer's name alone when the view is the whole buffer, else its shape, strides and offset."""
    buffer = table.get(view.buffer)
    if buffer is not None and (view.shape, view.strides, view.offset) == (buffer.shape, buffer.strides, 0):
        return view.buffer
    offset = f" + {view.offset}" if view.offset != 0 else ""
    return f"{view.buffer}{_shape(view.shape)}{_tuple(view.strides)}{offset}"


def _argument(value: Any, table: Mapping[str, Buffer]) -> str:
    if isinstance(value, TensorView):
        return format_view(value, table)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {_argument(v, table)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_argument(v, table) for v in value) + "]"
    return dtype_name(value) if isinstance(value, torch.dtype) else repr(value)


def format_extern(extern: Extern, table: Mapping[str, Buffer] | None = None) -> str:
    """`extern e0: y = aten.mm.default(x, w)  # library call  mm  model.py:12`."""
    table = table or {}
    args = [_argument(a, table) for a in extern.args]
    args += [f"{name}={_argument(value, table)}" for name, value in extern.kwargs]
    outputs = ", ".join(o or "_" for o in extern.outputs)
    mutates = f" mutates {', '.join(extern.mutates)}" if extern.mutates else ""
    line = f"extern {extern.name}: {f'{outputs} = ' if outputs else ''}{extern.target}({', '.join(args)}){mutates}"
    notes = [extern.reason, format_origins([extern.origin] if extern.origin is not None else [])]
    return _commented(line, "; ".join(n for n in notes if n))


def _output(output: Output, table: Mapping[str, Buffer]) -> str:
    return format_view(output, table) if isinstance(output, TensorView) else str(output)


def _arguments(names: Iterable[str | None]) -> str:
    return ", ".join("_" if n is None else n for n in names)


def format_program(program: Program) -> str:
    lines = [f"program {program.name} ({_arguments(program.inputs)})"]
    lines += [f"  {format_buffer(b)}" for b in program.buffers]
    for node in program.nodes:
        lines.append(format_extern(node, program.table) if isinstance(node, Extern) else format_nest(node))
    lines.append("return " + ", ".join(_output(o, program.table) for o in program.outputs))
    return "\n".join(lines)


# -- schedules ------------------------------------------------------------------------------------


def format_bytes(count: int) -> str:
    """`512 B`, `16.8 KB`, `33.6 MB`: powers of ten, as bandwidth is counted."""
    value = float(count)
    for unit in ("B", "KB", "MB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def _cost(cost: KernelCost) -> str:
    text = f"reads {format_bytes(cost.bytes_read)}, writes {format_bytes(cost.bytes_written)}"
    again = cost.requested_bytes - cost.bytes_read - cost.bytes_written
    if again > 0:
        text += f" and {format_bytes(again)} again"
    return f"{text}; {cost.flops} instructions, about {cost.registers} registers, {cost.seconds * 1e6:.2f} us"


def format_plan(plan: KernelPlan) -> str:
    """Axes, tile and strategy, cost, the lines of each phase, and why the kernel ends where it ends."""
    if plan.parts:
        return _combined(plan)
    header = f"kernel {plan.name} ({format_axes(plan.axes)}): {plan.strategy.value}"
    lines = [_commented(header, format_origins(plan.origins))]
    blocks = dict(plan.tile.blocks)
    for dim in plan.dims:
        axes = " x ".join(dim.axes) or "1"
        lines.append(f"  dim {dim.name} = {axes}: {dim.kind.value}, block {blocks.get(dim.name)}")
    stages = f", {plan.tile.num_stages} stages" if plan.tile.num_stages != 1 else ""
    lines.append(f"  cost {_cost(plan.cost)}; {plan.tile.num_warps} warps{stages}")
    inside = f"; inside {', '.join(plan.internal)}" if plan.internal else ""
    lines.append(f"  covers {', '.join(plan.nests)}{inside}")
    for number, phase in enumerate(plan.phases):
        if len(plan.phases) > 1:
            lines.append(f"  phase {number}:")
        lines += format_body(phase, "    " if len(plan.phases) > 1 else "  ")
    if plan.boundary:
        lines.append(f"  ends: {plan.boundary}")
    return "\n".join(lines)


def _combined(plan: KernelPlan) -> str:
    """The parts of a launch, one under the other."""
    header = f"kernel {plan.name}: {len(plan.parts)} kernels side by side"
    cost = f"  cost {_cost(plan.cost)}; {plan.tile.num_warps} warps"
    lines = [_commented(header, format_origins(plan.origins)), cost]
    for part in plan.parts:
        lines += [f"  {line}" for line in format_plan(part).splitlines()]
    return "\n".join(lines)


def format_schedule(schedule: Schedule) -> str:
    """Buffers, steps in order, and the fusion decisions with their reasons."""
    lines = [f"schedule {schedule.name} ({_arguments(schedule.inputs)})"]
    lines += [f"  {format_buffer(b)}" for b in schedule.buffers]
    for step in schedule.steps:
        lines.append(format_extern(step, schedule.table) if isinstance(step, Extern) else format_plan(step))
    lines.append("return " + ", ".join(_output(o, schedule.table) for o in schedule.outputs))
    for decision in schedule.decisions:
        verb = "fused" if decision.accepted else "apart"
        lines.append(f"{verb} {decision.producer} -> {decision.consumer}: {decision.reason}")
    return "\n".join(lines)
