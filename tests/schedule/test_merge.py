"""Joining two bodies: what a load of a stored value becomes, and what is shared."""

from __future__ import annotations

import pytest

from fusec.ir.printer import format_instr
from fusec.schedule.fuse import prepared
from fusec.schedule.merge import join, without_stores
from tests.schedule.nests import nests

ROUNDS = """
nest a (p0<64):
  %0:f32 = load x[p0]
  %1:f32 = exp %0
  store t[p0], %1
nest b (p0<64):
  %0:bf16 = load t[p0]
  %1:f32 = cast %0
  %2:f32 = neg %1
  store y[p0], %2
"""


def joined(text: str, precision: str = "fast", drop: str = "", **buffers: str) -> list[str]:
    left, right = (prepared(n) for n in nests(text, **buffers))
    return [format_instr(i) for i in without_stores(join(left.body, right.body, precision), frozenset([drop]))]


def lines_with(op: str, lines: list[str]) -> int:
    return sum(f"= {op} " in line for line in lines)


def test_fast_forwards_the_unrounded_value() -> None:
    assert lines_with("cast", joined(ROUNDS, x="f32[64]", t="bf16[64]", y="f32[64]")) == 0


def test_eager_rounds_as_memory_would() -> None:
    lines = joined(ROUNDS, "eager", x="f32[64]", t="bf16[64]", y="f32[64]")
    assert [line.split(" = ")[0].split(":")[1] for line in lines if "= cast " in line] == ["bf16", "f32"]


@pytest.mark.parametrize("precision", ["fast", "eager"])
def test_a_cast_the_user_wrote_stays(precision: str) -> None:
    text = ROUNDS.replace("store t[p0], %1", "%2:bf16 = cast %1\nstore t[p0], %2")
    assert lines_with("cast", joined(text, precision, x="f32[64]", t="bf16[64]", y="f32[64]")) == 2


@pytest.mark.parametrize("precision", ["fast", "eager"])
def test_a_value_converted_to_an_integer_is_converted_first(precision: str) -> None:
    lines = joined(ROUNDS.replace("bf16", "i64"), precision, x="f32[64]", t="i64[64]", y="f32[64]")
    assert lines_with("cast", lines) == 2, lines


def test_a_use_other_than_a_cast_sees_the_rounded_value() -> None:
    text = ROUNDS.replace("%1:f32 = cast %0\n  %2:f32 = neg %1", "%2:bf16 = neg %0")
    assert lines_with("cast", joined(text, x="f32[64]", t="bf16[64]", y="bf16[64]")) == 1


def test_a_masked_load_selects_between_the_value_and_other() -> None:
    text = ROUNDS.replace("%0:bf16 = load t[p0]", "%5:bool = load m[p0]\n%0:bf16 = load t[p0], mask=%5, other=7.0")
    lines = joined(text, x="f32[64]", m="bool[64]", t="bf16[64]", y="f32[64]")
    assert lines_with("where", lines) == 1 and any("const 7.0" in line for line in lines)


def test_what_a_masked_load_selects_is_rounded_where_the_rounded_value_is_asked_for() -> None:
    masked = "%5:bool = load m[p0]\n%0:bf16 = load t[p0], mask=%5, other=7.0"
    text = ROUNDS.replace("%0:bf16 = load t[p0]", masked)
    buffers = {"x": "f32[64]", "t": "bf16[64]", "m": "bool[64]", "y": "f32[64]", "z": "bf16[64]"}
    fast, eager = joined(text, **buffers), joined(text, "eager", **buffers)
    assert (lines_with("cast", fast), lines_with("cast", eager)) == (0, 2)
    both = joined(text + "store z[p0], %0\n", **buffers)
    assert lines_with("where", both) == 2 and lines_with("cast", both) == 1
    names = [line.split(":")[0] for line in both if " = " in line]
    assert len(names) == len(set(names))


def test_equal_loads_and_values_are_shared() -> None:
    text = "nest a (p0<64):\n%0:f32 = load x[p0]\n%1:f32 = exp %0\nstore t[p0], %1\n"
    text += "nest b (p0<64):\n%0:f32 = load x[p0]\n%1:f32 = exp %0\n%2:f32 = neg %1\nstore y[p0], %2"
    lines = joined(text, x="f32[64]", t="f32[64]", y="f32[64]")
    assert (lines_with("load", lines), lines_with("exp", lines)) == (1, 1)


def test_minus_zero_and_zero_are_different_constants() -> None:
    text = "nest a (p0<4):\n%0:f32 = const 0.0\nstore t[p0], %0\nnest b (p0<4):\n%0:f32 = const -0.0\nstore y[p0], %0"
    assert lines_with("const", joined(text, t="f32[4]", y="f32[4]")) == 2


def test_a_dropped_store_takes_its_lines_with_it() -> None:
    text = "nest a (p0<64):\n%0:f32 = load x[p0]\n%1:f32 = exp %0\nstore t[p0], %1\n"
    text += "nest b (p0<64):\n%0:f32 = load x[p0]\nstore y[p0], %0"
    lines = joined(text, drop="t", x="f32[64]", t="f32[64]", y="f32[64]")
    assert lines_with("exp", lines) == 0 and len(lines) == 2
