"""Online reductions: found where rows are looped, equal to eager in every corner."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fusec.config import Config
from fusec.ir.kernels import KernelPlan, Strategy
from fusec.lowering import lower
from fusec.schedule import schedule, simplify
from tests.property.harness import build_for_cpu, trace


def plans_of(fn, *inputs) -> tuple[KernelPlan, ...]:  # type: ignore[no-untyped-def]
    config = Config()
    steps = schedule(simplify(lower(trace(fn, *inputs), config), config), config)
    return tuple(step for step in steps.steps if isinstance(step, KernelPlan))


def softmax(x: torch.Tensor) -> torch.Tensor:
    return x.softmax(-1)


def run(x: torch.Tensor, fn: Callable[[torch.Tensor], torch.Tensor] = softmax) -> torch.Tensor:
    config = Config()
    steps = schedule(simplify(lower(trace(fn, x), config), config), config)
    (result,) = build_for_cpu(steps, config)(x)
    return result


def test_a_long_softmax_reads_its_row_twice() -> None:
    (plan,) = plans_of(softmax, torch.empty(2048, 131072, dtype=torch.bfloat16, device="meta"))
    assert plan.strategy is Strategy.LOOPED_ROW and len(plan.phases) == 2
    assert [i.op for i in plan.phases[0] if i.reduced_axes] == ["max", "exp_sum"]


def test_a_row_that_fits_into_registers_keeps_its_plain_sum() -> None:
    (plan,) = plans_of(softmax, torch.empty(2048, 1024, device="meta"))
    assert [i.op for i in plan.body if i.reduced_axes] == ["max", "sum"]


@pytest.mark.parametrize("columns", [16385, 40000, 65536])
def test_online_sums_are_as_near_to_float64_as_eager(columns: int) -> None:
    x = torch.randn(150, columns) * 5
    exact = x.double().softmax(-1)
    error, eager_error = (((t - exact).abs() / exact).max().item() for t in (run(x), x.softmax(-1)))
    assert error <= 2 * eager_error


def test_rows_of_infinities_and_nan_answer_as_eager() -> None:
    x = torch.randn(150, 20001)
    x[0] = float("-inf")
    x[1, 5] = float("inf")
    x[2, 7] = float("nan")
    x[3, :-1] = float("-inf")
    torch.testing.assert_close(run(x), x.softmax(-1), rtol=1e-5, atol=1e-9, equal_nan=True)


def variance(x: torch.Tensor) -> torch.Tensor:
    return x.var(-1)


def by_hand(x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred.pow(2).mean(-1)


@pytest.mark.parametrize("fn", [variance, by_hand])
def test_a_long_variance_reads_its_row_once(fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
    (plan,) = plans_of(fn, torch.empty(2048, 131072, dtype=torch.bfloat16, device="meta"))
    assert plan.strategy is Strategy.LOOPED_ROW and len(plan.phases) == 1
    assert "dev_sum" in [i.op for i in plan.body if i.reduced_axes]


def test_a_held_row_takes_its_mean_first() -> None:
    (plan,) = plans_of(variance, torch.empty(2048, 1024, device="meta"))
    assert [i.op for i in plan.body if i.reduced_axes] == ["sum", "sum"]


def test_a_sum_about_something_else_is_none_of_them() -> None:
    def about_the_maximum(x: torch.Tensor) -> torch.Tensor:
        return (x - x.amax(-1, keepdim=True)).pow(2).mean(-1)

    (plan,) = plans_of(about_the_maximum, torch.empty(2048, 131072, device="meta"))
    assert [i.op for i in plan.body if i.reduced_axes] == ["max", "sum"] and len(plan.phases) == 2


@pytest.mark.parametrize("fn", [variance, by_hand])
@pytest.mark.parametrize("columns", [16385, 40000])
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_online_variances_are_as_near_to_float64_as_eager(
    fn: Callable[[torch.Tensor], torch.Tensor], columns: int, mean: float
) -> None:
    x = torch.randn(150, columns) + mean
    exact = fn(x.double())
    error, eager_error = (((t - exact).abs() / exact).max().item() for t in (run(x, fn), x.var(-1)))
    assert error <= 1.5 * eager_error + 4 * 2**-24  # eager's variance is computed in float64


def test_variances_of_infinities_and_nan_answer_as_eager() -> None:
    x = torch.randn(150, 20001)
    x[0] = float("-inf")
    x[1, 5] = float("inf")
    x[2, 7] = float("nan")
    x[3] = 0.1
    torch.testing.assert_close(run(x, variance), x.var(-1), rtol=1e-5, atol=1e-9, equal_nan=True)
