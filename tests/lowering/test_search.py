"""Binary search in kernels, against eager."""

from __future__ import annotations

import pytest
import torch

from tests.lowering.differential import assert_kernels_like_eager, assert_lowered_like_eager, make


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("length", [0, 1, 2, 7, 64, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bfloat16], ids=str)
def test_bucketize(dtype: torch.dtype, length: int, right: bool) -> None:
    boundaries = make((length,), dtype).sort().values
    values = torch.cat([make((41,), dtype, 1), boundaries[::3]])
    assert_kernels_like_eager(lambda v, b: torch.bucketize(v, b, right=right), values, boundaries)
    assert_lowered_like_eager(lambda v, b: torch.bucketize(v, b, out_int32=True, right=right), values, boundaries)


def test_rows_of_their_own() -> None:
    rows = make((4, 9), torch.float32)
    order = rows.argsort(-1)
    values = make((4, 6), torch.float32, 2)
    values[0, 0], values[1, 1], values[2, 2] = torch.nan, torch.inf, -torch.inf
    for right in (False, True):
        assert_kernels_like_eager(
            lambda r, v, right=right: torch.searchsorted(r.sort().values, v, right=right), rows, values, externs=1
        )
        assert_kernels_like_eager(
            lambda r, v, o, right=right: torch.searchsorted(r, v, right=right, sorter=o), rows, values, order
        )
    assert_kernels_like_eager(lambda b: torch.searchsorted(b, 0.25, side="right"), rows[0].sort().values)


def test_a_search_fuses_with_what_it_finds() -> None:
    boundaries, table = make((16,), torch.float32).sort().values, make((17, 8), torch.float32)
    steps = assert_kernels_like_eager(
        lambda v, b, t: t[torch.bucketize(v * 2, b)] + 1, make((50,), torch.float32, 3), boundaries, table
    )
    assert len(steps.steps) <= 2
