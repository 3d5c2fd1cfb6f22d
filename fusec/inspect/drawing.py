"""A layered drawing of a graph as inline SVG.

Enters: boxes and arrows of an acyclic graph. Leaves: `<svg>` text.

    draw([Box("a", "load"), Box("b", "gelu")], [Arrow("a", "b", "4 KiB")])

The method is Sugiyama's: layers by longest path, a dummy point in every layer an arrow passes, order
within a layer by barycentres, positions pulled toward neighbours, smooth curves through the points.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

__all__ = ["Arrow", "Box", "draw"]

CHARACTER = 6.7  # width of a letter at 12 px
BOX_HEIGHT = 34
LAYER_GAP = 34
SIDE_GAP = 22


@dataclass(frozen=True, slots=True)
class Box:
    """kind is a CSS class: "kernel", "extern", "input" or "output". link: an anchor in the page."""

    name: str
    label: str
    kind: str = "kernel"
    link: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class Arrow:
    source: str
    target: str
    title: str = ""


def layers_of(boxes: Sequence[Box], arrows: Iterable[Arrow]) -> dict[str, int]:
    """Longest path from a source, in boxes; boxes must be in topological order."""
    incoming: dict[str, list[str]] = {}
    for arrow in arrows:
        incoming.setdefault(arrow.target, []).append(arrow.source)
    layer: dict[str, int] = {}
    for box in boxes:
        layer[box.name] = max((layer[s] + 1 for s in incoming.get(box.name, ()) if s in layer), default=0)
    outgoing: dict[str, list[int]] = {}
    for arrow in arrows:
        outgoing.setdefault(arrow.source, []).append(layer[arrow.target])
    for box in boxes:  # an input sits just above its first reader
        if box.kind == "input" and box.name in outgoing:
            layer[box.name] = max(0, min(outgoing[box.name]) - 1)
    return layer


@dataclass(slots=True)
class _Point:
    """A box, or a dummy point of an arrow: half-width, centre and neighbours above and below."""

    half: float
    above: list[str]
    below: list[str]
    x: float = 0.0


class _Layout:
    def __init__(self, boxes: Sequence[Box], arrows: Sequence[Arrow]) -> None:
        self.layer = layers_of(boxes, arrows)
        self.points = {b.name: _Point(max(46.0, len(b.label) * CHARACTER / 2 + 12), [], []) for b in boxes}
        self.rows: list[list[str]] = [[] for _ in range(max(self.layer.values(), default=0) + 1)]
        for box in boxes:
            self.rows[self.layer[box.name]].append(box.name)
        self.routes = {arrow: self._route(i, arrow) for i, arrow in enumerate(arrows)}
        for sweep in range(8):
            self._order(downward=sweep % 2 == 0)
        self._place()

    def _route(self, number: int, arrow: Arrow) -> list[str]:
        """The points an arrow passes, its dummies included."""
        names = [arrow.source]
        for level in range(self.layer[arrow.source] + 1, self.layer[arrow.target]):
            dummy = f"{number}/{level}"
            self.points[dummy] = _Point(5.0, [], [])
            self.rows[level].append(dummy)
            names.append(dummy)
        names.append(arrow.target)
        for upper, lower in pairwise(names):
            self.points[upper].below.append(lower)
            self.points[lower].above.append(upper)
        return names

    def _order(self, downward: bool) -> None:
        """One sweep of barycentre ordering."""
        rows = range(1, len(self.rows)) if downward else range(len(self.rows) - 2, -1, -1)
        for level in rows:
            beside = self.rows[level - 1 if downward else level + 1]
            rank = {name: i for i, name in enumerate(beside)}
            own = {name: float(i) for i, name in enumerate(self.rows[level])}

            def key(name: str, rank: dict[str, int] = rank, own: dict[str, float] = own) -> float:
                point = self.points[name]
                near = [rank[n] for n in (point.above if downward else point.below) if n in rank]
                return sum(near) / len(near) if near else own[name]

            self.rows[level].sort(key=key)

    def _place(self) -> None:
        """x of every point: packed rows, then pulled toward neighbours without overlap."""
        for row in self.rows:
            x = 0.0
            for name in row:
                point = self.points[name]
                point.x = x + point.half
                x += 2 * point.half + SIDE_GAP
        for sweep in range(12):
            order = self.rows if sweep % 2 == 0 else self.rows[::-1]
            for row in order:
                self._relax(row)
        left = min((p.x - p.half for p in self.points.values()), default=0.0)
        for point in self.points.values():
            point.x += 16 - left

    def _relax(self, row: Sequence[str]) -> None:
        wanted = []
        for name in row:
            point = self.points[name]
            near = [self.points[n].x for n in (*point.above, *point.below)]
            wanted.append(sum(near) / len(near) if near else point.x)
        right: list[float] = []
        for i, name in enumerate(row):
            floor = right[-1] + self._gap(row[i - 1], name) if i else wanted[i]
            right.append(max(wanted[i], floor))
        left = right[:]
        for i in range(len(row) - 1, -1, -1):
            ceiling = left[i + 1] - self._gap(row[i], row[i + 1]) if i + 1 < len(row) else wanted[i]
            left[i] = min(wanted[i], ceiling)
        for name, a, b in zip(row, left, right, strict=True):
            self.points[name].x = (a + b) / 2  # both keep the gaps, so their mean does too

    def _gap(self, one: str, other: str) -> float:
        return self.points[one].half + self.points[other].half + SIDE_GAP

    def y(self, level: int) -> float:
        return 16 + level * (BOX_HEIGHT + LAYER_GAP) + BOX_HEIGHT / 2

    @property
    def size(self) -> tuple[float, float]:
        width = max((p.x + p.half for p in self.points.values()), default=0.0) + 16
        return width, self.y(len(self.rows) - 1) + BOX_HEIGHT / 2 + 16


def draw(boxes: Sequence[Box], arrows: Sequence[Arrow]) -> str:
    """The graph as one `<svg>` element, styled by the page's classes."""
    known = {b.name for b in boxes}
    unique = [a for a in dict.fromkeys(arrows) if a.source in known and a.target in known and a.source != a.target]
    layout = _Layout(boxes, unique)
    width, height = layout.size
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" aria-label="fusion graph">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" class="tip"/></marker></defs>',
        *(_path(layout, arrow) for arrow in unique),
        *(_box(layout, box) for box in boxes),
        "</svg>",
    ]
    return "\n".join(parts)


def _path(layout: _Layout, arrow: Arrow) -> str:
    first = layout.layer[arrow.source]
    spots = [(layout.points[n].x, layout.y(first + i)) for i, n in enumerate(layout.routes[arrow])]
    x, y = spots[0]
    y += BOX_HEIGHT / 2
    text = f"M{x:.1f} {y:.1f}"
    for i, (next_x, centre) in enumerate(spots[1:], 1):
        next_y = centre - (BOX_HEIGHT / 2 if i == len(spots) - 1 else 0)
        middle = (y + next_y) / 2
        text += f"C{x:.1f} {middle:.1f} {next_x:.1f} {middle:.1f} {next_x:.1f} {next_y:.1f}"
        x, y = next_x, next_y
    return f'<path class="arrow" d="{text}" marker-end="url(#tip)"><title>{escape(arrow.title)}</title></path>'


def _box(layout: _Layout, box: Box) -> str:
    point, y = layout.points[box.name], layout.y(layout.layer[box.name])
    body = (
        f'<rect x="{point.x - point.half:.1f}" y="{y - BOX_HEIGHT / 2:.1f}" width="{2 * point.half:.1f}" '
        f'height="{BOX_HEIGHT}" rx="7"/><text x="{point.x:.1f}" y="{y + 4:.1f}">{escape(box.label)}</text>'
        f"<title>{escape(box.title or box.label)}</title>"
    )
    group = f'<g class="box {escape(box.kind)}">{body}</g>'
    return f'<a href="#{escape(box.link)}">{group}</a>' if box.link else group
