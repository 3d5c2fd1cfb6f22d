"""Online softmax sums: found where rows are looped, equal to eager in every corner."""

from __future__ import annotations

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


def run(x: torch.Tensor) -> torch.Tensor:
    config = Config()
    steps = schedule(simplify(lower(trace(softmax, x), config), config), config)
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
