"""Six architectures of the table, compiled: eager's numbers, one graph, nothing that runs eagerly.

`make test-models` runs the whole table and writes bench/results/models.md.
"""

from __future__ import annotations

import pytest
import torch

import fusec
from tests.models import harness
from tests.models.architectures import ARCHITECTURES, BY_NAME
from tests.models.harness import Row, check, compare

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("clean")

DTYPES = [torch.float32, torch.bfloat16]


def passed(row: Row) -> bool:
    """A row that a failing assertion prints whole."""
    return not row.faults and row.kernels > 0


SLICE = ["bert", "gpt_neox", "qwen2", "bart", "convnext", "mpnet"]


@pytest.mark.parametrize(
    ("name", "dtype"), [(n, d) for n in SLICE for d in DTYPES if (n, d) != ("bart", torch.float32)], ids=str
)
def test_inference_equals_eager(name: str, dtype: torch.dtype) -> None:
    architecture = BY_NAME[name]
    row = check(architecture, architecture.attention[-1], dtype, training=False)
    assert passed(row), row
    assert (row.graphs, row.breaks) == (1, 0), row


@pytest.mark.parametrize("name", ["bert", "gpt_neox"])
def test_a_training_step_equals_eager(name: str) -> None:
    row = check(BY_NAME[name], BY_NAME[name].attention[0], torch.float32, training=True)
    assert passed(row), row
    assert (row.graphs, row.breaks) == (2, 0), row


def test_there_are_more_than_25_architectures_of_every_kind() -> None:
    assert len(BY_NAME) == len(ARCHITECTURES) > 25
    assert {a.kind for a in ARCHITECTURES} == {"encoder", "decoder", "encoder-decoder", "vision", "audio"}


def test_a_wrong_number_is_a_fault() -> None:
    exact = torch.randn(64, dtype=torch.float64)
    eager, wrong = exact.float(), exact.float()
    wrong[3] += 1e-3
    assert compare({"y": eager}, {"y": eager}, {"y": exact})[2] == []
    (fault,) = compare({"y": wrong}, {"y": eager}, {"y": exact})[2]
    assert fault.startswith("y: error")
    (fault,) = compare({"y": eager.double()}, {"y": eager}, {"y": exact})[2]
    assert "float64" in fault
    assert compare({}, {"y": eager}, {"y": exact})[2] == ["only one has y"]


def test_a_graph_run_eagerly_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> object:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("fusec.pipeline.lower", refuse)
    row = check(BY_NAME["bert"], "sdpa", torch.float32, training=False)
    assert any("broken on purpose" in fault for fault in row.faults), row


@pytest.mark.parametrize(("name", "cache"), [("gpt2", "growing"), ("llama", "static")])
def test_greedy_tokens_equal_eagers(name: str, cache: str) -> None:
    row = harness.check_generation(BY_NAME[name], cache, count=5)
    assert passed(row), row
    assert fusec.stats()["graphs"] == 0  # counted and forgotten
