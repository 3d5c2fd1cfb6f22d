"""Each row of the algebra table is its equation; here both sides are evaluated on awkward values."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fusec.ir.evaluate import evaluate_program
from fusec.ir.ops import OPS, Result
from fusec.ir.parser import parse_program
from fusec.ir.printer import SHORT_NAMES, format_nest
from fusec.ir.types import Program
from fusec.schedule.algebra import KINDS, RULES, Pattern, Rule, parse, simplify_body
from fusec.schedule.simplify import simplify_nest

FLOATS = [0.0, -0.0, 1.0, -1.0, 2.5, -0.5, 3e38, -1e-40, 1e-7, float("inf"), float("-inf"), float("nan")]
INTS = [0, 1, -1, 2, -7, 100, 127, -128]
DTYPES = [
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


def awkward(dtype: torch.dtype) -> torch.Tensor:
    if dtype is torch.bool:
        return torch.tensor([False, True])
    if dtype.is_floating_point:
        return torch.tensor(FLOATS, dtype=torch.float64).to(dtype)
    return torch.tensor(INTS).to(dtype)


def value(pattern: Pattern, env: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """A side of an equation: variables from env, literals in `dtype`, ops by the op table."""
    if isinstance(pattern, str):
        return env[pattern]
    if not isinstance(pattern, tuple):
        return torch.tensor(pattern, dtype=torch.bool if isinstance(pattern, bool) else dtype)
    op, operands = pattern
    evaluate = OPS[op].evaluate
    assert evaluate is not None
    return evaluate(*(value(p, env, dtype) for p in operands))


def variables(pattern: Pattern) -> set[str]:
    if isinstance(pattern, str):
        return {pattern}
    return set().union(*(variables(p) for p in pattern[1])) if isinstance(pattern, tuple) else set()


def condition_variables(pattern: Pattern) -> set[str]:
    """Variables that are where's condition, and so bool."""
    if not isinstance(pattern, tuple):
        return set()
    inner = set().union(*(condition_variables(p) for p in pattern[1]))
    return inner | (variables(pattern[1][0]) if pattern[0] == "where" else set())


def assert_same_bits(a: torch.Tensor, b: torch.Tensor) -> None:
    """Equal values, NaN in the same places, and the same signs of zero."""
    a, b = torch.broadcast_tensors(a, b)
    assert a.dtype == b.dtype
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    if a.dtype.is_floating_point:
        kept = ~torch.isnan(a)
        assert torch.equal(torch.signbit(a[kept]), torch.signbit(b[kept]))


CASES = [(rule, dtype) for rule in RULES for dtype in DTYPES if KINDS[rule.kind](dtype)]


@pytest.mark.parametrize(("rule", "dtype"), CASES, ids=lambda x: getattr(x, "equation", str(x)))
def test_equation(rule: Rule, dtype: torch.dtype) -> None:
    left, right = parse(rule.left), parse(rule.right)
    names = sorted(variables(left))
    assert variables(right) <= set(names)
    conditions = condition_variables(left)
    other = torch.float32 if dtype is torch.bool and conditions else dtype
    if "where" in rule.left and "true, false" in rule.left.replace("false, true", "true, false"):
        other = torch.bool
    shapes = [[-1 if i == j else 1 for j in range(len(names))] for i in range(len(names))]
    env = {n: awkward(torch.bool if n in conditions else other).view(s) for n, s in zip(names, shapes, strict=True)}
    before = value(left, env, other)
    after = value(right, env, before.dtype)
    if rule.left.startswith("pow"):
        # PyTorch computes x ** 2 as x * x; its tensor-tensor pow may differ in the last bit.
        exponent = left[1][1] if isinstance(left, tuple) else None
        before = torch.pow(env["x"], exponent)
    assert_same_bits(before, after)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.equation)
def test_engine_applies_the_row(rule: Rule) -> None:
    """A nest that computes the left side is left with the right side's ops."""
    dtype = next(d for d in (torch.float32, torch.int32, torch.bool) if KINDS[rule.kind](d))
    program = nest_of(rule, dtype)
    simplified = simplify_nest(program.nodes[0])
    ops = sorted(i.op for i in simplified.body if i.op not in ("load", "store", "const"))
    assert ops == sorted(all_ops(parse(rule.right))), format_nest(simplified)


def all_ops(pattern: Pattern) -> list[str]:
    return [pattern[0], *itertools.chain(*(all_ops(p) for p in pattern[1]))] if isinstance(pattern, tuple) else []


def nest_of(rule: Rule, dtype: torch.dtype) -> Program:
    left = parse(rule.left)
    names = sorted(variables(left))
    conditions = condition_variables(left)
    other = torch.float32 if dtype is torch.bool and conditions else dtype
    if "true, false" in rule.left or "false, true" in rule.left:
        other = torch.bool
    lines: list[str] = []
    counter = itertools.count()

    def emit(pattern: Pattern) -> tuple[str, torch.dtype]:
        if isinstance(pattern, str):
            kind = torch.bool if pattern in conditions else other
            lines.append(f"%{(n := next(counter))}:{SHORT_NAMES[kind]} = load {pattern}[p0]")
            return f"%{n}", kind
        if not isinstance(pattern, tuple):
            kind = torch.bool if isinstance(pattern, bool) else other
            literal = float(pattern) if kind.is_floating_point else bool(pattern) if kind is torch.bool else pattern
            lines.append(f"%{(n := next(counter))}:{SHORT_NAMES[kind]} = const {literal}")
            return f"%{n}", kind
        operands = [emit(p) for p in pattern[1]]
        kind = torch.bool if OPS[pattern[0]].result is Result.BOOL else operands[-1][1]
        lines.append(f"%{(n := next(counter))}:{SHORT_NAMES[kind]} = {pattern[0]} {', '.join(o for o, _ in operands)}")
        return f"%{n}", kind

    out, result = emit(left)
    inputs = [f"in {n}: {SHORT_NAMES[torch.bool if n in conditions else other]}[8] (1) cpu" for n in names]
    text = [f"program f ({', '.join(names)})", *inputs, f"out out: {SHORT_NAMES[result]}[8] (1) cpu"]
    return parse_program("\n".join([*text, "nest n0 (p0<8):", *lines, f"store out[p0], {out}", "return out"]))


# -- rows that are functions ----------------------------------------------------------------------


def simplified(body: str, dtypes: str = "f32", axes: str = "p0<12", out: str = "f32") -> list[str]:
    """The lines left of a body over x (dtype given) and y, printed."""
    program = parse_program(
        f"program f (x)\nin x: {dtypes}[12] (1) cpu\nout y: {out}[12] (1) cpu\nnest n0 ({axes}):\n{body}\nreturn y"
    )
    nest = program.nodes[0]
    lines = format_nest(simplify_nest(nest)).splitlines()[1:]
    values = awkward(SHORT[dtypes])[:12] if dtypes in SHORT else torch.zeros(12)
    x = values.repeat(12)[:12].contiguous()
    before = evaluate_program(program, [x])[0]
    after = evaluate_program(
        Program("f", program.buffers, (simplify_nest(nest),), program.inputs, program.outputs), [x]
    )
    assert_same_bits(before, after[0])
    return [line.strip() for line in lines]


SHORT = {name: dtype for dtype, name in SHORT_NAMES.items()}


def test_casts_that_lose_nothing_disappear() -> None:
    body = "%0:bf16 = load x[p0]\n%1:f32 = cast %0\n%2:bf16 = cast %1\nstore y[p0], %2"
    assert simplified(body, "bf16", out="bf16") == ["%0:bf16 = load x[p0]", "store y[p0], %0"]


def test_a_rounding_cast_stays() -> None:
    body = "%0:f32 = load x[p0]\n%1:bf16 = cast %0\n%2:f32 = cast %1\nstore y[p0], %2"
    assert len(simplified(body)) == 4


@pytest.mark.parametrize("op", ["neg", "abs"])
def test_rounding_what_differs_in_sign_disappears(op: str) -> None:
    body = f"%0:bf16 = load x[p0]\n%1:f32 = cast %0\n%2:f32 = {op} %1\n"
    lines = simplified(body + "%3:bf16 = cast %2\n%4:f32 = cast %3\nstore y[p0], %4", "bf16")
    assert lines == [*body.splitlines(), "store y[p0], %2"]


def test_rounding_what_is_picked_from_narrow_values_disappears() -> None:
    relu = "%0:bf16 = load x[p0]\n%1:f32 = cast %0\n%2:f32 = const 0.0\n%3:f32 = maximum %1, %2\n"
    body = relu + "%4:bf16 = cast %3\n%5:f32 = cast %4\nstore y[p0], %5"
    assert simplified(body, "bf16") == [*relu.splitlines(), "store y[p0], %3"]
    masked = "%4:bf16 = cast %3\n%5:bool = gt %1, %2\n%6:bf16 = const -inf\n%7:bf16 = where %5, %4, %6\n"
    lines = simplified(relu + masked + "%8:f32 = cast %7\nstore y[p0], %8", "bf16")
    assert sum("cast" in line for line in lines) == 1, lines


@pytest.mark.parametrize(
    "line", ["%3:f32 = mul %1, %2", "%3:f32 = maximum %1, %2"], ids=["a product", "a constant that is not narrow"]
)
def test_rounding_what_is_computed_stays(line: str) -> None:
    body = f"%0:bf16 = load x[p0]\n%1:f32 = cast %0\n%2:f32 = const 0.1\n{line}\n"
    assert len(simplified(body + "%4:bf16 = cast %3\n%5:f32 = cast %4\nstore y[p0], %5", "bf16")) == 7


@pytest.mark.parametrize(
    ("narrow", "wide", "goes"),
    [
        ("f16", "f32", True),
        ("f16", "bf16", False),
        ("bf16", "f16", False),
        ("i8", "bf16", True),
        ("i16", "f32", True),
        ("i32", "f32", False),
        ("i32", "f64", True),
        ("i64", "f64", False),
        ("bool", "i8", True),
        ("u8", "i8", False),
        ("u8", "i16", True),
        ("f32", "i64", False),
    ],
)
def test_cast_chain(narrow: str, wide: str, goes: bool) -> None:
    body = f"%0:{narrow} = load x[p0]\n%1:{wide} = cast %0\n%2:{narrow} = cast %1\nstore y[p0], %2"
    program = parse_program(
        f"program f (x)\nin x: {narrow}[12] (1) cpu\nout y: {narrow}[12] (1) cpu\nnest n0 (p0<12):\n{body}\nreturn y"
    )
    left = simplify_body(program.nodes[0].body, program.nodes[0].axes)
    assert (len(left) == 2) == goes
    if goes:
        x = awkward(SHORT[narrow])
        assert_same_bits(x.to(SHORT[wide]).to(SHORT[narrow]), x)


def test_division_by_a_power_of_two_multiplies() -> None:
    body = "%0:f32 = load x[p0]\n%1:f32 = const 4096.0\n%2:f32 = div %0, %1\nstore y[p0], %2"
    assert "%2:f32 = mul %0, %3" in simplified(body)
    assert "%3:f32 = const 0.000244140625" in simplified(body)


def test_division_by_another_number_stays() -> None:
    body = "%0:f32 = load x[p0]\n%1:f32 = const 3.0\n%2:f32 = div %0, %1\nstore y[p0], %2"
    assert "%2:f32 = div %0, %1" in simplified(body)


def test_masks_decided_by_ranges() -> None:
    body = """
    %0:i64 = index p0
    %1:i64 = const 12
    %2:bool = lt %0, %1
    %3:f32 = load x[p0], mask=%2, other=0.0
    store y[p0], %3, mask=%2"""
    assert simplified(body) == ["%3:f32 = load x[p0]", "store y[p0], %3"]


def test_masks_that_are_never_true() -> None:
    body = """
    %0:i64 = index p0 + 20
    %1:i64 = const 19
    %2:bool = le %0, %1
    %3:f32 = load x[p0], mask=%2, other=2.5
    store y[p0], %3"""
    assert simplified(body) == ["%3:f32 = const 2.5", "store y[p0], %3"]


@pytest.mark.parametrize(("mask", "selects"), [("%2", 0), ("%6", 1)])
def test_what_a_masked_store_leaves_out_is_not_selected(mask: str, selects: int) -> None:
    """Half of y is written by each of two stores; the second selects by the mask of one of them."""
    body = f"""
    %0:i64 = index p0
    %1:i64 = const 7
    %2:bool = lt %0, %1
    %6:bool = ge %0, %1
    %3:f32 = load x[p0]
    %4:f32 = exp %3
    %5:f32 = where {mask}, %4, %3
    store y[p0], %5, mask=%2
    store y[p0], %3, mask=%6"""
    assert sum("= where" in line for line in simplified(body)) == selects


def test_undecided_masks_stay() -> None:
    body = """
    %0:i64 = index p0
    %1:i64 = const 7
    %2:bool = lt %0, %1
    %3:f32 = load x[p0], mask=%2, other=2.5
    store y[p0], %3"""
    assert len(simplified(body)) == 5


def test_index_arithmetic_becomes_one_expression() -> None:
    body = """
    %0:i64 = index p0
    %1:i64 = const 3
    %2:i64 = mul %0, %1
    %3:i64 = const 36
    %4:i64 = mod %2, %3
    store y[p0], %4"""
    assert simplified(body, out="i64") == ["%2:i64 = index 3*p0", "store y[p0], %2"]


def test_a_known_index_is_read_directly() -> None:
    body = "%0:i64 = index 11 - p0\n%1:f32 = load x[%0]\nstore y[p0], %1"
    assert simplified(body) == ["%1:f32 = load x[-p0 + 11]", "store y[p0], %1"]


def test_common_subexpressions_once() -> None:
    body = """
    %0:f32 = load x[p0]
    %1:f32 = load x[p0]
    %2:f32 = add %0, %1
    %3:f32 = add %1, %0
    %4:f32 = mul %2, %3
    store y[p0], %4"""
    assert simplified(body) == ["%0:f32 = load x[p0]", "%2:f32 = add %0, %0", "%4:f32 = mul %2, %2", "store y[p0], %4"]


def test_zeros_of_either_sign_are_two_constants() -> None:
    body = """
    %0:f32 = load x[p0]
    %1:f32 = const 0.0
    %2:f32 = const -0.0
    %3:f32 = copysign %0, %1
    %4:f32 = copysign %0, %2
    %5:f32 = minimum %3, %4
    store y[p0], %5"""
    assert len(simplified(body)) == 7


def test_constants_are_folded() -> None:
    body = "%0:f32 = const 3.0\n%1:f32 = const 4.0\n%2:f32 = mul %0, %1\n%3:f32 = sqrt %2\nstore y[p0], %3"
    assert simplified(body) == ["%3:f32 = const 3.464101552963257", "store y[p0], %3"]


def test_integer_division_by_zero_is_left_to_run() -> None:
    body = "%0:i64 = const 3\n%1:i64 = const 0\n%2:i64 = floordiv %0, %1\nstore y[p0], %2"
    program = parse_program(f"program f ()\nout y: i64[4] (1) cpu\nnest n0 (p0<4):\n{body}\nreturn y")
    assert "floordiv" in [i.op for i in simplify_body(program.nodes[0].body, program.nodes[0].axes)]


def test_a_reduction_of_one_point_is_its_operand() -> None:
    body = "%0:f32 = load x[p0]\n%1:f32 = max %0 over r0\nstore y[p0], %1"
    assert simplified(body, axes="p0<12, r0<1") == ["%0:f32 = load x[p0]", "store y[p0], %0"]


def test_a_reduction_of_no_points_stays() -> None:
    program = parse_program(
        "program f (x)\nin x: f32[0] (1) cpu\nout y: f32[1] (1) cpu\nnest n0 (r0<0):\n"
        "%0:f32 = load x[r0]\n%1:f32 = sum %0 over r0\nstore y[0], %1\nreturn y"
    )
    nest = simplify_nest(program.nodes[0])
    assert [a.name for a in nest.axes] == ["r0"] and len(nest.body) == 3


@pytest.mark.parametrize(("other", "stays"), [("0.0", False), ("-0.0", True), ("1.0", True)])
def test_a_masked_load_selects_already(other: str, stays: bool) -> None:
    body = f"""
    %0:i64 = index p0
    %1:i64 = const 7
    %2:bool = lt %0, %1
    %3:f32 = load x[p0], mask=%2, other=0.0
    %4:f32 = const {other}
    %5:f32 = where %2, %3, %4
    store y[p0], %5"""
    assert any(" where " in line for line in simplified(body)) == stays


def test_wrapped_indices_are_plain_ones() -> None:
    """x[i] as PyTorch's indexing writes it, with i an arange: no mask, no wrap, no loaded index."""
    body = """
    %0:i64 = index p0
    %1:i64 = const 12
    %2:i64 = const 0
    %3:bool = lt %0, %2
    %4:i64 = add %0, %1
    %5:i64 = where %3, %4, %0
    %6:bool = ge %5, %2
    %7:bool = lt %5, %1
    %8:bool = and %6, %7
    %9:i64 = index %5
    %10:f32 = load x[%9], mask=%8, other=0.0
    store y[p0], %10"""
    assert simplified(body) == ["%10:f32 = load x[p0]", "store y[p0], %10"]


def test_concatenation_of_two_masked_halves_is_one_selection() -> None:
    body = """
    %0:i64 = index p0
    %1:i64 = const 7
    %2:bool = lt %0, %1
    %3:f32 = load x[p0], mask=%2, other=0.0
    %4:f32 = neg %3
    %5:f32 = const 0.0
    %6:f32 = where %2, %4, %5
    %7:bool = not %2
    %8:f32 = load x[-p0 + 11], mask=%7, other=0.0
    %9:f32 = where %7, %8, %5
    %10:f32 = where %2, %6, %9
    store y[p0], %10"""
    lines = simplified(body)
    assert lines[-2:] == ["%10:f32 = where %2, %4, %8", "store y[p0], %10"] and len(lines) == 9


def test_constants_fold_while_torch_traces_with_fake_tensors() -> None:
    body = "%0:f32 = const 3.0\n%1:f32 = neg %0\n%2:i64 = cast %1\nstore y[p0], %2"
    program = parse_program(f"program f ()\nout y: i64[4] (1) cpu\nnest n0 (p0<4):\n{body}\nreturn y")
    with FakeTensorMode():
        left = simplify_body(program.nodes[0].body, program.nodes[0].axes)
    assert [i.attr("value") for i in left] == [-3, None]


ONE_HOT = """
    %0:i64 = index r0
    %1:i64 = load t[p0]
    %2:bool = eq %0, %1
    %3:f32 = load x[{entry}]
    %4:f32 = const {zero}
    %5:f32 = where %2, %3, %4
    %6:f32 = sum %5 over r0
    store y[p0], %6"""


def one_hot(entry: str = "p0", zero: str = "0.0") -> Program:
    return parse_program(
        "program f (x, t)\nin x: f32[24] (1) cpu\nin t: i64[4] (1) cpu\nout y: f32[4] (1) cpu\n"
        f"nest n0 (p0<4, r0<6):{ONE_HOT.format(entry=entry, zero=zero)}\nreturn y"
    )


@pytest.mark.parametrize("value", [1.5, -0.0, float("inf"), float("nan")])
def test_the_sum_of_one_entry_a_row_is_the_entry(value: float) -> None:
    before = one_hot()
    nest = simplify_nest(before.nodes[0])
    assert [a.name for a in nest.axes] == ["p0"] and not nest.reductions
    after = Program(before.name, before.buffers, (nest,), before.inputs, before.outputs)
    inputs = [torch.full((24,), value), torch.tensor([0, 5, 6, -1])]
    (want,), (got,) = (evaluate_program(p, inputs) for p in (before, after))
    torch.testing.assert_close(got, want, equal_nan=True, rtol=0, atol=0)
    assert torch.equal(got.signbit(), want.signbit())


@pytest.mark.parametrize("op", ["sub", "add"])
def test_what_is_taken_from_every_entry_counts_as_often(op: str) -> None:
    text = ONE_HOT.format(entry="p0", zero="0.0").replace(
        "%6:f32 = sum %5 over r0", f"%c:f32 = load x[p0 + 4]\n    %s:f32 = {op} %5, %c\n    %6:f32 = sum %s over r0"
    )
    before = parse_program(
        "program f (x, t)\nin x: f32[24] (1) cpu\nin t: i64[4] (1) cpu\nout y: f32[4] (1) cpu\n"
        f"nest n0 (p0<4, r0<6):{text}\nreturn y"
    )
    nest = simplify_nest(before.nodes[0])
    assert [a.name for a in nest.axes] == ["p0"] and not nest.reductions
    after = Program(before.name, before.buffers, (nest,), before.inputs, before.outputs)
    inputs = [torch.randn(24), torch.tensor([0, 5, 6, -1])]
    (want,), (got,) = (evaluate_program(p, inputs) for p in (before, after))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("entry", "zero"), [("6*p0 + r0", "0.0"), ("p0", "1.0")])
def test_a_sum_of_more_than_one_entry_stays(entry: str, zero: str) -> None:
    assert simplify_nest(one_hot(entry, zero).nodes[0]).reductions
