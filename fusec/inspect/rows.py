"""The rows of an explanation: distinct kernels and library calls, with what they cost.

Enters: one GraphRecord per captured graph, as the passes left it. Leaves: KernelRows and ExternRows.

    kernel_rows(records)[0]  ->  KernelRow(name="add_layer_norm", launches=12, bytes_in=..., lines=("model.py:31",))
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fusec.capture.graph import CapturedGraph
from fusec.inspect.eager import extern_bytes
from fusec.ir.kernels import BufferPlan, KernelPlan, KernelSource, Schedule
from fusec.ir.types import Extern, Origin, Program

__all__ = ["ExternRow", "GraphRecord", "KernelRow", "duration", "extern_rows", "kernel_rows", "table"]


@dataclass(frozen=True)
class GraphRecord:
    """One captured graph and what each pass made of it.

    sources:   KernelSource by KernelPlan name; identical kernels share one.
    measured:  seconds of one launch by KernelPlan name, where a device measured it.
    resources: what the compiler reported, by KernelSource name: {"registers": 40, "spills": 0, ...}.
    stages:    (pass, seconds) in order.
    calls:     how often the graph ran while it was explained.
    """

    captured: CapturedGraph
    program: Program
    simplified: Program
    schedule: Schedule
    buffers: BufferPlan
    sources: Mapping[str, KernelSource]
    wrapper: str = ""
    measured: Mapping[str, float] = field(default_factory=dict)
    resources: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    stages: tuple[tuple[str, float], ...] = ()
    calls: int = 1

    @property
    def plans(self) -> tuple[KernelPlan, ...]:
        return tuple(s for s in self.schedule.steps if isinstance(s, KernelPlan))

    @property
    def externs(self) -> tuple[Extern, ...]:
        return tuple(s for s in self.schedule.steps if isinstance(s, Extern))


@dataclass(frozen=True)
class KernelRow:
    """One distinct kernel and all its launches. name: the kernel's, numbered where two share it."""

    name: str
    plan: KernelPlan  # of the first launch
    source_info: KernelSource
    launches: int
    bytes_in: int
    bytes_out: int
    lines: tuple[str, ...]
    modules: tuple[str, ...]
    boundaries: tuple[str, ...]
    predicted: float
    measured: float | None
    resources: Mapping[str, int]

    @property
    def source(self) -> str:
        """The generated Triton text."""
        return self.source_info.text

    @property
    def bytes(self) -> int:
        return self.bytes_in + self.bytes_out

    def share(self, bandwidth: float) -> float | None:
        """Bytes of one launch over what memory could have moved in its time; None without a bandwidth."""
        seconds = self.measured if self.measured is not None else self.predicted
        return self.bytes / self.launches / seconds / bandwidth if seconds and bandwidth and self.launches else None


@dataclass(frozen=True)
class ExternRow:
    """Calls of one library op."""

    target: str
    calls: int
    bytes_in: int
    bytes_out: int
    reason: str
    lines: tuple[str, ...]


def kernel_rows(records: Iterable[GraphRecord]) -> tuple[KernelRow, ...]:
    """Distinct kernels in order of first launch; the layers of a model share one row."""
    groups: dict[str, list[tuple[GraphRecord, KernelPlan]]] = {}
    for record in records:
        for plan in record.plans:
            groups.setdefault(record.sources[plan.name].cache_key, []).append((record, plan))
    taken: Counter[str] = Counter()
    rows = []
    for members in groups.values():
        record, plan = members[0]
        name = record.sources[plan.name].name
        taken[name] += 1
        rows.append(_kernel_row(name if taken[name] == 1 else f"{name}_{taken[name]}", members))
    return tuple(rows)


def extern_rows(records: Iterable[GraphRecord]) -> tuple[ExternRow, ...]:
    """Library calls by op, in order of first call."""
    groups: dict[str, list[tuple[GraphRecord, Extern]]] = {}
    for record in records:
        for extern in record.externs:
            groups.setdefault(str(extern.target), []).append((record, extern))
    return tuple(_extern_row(target, members) for target, members in groups.items())


def _kernel_row(name: str, members: Sequence[tuple[GraphRecord, KernelPlan]]) -> KernelRow:
    record, plan = members[0]
    source = record.sources[plan.name]
    origins = tuple(dict.fromkeys(o for _, p in members for o in p.origins))
    times = [r.measured[p.name] for r, p in members if p.name in r.measured]
    return KernelRow(
        name=name,
        plan=plan,
        source_info=source,
        launches=sum(r.calls for r, _ in members),
        bytes_in=sum(p.cost.bytes_read * r.calls for r, p in members),
        bytes_out=sum(p.cost.bytes_written * r.calls for r, p in members),
        lines=user_lines(origins),
        modules=tuple(dict.fromkeys(o.module for o in origins if o.module)),
        boundaries=_distinct(p.boundary for _, p in members if p.boundary),
        predicted=plan.cost.seconds,
        measured=sum(times) / len(times) if times else None,
        resources=record.resources.get(source.name, {}),
    )


def _distinct(sentences: Iterable[str]) -> tuple[str, ...]:
    """Without repeats that differ only in the number of a node: add_3 and add_12 of two layers."""
    kept: dict[str, str] = {}
    for sentence in sentences:
        kept.setdefault(re.sub(r"(?<=[A-Za-z])_?\d+\b", "", sentence), sentence)
    return tuple(kept.values())


def _extern_row(target: str, members: Sequence[tuple[GraphRecord, Extern]]) -> ExternRow:
    moved = [(r.calls, extern_bytes(e, r.schedule.table)) for r, e in members]
    return ExternRow(
        target=target,
        calls=sum(r.calls for r, _ in members),
        bytes_in=sum(n * read for n, (read, _) in moved),
        bytes_out=sum(n * written for n, (_, written) in moved),
        reason=members[0][1].reason,
        lines=user_lines(e.origin for _, e in members if e.origin is not None),
    )


# -- text -----------------------------------------------------------------------------------------


def user_lines(origins: Iterable[Origin]) -> tuple[str, ...]:
    """ "model.py:31", in order, without repeats."""
    return tuple(dict.fromkeys(f"{Path(o.file).name}:{o.line}" for o in origins if o.file))


def short_lines(lines: Sequence[str], width: int = 40) -> str:
    """("m.py:3", "m.py:4", "n.py:9") -> "m.py:3, 4, n.py:9"; "..." for what does not fit in `width` letters."""
    text = file = ""
    for line in lines:
        name, _, number = line.rpartition(":")
        piece = line if name != file else number
        longer = f"{text}, {piece}" if text else piece
        if text and len(longer) > width - 5:
            return f"{text}, ..."
        text, file = longer, name
    return text


def duration(seconds: float) -> str:
    """Seconds for people: 2.1e-6 -> "2.1 us"."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}es" if noun.endswith("ch") else f"{count} {noun}s"


def table(rows: Sequence[Sequence[str]], left: int = 1, indent: str = "") -> list[str]:
    """Lines with aligned columns: the first `left` columns to the left, the others to the right."""
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))] if rows else []
    return [
        indent + "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    ]
