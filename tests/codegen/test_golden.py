"""Whole kernels as text. FUSEC_UPDATE_GOLDEN=1 python -m pytest tests/codegen/test_golden.py writes them anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.codegen.plans import check, generate
from tests.codegen.samples import BLOCKS, INPUTS, SAMPLES

GOLDEN = Path(__file__).parents[1] / "golden"
UPDATE = os.environ.get("FUSEC_UPDATE_GOLDEN") == "1"


@pytest.mark.parametrize("name", SAMPLES)
def test_text(name: str) -> None:
    text = generate(SAMPLES[name](), **BLOCKS[name]).text
    path = GOLDEN / f"{name}.py"
    if UPDATE:
        path.write_text(text)
    assert text == path.read_text(), f"{path} differs; FUSEC_UPDATE_GOLDEN=1 writes it anew"


@pytest.mark.parametrize("name", SAMPLES)
def test_interpreted_text_equals_the_evaluated_plan(name: str) -> None:
    torch.manual_seed(0)
    low = any(t.dtype is torch.bfloat16 for t in INPUTS[name]().values())
    check(
        SAMPLES[name](), blocks=BLOCKS[name], rtol=1e-2 if low else 1e-5, atol=1e-2 if low else 1e-5, **INPUTS[name]()
    )
