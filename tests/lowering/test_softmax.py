"""softmax and log_softmax: lowered and evaluated, against eager."""

from __future__ import annotations

import pytest
import torch

from tests.lowering.differential import assert_lowered_like_eager, lower_function, make

SHAPES = [(17,), (3, 1000), (2, 3, 17), (5, 1), (4, 0), (0, 4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_softmax_over_any_dim(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = make(shape, dtype) * 10
    for dim in range(-1, x.dim() - 1):
        assert_lowered_like_eager(lambda x, dim=dim: (x.softmax(dim), x.log_softmax(dim)), x)


def test_softmax_of_strided_inputs() -> None:
    x = make((6, 5, 8), torch.float32)
    assert_lowered_like_eager(lambda x: (x.transpose(1, 2).softmax(-1), x[:, ::2].softmax(1)), x)
    assert_lowered_like_eager(lambda x: x.log_softmax(1), x.transpose(0, 2))
    image = make((2, 3, 4, 5), torch.float32).to(memory_format=torch.channels_last)
    assert_lowered_like_eager(lambda x: x.softmax(1), image)


def test_zero_dim_input() -> None:
    assert_lowered_like_eager(lambda x: (x.softmax(0), x.log_softmax(-1)), torch.tensor(2.0))


def test_dtype_argument() -> None:
    x = make((3, 17), torch.bfloat16)
    assert_lowered_like_eager(lambda x: (x.softmax(-1, dtype=torch.float32), x.log_softmax(-1, dtype=torch.float32)), x)


def test_rows_of_infinities_and_nan() -> None:
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([[-inf, -inf, -inf], [0.0, -inf, 1.0], [inf, 0.0, 1.0], [nan, 0.0, 1.0], [1e30, -1e30, 0.0]])
    assert_lowered_like_eager(lambda x: (x.softmax(-1), x.log_softmax(-1)), x)
    assert_lowered_like_eager(lambda x: torch.ops.aten._safe_softmax(x, -1), x)


def test_softmax_is_three_nests() -> None:
    program = lower_function(lambda x: x.softmax(-1), make((4, 8), torch.bfloat16))
    kinds = [tuple(i.op for i in nest.reductions) for nest in program.nodes]
    assert kinds == [("max",), ("sum",), ()]
    temporaries = [b for b in program.buffers if b.role.value == "tmp"]
    assert {b.dtype for b in temporaries} == {torch.float32}
