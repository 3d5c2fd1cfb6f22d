"""Expressions over sizes: predictions at hints, exact facts for every size."""

from __future__ import annotations

import itertools

import pytest

from fusec.ir.index import Expr, SymbolicSize, axis_symbol, evaluate, linearize, size_symbol
from fusec.ir.sizes import affine, at_hints, exact_quotient, hint_of, magnitude, size_text, solve_for_size

S, T = size_symbol("s0", 2, None, 16), size_symbol("s1", 2, None, 5)
P, Q = axis_symbol("p0", S), axis_symbol("p1", 64)


def test_a_hint_is_the_value_at_the_first_call() -> None:
    assert hint_of(S * T + 1) == 81 and hint_of(7) == 7
    assert str(at_hints(64 * S * Q + P)) == "1024*p1 + p0"
    assert hint_of(size_symbol("u0", 0, 40)) == 40  # no hint: within its range


def test_strides_over_sizes() -> None:
    found = affine(linearize((P, Q), (64 * T, 1), S))
    assert found is not None and {s.name: c for s, c in found[0].items()} == {"p0": 64 * T, "p1": 1}
    assert found[1] == S and affine(P * Q) is None and affine(P // 3) is None


@pytest.mark.parametrize(
    ("num", "den", "quotient"),
    [(12 * S, S, 12), (12 * S * T, 4 * S, 3 * T), (S, 2, None), (S * S + S, S, S + 1), (12, 4, 3), (S, 0, None)],
)
def test_a_quotient_is_exact_for_every_size(num: Expr, den: Expr, quotient: Expr | None) -> None:
    assert exact_quotient(num, den) == quotient


@pytest.mark.parametrize(
    "expr", [64 * S * P + Q, (P * T + Q) // S, (P * 64 + Q) % (S + 1), P - 3 * Q, (P - T) // 4, S - P]
)
def test_no_value_exceeds_the_magnitude(expr: Expr) -> None:
    bound = magnitude(expr)
    assert bound is not None
    for s, t in itertools.product((2, 3, 7), (2, 5)):
        values = [evaluate(expr, {"s0": s, "s1": t, "p0": p, "p1": q}) for p in range(s) for q in range(64)]
        assert max(map(abs, values)) <= evaluate(bound, {"s0": s, "s1": t})


def test_sizes_are_solved_for() -> None:
    assert solve_for_size(3 * S + 2, ()) == ("s0", 3, 2)
    assert solve_for_size(S * T + T, {"s1"}) == ("s0", T, T)
    assert solve_for_size(S * T, ()) is None and solve_for_size(S // 2, ()) is None


def test_text_is_python() -> None:
    expr = (S + 3) // 2 * T - 4 * (S % (T + 1)) + 1
    assert eval(size_text(expr, {"s0": "n", "s1": "m"}), {"n": 9, "m": 4}) == evaluate(expr, {"s0": 9, "s1": 4})


def test_questions_about_values_are_errors() -> None:
    for ask in (lambda: S < 3, lambda: int(S), lambda: bool(S), lambda: range(S), lambda: S / 2):
        with pytest.raises(SymbolicSize, match="s0"):
            ask()
    assert Expr(()) < 1 and int(S - S + 4) == 4


def test_quotient_and_remainder_join_under_a_factor_of_sizes() -> None:
    m = axis_symbol("m", S * T)
    assert S * (m // S) + m % S == m
    assert 8 * S * (m // 8) + S * (m % 8) == S * m
