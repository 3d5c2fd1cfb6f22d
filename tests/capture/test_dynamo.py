"""The backend around AOTAutograd: which graphs it hands over, with which names, and that they compute the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusec.capture.dynamo import backend, graph_break_reason
from fusec.capture.graph import CapturedGraph, NotSymbolicGraph, is_symbolic, user_lines


class Recorder:
    """A compile_graph that keeps the graphs and runs them as they are; each_size: refuses those for all sizes."""

    def __init__(self, each_size: bool = False, **options: Any) -> None:
        self.each_size = each_size
        self.graphs: list[CapturedGraph] = []
        self.breaks: list[str | None] = []
        self.options = options

    def compile_graph(self, graph: CapturedGraph) -> Callable[..., Any]:
        if self.each_size and is_symbolic(graph.example_inputs):
            raise NotSymbolicGraph("sizes are wanted as numbers")
        self.graphs.append(graph)
        return graph.graph_module.forward

    def __call__(self, gm: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.breaks.append(graph_break_reason(gm))
        return backend(gm, inputs, compile_graph=self.compile_graph, **self.options)

    @property
    def ops(self) -> set[str]:
        return {str(n.target) for g in self.graphs for n in g.graph_module.graph.nodes if n.op == "call_function"}


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 8), nn.GELU())
        self.norm = nn.LayerNorm(8)
        self.register_buffer("scale", torch.full((8,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.inner(x)) * self.scale


def test_an_inference_graph_carries_the_users_names_and_lines() -> None:
    record, block, x = Recorder(), Block().eval(), torch.randn(5, 4)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(block, backend=record)(x), block(x))
    (graph,) = record.graphs
    assert graph.kind == "inference"
    assert set(graph.names) == {"x", "inner.0.weight", "inner.0.bias", "norm.weight", "norm.bias", "scale"}
    by_name = dict(zip(graph.names, graph.example_inputs, strict=True))
    assert by_name["inner.0.weight"].shape == (8, 4)
    assert any(line.startswith(__file__) for line in user_lines(graph.graph_module))
    assert "aten.native_layer_norm.default" not in record.ops and "aten.gelu.default" in record.ops


def test_gradients_come_from_a_forward_and_a_backward_graph() -> None:
    record, block, x = Recorder(), Block(), torch.randn(5, 4)
    torch.compile(block, backend=record)(x).square().sum().backward()
    got = [p.grad for p in block.parameters()]
    block.zero_grad()
    block(x).square().sum().backward()
    torch.testing.assert_close(got, [p.grad for p in block.parameters()], rtol=1e-3, atol=1e-4)
    assert [g.kind for g in record.graphs] == ["forward", "backward"]
    assert record.graphs[1].name == "graph_backward" and "grad_1" in record.graphs[1].names
    assert "norm.weight" in record.graphs[1].names


def test_a_graph_break_is_two_graphs_and_says_why() -> None:
    def fn(x: Tensor) -> Tensor:
        y = x.sin()
        torch._dynamo.graph_break()
        return y.cos()

    record, x = Recorder(), torch.randn(7)
    torch.testing.assert_close(torch.compile(fn, backend=record)(x), fn(x))
    assert len(record.graphs) == 2
    assert record.breaks[0] is not None and __file__ in record.breaks[0] and record.breaks[1] is None


def test_changing_sizes_are_specialised_once_each() -> None:
    def fn(x: Tensor) -> Tensor:
        return torch.softmax(x, -1) * x.shape[0]

    record = Recorder(each_size=True)
    compiled = torch.compile(fn, backend=record)
    for n in (3, 5, 7, 5, 3, 7):
        x = torch.randn(n, n + 1)
        torch.testing.assert_close(compiled(x), fn(x))
    assert len(record.graphs) == 4  # 3 before Dynamo saw it change; then 5, 7 and 3 once each
    assert all(
        type(s) is int for g in record.graphs for t in g.example_inputs if isinstance(t, Tensor) for s in t.shape
    )


def test_one_symbolic_graph_serves_all_sizes() -> None:
    record = Recorder()
    compiled = torch.compile(lambda x: torch.softmax(x, -1) * x.shape[0], backend=record)
    for n in (3, 5, 7, 5, 3, 7):
        x = torch.randn(n, n + 1)
        torch.testing.assert_close(compiled(x), torch.softmax(x, -1) * n)
    assert [is_symbolic(g.example_inputs) for g in record.graphs] == [False, True]


def test_training_with_changing_sizes() -> None:
    record, block = Recorder(each_size=True), Block()
    compiled = torch.compile(block, backend=record)
    for n in (3, 5, 6):
        x = torch.randn(n, 4)
        block.zero_grad()
        compiled(x).sum().backward()
        got = [p.grad for p in block.parameters()]
        block.zero_grad()
        block(x).sum().backward()
        torch.testing.assert_close(got, [p.grad for p in block.parameters()], rtol=1e-3, atol=1e-4)
    assert [g.kind for g in record.graphs].count("backward") == 3


def test_beyond_the_version_limit_new_sizes_run_the_aten_graph() -> None:
    told: list[tuple[str, str]] = []
    record = Recorder(each_size=True, version_limit=2, on_eager=lambda graph, reason: told.append((graph.name, reason)))
    compiled = torch.compile(lambda x: x.exp() * 2, backend=record, dynamic=True)
    for n in range(3, 9):
        x = torch.randn(n)
        torch.testing.assert_close(compiled(x), x.exp() * 2)
    assert len(record.graphs) == 2
    assert told == [("graph", "was compiled for 2 tuples of sizes; new sizes run as eager PyTorch would")]


def test_a_tensor_literal_is_a_constant_of_the_graph() -> None:
    record, x = Recorder(), torch.randn(3)
    fn = torch.compile(lambda x: x + torch.tensor([1.0, 2.0, 3.0]), backend=record)
    torch.testing.assert_close(fn(x), x + torch.tensor([1.0, 2.0, 3.0]))
    assert "aten.lift_fresh_copy.default" not in record.ops
    assert [n.op for n in record.graphs[0].graph_module.graph.nodes].count("get_attr") == 1


def test_an_input_changed_in_place_changes() -> None:
    def fn(x: Tensor) -> Tensor:
        x.add_(1)
        return x * 2

    x = torch.zeros(4)
    out = torch.compile(fn, backend=Recorder())(x)
    assert x.tolist() == [1.0] * 4 and out.tolist() == [2.0] * 4


def test_numbers_that_change_are_still_right() -> None:
    fn = torch.compile(lambda x, a: x * a + 1, backend=Recorder())
    for a in (1, 2, 3, 0.5, 0.25, 0.125):
        torch.testing.assert_close(fn(torch.ones(3), a), torch.ones(3) * a + 1)


def test_threads_specialise_at_the_same_time() -> None:
    record, errors = Recorder(), []
    fn = torch.compile(lambda x: torch.softmax(x * 2, -1), backend=record)

    def work(n: int) -> None:
        try:
            for k in range(4):
                x = torch.randn(n, 4 + k)
                torch.testing.assert_close(fn(x), torch.softmax(x * 2, -1))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in (2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
