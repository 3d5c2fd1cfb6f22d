"""Nearest upsampling: lowered and evaluated, against eager on the same inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.lowering.differential import assert_lowered_like_eager, lower_function, make

aten = torch.ops.aten


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("size", [(14, 10), (7, 5), (13, 3), (1, 1), (21, 17)], ids=str)
def test_to_a_size(size: tuple[int, int], dtype: torch.dtype, mode: str) -> None:
    x = make((2, 3, 7, 5), dtype)
    assert_lowered_like_eager(lambda x: F.interpolate(x, size=size, mode=mode), x, decompose=False)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("scale", [2, 3, 0.5, 1.7, 2.3, 0.3, (2, 1.5)])
@pytest.mark.parametrize("recompute", [False, True])
def test_by_a_scale(recompute: bool, scale: object, mode: str) -> None:
    x = make((1, 2, 7, 10), torch.float32)
    assert_lowered_like_eager(
        lambda x: F.interpolate(x, scale_factor=scale, mode=mode, recompute_scale_factor=recompute), x, decompose=False
    )


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_other_ranks(mode: str) -> None:
    x = make((2, 3, 11), torch.float32)
    assert_lowered_like_eager(lambda x: F.interpolate(x, size=25, mode=mode), x, decompose=False)
    y = make((1, 2, 3, 4, 5), torch.float32)
    assert_lowered_like_eager(lambda x: F.interpolate(x, scale_factor=2, mode=mode), y, decompose=False)
    assert_lowered_like_eager(lambda x: F.interpolate(x, size=(2, 9, 6), mode=mode), y, decompose=False)


def test_every_small_size_takes_eagers_elements() -> None:
    for n in (3, 10, 23):
        x = torch.arange(float(n)).reshape(1, 1, n)
        for out in (*range(1, 3 * n, 4), 997):
            assert_lowered_like_eager(lambda x, out=out: aten.upsample_nearest1d(x, [out]), x, decompose=False)


def test_channels_last() -> None:
    x = make((2, 3, 4, 5), torch.float32).to(memory_format=torch.channels_last)
    assert_lowered_like_eager(lambda x: F.interpolate(x, scale_factor=2), x, decompose=False)


def test_a_factor_of_two_is_an_index_not_arithmetic() -> None:
    x = make((1, 1, 4, 4), torch.float32)
    (nest,) = lower_function(lambda x: F.interpolate(x, scale_factor=2), x, decompose=False).nodes
    assert [i.op for i in nest.body] == ["load", "store"]
