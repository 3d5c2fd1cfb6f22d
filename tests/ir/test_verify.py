"""One broken program a rule: the verifier names the rule and marks the line."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fusec.errors import VerificationError
from fusec.ir.index import axis_symbol
from fusec.ir.kernels import DimKind, KernelPlan, Schedule, Tile, TileDim
from fusec.ir.parser import parse_program
from fusec.ir.types import Access, AccessMode, Instr, LoopNest, Program, TensorView
from fusec.ir.verify import verify_plan, verify_program, verify_schedule
from tests.ir.programs import EVERYTHING, RMS_NORM, softmax_plan

HEAD = """
program f (x, i)
  in  x: f32[4, 6] (6, 1) cpu
  in  i: i64[4] (1) cpu
  tmp t: f32[4, 6] (6, 1) cpu
  out y: f32[4, 6] (6, 1) cpu
  out b: bool[4, 6] (6, 1) cpu
"""


def nest(body: str, axes: str = "p0<4, p1<6") -> Program:
    return parse_program(f"{HEAD}\nnest n0 ({axes}):\n{body}\nreturn")


def broken(program: Program) -> str:
    with pytest.raises(VerificationError) as caught:
        verify_program(program)
    return str(caught.value)


@pytest.mark.parametrize("text", [RMS_NORM, EVERYTHING])
def test_sound_programs_pass(text: str) -> None:
    verify_program(parse_program(text))


X = "%0:f32 = load x[6*p0 + p1]\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (X + "%1:f32 = exp %2\n%2:f32 = exp %0", "%2 is used before it is defined"),
        ("%1:f32 = load x[6*%0 + p1]", "%0 is used before it is defined"),
        (X + "%0:f32 = exp %0", "%0 is defined twice"),
        (X + "%1:f32 = add %0", "add takes 2 operands, got 1"),
        (X + "%1:f32 = exp %0, %0", "exp takes 1 operands, got 2"),
        (X + "%1:f64 = cast %0\n%2:f32 = add %0, %1", "add takes operands of one dtype, got %0:f32, %1:f64"),
        (X + "%1:f64 = exp %0", "exp of %0:f32 gives f32, not f64"),
        (X + "%1:f32 = lt %0, %0", "lt of %0:f32, %0:f32 gives bool, not f32"),
        ("%0:f32 = index p0", "index of nothing gives i64, not f32"),
        (X + "%1:f32 = where %0, %0, %0", "where's condition is bool, got %0:f32"),
        (X + "%1:f32 = not %0", "not takes integers or bool, got f32"),
        (X + "%1:i64 = cast %0\n%2:i64 = div %1, %1", "div takes floats, got i64"),
        (X + "%1:i64 = bitcast %0", "bitcast of f32 to i64 changes size"),
        (X + "%1:f32 = sum %0 over p1", "reduces p1, which is a parallel axis"),
        (X + "%1:f32 = sum %0 over r7", "reduces r7, which is no axis here"),
        (X + "%1:f32 = cumsum %0 over p1", "scans p1, which is a parallel axis"),
        ("%0:f64 = load x[p0]", "x holds f32, not f64"),
        (X + "%1:f32 = load x[p0], mask=%0, other=0.0", "a mask is bool, got %0:f32"),
        (X + "%1:f32 = load x[6*%0]", "%0 is used as an index, but is f32"),
        ("%0:f32 = load x[6*p0 + p1 + 1]", "x has 24 elements; x[6*p0 + p1 + 1] reaches from 1 to 24"),
        ("%0:f32 = load x[p0 - 1]", "x has 24 elements; x[p0 - 1] reaches from -1 to 2"),
        (X + "store y[6*p0 + p1 + 1], %0", "y has 24 elements"),
        (X + "store y[p0], %0", "the value varies over p1, the address does not"),
        (X + "%1:i64 = const 0\n%2:i32 = philox %0, %0, %0", "philox takes i64, got f32"),
        ("%0:f32 = load t[6*p0 + p1]\nstore y[6*p0 + p1], %0", "n0 reads t before anything writes it"),
        (X + "store y[6*p0 + p1], %0\nstore y[6*p0 + p1], %0", "n0 and n0 both write y at the same addresses"),
    ],
)
def test_rule_of_a_body(body: str, message: str) -> None:
    assert message in broken(nest(body))


def test_the_bad_line_is_marked_among_its_neighbours() -> None:
    text = broken(nest(X + "%1:f32 = exp %0\n%2:bool = add %1, %0\n%3:f32 = neg %1\nstore y[6*p0 + p1], %3"))
    assert text.splitlines() == [
        "nest n0, line 3: add of %1:f32, %0:f32 gives f32, not bool",
        "    nest n0 (p0<4, p1<6):",
        "      %0:f32 = load x[6*p0 + p1]",
        "      %1:f32 = exp %0",
        "  >   %2:bool = add %1, %0",
        "      %3:f32 = neg %1",
        "      store y[6*p0 + p1], %3",
    ]


def test_masked_accesses_may_reach_outside() -> None:
    verify_program(nest(X + "%1:f32 = const 0.0\n%2:bool = lt %0, %1\n%3:f32 = load x[99*p0], mask=%2, other=0.0"))


def test_gathers_may_use_integers() -> None:
    verify_program(nest("%0:i64 = load i[p0]\n%1:f32 = load x[6*%0 + p1]"))


def test_empty_nests_touch_nothing() -> None:
    verify_program(nest("%0:f32 = load x[100*p0 + p1]", axes="p0<7, p1<0"))


@pytest.mark.parametrize("extent", [32, 8])
def test_an_index_built_for_a_shorter_axis(extent: int) -> None:
    body = (Instr("%0", "load", (), torch.float32, Access("x", axis_symbol("p0", extent))),)
    program = nest("", axes="p0<20")
    program = replace(program, nodes=(LoopNest("n0", program.nodes[0].axes, body),))
    if extent == 8:
        assert "the index takes p0 < 8, but the axis has extent 20" in broken(program)


def test_unknown_axes_and_buffers() -> None:
    base = nest("")
    line = Instr("%0", "load", (), torch.float32, Access("x", axis_symbol("q", 2)))
    unknown = replace(base, nodes=(LoopNest("n0", base.nodes[0].axes, (line,)),))
    assert "the index uses q, which is no axis here" in broken(unknown)
    line = Instr("%0", "load", (), torch.float32, Access("z", axis_symbol("p0", 4)))
    assert "there is no buffer z" in broken(replace(base, nodes=(LoopNest("n0", base.nodes[0].axes, (line,)),)))


def test_two_reductions_in_one_nest() -> None:
    body = X.replace("p1", "r0") + "%1:f32 = sum %0 over r0\n%2:f32 = max %0 over r0"
    assert "a nest has at most one reduction or scan, got %1, %2" in broken(nest(body, axes="p0<4, r0<6"))


SEGMENT = "nest {name} (p0<4, p1<{width}):\n%0:f32 = load x[6*p0 + p1]\nstore y[6*p0 + p1 + {start}], %0\n"


@pytest.mark.parametrize(("first", "second", "sound"), [((2, 0), (4, 2), True), ((3, 0), (4, 2), False)])
def test_segments_of_one_buffer_are_disjoint(first: tuple[int, int], second: tuple[int, int], sound: bool) -> None:
    parts = [SEGMENT.format(name=f"n{k}", width=w, start=s) for k, (w, s) in enumerate((first, second))]
    program = parse_program(HEAD + "".join(parts) + "return y")
    if sound:
        verify_program(program)
    else:
        assert "n0 and n1 both write y at the same addresses" in broken(program)


def test_large_segments_are_told_apart_without_enumeration() -> None:
    def part(name: str, width: int, start: int) -> str:
        return (
            f"nest {name} (p0<4096, p1<{width}):\n%0:f32 = const 0.0\nstore y[5000*p0 + p1 + {start}], %0\n"
        )  # fmt: skip

    head = "program f ()\nout y: f32[4096, 5000] (5000, 1) cpu\n"
    verify_program(parse_program(head + part("n0", 2000, 0) + part("n1", 3000, 2000) + "return y"))
    again = broken(parse_program(head + part("n0", 2000, 0) + part("n1", 2000, 0) + "return y"))
    assert "both write y" in again


COPY = "nest {0} (p0<4, p1<6):\n%0:f32 = load {1}[6*p0 + p1]\nstore {2}[6*p0 + p1], %0\n"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (COPY.format("n0", "t", "y") + COPY.format("n1", "x", "t"), "n0 reads t before anything writes it"),
        (COPY.format("n0", "x", "y") * 2, "two nodes are called n0"),
        ("nest n0 (p0<4):\n%0:f32 = const 1.0\natomic_add t[p0], %0\n", "n0 reads t before anything writes it"),
        ("extern e0: y = aten.neg.default(t)\n", "e0 reads t before anything writes it"),
        ("extern e0: x = aten.neg.default(x)\n", "e0 writes x, which already holds data"),
        (COPY.format("n0", "x", "t"), "output 0 reads y before anything writes it"),
    ],
)
def test_rule_of_order(parts: str, message: str) -> None:
    assert message in broken(parse_program(HEAD + parts + "return y"))


def test_outputs_lie_inside_their_buffers() -> None:
    program = parse_program(HEAD + COPY.format("n0", "x", "y") + "return y")
    assert "the view reaches element 24 of y, which has 24" in broken(
        replace(program, outputs=(TensorView("y", (4, 6), (6, 1), 1),))
    )
    assert "uses z, which is no buffer" in broken(replace(program, outputs=(TensorView("z", (4,), (1,)),)))


def test_buffers_have_one_name_and_one_stride_an_extent() -> None:
    program = parse_program(HEAD + "return x")
    assert "two buffers are called x" in broken(replace(program, buffers=program.buffers + program.buffers[:1]))
    bad = replace(program.buffers[0], strides=(1,))
    assert "x has 2 extents but 1 strides" in broken(replace(program, buffers=(bad, *program.buffers[1:])))
    assert "the input q is no buffer" in broken(replace(program, inputs=("q",)))


def test_access_modes_match_their_line() -> None:
    program = nest(X)
    line = replace(program.nodes[0].body[0], access=Access("x", axis_symbol("p0", 4), AccessMode.STORE))
    assert "load has mode store" in broken(replace(program, nodes=(LoopNest("n0", program.nodes[0].axes, (line,)),)))


# -- kernels --------------------------------------------------------------------------------------


def broken_plan(plan: KernelPlan) -> str:
    with pytest.raises(VerificationError) as caught:
        verify_plan(plan, {b.name: b for b in plan.buffers})
    return str(caught.value)


def test_a_sound_plan_passes() -> None:
    plan, name = softmax_plan()
    verify_plan(plan, {b.name: b for b in plan.buffers})
    outputs = (TensorView("y", (64, 4096), (4096, 1)),)
    verify_schedule(Schedule(name, plan.buffers, (plan,), ("x",), outputs))


def test_rules_of_dimensions() -> None:
    plan, _ = softmax_plan()
    x, r = plan.dims
    assert "axis r0 is in 0 dimensions" in broken_plan(replace(plan, dims=(x,)))
    assert "axis p0 is in 2 dimensions" in broken_plan(
        replace(plan, dims=(x, TileDim("r", ("p0", "r0"), DimKind.LOOP)))
    )
    assert "grid dimensions come first" in broken_plan(replace(plan, dims=(r, x)))
    assert "the block of r is 1000; a block is a power of two" in broken_plan(
        replace(plan, tile=Tile((("x", 1), ("r", 1000))))
    )
    gridded = replace(plan, dims=(x, TileDim("y", ("r0",), DimKind.GRID)), tile=Tile((("x", 1), ("y", 64))))
    assert "%1 reduces r0, which the grid divides" in broken_plan(gridded)


def test_rules_of_phases() -> None:
    plan, _ = softmax_plan()
    first, second, third = plan.phases
    whole = (plan.dims[0], TileDim("r", ("r0",), DimKind.WHOLE))
    assert "a kernel without a loop has one phase, got 3" in broken_plan(replace(plan, dims=whole))
    assert "phase 0: %3 needs %1, which its own loop is still reducing" in broken_plan(
        replace(plan, phases=(first + second, third))
    )
    # The third phase may not use what the second one loaded: it varies along the loop.
    reuse = tuple(replace(i, args=("%2", "%1")) if i.out == "%7" else i for i in third[1:])
    assert "phase 2 uses %2, which varies along the loop of an earlier phase" in broken_plan(
        replace(plan, phases=(first, second, reuse))
    )


def test_buffers_of_a_plan_are_listed() -> None:
    plan, _ = softmax_plan()
    with pytest.raises(VerificationError, match="uses y, missing from its buffers"):
        verify_plan(replace(plan, buffers=plan.buffers[:1]), {b.name: b for b in plan.buffers})


def test_a_schedule_in_the_wrong_order() -> None:
    plan, name = softmax_plan()
    schedule = Schedule(name, plan.buffers, (plan, plan), ("x",), ())
    with pytest.raises(VerificationError, match="softmax and softmax both write y"):
        verify_schedule(schedule)


def test_a_nest_that_runs_for_no_point_may_store_anything() -> None:
    text = RMS_NORM.replace("bf16[64, 4096]", "bf16[0, 4096]").replace("<64", "<0").replace("ss: f32[64]", "ss: f32[0]")
    verify_program(parse_program(text.replace("ss[8](8) + 1, ", "").replace("store ss[p0]", "store ss[0]")))
