"""Inputs written in place: which updates are, which must not be, and that values are those of eager mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fusec.capture.dynamo import backend
from fusec.capture.graph import CapturedGraph
from fusec.capture.inplace import mutated_inputs


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(fn: Callable[..., Any], graphs: list[CapturedGraph], **options: Any) -> Callable[..., Any]:
    def compile_graph(graph: CapturedGraph) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.graph_module.forward

    return torch.compile(fn, backend=lambda gm, x: backend(gm, x, compile_graph=compile_graph), **options)


def ops(graph: CapturedGraph) -> list[str]:
    return [str(n.target).removeprefix("aten.") for n in graph.graph_module.graph.nodes if n.op == "call_function"]


def same_as_eager(fn: Callable[..., Any], *inputs: Any, **options: Any) -> CapturedGraph:
    """Run both on copies; results and inputs afterwards agree. Returns the graph."""
    graphs: list[CapturedGraph] = []
    ours, theirs = ([x.clone() if isinstance(x, Tensor) else x for x in inputs] for _ in range(2))
    with torch.no_grad():
        got, expected = compiled(fn, graphs, **options)(*ours), fn(*theirs)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(ours, theirs)
    return graphs[-1]


CACHE, ROW, AT = torch.randn(2, 6, 3), torch.randn(2, 1, 3), torch.tensor([4])


def append(cache: Tensor, row: Tensor, at: Tensor) -> Tensor:
    cache.index_copy_(1, at, row)
    return cache.sum(1)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_cache_takes_a_row_in_place(dynamic: bool) -> None:
    graph = same_as_eager(append, CACHE, ROW, AT, dynamic=dynamic)
    assert "index_put_.default" in ops(graph) and not {"copy_.default", "index_put.default"} & set(ops(graph))
    assert [graph.names[i] for i in mutated_inputs(graph.graph_module)] == ["cache"]


def test_a_slice_is_written_through_its_view() -> None:
    def fn(cache: Tensor, row: Tensor) -> Tensor:
        cache[:, 2:3] = row
        return cache * 2

    graph = same_as_eager(fn, CACHE, ROW)
    assert "slice_scatter.default" not in ops(graph)
    assert [graph.names[i] for i in mutated_inputs(graph.graph_module)] == ["cache"]


def test_a_slice_of_a_slice_is_all_that_is_written() -> None:
    def fn(cache: Tensor, row: Tensor) -> Tensor:
        cache[:, 2:3].mul_(3)
        cache[1][2:4, 0] = row[0, 0, :2]
        return cache * 2

    graph = same_as_eager(fn, CACHE, ROW)
    assert not any("scatter" in op for op in ops(graph))


def test_several_writes_in_turn() -> None:
    def fn(cache: Tensor, row: Tensor, at: Tensor) -> Tensor:
        cache[0] = 7
        cache.index_copy_(1, at, row)
        cache[:, :1].mul_(3)
        cache.scatter_(2, torch.zeros(2, 6, 1, dtype=torch.int64), 5.0)
        return cache.mean()

    graph = same_as_eager(fn, CACHE, ROW, AT)
    assert not any("scatter.default" in op or op == "index_put.default" for op in ops(graph))


def test_the_old_value_read_afterwards_forbids_it() -> None:
    def fn(cache: Tensor, row: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        old = cache.clone()
        cache.index_copy_(1, at, row)
        return old + 1, cache.index_copy(1, at, old[:, :1])

    same_as_eager(fn, CACHE, ROW, AT)


def test_a_value_computed_before_the_write_keeps_the_old_value() -> None:
    def fn(cache: Tensor, row: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        before = cache.sin()
        cache.index_copy_(1, at, row)
        return before, cache.cos()

    same_as_eager(fn, CACHE, ROW, AT)


def test_an_update_of_everything_stays_a_copy() -> None:
    def fn(x: Tensor) -> Tensor:
        x.add_(1)
        return x * 2

    graph = same_as_eager(fn, CACHE)
    assert "copy_.default" in ops(graph) and mutated_inputs(graph.graph_module) == (0,)


def test_two_caches_and_accumulation() -> None:
    def fn(keys: Tensor, values: Tensor, row: Tensor, at: Tensor) -> Tensor:
        keys.index_add_(1, at, row)
        values.index_put_((torch.tensor([0, 0]),), row[0], accumulate=True)
        return keys + values

    graph = same_as_eager(fn, CACHE, CACHE + 1, ROW, AT)
    assert "copy_.default" not in ops(graph) and len(mutated_inputs(graph.graph_module)) == 2


def test_a_graph_without_writes_has_no_mutated_inputs() -> None:
    assert mutated_inputs(same_as_eager(lambda x: x.index_copy(1, AT, ROW), CACHE).graph_module) == ()
