"""Reductions cut into slices: when, how many, and exact or ragged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fusec.ir.kernels import Strategy
from fusec.ir.types import LoopNest
from fusec.schedule.cost import DEVICES
from fusec.schedule.split import slices_for
from tests.schedule.nests import kernels, nests, scheduled

SM_90 = DEVICES["sm_90"]


def rows(count: int, columns: int) -> LoopNest:
    text = f"nest n (p0<{count}, r0<{columns}):\n%0:f32 = load x[{columns}*p0 + r0]\n"
    text += "%1:f32 = sum %0 over r0\nstore y[p0], %1"
    (nest,) = nests(text, x=f"f32[{count}, {columns}]", y=f"f32[{count}]")
    return nest


@pytest.mark.parametrize(
    ("count", "columns", "slices"),
    [(1, 1000, 1), (1, 1 << 20, 512), (4, 1 << 20, 128), (132, 1 << 20, 1), (64, 4096, 4), (1, 1 << 15, 32)],
)
def test_slices_fill_the_device_and_stay_long(count: int, columns: int, slices: int) -> None:
    assert slices_for(rows(count, columns), SM_90) == slices


@pytest.mark.parametrize("size", [1 << 18, 300_000, 262_147])
@pytest.mark.parametrize("op", [torch.sum, torch.amax, torch.prod])
def test_a_long_row_is_split_and_finished(size: int, op: object) -> None:
    def fn(x: Tensor) -> Tensor:
        return op(x) * 2  # type: ignore[operator]

    x = torch.ones(size)
    x[-1] = 3  # the last element of the last slice counts once
    partial, finish = kernels(scheduled(fn, x))
    assert partial.strategy is Strategy.SPLIT_ROW and finish.nests[0].endswith("_finish")
    assert partial.boundary == "programs hold slices of a reduction; a small kernel finishes it"
    masked = any(i.op == "load" and i.args for i in partial.body)
    assert masked == (size == 262_147), "a prime length leaves a ragged slice"


def test_an_argmax_is_not_split() -> None:
    assert len(kernels(scheduled(lambda x: x.argmax(), torch.randn(1 << 17)))) == 1


def test_columns_over_many_rows_are_split() -> None:
    partial, finish = kernels(scheduled(lambda x: x.exp().sum(0), torch.randn(20000, 8)))
    assert partial.writes == finish.reads and len(partial.nests) == 1


def test_rows_and_columns_share_one_read() -> None:
    both, finish = kernels(scheduled(lambda x: (x.sum(1), x.sum(0)), torch.randn(4096, 64)))
    assert both.strategy is Strategy.ROW_AND_COLUMN and finish.nests == ("n1_finish",)
    assert both.cost.bytes_read == 4096 * 64 * 4


@pytest.mark.parametrize("size", [1 << 18, 300_000, 262_147])
def test_the_variance_of_a_long_row_reads_it_once(size: int) -> None:
    """Slices leave their means and sums about them; the finish puts them together."""
    partial, finish = kernels(scheduled(lambda x: x.var(), torch.randn(size) * 1e-2 + 100))
    assert partial.cost.bytes_read == size * 4
    assert set(finish.reads) == set(partial.writes) and len(partial.writes) == 2


def test_the_variances_of_columns_read_them_once() -> None:
    steps = scheduled(lambda x: torch.var_mean(x, 0), torch.randn(20000, 8) + torch.arange(20000)[:, None] / 100)
    first = kernels(steps)[0]
    assert first.cost.bytes_read == 20000 * 8 * 4
    assert all("_partial" in name for k in kernels(steps)[1:] for name in k.reads)
