"""`import fusec` is nearly free beside `import torch`, and loads nothing that was not asked for."""

from __future__ import annotations

import statistics
import subprocess
import sys

import pytest

LIMIT_MS = 50.0

MEASURE = """
import time, torch
start = time.perf_counter()
import fusec
print((time.perf_counter() - start) * 1e3)
"""


def _run(source: str) -> str:
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout.strip()


def test_import_takes_under_50_ms_beyond_torch() -> None:
    times = [float(_run(MEASURE)) for _ in range(3)]
    assert statistics.median(times) < LIMIT_MS, f"import fusec took {times} ms after torch"


def test_import_loads_no_part_of_the_compiler() -> None:
    loaded = _run("import sys, fusec; print([m for m in sys.modules if m.startswith(('fusec.', 'triton', 'torch'))])")
    assert loaded == "[]"


def test_public_names_are_exactly_these() -> None:
    import fusec

    assert set(fusec.__all__) == {"compile", "explain", "precompile", "load", "Config", "stats", "reset", "replay"}
    assert [n for n in dir(fusec) if not n.startswith("_")] == sorted(fusec.__all__)


def test_unknown_name_lists_the_known_ones() -> None:
    import fusec

    with pytest.raises(AttributeError, match="no attribute 'compil'; it has compile, explain"):
        _ = fusec.compil
