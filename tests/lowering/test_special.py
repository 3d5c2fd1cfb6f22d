"""Special functions: lowered and interpreted, against eager."""

from __future__ import annotations

import pytest
import torch

from tests.lowering.differential import assert_kernels_like_eager, assert_lowered_like_eager, make

aten = torch.ops.aten
FUNCTIONS = {
    "digamma": torch.digamma, "trigamma": lambda x: torch.polygamma(1, x), "i0": torch.i0, "i0e": torch.special.i0e,
    "i1": torch.special.i1, "i1e": torch.special.i1e, "erfcx": torch.special.erfcx, "ndtri": torch.special.ndtri,
    "angle": torch.angle, "modified_bessel_i0": torch.special.modified_bessel_i0,
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool], ids=str)
def test_functions(name: str, dtype: torch.dtype) -> None:
    assert_kernels_like_eager(FUNCTIONS[name], make((5, 17), dtype))


@pytest.mark.parametrize("name", ["digamma", "i0", "i0e", "i1", "i1e", "angle"])
def test_half_types_compute_in_float32(name: str) -> None:
    x = make((5, 17), torch.bfloat16)
    assert_lowered_like_eager(FUNCTIONS[name], x)


def test_special_values() -> None:
    x = torch.tensor([0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan, 0.5, 1e-30])
    for name, function in FUNCTIONS.items():
        if name != "trigamma":  # eager gives large numbers at its poles
            assert_lowered_like_eager(function, x)


def test_next_numbers() -> None:
    a, b = make((9, 9), torch.float32), make((9, 9), torch.float32, 1)
    assert_kernels_like_eager(torch.nextafter, a, b)
    assert_lowered_like_eager(torch.nextafter, a.bfloat16(), b.bfloat16(), externs=1)


def test_higher_polygammas_stay_library_calls() -> None:
    assert_lowered_like_eager(lambda x: torch.polygamma(3, x), make((7,), torch.float32).abs() + 1, externs=1)
