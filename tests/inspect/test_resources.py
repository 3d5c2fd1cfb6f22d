"""What the compiler reported, on the kernel rows of an explanation."""

from __future__ import annotations

import torch

import fusec
from fusec.inspect.report import report_page


def f(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.relu(x * w + 1)


def test_rows_hold_what_the_compiler_reported() -> None:
    x = torch.randn(64, 4096, dtype=torch.bfloat16)
    explanation = fusec.explain(f, target="sm_90")(x, x.clone())
    (row,) = explanation.kernels
    assert row.resources["registers"] > 8 and row.resources["spills"] == 0
    assert row.resources["16-byte loads"] >= 2 and row.resources["16-byte stores"] >= 1
    assert f"registers {row.resources['registers']}" in report_page(explanation)


def test_interpreted_kernels_have_no_resources() -> None:
    (row,) = fusec.explain(f)(torch.randn(17), torch.randn(17)).kernels
    assert row.resources == {}
