"""Each kernel beside eager mode: the first value that differs, inside fused kernels too.

Enters: a GraphRecord, its Executable, real inputs. Leaves: a `Replay`, which prints as

    replay of graph_0: 7 launches, 31 values inside them and 9 buffers compared
    first difference: kernel add_layer_norm, value %7 = mul (aten.mul.Tensor), model.py:31: y = x * scale
      at (3, 17): eager 0.482, here 0.964; largest difference 1.93 in 102 of 102 values

The aten graph is interpreted op by op; every node's value is kept. Then the program runs as it always
does, and at every launch three things are compared: each SSA line of the plan, evaluated, with the node
it came from; each buffer the kernel wrote with what its plan says (a defect of the generated text); and
with the node that the buffer holds. A line is the value of a node when it is the last one that the node
gave rise to. Axes of a kernel may be in another order than a tensor's dimensions: all orders are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import torch
from torch import fx

from fusec.inspect.rows import GraphRecord
from fusec.ir.evaluate import evaluate_nest, storage_size
from fusec.ir.index import as_int
from fusec.ir.kernels import KernelPlan, KernelSource
from fusec.ir.types import Buffer, Instr, Origin
from fusec.runtime.executable import Executable

__all__ = ["Difference", "Replay", "replay_graph"]

MAX_RANK = 5  # orders of the axes that are tried: 120

# (relative, absolute) by the coarsest floating dtype that a kernel touches: where eager rounds to it between two
# ops, a fused chain does not, so float32 values computed from bfloat16 ones agree to bfloat16's precision only.
TOLERANCE = {
    torch.float64: (1e-9, 1e-9),
    torch.float32: (1e-4, 1e-5),
    torch.float16: (1e-2, 2e-3),
    torch.bfloat16: (5e-2, 2e-2),
}


@dataclass(frozen=True)
class Difference:
    """One value that is not what eager computes. where: "value" (inside), "text" or "buffer" (written)."""

    kernel: str
    where: str
    name: str  # "%7 = mul", or a buffer
    origin: Origin | None
    index: tuple[int, ...]
    expected: float
    got: float
    largest: float
    wrong: int
    count: int

    def __str__(self) -> str:
        o = self.origin
        line = "" if o is None else f" ({o.op}), {o.file}:{o.line}: {o.code}" if o.file else f" ({o.op})"
        against = "the plan says" if self.where == "text" else "eager"
        what = {"value": "value", "text": "the text writes", "buffer": "buffer"}[self.where]
        return (
            f"kernel {self.kernel}, {what} {self.name}{line}\n"
            f"  at {self.index}: {against} {self.expected:.6g}, here {self.got:.6g}; "
            f"largest difference {self.largest:.3g}, {self.wrong} of {self.count} values"
        )


@dataclass(frozen=True)
class Replay:
    """What was compared, and every difference in the order it appeared."""

    name: str
    launches: int
    values: int
    buffers: int
    differences: tuple[Difference, ...] = ()

    @property
    def first(self) -> Difference | None:
        return self.differences[0] if self.differences else None

    def __bool__(self) -> bool:
        """True when everything agrees."""
        return not self.differences

    def __str__(self) -> str:
        head = (
            f"replay of {self.name}: {self.launches} launches, {self.values} values inside them "
            f"and {self.buffers} buffers compared"
        )
        return f"{head}\nfirst difference: {self.first}" if self.differences else f"{head}: all agree with eager"


def replay_graph(record: GraphRecord, executable: Executable, inputs: Sequence[Any]) -> Replay:
    """Run a compiled graph once on `inputs` and compare it with its aten graph, launch by launch."""
    watch = _Watch(record, _node_values(record.captured.graph_module, inputs))
    original = executable.runtime
    sources = [kernel.source for kernel in executable.kernels]
    launches = tuple(
        watch.around(plan, launch, source)
        for plan, launch, source in zip(record.plans, original.launch, sources, strict=True)
    )
    executable.runtime = replace(original, launch=launches)
    try:
        executable(*inputs)
    finally:
        executable.runtime = original
    return Replay(record.captured.name, watch.launches, watch.values, watch.buffers, tuple(watch.differences))


class _Recorder(fx.Interpreter):
    """Keeps what every node gave, copied: a later op may write in place."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.found: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.found[n.name] = fx.node.map_aggregate(
            result, lambda v: v.detach().cpu().clone() if isinstance(v, torch.Tensor) else v
        )
        return result


def _node_values(module: fx.GraphModule, inputs: Sequence[Any]) -> dict[str, Any]:
    recorder = _Recorder(module)
    with torch.no_grad(), torch.random.fork_rng():
        recorder.run(*(x.clone() if isinstance(x, torch.Tensor) else x for x in inputs))  # some are written
    return recorder.found


class _Watch:
    """Compares at every launch."""

    def __init__(self, record: GraphRecord, eager: Mapping[str, Any]) -> None:
        self.table = record.schedule.table
        self.eager = eager
        self.launches = self.values = self.buffers = 0
        self.differences: list[Difference] = []

    def around(self, plan: KernelPlan, launch: Callable[..., None], source: KernelSource) -> Callable[..., None]:
        names = [p.passed for p in source.params if p.kind == "size"]

        def run(*arguments: Any) -> None:
            tensors = arguments[: len(plan.buffers)]
            sizes = dict(zip(names, arguments[len(plan.buffers) :], strict=True))
            memory = {b.name: _storage(t, b) for b, t in zip(plan.buffers, tensors, strict=True)}
            launch(*arguments)
            self.launches += 1
            for leaf in plan.leaves:
                self.evaluate(leaf, memory, sizes)
            self.compare_buffers(plan, tensors, memory)

        return run

    def evaluate(self, plan: KernelPlan, memory: dict[str, torch.Tensor], sizes: Mapping[str, int]) -> None:
        """Run a plan's lines on a copy of memory, each value that is a node's beside eager's."""
        last = _last_lines(plan)

        def on_value(_: str, instr: Instr, value: torch.Tensor) -> None:
            if instr.origin is not None and last.get(instr.origin.node) is instr:
                self.compare_value(plan, instr, value)

        evaluate_nest(plan.axes, plan.body, self.table, memory, name=plan.name, on_value=on_value, sizes=sizes)

    def compare_value(self, plan: KernelPlan, instr: Instr, value: torch.Tensor) -> None:
        assert instr.origin is not None
        candidates = [t for t in _tensors(self.eager.get(instr.origin.node)) if t.numel() == value.numel()]
        if not candidates or value.numel() == 0:
            return
        self.values += 1
        best: Difference | None = None
        dtype = _coarsest(plan, candidates[0].dtype)
        for expected in candidates:
            for ordered in _orders(value):
                name = f"{instr.out} = {instr.op}"
                got = ordered.reshape(expected.shape)
                found = _compare(plan.name, "value", name, instr.origin, expected, got, dtype)
                if found is None:
                    return
                best = found if best is None or found.wrong < best.wrong else best
        if best is not None:
            self.differences.append(best)

    def compare_buffers(self, plan: KernelPlan, tensors: Sequence[Any], memory: Mapping[str, torch.Tensor]) -> None:
        lines = (i for leaf in plan.leaves for i in leaf.body)
        origins = {i.access.buffer: i.origin for i in lines if i.access is not None and i.op != "load"}
        for buffer, tensor in zip(plan.buffers, tensors, strict=True):
            if buffer.name not in plan.writes:
                continue
            self.buffers += 1
            origin = origins[buffer.name]
            shape, strides = _layout(tensor, buffer)
            got = tensor.detach().cpu().as_strided(shape, strides)
            said = memory[buffer.name].as_strided(shape, strides) if got.numel() else got
            found = _compare(plan.name, "text", buffer.name, origin, said, got, got.dtype)
            eager = [t for t in _tensors(self.eager.get(origin.node)) if t.shape == got.shape] if origin else []
            dtype = _coarsest(plan, got.dtype)
            against = [_compare(plan.name, "buffer", buffer.name, origin, t, got, dtype) for t in eager]
            if found is not None:
                self.differences.append(found)
            elif against and all(a is not None for a in against):
                self.differences.append(min((a for a in against if a is not None), key=lambda a: a.wrong))


def _coarsest(plan: KernelPlan, dtype: torch.dtype) -> torch.dtype:
    """`dtype` itself when it is exact, else the floating dtype of fewest bits among it and the kernel's buffers."""
    if not dtype.is_floating_point:
        return dtype
    return min((dtype, *(b.dtype for b in plan.buffers if b.dtype.is_floating_point)), key=lambda d: d.itemsize)


def _last_lines(plan: KernelPlan) -> dict[str, Instr]:
    """By node name, the last SSA line it gave rise to: the node's value."""
    return {i.origin.node: i for i in plan.body if i.origin is not None and i.out is not None}


def _storage(tensor: torch.Tensor, buffer: Buffer) -> torch.Tensor:
    """A flat copy of a buffer's memory, first element to last."""
    count = storage_size(*_layout(tensor, buffer))
    return tensor.detach().as_strided((count,), (1,)).cpu().clone()


def _layout(tensor: torch.Tensor, buffer: Buffer) -> tuple[list[int], list[int]]:
    """Shape and strides of a buffer: its own, or where they are symbolic those of the tensor that stands for it."""
    shape, strides = [as_int(n) for n in buffer.shape], [as_int(n) for n in buffer.strides]
    if None in shape or None in strides:
        return list(tensor.shape), list(tensor.stride())
    return [n for n in shape if n is not None], [n for n in strides if n is not None]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _orders(value: torch.Tensor) -> Iterator[torch.Tensor]:
    """The value with its axes in every order, the kernel's own first."""
    value = value.squeeze()
    if value.dim() > MAX_RANK:
        yield value
        return
    for order in permutations(range(value.dim())):
        yield value.permute(order)


def _compare(
    kernel: str,
    where: str,
    name: str,
    origin: Origin | None,
    expected: torch.Tensor,
    got: torch.Tensor,
    dtype: torch.dtype,
) -> Difference | None:
    """None when they agree within the tolerance of `dtype`; NaN equals NaN."""
    if expected.numel() == 0:
        return None
    relative, absolute = TOLERANCE.get(dtype, (0.1, 0.1)) if dtype.is_floating_point else (0.0, 0.0)
    a, b = expected.double(), got.double()
    close = torch.isclose(b, a, rtol=relative, atol=absolute, equal_nan=True)
    if bool(close.all()):
        return None
    flat = int(torch.nonzero(~close.reshape(-1))[0])
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), expected.shape))
    largest = (a - b).abs()[~close].nan_to_num(float("inf")).max()
    return Difference(
        kernel,
        where,
        name,
        origin,
        index,
        a.reshape(-1)[flat].item(),
        b.reshape(-1)[flat].item(),
        largest.item(),
        int((~close).sum()),
        close.numel(),
    )
