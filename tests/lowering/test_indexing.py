"""Indexing: lowered and evaluated, against eager on the same inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fusec.config import Config
from fusec.errors import IndexOutOfRange
from fusec.ir.evaluate import evaluate_program
from fusec.schedule import schedule, simplify
from tests.lowering.differential import assert_kernels_like_eager, assert_lowered_like_eager, lower_function, make
from tests.property.harness import build_for_cpu

aten = torch.ops.aten
DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.bool]


def ints(shape: tuple[int, ...], low: int, high: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(7)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32], ids=str)
@pytest.mark.parametrize("shape", [(5,), (3, 7), (), (0,), (2, 1, 4)], ids=str)
def test_embedding(shape: tuple[int, ...], index_dtype: torch.dtype, dtype: torch.dtype) -> None:
    table, index = make((17, 9), dtype), ints(shape, 0, 17, index_dtype)
    assert_lowered_like_eager(lambda t, i: F.embedding(i, t), table, index)


def test_embedding_of_strided_operands() -> None:
    table, index = make((9, 17), torch.float32).t(), ints((6, 4), 0, 17).t()
    assert_lowered_like_eager(lambda t, i: F.embedding(i, t, padding_idx=0) * 2, table, index)
    assert_lowered_like_eager(lambda t, i: F.embedding(i[1:, ::2], t), table, index)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_index_select(dim: int, dtype: torch.dtype) -> None:
    x = make((4, 6, 5), dtype)
    assert_lowered_like_eager(lambda x, i: x.index_select(dim, i), x, ints((9,), 0, 4))
    assert_lowered_like_eager(lambda x, i: x.transpose(0, 2).index_select(dim, i), x, ints((9,), 0, 4, torch.int32))


def test_index_select_with_zero_dims() -> None:
    assert_lowered_like_eager(lambda x, i: x.index_select(0, i), torch.tensor(2.0), torch.tensor([0]))
    assert_lowered_like_eager(lambda x, i: x.index_select(0, i), make((4, 3), torch.float32), torch.tensor(2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_gather(dim: int, dtype: torch.dtype) -> None:
    x = make((4, 6, 5), dtype)
    assert_lowered_like_eager(lambda x, i: x.gather(dim, i), x, ints((3, 2, 4), 0, 4))
    assert_lowered_like_eager(lambda x, i: torch.take_along_dim(x, i, dim), x, ints((4, 6, 5), 0, 4))


def test_gather_of_zero_dims() -> None:
    assert_lowered_like_eager(lambda x, i: x.gather(0, i), torch.tensor(2.0), torch.tensor(0))
    assert_lowered_like_eager(lambda x, i: x.gather(0, i), make((5,), torch.float32), ints((0,), 0, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize(
    "fn",
    [
        lambda x, i, j: x[i],
        lambda x, i, j: x[:, j],
        lambda x, i, j: x[i, j],
        lambda x, i, j: x[i, :, j],
        lambda x, i, j: x[:, i, j],
        lambda x, i, j: x[:, :, i, j],
        lambda x, i, j: x[i[:, None], j],
        lambda x, i, j: x[i[:, None], :, j],
        lambda x, i, j: x[i, 1:, None, j],
        lambda x, i, j: x[..., i],
        lambda x, i, j: x[i.reshape(1, -1), j, i, j],
        lambda x, i, j: aten._unsafe_index.Tensor(x, [None, i, j]),
    ],
)
def test_index_by_tensors(fn: object, dtype: torch.dtype) -> None:
    i, j = ints((5,), -4, 4), ints((5,), -3, 3)
    assert_lowered_like_eager(fn, make((4, 4, 4, 4), dtype), i, j)


def test_index_by_smaller_integers_and_zero_dims() -> None:
    x = make((4, 5), torch.float32)
    assert_lowered_like_eager(lambda x, i: aten.index.Tensor(x, [i]), x, torch.tensor(-2))
    assert_lowered_like_eager(lambda x, i: (x[i], x[:, i]), x, ints((3,), -4, 4, torch.int32))
    assert_lowered_like_eager(lambda x, i: x[i], x, torch.zeros(0, dtype=torch.int64))


def test_index_of_channels_last() -> None:
    x = make((2, 3, 4, 5), torch.float32).to(memory_format=torch.channels_last)
    assert_lowered_like_eager(lambda x, i: (x[:, :, i], x[i], x.index_select(1, i)), x, torch.tensor([1, 0, -1]).abs())


def test_take_flattens() -> None:
    x = make((4, 5), torch.float32)
    assert_lowered_like_eager(lambda x, i: (x.take(i), x.t().take(i)), x, ints((3, 3), -20, 20))


def test_masked_index() -> None:
    x, i = make((6,), torch.float32), torch.tensor([0, 9, 2, -1])
    mask = torch.tensor([True, False, True, True])
    assert_lowered_like_eager(lambda x, m, i: aten._unsafe_masked_index(x, m, [i], 5.0), x, mask, i)


def test_an_index_out_of_range_never_reads_outside() -> None:
    x, i = make((4, 3), torch.float32), torch.tensor([0, 7, -9, 3])
    program = lower_function(lambda x, i: x[i], x, i)
    (load,) = [i for n in program.nodes for i in n.body if i.op == "load" and i.args]
    assert load.attr("other") == 0


OUT_OF_RANGE = {
    "embedding": (lambda x, i: F.embedding(i.abs(), x), 4),
    "index": (lambda x, i: x[i], -5),
    "gather": (lambda x, i: x.gather(0, i[:, None]), -1),
    "index_select": (lambda x, i: x.index_select(0, i), 4),
    "take": (lambda x, i: x.take(i), 12),
    "index_put": (lambda x, i: aten.index_put(x, [i], x[:2]), 4),
    "index_put of one place": (lambda x, i: aten.index_put(x, [i[1:]], x[:1]), -5),
    "scatter_add": (lambda x, i: x.scatter_add(0, i[:, None], x), -1),
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_an_index_out_of_range_is_an_error(name: str) -> None:
    fn, bad = OUT_OF_RANGE[name]
    x = make((4, 3), torch.float32)
    assert_kernels_like_eager(fn, x, torch.tensor([1, 2]))
    with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)"):
        fn(x, torch.tensor([1, bad]))
    program = lower_function(fn, x, torch.tensor([1, 2]))
    with pytest.raises(IndexOutOfRange):
        evaluate_program(program, [x, torch.tensor([1, bad])])
    steps = schedule(simplify(program, Config()), Config())
    with pytest.raises(IndexOutOfRange):
        build_for_cpu(steps, Config())(x, torch.tensor([1, bad]))


def test_the_error_is_eagers_own() -> None:
    table = make((4, 3), torch.float32)
    compiled = torch.compile(lambda x, i: F.embedding(i, x) * 2, backend="fusec")
    compiled(table, torch.tensor([1, 3]))
    with pytest.raises(IndexError, match="index out of range in self"):
        compiled(table, torch.tensor([1, 4]))
    torch.testing.assert_close(compiled(table, torch.tensor([0, 2])), table[[0, 2]] * 2)


def test_indices_that_a_mask_leaves_out_are_no_errors() -> None:
    """Computed indices reach out of range where padding reads nothing."""
    x = make((30, 8), torch.float32)
    assert_kernels_like_eager(lambda x: F.pad(x[torch.arange(0, 30, 2)] * 3, (0, 0, 2, 3)), x)
    assert_kernels_like_eager(lambda x, i: torch.cat([x[i] * 2, x[i + 3]]), x, ints((9,), 0, 27))
    assert_kernels_like_eager(lambda x, i: F.embedding(i, x).sum((0, 1)), x, ints((9999, 9), 0, 30))
