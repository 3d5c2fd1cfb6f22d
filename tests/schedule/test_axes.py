"""Bringing two nests onto one set of axes: which digits pair, and how single nests split and join their axes."""

from __future__ import annotations

import pytest

from fusec.ir.index import Expr
from fusec.ir.types import Axis, LoopNest
from fusec.schedule.axes import Matcher, align, merge_axes, split_axis, split_for_linearity, without_unit_axes
from tests.schedule.nests import nests

P, Q = Axis("p", 64), Axis("q", 32)
FLAT = Axis("f", 2048)


def aligned(left: list[Axis], right: list[Axis], *pairs: tuple[Expr, Expr]) -> list[tuple[str, object]] | None:
    matcher = Matcher.of(left, right)
    if not all(matcher.pair(a, b) for a, b in pairs):
        return None
    return [(a.name, a.extent) for a in align(matcher, left, right).axes]


def test_a_flat_axis_lines_up_with_rows_and_columns() -> None:
    assert aligned([P, Q], [FLAT], (P.symbol * 32 + Q.symbol, FLAT.symbol)) == [("p", 64), ("q", 32)]


def test_both_sides_split_at_a_common_factor() -> None:
    a, b = Axis("a", 6), Axis("b", 10)
    c, d = Axis("c", 3), Axis("d", 20)
    assert aligned([a, b], [c, d], (a.symbol * 10 + b.symbol, c.symbol * 20 + d.symbol)) == [
        ("a_0", 3),
        ("a_1", 2),
        ("b", 10),
    ]


def test_extents_without_a_common_factor_do_not_pair() -> None:
    a, b, c, d = Axis("a", 4), Axis("b", 9), Axis("c", 6), Axis("d", 6)
    assert aligned([a, b], [c, d], (a.symbol * 9 + b.symbol, c.symbol * 6 + d.symbol)) is None


@pytest.mark.parametrize(
    ("right", "why"),
    [
        (FLAT.symbol + 1, "another constant"),
        (FLAT.symbol * 2, "another stride"),
        (FLAT.symbol // 2, "a division"),
    ],
)
def test_other_elements_do_not_pair(right: Expr, why: str) -> None:
    assert aligned([P, Q], [FLAT], (P.symbol * 32 + Q.symbol, right)) is None, why


def test_a_failed_pair_leaves_the_digits_as_they_were() -> None:
    matcher = Matcher.of([P, Q], [FLAT])
    assert not matcher.pair(P.symbol * 32 + Q.symbol, FLAT.symbol + 1)
    assert matcher.pair(P.symbol * 32 + Q.symbol, FLAT.symbol)


def test_a_transposed_read_pairs_crosswise() -> None:
    a, b = Axis("a", 32), Axis("b", 64)
    matcher = Matcher.of([P, Q], [a, b])
    assert matcher.pair(P.symbol * 32 + Q.symbol, b.symbol * 32 + a.symbol)
    found = align(matcher, [P, Q], [a, b])
    assert (str(found.right["a"]), str(found.right["b"])) == ("q", "p")


def test_what_is_left_pairs_in_row_major_order_when_counts_agree() -> None:
    matcher = Matcher.of([P, Q], [FLAT])
    assert matcher.pair_rest()
    assert str(align(matcher, [P, Q], [FLAT]).right["f"]) == "32*p + q"
    assert not Matcher.of([P], [Q]).pair_rest()


def nest(text: str, **buffers: str) -> LoopNest:
    (found,) = nests(text, **buffers)
    return found


def test_unit_axes_disappear() -> None:
    text = "nest n (p0<1, p1<8, r0<1):\n%0:f32 = load x[8*p0 + p1 + r0]\n%1:f32 = sum %0 over r0\nstore y[p1], %1"
    found = without_unit_axes(nest(text, x="f32[8]", y="f32[8]"))
    assert [a.name for a in found.axes] == ["p1"] and found.reductions == ()
    assert str(found.loads[0].index) == "p1"


def test_an_axis_is_split_where_indices_divide_it() -> None:
    text = "nest n (p0<64):\n%0:f32 = load x[100*(p0//8) + p0%8]\nstore y[p0], %0"
    found = split_for_linearity(nest(text, x="f32[800]", y="f32[64]"))
    assert [a.extent for a in found.axes] == [8, 8]
    assert all(a.index.linear() is not None for a in (*found.loads, *found.stores))


def test_an_axis_is_not_split_by_what_does_not_divide_it() -> None:
    text = "nest n (p0<17):\n%0:f32 = load x[p0//8]\nstore y[p0], %0"
    assert len(split_for_linearity(nest(text, x="f32[3]", y="f32[17]")).axes) == 1


def test_splitting_and_merging_an_axis_are_inverse() -> None:
    before = nest("nest n (p0<64):\n%0:f32 = load x[2*p0 + 1]\nstore y[p0], %0", x="f32[129]", y="f32[64]")
    split = split_axis(before, before.axes[0], 16, ("p0", "low"))
    assert [a.extent for a in split.axes] == [4, 16]
    assert merge_axes(split, lambda a, b: True) == before


def test_axes_with_a_gap_between_rows_are_not_merged() -> None:
    text = "nest n (p0<4, p1<8):\n%0:f32 = load x[10*p0 + p1]\nstore y[8*p0 + p1], %0"
    assert len(merge_axes(nest(text, x="f32[40]", y="f32[32]"), lambda a, b: True).axes) == 2
