"""Inner graphs: the branches of torch.cond, the bodies of while_loop, scan and map.

Enters: a captured graph. Leaves: the same graph with its inner graphs compiled, or taken into it.

    cond(pred, true_graph_0, false_graph_0, (x,))     true_graph_0: GraphModule -> CompiledSubgraph
    invoke_subgraph(g, "g", x)                    ->  the nodes of g

A control-flow op stays a call, made by PyTorch's own implementation: it chooses a branch, or loops, over functions.
Those are compiled like any other graph. Inner graphs of other ops (a score function of flex_attention, called under
vmap) stay as they are and run as eager PyTorch would.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from fusec.capture.graph import CapturedGraph, is_symbolic

__all__ = ["CompiledSubgraph", "compile_subgraphs", "inline_subgraphs"]

CONTROL_FLOW = ("cond", "while_loop", "scan", "map_impl")


class CompiledSubgraph(nn.Module):
    """A compiled inner graph in the place of its GraphModule. single: it returns a value, not a tuple of values."""

    def __init__(self, compiled: Callable[..., Any], single: bool) -> None:
        super().__init__()
        self.compiled, self.single = compiled, single

    def forward(self, *args: Any) -> Any:
        outputs = self.compiled(*args)
        return outputs[0] if self.single else tuple(outputs)


def compile_subgraphs(
    graph: CapturedGraph,
    compile_graph: Callable[[CapturedGraph], Callable[..., Any]],
    prepare: Callable[[GraphModule], None],
) -> None:
    """Compile the inner graphs of control flow; a graph with symbolic sizes inside stays as it is.

    prepare: what is done to every graph before it is compiled.
    """
    for path, inner in _inner_graphs(graph.graph_module):
        found = _captured(inner, f"{graph.name}_{path}")
        if found is None:
            continue
        prepare(inner)
        compile_subgraphs(found, compile_graph, prepare)
        outputs = next(n for n in inner.graph.nodes if n.op == "output").args[0]
        setattr(graph.graph_module, path, CompiledSubgraph(compile_graph(found), isinstance(outputs, Node)))


def _inner_graphs(module: GraphModule) -> list[tuple[str, GraphModule]]:
    found: dict[str, GraphModule] = {}
    for node in module.graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator) and node.target.name() in CONTROL_FLOW:
            for argument in node.all_input_nodes:
                inner = getattr(module, str(argument.target), None) if argument.op == "get_attr" else None
                if isinstance(inner, GraphModule):
                    found[str(argument.target)] = inner
    return list(found.items())


def _captured(inner: GraphModule, name: str) -> CapturedGraph | None:
    places = [n for n in inner.graph.nodes if n.op == "placeholder"]
    values = tuple(n.meta.get("val") for n in places)
    if is_symbolic(values) or not all(isinstance(v, torch.Tensor | int | float | bool) for v in values):
        return None
    return CapturedGraph(inner, values, tuple(str(n.target) for n in places), "inference", name)


def inline_subgraphs(module: GraphModule) -> None:
    """invoke_subgraph(g, name, *operands) -> the nodes of g: what it computes can then be fused with what is around."""
    graph, changed = module.graph, False
    for node in list(graph.nodes):
        if node.target is not torch.ops.higher_order.invoke_subgraph:
            continue
        inner = getattr(module, str(node.args[0].target))
        inline_subgraphs(inner)
        _take_in(graph, module, node, inner)
        changed = True
    if changed:
        graph.eliminate_dead_code()
        module.recompile()


def _take_in(graph: Graph, module: GraphModule, call: Node, inner: GraphModule) -> None:
    places = [n for n in inner.graph.nodes if n.op == "placeholder"]
    values: dict[Node, Any] = dict(zip(places, call.args[2:], strict=True))
    with graph.inserting_before(call):
        for node in inner.graph.nodes:
            if node.op == "output":
                results = [values[n] if isinstance(n, Node) else n for n in node.args[0]]
            elif node.op == "get_attr":
                path = f"{call.name}_{node.target}"
                setattr(module, path, getattr(inner, str(node.target)))
                values[node] = graph.get_attr(path)
                values[node].meta = dict(node.meta)
            elif node.op != "placeholder":
                values[node] = graph.node_copy(node, lambda n: values[n])
    for user in list(call.users):
        assert user.target is operator.getitem, user.format_node()
        position: Any = user.args[1]
        user.replace_all_uses_with(results[position])
        graph.erase_node(user)
    graph.erase_node(call)
