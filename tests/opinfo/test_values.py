"""Values at the edges of each dtype, promotion, and dtypes no kernel holds: eager's answers, the sign of zero included.

Many ops stand in one function, so that one compilation holds them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.opinfo.harness import Compiler, run_sample

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
WIDE = (torch.uint16, torch.uint32, torch.uint64)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class Function:
    """What the harness takes for an OpInfo."""

    call: Callable[..., Any]
    name: str = "function"
    signed_zeros: bool = True
    decorators: tuple[Any, ...] = ()

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)


@dataclass(frozen=True)
class Sample:
    input: Any
    args: tuple[Any, ...] = ()
    kwargs: Any = ()


def outcome(call: Callable[..., Any], *args: Any) -> Any:
    found = run_sample(Function(call), Sample(args[0], args[1:]), Compiler())
    assert found.passed, found.verdict
    return found


def edges(dtype: torch.dtype) -> Tensor:
    if dtype is torch.bool:
        return torch.tensor([True, False])
    if dtype.is_floating_point:
        limits = torch.finfo(dtype)
        plain = [0.0, -0.0, 1.0, -1.0, 2.5, -2.5, 0.5, 1.5, -7.0, float("inf"), -float("inf"), float("nan")]
        return torch.tensor([*plain, limits.max, limits.min, limits.tiny, limits.eps], dtype=torch.float64).to(dtype)
    limits = torch.iinfo(dtype)
    below = [-1, -2, -7, limits.min + 1] if limits.min < 0 else []
    return torch.tensor([limits.min, limits.max, limits.max - 1, 0, 1, 2, 7, *below], dtype=dtype)


def pairs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    values = edges(dtype)
    return values.repeat_interleave(len(values)), values.repeat(len(values))


# + 0 after a minimum or maximum: which of two zeros it returns differs between eager mode's own kernels.
def arithmetic(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    return (a + b, a - b, a * b, torch.maximum(a, b), torch.fmin(a, b) + 0, a < b, a == b, torch.where(a > b, a, b))


def division(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    whole = torch.div(a, b, rounding_mode="floor"), torch.div(a, b, rounding_mode="trunc")
    return (a / b, *whole, torch.remainder(a, b), torch.fmod(a, b), a % 3, a % -3, a // 3, a // -3)


def alone(x: Tensor) -> tuple[Tensor, ...]:
    return (-x, x.abs(), x.sign(), x.clamp(-1, 1), x.clamp(min=0) + 0, x.square(), x + 3, 3 - x, x * 1.5, x**2, x.sum())


def of_floats(x: Tensor) -> tuple[Tensor, ...]:
    rounded = x.floor(), x.ceil(), x.trunc(), x.round(), x.frac(), x.reciprocal(), x.sqrt(), x.rsqrt()
    curves = x.exp(), x.log(), x.sigmoid(), x.relu() + 0, x.nan_to_num()
    return (*rounded, *curves, x.isnan(), x.isinf(), x.amax(), x.argmax())


@pytest.mark.parametrize("dtype", (*FLOATS, *INTS), ids=str)
def test_arithmetic_at_the_edges_of_a_dtype(dtype: torch.dtype) -> None:
    a, b = pairs(dtype)
    assert outcome(arithmetic, a, b).kernels >= 1
    divisor = b if dtype.is_floating_point else torch.where(b == 0, torch.ones_like(b), b)
    if (
        not dtype.is_floating_point and dtype.is_signed
    ):  # minimum / -1 overflows: undefined in C++, so in eager mode too
        divisor = torch.where(divisor == -1, torch.ones_like(b), divisor)
    assert outcome(division, a, divisor).kernels >= 1
    assert outcome(alone, edges(dtype)).kernels >= 1
    if dtype.is_floating_point:
        assert outcome(of_floats, edges(dtype)).kernels >= 1


def test_arithmetic_of_bools() -> None:
    def logic(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return (
            a + b,
            a * b,
            a / b,
            a & b,
            a | b,
            a ^ b,
            ~a,
            a < b,
            a.sum(),
            a.prod(),
            a.any(),
            a + 1,
            a * 0.5,
            a.cumsum(0),
        )

    assert outcome(logic, *pairs(torch.bool)).kernels >= 1


@pytest.mark.parametrize(
    "dtype", (torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.float32), ids=str
)
def test_promotion_with_tensors_scalars_and_numbers(dtype: torch.dtype) -> None:
    def mixed(x: Tensor, *others: Tensor) -> list[Tensor]:
        numbers = [f(x) for f in (lambda x: x + 2, lambda x: x * 2.5, lambda x: x + True, lambda x: 2 / (x + 1))]
        tensors = [r for y in others for r in (x + y, y * x, torch.maximum(x, y), x == y, torch.where(x > 0, x, y))]
        return [*numbers, *tensors, torch.cat([x, *others[:2]])]

    x = torch.tensor([1, 0, 3]).to(dtype)
    vectors = [torch.tensor([1, 1, 0]).to(d) for d in (*INTS[:3], *FLOATS, torch.bool)]
    scalars = [torch.tensor(2).to(d) for d in (*INTS[:3], *FLOATS, torch.bool)]
    assert outcome(mixed, x, *vectors, *scalars).kernels >= 1


@pytest.mark.parametrize("dtype", (*FLOATS, *INTS, *WIDE, *FLOAT8, torch.bool, torch.complex64), ids=str)
def test_conversions_to_every_dtype(dtype: torch.dtype) -> None:
    targets = (*FLOATS, *INTS, *WIDE, torch.bool, torch.complex64, *(() if dtype.is_complex else FLOAT8))
    outcome(lambda x: [x.to(t) for t in targets], torch.tensor([0.0, 1.0, 2.0, 3.0, 100.0]).to(dtype))
    if dtype.is_floating_point and dtype not in FLOAT8:
        outcome(lambda x: [x.to(t) for t in (*FLOATS, *FLOAT8, torch.bool)], edges(dtype))


@pytest.mark.parametrize("dtype", (*WIDE, torch.complex64), ids=str)
def test_copies_of_what_no_kernel_holds_leave_the_rest_of_the_graph_compiled(dtype: torch.dtype) -> None:
    def moved(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return x.flip(0), x.repeat(2, 1), torch.roll(x, 1), torch.permute_copy(x, (1, 0)), x.t(), y.exp()

    found = outcome(moved, torch.tensor([[0, 1], [2, 255]]).to(dtype), torch.randn(5))
    assert found.kernels >= 1 and found.externs == 4 and found.fallbacks == ()


@pytest.mark.parametrize("dtype", (*WIDE, torch.complex64), ids=str)
def test_dtypes_that_no_kernel_holds_are_library_calls_on_purpose(dtype: torch.dtype) -> None:
    def used(x: Tensor) -> tuple[Tensor, ...]:
        return (x.to(torch.float32) if not x.is_complex() else x.abs()) * 2, x == x, x.flatten(), torch.cat([x, x])

    found = outcome(used, torch.tensor([[0, 1], [2, 255]]).to(dtype))
    assert found.kernels >= 1 and found.externs >= 1 and found.fallbacks == ()
