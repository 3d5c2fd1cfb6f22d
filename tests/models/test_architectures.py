"""Six architectures of the table, compiled: eager's numbers, one graph, nothing that runs eagerly.

`make test-models` runs the whole table and writes bench/results/models.md.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fusec
from bench.schema import Result
from bench.schema import Row as Measured
from tests.models import harness, sweep
from tests.models.architectures import ARCHITECTURES, BY_NAME
from tests.models.harness import Draw, InFloat64, Row, check, compare

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
    right, off = (Draw({"y": y}, {"y": eager}, {"y": exact}) for y in (eager, wrong))
    assert compare(right)[2] == [] and compare(right, right)[2] == []
    (fault,) = compare(off)[2]
    assert fault.startswith("y: error") and compare(right, off)[2] != []
    (fault,) = compare(replace(right, seen={"y": eager.double()}))[2]
    assert "float64" in fault
    assert compare(replace(right, seen={}))[2] == ["only one has y"]


def test_the_reference_is_in_float64_where_a_model_asks_for_float32() -> None:
    x = torch.randn(5, dtype=torch.float64)
    with InFloat64():
        found = (x.float(), x.to(torch.float32), torch.log_softmax(x, -1, dtype=torch.float32), torch.zeros(2).float())
        assert {y.dtype for y in found} == {torch.float64}
        assert x.to(torch.bfloat16).dtype is torch.bfloat16
    assert x.float().dtype is torch.float32


def test_a_later_run_of_some_architectures_replaces_their_rows_and_says_so() -> None:
    errors = {"bert": 0.5, "t5": 1.8}
    rows = [Measured(name, "fusec", "training", error=error) for name, error in (*errors.items(), ("t5", 0.4))]
    before = Result.new("models", "all").with_rows(rows[:2])
    after = sweep.with_rows_again(before, ["t5"], Result.new("models", "some").with_rows(rows[2:]))
    assert after.rows == (rows[0], rows[2]) and "made by `some`" in after.extra["again"]["t5"]


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
