"""The page and the picture of a GPU run, and the peers that may not be installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from bench.cases import CASES
from bench.liger import liger
from bench.page import by_case, page, speedup, write
from bench.schema import Result, Row

ROWS = (
    Row("softmax_train", "torch.compile", median_us=300.0, host_us=70.0, first_s=4.0, share=0.4),
    Row("softmax_train", "fusec", median_us=200.0, host_us=50.0, first_s=2.0, share=0.6, error=1e-3),
    Row("rms", "eager", median_us=847.0),
    Row("rms", "torch.compile", median_us=50.0, share=0.9),
    Row("rms", "fusec", median_us=100.0, share=0.45),
    Row("rms", "liger", median_us=67.0),
    Row("swiglu", "fusec", note="RuntimeError: no"),
)
KERNELS = {"rms": {"torch.compile": [["a", 40.0, 1.0], ["b", 8.5, 2.0]], "fusec": ["RuntimeError: no profiler"]}}
RESULT = Result(
    "gpu",
    "python3 -m bench.gpu",
    "2026-01-01",
    "A GPU",
    {"torch": "2", "triton": "3"},
    ROWS,
    True,
    {"kernels": KERNELS},
)


def test_cases_are_in_the_order_of_the_benchmark_and_held_against_torch_compile() -> None:
    cases = by_case(RESULT)
    assert list(cases) == ["swiglu", "rms", "softmax_train"]
    assert [speedup(rows) for rows in cases.values()] == [None, 0.5, 1.5]
    text = page(RESULT)
    assert "Against torch.compile over 2 cases: 0.87 times as quick in the geometric mean, 0.50 to 1.50." in text
    (line,) = (line for line in text.splitlines() if line.startswith("| rms |"))
    assert "| 847.0 | 50.0 | 100.0 | 0.50 | 67.0 | 0.45 | 48.5 |  |" in line
    assert "python3 -m bench.gpu" in text.splitlines()[-1]


def test_a_page_has_its_picture_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "gpu-a-gpu.json"
    RESULT.write(path)
    write(path)
    picture = path.with_suffix(".svg")
    assert picture.exists() is (find_spec("matplotlib") is not None)
    assert ("(gpu-a-gpu.svg)" in path.with_suffix(".md").read_text()) is picture.exists()


@pytest.mark.skipif(find_spec("liger_kernel") is not None, reason="liger-kernel is installed")
def test_without_the_package_there_is_no_peer() -> None:
    assert liger("rms", CASES["rms"].build("cpu", small=True)) is None


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "bench/results").glob("gpu*.json")), ids=lambda p: p.name
)
def test_committed_pages_are_those_of_their_files(path: Path) -> None:
    picture = path.with_suffix(".svg")
    assert path.with_suffix(".md").read_text() == page(Result.read(path), picture.name if picture.exists() else "")
