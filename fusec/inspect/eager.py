"""What eager mode would spend on a captured graph: kernel launches, bytes moved, peak memory.

Enters: an aten graph with fake tensors in node.meta["val"]. Leaves: `Totals`.

    gelu(x + b), x f32[1024]: 2 launches (add, gelu); 8 KiB + 8 KiB read and written; peak 8 KiB

Capture rewrites some aten ops into smaller ones (layer_norm into seven). Nodes that came from one aten
call carry it in node.meta["original_aten"]; they count as the one launch that eager makes. Views move
nothing and launch nothing. A tensor dies after its last reader, which is earlier than Python frees it:
the count favours eager.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fusec.ir.index import IndexLike, product
from fusec.ir.kernels import BufferPlan, KernelPlan, Schedule
from fusec.ir.sizes import hint_of
from fusec.ir.types import Buffer, Extern, TensorView, tensor_views
from fusec.lowering.symbols import NotSymbolic, extent_of, stride_of

__all__ = ["Totals", "eager_totals", "extern_bytes", "fused_totals"]


@dataclass(frozen=True, slots=True)
class Totals:
    """launches: kernels and library calls. bytes: read and written. peak: temporaries and outputs alive at once."""

    launches: int = 0
    bytes: int = 0
    peak: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(self.launches + other.launches, self.bytes + other.bytes, max(self.peak, other.peak))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _reach(tensor: torch.Tensor) -> int:
    """Distinct bytes a tensor's elements occupy, at the first call; an expanded dimension counts once."""
    count = 1
    for size, step in zip(tensor.shape, tensor.stride(), strict=True):
        try:
            extent, stride = hint_of(extent_of(size)), hint_of(stride_of(step))
        except NotSymbolic:
            return 0  # a size that fusec does not compute either: the graph runs for each tuple of sizes
        count *= extent if stride else min(extent, 1)
    return count * tensor.element_size()


def _size(node: fx.Node) -> int:
    return sum(_reach(t) for t in _tensors(node.meta.get("val")))


def _aliases(node: fx.Node) -> bool:
    """A view, or the pick of one tensor out of a tuple: no launch, no memory of its own."""
    target = node.target
    if getattr(target, "__name__", "") == "getitem":
        return True
    if target is _aten.copy_.default:  # capture's last step for a tensor that eager wrote in place
        return isinstance(node.args[0], fx.Node) and node.args[0].op == "placeholder"
    if isinstance(target, torch._ops.OpOverload):
        if target.is_view or target in _ALIASES:
            return True
        return target in _MAYBE_ALIASES and _same_layout(node)
    return False


_aten = torch.ops.aten
_ALIASES = {_aten._unsafe_view.default, _aten.lift_fresh_copy.default, _aten.detach.default}
_MAYBE_ALIASES = {_aten.reshape.default, _aten._to_copy.default}


def _same_layout(node: fx.Node) -> bool:
    source = node.args[0]
    if not isinstance(source, fx.Node) or node.target is _aten._to_copy.default:
        return False
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_contiguous()


def _storage_of(node: fx.Node) -> fx.Node:
    """The node whose memory this one shows."""
    while node.op == "call_function" and _aliases(node):
        inputs = [a for a in node.all_input_nodes if any(True for _ in _tensors(a.meta.get("val")))]
        if not inputs:
            return node
        node = inputs[0]
    return node


def _call_key(node: fx.Node) -> tuple[str, str]:
    """The aten op before it was rewritten, and the traced call it belongs to. By name: graphs are copied."""
    history = node.meta.get("from_node") or ()
    return str(node.meta.get("original_aten")), history[-1].name if history else str(node.meta.get("stack_trace"))


def eager_calls(graph: fx.Graph) -> list[list[fx.Node]]:
    """The nodes that launch, grouped by the aten call they came from."""
    calls: list[list[fx.Node]] = []
    for node in graph.nodes:
        if node.op != "call_function" or _aliases(node) or not any(True for _ in _tensors(node.meta.get("val"))):
            continue
        key = _call_key(node)
        rewritten = key[0] not in ("None", str(node.target))
        if calls and rewritten and _call_key(calls[-1][-1]) == key:
            calls[-1].append(node)
        else:
            calls.append([node])
    return calls


def eager_totals(graph_module: fx.GraphModule) -> Totals:
    """Launches, bytes and peak memory of the same graph run op by op."""
    graph = graph_module.graph
    calls = eager_calls(graph)
    position = {node: i for i, call in enumerate(calls) for node in call}
    last_use: dict[fx.Node, int] = {}
    for node in graph.nodes:
        for source in node.all_input_nodes:
            when = len(calls) if node.op == "output" else position.get(node, -1)  # a view is charged to its readers
            owner = _storage_of(source)
            last_use[owner] = max(last_use.get(owner, -1), when)
    moved = 0
    for i, call in enumerate(calls):
        inside = set(call)
        reads = {_storage_of(s): _size(s) for n in call for s in n.all_input_nodes if _storage_of(s) not in inside}
        writes = [n for n in call if last_use.get(n, -1) > i or n is call[-1]]
        moved += sum(reads.values()) + sum(_size(n) for n in writes)
    return Totals(len(calls), moved, _peak(calls, last_use))


def _peak(calls: list[list[fx.Node]], last_use: dict[fx.Node, int]) -> int:
    alive = peak = 0
    dies: dict[int, int] = {}
    for i, call in enumerate(calls):
        for node in call:
            end = last_use.get(node, i)
            if end > i or node is call[-1]:
                alive += _size(node)
                dies[max(end, i)] = dies.get(max(end, i), 0) + _size(node)
        peak = max(peak, alive)
        alive -= dies.pop(i, 0)
    return peak


# -- the same numbers for a Schedule --------------------------------------------------------------


def _count(extents: Iterable[IndexLike]) -> int:
    return hint_of(product(extents))


def _view_bytes(view: TensorView, table: dict[str, Buffer]) -> int:
    held = [n for n, s in zip(view.shape, view.strides, strict=True) if s != 0 or n == 0]
    return _count(held) * table[view.buffer].itemsize


def extern_bytes(extern: Extern, table: dict[str, Buffer]) -> tuple[int, int]:
    """(read, written) bytes of a library call: its operands and results, each once."""
    views = tensor_views((extern.args, tuple(v for _, v in extern.kwargs)))
    read = sum(_view_bytes(v, table) for v in dict.fromkeys(views))
    written = sum(_count(table[o].shape) * table[o].itemsize for o in extern.writes)
    return read, written


def fused_totals(schedule: Schedule, plan: BufferPlan) -> Totals:
    """Launches, bytes and peak memory of a Schedule."""
    moved = 0
    for step in schedule.steps:
        if isinstance(step, KernelPlan):
            moved += step.cost.bytes_read + step.cost.bytes_written
        else:
            moved += sum(extern_bytes(step, schedule.table))
    return Totals(len(schedule.steps), moved, plan.peak_bytes)
