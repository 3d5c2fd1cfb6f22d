"""The explain table: rows, sums over identical kernels, totals against eager, the page."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from fusec.capture.dynamo import backend
from fusec.inspect.drawing import Arrow, Box, draw, layers_of
from fusec.inspect.eager import Totals, eager_calls, eager_totals
from fusec.inspect.explain import Explanation
from fusec.inspect.rows import duration, short_lines
from tests.inspect.samples import TEXT, record


def captured(function: object, *inputs: torch.Tensor) -> torch.fx.GraphModule:
    found: list[torch.fx.GraphModule] = []

    def compile_graph(graph: object) -> object:
        found.append(graph.graph_module)  # type: ignore[attr-defined]
        return graph.graph_module.forward  # type: ignore[attr-defined]

    torch._dynamo.reset()
    compiled = torch.compile(function, backend=lambda gm, x: backend(gm, x, compile_graph=compile_graph))
    with torch.no_grad():
        compiled(*inputs)
    return found[0]


def test_the_table_names_kernel_lines_and_boundary() -> None:
    text = str(Explanation((record(),), bandwidth=1e9))
    assert text.startswith("fusec: 1 graph, 1 kernel in 1 launch, 1 library call (cpu)")
    row = next(line for line in text.splitlines() if line.startswith("scale_rows"))
    assert re.search(r"model\.py:31, 32 +1 +204 B +204 B +1 us +41 %", row)
    assert "ends: the program returns out" in text
    assert re.search(r"aten\.mm\.default +model\.py:33 +1 +408 B +72 B +library call", text)


def test_identical_kernels_share_a_row_and_calls_multiply() -> None:
    e = Explanation((record(), replace(record(), calls=3)))
    (row,) = e.kernels
    assert (row.launches, row.bytes_in, row.bytes_out) == (4, 4 * 204, 4 * 204)
    assert e.fused.launches == 8
    assert row.source == TEXT


def test_kernels_of_one_name_are_numbered() -> None:
    other = record()
    (source,) = other.sources.values()
    other = replace(other, sources={"scale_rows": replace(source, cache_key="1" * 64)})
    assert [k.name for k in Explanation((record(), other)).kernels] == ["scale_rows", "scale_rows_2"]


def test_boundaries_of_two_layers_are_said_once() -> None:
    said = []
    for boundary in ("add_3 goes to aten.mm", "add_12 goes to aten.mm", "add goes to aten.bmm"):
        r = record()
        plan = replace(r.plans[0], boundary=boundary)
        said.append(replace(r, schedule=replace(r.schedule, steps=(plan, *r.externs))))
    assert Explanation(tuple(said)).kernels[0].boundaries == ("add_3 goes to aten.mm", "add goes to aten.bmm")


def test_measured_time_is_shown_and_shares_use_it() -> None:
    e = Explanation((replace(record(), measured={"scale_rows": 2e-6}),), bandwidth=1e9)
    assert "measured" in str(e)
    assert e.kernels[0].share(e.bandwidth) == pytest.approx(408 / 2e-6 / 1e9)


def test_fallbacks_and_breaks_are_said() -> None:
    text = str(Explanation((), fallbacks=("aten.foo at model.py:9: no lowering",), graph_breaks=("print at m.py:3",)))
    assert "nothing was captured" in text
    assert "runs as eager PyTorch:\n  aten.foo at model.py:9: no lowering" in text
    assert "graph breaks:\n  print at m.py:3" in text
    with pytest.raises(IndexError, match="no lowering"):
        _ = Explanation((), fallbacks=("no lowering",)).graph


def test_eager_counts_what_the_user_called_not_what_capture_made_of_it() -> None:
    def function(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.layer_norm(x + 1, (32,), w, b)
        y = torch.nn.functional.layer_norm(y, (32,), w, b)
        return torch.nn.functional.gelu(y).t()

    module = captured(function, torch.randn(8, 32), torch.randn(32), torch.randn(32))
    calls = eager_calls(module.graph)
    assert len(calls) == 4  # add, layer_norm, layer_norm, gelu; t is a view
    x, w = 8 * 32 * 4, 32 * 4
    # layer_norm also writes nothing that is read here but y: mean and rstd die inside it.
    assert eager_totals(module) == Totals(4, 2 * x + 2 * (2 * x + 2 * w) + 2 * x, 2 * x)


def test_eager_peak_is_what_is_alive_at_once() -> None:
    def chain(x: torch.Tensor) -> torch.Tensor:
        return ((x + 1) * (x + 2)).sum()

    totals = eager_totals(captured(chain, torch.randn(1000)))
    assert totals == Totals(4, 4 * (2 * 1000 + 2 * 1000 + 3 * 1000 + 1000 + 1), 3 * 4000)


def test_writing_in_place_is_one_launch() -> None:
    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return x * y

    totals = eager_totals(captured(step, torch.zeros(1000), torch.randn(1000)))
    assert (totals.launches, totals.bytes) == (2, 4 * (2 * 1000 + 3 * 1000))


def test_an_expanded_operand_is_read_once() -> None:
    module = captured(lambda x, b: x + b.expand(1000, 17), torch.randn(1000, 17), torch.randn(17))
    assert eager_totals(module).bytes == 4 * (2 * 17000 + 17)


def test_numbers_for_people() -> None:
    assert [duration(s) for s in (2.1e-6, 0.25, 5e-10, 3.0)] == ["2.1 us", "250 ms", "0.5 ns", "3 s"]
    assert short_lines(("m.py:3", "m.py:4", "n.py:9", "n.py:1", "n.py:2")) == "m.py:3, 4, n.py:9, 1, 2"
    assert short_lines(("m.py:3", "m.py:4", "n.py:9", "n.py:1", "n.py:2"), 22) == "m.py:3, 4, n.py:9, ..."
    assert short_lines(("a_name_that_is_too_long.py:3",), 10) == "a_name_that_is_too_long.py:3"


class Page(HTMLParser):
    """Checks nesting and collects ids and references."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values["href"] or ""] if "href" in values else []
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"


def test_the_page_is_whole_and_asks_for_nothing(tmp_path: Path) -> None:
    e = Explanation((record(),), fallbacks=("<script>alert(1)</script>",))
    text = e.html(tmp_path / "new" / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert {link.lstrip("#") for link in page.links} <= set(page.ids)
    assert not re.search(r"(src|href)=[\"']?(https?:)?//|@import|url\((?!#)", text)
    assert "<script" not in text
    assert "tl.store" in re.sub(r"<[^>]+>", "", text)
    assert "n1 reads each row&#x27;s total once" in text


def test_layers_follow_the_longest_path() -> None:
    boxes = [Box(n, n) for n in "abcd"]
    arrows = [Arrow("a", "b"), Arrow("b", "c"), Arrow("a", "c"), Arrow("c", "d")]
    assert layers_of(boxes, arrows) == {"a": 0, "b": 1, "c": 2, "d": 3}
    svg = draw(boxes, arrows)
    assert svg.count('class="arrow"') == 4 and svg.count("<rect") == 4


def test_boxes_of_a_layer_do_not_overlap() -> None:
    boxes = [Box("in", "in"), *(Box(f"k{i}", f"a_long_kernel_name_{i}") for i in range(7)), Box("out", "out")]
    arrows = [a for i in range(7) for a in (Arrow("in", f"k{i}"), Arrow(f"k{i}", "out"))]
    rects = re.findall(r'<rect x="([\d.-]+)" y="([\d.]+)" width="([\d.]+)"', draw(boxes, arrows))
    rows: dict[str, list[tuple[float, float]]] = {}
    for x, y, width in rects:
        rows.setdefault(y, []).append((float(x), float(width)))
    for row in rows.values():
        row.sort()
        assert all(x + width <= following for (x, width), (following, _) in pairwise(row))
    assert min(float(x) for x, _, _ in rects) >= 0
