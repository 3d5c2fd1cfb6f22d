"""The real cache across processes, and the hand-written kernels on the GPU they were written for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench.cases import CASES
from bench.measure import relative_error
from fusec.kernels.softmax import softmax

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import json, torch, fusec
f = fusec.compile(lambda x: torch.softmax(x * 2, -1) + x)
x = torch.randn(33, 1000, device="cuda")
torch.testing.assert_close(f(x), torch.softmax(x * 2, -1) + x)
stats = fusec.stats()
print(json.dumps({k: stats[k] for k in ("kernels_built", "cache_hits", "kernels_launched")}))
"""


def _run(cache: Path) -> dict[str, int]:
    env = {**os.environ, "FUSEC_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    first, second = _run(tmp_path / "cache"), _run(tmp_path / "cache")
    assert first["kernels_built"] >= 1 and first["cache_hits"] == 0
    assert second["kernels_built"] == 0 and second["cache_hits"] >= 1
    assert second["kernels_launched"] == first["kernels_launched"]


@pytest.mark.parametrize("name", ["swiglu", "rms", "layer_norm", "softmax_8192"])
@pytest.mark.parametrize("size", ["small", "full"])
def test_a_yardstick_equals_eager(name: str, size: str) -> None:
    work = CASES[name].build("cuda", small=size == "small")
    assert work.yardstick is not None
    expected = work.fn(*work.args)
    assert relative_error(work.yardstick(*work.args), expected) <= 2e-2


@pytest.mark.parametrize("columns", [131072, 100003])
def test_long_rows_take_the_loop(columns: int) -> None:
    x = torch.randn(5, columns, device="cuda", dtype=torch.bfloat16)
    assert relative_error(softmax(x), torch.softmax(x, -1)) <= 2e-2


def test_offsets_past_32_bits() -> None:
    x = torch.zeros(2**31 // 1024 + 8, 1024, device="cuda", dtype=torch.bfloat16)
    x[-1, 5] = 20.0
    run: Callable[[torch.Tensor], torch.Tensor] = softmax
    torch.testing.assert_close(run(x)[-1], torch.softmax(x[-1], -1))
