"""Copies over inputs that go, and those that must stay."""

from __future__ import annotations

import pytest

from fusec.ir.parser import parse_program
from fusec.ir.printer import format_program
from fusec.ir.verify import verify_program
from fusec.schedule.direct import write_directly

HEAD = """program f (x, w)
  in    x: f32[4, 6] (6, 1) cpu
  in    w: f32[4, 6] (6, 1) cpu
  tmp   t: f32[4, 6] (6, 1) cpu
  out   y: f32[4, 6] (6, 1) cpu
"""
MAKE = "nest n0 (p0<4, p1<6):\n  %0:f32 = load x[6*p0 + p1]\n  %1:f32 = exp %0\n  store t[6*p0 + p1], %1\n"
USE = "nest n1 (p0<4, p1<6):\n  %0:f32 = load t[6*p0 + p1]\n  %1:f32 = neg %0\n  store y[6*p0 + p1], %1\n"
COPY = "nest n2 (p0<4, p1<6):\n  %0:f32 = load t[6*p0 + p1]\n  store x[6*p0 + p1], %0\n"
READ = "nest n3 (p0<4, p1<6):\n  %0:f32 = load x[6*p0 + p1]\n  store y[6*p0 + p1], %0\n"
RETURN = "return y"


def rewritten(text: str) -> str:
    program = write_directly(parse_program(HEAD + text + RETURN))
    verify_program(program)
    return format_program(program)


def test_the_producer_writes_the_input_and_readers_read_it() -> None:
    text = rewritten(MAKE + USE + COPY)
    assert "t[" not in text and "store x[6*p0 + p1]" in text and text.count("nest") == 2


@pytest.mark.parametrize(
    "text",
    [
        MAKE + READ + COPY,  # the old value is read after the producer
        MAKE.replace("load x[6*p0 + p1]", "load x[-6*p0 + p1 + 18]") + USE + COPY,  # and by it, somewhere else
        MAKE + USE + COPY.replace("p0<4", "p0<2"),  # a part of the input
        MAKE + USE + COPY.replace("load t[6*p0 + p1]", "load t[-6*p0 + p1 + 18]"),  # in another order
        MAKE + USE + COPY + COPY.replace("n2", "n4"),  # twice
    ],
)
def test_a_copy_that_must_stay(text: str) -> None:
    assert "t[" in rewritten(text)
