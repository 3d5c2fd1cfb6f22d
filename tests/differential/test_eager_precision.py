"""precision="eager": functions of 16-bit numbers, alone and in a chain, give eager mode's bits.

All but one in a thousand: a float32 function that differs in its last place may round to another 16-bit number. Left
out are functions that a CPU rounds inside and a GPU does not (logit, rsqrt), and scalars that it rounds before adding.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fusec

pytestmark = pytest.mark.usefixtures("clean")

UNARY = """
    abs acos acosh angle asin asinh atan atanh ceil cos cosh deg2rad digamma erf erfc erfinv exp exp2 expm1 floor frac
    lgamma log log10 log1p log2 neg rad2deg reciprocal relu round sgn sigmoid sign sin sinc sinh sqrt square tan tanh
    trunc special.entr special.ndtr
"""
BINARY = """
    add atan2 copysign div eq float_power floor_divide fmax fmin fmod heaviside hypot logaddexp maximum minimum mul pow
    remainder sub xlogy special.xlog1py
"""
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "elu": F.elu,
    "softplus": F.softplus,
    "hardswish": F.hardswish,
    "logsigmoid": F.logsigmoid,
    "a chain": lambda x: torch.tanh(x * 1.7 + 0.25) / (x.exp() + 1) - x.sqrt() * 0.1,
}


def function(name: str) -> Callable[..., Tensor]:
    found = torch
    for part in name.split("."):
        found = getattr(found, part)
    return found  # type: ignore[return-value]


def same_bits(fn: Callable[..., Tensor], *args: Tensor) -> None:
    got, want = fusec.compile(fn, options={"precision": "eager"})(*args), fn(*args)
    assert fusec.stats()["kernels_launched"] == 1 and got.dtype is want.dtype
    differ = (got != want) & ~(got.isnan() & want.isnan())
    assert differ.sum() <= len(differ) / 1000, [(*(a[differ][:3] for a in args), got[differ][:3], want[differ][:3])]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", UNARY.split())
def test_functions_of_one_number(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    same_bits(function(name), (torch.rand(3001) * 0.98 + 0.01 if name == "erfinv" else torch.rand(3001) * 3).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", BINARY.split())
def test_functions_of_two_numbers(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    same_bits(function(name), (torch.rand(3001) * 3).to(dtype), (torch.rand(3001) * 2 + 0.1).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_chains(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    same_bits(ACTIVATIONS[name], (torch.rand(3001) * 3).to(dtype))


NEGATIVE_ZERO: dict[str, Callable[[Tensor], Tensor | tuple[Tensor, ...]]] = {
    "chosen": lambda x: torch.where(x <= 0, -0.0, x),
    "beside_the_other_zero": lambda x: (torch.where(x <= 0, -0.0, x), torch.where(x <= 0, 0.0, x)),
    "filled": lambda x: x.masked_fill(x <= 0, -0.0),
    "stored": lambda x: torch.full_like(x, -0.0),
    "rounded": lambda x: torch.where(x <= 0, torch.full_like(x, -1e-200, dtype=torch.float64).to(x.dtype), x),
    "divided_by": lambda x: x.abs() / torch.full_like(x, -0.0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", NEGATIVE_ZERO)
def test_a_negative_zero_keeps_its_sign(name: str, dtype: torch.dtype) -> None:
    x, fn = torch.randn(9).to(dtype), NEGATIVE_ZERO[name]
    got, want = fusec.compile(fn, options={"strict": True})(x), fn(x)
    pairs = zip(got, want, strict=True) if isinstance(want, tuple) else [(got, want)]
    for a, b in pairs:
        assert torch.equal(a, b) and torch.equal(a.signbit(), b.signbit())
