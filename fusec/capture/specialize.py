"""A graph with symbolic sizes becomes the same graph for the sizes of one call.

Enters: a CapturedGraph with SymInts, and the arguments of a call. Leaves: a CapturedGraph of ints.

    mul = s0 * 2; view(x, [mul, 8])     with x: f32[5, 16]   ->   view(x, [10, 8])

Every node is evaluated once on fake tensors: what is a number becomes a constant, everything else is copied with its
metadata. Nothing is traced, so it may happen in any thread, at any time. One compiled version is kept for each tuple
of sizes (`signature`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from fusec.capture.graph import CapturedGraph

# torch._subclasses.fake_tensor: checked with torch 2.11.0 and 2.13.0.

__all__ = ["GraphCopier", "signature", "specialize"]

Signature = tuple[Any, ...]


def signature(inputs: Sequence[Any]) -> Signature:
    """What one specialisation depends on: numbers as they are, tensors by shape and strides."""
    return tuple((*x.shape, *x.stride()) if isinstance(x, torch.Tensor) else (type(x), x) for x in inputs)


def specialize(graph: CapturedGraph, inputs: Sequence[Any]) -> CapturedGraph:
    """`graph` for the sizes of `inputs`; node metadata (the user's lines) is kept."""
    mode = next((x.fake_mode for x in inputs if isinstance(x, FakeTensor)), None) or FakeTensorMode()
    arguments = tuple(_fake(x, mode) for x in inputs)
    copier = GraphCopier(graph.graph_module, mode)
    with mode, torch.no_grad():
        copier.run(arguments)
    static = GraphModule(graph.graph_module, copier.graph)
    return CapturedGraph(static, arguments, graph.names, graph.kind, graph.name)


def _fake(value: Any, mode: FakeTensorMode) -> Any:
    if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor):
        return value
    with torch.no_grad():
        return mode.from_tensor(value, static_shapes=True)


class GraphCopier:
    """One walk. values: what each node gives, a fake tensor or number. copies: its node in the new graph, or number."""

    def __init__(self, module: GraphModule, mode: FakeTensorMode) -> None:
        self.module, self.mode = module, mode
        self.graph = Graph()
        self.values: dict[Node, Any] = {}
        self.copies: dict[Node, Any] = {}

    def run(self, arguments: Sequence[Any]) -> None:
        remaining = iter(arguments)
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                value = next(remaining)
                copy = self._copy(node, value)
                symbolic = isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool)
                self.copies[node] = copy if symbolic or isinstance(value, torch.Tensor) else value
            elif node.op == "output":
                self.graph.output(map_arg(node.args[0], lambda n: self.copies[n]))
            elif node.op == "get_attr":
                self.copies[node] = self._copy(node, self.attribute(str(node.target)))
            else:
                self._call(node)

    def rewrite(self, node: Node) -> tuple[Callable[..., Any], Any, Any]:
        """(target, args, kwargs) of a call, in nodes of the old graph; a subclass may say something else."""
        assert callable(node.target), node.format_node()
        return node.target, node.args, node.kwargs

    def attribute(self, path: str) -> Any:
        """The value of a get_attr."""
        value: Any = self.module
        for part in path.split("."):
            value = getattr(value, part)
        return _fake(value, self.mode)

    def _call(self, node: Node) -> None:
        target, args, kwargs = self.rewrite(node)
        values = map_arg((args, kwargs), lambda n: self.values[n])
        value = target(*values[0], **values[1])
        if isinstance(value, int | float | bool):
            self.values[node] = self.copies[node] = value
            return
        args, kwargs = map_arg((args, kwargs), lambda n: self.copies[n])
        copy = self.graph.create_node("call_function", target, args, kwargs, node.name)
        self.copies[node] = self._described(copy, node, value)

    def _copy(self, node: Node, value: Any) -> Node:
        return self._described(self.graph.node_copy(node, lambda n: self.copies[n]), node, value)

    def _described(self, copy: Node, node: Node, value: Any) -> Node:
        self.values[node] = value
        copy.meta = {**node.meta, "val": value}
        return copy
