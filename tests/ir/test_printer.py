"""The printed form, golden; and that reading it back gives the same Program."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fusec.errors import FusecError
from fusec.ir.index import axis_symbol
from fusec.ir.kernels import FusionDecision, Schedule
from fusec.ir.parser import parse_expr, parse_program
from fusec.ir.printer import (
    dtype_name,
    format_bytes,
    format_instr,
    format_nest,
    format_origins,
    format_plan,
    format_program,
    format_schedule,
)
from fusec.ir.types import Axis, Instr, LoopNest, Origin
from fusec.ir.verify import verify_program
from tests.ir.programs import EVERYTHING, RMS_NORM, softmax_plan


@pytest.mark.parametrize("text", [RMS_NORM, EVERYTHING], ids=["rms_norm", "everything"])
def test_text_reads_back_and_prints_the_same(text: str) -> None:
    program = parse_program(text)
    verify_program(program)
    assert format_program(program) == text
    again = parse_program(format_program(program))
    assert (again.buffers, again.nodes, again.outputs) == (program.buffers, program.nodes, program.outputs)


def test_origins_follow_as_comments() -> None:
    norm = Origin("pow_1", "aten.pow.Tensor_Scalar", "/home/me/model.py", 31, "x.pow(2)")
    mean = Origin("mean", "aten.mean.dim", "/home/me/model.py", 32)
    first = parse_program(RMS_NORM).nodes[0]
    body = tuple(replace(i, origin=norm if n < 3 else mean) for n, i in enumerate(first.body))
    assert format_nest(LoopNest(first.name, first.axes, body)) == (
        "nest n0 (p0<64, r0<4096):                                   # pow, mean model.py:31, 32\n"
        "  %0:bf16 = load x[4096*p0 + r0]                            # pow model.py:31\n"
        "  %1:f32 = cast %0\n"
        "  %2:f32 = mul %1, %1\n"
        "  %3:f32 = sum %2 over r0                                   # mean model.py:32\n"
        "  store ss[p0], %3"
    )


def test_one_origin_is_said_once() -> None:
    first = parse_program(RMS_NORM).nodes[0]
    origin = Origin("norm", "norm", "a.py", 3)
    nest = LoopNest(first.name, first.axes, tuple(replace(i, origin=origin) for i in first.body))
    assert format_nest(nest).count("#") == 1


def test_comments_stay_on_their_line() -> None:
    origin = Origin("x", "evil\nstore y[p0], %0", "a\nb.py", 3)
    first = parse_program(RMS_NORM).nodes[0]
    nest = LoopNest(first.name, first.axes, (replace(first.body[0], origin=origin), *first.body[1:]))
    assert len(format_nest(nest).splitlines()) == len(first.body) + 1


def test_origins_of_several_files() -> None:
    origins = [Origin("a", "aten.add.Tensor", "m.py", 1), Origin("b", "aten.add.Tensor", "n.py", 2), Origin("c", "foo")]
    assert format_origins(origins) == "add, foo  m.py:1; n.py:2"


def test_plan() -> None:
    plan, _ = softmax_plan()
    assert (
        format_plan(plan)
        == """\
kernel softmax (p0<64, r0<4096): looped row
  dim x = p0: grid, block 1
  dim r = r0: loop, block 1024
  cost reads 1.0 MB, writes 1.0 MB and 2.1 MB again; 1835008 instructions, about 24 registers, 1.50 us; 8 warps
  covers n0, n1, n2; inside amax, exp
  phase 0:
    %0:f32 = load x[4096*p0 + r0]
    %1:f32 = max %0 over r0
  phase 1:
    %2:f32 = load x[4096*p0 + r0]
    %3:f32 = sub %2, %1
    %4:f32 = exp %3
    %5:f32 = sum %4 over r0
  phase 2:
    %6:f32 = load x[4096*p0 + r0]
    %7:f32 = sub %6, %1
    %8:f32 = exp %7
    %9:f32 = div %8, %5
    store y[4096*p0 + r0], %9
  ends: y leaves the program"""
    )


def test_schedule_lists_steps_and_decisions() -> None:
    plan, _ = softmax_plan()
    decisions = (FusionDecision("n0", "n1", True, "saves 1.0 MB"), FusionDecision("n1", "e0", False, "a library call"))
    text = format_schedule(Schedule("f", plan.buffers, (plan,), ("x",), (7, None), decisions))
    assert text.startswith("schedule f (x)\n  in    x: f32[64, 4096] (4096, 1) cuda:0\n")
    assert text.endswith("return 7, None\nfused n0 -> n1: saves 1.0 MB\napart n1 -> e0: a library call")


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.bfloat16, "bf16"), (torch.bool, "bool"), (torch.int64, "i64"), (torch.float8_e4m3fn, "float8_e4m3fn")],
)
def test_dtype_name(dtype: torch.dtype, name: str) -> None:
    assert dtype_name(dtype) == name


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (33_554_432, "33.6 MB"), (2_000_000_000, "2.0 GB")],
)
def test_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_constants_print_what_tells_them_apart() -> None:
    shown = [
        format_instr(Instr("%0", "const", (), d, attrs=(("value", v),)))
        for d, v in [
            (torch.float32, -0.0), (torch.float32, float("inf")), (torch.int64, 1), (torch.bool, True),
            (torch.float64, 0.1),
        ]
    ]  # fmt: skip
    assert shown == [
        "%0:f32 = const -0.0", "%0:f32 = const inf", "%0:i64 = const 1", "%0:bool = const True", "%0:f64 = const 0.1"
    ]  # fmt: skip


def test_expressions_read_back() -> None:
    axes = {n: Axis(n, e) for n, e in (("p0", 64), ("r0", 100))}
    p, r = axis_symbol("p0", 64), axis_symbol("r0", 100)
    for expr in (100 * p + r, r // 8 + 3 * (p % 5), 2 * (r // 7) * (p % 3), 99 - r, (p + r) // 3 % 4):
        assert parse_expr(str(expr), axes) == expr
    assert str(parse_expr("64*%3 + r0%8", axes)) == "64*%3 + r0%8"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("program f (x)\nin x: q8[4] (1) cpu\nreturn x", "no dtype is called 'q8'"),
        ("program f ()\nnest n0 (p0<4):\n%0:f32 = frobnicate %1\nreturn", "cannot read '%0:f32 = frobnicate %1'"),
        ("program f ()\nnest n0 (p0<4):\n%0:i64 = index q + 1\nreturn", "uses 'q', which is no axis"),
        ("program f ()\nnest n0 (p0<4):\n%0:i64 = index p0**2\nreturn", "is no index expression"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, message: str) -> None:
    with pytest.raises(FusecError, match=message.replace("(", r"\(").replace("*", r"\*")):
        parse_program(text)


def test_the_modes_of_stores_are_their_verbs() -> None:
    program = parse_program("""
    program f (a, i)
      in  a: i64[6] (1) cpu
      in  i: i64[6] (1) cpu
      out y: i64[4] (1) cpu
    nest n0 (p0<4):
      %0:i64 = const 0
      store y[p0], %0
    nest n1 (p0<6):
      %0:i64 = load i[p0]
      %1:i64 = load a[p0]
      %2:bool = ge %1, %0
      atomic_add y[%0], %1, mask=%2 over p0
      atomic_max y[%0], %1
      overwrite y[%0], %1
    return y
    """)
    assert parse_program(format_program(program)).nodes == program.nodes
    verify_program(program)


def test_a_scan_says_along_what_it_runs() -> None:
    program = parse_program("""
    program f (a)
      in  a: f32[3, 4] (4, 1) cpu
      out y: i64[3, 4] (4, 1) cpu
    nest n0 (p0<3, r0<4):
      %0:f32 = load a[4*p0 + r0]
      %1:i64 = index r0
      %2:i64 = cumargmax %0, %1 over r0
      store y[4*p0 + r0], %2
    return y
    """)
    verify_program(program)
    assert "cumargmax %0, %1 over r0" in format_program(program)
    assert parse_program(format_program(program)).nodes == program.nodes
