"""Sizes named within one kernel: layers whose sizes have names of their own share one text and one binary.

Enters: a KernelPlan over sizes of its program. Leaves: the plan over s0, s1, ... in the order it meets them, and the
way back for what the launch computes from sizes.

    kernel k7: reads values: f32[1, 3, s30, 64]    ->    reads values: f32[1, 3, s0, 64];  s0 is the program's s30
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fusec.ir.index import Expr, IndexLike, size_symbol, substitute, symbols_of
from fusec.ir.kernels import Grid, KernelPlan, KernelSource, Param
from fusec.ir.sizes import plain
from fusec.ir.types import Buffer
from fusec.lowering.renaming import Renaming

__all__ = ["OwnSizes"]


@dataclass(frozen=True, slots=True)
class OwnSizes:
    """plan: over sizes of its own. back: the program's size for each of them, by name; empty when nothing changed."""

    plan: KernelPlan
    back: Mapping[str, Expr]

    @classmethod
    def of(cls, plan: KernelPlan) -> OwnSizes:
        exprs = [e for b in plan.buffers for e in (*b.shape, *b.strides)]
        exprs += [a.extent for a in plan.axes] + [e for i in plan.body for e in i.index_exprs]
        met = dict.fromkeys(s for e in exprs for s in sorted(symbols_of(e), key=lambda s: s.name) if s.kind == "size")
        names = {s.name: f"s{k}" for k, s in enumerate(met)}
        if plan.parts or all(old == new for old, new in names.items()) or any(isinstance(s.hi, Expr) for s in met):
            return cls(plan, {})
        own = {s.name: size_symbol(names[s.name], s.lo, s.hi, s.hint) for s in met if not isinstance(s.hi, Expr)}
        back = {names[s.name]: size_symbol(s.name, s.lo, s.hi, s.hint) for s in met if not isinstance(s.hi, Expr)}
        return cls(Renaming(own).kernel(plan), back)

    def table(self, table: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """The buffers of the program, those of the plan over its sizes."""
        return {**table, **{b.name: b for b in self.plan.buffers}}

    def launched(self, source: KernelSource) -> KernelSource:
        """The source of the plan with the program's sizes wherever a launch looks them up; the text stays."""
        if not self.back:
            return source
        return replace(
            source,
            params=tuple(self._param(p) for p in source.params),
            grid=self._grid(source.grid),
            extents=tuple((name, self._size(e)) for name, e in source.extents),
            limits=tuple(self._size(e) for e in source.limits),
            wide=source.wide and self.launched(source.wide),
        )

    def _param(self, param: Param) -> Param:
        known = self.back.get(param.size) if param.kind == "size" else None
        (symbol,) = symbols_of(known) if known is not None else (None,)
        return param if symbol is None else replace(param, symbol=symbol.name)

    def _grid(self, grid: Grid) -> Grid:
        return tuple((self._size(extent), block) for extent, block in grid)

    def _size(self, expr: IndexLike) -> IndexLike:
        return plain(substitute(expr, self.back)) if isinstance(expr, Expr) else expr
