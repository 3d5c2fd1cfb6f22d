"""Index algebra against brute force: every simplification is proved on all points of small axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusec.ir import index as ix
from fusec.ir.index import Expr, axis_symbol, bounds, delinearize, evaluate, floordiv, less_than, linearize, mod

EXTENTS = {"a": 2, "b": 3, "c": 4, "d": 5}
SYMBOLS = {name: axis_symbol(name, extent) for name, extent in EXTENTS.items()}
PROPERTY = settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

Points = dict[str, torch.Tensor]  # every point of the axes at once, flat
_GRID = torch.cartesian_prod(*(torch.arange(n) for n in EXTENTS.values()))
POINTS: Points = dict(zip(EXTENTS, _GRID.t().contiguous(), strict=True))


@dataclass(frozen=True)
class Both:
    """One random expression, as an Expr and as a function of points that follows its text."""

    expr: Expr
    value: Callable[[Points], torch.Tensor]
    text: str


def at(expr: Expr, points: Points = POINTS) -> torch.Tensor:
    """The values of an expression at every point."""
    return torch.zeros(len(_GRID), dtype=torch.int64) + evaluate(expr, points)


def symbol(name: str) -> Both:
    return Both(SYMBOLS[name], lambda p: p[name], name)


def constant(value: int) -> Both:
    return Both(ix.as_expr(value), lambda p: torch.full((len(_GRID),), value), str(value))


def combine(op: str, x: Both, y: Both) -> Both:
    text = f"({x.text} {op} {y.text})"
    if op == "+":
        return Both(x.expr + y.expr, lambda p: x.value(p) + y.value(p), text)
    if op == "-":
        return Both(x.expr - y.expr, lambda p: x.value(p) - y.value(p), text)
    return Both(x.expr * y.expr, lambda p: x.value(p) * y.value(p), text)


def divide(op: str, x: Both, d: int) -> Both:
    if op == "//":
        return Both(x.expr // d, lambda p: x.value(p) // d, f"({x.text} // {d})")
    return Both(x.expr % d, lambda p: x.value(p) % d, f"({x.text} % {d})")


leaves = st.one_of(st.sampled_from(sorted(EXTENTS)).map(symbol), st.integers(-7, 24).map(constant))
expressions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(combine, st.sampled_from("+-*"), inner, inner),
        st.builds(combine, st.just("*"), inner, st.integers(-6, 24).map(constant)),
        st.builds(divide, st.sampled_from(("//", "%")), inner, st.integers(1, 24)),
    ),
    max_leaves=8,
)


@PROPERTY
@given(expressions)
def test_simplified_expression_keeps_its_value(both: Both) -> None:
    assert torch.equal(at(both.expr), both.value(POINTS)), f"{both.text} became {both.expr}"


@PROPERTY
@given(expressions)
def test_bounds_hold_at_every_point(both: Both) -> None:
    lo, hi = bounds(both.expr)
    assert lo is not None and hi is not None
    values = both.value(POINTS)
    least, most = int(values.min()), int(values.max())
    assert lo <= least and most <= hi, f"{both.expr} in [{least}, {most}], claimed [{lo}, {hi}]"


@PROPERTY
@given(expressions, expressions)
def test_less_than_claims_only_what_holds(x: Both, y: Both) -> None:
    if less_than(x.expr, y.expr):
        assert bool((x.value(POINTS) < y.value(POINTS)).all())
    if ix.is_nonnegative(x.expr):
        assert bool((x.value(POINTS) >= 0).all())


@PROPERTY
@given(expressions, st.sampled_from(sorted(EXTENTS)), expressions)
def test_substitution_is_evaluation_at_the_new_value(both: Both, name: str, new: Both) -> None:
    # The new value must lie within the symbol's bounds, as every caller guarantees.
    wrapped = divide("%", new, EXTENTS[name])
    replaced = ix.substitute(both.expr, {name: wrapped.expr})
    assert torch.equal(at(replaced), both.value({**POINTS, name: wrapped.value(POINTS)}))


@PROPERTY
@given(expressions, st.integers(1, 24))
def test_quotient_and_remainder_recombine(both: Both, d: int) -> None:
    again = d * floordiv(both.expr, d) + mod(both.expr, d)
    assert torch.equal(at(again), both.value(POINTS))


@PROPERTY
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_delinearize_inverts_linearize(shape: list[int]) -> None:
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    coordinates = [axis_symbol(f"x{i}", n) for i, n in enumerate(shape)]
    assert delinearize(linearize(coordinates, strides), shape) == tuple(coordinates)


@PROPERTY
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_a_flat_position_has_row_major_coordinates(shape: list[int]) -> None:
    size = math.prod(shape)
    coordinates = delinearize(axis_symbol("i", size), shape)
    expected = [list(c) for c in itertools.product(*(range(n) for n in shape))]
    assert [[evaluate(c, {"i": i}) for c in coordinates] for i in range(size)] == expected


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        # (d*q + x) // d  ->  q + x // d
        (lambda a, r, s: (6 * a + r) // 3, "2*a + r//3"),
        # x // d  ->  c    if floor(x/d) is c over the whole range
        (lambda a, r, s: (r + 100) // 200, "0"),
        (lambda a, r, s: (s - 8) // 8, "-1"),
        # (g*x + y) // (g*d)  ->  x // d    if 0 <= y < g
        (lambda a, r, s: (8 * r + s) // 64, "r//8"),
        (lambda a, r, s: (64 * a + 8 * r + s) // 16, "4*a + r//2"),
        (lambda a, r, s: (4 * r + 3) // 8, "r//2"),
        # (x // d) // m  ->  x // (d*m)
        (lambda a, r, s: (r // 3) // 5, "r//15"),
        # (x % (d*m)) // d  ->  (x // d) % m
        (lambda a, r, s: (r % 12) // 4, "(r//4)%3"),
        # (d*q + x) % d  ->  x % d
        (lambda a, r, s: (10 * r + 7) % 5, "2"),
        # x % d  ->  x    if 0 <= x < d
        (lambda a, r, s: (100 * a + r) % 100, "r"),
        # (g*x + y) % (g*d)  ->  g*(x % d) + y    if 0 <= y < g
        (lambda a, r, s: (8 * r + s) % 64, "8*(r%8) + s"),
        # (c*(x % (d*m)) + y) % d  ->  (c*x + y) % d
        (lambda a, r, s: (r % 12 + a) % 4, "(a + r)%4"),
        # d*(x // d) + x % d  ->  x
        (lambda a, r, s: 7 * (r // 7) + r % 7, "r"),
        (lambda a, r, s: 14 * (r // 7) + 2 * (r % 7) + a, "2*r + a"),
    ],
)
def test_rule(expr: Callable[[Expr, Expr, Expr], Expr], expected: str) -> None:
    assert str(expr(axis_symbol("a", 64), axis_symbol("r", 100), axis_symbol("s", 8))) == expected


def test_equal_polynomials_are_equal_values() -> None:
    a, b = SYMBOLS["a"], SYMBOLS["b"]
    assert (a + b) * (a + b) == a * a + 2 * a * b + b * b
    assert hash(3 * a + b) == hash(b + a + a + a)
    assert len({a + b - b, a}) == 1


def test_axis_of_extent_one_is_zero() -> None:
    assert axis_symbol("a", 1) == 0


def test_symbols_of_one_name_and_other_bounds_differ() -> None:
    assert axis_symbol("a", 4) != axis_symbol("a", 8)


def test_division_by_zero_names_the_expression() -> None:
    with pytest.raises(ZeroDivisionError, match=r"a // 0"):
        floordiv(SYMBOLS["a"], 0)
    with pytest.raises(ZeroDivisionError, match=r"a % -3"):
        mod(SYMBOLS["a"], -3)


def test_symbolic_sizes_divide_and_compare() -> None:
    n = ix.size_symbol("n", 1)
    p, r = axis_symbol("p", 8), axis_symbol("r", n)
    assert (p * n + r) // n == p
    assert (p * n + r) % n == r
    assert less_than(p * n + r, 8 * n)
    assert not less_than(p * n + r, 7 * n)
    assert floordiv(0, ix.size_symbol("m")) == 0


N = ix.size_symbol("n", 1, None)
SYMBOLIC = {"p": axis_symbol("p", 3), "r": axis_symbol("r", N), "n": N}
terms = st.tuples(st.integers(-4, 4), st.lists(st.sampled_from(sorted(SYMBOLIC)), max_size=2))


@PROPERTY
@given(st.lists(terms, max_size=4), st.sampled_from((1, 2, 3, "n", "2n")))
def test_symbolic_claims_hold_for_every_size(polynomial: list[tuple[int, list[str]]], divisor: int | str) -> None:
    expr = ix.as_expr(0)
    for coefficient, names in polynomial:
        expr = expr + coefficient * ix.as_expr(ix.product(SYMBOLIC[n] for n in names))
    den = N if divisor == "n" else 2 * N if divisor == "2n" else ix.as_expr(int(divisor))
    quotient, remainder, nonnegative = floordiv(expr, den), mod(expr, den), ix.is_nonnegative(expr)
    for n, p in itertools.product(range(1, 6), range(3)):
        for r in range(n):
            point = {"p": p, "r": r, "n": n}
            value, d = evaluate(expr, point), evaluate(den, point)
            assert value >= 0 or not nonnegative, f"{expr} is {value} at {point}"
            assert (evaluate(quotient, point), evaluate(remainder, point)) == divmod(value, d), f"{expr} by {den}"


def test_value_symbols_are_reported() -> None:
    row = ix.value_symbol("%3", 99)
    address = 64 * row + SYMBOLS["a"]
    assert bounds(address) == (0, 64 * 99 + 1)
    assert {(s.name, s.kind) for s in ix.symbols_of(address)} == {("%3", "value"), ("a", "axis")}


def test_evaluates_on_tensors_that_broadcast() -> None:
    a, c = torch.arange(2).view(2, 1), torch.arange(4).view(1, 4)
    assert evaluate(4 * SYMBOLS["a"] + SYMBOLS["c"], {"a": a, "c": c}).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_text_needs_parentheses_only_where_python_does() -> None:
    r, s = axis_symbol("r", 100), axis_symbol("s", 50)
    for expr in (r // 3 + s % 7, 2 * (r // 3), -(r // 3) + 100, (r // 3) * (s // 7), (r + s) // 3 % 5, -(r % 3) + s):
        for point in ({"r": 17, "s": 23}, {"r": 99, "s": 49}, {"r": 0, "s": 0}):
            assert eval(str(expr), {}, dict(point)) == evaluate(expr, point), str(expr)
