"""Wrapper text: runs, frees, reuses; nothing of the user's gets into a code line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fusec.codegen.kernel import generate_kernel
from fusec.codegen.wrapper import generate_wrapper
from fusec.config import Config
from fusec.errors import FusecError
from fusec.ir.index import size_symbol
from fusec.ir.kernels import Allocation, BufferPlan, KernelPlan, Schedule
from fusec.ir.types import Buffer, Extern, Origin, Role, TensorView
from fusec.runtime.executable import Runtime
from fusec.runtime.grid import launch_grid
from fusec.runtime.interpret import InterpretedKernel
from tests.codegen.plans import Build, f32

aten = torch.ops.aten


def unary(source: str, target: str, op: str, n: int, roles: dict[str, Role]) -> KernelPlan:
    build = Build(x=n)
    build.buffer(source, f32, (n,), roles.get(source, Role.TEMPORARY))
    build.buffer(target, f32, (n,), roles.get(target, Role.TEMPORARY))
    build.store(target, build.index(x0=1), build.op(op, build.load(source, build.index(x0=1))))
    return replace(build.plan(x=16), name=f"{source}_{target}")


def buffer(name: str, shape: tuple[int, ...], role: Role, **changes: Any) -> Buffer:
    made = Buffer(name, f32, shape, torch.empty(shape, device="meta").stride(), "cpu", role, name)
    return replace(made, **changes)


def whole(b: Buffer) -> TensorView:
    return TensorView(b.name, b.shape, b.strides)


def wrapper(schedule: Schedule, plan: BufferPlan) -> str:
    kernels = [s for s in schedule.steps if isinstance(s, KernelPlan)]
    return generate_wrapper(schedule, plan, tuple(generate_kernel(k, schedule.table, Config()) for k in kernels))


def call(schedule: Schedule, plan: BufferPlan, args: list[torch.Tensor]) -> tuple[Any, ...]:
    kernels = [s for s in schedule.steps if isinstance(s, KernelPlan)]
    sources = [generate_kernel(k, schedule.table, Config()) for k in kernels]

    def launcher(source: Any) -> Any:
        kernel, grid = InterpretedKernel(source), launch_grid(source, source.interpreter_tile, ())
        return lambda *tensors: kernel.launch(tensors, [], grid, source.interpreter_tile)

    externs = tuple(s.target for s in schedule.steps if isinstance(s, Extern))
    runtime = Runtime(tuple(map(launcher, sources)), externs, dict(schedule.constants))
    namespace: dict[str, Any] = {}
    exec(compile(generate_wrapper(schedule, plan, sources), "wrapper", "exec"), namespace)
    result: tuple[Any, ...] = namespace["call"](args, runtime)
    return result


def chain() -> tuple[Schedule, BufferPlan]:
    """exp, then a matmul whose result is transposed, then neg into the memory exp left."""
    x, w = buffer("x", (16,), Role.INPUT), buffer("w", (4, 4), Role.INPUT)
    e = buffer("e", (16,), Role.TEMPORARY)
    m = buffer("m", (4, 4), Role.TEMPORARY, strides=(1, 4))
    out = buffer("out", (16,), Role.OUTPUT)
    roles = {"x": Role.INPUT, "out": Role.OUTPUT}
    mm = Extern(
        "mm", aten.mm.default, (TensorView("e", (4, 4), (4, 1)), whole(w)), (), ("m",), Origin("mm", "aten.mm.default")
    )
    negate = unary("m", "out", "neg", 16, roles)
    steps = (unary("x", "e", "exp", 16, roles), mm, negate)
    schedule = Schedule(
        "chain", (x, w, e, m, out), steps, ("x", "w"), (whole(out), TensorView("out", (2,), (3,), 4), None, 7)
    )
    plan = BufferPlan(((Allocation("e"),), (), (Allocation("out", reuses="e"),)), (("x",), ("w",), ("m",)), 0)
    return schedule, plan


def test_a_call_runs_kernels_and_library_calls_in_order() -> None:
    x, w = torch.randn(16), torch.randn(4, 4)
    args = [x, w]
    out, view, nothing, seven = call(*chain(), args)
    expected = -(x.exp().view(4, 4) @ w).t().contiguous().view(-1)  # m is stored column by column
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(view, out[4:8:3])
    assert (nothing, seven) == (None, 7) and args == [], "the arguments are given up"


def test_text_of_a_call() -> None:
    text = wrapper(*chain())
    assert "def call(args, rt):" in text and "x, w = args\n    args.clear()" in text
    assert "e = empty((4, 4), (4, 1), torch.float32)" in text, "kernels take addresses, the call a matrix"
    assert "m = rt.extern[0](e, w)  # aten.mm.default" in text
    assert "m = rt.restride(m, (4, 4), (1, 4))" in text
    assert "out = e.as_strided((16,), (1,))\n    del e" in text, "the dead buffer's memory is taken over"
    assert "return (out, rt.view(out, (2,), (3,), 4), None, 7)" in text


@pytest.mark.parametrize(
    ("views", "texts"),
    [
        ([TensorView("e", (4, 4), (1, 4))], ["e = empty((4, 4), (1, 4), "]),
        ([TensorView("e", (4, 4), (4, 1)), TensorView("e", (4, 4), (1, 4))], ["e = empty((16,), (1,), "]),
        ([TensorView("e", (2, 4), (4, 1))], ["e = empty((16,), (1,), ", " e.as_strided((2, 4), (4, 1)),"]),
        ([TensorView("e", (4, 3), (4, 1), 1)], ["e = empty((16,), (1,), ", " rt.view(e, (4, 3), (4, 1), 1),"]),
    ],
)
def test_a_temporary_has_the_shape_of_the_calls_that_read_it(views: list[TensorView], texts: list[str]) -> None:
    (x, w, e, m, out), steps = chain()[0].buffers, chain()[0].steps
    first, last = views[0], views[-1]
    add = Extern("add", lambda a, b: (a + b).sum() * torch.ones(4, 4).t(), (first, last), (), ("m",))
    schedule = Schedule("shapes", (x, w, e, m, out), (steps[0], add, steps[2]), ("x", "w"), (whole(out),))
    plan = BufferPlan(((Allocation("e"),), (), (Allocation("out"),)), ((), ("e",), ("m",)), 0)
    text = wrapper(schedule, plan)
    assert all(t in text for t in texts), text
    data = torch.randn(16)
    a, b = (data.exp().as_strided(v.shape, v.strides, v.offset) for v in (first, last))
    torch.testing.assert_close(call(schedule, plan, [data, torch.randn(4, 4)])[0], (-(a + b).sum()).expand(16))


def made_and_returned(*outputs: TensorView) -> tuple[str, tuple[Any, ...]]:
    """e = exp(x), m = e @ w, n = m * 2: the text, and what a call with ones and zeros returns."""
    schedule, plan = chain()
    double = Extern("double", aten.mul.Tensor, (TensorView("m", (16,), (1,)), 2.0), (), ("n",))
    n = buffer("n", (16,), Role.OUTPUT)
    kept = replace(
        schedule, buffers=(*schedule.buffers, n), steps=(*schedule.steps[:2], double), outputs=(whole(n), *outputs)
    )
    plan = replace(plan, before=((Allocation("e"),), (), ()), after=((), (), ()))
    return wrapper(kept, plan), call(kept, plan, [torch.zeros(16), torch.zeros(4, 4)])


def test_what_is_returned_in_one_shape_is_made_in_it_and_what_a_call_makes_keeps_its_own() -> None:
    text, (n, e) = made_and_returned(TensorView("e", (4, 4), (4, 1)))
    assert "e = empty((4, 4), (4, 1), " in text and "return (n, e)" in text
    assert "rt.extern[1](m.as_strided((16,), (1,)), 2.0)" in text
    assert n.shape == (16,) and torch.equal(e, torch.ones(4, 4))


def test_what_is_returned_in_two_ways_or_twice_keeps_its_shape() -> None:
    view = TensorView("e", (4, 4), (4, 1))
    text, (_, matrix, vector) = made_and_returned(view, TensorView("e", (16,), (1,)))
    assert "e = empty((16,), (1,), " in text and "return (n, e.as_strided((4, 4), (4, 1)), e)" in text
    assert matrix.shape == (4, 4) and vector.shape == (16,)
    _, (_, first, second) = made_and_returned(view, view)
    assert first is not second


def test_memory_comes_from_the_device_of_each_buffer() -> None:
    schedule, plan = chain()
    names = {"e": "cuda:0", "out": "cpu", "x": "cuda:0"}
    moved = tuple(replace(b, device=names.get(b.name, "cuda:0")) for b in schedule.buffers)
    apart = BufferPlan(((Allocation("e"),), (), (Allocation("out"),)), plan.after, 0)
    text = wrapper(replace(schedule, buffers=moved), apart)
    assert "    empty = rt.empty['cuda:0']\n    empty_1 = rt.empty['cpu']\n" in text
    assert "e = empty((4, 4), (4, 1), torch.float32)" in text and "out = empty_1((16,), (1,), torch.float32)" in text


def test_one_input_one_output_and_constants() -> None:
    x, c = buffer("x", (8,), Role.INPUT), buffer("c", (8,), Role.CONSTANT)
    schedule = Schedule("same", (x, c), (), ("x",), (whole(c),), constants=(("c", torch.arange(8.0)),))
    (result,) = call(schedule, BufferPlan((), (), 0), [torch.zeros(8)])
    assert result.tolist() == list(range(8))


def test_several_outputs_of_one_call_and_one_that_nobody_reads() -> None:
    x = buffer("x", (6, 4), Role.INPUT)
    values, places = buffer("values", (6, 2), Role.OUTPUT), buffer("places", (6, 2), Role.TEMPORARY)
    top = Extern("topk", aten.topk.default, (whole(x), 2), (("sorted", True),), ("values", "places"))
    schedule = Schedule("top", (x, values, places), (top,), ("x",), (whole(values),))
    plan = BufferPlan(((),), (("places",),), 0)
    data = torch.randn(6, 4)
    torch.testing.assert_close(call(schedule, plan, [data])[0], data.topk(2)[0])
    assert "values, _ = rt.extern[0](x, 2, sorted=True)" in wrapper(schedule, plan)


def test_a_list_of_one_tensor_is_unpacked() -> None:
    x, out = buffer("x", (6, 4), Role.INPUT), buffer("out", (6, 4), Role.OUTPUT)
    split = Extern("split", aten.split.Tensor, (whole(x), 6), (), ("out",))
    schedule = Schedule("split", (x, out), (split,), ("x",), (whole(out),))
    data = torch.randn(6, 4)
    torch.testing.assert_close(call(schedule, BufferPlan(((),), ((),), 0), [data])[0], data)


def test_a_cpu_scalar_moves_to_the_kernels_device_once() -> None:
    schedule, plan = chain()
    moved = tuple(replace(b, device="cpu" if b.name == "x" else "cuda:0") for b in schedule.buffers)
    text = wrapper(replace(schedule, buffers=moved), plan)
    assert "x_moved = x.to('cuda:0')" in text and "rt.launch[0](x_moved, e)" in text and "del x, x_moved" in text


@pytest.mark.parametrize(
    "value",
    [1.5, float("inf"), float("nan"), -3, True, None, "a'\n\"b", torch.bfloat16, torch.strided, [1, [2.0]], (4,)],
)
def test_arguments_are_written_as_literals(value: Any) -> None:
    seen: list[Any] = []

    def target(*args: Any) -> torch.Tensor:
        seen.extend(args)
        return torch.zeros(1)

    out = buffer("out", (1,), Role.OUTPUT)
    schedule = Schedule("args", (out,), (Extern("e", target, (value,), (), ("out",)),), (), (whole(out),))
    call(schedule, BufferPlan(((),), ((),), 0), [])
    assert repr(seen[0]) == repr(value)


def test_an_argument_without_a_literal_is_an_error() -> None:
    out = buffer("out", (1,), Role.OUTPUT)
    extern = Extern("e", aten.mm.default, (object(),), (), ("out",))
    with pytest.raises(FusecError, match="argument of type object"):
        wrapper(Schedule("args", (out,), (extern,), (), (whole(out),)), BufferPlan(((),), ((),), 0))


def test_hostile_hints_stay_out_of_the_code() -> None:
    schedule, plan = chain()
    hostile = tuple(replace(b, hint=f"{b.name}\n    import os  # ' \"") for b in schedule.buffers)
    text = wrapper(replace(schedule, buffers=hostile), plan)
    assert "import os" not in text
    compile(text, "wrapper", "exec")


def test_symbolic_extents_are_read_from_the_inputs() -> None:
    s = size_symbol("s0", 2)
    x = Buffer("x", f32, (s, 4), (4, 1), "cpu", Role.INPUT, "x")
    out = Buffer("out", f32, (s * 2,), (1,), "cpu", Role.OUTPUT, "out")
    schedule = Schedule("dynamic", (x, out), (), ("x",), (TensorView("out", (s * 2,), (1,)), s + 1))
    (result, size) = call(schedule, BufferPlan((), (), 0), [torch.zeros(3, 4)])
    assert result.shape == (6,) and size == 4
