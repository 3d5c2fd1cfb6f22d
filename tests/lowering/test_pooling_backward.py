"""Gradients of pooling and padding, and sliding blocks: gathered where they can be, against eager."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fusec.capture.pooling import POOL, POOL_BACKWARD
from fusec.ir.types import AccessMode
from tests.lowering.differential import (
    assert_kernels_like_eager,
    assert_lowered_like_eager,
    lower_function,
    make,
    store_modes,
)

aten = torch.ops.aten
f32 = torch.float32

# kernel, stride, padding, dilation, ceil_mode
POOLS = [
    ([3, 3], [2, 2], [1, 1], [1, 1], False),
    ([2, 2], [], [0, 0], [1, 1], False),
    ([3, 2], [1, 2], [1, 0], [2, 1], True),
    ([2, 2], [3, 3], [0, 0], [1, 1], False),
    ([7, 7], [1, 1], [3, 3], [1, 1], False),
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation", "ceil"), POOLS)
def test_max_pool(kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil: bool) -> None:
    x = make((2, 3, 9, 10), f32)
    y, at = aten.max_pool2d_with_indices(x, kernel, stride, padding, dilation, ceil)
    backward = aten.max_pool2d_with_indices_backward
    assert_kernels_like_eager(
        lambda g, x, i: backward(g, x, kernel, stride, padding, dilation, ceil, i), make(y.shape, f32, 3), x, at
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels last"])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "ceil"),
    [
        *POOLS[:-1],
        ([3, 3], [1, 1], [1, 1], [3, 3], False),  # an element lies in windows that are far apart: maxima are scattered
        ([1, 4], [1, 3], [0, 2], [1, 1], True),
        ([2, 12], [1, 1], [0, 6], [8, 1], False),  # offsets up to 8*12 + 11
    ],
)
def test_max_pool_by_offsets(
    kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil: bool, layout: Any
) -> None:
    geometry = (kernel, stride, padding, dilation, ceil)
    x = make((2, 3, 9, 10), f32).round().to(memory_format=layout)  # many ties
    x[0, 0, :3, :3], x[1, 1, 4, 5:7] = float("-inf"), float("nan")
    y, at = aten.max_pool2d_with_indices(x, *geometry)
    grad = make(y.shape, f32, 3)
    assert_kernels_like_eager(lambda x: POOL(x, *geometry), x)
    values, offsets = POOL(x, *geometry)
    gradient = aten.max_pool2d_with_indices_backward(grad, x, *geometry, at)
    torch.testing.assert_close(values, y, equal_nan=True)
    torch.testing.assert_close(POOL_BACKWARD(grad, offsets, x.shape, x.stride(), *geometry), gradient)
    assert_kernels_like_eager(lambda g, o: POOL_BACKWARD(g, o, x.shape, x.stride(), *geometry), grad, offsets)


@pytest.mark.parametrize("divisor", [None, 3])
@pytest.mark.parametrize("count_padding", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "padding", "ceil"), [(k, s, p, c) for k, s, p, d, c in POOLS])
def test_avg_pool(
    kernel: list[int], stride: list[int], padding: list[int], ceil: bool, count_padding: bool, divisor: int | None
) -> None:
    x = make((2, 3, 9, 10), f32)
    rest = (kernel, stride, padding, ceil, count_padding, divisor)
    grad = make(aten.avg_pool2d(x, *rest).shape, f32, 4)
    assert_lowered_like_eager(lambda g, x: aten.avg_pool2d_backward(g, x, *rest), grad, x)


@pytest.mark.parametrize("out", [(3, 5), (4, 3), (9, 10), (11, 12), (1, 1), (9, 2)])
def test_adaptive_pools(out: tuple[int, int]) -> None:
    x = make((2, 3, 9, 10), f32)
    y, at = aten.adaptive_max_pool2d(x, out)
    grad = make(y.shape, f32, 3)
    assert_kernels_like_eager(lambda g, x, i: aten.adaptive_max_pool2d_backward(g, x, i), grad, x, at)
    assert_kernels_like_eager(lambda g, x: aten._adaptive_avg_pool2d_backward(g, x), grad, x)


def test_three_dimensions() -> None:
    x, geometry = make((2, 4, 5, 6), f32), ([2, 3, 2], [2, 1, 2], [1, 1, 0])
    y, at = aten.max_pool3d_with_indices(x, *geometry)
    grad = make(y.shape, f32, 3)
    backward = aten.max_pool3d_with_indices_backward
    assert_kernels_like_eager(lambda g, x, i: backward(g, x, *geometry, [1, 1, 1], False, i), grad, x, at)
    assert_lowered_like_eager(lambda g, x: aten.avg_pool3d_backward(g, x, *geometry, False, True, None), grad, x)
    y, at = aten.adaptive_max_pool3d(x, (2, 3, 4))
    grad = make(y.shape, f32, 3)
    assert_lowered_like_eager(lambda g, x, i: aten.adaptive_max_pool3d_backward(g, x, i), grad, x, at)
    assert_lowered_like_eager(lambda g, x: aten._adaptive_avg_pool3d_backward(g, x), grad, x)


def test_only_crowded_maxima_are_scattered() -> None:
    def modes(kernel: list[int], stride: list[int]) -> set[AccessMode]:
        x = make((1, 1, 12, 12), f32)
        y, at = aten.max_pool2d_with_indices(x, kernel, stride)
        backward = aten.max_pool2d_with_indices_backward
        program = lower_function(lambda g, x, i: backward(g, x, kernel, stride, [0, 0], [1, 1], False, i), y, x, at)
        return store_modes(program)

    assert modes([3, 3], [2, 2]) == {AccessMode.STORE}
    assert AccessMode.ATOMIC_ADD in modes([6, 6], [1, 1])


@pytest.mark.parametrize(
    ("kernel", "dilation", "padding", "stride"),
    [([3, 3], [1, 1], [1, 1], [1, 1]), ([2, 3], [2, 1], [0, 2], [2, 1]), ([6, 6], [1, 1], [3, 3], [2, 2])],
)
def test_im2col_and_back(kernel: list[int], dilation: list[int], padding: list[int], stride: list[int]) -> None:
    x = make((2, 3, 7, 8), f32)
    geometry = (kernel, dilation, padding, stride)
    assert_kernels_like_eager(lambda x: aten.im2col(x, *geometry), x)
    columns = make(aten.im2col(x, *geometry).shape, f32, 2)
    assert_kernels_like_eager(lambda c: aten.col2im(c, [7, 8], *geometry), columns)
    assert_lowered_like_eager(lambda c: aten.col2im(c, [7, 8], *geometry), columns[0])


@pytest.mark.parametrize(("dim", "size", "step"), [(0, 1, 1), (1, 3, 1), (2, 2, 3), (3, 3, 2), (-1, 8, 1), (-1, 30, 1)])
def test_gradient_of_unfold(dim: int, size: int, step: int) -> None:
    x = make((2, 3, 7, 40), f32)
    grad = make(x.unfold(dim, size, step).shape, f32, 5)
    assert_kernels_like_eager(lambda g: aten.unfold_backward(g, list(x.shape), dim, size, step), grad)


@pytest.mark.parametrize("kind", ["reflection", "replication"])
def test_gradients_of_padding(kind: str) -> None:
    for pad, shape in (([2, 3], (2, 3, 7)), ([2, 0, 1, 2], (2, 3, 4, 5)), ([1, 1, 0, 2, 1, 0], (1, 2, 3, 4, 5))):
        x = make(shape, f32)
        n = len(pad) // 2
        forward, backward = getattr(aten, f"{kind}_pad{n}d"), getattr(aten, f"{kind}_pad{n}d_backward")
        grad = make(forward(x, pad).shape, f32, 2)
        assert_kernels_like_eager(lambda g, x, b=backward, p=pad: b(g, x, p), grad, x)
