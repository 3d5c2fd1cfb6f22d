"""An Explanation as one page: totals, fusion graph, every kernel with its source, decisions. Works offline.

Enters: an Explanation. Leaves: the text of an HTML document with no script and no request.

    fusec.explain(model)(x).html("fusec_report.html")
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from fusec.inspect.drawing import Arrow, Box, draw
from fusec.inspect.rows import ExternRow, GraphRecord, KernelRow, duration, plural, short_lines
from fusec.ir.kernels import FusionDecision, KernelPlan, Step
from fusec.ir.printer import format_bytes
from fusec.ir.types import Role, TensorView

if TYPE_CHECKING:
    from fusec.inspect.explain import Explanation

__all__ = ["fusion_graph", "report_page"]

STYLE = Path(__file__).with_name("report.css").read_text(encoding="utf-8")


def report_page(explanation: Explanation) -> str:
    """The whole document."""
    e = explanation
    anchors = {k.source_info.cache_key: f"k{i}" for i, k in enumerate(e.kernels)}
    sections = [
        _header(e),
        _section("Kernels", _kernel_table(e)),
        *(
            _section(f"Fusion graph of {g.captured.name}", f'<div class="scroll">{fusion_graph(g, anchors)}</div>')
            for g in e.graphs
        ),
        _section("Source", "".join(_kernel_details(k, f"k{i}") for i, k in enumerate(e.kernels))),
        _section("Library calls", _extern_table(e.externs)) if e.externs else "",
        _section("Runs as eager PyTorch", _sentences((*e.graph_breaks, *e.fallbacks)))
        if e.fallbacks or e.graph_breaks
        else "",
        _section("Fusion decisions", _decision_tables(e.graphs)),
        _section("Captured graphs", "".join(_graph_details(g) for g in e.graphs)),
    ]
    body = "\n".join(s for s in sections if s)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>fusec report</title><style>{STYLE}{_highlight_style()}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{body}</section>"


def _header(e: Explanation) -> str:
    launches = sum(k.launches for k in e.kernels)
    cards = [
        ("launches", str(e.fused.launches), str(e.eager.launches)),
        ("bytes moved", format_bytes(e.fused.bytes), format_bytes(e.eager.bytes)),
        ("peak memory", format_bytes(e.fused.peak), format_bytes(e.eager.peak)),
    ]
    text = "".join(
        f'<div class="card"><div class="dim">{name}</div><b>{now}</b> <span class="was">eager {was}</span></div>'
        for name, now, was in cards
    )
    counts = (
        f"{plural(len(e.graphs), 'graph')}, {plural(len(e.kernels), 'kernel')} in {plural(launches, 'launch')}, "
        f"{plural(sum(x.calls for x in e.externs), 'library call')}, {e.device}"
    )
    return f'<h1>fusec report</h1><p class="dim">{escape(counts)}</p><div class="cards">{text}</div>'


def _kernel_table(e: Explanation) -> str:
    head = "<tr><th>kernel</th><th>lines</th>" + "".join(
        f'<th class="n">{h}</th>' for h in ("launches", "bytes in", "bytes out", "time of one", "bandwidth")
    )
    rows = []
    for i, k in enumerate(e.kernels):
        share = k.share(e.bandwidth)
        time = f"{duration(k.predicted)} predicted" if k.measured is None else f"{duration(k.measured)} measured"
        cells = (
            str(k.launches),
            format_bytes(k.bytes_in),
            format_bytes(k.bytes_out),
            time,
            f"{100 * share:.0f} %" if share else "",
        )
        rows.append(
            f'<tr><td class="mono"><a href="#k{i}">{escape(k.name)}</a></td>'
            f'<td class="mono">{escape(short_lines(k.lines, 60))}</td>'
            + "".join(f'<td class="n">{c}</td>' for c in cells)
            + "</tr>"
        )
    return f"<table>{head}</tr>{''.join(rows)}</table>"


def _extern_table(externs: Sequence[ExternRow]) -> str:
    rows = []
    for x in externs:
        numbers = (str(x.calls), format_bytes(x.bytes_in), format_bytes(x.bytes_out))
        rows.append(
            f'<tr><td class="mono">{escape(x.target)}</td><td class="mono">{escape(short_lines(x.lines, 60))}</td>'
            + "".join(f'<td class="n">{n}</td>' for n in numbers)
            + f"<td>{escape(x.reason)}</td></tr>"
        )
    heads = "".join(f'<th class="n">{h}</th>' for h in ("calls", "bytes in", "bytes out"))
    return f"<table><tr><th>op</th><th>lines</th>{heads}<th>why it is kept</th></tr>{''.join(rows)}</table>"


def _kernel_details(k: KernelRow, anchor: str) -> str:
    user = {(o.file, o.line): o.code for o in k.plan.origins if o.file}
    lines = "\n".join(f"{file}:{line}  {code}" for (file, line), code in user.items())
    axes = ", ".join(f"{a.name}&lt;{a.extent}" for a in k.plan.axes)
    facts = [
        f"{len(k.plan.parts)} kernels side by side" if k.plan.parts else f"{k.plan.strategy.value}; {axes}",
        *(f"ends: {escape(b)}" for b in k.boundaries),
        "kept in registers: " + escape(", ".join(k.plan.internal)) if k.plan.internal else "",
        "compiler: " + escape(", ".join(f"{n} {v}" for n, v in k.resources.items())) if k.resources else "",
    ]
    return (
        f'<details id="{anchor}"><summary class="mono">{escape(k.name)} '
        f'<span class="dim">{plural(k.launches, "launch")}</span></summary>'
        + "".join(f"<p>{f}</p>" for f in facts if f)
        + (f"<pre>{escape(lines)}</pre>" if lines else "")
        + _highlight(k.source)
        + "</details>"
    )


def _decision_tables(records: Iterable[GraphRecord]) -> str:
    parts = []
    for record in records:
        decisions = record.schedule.decisions
        accepted = sum(d.accepted for d in decisions)
        rows = "".join(_decision_row(d) for d in decisions)
        head = '<tr><th>from</th><th>into</th><th></th><th>why</th><th class="n">bytes saved</th></tr>'
        parts.append(
            f"<details><summary>{escape(record.captured.name)}: {accepted} fused, {len(decisions) - accepted} kept "
            f"apart</summary><table>{head}{rows}</table></details>"
        )
    return "".join(parts)


def _decision_row(d: FusionDecision) -> str:
    verdict = '<span class="yes">fused</span>' if d.accepted else '<span class="no">apart</span>'
    saved = format_bytes(d.bytes_saved) if d.bytes_saved else ""
    return (
        f'<tr><td class="mono">{escape(d.producer)}</td><td class="mono">{escape(d.consumer)}</td>'
        f'<td>{verdict}</td><td>{escape(d.reason)}</td><td class="n">{saved}</td></tr>'
    )


def _graph_details(record: GraphRecord) -> str:
    passes = ", ".join(f"{name} {duration(s)}" for name, s in record.stages)
    return (
        f"<details><summary>{escape(record.captured.name)}</summary>"
        + (f'<p class="dim">{escape(passes)}</p>' if passes else "")
        + f"<pre>{escape(str(record.captured.graph_module.graph))}</pre></details>"
    )


def _sentences(sentences: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(s)}</li>" for s in sentences) + "</ul>"


# -- fusion graph ---------------------------------------------------------------------------------


def fusion_graph(record: GraphRecord, anchors: dict[str, str] | None = None) -> str:
    """Kernels and library calls as boxes, the buffers between them as arrows; weights are left out."""
    schedule = record.schedule
    names = dict(zip(schedule.inputs, record.captured.names))
    boxes: list[Box] = []
    arrows: list[Arrow] = []
    writer: dict[str, str] = {}
    for buffer in schedule.buffers:
        label = names.get(buffer.name) or buffer.hint or buffer.name
        if buffer.role is Role.INPUT and not label.endswith(("weight", "bias")):
            boxes.append(Box(buffer.name, ".".join(label.split(".")[-2:]), "input", title=label))
            writer[buffer.name] = buffer.name

    def connect(buffer: str, target: str) -> None:
        if buffer in writer:
            b = schedule.table[buffer]
            arrows.append(Arrow(writer[buffer], target, f"{b.name}: {b.dtype} {tuple(b.shape)}".replace("torch.", "")))

    for i, step in enumerate(schedule.steps):
        boxes.append(_step_box(f"step{i}", step, record, anchors or {}))
        for read in step.reads:
            connect(read, f"step{i}")
        writer.update(dict.fromkeys(step.writes, f"step{i}"))
    for i, output in enumerate(o for o in schedule.outputs if isinstance(o, TensorView)):
        boxes.append(Box(f"out{i}", f"output {i}", "output"))
        connect(output.buffer, f"out{i}")
    used = {a.source for a in arrows}
    return draw([b for b in boxes if b.kind != "input" or b.name in used], arrows)


def _step_box(name: str, step: Step, record: GraphRecord, anchors: dict[str, str]) -> Box:
    if isinstance(step, KernelPlan):
        source = record.sources[step.name]
        title = f"{source.name}: {step.boundary}"
        return Box(name, _short(source.name), "kernel", anchors.get(source.cache_key, ""), title)
    op = str(step.target)
    return Box(name, _short(op.removeprefix("aten.").removesuffix(".default").lstrip("_")), "extern", "", op)


def _short(label: str, limit: int = 38) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"


# -- source text ----------------------------------------------------------------------------------


def _highlight(text: str) -> str:
    """Coloured by pygments where it is installed."""
    try:
        from pygments import highlight
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import PythonLexer
    except ImportError:
        return f"<pre>{escape(text)}</pre>"
    return str(highlight(text, PythonLexer(), HtmlFormatter(nowrap=False, cssclass="src")))


def _highlight_style() -> str:
    try:
        from pygments.formatters import HtmlFormatter
    except ImportError:
        return ""
    light = HtmlFormatter(style="default", cssclass="src").get_style_defs(".src")
    dark = HtmlFormatter(style="native", cssclass="src").get_style_defs(".src")
    plain = ".src,.src pre{background:var(--wash)!important}"
    return f"{light}@media(prefers-color-scheme:dark){{{dark}}}{plain}"
