"""Scans: lowered, evaluated, fused and interpreted, against eager and float64."""

from __future__ import annotations

import pytest
import torch

from fusec.ir.kernels import KernelPlan, Strategy
from fusec.lowering import scan
from tests.lowering.differential import assert_kernels_like_eager, assert_lowered_like_eager, make

DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
SHAPES = [(), (17,), (3, 1), (2, 7, 4), (0, 3), (3, 0)]


def whole(*shape: int) -> torch.Tensor:
    """Small integers as floats, so that sums are exact in any order."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(5)).float()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_scan_along_every_dimension(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = make(shape, dtype)
    for dim in range(max(1, len(shape))):
        assert_lowered_like_eager(lambda x, d=dim: (x.cumsum(d), x.cumprod(d), x.cummax(d), x.cummin(d)), x)
        if dtype.is_floating_point:
            assert_lowered_like_eager(lambda x, d=dim: x.logcumsumexp(d), x)
    assert_kernels_like_eager(lambda x: (x.cumsum(-1), x.cummax(0).indices, x.cummin(-1).values), x)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float64, torch.int64], ids=str)
def test_values_are_converted_first(dtype: torch.dtype) -> None:
    x = make((3, 200), torch.float32) * 40
    assert_kernels_like_eager(lambda x: (x.cumsum(1, dtype=dtype), (x > 3).cumprod(0, dtype=dtype)), x)


def test_special_values() -> None:
    inf, nan = float("inf"), float("nan")
    rows = [[1.0, nan, 2.0, nan, 3.0], [inf, -inf, 1.0, inf, 2.0], [-inf] * 5, [2.0] * 5, [-0.0, 0.0, -0.0, 0.0, -0.0]]
    x = torch.tensor([*rows, [inf] * 5])
    assert_kernels_like_eager(lambda x: (x.cumsum(1), x.cumprod(1), x.cummax(1), x.cummin(1), x.logcumsumexp(1)), x)


def test_strided_operands() -> None:
    x = whole(48, 64)
    assert_kernels_like_eager(lambda x: (x.cumsum(0) * 2, x.t().cumsum(0) + 1, x[::2, 3:50].cumsum(1)), x)
    assert_kernels_like_eager(lambda x: (x.flip(1).cumsum(1).flip(1), x[:1].expand(8, 64).cumsum(0)), x)


def test_a_scan_fuses_with_its_row() -> None:
    x = make((64, 96), torch.float32)
    for fn in (
        lambda x: (x * 2 + 1).cumsum(1).exp() / x.sum(1, keepdim=True),
        lambda x: x.softmax(1).cumsum(1),
        lambda x: x.cumsum(1).softmax(1),
        lambda x: x.cumsum(1).view(64, 12, 8).transpose(1, 2) * 2,
        lambda x: (x.cumsum(1), x.cummax(1), x.sum(1)),
    ):
        steps = assert_kernels_like_eager(fn, x)
        assert len(steps.steps) == 1, [d.reason for d in steps.decisions]


def test_scans_of_different_axes_stay_apart() -> None:
    steps = assert_kernels_like_eager(lambda x: x.cumsum(0) + x.cumsum(1), make((32, 40), torch.float32))
    assert len(steps.steps) == 2 and any("scan along different axes" in d.reason for d in steps.decisions)
    steps = assert_kernels_like_eager(lambda x: x.view(-1).cumsum(0).view(32, 40).sum(1), make((32, 40), torch.float32))
    assert len(steps.steps) == 2


def test_rows_too_long_to_hold_are_looped() -> None:
    x = whole(70, 20000)
    for fn in (
        lambda x: x.cumsum(1) / (x * x).sum(1, keepdim=True),
        lambda x: (c := x.cumsum(1)) / c.amax(1, keepdim=True).clamp(min=1),
        lambda x: (x.cummax(1).indices, x.cummin(1), (x * 0.01).logcumsumexp(1)),
    ):
        (plan,) = assert_kernels_like_eager(fn, x).steps
        assert isinstance(plan, KernelPlan) and plan.strategy is Strategy.LOOPED_ROW


@pytest.mark.parametrize("length", [scan.LONG, scan.LONG + 4097])
def test_few_long_rows_are_cut_into_slices(length: int) -> None:
    x = whole(2, length)
    steps = assert_kernels_like_eager(lambda x: x.cumsum(1), x)
    assert {b.hint for b in steps.buffers} >= {"totals", "ends"}
    assert_kernels_like_eager(lambda x: x.to(torch.int64).cumsum(1) + 1, x)
    assert_lowered_like_eager(lambda x: (x.sign() + 0.5).sign().cumprod(1), x)
    assert_lowered_like_eager(lambda x: (x.cummax(1), x.cummin(1)), x)


def test_error_against_float64() -> None:
    """Block by block and slice by slice, rounding errors grow with the logarithm of a block, not with the row."""
    for rows, length in ((100, 4097), (70, 20000), (1, 100_000)):
        x = torch.rand(rows, length, generator=torch.Generator().manual_seed(1))
        assert_kernels_like_eager(lambda x: x.cumsum(1), x)


def test_gradients_are_scans() -> None:
    def gradient(x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.flip(torch.ops.aten.cumsum(torch.ops.aten.flip(g, [1]), 1), [1]) * x

    assert_kernels_like_eager(gradient, make((6, 40), torch.float32), make((6, 40), torch.float32, 2))
