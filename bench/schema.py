"""The one form of a measured file: what was measured, by which command, on which device, when.

    Result.new("gpu", "python3 -m bench.gpu").with_rows([row]).write(Path("bench/results/h200.json"))
    Result.read(Path("bench/results/h200.json")).rows[0].median_us

A file is written after every row, beside its final name and then moved, so an interrupted run leaves a whole one.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import triton

import fusec

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One variant of one case.

    variant:    "eager", "torch.compile", "fusec", "yardstick" or "clone".
    bytes:      inputs read once and outputs written once.
    *_us:       microseconds on the device, over interleaved runs; host_us: the call's own time on the host.
    share:      bytes / median_us over the clone's bandwidth, measured in the same run.
    first_s:    seconds of the first call, compilation included.
    peak_bytes: memory allocated during a call, above what the inputs hold.
    error:      largest |seen - eager| over the largest |eager|; None where there is nothing to compare.
    counts:     what was counted instead of timed, by name (bench.metered).
    note:       why there is no figure, when there is none.
    """

    case: str
    variant: str
    sizes: str = ""
    bytes: int = 0
    median_us: float | None = None
    p20_us: float | None = None
    p80_us: float | None = None
    host_us: float | None = None
    gbps: float | None = None
    share: float | None = None
    first_s: float | None = None
    peak_bytes: int | None = None
    error: float | None = None
    counts: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Result:
    """kind: which script. complete: False when the budget ended first. extra: the script's own findings."""

    kind: str
    command: str
    date: str
    device: str
    versions: Mapping[str, str]
    rows: tuple[Row, ...] = ()
    complete: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @classmethod
    def new(cls, kind: str, command: str) -> Result:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(kind, command, now, device_name(), versions())

    def with_rows(self, rows: Iterable[Row]) -> Result:
        return replace(self, rows=(*self.rows, *rows))

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n")
        temporary.replace(path)

    @property
    def made_by(self) -> str:
        """The last line of a page: the command, when it ran and with which versions."""
        versions = ", ".join(f"{k} {v}" for k, v in self.versions.items())
        return f"Made by `{self.command}` on {self.date}; {versions}."

    @classmethod
    def read(cls, path: Path) -> Result:
        """ValueError when the file is not of this schema."""
        data = json.loads(path.read_text())
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise ValueError(f"{path} is not a result of schema {SCHEMA}")
        unknown = (set(data) - {f.name for f in fields(cls)}) | {
            name for row in data["rows"] for name in set(row) - {f.name for f in fields(Row)}
        }
        if unknown:
            raise ValueError(f"{path} has unknown fields: {', '.join(sorted(unknown))}")
        return cls(**{**data, "rows": tuple(Row(**row) for row in data["rows"])})


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"


def versions() -> dict[str, str]:
    found = {
        "fusec": fusec.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    return {**found, "cuda": torch.version.cuda} if torch.version.cuda else found
