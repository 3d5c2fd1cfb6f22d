"""How accesses walk through memory."""

from __future__ import annotations

import pytest

from fusec.ir.index import axis_symbol
from fusec.schedule.strides import axis_order, stride_of, unit_axis, weighted_accesses
from tests.schedule.nests import nests, program

P, Q = axis_symbol("p", 8), axis_symbol("q", 16)
EXTENTS = {"p": 8, "q": 16, "one": 1}


@pytest.mark.parametrize(
    ("index", "axis", "stride"),
    [
        (P * 16 + Q, "p", 16),
        (P * 16 + Q, "q", 1),
        (P * 16, "q", 0),
        (P * 16, "one", 0),
        (127 - (P * 16 + Q), "q", -1),
        (P * 16 + Q // 4, "q", 0),  # it seldom moves
        (P * 16 + (Q + 1) % 16, "q", 1),  # it wraps once
    ],
)
def test_stride_of_an_axis(index: object, axis: str, stride: int) -> None:
    assert stride_of(index, axis, EXTENTS) == stride


TRANSPOSE = (
    "nest n (p0<16, p1<8):\n%0:f32 = load x[p0 + 16*p1]\n%1:f32 = load w[p0]\n"
    "%2:f32 = mul %0, %1\nstore y[8*p0 + p1], %2"
)
SIZES = {"x": "f32[8, 16]", "w": "f32[16]", "y": "f32[16, 8]"}


def test_the_heaviest_access_leads_and_a_store_wins_a_tie() -> None:
    (nest,) = nests(TRANSPOSE, **SIZES)
    assert [a.buffer for _, a in weighted_accesses(nest)] == ["y", "x", "w"]
    assert unit_axis(nest) == "p1"


def test_axes_follow_the_strides_of_the_heaviest_access() -> None:
    found = program(TRANSPOSE.replace("p0<16, p1<8", "p1<8, p0<16"), **SIZES)
    (nest,) = nests(TRANSPOSE.replace("p0<16, p1<8", "p1<8, p0<16"), **SIZES)
    assert [a.name for a in axis_order(nest, nest.axes, found.table)] == ["p0", "p1"]
