"""Inputs: those like an earlier call's pass in one step, and whatever differs from them is still seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fusec.errors import FusecError, TargetError
from fusec.ir.index import IndexLike, size_symbol
from fusec.ir.kernels import Schedule
from fusec.ir.types import Buffer, Role
from fusec.runtime import inputs as module
from fusec.runtime.inputs import Inputs
from fusec.runtime.sizes import CallSizes


def inputs_like(*shapes: tuple[IndexLike, ...], on_cuda: bool = False) -> Inputs:
    """x0, x1, ...: contiguous float32 on the CPU; a symbolic extent is the first."""
    strides = [(1,) if len(s) == 1 else (s[1], 1) for s in shapes]
    buffers = [
        Buffer(f"x{i}", torch.float32, shape, stride, "cpu", Role.INPUT, f"x{i}")
        for i, (shape, stride) in enumerate(zip(shapes, strides, strict=True))
    ]
    schedule = Schedule("sample", tuple(buffers), (), tuple(b.name for b in buffers), ())
    sizes = CallSizes(schedule)
    return Inputs(schedule, on_cuda, sizes if sizes.symbolic else None)


def looked_at(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Any]]:
    """Calls whose inputs are looked at one by one."""
    seen: list[Sequence[Any]] = []
    slow = inputs._one_by_one
    monkeypatch.setattr(inputs, "_one_by_one", lambda given, values: seen.append(given) or slow(given, values))
    return seen


def test_inputs_like_those_before_pass_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = inputs_like((4, 3), (5,))
    seen = looked_at(inputs, monkeypatch)
    for _ in range(3):
        x, y = torch.randn(4, 3), torch.randn(5)
        passed = inputs((x, y))
        assert passed[0] is x and passed[1] is y
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (torch.randn(4, 2), FusecError, r"shape \(4, 3\), got shape \(4, 2\)"),
        (torch.randn(4, 3, 1), FusecError, r"got shape \(4, 3, 1\)"),
        (torch.randn(4, 3, dtype=torch.float64), FusecError, "compiled for torch.float32, got torch.float64"),
        (torch.randn(4, 3, device="meta"), TargetError, "compiled for a tensor on cpu, got one on meta"),
        (2.0, FusecError, "compiled for a tensor, got float"),
        (None, FusecError, "compiled for a tensor, got NoneType"),
    ],
)
def test_another_input_is_still_an_error(wrong: Any, error: type[FusecError], message: str) -> None:
    inputs = inputs_like((4, 3), (5,))
    x, y = torch.randn(4, 3), torch.randn(5)
    for _ in range(2):
        inputs((x, y))
        with pytest.raises(error, match=message):
            inputs((wrong, y))
    with pytest.raises(FusecError, match="takes 2 inputs, got 1"):
        inputs((x,))


@pytest.mark.parametrize("change", [lambda x: x.t().contiguous().t(), torch._neg_view])
def test_what_must_be_copied_is_copied_after_others_passed(change: Any) -> None:
    inputs, x = inputs_like((4, 3)), torch.randn(4, 3)
    inputs((x,))
    (copy,) = inputs((change(x),))
    assert copy.stride() == (3, 1) and not copy.is_neg()
    assert torch.equal(copy, change(x))


def test_a_misaligned_input_of_a_gpu_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, memory = inputs_like((5,), (5,), on_cuda=True), torch.randn(17)
    seen = looked_at(inputs, monkeypatch)
    for _ in range(2):
        inputs((torch.randn(5), memory[:5]))
    assert len(seen) == 1
    inputs((torch.randn(5), memory[1:6]))
    assert len(seen) == 2


def test_one_tensor_twice_parameters_and_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, x = inputs_like((5,), (5,)), torch.randn(5)
    kinds = [(x, x), (x, torch.nn.Parameter(x)), (x, x.clone().requires_grad_()), (x, x.clone())]
    for kind in kinds * 2:
        passed = inputs(kind)
        assert passed[0] is kind[0] and passed[1] is kind[1]


def test_a_subclass_is_never_taken_for_a_tensor_seen_before(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(Tensor):
        pass

    inputs = inputs_like((5,))
    seen = looked_at(inputs, monkeypatch)
    for _ in range(2):
        inputs((torch.randn(5).as_subclass(Mine),))
    assert len(seen) == 2 and not inputs._guards


def test_every_tuple_of_sizes_has_its_own_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    s = size_symbol("s0")
    inputs = inputs_like((s, 3), (s,))
    seen = looked_at(inputs, monkeypatch)
    for n in (4, 7, 4, 7):
        inputs((torch.randn(n, 3), torch.randn(n)))
    assert len(seen) == 2
    with pytest.raises(FusecError, match=r"input 1 \(x1\): compiled for shape \(4,\), got shape \(7,\)"):
        inputs((torch.randn(4, 3), torch.randn(7)))


def test_inputs_that_alternate_stop_making_guards(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    guards = module._TensorGuards
    monkeypatch.setattr(module, "_TensorGuards", lambda *a, **k: made.append(a) or guards(*a, **k))
    inputs, x = inputs_like((5,)), torch.randn(5)
    for _ in range(100):
        inputs((x,))
        inputs((torch.nn.Parameter(x),))
    assert 2 <= len(made) <= 20


def test_a_pytorch_without_the_guard_looks_at_every_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TensorGuards", None)
    inputs, x = inputs_like((5,)), torch.randn(5)
    assert inputs((x,))[0] is x and inputs((x,))[0] is x
