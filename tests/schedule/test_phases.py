"""Passes over a row that is looped: what is read again, computed again, or read back."""

from __future__ import annotations

import pytest

from fusec.schedule.phases import split_phases
from tests.schedule.nests import nests

SOFTMAX = """
nest n (p<4, r<100):
  %0:f32 = load x[100*p + r]
  %1:f32 = max %0 over r
  %2:f32 = sub %0, %1
  %3:f32 = exp %2
  %4:f32 = sum %3 over r
  %5:f32 = div %3, %4
  store y[100*p + r], %5
"""
SIZES = {
    "x": "f32[4, 100]",
    "z": "f32[4, 100]",
    "y": "f32[4, 100]",
    "t": "f32[4, 100]",
    "s": "f32[4]",
    "i": "i64[4, 100]",
}


def phases(text: str) -> list[list[str]]:
    (nest,) = nests(text, **SIZES)
    found = split_phases(nest.body, nest.axes, frozenset("r"))
    return [[i.op for i in phase] for phase in found]


def test_softmax_takes_three_passes_and_computes_again() -> None:
    assert phases(SOFTMAX) == [
        ["load", "max"],
        ["load", "sub", "exp", "sum"],
        ["load", "sub", "exp", "div", "store"],
    ]


def test_a_pointwise_epilogue_of_rows_needs_no_second_pass() -> None:
    text = "nest n (p<4, r<100):\n%0:f32 = load x[100*p + r]\n%1:f32 = sum %0 over r\n%2:f32 = sqrt %1\nstore s[p], %2"
    assert phases(text) == [["load", "sum", "sqrt", "store"]]


STORED = """
nest n (p<4, r<100):
  %0:f32 = load x[100*p + r]
  %1:f32 = load z[100*p + r]
  %2:f32 = add %0, %1
  STORE
  %3:f32 = sum %2 over r
  %4:f32 = div %2, %3
  store y[100*p + r], %4
"""


def test_a_stored_sum_of_two_loads_is_read_back() -> None:
    text = STORED.replace("STORE", "store t[100*p + r], %2")
    (nest,) = nests(text, **SIZES)
    _, last = split_phases(nest.body, nest.axes, frozenset("r"))
    assert [i.access.buffer for i in last if i.op == "load" and i.access is not None] == ["t"]


@pytest.mark.parametrize("store", ["atomic_add t[100*p + r], %2", "%8:i64 = load i[100*p + r]\nstore t[%8], %2"])
def test_a_place_that_several_points_write_is_not_read_back(store: str) -> None:
    (nest,) = nests(STORED.replace("STORE", store), **SIZES)
    _, last = split_phases(nest.body, nest.axes, frozenset("r"))
    assert [i.access.buffer for i in last if i.op == "load" and i.access is not None] == ["x", "z"]


def test_values_of_a_pass_stay_in_it() -> None:
    (nest,) = nests(SOFTMAX, **SIZES)
    seen: set[str] = set()
    for phase in split_phases(nest.body, nest.axes, frozenset("r")):
        local = {i.out for i in phase if i.out is not None and not i.reduced_axes}
        assert not local & seen
        seen |= local
