"""What a mask says about an index expression: low <= expr < low + extent wherever the mask holds.

%3 = index 16*x3 + x4;  %5 = lt %3, 16       mask %5      ->  16*x3 + x4 in [0, 16)
                                             mask not %5  ->  16*x3 + x4 in [16, 32)   (x3 < 2, x4 < 16)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fusec.ir.index import Expr, Sym, as_expr, bounds, symbols_of
from fusec.ir.types import Instr

_NEGATED = {"lt": "ge", "ge": "lt", "le": "gt", "gt": "le"}


@dataclass(frozen=True, slots=True)
class Range:
    """expr lies in [low, low + extent)."""

    expr: Expr
    low: int
    extent: int

    def extracted(self, offset: Expr) -> tuple[int, Expr] | None:
        """(factor, rest) with offset = factor * (expr - low) + rest, rest free of expr's symbols."""
        leading = next(((m, c) for m, c in self.expr.terms if m), None)
        if leading is None:
            return None
        coefficient = dict(offset.terms).get(leading[0], 0)
        if not coefficient or coefficient % leading[1]:
            return None
        factor = coefficient // leading[1]
        rest = offset - (self.expr - self.low) * factor
        mine = {s.name for s in symbols_of(self.expr)}
        return None if factor <= 0 or any(s.name in mine for s in symbols_of(rest)) else (factor, rest)


def mask_ranges(mask: str, lines: Mapping[str, Instr]) -> list[Range]:
    """The tightest range of every index expression the mask compares with constants."""
    limits: dict[Expr, tuple[int, int]] = {}
    for op, expr, value in _comparisons(mask, lines, negated=False):
        low, high = limits.get(expr) or bounds(expr)
        if low is None or high is None:
            continue
        if op in ("lt", "le"):
            high = min(high, value - (op == "lt"))
        else:
            low = max(low, value + (op == "gt"))
        limits[expr] = (low, high)
    return [Range(expr, low, high - low + 1) for expr, (low, high) in limits.items() if high >= low]


def _comparisons(mask: str, lines: Mapping[str, Instr], negated: bool) -> list[tuple[str, Expr, int]]:
    line = lines.get(mask)
    if line is None:
        return []
    if line.op == "not":
        return _comparisons(line.args[0], lines, not negated)
    if line.op == ("or" if negated else "and"):
        return [c for a in line.args for c in _comparisons(a, lines, negated)]
    if line.op not in _NEGATED:
        return []
    left, right = (lines.get(a) for a in line.args)
    if left is None or right is None or left.op != "index" or right.op != "const":
        return []
    expr = as_expr(left.attr("expr"))
    if any(s.kind == "value" for s in symbols_of(expr)) or not any(isinstance(a, Sym) for a in expr.atoms()):
        return []
    return [(_NEGATED[line.op] if negated else line.op, expr, int(right.attr("value")))]
