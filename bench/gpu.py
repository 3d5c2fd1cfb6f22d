"""GPU tests, then a short benchmark, inside a time budget.

    python3 -m bench.gpu --budget 8m [--out bench/results] [--cases rms softmax_8192] [--skip-tests]

Where there is no GPU it says so in one line. Tests and benchmark run in processes of their own, which end when their
share of the budget does; what was measured until then is kept, in bench/results/gpu-<device>.json and on the screen.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import fusec
from bench.budget import Budget, seconds
from bench.cases import Case, Work
from bench.measure import compare
from bench.schema import Result, Row, device_name
from bench.table import timings
from bench.training import EVERY

ROOT = Path(__file__).resolve().parent.parent
NO_GPU = "no NVIDIA GPU here: GPU tests and benchmark did not run"
TESTS_SHARE = 0.5
DEVICE = "cuda"
# Without --strict-config: settings of plugins that a bare machine lacks are warnings then.
PYTEST = ("-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib --strict-markers")
CASE_SHARE = 2.0  # a case may take this many times an even share of what is left


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m bench.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--budget", default="8m", help="time for everything: 90s, 8m, 1h (default 8m)")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder of the JSON file")
    parser.add_argument("--cases", nargs="+", metavar="CASE", help="only these cases")
    parser.add_argument("--skip-tests", action="store_true", help="benchmark only")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    try:
        seconds(options.budget)
    except ValueError as error:
        parser.error(str(error))
    known = [n for n, c in EVERY.items() if c.gpu]
    unknown = [n for n in options.cases or [] if n not in known]
    if unknown:
        parser.error(f"unknown case {unknown[0]!r}; valid: {', '.join(known)}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    if not torch.cuda.is_available():
        print(NO_GPU)
        return 0
    budget = Budget.parse(options.budget)
    if options.child:
        return measure(options.child, options.cases, budget)
    tests = {} if options.skip_tests else run_tests(budget.share(TESTS_SHARE))
    path = options.out / f"gpu-{re.sub(r'[^a-z0-9]+', '-', device_name().lower()).strip('-')}.json"
    path.unlink(missing_ok=True)  # a file of an earlier run must not pass for this one's
    run_benchmark(path, options.cases, budget)
    return report(path, tests)


def run_tests(limit: float) -> dict[str, Any]:
    """tests/gpu in a process of its own: rc, seconds, and pytest's closing line."""
    rc, took, lines = run_limited([sys.executable, "-m", "pytest", *PYTEST, str(ROOT / "tests" / "gpu")], limit)
    return {"rc": rc, "seconds": round(took, 1), "summary": lines[-1] if lines else "no output"}


def run_benchmark(path: Path, cases: Sequence[str] | None, budget: Budget) -> None:
    command = [sys.executable, "-m", "bench.gpu", "--child", str(path), "--budget", f"{max(budget.left - 5, 1):.0f}s"]
    with tempfile.TemporaryDirectory() as cold:  # compilation is measured too, so no cache is warm
        caches = ("FUSEC_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
        run_limited(command + (["--cases", *cases] if cases else []), budget.left, dict.fromkeys(caches, cold))


def run_limited(
    command: Sequence[str], limit: float, extra: dict[str, str] | None = None
) -> tuple[int, float, list[str]]:
    """Runs in the repository's root, showing the output; (124, ...) when the limit ended it."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    began = time.monotonic()
    lines: list[str] = []
    variables = {**os.environ, **(extra or {}), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=subprocess.STDOUT)
        try:
            rc = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            rc = 124
        log.seek(0)
        lines = [line.rstrip("\n") for line in log]
    print("\n".join(lines[-60:]), flush=True)
    if rc == 124:
        lines.append(f"stopped at its share of the budget, {limit:.0f} s")
        print(lines[-1], flush=True)
    return rc, time.monotonic() - began, lines


def variants(work: Work) -> dict[str, Callable[..., Any]]:
    found = {"eager": work.fn, "torch.compile": torch.compile(work.fn), "fusec": fusec.compile(work.fn)}
    return {**found, "yardstick": work.yardstick} if work.yardstick else found


def measure(path: Path, names: Sequence[str] | None, budget: Budget) -> int:
    """The benchmark itself: writes the file after every case."""
    cases = [c for c in EVERY.values() if c.gpu and (not names or c.name in names)]
    result = Result.new("gpu", f"python3 -m bench.gpu --budget {budget.total:.0f}s")
    result.write(path)
    for done, case in enumerate(cases):
        if budget.left == 0.0:
            break
        share = CASE_SHARE * budget.left / (len(cases) - done)
        result = result.with_rows(measure_case(case, Budget(min(share, budget.left), budget.clock(), budget.clock)))
        complete = done == len(cases) - 1
        result = replace(result, complete=complete, extra={"fusec_stats": _plain(fusec.stats())})
        result.write(path)
        print(f"{case.name}: {budget.left:.0f} s left", flush=True)
        torch.compiler.reset()
        torch.cuda.empty_cache()
    return 0


def measure_case(case: Case, budget: Budget) -> list[Row]:
    torch.manual_seed(0)
    try:
        work = case.build(DEVICE)
        return compare(case, work, variants(work), budget)
    except Exception as error:  # one case that fails must not take the others' results with it
        return [Row(case.name, "all", case.sizes, note=f"{type(error).__name__}: {error}".splitlines()[0][:160])]


def _plain(stats: Any) -> dict[str, Any]:
    """Counters as JSON can hold them."""
    return {str(k): v if isinstance(v, int | float | str) else str(v) for k, v in dict(stats).items()}


def report(path: Path, tests: dict[str, Any]) -> int:
    """The table, and where the file is; rc 1 when tests failed or nothing was measured."""
    if not path.exists():
        print("the benchmark wrote no result")
        return 1
    result = Result.read(path)
    replace(result, extra={**result.extra, "tests": tests}).write(path)
    print(timings(result))
    print(f"{result.device}, torch {result.versions['torch']}, triton {result.versions['triton']}, {result.date}")
    if tests:
        print(f"tests: {tests['summary']}")
    print(f"written to {path}" + ("" if result.complete else ", partial: the budget ended first"))
    return 1 if tests.get("rc") or not result.rows else 0


if __name__ == "__main__":
    sys.exit(main())
