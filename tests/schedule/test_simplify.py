"""Passes across nests: what is computed once, what is gone, and that outputs keep their values and memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusec.config import Config
from fusec.ir.evaluate import evaluate_program
from fusec.ir.parser import parse_program
from fusec.ir.types import Extern, LoopNest, Program, Role, TensorView
from fusec.ir.verify import verify_program
from fusec.schedule.partial import reuse_partial_reductions
from fusec.schedule.simplify import remove_dead, share_equal, simplify

X = "in x: f32[12] (1) cpu"


def buffers(*names: str, role: str = "tmp") -> str:
    return "\n".join(f"{role} {n}: f32[12] (1) cpu" for n in names)


def unary(name: str, op: str, source: str, target: str, axis: str = "p0") -> str:
    return f"nest {name} ({axis}<12):\n%0:f32 = load {source}[{axis}]\n%1:f32 = {op} %0\nstore {target}[{axis}], %1"


def copy(name: str, source: str, target: str) -> str:
    return f"nest {name} (p0<12):\n%0:f32 = load {source}[p0]\nstore {target}[p0], %0"


def program(*parts: str, returns: str, inputs: str = "x") -> Program:
    parsed = parse_program("\n".join([f"program f ({inputs})", X, *parts, f"return {returns}"]))
    verify_program(parsed)
    return parsed


def checked(before: Program, after: Program, *inputs: torch.Tensor) -> Program:
    """`after`, once it is proved to be sound and to return what `before` does."""
    verify_program(after)
    inputs = inputs or (torch.linspace(-3, 3, 12),)
    for a, b in zip(evaluate_program(before, inputs), evaluate_program(after, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, equal_nan=True)
    return after


def names(p: Program) -> list[str]:
    return [n.name for n in p.nodes]


def test_equal_nests_run_once() -> None:
    before = program(
        buffers("a", "b"),
        buffers("y", role="out"),
        unary("n0", "exp", "x", "a"),
        unary("n1", "exp", "x", "b", axis="p1"),
        "nest n2 (p0<12):\n%0:f32 = load a[p0]\n%1:f32 = load b[p0]\n%2:f32 = add %0, %1\nstore y[p0], %2",
        returns="y",
    )
    after = checked(before, simplify(before, Config()))
    assert names(after) == ["n0", "n2"]
    assert [b.name for b in after.buffers] == ["x", "a", "y"]
    assert after.nodes[1].reads == ("a",)


def test_equality_goes_through_chains() -> None:
    before = program(
        buffers("a", "b", "c", "d"),
        buffers("y", role="out"),
        unary("n0", "exp", "x", "a"),
        unary("n1", "exp", "x", "b"),
        unary("n2", "neg", "a", "c"),
        unary("n3", "neg", "b", "d"),
        "nest n4 (p0<12):\n%0:f32 = load c[p0]\n%1:f32 = load d[p0]\n%2:f32 = add %0, %1\nstore y[p0], %2",
        returns="y",
    )
    assert names(checked(before, simplify(before, Config()))) == ["n0", "n2", "n4"]


def test_different_constants_stay_apart() -> None:
    def times(name: str, factor: str, target: str) -> str:
        return (
            f"nest {name} (p0<12):\n%0:f32 = load x[p0]\n%1:f32 = const {factor}\n"
            f"%2:f32 = copysign %0, %1\nstore {target}[p0], %2"
        )

    before = program(buffers("a", "b", role="out"), times("n0", "0.0", "a"), times("n1", "-0.0", "b"), returns="a, b")
    assert names(checked(before, simplify(before, Config()))) == ["n0", "n1"]


def test_two_returned_equals_are_stored_by_one_nest() -> None:
    before = program(
        buffers("a", "b", role="out"), unary("n0", "exp", "x", "a"), unary("n1", "exp", "x", "b"), returns="a, b"
    )
    after = checked(before, simplify(before, Config()))
    assert names(after) == ["n0"]
    assert after.nodes[0].writes == ("a", "b")
    assert [o.buffer for o in after.outputs if isinstance(o, TensorView)] == ["a", "b"]


def test_a_returned_copy_of_a_temporary_returns_the_temporary() -> None:
    before = program(
        buffers("a"), buffers("y", role="out"), unary("n0", "exp", "x", "a"), copy("n1", "a", "y"), returns="y"
    )
    after = checked(before, simplify(before, Config()))
    assert names(after) == ["n0"]
    assert after.table["a"].role is Role.OUTPUT
    assert after.outputs[0].buffer == "a"


def test_a_returned_copy_of_an_input_stays() -> None:
    before = program(buffers("y", role="out"), copy("n0", "x", "y"), returns="y")
    assert names(checked(before, simplify(before, Config()))) == ["n0"]


def test_a_returned_copy_of_a_returned_buffer_stays() -> None:
    before = program(buffers("a", "y", role="out"), unary("n0", "exp", "x", "a"), copy("n1", "a", "y"), returns="a, y")
    assert names(checked(before, simplify(before, Config()))) == ["n0", "n1"]


def test_a_copy_inside_is_read_through() -> None:
    before = program(
        buffers("a"), buffers("y", role="out"), copy("n0", "x", "a"), unary("n1", "exp", "a", "y"), returns="y"
    )
    after = checked(before, simplify(before, Config()))
    assert names(after) == ["n1"] and after.nodes[0].reads == ("x",)


def test_a_copy_that_moves_elements_stays() -> None:
    before = program(
        buffers("a"),
        buffers("y", role="out"),
        "nest n0 (p0<3, p1<4):\n%0:f32 = load x[4*p0 + p1]\nstore a[p0 + 3*p1], %0",
        unary("n1", "exp", "a", "y"),
        returns="y",
    )
    assert names(checked(before, simplify(before, Config()))) == ["n0", "n1"]


def test_segments_of_one_buffer_are_no_copies() -> None:
    before = program(
        "out y: f32[24] (1) cpu",
        "nest n0 (p0<12):\n%0:f32 = load x[p0]\nstore y[p0], %0",
        "nest n1 (p0<12):\n%0:f32 = load x[p0]\nstore y[p0 + 12], %0",
        returns="y",
    )
    assert names(checked(before, simplify(before, Config()))) == ["n0", "n1"]


def test_dead_nests_stores_and_calls_go() -> None:
    before = program(
        buffers("a", "b", "c"),
        buffers("y", role="out"),
        "nest n0 (p0<12):\n%0:f32 = load x[p0]\n%1:f32 = exp %0\nstore y[p0], %1\n%2:f32 = sin %0\nstore a[p0], %2",
        unary("n1", "neg", "a", "b"),
        "extern e0: c = aten.abs.default(b)",
        returns="y",
    )
    after = checked(before, remove_dead(before))
    assert names(after) == ["n0"]
    assert [i.op for i in after.nodes[0].body] == ["load", "exp", "store"]
    assert [b.name for b in after.buffers] == ["x", "y"]


def test_calls_with_effects_stay() -> None:
    before = program(
        buffers("a", "b"),
        buffers("y", role="out"),
        copy("n0", "x", "a"),
        "extern e0: b = aten.rand_like.default(x)",
        unary("n1", "exp", "x", "y"),
        returns="y",
    )
    kept = remove_dead(before)
    assert "e0" in names(kept), "an unused draw still moves the generator"
    changing = replace(before.nodes[1], mutates=("a",), name="e1", outputs=())
    assert "e1" in names(remove_dead(replace(before, nodes=(before.nodes[0], changing, before.nodes[2]))))


def test_equal_pure_calls_run_once_and_random_ones_do_not() -> None:
    def calls(target: str) -> Program:
        return program(
            buffers("a", "b"),
            buffers("y", role="out"),
            f"extern e0: a = {target}(x)",
            f"extern e1: b = {target}(x)",
            "nest n2 (p0<12):\n%0:f32 = load a[p0]\n%1:f32 = load b[p0]\n%2:f32 = sub %0, %1\nstore y[p0], %2",
            returns="y",
        )

    pure = calls("aten.abs.default")
    assert names(checked(pure, share_equal(pure))) == ["e0", "n2"]
    assert names(share_equal(calls("aten.rand_like.default"))) == ["e0", "e1", "n2"]


def test_a_buffer_changed_in_place_is_not_shared() -> None:
    before = program(
        buffers("a", "b"),
        buffers("y", role="out"),
        copy("n0", "x", "a"),
        "extern e0: aten.neg_.default(a) mutates a",
        copy("n1", "x", "b"),
        "nest n2 (p0<12):\n%0:f32 = load a[p0]\n%1:f32 = load b[p0]\n%2:f32 = sub %0, %1\nstore y[p0], %2",
        returns="y",
    )
    after = checked(before, simplify(before, Config()))
    assert isinstance(after.nodes[1], Extern) and after.nodes[0].writes == ("a",)


def test_calls_read_through_copies() -> None:
    before = program(
        buffers("a"),
        buffers("y", role="out"),
        copy("n0", "x", "a"),
        "extern e0: y = aten.cat.default([a[6](2), a[6](2) + 1])",
        returns="y",
    )
    after = checked(before, simplify(before, Config()))
    assert after.nodes[0].reads == ("x",)


@pytest.mark.parametrize("precision", ["fast", "eager"])
def test_simplify_is_idempotent(precision: str) -> None:
    before = program(
        buffers("a", "b"),
        buffers("y", role="out"),
        copy("n0", "x", "a"),
        unary("n1", "exp", "a", "b"),
        unary("n2", "exp", "x", "y"),
        returns="y",
    )
    config = Config(precision=precision)
    once = checked(before, simplify(before, config))
    assert simplify(once, config) == once


# -- full reductions over partial ones ------------------------------------------------------------

ROWS = "nest n0 (p0<3, r0<4):\n%0:f32 = load x[4*p0 + r0]\n%1:f32 = {op} %0 over r0\nstore rows[p0], %1"
COLUMNS = "nest n1 (p0<4, r0<3):\n%0:f32 = load x[4*r0 + p0]\n%1:f32 = {op} %0 over r0\nstore columns[p0], %1"
FULL = "nest n2 (r0<12):\n%0:f32 = load x[r0]\n%1:f32 = {op} %0 over r0\nstore total[0], %1"
FULL_2D = "nest n2 (r0<3, r1<4):\n%0:f32 = load x[4*r0 + r1]\n%1:f32 = {op} %0 over r0, r1\nstore total[0], %1"
R, C, T = "out rows: f32[3] (1) cpu", "out columns: f32[4] (1) cpu", "out total: f32[] () cpu"


@pytest.mark.parametrize("op", ["sum", "max", "min", "prod"])
@pytest.mark.parametrize("full", [FULL, FULL_2D])
@pytest.mark.parametrize("full_first", [False, True])
def test_a_full_reduction_reads_the_smallest_partial(op: str, full: str, full_first: bool) -> None:
    nests = [full, ROWS, COLUMNS] if full_first else [ROWS, COLUMNS, full]
    before = program(R, C, T, *(n.format(op=op) for n in nests), returns="rows, columns, total")
    after = checked(before, reuse_partial_reductions(before, reorder_floats=True))
    total = next(n for n in after.nodes if n.name == "n2")
    assert isinstance(total, LoopNest)
    assert total.reads == ("rows",)
    assert [a.extent for a in total.axes] == [3]


def test_float_sums_keep_their_order_in_eager_precision() -> None:
    for op, same in (("sum", True), ("max", False)):
        before = program(R, T, ROWS.format(op=op), FULL.format(op=op), returns="rows, total")
        after = checked(before, simplify(before, Config(precision="eager")))
        assert (after.nodes[1].reads == ("x",)) == same


def test_other_operands_and_other_ops_stay() -> None:
    squares = FULL.format(op="sum").replace("%1:f32 = sum %0", "%2:f32 = mul %0, %0\n%1:f32 = sum %2")
    for full in (squares, FULL.format(op="max"), FULL.format(op="sum").replace("x[r0]", "x[-r0 + 11]")):
        before = program(R, T, ROWS.format(op="sum"), full, returns="rows, total")
        after = checked(before, reuse_partial_reductions(before, reorder_floats=True))
        assert after.nodes[1].reads == ("x",)


def test_a_rounded_partial_is_not_read() -> None:
    rounded = ROWS.format(op="sum")
    before = program("out rows: bf16[3] (1) cpu", T, rounded, FULL.format(op="sum"), returns="rows, total")
    assert reuse_partial_reductions(before, reorder_floats=True) == before


def test_the_lines_after_the_full_reduction_stay() -> None:
    mean = (
        FULL.format(op="sum")
        .replace("store", "%2:f32 = const 12.0\n%3:f32 = div %1, %2\nstore")
        .replace("store total[0], %1", "store total[0], %3")
    )
    before = program(R, T, ROWS.format(op="sum"), mean, returns="rows, total")
    after = checked(before, simplify(before, Config()))
    assert after.nodes[1].reads == ("rows",) and [i.op for i in after.nodes[1].body][-2:] == ["div", "store"]


def test_a_parallel_axis_that_the_partial_one_splits() -> None:
    # over (2, 2, 3): partial sums the last axis, full sums the last and keeps (2, 2) as one axis of 4... of 2
    partial = "nest n0 (p0<2, p1<2, r0<3):\n%0:f32 = load x[6*p0 + 3*p1 + r0]\n%1:f32 = sum %0 over r0\n"
    partial += "store rows[2*p0 + p1], %1"
    full = "nest n1 (p0<2, r0<6):\n%0:f32 = load x[6*p0 + r0]\n%1:f32 = sum %0 over r0\nstore total[p0], %1"
    before = program(
        "out rows: f32[2, 2] (2, 1) cpu", "out total: f32[2] (1) cpu", partial, full, returns="rows, total"
    )
    after = checked(before, reuse_partial_reductions(before, reorder_floats=True))
    assert after.nodes[1].reads == ("rows",) and [a.extent for a in after.nodes[1].axes] == [2, 2]


# -- random programs ------------------------------------------------------------------------------

UNARY = ("exp", "neg", "abs", "copy", "negneg", "flip", "dead")
BINARY = ("add", "mul", "maximum", "sub")


@st.composite
def random_programs(draw: st.DrawFn) -> Program:
    """Up to twelve nests over buffers of one shape, many of them equal, copies, dead or returned."""
    made = ["x"]
    parts = []
    for position in range(draw(st.integers(1, 12))):
        target = f"t{position}"
        a, b = (draw(st.sampled_from(made)) for _ in range(2))
        op = draw(st.sampled_from(UNARY + BINARY))
        lines = [f"nest n{position} (p0<3, p1<4):", f"%0:f32 = load {a}[4*p0 + p1]"]
        place = "-4*p0 - p1 + 11" if op == "flip" else "4*p0 + p1"
        if op in BINARY:
            lines += [f"%1:f32 = load {b}[4*p0 + p1]", f"%2:f32 = {op} %0, %1", f"store {target}[{place}], %2"]
        elif op in ("copy", "flip"):
            lines += [f"store {target}[{place}], %0"]
        elif op == "negneg":
            lines += ["%1:f32 = neg %0", "%2:f32 = neg %1", f"store {target}[{place}], %2"]
        else:
            op = "sin" if op == "dead" else op
            lines += [f"%1:f32 = {op} %0", f"store {target}[{place}], %1"]
        parts.append("\n".join(lines))
        made.append(target)
    returned = draw(st.lists(st.sampled_from(made[1:]), min_size=1, max_size=3, unique=True))
    declared = [f"{'out' if t in returned else 'tmp'} {t}: f32[3, 4] (4, 1) cpu" for t in made[1:]]
    head = ["program f (x)", "in x: f32[3, 4] (4, 1) cpu", *declared]
    return parse_program("\n".join([*head, *parts, "return " + ", ".join(returned)]))


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(random_programs())
def test_random_programs_keep_their_outputs_and_their_memory(before: Program) -> None:
    after = checked(before, simplify(before, Config()), torch.linspace(-2, 2, 12).view(3, 4))
    buffers_returned = [o.buffer for o in after.outputs if isinstance(o, TensorView)]
    assert len(set(buffers_returned)) == len(before.outputs), "outputs share memory"
    assert "x" not in buffers_returned, "an input is returned in place of a fresh tensor"
    assert len(after.nodes) <= len(before.nodes)
    assert simplify(after, Config()) == after
