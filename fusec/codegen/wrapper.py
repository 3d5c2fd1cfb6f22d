"""Schedule -> wrapper text: the Python that runs a call, step by step.

Enters: a Schedule, its BufferPlan and a KernelSource per kernel step. Leaves: a module with one function:

    import torch


    def call(args, rt):
        x, weight = args
        args.clear()
        empty = rt.empty["cuda:0"]

        out = empty((64, 4096), (4096, 1), torch.bfloat16)
        rt.launch[0](x, weight, out)  # rms_norm_kernel
        del x
        y = rt.extern[0](out, weight)  # aten.mm.default
        y = rt.restride(y, (64, 4096), (4096, 1))
        return (y,)

What `rt` must offer (see `fusec/runtime/executable.py`):

    rt.launch[k](*tensors, *sizes)             the k-th kernel step; tensors in the order of the source's pointers
    rt.written(*tensors)                       inputs that a launch has written
    rt.extern[k](*args, **kwargs)              the k-th extern step
    rt.empty[device](shape, strides, dtype)    new memory
    rt.view(tensor, shape, strides, offset)    a strided view; offset in elements from the tensor's first
    rt.restride(tensor, shape, strides)        the tensor, or a copy that has these strides
    rt.constants[name]                         a tensor of the schedule

Buffers are freed where the BufferPlan says; a buffer that takes over a dead one's memory is a view of it. What
library calls and the caller all see in one other shape of the same extent in memory is allocated in that shape: kernels
take addresses.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fusec.codegen.hints import buffer_hint
from fusec.codegen.names import Names, comment
from fusec.errors import FusecError
from fusec.ir.evaluate import storage_size
from fusec.ir.index import Expr, IndexLike, as_int, symbols_of
from fusec.ir.kernels import Allocation, BufferPlan, KernelPlan, KernelSource, Schedule
from fusec.ir.sizes import as_symbol, size_text, solve_for_sizes
from fusec.ir.types import Buffer, Extern, Output, Relation, Role, TensorView, tensor_views

_MAX_LINE = 112

Layout = tuple[tuple[IndexLike, ...], tuple[IndexLike, ...]]


def generate_wrapper(schedule: Schedule, buffer_plan: BufferPlan, sources: Sequence[KernelSource]) -> str:
    """The text of `call(args, rt)`; `sources` has one KernelSource per kernel step, in order."""
    plans = [s for s in schedule.steps if isinstance(s, KernelPlan)]
    assert len(plans) == len(sources), f"{len(plans)} kernel steps, {len(sources)} sources"
    return _Wrapper(schedule, buffer_plan, tuple(sources), layouts=_layouts_of_readers(schedule)).text()


@dataclass
class _Wrapper:
    schedule: Schedule
    buffer_plan: BufferPlan
    sources: tuple[KernelSource, ...]
    layouts: Mapping[str, Layout]  # of buffers that are allocated in another shape than their own
    lines: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    moved: dict[tuple[str, str], str] = field(default_factory=dict)  # CPU scalars on the device of a kernel
    names: Names = field(default_factory=Names)
    sizes: dict[str, str] = field(default_factory=dict)
    empty: dict[str, str] = field(default_factory=dict)  # by device, what allocates there
    body: int = 0  # the line where the steps begin

    def text(self) -> str:
        self._unpack()
        launches = externs = 0
        for number, step in enumerate(self.schedule.steps):
            for allocation in self.buffer_plan.before[number]:
                self._allocate(allocation)
            if isinstance(step, KernelPlan):
                self._launch(step, launches)
                launches += 1
            else:
                self._extern(step, externs, self.buffer_plan.after[number])
                externs += 1
            self._free(self.buffer_plan.after[number])
        self._return()
        self.lines[self.body : self.body] = [f"{name} = rt.empty[{device!r}]" for device, name in self.empty.items()]
        body = "\n".join(f"    {line}" if line else "" for line in self.lines)
        return f"import torch\n\n\ndef call(args, rt):\n{body}\n"

    # -- buffers ----------------------------------------------------------------------------------

    def _unpack(self) -> None:
        table, numbers = self.schedule.table, dict(self.schedule.numbers)
        targets: list[str] = []
        for position, name in enumerate(self.schedule.inputs):
            number = as_symbol(numbers.get(position, 0))
            hint = buffer_hint(table[name]) if name is not None else number or "size"
            variable = self.names.fresh(hint)
            targets.append(variable)
            if number is not None:
                self.sizes.setdefault(number, variable)
            if name is not None and name not in self.variables:
                self.variables[name] = variable
            assert position == len(targets) - 1
        if targets:
            joined = ", ".join(targets)
            if len(joined) > _MAX_LINE - 8:
                self.lines += ["(", *(f"    {line}" for line in textwrap.wrap(joined, _MAX_LINE - 8)), ") = args"]
            else:
                self.lines.append(f"{joined} = args" if len(targets) > 1 else f"({joined},) = args")
        self.lines.append("args.clear()")
        self._unpack_sizes(targets)
        for name, _ in self.schedule.constants:
            variable = self._new(table[name])
            self.lines.append(f"{variable} = rt.constants[{name!r}]")
        self.body = len(self.lines)
        self.lines.append("")

    def _unpack_sizes(self, targets: Sequence[str]) -> None:
        """A size that is no argument is read from the first input that has it as a dimension, or solved for."""
        known = [(expr, targets[position]) for position, expr in self.schedule.numbers]
        for name in self.schedule.inputs:
            known += [] if name is None else self._extents(name)
        self._learn(known)

    def _extents(self, name: str) -> list[tuple[IndexLike, str]]:
        """Each symbolic extent and stride of a buffer, and the text of its value."""
        buffer, variable = self.schedule.table[name], self.variables[name]
        return [
            (value, f"{variable}.{attribute}[{dim}]")
            for attribute, values in (("shape", buffer.shape), ("stride()", buffer.strides))
            for dim, value in enumerate(values)
            if as_int(value) is None
        ]

    def _learn(self, known: Sequence[tuple[IndexLike, str]]) -> None:
        """Define every size that these values determine: those given as they are first, then c*s + r for s."""
        for name, text, factor, rest in solve_for_sizes(known, self.sizes):
            self.sizes[name] = self.names.fresh(name)
            value = text if rest == 0 else f"({text} - ({self._int(rest)}))"
            value = value if factor == 1 else f"{value} // {self._int(factor)}"
            self.lines.append(f"{self.sizes[name]} = {value}")

    def _new(self, buffer: Buffer) -> str:
        variable = self.names.fresh(buffer_hint(buffer))
        self.variables[buffer.name] = variable
        return variable

    def _allocate(self, allocation: Allocation) -> None:
        buffer = self.schedule.table[allocation.buffer]
        shape, strides = map(self._tuple, self._layout(buffer))
        if allocation.reuses is not None:
            old = self.variables.pop(allocation.reuses)
            variable = self._new(buffer)
            same = self._layout(self.schedule.table[allocation.reuses]) == self._layout(buffer)
            self.lines.append(f"{variable} = {old}" if same else f"{variable} = {old}.as_strided({shape}, {strides})")
            self.lines.append(f"del {old}")
            return
        if buffer.device not in self.empty:
            self.empty[buffer.device] = self.names.fresh("empty")
        variable = self._new(buffer)
        self.lines.append(f"{variable} = {self.empty[buffer.device]}({shape}, {strides}, {buffer.dtype})")

    def _layout(self, buffer: Buffer) -> Layout:
        """The shape and strides of the tensor that stands for a buffer."""
        return self.layouts.get(buffer.name, (buffer.shape, buffer.strides))

    def _free(self, dead: Sequence[str]) -> None:
        variables = [self.variables.pop(name) for name in dead if name in self.variables]
        moved = [self.moved.pop(key) for key in list(self.moved) if key[0] in dead]
        if variables or moved:
            self.lines.append(f"del {', '.join([*variables, *moved])}")

    # -- steps ------------------------------------------------------------------------------------

    def _launch(self, plan: KernelPlan, number: int) -> None:
        source = self.sources[number]
        # Equal kernels share a source; its pointers follow the order of each plan's own buffers.
        device = self._device(plan)
        arguments = [self._on_device(b, device) for b in plan.buffers]
        arguments += [self._size_param(p.passed) for p in source.params if p.kind == "size"]
        self._line(f"rt.launch[{number}](", arguments, ")", f"  # {source.name}")
        written = [self.variables[n] for n in plan.writes if self.schedule.table[n].role is Role.INPUT]
        if written:
            self._line("rt.written(", written, ")", "")

    def _size_param(self, name: str) -> str:
        if name not in self.sizes:
            raise FusecError(f"no input of {self.schedule.name} has the symbolic size {name} as a dimension")
        return self.sizes[name]

    def _device(self, plan: KernelPlan) -> str:
        devices = [self.schedule.table[b.name].device for b in plan.buffers]
        return next((d for d in devices if d != "cpu"), "cpu")

    def _on_device(self, buffer: Buffer, device: str) -> str:
        """A CPU scalar beside CUDA tensors is copied to their device once."""
        variable = self.variables[buffer.name]
        if self.schedule.table[buffer.name].device == device:
            return variable
        key = (buffer.name, device)
        if key not in self.moved:
            self.moved[key] = self.names.fresh(f"{variable}_moved")
            self.lines.append(f"{self.moved[key]} = {variable}.to({device!r})")
        return self.moved[key]

    def _extern(self, extern: Extern, number: int, dead: Sequence[str]) -> None:
        arguments = [self._argument(a) for a in extern.args]
        arguments += [f"{_identifier(k)}={self._argument(v)}" for k, v in extern.kwargs]
        unused = set(dead) - set(extern.reads) - set(extern.mutates)
        outputs = [None if o is None or o in unused else self.schedule.table[o] for o in extern.outputs]
        defined = dict(enumerate(extern.defines))
        targets = [
            self._output_variable(b) if b is not None else self._define(defined.get(i)) for i, b in enumerate(outputs)
        ]
        if len(targets) == 1:
            alone = _returns_tensor(extern) or extern.outputs == (None,)  # a call for its effect returns None
            left = f"{targets[0]} = " if alone else f"({targets[0]},) = "
        else:
            left = f"{', '.join(targets)} = " if targets else ""
        self._line(f"{left}rt.extern[{number}](", arguments, ")", f"  # {comment(str(extern.target))}")
        for buffer, variable in zip(outputs, targets, strict=True):
            if buffer is not None:
                self._learn(self._extents(buffer.name))  # a size that depends on values
                shape, strides = self._tuple(buffer.shape), self._tuple(buffer.strides)
                self.lines.append(f"{variable} = rt.restride({variable}, {shape}, {strides})")

    def _define(self, size: str | None) -> str:
        """The variable for a number that a call returns: "_" unless it is a size."""
        if size is None:
            return "_"
        self.sizes[size] = self.names.fresh(size)
        return self.sizes[size]

    def _output_variable(self, buffer: Buffer) -> str:
        return self.variables.get(buffer.name) or self._new(buffer)

    def _return(self) -> None:
        for output in self.schedule.outputs:
            if isinstance(output, TensorView) and output.buffer not in self.variables:
                self._allocate(Allocation(output.buffer))  # a buffer no step writes: it has no elements
        results = [self._output(o) for o in self.schedule.outputs]
        self.lines.append(f"return ({', '.join(results)}{',' if len(results) == 1 else ''})")

    def _output(self, output: Output) -> str:
        return self._view(output) if isinstance(output, TensorView) else self._argument(output)

    # -- text -------------------------------------------------------------------------------------

    def _line(self, head: str, arguments: Sequence[str], tail: str, note: str) -> None:
        """One call; over several lines when it is long."""
        line = f"{head}{', '.join(arguments)}{tail}{note}"
        if len(line) <= _MAX_LINE:
            self.lines.append(line)
            return
        self.lines += [f"{head}{note}", *(f"    {a}," for a in arguments), tail]

    def _argument(self, value: Any) -> str:
        """An argument as an expression; FusecError for a value that has no literal."""
        if isinstance(value, TensorView):
            return self._view(value)
        if isinstance(value, Expr):
            return self._int(value)
        if isinstance(value, Relation):
            return f"{self._int(value.left)} {value.op} {self._int(value.right)}"
        if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
            return f'float("{value}")'
        if value is None or isinstance(value, bool | int | float | str | complex) or value is ...:
            return repr(value) if value is not ... else "..."
        if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
            return str(value)
        if isinstance(value, torch.device):
            return f"torch.device({str(value)!r})"
        if isinstance(value, list | tuple):
            items = ", ".join(self._argument(v) for v in value)
            if isinstance(value, list):
                return f"[{items}]"
            return f"({items}{',' if len(value) == 1 else ''})"
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{k!r}: {self._argument(v)}" for k, v in value.items()) + "}"
        raise FusecError(f"a library call cannot be written with an argument of type {type(value).__name__}: {value!r}")

    def _view(self, view: TensorView) -> str:
        variable, buffer = self.variables[view.buffer], self.schedule.table[view.buffer]
        if (view.shape, view.strides) == self._layout(buffer) and view.offset == 0:
            return variable
        shape, strides = self._tuple(view.shape), self._tuple(view.strides)
        if view.offset == 0:
            return f"{variable}.as_strided({shape}, {strides})"
        return f"rt.view({variable}, {shape}, {strides}, {self._int(view.offset)})"

    def _tuple(self, values: Sequence[IndexLike]) -> str:
        items = [self._int(v) for v in values]
        return f"({', '.join(items)}{',' if len(items) == 1 else ''})"

    def _int(self, value: IndexLike) -> str:
        constant = as_int(value)
        if constant is not None:
            return str(constant)
        assert isinstance(value, Expr)
        unknown = [s.name for s in symbols_of(value) if s.name not in self.sizes]
        if unknown:
            raise FusecError(f"no input of {self.schedule.name} has the symbolic size {unknown[0]} as a dimension")
        return size_text(value, self.sizes)


def _layouts_of_readers(schedule: Schedule) -> dict[str, Layout]:
    """How calls and the caller see what a kernel makes, where all see it in one way, and of the same extent in memory.

    What is returned twice stays two tensors.
    """
    calls = [step for step in schedule.steps if isinstance(step, Extern)]
    returned = [v for v in schedule.outputs if isinstance(v, TensorView)]
    views = [v for call in calls for v in tensor_views((call.args, tuple(v for _, v in call.kwargs)))]
    seen: dict[str, set[TensorView]] = {}
    for view in (*views, *returned):
        seen.setdefault(view.buffer, set()).add(view)
    twice = {name for name, count in Counter(v.buffer for v in returned).items() if count > 1}
    kept = twice | {name for call in calls for name in call.outputs}
    found: dict[str, Layout] = {}
    for name in seen.keys() - kept:
        buffer, (view, *others) = schedule.table[name], seen[name]
        extent = _extent(view.shape, view.strides)
        if buffer.role not in (Role.TEMPORARY, Role.OUTPUT) or others or view.offset != 0 or extent is None:
            continue
        if extent == _extent(buffer.shape, buffer.strides):
            found[name] = view.shape, view.strides
    return found


def _extent(shape: Sequence[IndexLike], strides: Sequence[IndexLike]) -> int | None:
    """Elements from the first in memory to the last; None where it depends on sizes."""
    known = [as_int(n) for n in (*shape, *strides)]
    ints = [n for n in known if n is not None]
    return storage_size(ints[: len(shape)], ints[len(shape) :]) if len(ints) == len(known) else None


def _returns_tensor(extern: Extern) -> bool:
    """False when the op returns a list or tuple, even of one tensor."""
    schema = getattr(extern.target, "_schema", None)
    if schema is None:
        return True
    return len(schema.returns) == 1 and str(schema.returns[0].type) == "Tensor"


def _identifier(name: str) -> str:
    if not name.isidentifier():
        raise FusecError(f"a library call has an argument named {name!r}")
    return name
