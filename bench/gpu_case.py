"""One case of the GPU benchmark, in a process of its own: an error of the device ends this case and no other.

    python3 -m bench.gpu_case --case rms --seconds 8 --lock <file> [--tuned]

Everything is compiled and checked first, beside other cases; what is slow on the device, and every measurement of block
sizes, holds a lock. Then it says "ready" and waits for a line: while it times, the device is its own. Before it waits
and at the end it says what it knows, each time as one line of JSON:
{"rows": [...], "kernels": {variant: [[name, us, launches], ...]}, "stats": {...}}.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

import fusec
from bench.budget import Budget
from bench.cases import Case, Work
from bench.liger import liger
from bench.measure import DEVICE, Alone, Call, first_line, kernel_times, prepare, timed
from bench.schema import Row
from bench.training import EVERY

READY = "ready"
KERNELS_SHOWN = 12
COMPILED = ("torch.compile", "fusec")  # how the names of variants begin that compile at their first call


def variants(case: Case, work: Work, tuned: bool = False) -> dict[str, Call]:
    """One step of the work in all its forms. tuned: also by both compilers with measured block sizes."""
    fn = work.fn
    forms: dict[str, Callable[..., Any] | None] = {
        "eager": fn,
        "torch.compile": torch.compile(fn),
        "fusec": fusec.compile(fn),
        "torch.compile tuned": torch.compile(fn, mode="max-autotune-no-cudagraphs") if tuned else None,
        "fusec tuned": fusec.compile(fn, mode="max-autotune") if tuned else None,
        "yardstick": work.yardstick,
    }
    calls: dict[str, Call] = {name: partial(case.run, work, form) for name, form in forms.items() if form is not None}
    peer = liger(case.name, work)
    return calls if peer is None else {**calls, "liger": partial(case.run, peer, peer.fn)}


def run(
    case: Case, seconds: float, tuned: bool, say: Callable[[str], None], wait: Callable[[], str], alone: Alone
) -> None:
    torch.manual_seed(0)
    with alone():
        work = case.build(DEVICE)
    calls = variants(case, work, tuned)
    rows = prepare(case, work, calls, [name for name in calls if name.startswith(COMPILED)], alone)
    torch.cuda.empty_cache()
    say(_answer(rows))
    say(READY)
    if wait():
        rows = timed(calls, rows, Budget.parse(f"{seconds}s"))
        compiled = [r.variant for r in rows if r.variant in COMPILED and not r.note]
        say(_answer(rows, {name: _kernels(calls[name]) for name in compiled}))


def _kernels(call: Call) -> list[Any]:
    try:
        return [[name, round(us, 2), count] for name, us, count in kernel_times(call)[:KERNELS_SHOWN]]
    except Exception as error:  # a machine without the profiler's library
        return [first_line(error)]


def _answer(rows: list[Row], kernels: dict[str, Any] | None = None) -> str:
    return json.dumps(
        {"rows": [asdict(r) for r in rows], "kernels": kernels or {}, "stats": fusec.stats()}, default=str
    )


class DeviceLock:
    """`with lock():` no other process that asks has the device; several of one process count as one."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w")
        self._depth = 0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        if not self._depth:
            fcntl.flock(self._file, fcntl.LOCK_EX)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                fcntl.flock(self._file, fcntl.LOCK_UN)


def measure_tiles_alone(lock: Alone) -> None:
    """Both compilers measure block sizes inside a first call: they hold the lock meanwhile."""
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    from fusec.runtime import launch

    def locked(measure: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with lock():
                return measure(*args, **kwargs)

        return call

    measuring = (CachingAutotuner, "benchmark_all_configs"), (CachingAutotuner, "coordinate_descent_tuning")
    for owner, name in (*measuring, (launch, "fastest")):
        setattr(owner, name, locked(getattr(owner, name)))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m bench.gpu_case", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--case", required=True, choices=list(EVERY))
    parser.add_argument("--seconds", type=float, default=8.0, help="time for the timing")
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--lock", type=Path, required=True, help="a file that all cases share")
    given = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    lock = DeviceLock(given.lock)
    measure_tiles_alone(lock)
    say = partial(print, file=answers, flush=True)
    run(EVERY[given.case], given.seconds, given.tuned, say, sys.stdin.readline, lock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
