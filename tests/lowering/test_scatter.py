"""Scatters: lowered, evaluated, fused and interpreted, against eager; sums beyond eager's accuracy are welcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from fusec.capture.decompositions import decomposition_table
from fusec.ir.kernels import KernelPlan
from fusec.ir.types import AccessMode
from fusec.lowering import embedding
from tests.lowering.differential import (
    assert_kernels_like_eager,
    assert_lowered_like_eager,
    externs_of,
    lower_function,
    make,
    store_modes,
)
from tests.lowering.test_indexing import ints

aten = torch.ops.aten
# What these become during capture: index_puts.
_rewrites = decomposition_table()
index_add, index_copy = _rewrites[aten.index_add.default], _rewrites[aten.index_copy.default]
DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.int8]


def signs(*shape: int) -> torch.Tensor:
    """-1, 0, 1: their sums have no rounding errors."""
    return ints(shape, -1, 2)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


# -- scatter --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_one_element_a_line_is_a_comparison(dim: int) -> None:
    x = make((4, 4, 4), torch.float32)
    shape = [4, 4, 4]
    shape[dim] = 1
    index, source = ints(tuple(shape), 0, 4), make(tuple(shape), torch.float32)
    assert_lowered_like_eager(lambda x, i: x.scatter(dim, i, -1.5), x, index)
    assert_lowered_like_eager(lambda x, i, s: x.scatter(dim, i, s), x, index, source)
    assert_lowered_like_eager(lambda i: torch.zeros(4, 4, 4, dtype=torch.int64).scatter(dim, i, 1), index)
    assert store_modes(lower_function(lambda x, i: x.scatter(dim, i, 1.0), x, index)) == {AccessMode.STORE}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [0, -1])
def test_scatter_and_scatter_add(dim: int, dtype: torch.dtype) -> None:
    x, source, index = make((4, 6, 5), dtype), make((4, 6, 5), dtype, 3), ints((3, 2, 4), 0, 4)
    assert_kernels_like_eager(lambda x, i, s: x.scatter_add(dim, i, s), x, index, source)
    assert_kernels_like_eager(lambda x, i: x.scatter(dim, i, 2), x, index)
    once = torch.rand(4, 6, 5).argsort(dim)  # no position of a line twice
    assert_kernels_like_eager(lambda x, i, s: x.scatter(dim, i, s), x, once, source)
    assert_kernels_like_eager(lambda x, i, s: x.scatter(dim, i[:3, :2], s), x, once, source)


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("reduce", ["sum", "mean", "amax", "amin"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scatter_reduce(dtype: torch.dtype, reduce: str, include_self: bool) -> None:
    x, source, index = make((4, 6), dtype), make((9, 6), dtype, 3), ints((9, 5), 0, 4)
    assert_kernels_like_eager(
        lambda x, i, s: x.scatter_reduce(0, i, s, reduce, include_self=include_self), x, index, source
    )


@pytest.mark.parametrize("reduce", ["mean", "amax", "amin"])
def test_index_reduce(reduce: str) -> None:
    x, source = make((4, 6), torch.float32), make((4, 9), torch.float32, 3)
    for keep in (True, False):
        assert_kernels_like_eager(
            lambda x, i, s, keep=keep: x.index_reduce(1, i, s, reduce, include_self=keep), x, ints((9,), 0, 6), source
        )


def test_extremes_of_special_values() -> None:
    special = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-45, -1e-45, -3.0])
    x, source = special[:, None].repeat(1, 8), special[None].repeat(8, 1)
    index = torch.arange(8)[:, None].expand(8, 8)
    for dtype in (torch.float32, torch.float64, torch.float16):
        for reduce in ("amax", "amin"):
            assert_kernels_like_eager(
                lambda x, i, s, how=reduce: x.scatter_reduce(0, i, s, how), x.to(dtype), index, source.to(dtype)
            )


def test_scatter_into_scalars_and_nothing() -> None:
    zero, one = torch.tensor(0), torch.tensor(2.0)
    assert_kernels_like_eager(lambda x, i, s: x.scatter_add(0, i, s), torch.tensor(1.0), zero, one)
    assert_kernels_like_eager(lambda x, i, s: index_add(x, 0, i, s), torch.tensor(1.0), zero, one)
    assert_kernels_like_eager(
        lambda x, i, s: x.scatter_add(0, i, s), make((5,), torch.float32), zero[None][:0], one[None]
    )
    assert_kernels_like_eager(
        lambda x, i: x.scatter_add(0, i, i.to(x.dtype)), torch.zeros(1), torch.zeros(3, dtype=torch.int64)
    )


# -- lines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [3, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64], ids=str)
def test_index_add_and_accumulation(dtype: torch.dtype, lines: int) -> None:
    x, source = make((lines, 7), dtype), make((33, 7), dtype, 3)
    index = ints((33,), 0, lines)
    assert_kernels_like_eager(lambda x, i, s: index_add(x, 0, i, s), x, index, source)
    assert_kernels_like_eager(lambda x, i, s: index_add(x, 0, i, s, alpha=2), x, index, source)
    assert_kernels_like_eager(lambda x, i, s: x.index_put((i - 3,), s, accumulate=True), x, index, source)
    assert_kernels_like_eager(lambda x, i, s: index_add(x.t(), 1, i, s.t()), x, index, source)


def test_sums_into_few_lines_are_reductions() -> None:
    x, index, source = make((2, 64), torch.float32), ints((500,), 0, 2), make((500, 64), torch.float32)
    program = lower_function(lambda x, i, s: index_add(x, 0, i, s), x, index, source)
    assert store_modes(program) == {AccessMode.STORE} and program.nodes[0].reductions


def totals(fn: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> list[tuple[object, ...]]:
    """Shapes of the memory in which sums are kept beside the result, which is as in eager."""
    return [b.shape for b in assert_kernels_like_eager(fn, *inputs).buffers if b.hint == "total"]


def copies(fn: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> list[object]:
    """Into how many copies the updates go."""
    return [shape[0] for shape in totals(fn, *inputs) if len(shape) > fn(*inputs).dim()]


@pytest.mark.parametrize(("updates", "expected"), [(9 * 511, []), (9 * 512, [2]), (9 * 256 * 5, [4])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64], ids=str)
def test_many_updates_of_few_places_go_to_several_copies(dtype: torch.dtype, updates: int, expected: list[int]) -> None:
    x, index, source = ints((9, 5), -9, 9).to(dtype), ints((updates,), 0, 9), signs(updates, 5).to(dtype)
    index[::2] = 3  # every other update goes to one place
    assert copies(lambda x, i, s: index_add(x, 0, i, s), x, index, source) == expected


def test_updates_along_several_dimensions_go_to_several_copies() -> None:
    grad, ids = signs(20, 400, 3).bfloat16(), ints((20, 400), 0, 12)
    assert copies(lambda g, i: aten.embedding_dense_backward(g, i, 12, 4, False), grad, ids) == [2]
    x, s, column = signs(2, 10).float(), signs(2, 6000).float(), ints((2, 6000), 0, 10)
    assert copies(lambda x, i, s: x.scatter_add(1, i, s), x, column, s) == [2]
    j, k, v = ints((160, 50), 0, 3), ints((50,), 0, 2), signs(7, 160, 50).float()
    assert copies(lambda v, j, k: aten.index_put(v.new_zeros(7, 3, 2), [None, j, k], v, True), v, j, k) == [4]


def test_writes_of_lines() -> None:
    x, source, index = make((20, 7), torch.float32), make((9, 7), torch.float32, 3), torch.randperm(20)[:9]
    assert_kernels_like_eager(lambda x, i, s: index_copy(x, 0, i, s), x, index, source)
    assert_kernels_like_eager(lambda x, i, s: x.index_put((i - 20,), s), x, index, source)
    assert_kernels_like_eager(lambda x, i, s: x.put(i - 20, s[:, 0]), x, index, source)
    assert_kernels_like_eager(lambda x, i, s: x.put(i, s[:, 0], accumulate=True), x, index, source)
    assert_kernels_like_eager(lambda x: torch.as_strided_scatter(x, -x[:3, :2], (3, 2), (5, 1), 4), x)


def test_every_point_of_a_constant_sum_counts() -> None:
    """Neither the index nor the value varies along some axes once they are simplified."""
    i = ints((7, 4), 0, 3)
    assert_kernels_like_eager(lambda i: index_add(torch.zeros(30), 0, i[:, 0] * 0, torch.ones(7)), i)
    assert_kernels_like_eager(lambda i: torch.zeros(30, 4).scatter_add(0, i[:, :1].expand(7, 4), torch.ones(7, 4)), i)
    assert_kernels_like_eager(lambda i: torch.zeros(30, 4).scatter_add(0, i[:1].expand(7, 4), torch.ones(7, 4)), i)
    assert_kernels_like_eager(lambda i: torch.zeros(30, 4).scatter_add(0, i * 0, torch.ones(7, 4)), i)


@pytest.mark.parametrize("words", [3, 30])
@pytest.mark.parametrize("padding", [-1, 1])
def test_gradient_of_an_embedding(padding: int, words: int) -> None:
    grad, index = make((4, 9, 8), torch.bfloat16), ints((4, 9), 0, words)
    assert_kernels_like_eager(lambda g, i: aten.embedding_dense_backward(g, i, words, padding, False), grad, index)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("padding", [-1, 77])
def test_gradient_of_an_embedding_of_more_words_than_tokens(
    dtype: torch.dtype, padding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32 sums are as large as the tokens, not the vocabulary, where that pays."""
    fn = lambda g, i: aten.embedding_dense_backward(g, i, 300, padding, False)  # noqa: E731
    grad, index = (signs(4, 9, 8) / 4).to(dtype), ints((4, 9), 0, 6)
    index[2], index[3] = 77, torch.arange(291, 300)
    assert totals(fn, grad, index) == [(300, 8)]
    monkeypatch.setattr(embedding, "LAUNCH", 0.0)
    assert totals(fn, grad, index) == [(36, 8)]
    assert totals(fn, grad.float(), index) == []  # the result itself


# -- several indices, masks -----------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(
    "fn",
    [
        lambda x, i, j, v, add: aten.index_put(x, [i, j], v, add),
        lambda x, i, j, v, add: aten.index_put(x, [i, None, j], v[0, 0], add),
        lambda x, i, j, v, add: aten.index_put(x, [None, i, j], v.t(), add),
        lambda x, i, j, v, add: aten.index_put(x, [i[:, None], j[:2]], v[:, :1, None], add),
        lambda x, i, j, v, add: aten._unsafe_index_put(x, [i[:4], j[:4]], v[0], add),
    ],
)
def test_index_put(fn: object, accumulate: bool) -> None:
    i, j = torch.tensor([0, 3, -2, 1, -5]), torch.tensor([1, 0, 2, 3, 0])  # no place twice
    x, v = make((5, 5, 5), torch.float32), make((5, 5), torch.float32, 5)
    assert_kernels_like_eager(lambda x, i, j, v: fn(x, i, j, v, accumulate), x, i, j, v)  # type: ignore[operator]


def test_index_put_by_a_mask() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
        x, mask = make((6, 4), dtype), make((6, 4), torch.bool)
        value = torch.tensor(2).to(dtype)
        assert_kernels_like_eager(lambda x, m, v: x.index_put((m,), v), x, mask, value)
        assert_kernels_like_eager(lambda x, m: x.index_put((m[:, 0],), x[0]), x, mask)
        assert_kernels_like_eager(lambda x, m: aten.index_put(x, [None, m[0]], x[:, :1]), x, mask)
        assert_kernels_like_eager(lambda x, m, v: x.index_put((m,), v, accumulate=True), x, mask, value)


def test_masked_accumulation_clamps() -> None:
    x, i, v = make((6,), torch.float32), torch.tensor([0, 9, 2, -1]), make((4,), torch.float32)
    mask = torch.tensor([True, False, True, True])
    assert_kernels_like_eager(lambda x, m, i, v: aten._unsafe_masked_index_put_accumulate(x, m, [i], v), x, mask, i, v)


# -- fusion, memory, refusals ---------------------------------------------------------------------


def test_producers_fuse_into_the_updates_and_consumers_wait() -> None:
    x, i, s = make((50, 64), torch.float32), ints((200,), 0, 50), make((200, 64), torch.float32)
    steps = assert_kernels_like_eager(lambda x, i, s: torch.tanh(index_add(x * 2, 0, i, s.exp() + 1)), x, i, s)
    assert len([p for p in steps.steps if isinstance(p, KernelPlan)]) == 3
    assert all("exp" not in b.name for b in steps.buffers), "what is added is computed where it is added"


def test_the_source_of_a_copy_that_is_returned_stays_as_it_was() -> None:
    x, i = make((20, 3), torch.float32), ints((30,), 0, 20)
    assert_kernels_like_eager(lambda x, i: (y := x + 1, index_add(y, 0, i, y[i]), index_add(y, 0, i, y[i] * 2)), x, i)


def test_sums_of_floats_are_left_to_pytorch_where_order_must_not_matter(deterministic: None) -> None:
    x, i, s = make((20, 3), torch.float32), ints((30,), 0, 20), make((30, 3), torch.float32)
    for fn in (lambda x, i, s: x.index_put((i,), s), lambda x, i, s: x.index_put((i,), s, accumulate=True)):
        (extern,) = externs_of(lower_function(fn, x, i, s))
        assert "deterministic" in extern.reason
    assert_lowered_like_eager(lambda x, i: x.scatter_reduce(0, i, x[i[:, 0]], "amax"), x, i[:, None].expand(30, 3))
    assert_lowered_like_eager(lambda i: index_add(torch.zeros(20, dtype=torch.int64), 0, i, i), i)
    assert_lowered_like_eager(lambda x, i, s: index_add(x[:8], 0, i % 8, s), x, i, s)


def test_what_stays_a_library_call_says_why() -> None:
    x, i = make((4, 4), torch.float32), ints((4, 4), 0, 4)
    for fn in (
        lambda x, i: x.scatter_reduce(0, i, x, "prod"),
        lambda x, i: x.scatter(0, i, x, reduce="multiply"),
        lambda x, i: (x > 0).scatter_add(0, i, x > 1),
        lambda x, i: x.index_put((x > 0,), i[0] * 1.0),
    ):
        externs = externs_of(lower_function(fn, x, i))
        assert externs and all(e.reason for e in externs)
