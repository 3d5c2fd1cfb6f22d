"""Small models with random weights on the GPU: compiled equals eager, and layers share their kernels."""

from __future__ import annotations

import pytest
import torch

import fusec
from bench.cases import CASES
from bench.measure import relative_error
from bench.schema import versions
from bench.training import TRAINING

pytest.importorskip("transformers")

# Sums of bfloat16 products in another order move logits by a few units in the last place.
TOLERANCE = 4e-2


@pytest.mark.parametrize("name", [n for n, c in TRAINING.items() if not c.random])
def test_a_training_step_equals_eager(name: str) -> None:
    case = TRAINING[name]
    work = case.build("cuda", small=True)
    fusec.reset()
    expected = case.run(work, work.fn)
    assert relative_error(case.run(work, fusec.compile(work.fn)), expected) <= TOLERANCE, versions()
    stats = fusec.stats()
    assert stats["kernels_launched"] > 0
    assert [f for f in stats["fallbacks"] if f["level"] != "op"] == []


@pytest.mark.parametrize("name", ["llama_infer", "bert_infer", "gpt2_infer"])
def test_a_model_equals_eager(name: str) -> None:
    case = CASES[name]
    work = case.build("cuda", small=True)
    fusec.reset()
    with torch.no_grad():
        expected = work.fn(*work.args)
        seen = fusec.compile(work.fn)(*work.args)
    assert relative_error(seen, expected) <= TOLERANCE, versions()
    stats = fusec.stats()
    assert stats["kernels_launched"] > 0 and stats["extern_calls"] > 0
    assert [f for f in stats["fallbacks"] if f["level"] != "op"] == []
    assert 0 < stats["kernels_built"] < stats["kernels_launched"]
