"""The backward of a group norm: sums of channels, their sums of a group and the input's gradient in one launch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fusec
from bench.cases import Case, Work
from bench.metered import count
from bench.schedules import capture, scheduled
from bench.training import step, with_incoming
from fusec.ir.kernels import KernelPlan, Schedule, Strategy
from tests.training import gradients
from tests.training.gradients import FACTOR, SEEDS

pytestmark = pytest.mark.usefixtures("clean")
Shape = tuple[int, ...]


def norm(groups: int) -> Callable[..., Tensor]:
    return lambda x, *affine: F.silu(F.group_norm(x, groups, *affine))


def inputs(shape: Shape, dtype: torch.dtype, affine: bool, channels_last: bool) -> tuple[Tensor, ...]:
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    scales = (1 + torch.randn(shape[1]).to(dtype) / 4, torch.randn(shape[1]).to(dtype) / 4)
    return (x, *(scales if affine else ()))


# shape, groups: held whole and walked over twice, one channel a group, one group, one pixel, odd channels and pixels
SIZES: tuple[tuple[Shape, int], ...] = (
    ((150, 8, 4, 4), 2),
    ((160, 15, 17, 17), 3),
    ((135, 3, 33, 65), 1),
    ((6, 170, 9, 1), 17),
    ((160, 34, 1, 1), 2),
    ((3, 4, 5, 7), 4),
    ((150, 10, 9, 9), 1),
    ((1, 34, 17, 1), 2),
)
KINDS = [(True, False), (False, False), (True, True)]


@pytest.mark.parametrize(("affine", "channels_last"), KINDS, ids=["affine", "plain", "channels_last"])
@pytest.mark.parametrize(("number", "shape", "groups"), [(i, *size) for i, size in enumerate(SIZES)])
def test_gradients_are_as_good_as_eagers(
    number: int, shape: Shape, groups: int, affine: bool, channels_last: bool
) -> None:
    fn, case = norm(groups), gradients.Case(norm(groups))
    dtype = (torch.float32, torch.bfloat16)[number % 2]
    compiled = fusec.compile(fn, options={"precision": ("fast", "eager")[number // 2 % 2], "strict": True})
    errors: dict[str, list[float]] = {"eager": [], "fusec": []}
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        args = inputs(shape, dtype, affine, channels_last)
        incoming = torch.randn(shape).to(dtype)
        exact = case.step(fn, [a.double() for a in args], incoming.double())
        for who, run in (("eager", fn), ("fusec", compiled)):
            seen = case.step(run, args, incoming)
            errors[who] += [gradients.error(s, e) for s, e in zip(seen, exact, strict=True)]
    outputs = len(errors["eager"]) // SEEDS
    for i in range(outputs):
        eager, ours = (sum(errors[who][i::outputs]) / SEEDS for who in ("eager", "fusec"))
        assert ours <= FACTOR * eager + torch.finfo(dtype).eps / 2, f"value {i}: {ours:.2e}, eager mode {eager:.2e}"


def backward(shape: Shape, groups: int, affine: bool, channels_last: bool = False) -> Schedule:
    def work() -> Work:
        args = inputs(shape, torch.bfloat16, affine, channels_last)
        return Work(norm(groups), tuple(a.requires_grad_() for a in args))

    case = Case("group_norm", "", with_incoming(work), {}, {}, run=step)
    return scheduled(capture(case.build, case.run)[-1])


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("shape", "groups", "strategy"),
    [
        ((16, 320, 64, 64), 32, Strategy.ROW_AND_COLUMN),
        ((16, 640, 32, 32), 32, Strategy.ROW_AND_COLUMN),
        ((16, 1280, 16, 16), 32, Strategy.ROW_AND_COLUMN),
        ((140, 12, 33, 65), 2, Strategy.ROW_AND_COLUMN),
        ((16, 1280, 8, 8), 32, Strategy.PERSISTENT_ROW),
        ((256, 64, 7, 7), 1, Strategy.PERSISTENT_ROW),
        ((160, 34, 7, 7), 2, Strategy.PERSISTENT_ROW),
    ],
)
def test_one_launch_reads_the_input_and_its_gradient_once(
    shape: Shape, groups: int, affine: bool, strategy: Strategy
) -> None:
    steps = backward(shape, groups, affine)
    first, *rest = (s for s in steps.steps if isinstance(s, KernelPlan))
    assert first.strategy is strategy and len(rest) == (1 if affine else 0)
    assert count(steps).graphs_ratio <= 1.06  # beside the gradients, the sums of channels: small where rows are not


def test_channels_last_maps_as_small_are_read_once() -> None:
    assert count(backward((16, 1280, 8, 8), 32, True, channels_last=True)).kernels == 2


def test_a_map_too_large_to_hold_or_few_groups_take_more_launches() -> None:
    for shape in ((16, 320, 128, 128), (1, 320, 64, 64)):
        assert count(backward(shape, 32, True)).kernels == 3
