"""Normalisations: lowered and evaluated, against eager; error against float64 where the mean is large."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.lowering.differential import assert_lowered_like_eager, make

aten = torch.ops.aten
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(17,), (4, 1000), (2, 3, 8), (3, 1), (0, 8)], ids=str)
def test_layer_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, w, b = make(shape, dtype), make(shape[-1:], dtype), make(shape[-1:], dtype)
    assert_lowered_like_eager(lambda x, w, b: aten.native_layer_norm(x, shape[-1:], w, b, 1e-5), x, w, b)
    assert_lowered_like_eager(lambda x: aten.native_layer_norm(x, shape[-1:], None, None, 1e-5)[0], x)


def test_layer_norm_over_two_dims_and_partial_affine() -> None:
    x, w = make((4, 5, 6), torch.float32), make((5, 6), torch.float32)
    assert_lowered_like_eager(lambda x, w: F.layer_norm(x, (5, 6), w, None), x, w)
    assert_lowered_like_eager(lambda x, w: F.layer_norm(x, (5, 6), None, w), x, w)


def test_layer_norm_of_half_with_float_weights() -> None:
    x, w, b = make((4, 33), torch.bfloat16), make((33,), torch.float32), make((33,), torch.float32)
    assert_lowered_like_eager(lambda x, w, b: aten.native_layer_norm(x, (33,), w, b, 1e-5)[0], x, w, b)


def test_layer_norm_of_strided_input() -> None:
    x = make((8, 4, 6), torch.float32)
    assert_lowered_like_eager(lambda x: F.layer_norm(x.transpose(0, 2), (8,)), x)
    assert_lowered_like_eager(lambda x: F.layer_norm(x, (8,)), x.transpose(0, 2))


@pytest.mark.parametrize("norm", ["layer", "group", "batch", "instance"])
def test_large_mean_is_not_worse_than_eager(norm: str) -> None:
    x = make((4, 8, 256), torch.float32) + 1e4
    fn = {
        "layer": lambda x: F.layer_norm(x, (256,)),
        "group": lambda x: F.group_norm(x, 2),
        "batch": lambda x: F.batch_norm(x, x.new_full((8,), 1e4), x.new_ones(8)),
        "instance": lambda x: F.instance_norm(x),
    }[norm]
    assert_lowered_like_eager(fn, x, against_double=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 6, 5), (2, 6, 3, 7), (1, 6, 2), (2, 6, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_group_norm(groups: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, w, b = make(shape, dtype), make((6,), dtype), make((6,), dtype)
    area = x.numel() // (x.shape[0] * 6)
    assert_lowered_like_eager(
        lambda x, w, b: aten.native_group_norm(x, w, b, x.shape[0], 6, area, groups, 1e-5), x, w, b
    )


def test_group_norm_without_space() -> None:
    assert_lowered_like_eager(lambda x: F.group_norm(x, 3), make((4, 6), torch.float32))


def test_group_norm_of_channels_last() -> None:
    x = make((2, 6, 4, 5), torch.float32).to(memory_format=torch.channels_last)
    assert_lowered_like_eager(lambda x: F.group_norm(x, 3), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (2, 5, 7), (2, 5, 3, 4)], ids=str)
def test_batch_norm_in_eval_mode(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, w, b, mean = make(shape, dtype), *(make((5,), dtype) for _ in range(3))
    var = make((5,), dtype).abs() + 0.5
    assert_lowered_like_eager(
        lambda *a: aten._native_batch_norm_legit_no_training(*a, 0.1, 1e-5)[0], x, w, b, mean, var
    )
    assert_lowered_like_eager(lambda x, m, v: F.batch_norm(x, m, v), x, mean, var)


def test_batch_norm_of_half_with_float_statistics() -> None:
    x = make((2, 5, 4, 4), torch.bfloat16)
    w, b, mean, var = (make((5,), torch.float32).abs() + 0.5 for _ in range(4))
    assert_lowered_like_eager(
        lambda *a: aten._native_batch_norm_legit_no_training(*a, 0.1, 1e-5)[0], x, w, b, mean, var
    )


def test_batch_norm_of_channels_last() -> None:
    x = make((2, 3, 4, 5), torch.float32).to(memory_format=torch.channels_last)
    mean, var = make((3,), torch.float32), make((3,), torch.float32).abs() + 0.5
    assert_lowered_like_eager(lambda x, m, v: F.batch_norm(x, m, v, m), x, mean, var)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_batch_norm_in_training_mode(dtype: torch.dtype) -> None:
    x, w, b = make((4, 5, 6), dtype), make((5,), torch.float32), make((5,), torch.float32)
    mean, var = make((5,), torch.float32), make((5,), torch.float32).abs() + 0.5
    functional = aten._native_batch_norm_legit_functional

    def read(*args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out, saved_mean, saved_rstd, new_mean, new_var = functional(*args, True, 0.1, 1e-5)
        # fake tensors promise bfloat16 for statistics that eager keeps in float32
        return (out, new_mean, new_var, *((saved_mean, saved_rstd) if dtype is torch.float32 else ()))

    assert_lowered_like_eager(read, x, w, b, mean, var)
    assert_lowered_like_eager(lambda *a: aten._native_batch_norm_legit.no_stats(*a, True, 0.1, 1e-5)[0], x, w, b)


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 3, 4, 5)], ids=str)
def test_instance_norm(shape: tuple[int, ...]) -> None:
    assert_lowered_like_eager(lambda x: F.instance_norm(x), make(shape, torch.float32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(17,), (4, 1000), (2, 3, 8), (3, 1)], ids=str)
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, w = make(shape, dtype), make(shape[-1:], dtype)
    norm = aten._fused_rms_norm
    assert_lowered_like_eager(lambda x, w: norm(x, shape[-1:], w, 1e-6)[0], x, w, decompose=False)
    assert_lowered_like_eager(lambda x: norm(x, shape[-1:], None, None)[0], x, decompose=False)
