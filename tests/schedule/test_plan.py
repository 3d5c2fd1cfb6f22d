"""From a group to a launch: strategy, tile dimensions and block sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fusec
from fusec.ir.kernels import DimKind, KernelPlan, Strategy
from fusec.schedule import plan
from fusec.schedule.blocks import registers_needed
from fusec.schedule.reduced import next_power_of_2
from tests.schedule.nests import kernels, scheduled


def only(steps: object) -> KernelPlan:
    (kernel,) = kernels(steps)  # type: ignore[arg-type]
    return kernel


def extents(plan: KernelPlan) -> dict[str, object]:
    return {d.name: plan.extent(d) for d in plan.dims}


def test_dense_axes_become_one() -> None:
    plan = only(scheduled(lambda x: x + 1, torch.randn(5, 7, 11)))
    assert [(a.name, a.extent) for a in plan.axes] == [("x0", 385)]


def test_a_padded_row_keeps_two_axes() -> None:
    plan = only(scheduled(lambda x: x[:, :60] * 2, torch.randn(8, 100)))
    assert [a.extent for a in plan.axes] == [8, 60]


def test_a_transpose_gets_a_tile_contiguous_on_both_sides() -> None:
    plan = only(scheduled(lambda x: x.t().contiguous() * 2, torch.randn(300, 200)))
    assert plan.strategy is Strategy.TILE_2D and extents(plan) in ({"y": 200, "x": 300}, {"y": 300, "x": 200})
    assert [plan.tile.block(n) for n in "xy"] == [64, 64]


@pytest.mark.parametrize("columns", [1, 2, 17, 1000, 4096])
def test_a_row_is_held_in_a_power_of_two(columns: int) -> None:
    plan = only(scheduled(lambda x: torch.softmax(x, -1), torch.randn(200, columns)))
    if columns > 1:
        assert plan.tile.block("r") == next_power_of_2(columns)
        assert [d.kind for d in plan.dims] == [DimKind.GRID, DimKind.WHOLE]


def test_equal_kernels_are_equal_lines() -> None:
    a, b = (
        only(scheduled(lambda x, w: torch.softmax(x * w, -1), torch.randn(20, n), torch.randn(n))) for n in (64, 64)
    )
    assert (a.phases, a.dims, a.tile) == (b.phases, b.dims, b.tile)


@given(st.integers(0, 1 << 40))
def test_next_power_of_2(value: int) -> None:
    found = next_power_of_2(value)
    assert found & (found - 1) == 0 and found >= value and (found == 1 or found < 2 * value)


@given(st.integers(1, 1 << 16), st.sampled_from([1, 2, 4, 8, 16]), st.integers(1, 40))
def test_registers_fall_with_warps_and_rise_with_values(points: int, warps: int, live: int) -> None:
    assert registers_needed(points, 2 * warps, live) <= registers_needed(points, warps, live)
    assert registers_needed(points, warps, live) < registers_needed(points, warps, live + 1)


def normalise(x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    scale = w * torch.rsqrt(var + 1e-5)
    return torch.relu((x - mean[:, None]) * scale[:, None] + b[:, None])


def channels(rows: int) -> list[torch.Tensor]:
    return [torch.randn(rows).abs() for _ in range(4)]


def test_what_belongs_to_a_row_is_computed_once_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MIN_ROW_TILE_POINTS", 1 << 10)
    kernel = only(scheduled(normalise, torch.randn(70, 1280), *channels(70)))
    assert kernel.strategy is Strategy.ROW_TILE and extents(kernel) == {"y": 70, "x": 1280}
    assert [kernel.tile.block(d) for d in "yx"] == [4, 256]  # a block of 1024 would leave 37 % of the lanes idle


@pytest.mark.parametrize(("rows", "columns"), [(70, 1280), (70, 960), (64, 2048), (131, 512)])
def test_a_row_tile_computes_what_eager_does(monkeypatch: pytest.MonkeyPatch, rows: int, columns: int) -> None:
    monkeypatch.setattr(plan, "MIN_ROW_TILE_POINTS", 1 << 10)
    inputs = [torch.randn(rows, columns), *channels(rows)]
    explanation = fusec.explain(normalise, dynamic=False)(*inputs)
    assert ": row tile, " in explanation.kernels[0].source
    torch.testing.assert_close(fusec.compile(normalise, dynamic=False)(*inputs), normalise(*inputs))


@pytest.mark.parametrize(("rows", "columns"), [(70, 1279), (8, 4096), (70, 784)])
def test_rows_that_are_few_short_or_start_anywhere_are_flat(
    monkeypatch: pytest.MonkeyPatch, rows: int, columns: int
) -> None:
    monkeypatch.setattr(plan, "MIN_ROW_TILE_POINTS", 1 << 10)
    assert only(scheduled(normalise, torch.randn(rows, columns), *channels(rows))).strategy is Strategy.FLAT


def test_a_small_kernel_is_flat() -> None:
    assert only(scheduled(normalise, torch.randn(70, 768), *channels(70))).strategy is Strategy.FLAT


def test_a_column_sum_joins_the_rows_whose_result_it_reads() -> None:
    """dx of a norm, and the bias gradient that sums dx over rows: one pass and its finish."""

    def f(x: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        dx = g - x * (g * x).mean(1, keepdim=True)
        return dx, dx.sum(0)

    steps = scheduled(f, torch.randn(4096, 256), torch.randn(4096, 256))
    first, *rest = [s for s in steps.steps if isinstance(s, KernelPlan)]
    assert first.strategy is Strategy.ROW_AND_COLUMN and len(rest) == 1
    assert all(b.hint == "partial" for b in rest[0].buffers[:1])


def softened(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of each channel, and their weighted sum a group taken off every point."""
    sums = x.sum(-1)
    return sums, x - (sums * w).sum(-1).reshape(-1, 1, 1)


@pytest.mark.parametrize(
    ("channels", "points", "strategy", "blocks"),
    [
        (8, 64, Strategy.PERSISTENT_ROW, (1, 8, 64)),
        (3, 49, Strategy.PERSISTENT_ROW, (1, 4, 64)),
        (5, 1000, Strategy.PERSISTENT_ROW, (1, 8, 1024)),
        (10, 1024, Strategy.ROW_AND_COLUMN, (1, 4, 1024)),
        (7, 4097, Strategy.ROW_AND_COLUMN, (1, 1, 8192)),
    ],
)
def test_sums_of_sums_are_held_or_walked_over_twice(
    channels: int, points: int, strategy: Strategy, blocks: tuple[int, ...]
) -> None:
    plan = only(scheduled(softened, torch.randn(140, channels, points), torch.randn(channels)))
    assert (plan.strategy, tuple(n for _, n in plan.tile.blocks)) == (strategy, blocks)
    assert len(plan.phases) == (2 if strategy is Strategy.ROW_AND_COLUMN else 1)
    assert plan.cost.bytes_read == 4 * (140 * channels * points + channels)


def test_few_groups_do_not_share_a_launch_with_the_sums_of_their_channels() -> None:
    steps = scheduled(softened, torch.randn(8, 10, 4096), torch.randn(10))
    assert len(kernels(steps)) > 1
