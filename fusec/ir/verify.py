"""The IR's own rules, checked: a pass that breaks one is found where it happens.

Enters: a Program, a KernelPlan or a Schedule. Leaves: nothing, or a VerificationError with the lines around.

    n0, line 3: mul takes operands of one dtype, got %0:bf16, %1:f32
        nest n0 (p0<64):
          %0:bf16 = load x[p0]
          %1:f32 = cast %0
      >   %2:f32 = mul %0, %1
          store y[p0], %2

Rules of a body: a value is defined once, before its uses; arity and dtypes follow the op table; axes exist; an
address that can be proved out of range is not touched; a store writes one value an address.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from fusec.errors import VerificationError
from fusec.ir.analysis import index_axes, instr_axes
from fusec.ir.index import Sym, as_int, bounds, symbols_of
from fusec.ir.kernels import DimKind, KernelPlan, Schedule
from fusec.ir.ops import OPS, TAKES_POSITIONS, OpKind, Result
from fusec.ir.overlap import Written, stores_overlap
from fusec.ir.printer import dtype_name, format_body, format_extern, format_nest, format_plan
from fusec.ir.types import AccessMode, Axis, Buffer, Extern, Instr, LoopNest, Output, Program, Role, TensorView

__all__ = ["verify_nest", "verify_plan", "verify_program", "verify_schedule"]

CONTEXT = 4  # lines shown before and after the bad one


Node = LoopNest | Extern | KernelPlan
Text = str | Node | None


def _text(value: Text) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, Extern):
        return format_extern(value)
    return format_nest(value) if isinstance(value, LoopNest) else format_plan(value)


def _fail(where: str, message: str, text: Text = None, line: int | None = None) -> VerificationError:
    """An error with the text around `line` (0 is the first), marked; a node is printed only now."""
    lines = _text(text).splitlines()
    if line is None:
        shown = [f"    {t}" for t in lines[: 3 * CONTEXT]]
    else:
        near = range(max(line - CONTEXT, 0), min(line + CONTEXT + 1, len(lines)))
        shown = [f"  {'>' if n == line else ' '} {lines[n]}" for n in near]
    return VerificationError("\n".join([f"{where}: {message}", *shown]))


# -- bodies ---------------------------------------------------------------------------------------


@dataclass
class _Body:
    """What is known while the lines of one nest or kernel are checked in order."""

    name: str
    axes: Sequence[Axis]
    body: Sequence[Instr]
    table: Mapping[str, Buffer]
    defined: dict[str, Instr] = field(default_factory=dict)
    varies: dict[str, frozenset[str]] = field(default_factory=dict)

    def check(self) -> None:
        names = [a.name for a in self.axes]
        self._require(len(set(names)) == len(names), 0, f"axis names repeat: {', '.join(names)}")
        extents = {a.name: a for a in self.axes}
        for line, instr in enumerate(self.body):
            self._require(instr.op in OPS, line, f"{instr.op!r} is not a row of the op table")
            self._check_operands(line, instr)
            self._check_axes(line, instr, extents)
            self._check_dtypes(line, instr)
            if instr.op in ("load", "store"):
                self._check_access(line, instr)
            if instr.out is not None:
                self.defined[instr.out] = instr
                self.varies[instr.out] = instr_axes(instr, self.varies) - set(instr.reduced_axes)

    def _require(self, holds: bool, line: int, message: str) -> None:
        if not holds:
            axes = ", ".join(f"{a.name}<{a.extent}" for a in self.axes)
            text = "\n".join([f"{self.name} ({axes}):", *format_body(self.body, comments=False)])
            raise _fail(f"{self.name}, line {line + 1}", message, text, line + 1)

    def _check_operands(self, line: int, instr: Instr) -> None:
        info = OPS[instr.op]
        masks = 1 if info.kind is OpKind.MEMORY else 0
        count = len(instr.args)
        self._require(
            info.arity <= count <= info.arity + masks,
            line,
            f"{instr.op} takes {info.arity} operands{' and an optional mask' if masks else ''}, got {count}",
        )
        for name in instr.value_operands:
            self._require(name in self.defined, line, f"{name} is used before it is defined")
        if instr.op == "store":
            self._require(instr.out is None, line, "a store defines no value")
            return
        self._require(instr.out is not None, line, f"{instr.op} needs a name for its result")
        self._require(instr.out not in self.defined, line, f"{instr.out} is defined twice")

    def _check_axes(self, line: int, instr: Instr, axes: Mapping[str, Axis]) -> None:
        for symbol in (s for e in instr.index_exprs for s in symbols_of(e)):
            if symbol.kind == "axis":
                self._check_axis_symbol(line, symbol, axes)
            elif symbol.kind == "value":
                dtype = self.defined[symbol.name].dtype
                integer = not dtype.is_floating_point and dtype is not torch.bool
                self._require(integer, line, f"{symbol.name} is used as an index, but is {dtype_name(dtype)}")
        is_row = OPS[instr.op].kind in (OpKind.REDUCTION, OpKind.SCAN)
        counts = instr.access is not None and instr.access.mode is AccessMode.ATOMIC_ADD
        self._require(is_row or counts or not instr.axes, line, f"{instr.op} is no reduction, but names axes")
        verb = "scans" if instr.scanned_axes else "reduces" if is_row else "counts"
        for name in instr.axes:
            self._require(name in axes, line, f"{verb} {name}, which is no axis here")
            parallel = is_row and not axes[name].is_reduction
            self._require(not parallel, line, f"{verb} {name}, which is a parallel axis")

    def _check_axis_symbol(self, line: int, symbol: Sym, axes: Mapping[str, Axis]) -> None:
        self._require(symbol.name in axes, line, f"the index uses {symbol.name}, which is no axis here")
        extent, hi = as_int(axes[symbol.name].extent), bounds(symbol.hi)[1] if symbol.hi is not None else None
        believed = extent is None or hi is None or hi >= extent - 1
        message = f"the index takes {symbol.name} < {(hi or 0) + 1}, but the axis has extent {extent}"
        self._require(believed, line, message)

    def _check_dtypes(self, line: int, instr: Instr) -> None:
        info = OPS[instr.op]
        operands = [self.defined[a].dtype for a in instr.args]
        shown = ", ".join(f"{a}:{dtype_name(d)}" for a, d in zip(instr.args, operands, strict=True))
        if info.kind is OpKind.MEMORY:
            mask = operands[info.arity :]
            self._require(mask in ([], [torch.bool]), line, f"a mask is bool, got {shown}")
            return
        if instr.op in ("where", "checked"):
            self._require(operands[0] is torch.bool, line, f"{instr.op}'s condition is bool, got {shown}")
            operands = operands[1:]
        if instr.op in TAKES_POSITIONS:
            self._require(operands[1] is torch.int64, line, f"{instr.op}'s positions are i64, got {shown}")
            operands = operands[:1]
        self._require(len(set(operands)) <= 1, line, f"{instr.op} takes operands of one dtype, got {shown}")
        self._check_operand_kind(line, instr, operands)
        expected = {Result.BOOL: torch.bool, Result.INDEX: torch.int64}.get(info.result, instr.dtype)
        if info.result is Result.SAME:
            expected = operands[0]
        message = f"{instr.op} of {shown or 'nothing'} gives {dtype_name(expected)}, not {dtype_name(instr.dtype)}"
        self._require(instr.dtype is expected, line, message)

    def _check_operand_kind(self, line: int, instr: Instr, operands: Sequence[torch.dtype]) -> None:
        if instr.op == "philox":
            self._require(operands[0] is torch.int64, line, f"philox takes i64, got {dtype_name(operands[0])}")
        if instr.op in ("any", "all"):
            self._require(operands[0] is torch.bool, line, f"{instr.op} takes bool, got {dtype_name(operands[0])}")
        if instr.op in ("not", "and", "or", "xor", "shl", "shr"):
            whole = not operands[0].is_floating_point
            self._require(whole, line, f"{instr.op} takes integers or bool, got {dtype_name(operands[0])}")
        if instr.op == "div":
            self._require(operands[0].is_floating_point, line, f"div takes floats, got {dtype_name(operands[0])}")
        if instr.op == "bitcast":
            same = operands[0].itemsize == instr.dtype.itemsize
            self._require(same, line, f"bitcast of {dtype_name(operands[0])} to {dtype_name(instr.dtype)} changes size")
        if instr.op == "const":
            self._require(isinstance(instr.attr("value"), int | float), line, "const needs a number as `value`")

    def _check_access(self, line: int, instr: Instr) -> None:
        self._require(instr.access is not None, line, f"{instr.op} needs an access")
        access = instr.access
        assert access is not None
        buffer = self.table.get(access.buffer)
        if buffer is None:
            self._require(False, line, f"there is no buffer {access.buffer}")
            return
        is_load = instr.op == "load"
        self._require(is_load == (access.mode is AccessMode.LOAD), line, f"{instr.op} has mode {access.mode.value}")
        same = instr.dtype is buffer.dtype
        self._require(same, line, f"{buffer.name} holds {dtype_name(buffer.dtype)}, not {dtype_name(instr.dtype)}")
        is_masked = len(instr.args) > (0 if is_load else 1)
        if not is_masked:
            self._check_range(line, instr, buffer)
        if not is_load and not is_masked and access.mode is AccessMode.STORE:
            empty = any(a.extent == 0 for a in self.axes)  # nothing is written
            over = {a.name for a in self.axes if a.extent != 1 and not empty}
            extra = (instr_axes(instr, self.varies) - index_axes(access.index, self.varies)) & over
            self._require(not extra, line, f"the value varies over {', '.join(sorted(extra))}, the address does not")

    def _check_range(self, line: int, instr: Instr, buffer: Buffer) -> None:
        # Interval bounds are attained when the index is linear in independent axes; only then is "outside" a proof.
        assert instr.access is not None
        index, size = instr.access.index, _static_size(buffer)
        linear = index.linear()
        if size is None or linear is None or any(s.kind != "axis" for s in linear):
            return
        if any(a.extent == 0 for a in self.axes):
            return
        lo, hi = bounds(index)
        inside = (lo is None or lo >= 0) and (hi is None or hi < size)
        message = f"{buffer.name} has {size} elements; {buffer.name}[{index}] reaches from {lo} to {hi}"
        self._require(inside, line, message)


def _static_size(buffer: Buffer) -> int | None:
    shape = [as_int(n) for n in buffer.shape]
    strides = [as_int(s) for s in buffer.strides]
    if 0 in shape:
        return 0
    total = 1
    for extent, stride in zip(shape, strides, strict=True):
        if extent is None or stride is None:
            return None
        total += (extent - 1) * stride
    return total


def verify_nest(nest: LoopNest, table: Mapping[str, Buffer]) -> None:
    """Check one nest as lowered: its lines, and at most one reduction or scan."""
    _Body(f"nest {nest.name}", nest.axes, nest.body, table).check()
    rows = (*nest.reductions, *nest.scans)
    if len(rows) > 1:
        names = ", ".join(str(i.out) for i in rows)
        raise _fail(f"nest {nest.name}", f"a nest has at most one reduction or scan, got {names}", nest)


# -- programs and schedules -----------------------------------------------------------------------


class _Flow:
    """Which buffers hold data after the nodes so far, and which addresses each was given by whom."""

    def __init__(self, where: str, table: Mapping[str, Buffer], ready: set[str]) -> None:
        self.where, self.table, self.ready = where, table, ready
        self.written: dict[str, list[Written]] = {}

    def read(self, name: str, buffers: Sequence[str], text: Text) -> None:
        for buffer in buffers:
            if buffer not in self.table:
                raise _fail(self.where, f"{name} uses {buffer}, which is no buffer", text)
            if buffer not in self.ready and _static_size(self.table[buffer]) != 0:
                raise _fail(self.where, f"{name} reads {buffer} before anything writes it", text)

    def write(self, node: LoopNest | KernelPlan) -> None:
        name, axes, text = node.name, node.axes, node
        for instr in node.body:
            if instr.op != "store" or instr.access is None:
                continue
            buffer = instr.access.buffer
            if self.table[buffer].role is Role.CONSTANT:
                raise _fail(self.where, f"{name} writes {buffer}, which is a constant", text)
            if instr.access.mode is not AccessMode.STORE:
                self.read(name, (buffer,), text)  # it changes what is there
                continue
            store = Written(name, instr.access.index, tuple(axes), len(instr.args) > 1)
            is_input = self.table[buffer].role is Role.INPUT  # holds data before any write: later writes replace it
            for other in self.written.get(buffer, ()):
                if (other.node == name or not is_input) and stores_overlap(other, store):
                    raise _fail(self.where, f"{other.node} and {name} both write {buffer} at the same addresses", text)
            self.written.setdefault(buffer, []).append(store)
            self.ready.add(buffer)

    def call(self, extern: Extern) -> None:
        text = extern
        self.read(extern.name, (*extern.reads, *extern.mutates), text)
        for buffer in extern.outputs:
            if buffer is None:
                continue
            if buffer not in self.table:
                raise _fail(self.where, f"{extern.name} writes {buffer}, which is no buffer", text)
            if buffer in self.written or buffer in self.ready:
                raise _fail(self.where, f"{extern.name} writes {buffer}, which already holds data", text)
            self.ready.add(buffer)
            self.written[buffer] = []

    def outputs(self, outputs: Sequence[Output]) -> None:
        for position, output in enumerate(outputs):
            if isinstance(output, TensorView):
                self.read(f"output {position}", (output.buffer,), None)
                _check_view(f"{self.where}, output {position}", output, self.table[output.buffer])


def _check_view(where: str, view: TensorView, buffer: Buffer) -> None:
    shape, strides, offset = [as_int(n) for n in view.shape], [as_int(s) for s in view.strides], as_int(view.offset)
    if len(shape) != len(strides):
        raise _fail(where, f"{len(shape)} extents but {len(strides)} strides")
    size, last = _static_size(buffer), offset
    for extent, stride in zip(shape, strides, strict=True):
        if extent == 0:
            return
        last = None if last is None or extent is None or stride is None else last + (extent - 1) * stride
    if size is not None and last is not None and last >= size:
        raise _fail(where, f"the view reaches element {last} of {buffer.name}, which has {size}")


def _check_table(where: str, buffers: Sequence[Buffer]) -> dict[str, Buffer]:
    table: dict[str, Buffer] = {}
    for buffer in buffers:
        if buffer.name in table:
            raise _fail(where, f"two buffers are called {buffer.name}")
        if len(buffer.shape) != len(buffer.strides):
            raise _fail(where, f"{buffer.name} has {len(buffer.shape)} extents but {len(buffer.strides)} strides")
        table[buffer.name] = buffer
    return table


def _start(where: str, graph: Program | Schedule) -> _Flow:
    table = _check_table(where, graph.buffers)
    ready = {b.name for b in graph.buffers if b.role in (Role.INPUT, Role.CONSTANT)}
    for name in graph.inputs:
        if name is not None and name not in table:
            raise _fail(where, f"the input {name} is no buffer")
    missing = {b.name for b in graph.buffers if b.role is Role.CONSTANT} - {n for n, _ in graph.constants}
    if missing:
        raise _fail(where, f"constants without a value: {', '.join(sorted(missing))}")
    return _Flow(where, table, ready)


def verify_program(program: Program) -> None:
    """Check every nest and call, that each reads what is already written, and that outputs exist."""
    flow = _start(f"program {program.name}", program)
    names: set[str] = set()
    for node in program.nodes:
        if node.name in names:
            raise _fail(flow.where, f"two nodes are called {node.name}")
        names.add(node.name)
        if isinstance(node, Extern):
            flow.call(node)
            continue
        verify_nest(node, flow.table)
        flow.read(node.name, [b for b in node.reads if b not in node.writes], node)
        flow.write(node)
    flow.outputs(program.outputs)


def verify_schedule(schedule: Schedule) -> None:
    """The same for launches: every kernel, their order, and the outputs."""
    flow = _start(f"schedule {schedule.name}", schedule)
    for step in schedule.steps:
        if isinstance(step, Extern):
            flow.call(step)
            continue
        verify_plan(step, flow.table)
        flow.read(step.name, [b for b in step.reads if b not in step.writes], step)
        for leaf in step.leaves:
            flow.write(leaf)
    flow.outputs(schedule.outputs)


# -- kernels --------------------------------------------------------------------------------------


def verify_plan(plan: KernelPlan, table: Mapping[str, Buffer]) -> None:
    """Check a kernel's lines, that its dimensions cover its axes once, and the rules of phases."""
    where = f"kernel {plan.name}"
    if plan.parts:
        _check_parts(where, plan, table)
        return
    body = _Body(where, plan.axes, plan.body, table)
    body.check()
    _check_dims(where, plan)
    _check_phases(where, plan, body.varies)
    _check_buffers(where, plan)


def _check_buffers(where: str, plan: KernelPlan) -> None:
    known = {b.name for b in plan.buffers}
    missing = [n for n in (*plan.reads, *plan.writes) if n not in known]
    if missing:
        raise _fail(where, f"uses {', '.join(missing)}, missing from its buffers", plan)


def _check_parts(where: str, plan: KernelPlan, table: Mapping[str, Buffer]) -> None:
    """Each part is a kernel; their programs run in any order, so none touches what another one writes."""
    if plan.phases or plan.axes or plan.dims:
        raise _fail(where, "a combined kernel has no axes, dimensions and lines of its own", plan)
    writer: dict[str, str] = {}
    for part in plan.parts:
        if part.parts:
            raise _fail(where, f"its part {part.name} has parts itself", plan)
        if part.tile.num_warps != plan.tile.num_warps:
            raise _fail(where, f"its part {part.name} wants {part.tile.num_warps} warps", plan)
        verify_plan(part, table)
        for buffer in part.writes:
            if buffer in writer:
                raise _fail(where, f"its parts {writer[buffer]} and {part.name} both write {buffer}", plan)
            writer[buffer] = part.name
    for part in plan.parts:
        for buffer in part.reads:
            if writer.get(buffer, part.name) != part.name:
                raise _fail(where, f"its part {part.name} reads {buffer}, which its part {writer[buffer]} writes", plan)
    _check_buffers(where, plan)


def _check_dims(where: str, plan: KernelPlan) -> None:
    text = plan
    covered = [a for dim in plan.dims for a in dim.axes]
    axes = {a.name for a in plan.axes}
    for name in sorted(axes | set(covered)):
        if covered.count(name) != 1 or name not in axes:
            raise _fail(where, f"axis {name} is in {covered.count(name)} dimensions; each axis is in exactly one", text)
    kinds = [dim.kind is DimKind.GRID for dim in plan.dims]
    if sorted(kinds, reverse=True) != kinds:
        raise _fail(where, "grid dimensions come first", text)
    walked = {dim.kind for dim in plan.dims}
    if DimKind.PARTS in walked and DimKind.LOOP not in walked:
        raise _fail(where, "a dimension is walked along in parts only inside a loop over another", text)
    blocks = dict(plan.tile.blocks)
    for dim in plan.dims:
        block = blocks.get(dim.name, 0)
        if block < 1 or block & (block - 1):
            raise _fail(where, f"the block of {dim.name} is {block}; a block is a power of two", text)
    gridded = {a for dim in plan.dims if dim.kind is DimKind.GRID for a in dim.axes}
    for instr in plan.body:
        crossing = gridded & set(instr.row_axes)
        if crossing:
            verb = "scans" if instr.scanned_axes else "reduces"
            raise _fail(where, f"{instr.out} {verb} {', '.join(sorted(crossing))}, which the grid divides", text)


def _check_phases(where: str, plan: KernelPlan, varies: Mapping[str, frozenset[str]]) -> None:
    looped = {a for dim in plan.dims if dim.kind is DimKind.LOOP for a in dim.axes}
    if not looped and len(plan.phases) != 1:
        raise _fail(where, f"a kernel without a loop has one phase, got {len(plan.phases)}", plan)
    live: set[str] = set()  # values of earlier phases that may be used
    for number, phase in enumerate(plan.phases):
        own: set[str] = set()
        late: set[str] = set()  # values known only when this phase's loop has ended
        for instr in phase:
            operands = set(instr.value_operands)
            crossing = operands - own - live
            if crossing:
                names = ", ".join(sorted(crossing))
                message = f"phase {number} uses {names}, which varies along the loop of an earlier phase"
                raise _fail(where, message, plan)
            inside = bool(instr_axes(instr, varies) & looped)
            if inside and operands & late:
                names = ", ".join(sorted(operands & late))
                shown = instr.out or "a store"
                raise _fail(where, f"phase {number}: {shown} needs {names}, which its own loop is still reducing", plan)
            if instr.out is not None:
                own.add(instr.out)
                if operands & late or set(instr.reduced_axes) & looped:
                    late.add(instr.out)
        live |= {name for name in own if not varies[name] & looped}
