"""Block sizes that were chosen on a GPU: long rows, few rows, rows with sums along columns, strided copies.

Functions are scheduled at full size on fake tensors, so nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bench.cases import Work
from bench.schedules import schedules
from bench.training import TRAINING
from fusec.codegen.kernel import generate_kernel
from fusec.config import Config
from fusec.ir.kernels import KernelPlan, Schedule, Strategy
from tests.schedule.nests import kernels, scheduled

BF16 = torch.bfloat16


def steps_of(fn: Callable[..., Any], *shapes: tuple[int, ...], dtype: torch.dtype = BF16) -> Schedule:
    (steps,) = schedules(lambda _: Work(fn, tuple(torch.empty(s, dtype=dtype) for s in shapes)))
    return steps


def plan_of(fn: Callable[..., Any], *shapes: tuple[int, ...], dtype: torch.dtype = BF16) -> KernelPlan:
    (plan,) = kernels(steps_of(fn, *shapes, dtype=dtype))
    return plan


def softmax(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x, -1)


def test_a_long_row_that_is_read_twice_stays_in_the_second_cache() -> None:
    plan = plan_of(softmax, (2048, 131072))
    assert (plan.tile.block("r"), plan.tile.num_warps) == (32768, 32), (
        "one program a multiprocessor: 132 rows of 262 KB"
    )
    assert plan_of(softmax, (2048, 131072), dtype=torch.float32).tile.block("r") == 4096, "132 rows are 69 MB"
    assert plan_of(lambda x: torch.logsumexp(x, -1), (2048, 131072)).tile.block("r") == 4096, "read once"
    norm = plan_of(lambda x: F.layer_norm(x, (131072,)), (2048, 131072))
    assert norm.tile.block("r") == 4096, "running means need registers"


def test_few_rows_have_more_warps_each() -> None:
    def over_channels(x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, None, None, training=True)

    few, many = (plan_of(over_channels, (16, channels, 56, 56)) for channels in (256, 8192))
    assert (few.tile.num_warps, many.tile.num_warps) == (16, 8)


@pytest.mark.parametrize(("shape", "warps", "rows"), [((1 << 22, 64), 4, 32), ((4096, 16384), 8, 64)])
def test_sums_along_columns_load_ahead(shape: tuple[int, ...], warps: int, rows: int) -> None:
    """Half the warps a program where there are many programs: the first shape's rows are split into 512 slices."""
    first = kernels(steps_of(lambda x: x.float().square().sum(0), shape))[0]
    assert (first.tile.num_warps, first.tile.block("r"), first.tile.num_stages) == (warps, rows, 3)


def test_sums_along_few_rows_or_over_what_is_loaded_do_not_load_ahead() -> None:
    def overwritten(x: torch.Tensor) -> torch.Tensor:
        x.mul_(2)
        return x.sum(0)

    short = kernels(steps_of(lambda x: x.float().sum(0), (100, 100_000)))[0]
    same = next(p for p in kernels(steps_of(overwritten, (4096, 16384))) if p.strategy is Strategy.LOOPED_ROW)
    assert {(p.strategy, p.tile.num_stages) for p in (short, same)} == {(Strategy.LOOPED_ROW, 1)}


@pytest.mark.parametrize(("stride", "block"), [(1, 512), (2, 256)])
def test_points_whose_neighbours_are_no_one_access_are_few_a_thread(stride: int, block: int) -> None:
    plan = plan_of(lambda x: F.avg_pool2d(x, 3, stride, 1), (64, 64, 112, 112))
    assert (plan.tile.block("x"), plan.tile.num_warps) == (block, 4)


@pytest.mark.parametrize("name", ["ln_train", "rms_train"])
def test_rows_load_while_one_is_worked_on(name: str) -> None:
    from bench.schedules import capture
    from bench.schedules import scheduled as of_graph

    (graph,) = (g for g in capture(TRAINING[name].build, TRAINING[name].run) if g.kind == "backward")
    steps = of_graph(graph)
    plan = next(p for p in kernels(steps) if p.strategy is Strategy.ROW_AND_COLUMN)
    assert (plan.tile.num_warps, plan.tile.num_stages) == (8, 3)
    text = generate_kernel(plan, steps.table, Config(target="sm_90")).text
    assert "in tl.range(0, 64, QBLOCK, num_stages=3):" in text


def test_rows_that_are_overwritten_load_one_by_one() -> None:
    def in_place(x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        x.sub_((g * x).mean(1, keepdim=True))
        return x.sum(0)

    plans = kernels(steps_of(in_place, (16384, 4096), (16384, 4096)))
    assert any(p.strategy is Strategy.ROW_AND_COLUMN and p.tile.num_stages == 1 for p in plans)


def test_a_copy_that_makes_rows_for_a_reduction_is_a_kernel() -> None:
    def norm(x: torch.Tensor) -> torch.Tensor:
        return F.silu(F.group_norm(x.contiguous(), 32))

    def steps(*shape: int) -> Schedule:
        def build(_: str) -> Work:
            return Work(norm, (torch.empty(shape, dtype=BF16).to(memory_format=torch.channels_last),))

        (found,) = schedules(build)
        return found

    first, second = kernels(steps(16, 320, 64, 64))
    assert (first.strategy, second.strategy) == (Strategy.TILE_2D, Strategy.LOOPED_ROW)
    assert first.cost.bytes_written == 2 * 16 * 320 * 64 * 64, "in 16 bits, before norm widens it"
    assert len(kernels(steps(2, 64, 8, 8))) == 1, "a launch is more than strided reads of a small image"


def test_a_copy_for_pointwise_work_is_part_of_it() -> None:
    assert plan_of(lambda x: x.t().contiguous().float() * 2, (4096, 4096)).strategy is Strategy.TILE_2D


def test_programs_of_a_transpose_walk_along_the_rows_that_most_bytes_are_in() -> None:
    steps = steps_of(lambda x, y: x.transpose(1, 2) + y, (128, 1024, 2048), (128, 2048, 1024))
    (plan,) = kernels(steps)
    text = generate_kernel(plan, steps.table, Config(target="sm_90")).text
    assert "j = tl.program_id(0) * XBLOCK" in text and "i = tl.program_id(1) * YBLOCK" in text


def test_a_flat_kernel_makes_two_wide_accesses_a_thread() -> None:
    assert plan_of(lambda x: F.gelu(x), (16384, 4096)).tile.blocks == (("x", 2048),)
    assert plan_of(lambda x: F.gelu(x), (16384, 4096), dtype=torch.float32).tile.blocks == (("x", 1024),)
    small = plan_of(lambda x: x + 1, (100, 1000))
    assert small.tile.block("x") < 2048, "rather more programs than multiprocessors"


def test_neighbours_share_the_exponential_of_their_maximum() -> None:
    steps = scheduled(lambda x: torch.softmax(x.float(), -1), torch.randn(150, 40_000).to(BF16))
    (plan,) = kernels(steps)
    text = generate_kernel(plan, steps.table, Config(target="sm_90")).text
    assert "exp_sum_max = tl.full([XBLOCK, triton.cdiv(RBLOCK, 8)]" in text, "8 of 16 bits are one load"
    assert text.count("device.maximum") == 0, "the maximum is the one that the sum runs along with"
