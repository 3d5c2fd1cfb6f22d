"""Every architecture of the table, compiled beside eager: a report of what ran, and whether it was right.

    python3 -m tests.models.sweep [--names bert llama] [--workers 2] [--out bench/results]

Inference in float32 and bfloat16, and in float32 with attention written out; a training step in both; greedy
generation with a growing and a static key-value cache. The report is written after every run; with --names at the end,
and only the rows of these architectures are new. Ends with 1 when any run has a fault.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch

from bench.schema import Result
from bench.schema import Row as Measured
from bench.table import Cell, markdown
from tests.models.architectures import ARCHITECTURES, BY_NAME
from tests.models.harness import FACTOR, Row, check, check_generation

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"
GENERATING = ("gpt2", "llama")
COMMAND = "make test-models"

# (architecture, what, attention or cache, dtype)
Case = tuple[str, str, str, str]


def cases(names: Sequence[str]) -> Iterator[Case]:
    """The default attention of all first: a run that is cut short has said something of every architecture."""
    chosen = [BY_NAME[n] for n in names]
    yield from ((a.name, "inference", a.attention[0], dtype) for a in chosen for dtype in ("float32", "bfloat16"))
    yield from ((a.name, "training", a.attention[0], "float32") for a in chosen)
    yield from (
        (n, "generation", cache, "float32") for n in GENERATING if n in names for cache in ("growing", "static")
    )
    yield from ((a.name, "inference", other, "float32") for a in chosen for other in a.attention[1:])
    yield from ((a.name, "training", a.attention[0], "bfloat16") for a in chosen)


def run(case: Case) -> Row:
    name, what, variant, dtype = case
    torch.set_num_threads(1)
    if what == "generation":
        return check_generation(BY_NAME[name], variant)
    return check(BY_NAME[name], variant, getattr(torch, dtype), what == "training")


def measured(case: Case, row: Row) -> Measured:
    counts = {
        "graphs": row.graphs,
        "graph breaks": row.breaks,
        "kernels launched": row.kernels,
        "kernels built": row.built,
        "library calls": row.calls,
        "not lowered": len(row.fallbacks),
        "faults": len(row.faults),
    }
    note = "; ".join(row.faults) or ", ".join(row.fallbacks)
    return Measured(
        case[0], "fusec", " ".join(case[1:]), first_s=round(row.seconds, 2), error=row.worst, counts=counts, note=note
    )


HEADERS = (
    "architecture",
    "what",
    "graphs",
    "breaks",
    "launches",
    "built",
    "calls",
    "error / limit",
    "first call s",
    "",
)


def cells(rows: Sequence[Measured]) -> list[list[Cell]]:
    """The last column: a fault, or what is a library call only because it has no lowering."""
    return [
        [
            row.case,
            row.sizes,
            *(row.counts[k] for k in ("graphs", "graph breaks", "kernels launched", "kernels built", "library calls")),
            f"{row.error:.2f}",
            f"{row.first_s:.1f}",
            row.note,
        ]
        for row in rows
    ]


def publish(result: Result, planned: int, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    result.write(out / "models.json")
    (out / "models.md").write_text(page(result, planned))


def page(result: Result, planned: int) -> str:
    """The committed Markdown page."""
    faults = sum(row.counts.get("faults", (row.error or 0.0) > 1) > 0 for row in result.rows)
    count = len({row.case for row in result.rows})
    cut = "" if result.complete else f" of {planned} (the run was cut short)"
    rows = sorted(result.rows, key=lambda row: list(BY_NAME).index(row.case))
    return f"""# Architectures of transformers, compiled

{count} architectures of two layers with random weights, {len(rows)} runs{cut}, {faults} with a fault. CPU tensors:
kernels run in Triton's interpreter.

- error / limit: the largest error of any output, loss or gradient against float64, over {FACTOR:g} times eager's own
  (`tests/models/harness.py`); in training the mean over an architecture's draws. Above 1 is a fault, as is a crash, or
  a graph or call that runs as eager PyTorch would.
- launches, calls: generated kernels and library calls of one step. built: kernels that no row before had compiled.
- breaks: places where Dynamo ends a graph; they are in the model's own code.
- the last column: the fault; or ops that are library calls for want of a lowering.

{markdown(HEADERS, cells(rows))}

{result.made_by}
{"".join(f"{line}{chr(10)}" for line in result.extra.get("again", {}).values())}"""


def with_rows_again(before: Result, names: Sequence[str], again: Result) -> Result:
    """A published result whose rows of some architectures come from a later run; `extra` says which and when."""
    rows = (*(row for row in before.rows if row.case not in names), *again.rows)
    made = {name: f"Rows of {name}: m{again.made_by[1:]}" for name in names}
    return replace(before, rows=rows, extra={**before.extra, "again": {**before.extra.get("again", {}), **made}})


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.models.sweep", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--names", nargs="+", choices=list(BY_NAME), default=[a.name for a in ARCHITECTURES])
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of models.json and models.md")
    options = parser.parse_args(argv)
    whole = len(options.names) == len(ARCHITECTURES)
    command = COMMAND if whole else f"python -m tests.models.sweep --names {' '.join(options.names)}"
    result, faults = Result.new("models", command), 0
    todo = list(cases(options.names))
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for number, (case, row) in enumerate(zip(todo, pool.map(run, todo)), 1):
            faults += bool(row.faults)
            text = "ok" if not row.faults else "FAULT " + "; ".join(row.faults)[:400]
            print(f"{' '.join(case)}: {row.seconds:.1f} s, {row.kernels} launches, {text}", flush=True)
            result = replace(result.with_rows([measured(case, row)]), complete=number == len(todo))
            if whole:
                publish(result, len(todo), options.out)
    if not whole:
        before = Result.read(options.out / "models.json")
        publish(with_rows_again(before, options.names, result), len(before.rows), options.out)
    print(f"{len(todo)} runs, {faults} with a fault")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
