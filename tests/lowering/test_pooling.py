"""Pooling: lowered and evaluated, against eager on the same inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.lowering.differential import assert_lowered_like_eager, lower_function, make

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(2, 2, 0, 1), (3, 2, 1, 1), (3, 1, 1, 2), ((2, 3), (1, 2), (1, 0), 1), (6, 4, 3, 1)],
)
def test_max_pool2d(
    kernel: object, stride: object, padding: object, dilation: int, ceil_mode: bool, dtype: torch.dtype
) -> None:
    x = make((2, 3, 11, 14), dtype)
    args = (kernel, stride, padding, dilation, ceil_mode)
    assert_lowered_like_eager(lambda x: F.max_pool2d(x, *args), x)
    if kernel != 6:
        assert_lowered_like_eager(lambda x: F.max_pool2d(x, *args, return_indices=True), x)


def test_max_pool_with_nan_and_rows_of_inf() -> None:
    x = make((1, 2, 9, 9), torch.float32)
    x[0, 0, 2, 3] = x[0, 0, 2, 4] = float("nan")
    x[0, 1] = float("-inf")
    x[0, 1, 4:] = 2.0
    assert_lowered_like_eager(lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True), x)
    assert_lowered_like_eager(lambda x: F.max_pool2d(x, 7, 1, 3), x)


def test_max_pool_of_other_ranks() -> None:
    assert_lowered_like_eager(lambda x: F.max_pool1d(x, 3, 2), make((2, 3, 17), torch.float32))
    assert_lowered_like_eager(lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True), make((3, 8, 9), torch.float32))
    assert_lowered_like_eager(
        lambda x: F.max_pool3d(x, 2, 2, 1, return_indices=True), make((2, 3, 4, 5, 6), torch.float32)
    )
    assert_lowered_like_eager(lambda x: F.max_pool2d(x, 2, return_indices=True), make((1, 2, 6, 6), torch.int64))


def test_channels_last() -> None:
    x = make((2, 3, 8, 9), torch.float32).to(memory_format=torch.channels_last)
    assert_lowered_like_eager(lambda x: (F.max_pool2d(x, 3, 2, 1), F.avg_pool2d(x, 2), F.adaptive_avg_pool2d(x, 4)), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("count_include_pad", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), ((2, 3), (1, 2), (1, 0)), (7, 3, 3), (3, 3, 1)]
)
def test_avg_pool2d(
    kernel: object, stride: object, padding: object, count_include_pad: bool, ceil_mode: bool, dtype: torch.dtype
) -> None:
    x = make((2, 3, 11, 14), dtype)
    assert_lowered_like_eager(lambda x: F.avg_pool2d(x, kernel, stride, padding, ceil_mode, count_include_pad), x)


def test_avg_pool_of_other_ranks_and_divisors() -> None:
    x = make((2, 3, 9, 10), torch.float32)
    assert_lowered_like_eager(lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5), x)
    assert_lowered_like_eager(lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=-2), x)
    assert_lowered_like_eager(lambda x: F.avg_pool2d(x[0], 3), x)
    assert_lowered_like_eager(lambda x: F.avg_pool1d(x, 3, 1, 1), make((2, 3, 17), torch.float32))
    assert_lowered_like_eager(lambda x: F.avg_pool3d(x, 2, 2, 1, True, False), make((2, 3, 5, 6, 7), torch.float32))


@pytest.mark.parametrize("size", [1, 2, 3, 5, (4, 7), (12, 14), (20, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_adaptive_avg_pool2d(dtype: torch.dtype, size: object) -> None:
    assert_lowered_like_eager(lambda x: F.adaptive_avg_pool2d(x, size), make((2, 3, 12, 14), dtype))


def test_adaptive_avg_pool_of_other_ranks() -> None:
    assert_lowered_like_eager(lambda x: F.adaptive_avg_pool1d(x, 5), make((2, 3, 17), torch.float32))
    assert_lowered_like_eager(lambda x: F.adaptive_avg_pool3d(x, (2, 3, 1)), make((1, 2, 4, 7, 5), torch.float32))
    assert_lowered_like_eager(lambda x: F.adaptive_avg_pool2d(x, 3), make((2, 7, 8), torch.float32))


@pytest.mark.parametrize("size", [3, 5, (4, 7)])
def test_adaptive_max_pool2d(size: object) -> None:
    x = make((2, 3, 12, 14), torch.float32)
    x[0, 0, 3, 3] = float("nan")
    assert_lowered_like_eager(lambda x: F.adaptive_max_pool2d(x, size, return_indices=True), x)


def test_positions_in_large_windows_are_a_library_call() -> None:
    x = make((2, 3, 12, 14), torch.float32)
    assert_lowered_like_eager(lambda x: F.adaptive_max_pool2d(x, 1), x)
    assert_lowered_like_eager(lambda x: F.adaptive_max_pool2d(x, 1, return_indices=True), x, externs=1)


def test_small_windows_are_pointwise_and_large_ones_reduce() -> None:
    x = make((1, 2, 16, 16), torch.float32)
    (small,) = lower_function(lambda x: F.avg_pool2d(x, 3), x).nodes
    (large,) = lower_function(lambda x: F.avg_pool2d(x, 8), x).nodes
    assert small.is_pointwise
    assert [i.op for i in large.reductions] == ["sum"]


def test_a_window_inside_the_input_needs_no_mask() -> None:
    (nest,) = lower_function(lambda x: F.max_pool2d(x, 2), make((1, 2, 8, 8), torch.float32)).nodes
    assert not any(i.args for i in nest.body if i.op == "load")
