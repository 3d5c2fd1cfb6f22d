"""Library calls: what stays a call, with which views, which outputs and which reason."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from fusec.capture.graph import CapturedGraph
from fusec.errors import LoweringError
from fusec.ir.types import TensorView
from fusec.lowering import lower
from fusec.lowering.extern import RANDOM, copying_form
from tests.lowering.differential import assert_lowered_like_eager, externs_of, lower_function, make

aten = torch.ops.aten


def reasons(function, *inputs) -> dict[str, str]:
    return {str(e.target): e.reason for e in externs_of(lower_function(function, *inputs))}


@pytest.mark.parametrize(
    ("function", "calls"),
    [
        (lambda x: x @ x.t(), 1),
        (lambda x: F.linear(x, x, x[:, 0]), 1),
        (lambda x: torch.sort(x, 1), 1),
        (lambda x: torch.topk(x, 2, 1).indices, 1),
        (lambda x: F.conv1d(x[None], x[:2, None, :3].repeat(2, 1, 1), groups=4), 1),
        (lambda x: torch.linalg.qr(x).R, 1),
    ],
)
def test_library_calls_have_the_values_of_eager(function, calls):
    x = make((4, 6), torch.float32)
    assert_lowered_like_eager(function, x, externs=calls)
    assert set(reasons(function, x).values()) == {"library call"}


def test_arguments_are_strided_views_without_copies():
    program = lower_function(lambda x: x[1:, ::2] @ x.t()[:3], make((4, 6), torch.float32))
    (call,) = program.nodes
    assert call.args == (TensorView("x0", (3, 3), (6, 2), 6), TensorView("x0", (3, 4), (1, 6), 0))


def test_a_view_that_is_not_strided_is_copied_first():
    x = make((4, 4), torch.float32)
    program = lower_function(lambda x: x.flip(0) @ x, x)
    assert [type(n).__name__ for n in program.nodes] == ["LoopNest", "Extern"]
    assert_lowered_like_eager(lambda x: x.flip(0) @ x.roll(1, 1), x, externs=1)


def test_what_has_no_lowering_says_so_and_runs():
    x = make((4, 6), torch.float32)
    assert reasons(lambda x: x.histc(4), x) == {"aten.histc.default": "no lowering for aten.histc.default"}
    assert_lowered_like_eager(lambda x: (x.histc(4) + 1, x.histc(5)), x, externs=2)


def test_a_linspace_of_integers_is_left_to_pytorch():
    assert_lowered_like_eager(lambda x: torch.linspace(0, 10, 5, dtype=torch.int64), torch.ones(()), externs=1)


def test_what_changes_a_tensor_in_place_beyond_its_values_stops_the_graph():
    with pytest.raises(LoweringError, match=r"aten.squeeze_.dim.*the shape of a tensor changes in place"):
        lower_function(lambda x: (x + 1).squeeze_(0), torch.ones(1, 3))
    with pytest.raises(LoweringError, match=r"aten.as_strided.default.*outside of the memory"):
        lower_function(lambda x: torch.as_strided(x, (9,), (1,)), torch.ones(2, 3))


def test_random_numbers_come_from_pytorch():
    x = make((4, 6), torch.float32)
    assert set(reasons(lambda x: (torch.rand_like(x), torch.bernoulli(x.sigmoid()), torch.randn(3)), x).values()) == {
        RANDOM
    }


def test_complex_numbers_are_left_to_pytorch():
    x = make((4, 6), torch.float32)
    found = reasons(lambda x: torch.complex(x, x) * 2, x)
    assert found["aten.mul.Tensor"] == "library call: kernels do not compute complex64"
    assert_lowered_like_eager(lambda x: torch.fft.fft(x).abs() + 1, x, externs=2)


def test_an_op_that_aliases_its_input_is_called_by_its_copying_form():
    assert copying_form(aten.view_as_real.default) is aten.view_as_real_copy.default
    assert copying_form(aten.mm.default) is aten.mm.default
    assert reasons(lambda x: x.view(torch.float64), make((4, 6), torch.float32)) == {
        "aten.view_copy.dtype": "a reinterpretation that changes the element size"
    }


def test_a_result_that_is_not_used_still_has_its_place():
    (call,) = externs_of(lower_function(lambda x: torch.sort(x, 1).values, make((4, 6), torch.float32)))
    assert len(call.outputs) == 2


def graph_with_item(used: bool) -> CapturedGraph:
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(())
    number = graph.call_function(aten._local_scalar_dense.default, (x,))
    number.meta["val"] = None
    number.meta["val"] = torch.SymFloat(number)
    result = graph.call_function(aten.mul.Tensor, (x, number if used else 2.0))
    result.meta["val"] = torch.empty(())
    graph.output((result,))
    return CapturedGraph(fx.GraphModule({}, graph), (torch.ones(()),), ("x",))


def test_a_number_made_of_tensor_data_stops_the_graph_where_it_is_used():
    with pytest.raises(LoweringError, match=r"_local_scalar_dense.*a Python number that later ops use"):
        lower(graph_with_item(used=True))
    assert [type(n).__name__ for n in lower(graph_with_item(used=False)).nodes] == ["Extern", "LoopNest"]
