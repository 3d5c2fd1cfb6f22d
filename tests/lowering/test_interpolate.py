"""Upsampling by linear and cubic weights, sampling at positions of a grid, and the gradients of upsampling."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F

from tests.lowering.differential import assert_kernels_like_eager, assert_lowered_like_eager, make

aten = torch.ops.aten
f32 = torch.float32


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("dtype", [f32, torch.bfloat16, torch.float64], ids=str)
def test_upsampling(dtype: torch.dtype, align: bool) -> None:
    line, image, volume = make((2, 3, 5), dtype), make((2, 3, 4, 5), dtype), make((1, 2, 3, 4, 3), dtype)
    for size in (8, 5, 3, 1):
        assert_lowered_like_eager(lambda x, n=size: F.interpolate(x, n, mode="linear", align_corners=align), line)
    for size in ((8, 6), (3, 10), (1, 1), (4, 7)):
        for mode in ("bilinear", "bicubic"):
            assert_lowered_like_eager(lambda x, n=size, m=mode: F.interpolate(x, n, mode=m, align_corners=align), image)
    assert_lowered_like_eager(lambda x: F.interpolate(x, (4, 2, 5), mode="trilinear", align_corners=align), volume)


def test_upsampling_by_factors_and_between_pointwise_ops() -> None:
    x = make((2, 3, 4, 5), f32)
    nhwc = x.contiguous(memory_format=torch.channels_last)
    for image in (x, nhwc):
        steps = assert_kernels_like_eager(
            lambda x: torch.relu(F.interpolate(x * 2, scale_factor=(1.7, 2.3), mode="bilinear") + 1), image
        )
        assert len(steps.steps) == 1
    assert_kernels_like_eager(lambda x: F.interpolate(x, scale_factor=3, mode="bicubic", align_corners=True), nhwc)


def test_antialiasing_stays_a_library_call() -> None:
    assert_lowered_like_eager(
        lambda x: F.interpolate(x, (2, 3), mode="bilinear", antialias=True), make((1, 2, 6, 7), f32), externs=1
    )


GRADIENTS = [
    ("upsample_linear1d", (2, 3, 5), [8], (False,)),
    ("upsample_linear1d", (2, 3, 5), [8], (True,)),
    ("upsample_bilinear2d", (2, 3, 4, 5), [7, 9], (False,)),
    ("upsample_bilinear2d", (2, 3, 4, 5), [8, 10], (True, 2.0, 2.0)),
    ("upsample_bicubic2d", (2, 3, 4, 5), [7, 9], (False,)),
    ("upsample_trilinear3d", (1, 2, 3, 4, 3), [4, 5, 6], (True,)),
    ("upsample_nearest1d", (2, 3, 5), [9], ()),
    ("upsample_nearest2d", (2, 3, 4, 5), [8, 10], ()),
    ("upsample_nearest2d", (2, 3, 4, 5), [7, 9], ()),
    ("upsample_nearest2d", (2, 3, 2, 2), [20, 20], ()),
    ("upsample_nearest3d", (1, 2, 2, 3, 2), [4, 6, 5], ()),
    ("_upsample_nearest_exact2d", (2, 3, 4, 5), [7, 9], ()),
    ("_upsample_nearest_exact2d", (2, 3, 4, 5), [12, 15], ()),
]


@pytest.mark.parametrize(("name", "shape", "size", "rest"), GRADIENTS)
def test_gradients_of_upsampling(name: str, shape: tuple[int, ...], size: list[int], rest: Sequence[object]) -> None:
    grad = make((*shape[: len(shape) - len(size)], *size), f32, 4)
    backward = getattr(aten, f"{name}_backward")
    assert_kernels_like_eager(lambda g: backward(g, size, list(shape), *rest), grad)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_grid_sample(mode: str, padding: str, align: bool) -> None:
    image, grid = make((2, 3, 7, 8), f32), make((2, 5, 4, 2), f32, 3) * 1.2
    grid[0, 0, 0, 0], grid[0, 1, 0] = torch.nan, torch.inf
    if padding != "border":
        grid = grid.nan_to_num(0.3, 2.0)
    assert_kernels_like_eager(lambda x, g: F.grid_sample(x, g, mode, padding, align), image, grid)
    if mode != "bicubic":
        volume, places = make((1, 2, 4, 3, 5), f32), make((1, 3, 2, 2, 3), f32) * 1.2
        assert_lowered_like_eager(lambda x, g: F.grid_sample(x, g, mode, padding, align), volume, places)


def test_grid_sample_of_one_element() -> None:
    for padding in ("zeros", "border", "reflection"):
        assert_lowered_like_eager(
            lambda x, g, p=padding: F.grid_sample(x, g, "bilinear", p, True),
            make((1, 2, 1, 1), f32),
            make((1, 3, 3, 2), f32),
        )
