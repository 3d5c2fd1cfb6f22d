"""The walk, the builder and the Context: what one op leaves, names, origins, outputs, constants, devices."""

from __future__ import annotations

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from fusec.capture.graph import CapturedGraph
from fusec.config import Config
from fusec.errors import LoweringError
from fusec.ir.evaluate import evaluate_program
from fusec.ir.printer import format_nest
from fusec.ir.types import LoopNest, Role, TensorView
from fusec.lowering import lower
from fusec.lowering.builder import NestBuilder
from fusec.lowering.numbers import converted
from fusec.lowering.origin import describe, origin_of
from fusec.lowering.ref import Ref
from fusec.lowering.registry import LOWERINGS, NotLowered
from tests.lowering.differential import externs_of as externs
from tests.lowering.differential import lower_function as lowered
from tests.lowering.differential import trace

aten = torch.ops.aten
STRICT = Config().updated({"strict": True})


def on_cuda(function, *shapes, extra=()):
    """The Program of a function over fake CUDA tensors; no GPU is needed."""
    with FakeTensorMode():
        inputs = [torch.empty(s, device="cuda") for s in shapes] + [torch.empty(s) for s in extra]
        graph = make_fx(function)(*inputs)
    return lower(CapturedGraph(graph, tuple(inputs), tuple(f"x{i}" for i in range(len(inputs)))), STRICT)


def lines(nest) -> list[str]:
    return [line.split("#")[0].strip() for line in format_nest(nest).splitlines()]


# -- one op, one nest -----------------------------------------------------------------------------


def test_low_precision_is_computed_in_float32_and_rounded_by_the_store():
    (nest,) = lowered(lambda x, y: x + y, torch.ones(4, 17, dtype=torch.bfloat16), torch.ones(17)[None]).nodes
    assert [i.op for i in nest.body] == ["load", "cast", "load", "add", "store"]
    (nest,) = lowered(lambda x: x * 2, torch.ones(17, dtype=torch.bfloat16)).nodes
    assert lines(nest) == [
        "nest n0 (p0<17):",
        "%0:bf16 = load x0[p0]",
        "%1:f32 = cast %0",
        "%2:f32 = const 2.0",
        "%3:f32 = mul %1, %2",
        "store mul[p0], %3",
    ]


def test_a_cast_of_the_user_is_an_instruction_of_its_own():
    (nest,) = lowered(lambda x: x.to(torch.bfloat16), torch.ones(5)).nodes
    assert [(i.op, i.dtype) for i in nest.body[1:]] == [("cast", torch.bfloat16), ("store", torch.bfloat16)]


def test_an_axis_of_extent_one_has_no_symbol_and_a_scalar_no_axes():
    (nest,) = lowered(lambda x: x + 1, torch.ones(1, 5)).nodes
    assert str(nest.stores[0].index) == "p1"
    (nest,) = lowered(lambda x: x + 1, torch.tensor(2.0)).nodes
    assert nest.axes == ()


def test_result_strides_are_those_of_eager():
    program = lowered(lambda x: x + 1, torch.ones(3, 5).t())
    assert program.table["add"].strides == (1, 5)


def test_equal_lines_are_written_once_and_equal_looking_constants_are_kept_apart():
    nest = NestBuilder("n", (4,))
    a, b = nest.const(0.0, torch.float32), nest.const(-0.0, torch.float32)
    assert a.name != b.name
    assert (a + b).name == (a + b).name
    assert nest.const(1, torch.int64).name != nest.const(True, torch.bool).name


def test_a_cast_to_bool_compares_with_zero():
    nest = NestBuilder("n", (4,))
    value = nest.cast(nest.const(0.5, torch.float32), torch.bool)
    assert value.dtype is torch.bool
    assert nest._body[-1].op == "ne"


def test_mixed_dtypes_and_truth_values_are_refused_while_building():
    nest = NestBuilder("n", (4,))
    one, half = nest.const(1, torch.int64), nest.const(0.5, torch.float32)
    with pytest.raises(AssertionError, match="share a dtype"):
        _ = one + half
    with pytest.raises(TypeError, match="truth value"):
        bool(one < 2)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.uint8, torch.int8, torch.int32, torch.int64, torch.bool]
)
@pytest.mark.parametrize("value", [0, 1, 300, -1, 2.7, -0.1, 65504.0, 1e30, 3.4028235e38, 1.00390625])
def test_numbers_are_converted_as_pytorch_converts_scalars(value, dtype):
    if not dtype.is_floating_point and dtype is not torch.bool and abs(value) > 1e9:
        pytest.skip("eager does not define it")
    source = torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)
    if not dtype.is_floating_point and dtype is not torch.bool:
        source = source.to(torch.int64)
    assert converted(value, dtype) == source.to(dtype).item()


# -- names and origins ----------------------------------------------------------------------------


def test_buffers_are_named_after_the_users_names_and_the_ops():
    x = torch.ones(3)
    graph = make_fx(lambda a, b: torch.tanh(a) + b, tracing_mode="fake")(x, x)
    program = lower(CapturedGraph(graph, (x, x), ("encoder.layer.0.weight", "x")))
    assert [b.name for b in program.buffers] == ["encoder_layer_0_weight", "x", "tanh", "add"]
    assert program.table["encoder_layer_0_weight"].hint == "encoder.layer.0.weight"
    assert [b.role for b in program.buffers] == [Role.INPUT, Role.INPUT, Role.TEMPORARY, Role.OUTPUT]


def test_origin_is_the_innermost_frame_and_the_module_path():
    node = fx.Graph().call_function(aten.relu.default)
    node.meta["stack_trace"] = (
        '  File "/app/train.py", line 9, in main\n    model(x)\n'
        '  File "/app/model.py", line 31, in forward\n    return relu(x)\n'
    )
    node.meta["nn_module_stack"] = {"a": ("L['self']", object), "b": ("L['self'].encoder._modules['0'].norm", object)}
    origin = origin_of(node)
    assert (origin.file, origin.line, origin.code) == ("/app/model.py", 31, "return relu(x)")
    assert origin.module == "encoder.0.norm"
    assert describe(origin) == "/app/model.py:31: return relu(x)"


# -- what happens to an op that cannot be lowered -------------------------------------------------


def test_a_lowering_that_declines_leaves_a_library_call_with_its_reason(monkeypatch):
    def decline(ctx, x):
        ctx.materialize(x)
        raise NotLowered("it rains")

    monkeypatch.setitem(LOWERINGS, aten.tanh.default, decline)
    program = lowered(torch.tanh, torch.ones(3))
    assert [(str(e.target), e.reason) for e in externs(program)] == [("aten.tanh.default", "it rains")]
    assert [b.name for b in program.buffers] == ["x0", "tanh"]


def test_a_lowering_that_fails_says_so_with_its_arguments_or_raises_with_op_and_line_when_strict(monkeypatch):
    def fail(ctx, x):
        raise KeyError("boom")

    monkeypatch.setitem(LOWERINGS, aten.tanh.default, fail)
    graph = trace(torch.tanh, torch.ones(3))
    for node in graph.graph_module.graph.nodes:
        node.meta["stack_trace"] = 'File "model.py", line 7, in forward\n    y = tanh(x)'
    program = lower(graph, Config())
    assert evaluate_program(program, [torch.ones(3)])[0].equal(torch.tanh(torch.ones(3)))
    (call,) = externs(program)
    assert call.reason == "lowering failed for (x0: float32[3]): KeyError: 'boom'"
    with pytest.raises(LoweringError, match=r"aten.tanh.default\(x0: float32\[3\]\) at model.py:7: .*boom"):
        lower(graph, STRICT)


def test_an_op_that_is_only_not_covered_is_an_error_when_strict_and_one_left_to_a_library_is_not():
    x = torch.ones(3, 3)
    with pytest.raises(LoweringError, match=r"aten.frexp.*float32\[3, 3\].*would run as a library call: no lowering"):
        lower(trace(lambda x: torch.frexp(x), x), STRICT)
    (mm,) = externs(lower(trace(torch.mm, x, x), STRICT))
    (angle,) = externs(lower(trace(torch.angle, x.to(torch.complex64)), STRICT))
    assert mm.reason == "library call" and angle.reason == "library call: kernels do not compute complex64"


# -- outputs --------------------------------------------------------------------------------------


def test_outputs_may_be_inputs_views_and_repeated():
    x = torch.arange(12.0).view(3, 4)
    program = lowered(lambda x: (x, x.t(), x[1:, ::2], x + 1, x + 1), x)
    assert program.outputs[0] == TensorView("x0", (3, 4), (4, 1), 0)
    assert program.outputs[1] == TensorView("x0", (4, 3), (1, 4), 0)
    assert program.outputs[2] == TensorView("x0", (2, 2), (4, 2), 4)
    assert program.outputs[3].buffer == "add"


def test_numbers_and_none_pass_through():
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(3, device="meta")
    graph.output((x, None, 7))
    program = lower(CapturedGraph(fx.GraphModule({}, graph), (torch.ones(3),), ("x",)))
    assert program.outputs[1:] == (None, 7)


@pytest.mark.parametrize(
    "function", [lambda x: x.repeat(1, 1), lambda x: x.flip(0), lambda x: x.roll(0, 0), torch.clone]
)
def test_what_eager_returns_in_new_memory_is_not_an_alias(function):
    program = lowered(function, torch.ones(1, 4))
    assert program.outputs[0].buffer != "x0"


def test_a_view_that_is_not_strided_is_copied_when_it_is_returned():
    program = lowered(lambda x: x.permute(1, 0).flip(1), torch.ones(3, 4))
    assert isinstance(program.nodes[-1], LoopNest)
    assert program.table[program.outputs[0].buffer].role is Role.OUTPUT


# -- writes to inputs -----------------------------------------------------------------------------


def test_copy_into_an_input_is_a_nest():
    x, y = torch.zeros(3), torch.ones(3)
    program = lowered(lambda x, y: (aten.copy_.default(x, y * 2), y + 1), x, y)
    assert not externs(program) and program.changing == {"x0"}
    assert [t.tolist() for t in evaluate_program(program, [x, y])] == [[2.0] * 3, [2.0] * 3]


def test_an_index_view_read_after_its_buffer_is_written_keeps_the_old_values():
    def f(x):
        y = x.flip(0)
        return aten.copy_.default(x, y * 10), y

    written, y = evaluate_program(lowered(f, torch.ones(3)), [torch.tensor([1.0, 2.0, 3.0])])
    assert written.tolist() == [30.0, 20.0, 10.0]
    assert y.tolist() == [3.0, 2.0, 1.0]


def test_copying_a_view_of_the_target_goes_through_memory():
    program = lowered(lambda x: aten.copy_.default(x, x.flip(0)), torch.ones(3))
    (written,) = evaluate_program(program, [torch.tensor([1.0, 2.0, 3.0])])
    assert written.tolist() == [3.0, 2.0, 1.0]


# -- constants and devices ------------------------------------------------------------------------


def graph_with_constant(value: torch.Tensor) -> CapturedGraph:
    graph = fx.Graph()
    x = graph.placeholder("x")
    c = graph.get_attr("_tensor_constant0")
    total = graph.call_function(aten.add.Tensor, (x, c))
    x.meta["val"], c.meta["val"], total.meta["val"] = torch.empty(3), value, torch.empty(3)
    graph.output((total,))
    return CapturedGraph(fx.GraphModule({"_tensor_constant0": value}, graph), (torch.ones(3),), ("x",))


def test_a_scalar_constant_is_a_number_in_the_kernel():
    program = lower(graph_with_constant(torch.tensor(2.5)))
    assert program.constants == ()
    assert [i.attr("value") for i in program.nodes[0].body if i.op == "const"] == [2.5]


def test_a_larger_constant_is_a_buffer():
    value = torch.tensor([1.0, 2.0, 3.0])
    program = lower(graph_with_constant(value))
    assert [(name, tensor.tolist()) for name, tensor in program.constants] == [("tensor_constant0", [1.0, 2.0, 3.0])]
    assert evaluate_program(program, [torch.ones(3)])[0].tolist() == [2.0, 3.0, 4.0]


def test_a_cpu_scalar_beside_cuda_tensors_is_read_where_it_is():
    program = on_cuda(lambda x, s: x * s, (8,), extra=[()])
    assert [type(n) for n in program.nodes] == [LoopNest]
    assert (program.table["x1"].device, program.table["mul"].device) == ("cpu", "cuda:0")


def test_copies_between_devices_and_work_on_the_cpu_are_library_calls():
    program = on_cuda(
        lambda x, c: (x + aten._to_copy.default(c, device=torch.device("cuda")), c * 2), (8,), extra=[(8,)]
    )
    assert [str(e.target) for e in externs(program)] == ["aten._to_copy.default", "aten.mul.Tensor"]
    assert "cuda" in externs(program)[0].reason


# -- views as values ------------------------------------------------------------------------------


def test_a_reshape_that_stays_affine_has_clean_indices():
    x = Ref.whole("x", torch.float32, (2, 3, 8), (24, 8, 1), "cpu")
    assert str(x.reshape((6, 8)).index) == "8*c0 + c1"
    assert str(x.permute((1, 0, 2)).reshape((3, 16)).index) == "24*(c1//8) + 8*c0 + c1%8"
    assert x.permute((1, 0, 2)).reshape((3, 16)).tensor_view() is None


def test_strides_of_extent_one_are_free():
    x = Ref.whole("x", torch.float32, (1, 5), (5, 1), "cpu")
    assert x.tensor_view((99, 1)).strides == (99, 1)
    assert x.tensor_view().strides == (5, 1)


def test_a_division_is_lowered_while_tensors_are_fake() -> None:
    """As a backward graph is: AOTAutograd lowers nothing itself, but its mode is on."""
    with FakeTensorMode():
        program = on_cuda(lambda x: x / 448.0, (8,))
    assert [type(n) for n in program.nodes] == [LoopNest]


def test_cuda_divides_by_a_number_as_eager_mode_does_there() -> None:
    """It multiplies with the reciprocal in float32: an 8-bit float may round to its other neighbour otherwise."""

    def scaled(x: torch.Tensor) -> torch.Tensor:
        return x / 448.0

    (nest,) = on_cuda(scaled, (8,)).nodes
    (factor,) = (i for i in nest.body if i.op == "const")
    assert [i.op for i in nest.body if i.op in ("mul", "div")] == ["mul"]
    assert factor.attr("value") == (torch.tensor(1.0) / torch.tensor(448.0)).item()
    assert any(i.op == "div" for n in on_cuda(lambda x: x / 0.0, (8,)).nodes for i in n.body), "infinity has no digits"
