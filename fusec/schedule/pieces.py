"""Pieces: a nest that computes something else on each equal part of an axis computes every part at one point.

Before                                          After
  nest n0 (p0<64):                                nest n0 (p0<32):
    store y[p0], where(p0 < 32, a[p0], b[p0 - 32])    store y[p0], a[p0]
                                                      store y[p0 + 32], b[p0]

A concatenation computes all its parts everywhere and keeps one. In pieces each is computed where it is kept, what the
parts read in common (RoPE's two halves, the gradient of a chunk) is read once, and what makes a part has an element of
it at every point and can be inlined.

A nest that another one reads stays whole, and so does one that shares data with a reduction: they could no longer
share a kernel, which takes common axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace

from fusec.ir.analysis import rename
from fusec.ir.index import Expr, IndexLike, as_expr, bounds, substitute, symbols_of
from fusec.ir.types import AccessMode, Axis, Buffer, Instr, LoopNest, Program
from fusec.schedule.axes import rewrite_axes, split_axis
from fusec.schedule.once import Once
from fusec.schedule.simplify import simplify_nest

__all__ = ["in_pieces"]

MOST = 4  # pieces: each keeps its values in registers of its own
RUN = 64  # bytes: a piece of a contiguous axis that is shorter is not stored at full width
ALIGNED = 16  # bytes of the widest access
_COMPARISONS = ("lt", "le", "gt", "ge")


def in_pieces(program: Program, once: Once, apart: Set[str]) -> Program | None:
    """The program with its nests cut in pieces; None when there is none to cut."""
    readers, table = program.readers, program.table
    nodes = list(program.nodes)
    found = False
    for position, nest in enumerate(nodes):
        if not isinstance(nest, LoopNest) or nest.name in apart:
            continue
        takers = [nodes[p] for name in nest.writes for p in readers.get(name, ())]
        beside = [nodes[p] for name in nest.reads for p in (*readers.get(name, ()), *program.writers.get(name, ()))]
        if any(isinstance(n, LoopNest) for n in takers):
            continue
        if any(isinstance(n, LoopNest) and not n.is_pointwise for n in beside):
            continue
        cut = once(_cut, (nest,), table)
        if cut is not None:
            nodes[position], found = cut, True
    return replace(program, nodes=tuple(nodes)) if found else None


def _cut(nests: Sequence[LoopNest], table: Mapping[str, Buffer]) -> LoopNest | None:
    (nest,) = nests
    plain = all(access.mode is AccessMode.STORE for access in nest.stores)
    if not nest.is_pointwise or not plain or not set(nest.reads).isdisjoint(nest.writes):
        return None
    count = 1
    while True:
        found = ((axis, _pieces(nest, axis, table, MOST // count)) for axis in nest.axes)
        axis, pieces = next(((a, n) for a, n in found if n is not None), (None, 1))
        if axis is None:
            return nest if count > 1 else None
        nest, count = _unrolled(nest, axis, pieces), count * pieces


def _pieces(nest: LoopNest, axis: Axis, table: Mapping[str, Buffer], most: int) -> int | None:
    """The least number of equal parts of the axis in each of which every comparison with it is decided."""
    lines = {i.out: i for i in nest.body}
    differences = [d for i in nest.body for d in _difference(i, lines) if _holds(d, axis)]
    if not differences or not isinstance(axis.extent, int) or not all(_holds(a.index, axis) for a in nest.stores):
        return None
    for pieces in range(2, min(most, axis.extent) + 1):
        if axis.extent % pieces:
            continue
        part = Axis("~part", axis.extent // pieces, axis.kind)
        starts = [{axis.name: part.symbol + part.extent * j} for j in range(pieces)]
        if not all(_decided(substitute(d, start)) for d in differences for start in starts):
            continue
        runs = [table[a.buffer].itemsize * (axis.extent // pieces) for a in nest.stores if _stride(a.index, axis) == 1]
        return pieces if all(run >= RUN and run % ALIGNED == 0 for run in runs) else None
    return None


def _difference(line: Instr, lines: Mapping[str | None, Instr]) -> Iterator[Expr]:
    """left - right of a comparison of index expressions."""
    if line.op not in _COMPARISONS:
        return
    sides: list[Expr] = []
    for name in line.args:
        side = lines.get(name)
        if side is not None and side.op == "index":
            sides.append(as_expr(side.attr("expr")))
        elif side is not None and side.op == "const" and not side.dtype.is_floating_point:
            sides.append(as_expr(int(side.attr("value"))))
    if len(sides) == 2:
        yield sides[0] - sides[1]


def _decided(difference: Expr) -> bool:
    """True when the sign is known: below zero throughout, or nowhere."""
    low, high = bounds(difference)
    return (low is not None and low > 0) or (high is not None and high < 0) or low == 0 or high == 0


def _holds(expr: Expr, axis: Axis) -> bool:
    return any(s.name == axis.name for s in symbols_of(expr))


def _stride(index: Expr, axis: Axis) -> IndexLike:
    return index - substitute(index, {axis.name: axis.symbol - 1})


def _unrolled(nest: LoopNest, axis: Axis, pieces: int) -> LoopNest:
    """The lines once for each piece, with the axis running over one of them."""
    cut = split_axis(nest, axis, axis.extent // pieces, ("~piece", axis.name))
    body: list[Instr] = []
    for piece in range(pieces):
        body += rename(rewrite_axes(cut.body, {"~piece": piece}, {}), f"p{piece}_")
    axes = tuple(a for a in cut.axes if a.name != "~piece")
    return simplify_nest(replace(cut, axes=axes, body=tuple(body)))
