"""GPU tests, then a benchmark, inside a time budget.

    python3 -m bench.gpu --budget 8m [--out bench/results] [--cases rms softmax_8192] [--tuned] [--skip-tests]

Where there is no GPU it says so in one line. Tests run side by side. Then every case of the benchmark has a process of
its own (bench/gpu_case.py): a few at a time they compile and check, and those that are ready are timed one after the
other. What was measured when the budget ends is kept, in bench/results/gpu-<device>.json, .md and .svg.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from bench import page
from bench.budget import Budget, seconds
from bench.gpu_case import READY
from bench.schema import Result, Row, device_name
from bench.table import timings
from bench.training import EVERY

ROOT = Path(__file__).resolve().parent.parent
NO_GPU = "no NVIDIA GPU here: GPU tests and benchmark did not run"
TESTS_SHARE = 0.5
# Without --strict-config: settings of plugins that a bare machine lacks are warnings then.
PYTEST = ("-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib --strict-markers")
CASES_AT_ONCE = 16
STRAGGLERS = 4  # cases that may still compile while others are timed
CASE_BYTES = 5 << 30  # of device memory, that a case may hold
TIMING_SECONDS = 8.0  # of one case
LINES_SHOWN = 60
CASE_MODULE = "bench.gpu_case"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m bench.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--budget", default="8m", help="time for everything: 90s, 8m, 1h (default 8m)")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder of the JSON file")
    parser.add_argument("--cases", nargs="+", metavar="CASE", help="only these cases")
    parser.add_argument("--tuned", action="store_true", help="both compilers with measured block sizes, too")
    parser.add_argument("--skip-tests", action="store_true", help="benchmark only")
    options = parser.parse_args(argv)
    try:
        seconds(options.budget)
    except ValueError as error:
        parser.error(str(error))
    unknown = [n for n in options.cases or [] if n not in EVERY]
    if unknown:
        parser.error(f"unknown case {unknown[0]!r}; valid: {', '.join(EVERY)}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    if not torch.cuda.is_available():
        print(NO_GPU)
        return 0
    budget = Budget.parse(options.budget)
    options.out.mkdir(parents=True, exist_ok=True)
    tests = {} if options.skip_tests else run_tests(budget.share(TESTS_SHARE), options.out)
    path = options.out / f"gpu-{re.sub(r'[^a-z0-9]+', '-', device_name().lower()).strip('-')}.json"
    path.unlink(missing_ok=True)  # a file of an earlier run must not pass for this one's
    chosen = ["--cases", *options.cases] if options.cases else []
    flags = [f"--{n}" for n in ("tuned", "skip-tests") if getattr(options, n.replace("-", "_"))]
    command = " ".join(["python3 -m bench.gpu", "--budget", options.budget, *chosen, *flags])
    names = sorted(options.cases or EVERY, key=lambda n: not EVERY[n].whole)  # what compiles longest begins first
    with tempfile.TemporaryDirectory() as cold:  # compilation is measured too, so no cache is warm
        run_benchmark(Result.new("gpu", command), path, names, budget, cold, options.tuned)
    return report(path, tests)


# -- tests ----------------------------------------------------------------------------------------


def run_tests(limit: float, out: Path) -> dict[str, Any]:
    """tests/gpu in processes of their own: rc, seconds, and pytest's closing line. The whole log is in `out`."""
    command = [sys.executable, "-m", "pytest", *PYTEST, *_side_by_side(), str(ROOT / "tests" / "gpu")]
    rc, took, lines = run_limited(command, limit, out / "gpu-tests.log")
    return {"rc": rc, "seconds": round(took, 1), "summary": lines[-1] if lines else "no output"}


def _side_by_side() -> tuple[str, ...]:
    count = min(os.cpu_count() or 1, CASES_AT_ONCE)
    return ("-n", str(count)) if find_spec("xdist") and count > 3 else ()


def run_limited(command: Sequence[str], limit: float, log: Path) -> tuple[int, float, list[str]]:
    """Runs in the repository's root, showing the end of the output; (124, ...) when the limit ended it."""
    began = time.monotonic()
    with log.open("w+") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=_environment({}), stdout=file, stderr=subprocess.STDOUT)
        try:
            rc = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            rc = 124
        file.seek(0)
        lines = [line.rstrip("\n") for line in file]
    if rc == 124:
        lines.append(f"stopped at its share of the budget, {limit:.0f} s")
    print("\n".join(lines[-LINES_SHOWN:]), flush=True)
    return rc, time.monotonic() - began, lines


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, **extra, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


# -- benchmark ------------------------------------------------------------------------------------


class Child:
    """The process of one case. answer: the last thing it said. ready: it waits for its turn to time, or has ended."""

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self.answer: dict[str, Any] | None = None
        self.ready = False
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._buffer = b""
        command = [sys.executable, "-m", CASE_MODULE, "--case", name, *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)  # type: ignore[call-overload]

    def fileno(self) -> int:
        return int(self.process.stdout.fileno())

    def read(self) -> None:
        """What it has said since; it is ready when it says so, and at the end of its output."""
        chunk = os.read(self.fileno(), 1 << 16)
        self._buffer += chunk
        while b"\n" in self._buffer:
            raw, _, self._buffer = self._buffer.partition(b"\n")
            if raw.startswith(b"{"):
                self.answer = json.loads(raw)
            self.ready = self.ready or raw.decode() == READY
        if not chunk:
            self.process.wait()
            self.ready = True

    def time(self, deadline: float) -> None:
        """Let it time; afterwards `answer` has the times, unless the deadline came first or it died."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(b"go\n")
            self.process.stdin.flush()
        while self.process.returncode is None and _readable([self], deadline):
            self.read()

    def end(self) -> str:
        """Ends it; the last lines it printed where it had died by itself."""
        died = self.process.poll() not in (None, 0)
        self.process.kill()
        self.process.wait()
        self._log.seek(0)
        said = self._log.read().strip()
        self._log.close()
        return f"ended with status {self.process.returncode}:\n{said[-1500:]}" if died else ""


def _readable(children: Sequence[Child], deadline: float) -> list[Child]:
    """Those that said something; none when the deadline came first."""
    return select.select(children, [], [], max(deadline - time.monotonic(), 0.0))[0]


def run_benchmark(
    result: Result, path: Path, names: Sequence[str], budget: Budget, cache: str, tuned: bool = False
) -> None:
    """All cases, a few at a time; the file is written after every case.

    Those that are ready are timed, in turn, while at most STRAGGLERS others still compile.
    """
    result.write(path)
    threads = {"TORCHINDUCTOR_COMPILE_THREADS": "2", "FUSEC_WORKERS": "2"}
    caches = dict.fromkeys(("FUSEC_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"), cache)
    environment = _environment({**threads, **caches})
    lock = ["--lock", str(Path(cache) / "lock")]
    arguments = ["--seconds", str(TIMING_SECONDS), *lock, *(["--tuned"] if tuned else [])]
    deadline, at_once = time.monotonic() + budget.left, cases_at_once()
    waiting, running = list(names), list[Child]()
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(Child(waiting.pop(0), arguments, environment))
        late = time.monotonic() >= deadline
        while not late and sum(not c.ready for c in running) > min(STRAGGLERS, len(running) - 1):
            found = _readable([c for c in running if not c.ready], deadline)
            for child in found:
                child.read()
            late = not found
        for child in [c for c in running if c.ready or late]:
            if child.answer is not None and not late:
                child.time(deadline)
            late = time.monotonic() >= deadline
            running.remove(child)
            result = replace(_with_answer(result, child), complete=not late and not waiting and not running)
            result.write(path)
            print(f"{child.name}: {max(deadline - time.monotonic(), 0.0):.0f} s left", flush=True)
        if late:
            waiting = []


def cases_at_once() -> int:
    room = torch.cuda.get_device_properties().total_memory // CASE_BYTES if torch.cuda.is_available() else 1
    return max(1, min(CASES_AT_ONCE, os.cpu_count() or 1, room))


def _with_answer(result: Result, child: Child) -> Result:
    died = child.end()
    answer = child.answer or {"rows": [], "kernels": {}, "stats": {}}
    if died:
        print(f"{child.name} {died}", flush=True)
        last = died.splitlines()[-1][:160]
        answer["rows"].append(asdict(Row(child.name, "all", EVERY[child.name].sizes, note=last)))
    extra = {key: {**result.extra.get(key, {}), child.name: answer[key]} for key in ("kernels", "stats")}
    return replace(result.with_rows(Row(**row) for row in answer["rows"]), extra={**result.extra, **extra})


def report(path: Path, tests: dict[str, Any]) -> int:
    """The table, and where the file is; rc 1 when tests failed or nothing was measured."""
    if not path.exists():
        print("the benchmark wrote no result")
        return 1
    result = Result.read(path)
    replace(result, extra={**result.extra, "tests": tests}).write(path)
    page.write(path)
    print(timings(result))
    print(f"{result.device}, torch {result.versions['torch']}, triton {result.versions['triton']}, {result.date}")
    if tests:
        print(f"tests: {tests['summary']}")
    print(f"written to {path}" + ("" if result.complete else ", partial: the budget ended first"))
    return 1 if tests.get("rc") or not result.rows else 0


if __name__ == "__main__":
    sys.exit(main())
