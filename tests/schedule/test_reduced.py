"""Which reductions share a tile."""

from __future__ import annotations

import pytest

from fusec.ir.types import LoopNest
from fusec.schedule.reduced import (
    PART_ROOM,
    WHOLE_LIMIT,
    ReducedShape,
    Use,
    column_use,
    reduced_axes,
    reduced_shape,
    rows_at_once,
)
from tests.schedule.nests import nests


def nest_of(body: str, columns: int = 100, **sizes: str) -> LoopNest:
    text = f"nest n (p<64, c<{columns}):\n%0:f32 = load x[{columns}*p + c]\n{body}"
    (nest,) = nests(text, x=f"f32[64, {columns}]", y="f32[64]", z=f"f32[{columns}]", **sizes)
    return nest


def shape(body: str, columns: int = 100, **sizes: str) -> ReducedShape | str:
    nest = nest_of(body.replace("COLUMNS", str(columns)), columns, **sizes)
    return reduced_shape(nest.body, nest.axes)


def use(body: str, **sizes: str) -> Use:
    nest = nest_of(body, **sizes)
    return column_use(nest.body, nest.axes, frozenset("p"))


ROW, COLUMN = "%1:f32 = sum %0 over c\nstore y[p], %1\n", "%2:f32 = sum %0 over p\nstore z[c], %2\n"


def test_rows_are_held_whole() -> None:
    assert shape(ROW) == ReducedShape(frozenset("c"))


def test_rows_and_columns_are_walked_along_the_rows() -> None:
    assert shape(ROW + COLUMN) == ReducedShape(frozenset("c"), frozenset("p"))


def test_columns_may_use_the_rows_results() -> None:
    text = ROW + "%3:f32 = div %0, %1\n%2:f32 = sum %3 over p\nstore z[c], %2"
    assert shape(text) == ReducedShape(frozenset("c"), frozenset("p"))


def test_rows_that_use_what_the_columns_add_up_to_are_walked_again() -> None:
    text = COLUMN + "%3:f32 = div %0, %2\n%1:f32 = sum %3 over c\nstore y[p], %1"
    assert shape(text) == ReducedShape(frozenset("c"), frozenset("p"))
    assert use(text) is Use.AGAIN


def test_what_the_columns_add_up_to_may_be_reduced_once_more() -> None:
    text = "%2:f32 = sum %0 over p\n%3:f32 = max %2 over c\nstore t[0], %3\n" + ROW
    assert shape(text, t="f32[1]") == ReducedShape(frozenset("c"), frozenset("p"))
    assert use(text, t="f32[1]") is Use.AFTER


@pytest.mark.parametrize("text", [ROW + COLUMN, ROW + "%2:f32 = sum %0 over p\n%3:f32 = exp %2\nstore z[c], %3"])
def test_sums_along_the_columns_that_no_row_needs(text: str) -> None:
    assert use(text) is Use.NONE


@pytest.mark.parametrize(
    ("rows", "columns", "use", "expected"),
    [
        (16, 64, Use.NONE, 16),
        (1000, 33, Use.NONE, 64),
        (1000, 513, Use.NONE, 4),
        (1001, 513, Use.NONE, 1),
        (10, 64, Use.NONE, 2),
        (10, 64, Use.AGAIN, 4),  # three steps, the last half empty, in place of five
        (7, 64, Use.AGAIN, 8),
        (9, 64, Use.AGAIN, 2),
        (16, 2048, Use.AGAIN, 2),
        (16, 8000, Use.AGAIN, 1),
        (1, 64, Use.AFTER, 1),
    ],
)
def test_rows_of_a_step(rows: int, columns: int, use: Use, expected: int) -> None:
    assert rows_at_once(rows, columns, use) == expected


TWO = COLUMN + "%3:f32 = exp %0\n%4:f32 = sum %3 over p\nstore t[c], %4"


LARGEST = TWO.replace("%4:f32 = sum", "%4:f32 = max")
IN_PLACE = TWO + "\nstore x[COLUMNS*p + c], %3"


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        (ROW + COLUMN, PART_ROOM[False][0]),
        (ROW + TWO, PART_ROOM[False][1] // 2),
        (ROW + LARGEST, WHOLE_LIMIT),
        (ROW + IN_PLACE, WHOLE_LIMIT),
    ],
)
def test_a_row_too_long_to_hold_beside_its_sums_is_refused(body: str, limit: int) -> None:
    assert isinstance(shape(body, limit, t=f"f32[{limit}]"), ReducedShape)
    found = shape(body, limit + 8, t=f"f32[{limit + 8}]")
    assert isinstance(found, str) and "too long to be held" in found


def test_rows_in_parts_begin_where_wide_accesses_may() -> None:
    assert isinstance(shape(ROW + TWO, 9000, t="f32[9000]"), ReducedShape)
    assert isinstance(shape(ROW + TWO, 9001, t="f32[9001]"), str)


def test_a_row_that_is_walked_again_is_held_up_to_the_narrower_limit() -> None:
    text = COLUMN + "%3:f32 = div %0, %2\n%1:f32 = sum %3 over c\nstore y[p], %1"
    assert isinstance(shape(text, WHOLE_LIMIT), ReducedShape) and isinstance(shape(text, WHOLE_LIMIT + 1), str)


def test_overlapping_sets_of_axes_are_refused() -> None:
    assert isinstance(shape(ROW + "%2:f32 = sum %0 over p, c\nstore t[0], %2", t="f32[1]"), str)


def test_reduced_axes_of_a_body() -> None:
    (nest,) = nests(
        "nest n (p<2, c<3):\n%0:f32 = load x[3*p + c]\n" + ROW + COLUMN, x="f32[2, 3]", y="f32[2]", z="f32[3]"
    )
    assert reduced_axes(nest.body) == {"p", "c"}
