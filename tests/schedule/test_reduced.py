"""Which reductions share a tile."""

from __future__ import annotations

from fusec.schedule.reduced import WHOLE_LIMIT, ReducedShape, reduced_axes, reduced_shape
from tests.schedule.nests import nests


def shape(body: str, columns: int = 100, **sizes: str) -> ReducedShape | str:
    text = f"nest n (p<64, c<{columns}):\n%0:f32 = load x[{columns}*p + c]\n{body}"
    (nest,) = nests(text, x=f"f32[64, {columns}]", y="f32[64]", z=f"f32[{columns}]", **sizes)
    return reduced_shape(nest.body, nest.axes)


ROW, COLUMN = "%1:f32 = sum %0 over c\nstore y[p], %1\n", "%2:f32 = sum %0 over p\nstore z[c], %2\n"


def test_rows_are_held_whole() -> None:
    assert shape(ROW) == ReducedShape(frozenset("c"))


def test_rows_and_columns_are_walked_along_the_rows() -> None:
    assert shape(ROW + COLUMN) == ReducedShape(frozenset("c"), frozenset("p"))


def test_columns_may_use_the_rows_results() -> None:
    text = ROW + "%3:f32 = div %0, %1\n%2:f32 = sum %3 over p\nstore z[c], %2"
    assert shape(text) == ReducedShape(frozenset("c"), frozenset("p"))


def test_rows_may_not_use_what_the_columns_add_up_to() -> None:
    found = shape(COLUMN + "%3:f32 = div %0, %2\n%1:f32 = sum %3 over c\nstore y[p], %1")
    assert isinstance(found, str) and "need" in found
    assert found.startswith("reduce over different axes: (c<100) and (p<64)")


def test_a_row_too_long_to_hold_is_refused() -> None:
    found = shape(ROW + COLUMN, columns=WHOLE_LIMIT + 1)
    assert isinstance(found, str) and "too long to be held" in found


def test_overlapping_sets_of_axes_are_refused() -> None:
    assert isinstance(shape(ROW + "%2:f32 = sum %0 over p, c\nstore t[0], %2", t="f32[1]"), str)


def test_reduced_axes_of_a_body() -> None:
    (nest,) = nests(
        "nest n (p<2, c<3):\n%0:f32 = load x[3*p + c]\n" + ROW + COLUMN, x="f32[2, 3]", y="f32[2]", z="f32[3]"
    )
    assert reduced_axes(nest.body) == {"p", "c"}
