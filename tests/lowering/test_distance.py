"""Distances between rows, masked_scatter and unpooling, against eager."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fusec.errors import IndexOutOfRange
from fusec.ir.evaluate import evaluate_program
from tests.lowering.differential import assert_kernels_like_eager, assert_lowered_like_eager, lower_function, make

aten = torch.ops.aten
f32 = torch.float32


@pytest.mark.parametrize("p", [0.0, 1.0, 1.5, 2.0, 3.0, float("inf")])
def test_distances_and_their_gradient(p: float) -> None:
    a, b = make((2, 9, 7), f32), make((2, 5, 7), f32, 3)
    b[0, 0], a[1, 2, 3] = a[0, 0], b[1, 1, 3]  # no distance, and none along one element
    assert_kernels_like_eager(lambda a, b: aten._cdist_forward(a, b, p, None), a, b)
    assert_lowered_like_eager(lambda a, b: aten._cdist_forward(a, b, p, None), a[0], b[0])
    far, grad = torch.cdist(a, b, p), make((2, 9, 5), f32, 4)
    assert_kernels_like_eager(lambda g, a, b, d: aten._cdist_backward(g, a, b, p, d), grad, a, b, far)


def test_euclidean_distances_of_many_rows_multiply_matrices() -> None:
    a, b = make((40, 7), f32), make((5, 7), f32)
    assert_lowered_like_eager(lambda a, b: aten._cdist_forward(a, b, 2.0, None), a, b, externs=1)
    assert_lowered_like_eager(lambda a, b: aten._cdist_forward(a, b, 2.0, 2), a, b)


def test_masked_scatter() -> None:
    x, source = make((5, 8), f32), make((50,), f32, 2)
    mask = make((5, 8), torch.bool)
    assert_kernels_like_eager(lambda x, m, s: x.masked_scatter(m, s) * 2, x, mask, source)
    assert_kernels_like_eager(lambda x, m, s: x.masked_scatter(m[:1], s), x, mask, source)
    assert_kernels_like_eager(lambda x, m, s: x.t().masked_scatter(m.t(), s), x, mask, source)
    assert_lowered_like_eager(lambda x, m, s: x.masked_scatter(m & ~m, s), x, mask, source[:0])
    program = lower_function(lambda x, m, s: x.masked_scatter(m, s), x, mask, source[:3])
    with pytest.raises(IndexOutOfRange):
        evaluate_program(program, [x, mask, source[:3]])


def test_unpooling() -> None:
    y, at = F.max_pool2d(make((2, 3, 6, 8), f32), 2, return_indices=True)
    assert_kernels_like_eager(lambda y, i: F.max_unpool2d(y, i, 2) + 1, y, at)
    y, at = F.max_pool3d(make((1, 2, 4, 6, 4), f32), 2, return_indices=True)
    assert_kernels_like_eager(lambda y, i: F.max_unpool3d(y, i, 2), y, at)


def test_log_sigmoid_saves_what_its_gradient_reads() -> None:
    x = make((5, 8), f32)
    assert_kernels_like_eager(lambda x: tuple(aten.log_sigmoid_forward(x)), x)
