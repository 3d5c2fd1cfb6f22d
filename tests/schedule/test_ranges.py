"""What a mask says about an index expression."""

from __future__ import annotations

import pytest

from fusec.ir.parser import parse_instr
from fusec.ir.types import Axis, Instr
from fusec.schedule.ranges import Range, mask_ranges

AXES = {"p": Axis("p", 32), "q": Axis("q", 4)}


def lines(*text: str) -> dict[str, Instr]:
    found = (parse_instr(t, AXES, {}) for t in ("%p:i64 = index p", "%q:i64 = index q", "%c:i64 = const 16", *text))
    return {i.out: i for i in found if i.out is not None}


@pytest.mark.parametrize(("op", "low", "extent"), [("lt", 0, 16), ("le", 0, 17), ("ge", 16, 16), ("gt", 17, 15)])
def test_a_comparison_bounds_its_expression(op: str, low: int, extent: int) -> None:
    (found,) = mask_ranges("%m", lines(f"%m:bool = {op} %p, %c"))
    assert (str(found.expr), found.low, found.extent) == ("p", low, extent)


def test_both_sides_of_and_hold() -> None:
    table = lines("%d:i64 = const 4", "%a:bool = ge %p, %d", "%b:bool = lt %p, %c", "%m:bool = and %a, %b")
    assert mask_ranges("%m", table) == [Range(AXES["p"].symbol, 4, 12)]


def test_neither_side_of_or_is_known_but_of_its_negation_both_are() -> None:
    table = lines("%a:bool = lt %p, %c", "%b:bool = lt %q, %c", "%m:bool = or %a, %b", "%n:bool = not %m")
    assert mask_ranges("%m", table) == []
    assert [(str(r.expr), r.low) for r in mask_ranges("%n", table)] == [("p", 16)], "q < 4 is never 16"


def test_a_loaded_mask_says_nothing() -> None:
    assert mask_ranges("%m", lines("%m:bool = const True")) == [] == mask_ranges("%gone", {})


def test_an_offset_is_written_over_the_range() -> None:
    p, q = AXES["p"].symbol, AXES["q"].symbol
    assert Range(p, 16, 16).extracted(p * 2 + q) == (2, q + 32)
    assert Range(p, 16, 16).extracted(q) is None
