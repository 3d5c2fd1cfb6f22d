"""What the sweep found, as a summary and as a table.

Enters: the rows of `sweep.py`. Leaves: text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.opinfo.misses import MISSES

Row = dict[str, Any]


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


def unknown_misses(rows: Sequence[Row]) -> list[Row]:
    return [r for r in rows if r["failed"] and not any(m.covers(r["op"], r["dtype"]) for m in MISSES)]


def summary(rows: Sequence[Row]) -> str:
    total, failed = (sum(r[n] for r in rows) for n in ("samples", "failed"))
    lines = []
    for row in sorted(unknown_misses(rows), key=lambda r: -r["failed"]):
        lines.append(f"{row['op']} {row['dtype']}: {row['failed']} of {row['samples']}")
        lines += [f"    {i}: {text}" for i, text in row["failures"][:2]]
    lines.append(f"{len(rows)} rows, {total} samples, {failed} failed")
    return "\n".join(lines)


def page(rows: Sequence[Row]) -> str:
    return summary(rows)
