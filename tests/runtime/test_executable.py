"""Executables: inputs as compiled for or copied so that they are, counters, missing devices."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fusec.config import Config
from fusec.errors import BuildError, FusecError, TargetError
from fusec.ir.types import Extern
from fusec.runtime.allocate import allocators
from fusec.runtime.build import build
from fusec.runtime.executable import Runtime
from fusec.runtime.inputs import same_strides
from fusec.runtime.target import parse_arch, resolve_target
from tests.runtime.samples import add_one, counters, program

NO_CACHE = Config(cache=False)


def executable(x: torch.Tensor, externs=(), count=None, config: Config = NO_CACHE):
    source = add_one(x.numel(), x.dtype)
    schedule, plan, wrapper = program(source, x, externs)
    return build(schedule, plan, [source], wrapper, config, count)


@pytest.mark.parametrize("shape", [(0,), (1,), (17,), (4, 1000), (1, 5, 1)])
def test_outputs_equal_torch(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    (out,) = executable(x)(x)
    assert torch.equal(out, x + 1)
    assert out.stride() == x.stride()


def test_counters_count_launches_and_library_calls() -> None:
    count, x = counters(), torch.randn(64)
    run = executable(x, [torch.ops.aten.relu.default, torch.ops.aten.neg.default], count)
    for _ in range(3):
        (out,) = run(x)
    assert torch.equal(out, -torch.relu(x + 1))
    assert (count.kernels_launched, count.extern_calls) == (3, 6)


def test_an_empty_program_launches_nothing() -> None:
    count, x = counters(), torch.randn(0)
    executable(x, count=count)(x)
    assert count.kernels_launched == 0


def test_other_strides_are_copied() -> None:
    x = torch.randn(8, 4)
    run = executable(x)
    other = x.t().contiguous().t()
    assert other.stride() != x.stride()
    assert torch.equal(run(other)[0], x + 1)
    assert torch.equal(run(x.expand(2, 8, 4)[1])[0], x + 1)
    assert torch.equal(run(torch.randn(8, 8)[:, ::2].copy_(x))[0], x + 1)


def test_strides_of_extent_one_do_not_matter() -> None:
    x = torch.randn(1, 16)
    assert same_strides(x.as_strided((1, 16), (999, 1)), (16, 1))
    assert not same_strides(torch.randn(2, 16).as_strided((2, 8), (16, 2)), (8, 1))
    assert same_strides(torch.randn(0, 3), (1, 1))


def test_a_gradient_and_a_negative_view_are_read_as_values() -> None:
    x = torch.randn(16)
    run = executable(x)
    leaf = x.clone().requires_grad_()
    assert torch.equal(run(leaf)[0], x + 1)
    negative = torch.complex(torch.zeros(16), x).conj().imag
    assert negative.is_neg()
    assert torch.equal(run(negative.clone())[0], -x + 1)
    assert torch.equal(run(torch._neg_view(x))[0], -x + 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.randn(17), r"input 0 \(x\): compiled for shape \(16,\), got shape \(17,\)"),
        (torch.zeros(16, dtype=torch.int32), "compiled for torch.float32, got torch.int32"),
        (torch.zeros(16, device="meta"), "compiled for a tensor on cpu, got one on meta"),
        (3.0, "compiled for a tensor, got float"),
    ],
)
def test_an_input_that_does_not_fit_is_named(wrong: object, message: str) -> None:
    with pytest.raises(FusecError, match=message):
        executable(torch.randn(16))(wrong)


def test_the_number_of_inputs_is_checked() -> None:
    with pytest.raises(FusecError, match="sample takes 1 inputs, got 2"):
        executable(torch.randn(4))(torch.randn(4), torch.randn(4))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("target", [None, "cuda", "sm_90"])
def test_cuda_programs_build_without_a_gpu_and_say_so_when_run(target: str | None) -> None:
    x = torch.randn(1024)
    source = add_one(1024)
    schedule, plan, wrapper = program(source, x)
    buffers = tuple(replace(b, device="cuda:0") for b in schedule.buffers)
    config = Config(cache=False, target=target, workers=0)
    run = build(replace(schedule, buffers=buffers), plan, [source], wrapper, config)
    assert [k.artifact is not None for k in run.kernels] == [target == "sm_90"]
    with pytest.raises(TargetError, match='target "cuda" needs a GPU'):
        run(x)


def test_after_its_first_call_a_program_launches_what_was_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1024)
    source = add_one(1024)
    schedule, plan, wrapper = program(source, x)
    buffers = tuple(replace(b, device="cuda:1") for b in schedule.buffers)
    run = build(replace(schedule, buffers=buffers), plan, [source], wrapper, Config(cache=False, workers=0))
    here, called = allocators(["cuda:1"], direct=["cuda:1"])["cuda:1"], []

    def through(args, rt):
        called.append((rt.launch[0], rt.empty["cuda:1"] is here))
        return ()

    run._call = through
    run._run([])
    (kernel,) = run.kernels
    kernel._launchers[1] = launcher = lambda *_: None
    run._settle()
    for device in (1, 0):  # the current one
        monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda device=device: device, raising=False)
        run._run([])
    assert called == [(kernel, False), (launcher, True), (launcher, False)]


def test_no_gradient_is_recorded_and_the_mode_comes_back() -> None:
    x = torch.randn(16, requires_grad=True)
    run = executable(x, [torch.ops.aten.relu.default])
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            assert not run(x)[0].requires_grad
            assert torch.is_grad_enabled() == enabled


def test_targets() -> None:
    assert parse_arch("sm_100") == 100
    assert parse_arch("cuda") is parse_arch(None) is None
    target = resolve_target(Config(target="sm_80"), ["cpu", "cpu"])
    assert (target.device, target.archs, target.names) == ("cpu", (80,), ("sm_80",))
    assert resolve_target(Config(target="sm_90"), ["cpu", "cuda:0"]).device == "cuda"


def test_a_wrapper_without_call_is_a_build_error() -> None:
    x = torch.randn(4)
    source = add_one(4)
    schedule, plan, _ = program(source, x)
    with pytest.raises(BuildError, match="defines no call"):
        build(schedule, plan, [source], "x = 1\n", NO_CACHE)
    with pytest.raises(BuildError, match="1 kernel steps, but 2 kernels"):
        build(schedule, plan, [source, source], "def call(args, rt): ...\n", NO_CACHE)


def test_runtime_views_start_at_the_tensor() -> None:
    base = torch.arange(24.0)
    assert Runtime.view(base[4:], (2, 3), (6, 1), 2).tolist() == [[6.0, 7.0, 8.0], [12.0, 13.0, 14.0]]


def test_memory_through_the_dispatcher_is_seen_by_its_modes() -> None:
    with FakeTensorMode():
        assert isinstance(allocators(["cuda:0"])["cuda:0"]((2, 3), (3, 1), torch.float32), FakeTensor)


@pytest.mark.parametrize("shape", [(), (0, 4), (2, 3)])
def test_new_memory_has_the_strides_and_dtype_asked_for(shape: tuple[int, ...]) -> None:
    expected = torch.empty_strided(shape, (1, 2)[: len(shape)], dtype=torch.bfloat16)
    for empty in (allocators(["cpu"])["cpu"], allocators(["cpu"], direct=["cpu"])["cpu"]):
        made = empty(shape, (1, 2)[: len(shape)], torch.bfloat16)
        assert (made.shape, made.stride(), made.dtype, made.device) == (
            expected.shape,
            expected.stride(),
            expected.dtype,
            expected.device,
        )


def test_restride_keeps_what_fits_and_copies_the_rest() -> None:
    x = torch.randn(4, 6)
    assert Runtime.restride(x, (4, 6), (6, 1)) is x
    copy = Runtime.restride(x, (4, 6), (1, 4))
    assert copy.stride() == (1, 4)
    assert torch.equal(copy, x)
    expanded = x[:, :1].expand(4, 5)
    again = Runtime.restride(expanded.contiguous(), (4, 5), (1, 0))
    assert again.stride() == (1, 0)
    assert torch.equal(again, expanded)


def test_constants_reach_the_wrapper() -> None:
    x = torch.randn(8)
    source = add_one(8)
    schedule, plan, _ = program(source, x)
    schedule = replace(schedule, constants=(("c", torch.full((8,), 5.0)),))
    text = 'def call(args, rt):\n    rt.launch[0](rt.constants["c"], args[0])\n    return (args[0],)\n'
    (out,) = build(schedule, plan, [source], text, NO_CACHE)(x)
    assert out.tolist() == [6.0] * 8


def test_an_input_written_in_place_is_written_even_when_a_copy_was_used() -> None:
    x = torch.zeros(8, 4)
    source = add_one(32)
    schedule, plan, _ = program(source, x)
    step = Extern("e", torch.ops.aten.add_.Tensor, (), (), (None,), mutates=("x",))
    schedule = replace(schedule, steps=(step,), outputs=())
    text = "def call(args, rt):\n    rt.extern[0](args[0], 2.0)\n    return ()\n"
    run = build(schedule, plan, [], text, NO_CACHE)
    other = torch.zeros(4, 8).t()
    run(x)
    run(other)
    assert x.eq(2).all()
    assert other.eq(2).all()
