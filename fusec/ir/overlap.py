"""Do two stores write the same address?

Enters: two stores as index expressions over their axes. Leaves: True only when they provably overlap.

    cat along the last axis, 4 and 6 wide:     10*p0 + p1 (p1<4)   10*p0 + p1 + 4 (p1<6)    -> False
    the same segment twice:                    10*p0 + p1 (p1<4)   10*p0 + p1     (p1<6)    -> True
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from fusec.ir.analysis import Integers
from fusec.ir.index import Expr, as_int, bounds, evaluate, mod, symbols_of
from fusec.ir.types import Axis

__all__ = ["Written", "addresses", "provably_disjoint", "stores_overlap"]

POINTS = 1 << 16  # addresses enumerated when no rule decides


@dataclass(frozen=True, slots=True)
class Written:
    """One store of a node: where it writes, over which axes, and whether a mask leaves points out."""

    node: str
    index: Expr
    axes: tuple[Axis, ...]
    masked: bool = False


def addresses(index: Expr, axes: Sequence[Axis], limit: int = POINTS) -> Integers | None:
    """Every address as a flat int64 array; None beyond the limit or when symbols are not static axes."""
    symbols = symbols_of(index)
    used = [a for a in axes if any(s.name == a.name for s in symbols)]
    extents = [as_int(a.extent) for a in used]
    if len(used) != len(symbols) or None in extents or any(a.extent == 0 for a in axes):
        return None
    sizes = [n for n in extents if n is not None]
    if prod(sizes) > limit:
        return None
    env = {
        a.name: np.arange(n).reshape([-1 if i == j else 1 for j in range(len(sizes))])
        for i, (a, n) in enumerate(zip(used, sizes, strict=True))
    }
    return np.asarray(evaluate(index, env), dtype=np.int64).reshape(-1)


def provably_disjoint(a: Expr, b: Expr) -> bool:
    """True when the ranges are apart, or the remainders by some stride are."""
    if _apart(bounds(a), bounds(b)):
        return True
    strides = {abs(c) for expr in (a, b) for monomial, c in expr.terms if monomial and abs(c) > 1}
    return any(_apart(bounds(mod(a, stride)), bounds(mod(b, stride))) for stride in sorted(strides))


def _apart(a: tuple[int | None, int | None], b: tuple[int | None, int | None]) -> bool:
    (a_lo, a_hi), (b_lo, b_hi) = a, b
    if a_hi is not None and b_lo is not None and a_hi < b_lo:
        return True
    return b_hi is not None and a_lo is not None and b_hi < a_lo


def stores_overlap(a: Written, b: Written) -> bool:
    """True when both write some address, proved; masked stores and unknown addresses get the benefit of the doubt."""
    if a.masked or b.masked or provably_disjoint(a.index, b.index):
        return False
    mine, other = addresses(a.index, a.axes), addresses(b.index, b.axes)
    if mine is None or other is None:
        return a.index == b.index and not any(x.extent == 0 for x in (*a.axes, *b.axes))
    return bool(np.isin(mine, other).any())
