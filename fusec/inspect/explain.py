"""What `fusec.explain(fn)(*args)` returns: every kernel, where it came from, what it costs, why it ends.

Enters: one GraphRecord per captured graph, as the passes left it. Leaves: an `Explanation`, which prints as

    fusec: 1 graph, 2 kernels in 3 launches, 2 library calls
    kernel            lines               launches  bytes in  bytes out  predicted  bandwidth
    add_layer_norm    model.py:31, 32            2  393.2 KB   196.6 KB     2.1 us       14 %
      ends: aten.addmm, a library call, reads its output
    ...
                      eager      fusec
    launches             11          5
    bytes moved      9.4 MB     4.1 MB

Launches, bytes in and bytes out are for all launches of a row; the time is of one launch.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fusec.inspect.eager import Totals, eager_totals, fused_totals
from fusec.inspect.report import report_page
from fusec.inspect.rows import (
    ExternRow,
    GraphRecord,
    KernelRow,
    duration,
    extern_rows,
    kernel_rows,
    plural,
    short_lines,
    table,
)
from fusec.ir.kernels import FusionDecision, Schedule
from fusec.ir.printer import format_bytes

if TYPE_CHECKING:
    from torch.fx import GraphModule

__all__ = ["Explanation", "GraphRecord", "format_explanation"]


@dataclass(frozen=True)
class Explanation:
    """What was captured, fused, generated and launched. Prints as a table; `html(path)` writes a page.

    device:       where it ran, in words.
    bandwidth:    bytes a second that the shares are of: of the device, or of the target the plan is for.
    fallbacks:    a sentence for each thing that runs as eager PyTorch would.
    counts:       how many there are by level: "op", "group", "graph", "call", "mode".
    graph_breaks: a sentence for each place where the function was cut.
    """

    graphs: tuple[GraphRecord, ...]
    fallbacks: tuple[str, ...] = ()
    graph_breaks: tuple[str, ...] = ()
    device: str = "cpu"
    bandwidth: float = 0.0
    counts: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def kernels(self) -> tuple[KernelRow, ...]:
        """Distinct kernels in order of first launch; `.kernels[i].source` is the generated Triton."""
        return kernel_rows(self.graphs)

    @cached_property
    def externs(self) -> tuple[ExternRow, ...]:
        """Library calls by op, in order of first call."""
        return extern_rows(self.graphs)

    @property
    def graph(self) -> GraphModule:
        """The first captured graph, as aten ops."""
        if not self.graphs:
            raise IndexError(
                "nothing was captured: " + ("; ".join(self.fallbacks) or "the function calls no tensor op")
            )
        return self.graphs[0].captured.graph_module

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        return tuple(g.schedule for g in self.graphs)

    @property
    def decisions(self) -> tuple[FusionDecision, ...]:
        """Why each pair of nodes does, or does not, share a kernel."""
        return tuple(d for g in self.graphs for d in g.schedule.decisions)

    @cached_property
    def eager(self) -> Totals:
        """Launches, bytes and peak memory of the captured graphs run op by op."""
        return sum((_scaled(eager_totals(g.captured.graph_module), g.calls) for g in self.graphs), Totals())

    @cached_property
    def fused(self) -> Totals:
        """The same for what fusec launches."""
        return sum((_scaled(fused_totals(g.schedule, g.buffers), g.calls) for g in self.graphs), Totals())

    def __str__(self) -> str:
        return format_explanation(self)

    def __repr__(self) -> str:
        return str(self)

    def html(self, path: str | Path) -> Path:
        """Write everything as one page that needs no network; returns its path."""
        page = Path(path)
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(report_page(self), encoding="utf-8")
        return page


def _scaled(totals: Totals, calls: int) -> Totals:
    return Totals(totals.launches * calls, totals.bytes * calls, totals.peak)


# -- text -----------------------------------------------------------------------------------------


def format_explanation(explanation: Explanation, width: int = 120) -> str:
    """The table that an Explanation prints as."""
    e = explanation
    launches, calls = sum(k.launches for k in e.kernels), sum(x.calls for x in e.externs)
    head = (
        f"fusec: {plural(len(e.graphs), 'graph')}, {plural(len(e.kernels), 'kernel')} in "
        f"{plural(launches, 'launch')}, {plural(calls, 'library call')} ({e.device})"
    )
    parts = [head, *_kernel_lines(e, width)]
    if e.externs:
        parts += ["", *_extern_lines(e.externs)]
    parts += ["", *_total_lines(e)]
    counts = ", ".join(plural(n, level) for level, n in e.counts.items())
    fallbacks = "runs as eager PyTorch" + (f" ({counts})" if counts else "")
    for title, sentences in (("graph breaks", e.graph_breaks), (fallbacks, e.fallbacks)):
        if sentences:
            parts += ["", f"{title}:", *(f"  {s}" for s in sentences)]
    return "\n".join(parts)


def _kernel_lines(e: Explanation, width: int) -> list[str]:
    if not e.kernels:
        return []
    timed = any(k.measured is not None for k in e.kernels)
    header = ["kernel", "lines", "launches", "bytes in", "bytes out", "predicted", *(["measured"] if timed else [])]
    rows = [[*header, *(["bandwidth"] if e.bandwidth else [])]]
    for k in e.kernels:
        row = [k.name, short_lines(k.lines), str(k.launches), format_bytes(k.bytes_in), format_bytes(k.bytes_out)]
        row.append(duration(k.predicted))
        if timed:
            row.append("" if k.measured is None else duration(k.measured))
        share = k.share(e.bandwidth)
        if e.bandwidth:
            row.append("" if share is None else f"{100 * share:.0f} %")
        rows.append(row)
    text = table(rows, left=2)
    lines = text[:1]
    for k, row_text in zip(e.kernels, text[1:]):
        lines.append(row_text)
        for boundary in k.boundaries[:2]:
            lines += textwrap.wrap(boundary, width, initial_indent="  ends: ", subsequent_indent="    ")
    return lines


def _extern_lines(externs: Sequence[ExternRow]) -> list[str]:
    rows = [["library call", "lines", "calls", "bytes in", "bytes out", "why it is kept"]]
    rows += [
        [x.target, short_lines(x.lines), str(x.calls), format_bytes(x.bytes_in), format_bytes(x.bytes_out), x.reason]
        for x in externs
    ]
    widths = [max(len(r[i]) for r in rows) for i in range(5)]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))]
        lines.append("  ".join([*cells, row[5]]).rstrip())
    return lines


def _total_lines(e: Explanation) -> list[str]:
    if not e.graphs:
        return ["nothing was captured"]
    lines = table(
        [
            ["", "eager", "fusec"],
            ["launches", str(e.eager.launches), str(e.fused.launches)],
            ["bytes moved", format_bytes(e.eager.bytes), format_bytes(e.fused.bytes)],
            ["peak memory", format_bytes(e.eager.peak), format_bytes(e.fused.peak)],
        ]
    )
    if e.bandwidth and e.kernels:
        lines += ["", f"times are of one launch; bandwidth is the share of {e.bandwidth / 1e9:.0f} GB/s, a copy's"]
    return lines
