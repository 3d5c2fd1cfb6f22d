"""A symbolic graph traced again for the sizes of one call."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from fusec.capture.graph import CapturedGraph, is_symbolic
from fusec.capture.specialize import signature, specialize


def flatten(x: torch.Tensor) -> torch.Tensor:
    return (x.reshape(x.shape[0] * x.shape[1]) + x.shape[0]).relu()


def symbolic_graph(fn: Callable[[torch.Tensor], torch.Tensor] = flatten) -> CapturedGraph:
    gm = make_fx(fn, tracing_mode="symbolic")(torch.randn(4, 6))
    value = next(n for n in gm.graph.nodes if n.op == "placeholder").meta["val"]
    return CapturedGraph(gm, (value,), ("x",), "inference", "g")


def test_sizes_become_ints_and_the_answer_stays() -> None:
    graph = symbolic_graph()
    assert is_symbolic(graph.example_inputs)
    x = torch.randn(5, 7)
    static = specialize(graph, [x])
    torch.testing.assert_close(static.graph_module(x), (x.reshape(35) + 5).relu())
    shapes = [s for n in static.graph_module.graph.nodes if "val" in n.meta for s in n.meta["val"].shape]
    assert shapes and all(type(s) is int for s in shapes)
    assert (static.names, static.kind, static.name) == (graph.names, graph.kind, graph.name)


def test_strides_of_the_inputs_are_kept() -> None:
    static = specialize(symbolic_graph(torch.sin), [torch.randn(7, 5).t()])
    assert static.example_inputs[0].stride() == (1, 5)


def test_signature_tells_sizes_strides_and_numbers_apart() -> None:
    x = torch.ones(2, 3)
    assert signature([x, 4]) == signature([torch.zeros(2, 3), 4])
    assert len({signature([x, 4]), signature([x, 5]), signature([x.t(), 4]), signature([x.t().contiguous(), 4])}) == 4
