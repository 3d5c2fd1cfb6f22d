"""Upsampling is traced as the op it is, forward and backward, and everything is as before afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import DispatchKey

import fusec
from fusec.capture.whole import upsampling_whole

pytestmark = pytest.mark.usefixtures("clean")
aten = torch.ops.aten

KINDS: dict[str, dict[str, Any]] = {
    "nearest": {"scale_factor": 2},
    "nearest to a size": {"size": (13, 5), "mode": "nearest"},
    "nearest by a fraction": {"scale_factor": 1.7},
    "nearest down": {"size": (3, 4)},
    "nearest-exact": {"size": (17, 9), "mode": "nearest-exact"},
    "bilinear": {"scale_factor": 2, "mode": "bilinear"},
    "bilinear by 8": {"scale_factor": 8, "mode": "bilinear"},
    "bilinear to corners": {"size": (13, 11), "mode": "bilinear", "align_corners": True},
    "bilinear down": {"size": (3, 4), "mode": "bilinear"},
    "bicubic": {"scale_factor": 2, "mode": "bicubic"},
    "bicubic to corners": {"size": (9, 20), "mode": "bicubic", "align_corners": True},
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_is_one_kernel_and_eagers(kind: str, channels_last: bool) -> None:
    def upsampled(x: Tensor) -> Tensor:
        return F.interpolate(x, **KINDS[kind])

    memory = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(2, 3, 7, 6).contiguous(memory_format=memory).requires_grad_()
    compiled = fusec.compile(upsampled)
    want = upsampled(x)
    incoming = torch.randn_like(want)
    (gradient,) = torch.autograd.grad(want, x, incoming)
    got = compiled(x)
    torch.testing.assert_close(got, want)
    assert got.stride() == want.stride()
    (found,) = torch.autograd.grad(got, x, incoming)
    torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-5)
    stats = fusec.stats()
    assert (stats["kernels_launched"], stats["extern_calls"], stats["fallbacks"]) == (2, 0, [])


def test_sizes_known_only_at_run_time_keep_the_rewrite() -> None:
    compiled = fusec.compile(lambda x: F.interpolate(x, scale_factor=2) + 1, dynamic=True)
    for n in (4, 7, 9):
        x = torch.randn(1, 2, n, 6)
        torch.testing.assert_close(compiled(x), F.interpolate(x, scale_factor=2) + 1)
    assert fusec.stats()["extern_calls"] == 0


def test_the_rewrites_are_back_afterwards() -> None:
    op = aten.upsample_nearest2d.default
    before = dict(op.py_kernels)
    with pytest.raises(ValueError, match="stop"), upsampling_whole([torch.ones(1)]):
        assert DispatchKey.Autograd not in op.py_kernels
        raise ValueError("stop")
    assert op.py_kernels == before
