"""What the IR means, on CPU tensors: the reference that generated kernels are held against.

Enters: a Program or a Schedule and the tensors it is called with. Leaves: its outputs.

    nest n0 (p0<64, r0<4096):          each value is a tensor over the axes, of size 1 where it does not vary
      %0:f32 = load x[4096*p0 + r0]      [64, 4096]
      %1:f32 = sum %0 over r0            [64, 1]
      store ss[p0], %1                   64 writes

A buffer is a flat tensor, its storage: element i of it is what the address i means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from math import prod
from typing import Any

import torch

from fusec.errors import IndexOutOfRange
from fusec.ir import index as ix
from fusec.ir.index import Expr, IndexLike
from fusec.ir.kernels import KernelPlan, Schedule
from fusec.ir.modes import real_tensors
from fusec.ir.ops import OPS, OpKind, identity
from fusec.ir.types import AccessMode, Axis, Buffer, Extern, Instr, LoopNest, Output, Program, TensorView

__all__ = ["evaluate_nest", "evaluate_program", "evaluate_schedule", "storage_size"]

_EXTREMES = {AccessMode.ATOMIC_MAX: "amax", AccessMode.ATOMIC_MIN: "amin"}

Memory = MutableMapping[str, torch.Tensor]
Observer = Callable[[str, Instr, torch.Tensor], None]
Sizes = Mapping[str, int]


def _broadcast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    result: tuple[torch.Tensor, ...] = torch.broadcast_tensors(*tensors)
    return result


class _Nest:
    """The values of one nest while its lines are evaluated."""

    def __init__(
        self, name: str, axes: Sequence[Axis], table: Mapping[str, Buffer], memory: Memory, sizes: Sizes
    ) -> None:
        self.name = name
        self.table = table
        self.memory = memory
        self.sizes = sizes
        self.extents = tuple(_int(a.extent, sizes) for a in axes)
        self.position = {a.name: i for i, a in enumerate(axes)}
        self.rank = len(self.extents)
        self.values: dict[str, torch.Tensor] = {}

    def symbol(self, name: str) -> Any:
        """An axis as 0..extent-1 along its dimension, an SSA value, or a size."""
        if name in self.position:
            dim = self.position[name]
            shape = [1] * self.rank
            shape[dim] = self.extents[dim]
            return torch.arange(self.extents[dim]).view(shape)
        return self.values[name].to(torch.int64) if name in self.values else self.sizes[name]

    def offsets(self, expr: Expr) -> torch.Tensor:
        """An index expression as an int64 tensor over the axes."""
        value = ix.evaluate(expr, self.symbol)
        return value if isinstance(value, torch.Tensor) else torch.full([1] * self.rank, value, dtype=torch.int64)

    def run(self, instr: Instr) -> torch.Tensor | None:
        if instr.op == "store":
            self.store(instr)
            return None
        info = OPS[instr.op]
        operands = [self.values[a] for a in instr.args]
        if instr.op == "const":
            return torch.full([1] * self.rank, instr.attr("value"), dtype=instr.dtype)
        if instr.op == "index":
            return self.offsets(instr.attr("expr"))
        if instr.op == "load":
            return self.load(instr)
        if instr.op == "cast":
            return operands[0].to(instr.dtype)
        if instr.op == "bitcast":
            return operands[0].view(instr.dtype)
        if info.kind is OpKind.CHECK:
            if not operands[0].all():
                raise IndexOutOfRange(f"{self.name}: an index is out of range")
            return operands[1]
        if info.kind is OpKind.REDUCTION:
            return self.reduce(instr, operands)
        if info.kind is OpKind.SCAN:
            return self.scan(instr, operands)
        assert info.evaluate is not None, f"no meaning for {instr.op}"
        return info.evaluate(*operands)

    def load(self, instr: Instr) -> torch.Tensor:
        assert instr.access is not None
        storage, index = self.memory[instr.access.buffer], self.offsets(instr.access.index)
        if storage.numel() == 0 and 0 in self.extents:
            return torch.zeros(index.shape, dtype=instr.dtype)  # of no point; nothing can be read
        if not instr.args:
            return storage[index]
        mask, index = _broadcast(self.values[instr.args[0]], index)
        other = torch.tensor(instr.attr("other", 0), dtype=instr.dtype)
        result = torch.full(index.shape, other.item(), dtype=instr.dtype)
        result[mask] = storage[index[mask]]
        return result

    def store(self, instr: Instr) -> None:
        """Writes at the points of the axes that address, value or mask vary over; converts to the buffer's dtype."""
        assert instr.access is not None
        storage = self.memory[instr.access.buffer]
        if storage.numel() == 0:
            return
        operands = [self.values[a] for a in instr.args]
        index = self.over(instr.axes, self.offsets(instr.access.index))  # a sum takes in every point of these
        index, value, *mask = _broadcast(index, *operands)
        if mask:
            index, value = index[mask[0]], value[mask[0]]
        index, value = index.reshape(-1), value.reshape(-1).to(storage.dtype)
        if instr.access.mode in _EXTREMES:
            storage.scatter_reduce_(0, index, value, _EXTREMES[instr.access.mode])
        else:
            storage.index_put_((index,), value, accumulate=instr.access.mode is AccessMode.ATOMIC_ADD)

    def over(self, axes: Sequence[str], value: torch.Tensor) -> torch.Tensor:
        """The value at every point of these axes, also where it does not vary along them."""
        dims = {self.position[a] for a in axes}
        return value.expand([self.extents[d] if d in dims else value.shape[d] for d in range(self.rank)])

    def reduce(self, instr: Instr, operands: list[torch.Tensor]) -> torch.Tensor:
        # A value that does not vary along a reduced axis still counts once a point: sum of 1 over r0<8 is 8.
        dims = tuple(sorted(self.position[a] for a in instr.reduced_axes))
        full = [self.over(instr.reduced_axes, t) for t in operands]
        if any(self.extents[d] == 0 for d in dims):
            shape = [1 if d in dims else n for d, n in enumerate(_broadcast(*full)[0].shape)]
            empty = 0 if instr.op in ("argmax", "argmin") else identity(instr.op, instr.dtype)
            return torch.full(shape, empty, dtype=instr.dtype)
        evaluate = OPS[instr.op].evaluate
        assert evaluate is not None
        return evaluate(*full, dims) if dims else full[0]

    def scan(self, instr: Instr, operands: list[torch.Tensor]) -> torch.Tensor:
        """The axes it runs along become the last dimension, in their order, and go back to their places."""
        dims = [self.position[a] for a in instr.scanned_axes]
        full = _broadcast(*(self.over(instr.scanned_axes, t) for t in operands))
        rest = [d for d in range(self.rank) if d not in dims]
        moved = [t.permute([*rest, *dims]) for t in full]
        shape = moved[0].shape
        evaluate = OPS[instr.op].evaluate
        assert evaluate is not None
        flat = evaluate(*(t.reshape([*shape[: len(rest)], prod(shape[len(rest) :])]) for t in moved))
        return flat.reshape(shape).permute([[*rest, *dims].index(d) for d in range(self.rank)])


def evaluate_nest(
    axes: Sequence[Axis],
    body: Sequence[Instr],
    table: Mapping[str, Buffer],
    memory: Memory,
    *,
    name: str = "",
    on_value: Observer | None = None,
    sizes: Sizes | None = None,
) -> None:
    """Run the lines of a nest or a kernel over its axes, reading and writing `memory` (flat storages) in place.

    on_value(name, instr, tensor) sees every value; the tensor has one dimension an axis.
    """
    nest = _Nest(name, axes, table, memory, sizes or {})
    for instr in body:
        value = nest.run(instr)
        if value is None:
            continue
        assert instr.out is not None
        assert value.dtype == instr.dtype, f"{name}: {instr.op} gave {value.dtype}, {instr.out} says {instr.dtype}"
        nest.values[instr.out] = value
        if on_value is not None:
            on_value(name, instr, value)


# -- buffers and storages -------------------------------------------------------------------------


def _int(value: IndexLike, sizes: Sizes) -> int:
    return int(ix.evaluate(value, sizes))


def _ints(values: Sequence[IndexLike], sizes: Sizes) -> list[int]:
    return [_int(v, sizes) for v in values]


def storage_size(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to the last one of a strided buffer, both included."""
    return 0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))


def _allocate(buffer: Buffer, sizes: Sizes) -> torch.Tensor:
    return torch.zeros(storage_size(_ints(buffer.shape, sizes), _ints(buffer.strides, sizes)), dtype=buffer.dtype)


def _write(storage: torch.Tensor, buffer: Buffer, value: torch.Tensor, sizes: Sizes) -> None:
    """Copy a tensor of any strides to where the buffer's strides say; an expanded buffer keeps one element."""
    shape, strides = _ints(buffer.shape, sizes), _ints(buffer.strides, sizes)
    if list(value.shape) != shape:
        raise ValueError(f"{buffer.name} has shape {tuple(shape)}, got a tensor of shape {tuple(value.shape)}")
    if storage.numel() == 0:
        return
    offsets = torch.zeros([1] * len(shape), dtype=torch.int64)
    for dim, (extent, stride) in enumerate(zip(shape, strides, strict=True)):
        offsets = offsets + stride * torch.arange(extent).view([-1 if d == dim else 1 for d in range(len(shape))])
    storage[offsets.reshape(-1)] = value.detach().to("cpu", storage.dtype).reshape(-1)


def _view(memory: Memory, view: TensorView, sizes: Sizes) -> torch.Tensor:
    storage = memory[view.buffer]
    shape, strides = _ints(view.shape, sizes), _ints(view.strides, sizes)
    if 0 in shape:
        return torch.empty(shape, dtype=storage.dtype)
    return storage.as_strided(shape, strides, _int(view.offset, sizes))


# -- whole programs -------------------------------------------------------------------------------


def evaluate_program(
    program: Program, inputs: Sequence[Any], *, on_value: Observer | None = None, sizes: Sizes | None = None
) -> list[Any]:
    """The outputs of a Program for these inputs: tensors, ints and None as `program.outputs` says."""
    return _evaluate(program, program.nodes, inputs, on_value, sizes or {})


def evaluate_schedule(
    schedule: Schedule, inputs: Sequence[Any], *, on_value: Observer | None = None, sizes: Sizes | None = None
) -> list[Any]:
    """The outputs of a Schedule, each kernel's body evaluated as a nest over the kernel axes."""
    return _evaluate(schedule, schedule.steps, inputs, on_value, sizes or {})


def _evaluate(
    graph: Program | Schedule,
    steps: Sequence[LoopNest | KernelPlan | Extern],
    inputs: Sequence[Any],
    on_value: Observer | None,
    sizes: Sizes,
) -> list[Any]:
    with real_tensors(), torch.no_grad():
        memory = _prepare(graph, inputs, sizes)
        for step in steps:
            if isinstance(step, Extern):
                _call(step, graph.table, memory, sizes)
                continue
            for nest in step.leaves if isinstance(step, KernelPlan) else (step,):
                evaluate_nest(nest.axes, nest.body, graph.table, memory, name=nest.name, on_value=on_value, sizes=sizes)
        return _results(graph.outputs, memory, sizes)


def _prepare(graph: Program | Schedule, inputs: Sequence[Any], sizes: Sizes) -> dict[str, torch.Tensor]:
    if len(inputs) != len(graph.inputs):
        raise ValueError(f"{graph.name} takes {len(graph.inputs)} arguments, got {len(inputs)}")
    memory = {b.name: _allocate(b, sizes) for b in graph.buffers}
    given = [(n, v) for n, v in zip(graph.inputs, inputs, strict=True) if n is not None]
    for name, value in (*given, *graph.constants):
        _write(memory[name], graph.table[name], value, sizes)
    return memory


def _call(extern: Extern, table: Mapping[str, Buffer], memory: Memory, sizes: Sizes) -> None:
    """Call the target with real tensors and copy what it returns to the output buffers."""

    def real(value: Any) -> Any:
        if isinstance(value, TensorView):
            return _view(memory, value, sizes)
        if isinstance(value, Expr):
            return _int(value, sizes)
        if isinstance(value, torch.device):
            return torch.device("cpu")
        if isinstance(value, dict):
            return {k: real(v) for k, v in value.items()}
        return type(value)(real(v) for v in value) if type(value) in (tuple, list) else value

    result = extern.target(*(real(a) for a in extern.args), **{k: real(v) for k, v in extern.kwargs})
    results = result if isinstance(result, tuple | list) else (result,)
    for name, value in zip(extern.outputs, results, strict=True) if extern.outputs else ():
        if name is not None and isinstance(value, torch.Tensor):
            _write(memory[name], table[name], value, sizes)


def _results(outputs: Sequence[Output], memory: Memory, sizes: Sizes) -> list[Any]:
    def real(output: Output) -> Any:
        if output is None:
            return None
        return _view(memory, output, sizes) if isinstance(output, TensorView) else _int(output, sizes)

    return [real(o) for o in outputs]
