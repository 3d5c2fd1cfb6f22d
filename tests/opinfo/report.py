"""What the sweep found, as a summary for the terminal and as a page.

Enters: the rows of `sweep.py`. Leaves: text. An op counts as having run a generated kernel when one was launched for
any of its samples.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.table import markdown
from tests.opinfo.misses import MISSES, miss_of
from tests.opinfo.suite import BACKWARD, DTYPES, ERRORS

Row = dict[str, Any]

# Whole families for which a kernel is not the goal.
_FAMILIES = {
    "linalg": r"linalg\.|cholesky|lu$|lu_|svd|qr$|geqrf|ormqr|pinverse|matrix_exp|triangular_solve|logdet|pca_lowrank",
    "fft": r"fft|stft|istft",
    "sort": r"sort|argsort|msort|topk|kthvalue|median|nanmedian|mode$|unique|quantile|nanquantile",
    "sparse": r"sparse|to_sparse|torch\.ops\.aten\._sparse",
    "complex": r"complex|polar|real$|imag$|view_as_real|angle|conj|resolve_",
}


def read(out: Path) -> dict[tuple[str, str], Row]:
    """The last line of each op and dtype; a line that only says "started" is a crash."""
    found: dict[tuple[str, str], Row] = {}
    for path in sorted(out.glob("shard_*.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if row.pop("started", False):
                row = {**row, "samples": 1, "failed": 1, "failures": [[0, "the process crashed"]]}
            found[row["op"], row["dtype"]] = row
    return found


def family(op: str) -> str | None:
    """linalg, fft, sort, sparse or complex; None for the ops that kernels are for."""
    return next((name for name, pattern in _FAMILIES.items() if re.match(pattern, op)), None)


def unknown_misses(rows: Sequence[Row]) -> list[Row]:
    """Rows with failures that no row of the table lists."""
    return [r for r in rows if r["failed"] and miss_of(r["op"], r["dtype"]) is None]


def totals(rows: Sequence[Row]) -> list[list[str]]:
    """One line a dtype: ops, samples, eager's answer, closer, rounded, eager's error, misses, with a kernel."""
    lines = []
    for dtype in (*DTYPES, *BACKWARD, ERRORS):
        mine = [r for r in rows if r["dtype"] == dtype]
        if mine:
            names = ("of", "samples", "closer", "rounded", "errors", "failed", "kernels")
            of, samples, *kinds, kernels = (sum(r.get(n, 0) for r in mine) for n in names)
            lines.append([dtype, *(str(n) for n in (len(mine), of, samples, samples - sum(kinds), *kinds, kernels))])
    return lines


def kernel_share(rows: Sequence[Row]) -> tuple[int, int]:
    """(ops that ran a generated kernel, ops), of those that are of no family above."""
    ran: dict[str, bool] = defaultdict(bool)
    for row in rows:
        if row["dtype"] != ERRORS and row["samples"] and family(row["op"]) is None:
            ran[row["op"]] |= row["kernels"] > 0
    return sum(ran.values()), len(ran)


def summary(rows: Sequence[Row]) -> str:
    lines = []
    for row in sorted(unknown_misses(rows), key=lambda r: -r["failed"]):
        without = f" ({row['torch']} with aot_eager, too)" if row["torch"] else ""
        lines.append(f"{row['op']} {row['dtype']}: {row['failed']} of {row['samples']}{without}")
        lines += [f"    {i}: {text}" for i, text in row["failures"][:2]]
    samples, failed = (sum(r[n] for r in rows) for n in ("samples", "failed"))
    ran, ops = kernel_share(rows)
    share = f"{ran} of {ops} ops ran a generated kernel ({ran / max(ops, 1):.0%})"
    lines.append(f"{len(rows)} rows, {samples} samples, {failed} failed; {share}")
    return "\n".join(lines)


_FORWARD = """# PyTorch's OpInfo suite, forward, in Triton's interpreter

Written by `python -m tests.opinfo.sweep`; `make test-opinfo` runs every sample. Each that is run is compiled and \
held against eager mode: dtype, shape, strides, values within the suite's tolerance (or no further from float64 than \
eager), or eager's error."""

_BACKWARD = """# PyTorch's OpInfo suite, gradients, in Triton's interpreter

Written by `python -m tests.opinfo.sweep`; `make test-opinfo-backward` runs every sample. Each is a training step: \
AOTAutograd's joint graph, cut in two by `fusec/capture/joint.py`.

- float32.backward: the outputs, which of them have a gradient, and the gradients of all inputs for a fixed random \
gradient from outside are eager's: dtype, shape, which are none, and values within what `torch.testing.assert_close` \
allows (or the whole tensor's error against float64 is at most 1.5 times eager's).
- float64.gradcheck: `torch.autograd.gradcheck` of the compiled function, on samples of few elements; finite \
differences in random directions. "eager's error": where eager mode does not pass it either."""


def page(rows: Sequence[Row]) -> str:
    """The whole report in Markdown."""
    ran, ops = kernel_share(rows)
    header = ["inputs", "ops", "samples", "run", "eager's answer", "closer to float64", "with precision=eager"]
    header += ["eager's error", "misses"]
    dtypes = [d for d in (*DTYPES, *BACKWARD, ERRORS) if any(r["dtype"] == d for r in rows)]
    columns = [d for d in dtypes if d != ERRORS]
    misses = [
        [m.op, ", ".join(m.where), m.reason, "yes" if m.torch else "no"]
        for m in MISSES
        if "*" in m.where or set(dtypes) & set(m.where)
    ]
    return "\n".join(
        [
            _BACKWARD if set(dtypes) & set(BACKWARD) else _FORWARD,
            "",
            markdown([*header, "launched a kernel"], totals(rows)),
            "",
            f"{ran} of {ops} ops ({ran / max(ops, 1):.1%}) that are neither linear algebra, fft, sorting, sparse nor "
            "complex ran a generated kernel. Matrix products and convolutions, which a library computes, and ops that "
            "only make a view, which launch nothing, count as not.",
            "",
            "## Known misses",
            "",
            markdown(["op", "inputs", "reason", "a defect of PyTorch"], misses),
            "",
            "## Ops",
            "",
            "Samples that launched a generated kernel, by dtype. Externs: samples with a library call.",
            "",
            markdown(["op", "family", *columns, "externs", "fallbacks"], _ops(rows, columns)),
            "",
        ]
    )


def _ops(rows: Sequence[Row], columns: Sequence[str]) -> list[list[str]]:
    found: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row["dtype"] != ERRORS:
            found[row["op"]][row["dtype"]] = row
    lines = []
    for op, mine in sorted(found.items()):
        cells = [f"{mine[d]['kernels']}/{mine[d]['samples']}" if d in mine else "" for d in columns]
        externs = sum(r["externs"] for r in mine.values())
        reasons = sorted({f.split(": ", 2)[-1] for r in mine.values() for f in r["fallbacks"]})
        lines.append([op, family(op) or "", *cells, str(externs or ""), "; ".join(reasons)[:160].replace("|", "/")])
    return lines
