"""All samples of all ops of PyTorch's own OpInfo suite, compiled and held against eager mode.

    python -m tests.opinfo.sweep --workers 2 --dtypes float32,bool      # what is done already is not done again
    python -m tests.opinfo.sweep --report                               # only write the report of what is done

Leaves one line of JSON for an op and a dtype in --out, and from them a table (see `report.py`). A worker process
that dies leaves its op behind as "crashed" and a new one goes on. The exit status is 1 when a sample failed
that the table of known misses does not list.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tests.opinfo import report
from tests.opinfo.harness import Compiler, Outcome, run_sample
from tests.opinfo.suite import BACKWARD, DTYPES, ERRORS, REQUIRED, full_name, ops, samples, step_of, supported

SHOWN = 12  # failures kept of an op and a dtype, in words
SECONDS = 120  # for one sample


def run_op(op: Any, dtype: str, most: int) -> dict[str, Any]:
    """The samples of an op in one dtype, `most` of them spread over all, as a row of the report."""
    start, compiler = time.monotonic(), Compiler()
    drawn = list(enumerate(samples(op, dtype)))
    chosen = drawn[:: -(-len(drawn) // most)] if drawn else []
    outcomes = {i: run_sample(op, s, compiler, SECONDS, step=step_of(dtype)) for i, s in chosen}
    return row(full_name(op), dtype, outcomes, len(drawn), time.monotonic() - start)


def row(name: str, dtype: str, found: dict[int, Outcome], of: int, seconds: float) -> dict[str, Any]:
    outcomes = list(found.values())
    failed = [(i, o) for i, o in found.items() if not o.passed]
    return {
        "op": name,
        "dtype": dtype,
        "of": of,
        "samples": len(outcomes),
        "failed": len(failed),
        "torch": sum(o.without_fusec for _, o in failed),
        "closer": sum(o.verdict == "closer" for o in outcomes),
        "rounded": sum(o.verdict == "rounded" for o in outcomes),
        "errors": sum(o.verdict == "error" for o in outcomes),
        "kernels": sum(o.kernels > 0 for o in outcomes),
        "externs": sum(o.externs > 0 for o in outcomes),
        "python": sum(o.path == "function" for o in outcomes),
        "fallbacks": sorted({f for o in outcomes for f in o.fallbacks}),
        "failures": [[i, o.verdict[:500]] for i, o in failed[:SHOWN]],
        "seconds": round(seconds, 2),
    }


# -- workers --------------------------------------------------------------------------------------


def work(out: Path, shard: int, shards: int, dtypes: list[str], names: list[str], most: int) -> None:
    """Run the ops of a shard that no line speaks of yet, or of fewer samples."""
    logging.getLogger("fusec").setLevel(logging.ERROR)
    logging.getLogger("torch").setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    done = {key for key, r in report.read(out).items() if r["samples"] >= min(most, r["of"])}
    with (out / f"shard_{shard}_of_{shards}.jsonl").open("a") as file:
        for dtype in dtypes:
            for number, op in enumerate(ops()):
                key = (full_name(op), dtype)
                if number % shards != shard or key in done or (names and op.name not in names):
                    continue
                if not supported(op, dtype):
                    continue
                _write(file, {**row(*key, {}, 0, 0.0), "started": True})
                _write(file, run_op(op, dtype, most))


def _write(file: Any, line: dict[str, Any]) -> None:
    file.write(json.dumps(line) + "\n")
    file.flush()


def supervise(out: Path, workers: int, arguments: list[str]) -> None:
    """Workers side by side; one that dies is started again, and goes on behind the op that killed it."""

    def start(shard: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.opinfo.sweep", "--out", str(out), "--shard", f"{shard}/{workers}"]
        return subprocess.Popen([*command, *arguments])

    running = {shard: start(shard) for shard in range(workers)}
    while running:
        time.sleep(1)
        for shard, process in list(running.items()):
            status = process.poll()
            if status is None:
                continue
            del running[shard]
            if status < 0:
                print(f"worker {shard} was ended by signal {-status}; it is started again", flush=True)
                running[shard] = start(shard)
            elif status:
                raise SystemExit(f"worker {shard} failed with status {status}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.opinfo.sweep", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/opinfo"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--dtypes", default=",".join((*REQUIRED, ERRORS)), help=f"of {', '.join((*DTYPES, *BACKWARD, ERRORS))}"
    )
    parser.add_argument("--ops", default="", help="names, with commas; all when not given")
    parser.add_argument("--most", type=int, default=1 << 30, help="samples of an op and a dtype, spread over all")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--fresh", action="store_true", help="forget what was done before")
    parser.add_argument("--write", type=Path, help="write the table of results to this file")
    parser.add_argument("--shard", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    dtypes, names = given.dtypes.split(","), [n for n in given.ops.split(",") if n]
    if given.shard:
        shard, shards = (int(n) for n in given.shard.split("/"))
        work(given.out, shard, shards, dtypes, names, given.most)
        return 0
    if given.fresh:
        for path in given.out.glob("shard_*.jsonl"):
            path.unlink()
    if not given.report:
        supervise(given.out, given.workers, ["--dtypes", given.dtypes, "--ops", given.ops, "--most", str(given.most)])
    rows = [r for r in report.read(given.out).values() if r["dtype"] in dtypes and (not names or r["op"] in names)]
    print(report.summary(rows))
    if given.write is not None:
        given.write.write_text(report.page(rows), encoding="utf-8")
    return int(bool(report.unknown_misses(rows)))


if __name__ == "__main__":
    raise SystemExit(main())
