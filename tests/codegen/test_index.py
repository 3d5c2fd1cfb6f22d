"""Index text against the algebra: every printed expression, run as Python, gives the expression's value."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusec.codegen.index import IndexPrinter, fits_int32
from fusec.ir.index import Expr, Sym, as_expr, axis_symbol, evaluate

EXTENTS = {"a": 5, "b": 7, "c": 64}


def printer() -> IndexPrinter:
    return IndexPrinter({}, lambda s: s.name, lambda s: False)


class _Device:
    """Stand-ins for the helpers that negative numerators need."""

    floordiv = staticmethod(lambda x, y: x // y)
    mod = staticmethod(lambda x, y: x % y)


def expressions() -> st.SearchStrategy[Expr]:
    leaves = st.sampled_from([axis_symbol(n, e) for n, e in EXTENTS.items()]) | st.integers(-70, 70).map(as_expr)

    def extend(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
        return st.one_of(
            st.tuples(inner, inner).map(lambda p: p[0] + p[1]),
            st.tuples(inner, inner).map(lambda p: p[0] - p[1]),
            st.tuples(inner, st.integers(-9, 9)).map(lambda p: p[0] * p[1]),
            st.tuples(inner, st.integers(1, 12)).map(lambda p: p[0] // p[1]),
            st.tuples(inner, st.integers(1, 12)).map(lambda p: p[0] % p[1]),
        )

    return st.recursive(leaves, extend, max_leaves=8)


@given(expressions(), st.tuples(*(st.integers(0, e - 1) for e in EXTENTS.values())))
def test_text_has_the_expressions_value(expr: Expr, point: tuple[int, ...]) -> None:
    env = dict(zip(EXTENTS, point, strict=True))
    text = printer().text(expr).text
    assert eval(text, {"device": _Device, **env}) == evaluate(expr, env), text


BIG = {"p": 70_000, "q": 50_000, "r": 3}


class _Wide(np.ndarray):
    """An int32 array that becomes int64 through `.to(tl.int64)`, as a Triton tensor does."""

    def to(self, dtype: type) -> np.ndarray:
        return self.astype(dtype)


@given(
    st.lists(st.sampled_from([1, 3, 50_000, 65_536, 2**31 - 5, 2**33, -7, -65_536]), min_size=3, max_size=3),
    st.sampled_from([0, 5, 2**30, 2**31 - 1, 2**31, -(2**31), 2**40]),
    st.tuples(*(st.sampled_from([0, 1, e - 1]) for e in BIG.values())),
)
def test_32_bit_arithmetic_never_loses_a_value(factors: list[int], offset: int, point: tuple[int, ...]) -> None:
    expr = as_expr(offset)
    for (name, extent), factor in zip(BIG.items(), factors, strict=True):
        expr = expr + axis_symbol(name, extent) * factor
    env = dict(zip(BIG, point, strict=True))
    tensors = {n: np.array([v], dtype=np.int32).view(_Wide) for n, v in env.items()}
    text = printer().text(expr).text

    class tl:
        int64 = np.int64

    with np.errstate(over="ignore"):
        # NumPy refuses literals past int32 where Triton makes them 64-bit.
        value = eval(_wide_literals(text), {"tl": tl, "np": np, **tensors})
    assert int(np.asarray(value).item()) == evaluate(expr, env), text


def _wide_literals(text: str) -> str:
    words = text.replace("(", "( ").replace(")", " )").split(" ")
    return " ".join(f"np.int64({w})" if w.lstrip("-").isdigit() and abs(int(w)) >= 2**31 else w for w in words)


@pytest.mark.parametrize("value, fits", [(2**31 - 1, True), (2**31, False), (-(2**31), True), (-(2**31) - 1, False)])
def test_bounds_of_32_bits(value: int, fits: bool) -> None:
    assert fits_int32(as_expr(value)) is fits


def test_an_unbounded_value_is_64_bit() -> None:
    unknown = Expr((((Sym("v", "value", 0, None),), 1),))
    assert not fits_int32(unknown)
    assert printer().text(unknown * 4).text == "4 * v.to(tl.int64)"
    wide = IndexPrinter({}, lambda s: s.name, lambda s: True)
    assert wide.text(unknown * 4).text == "4 * v", "no cast of what is 64-bit already"


def test_terms_read_like_row_major_addresses() -> None:
    row, col = axis_symbol("row", 64), axis_symbol("col", 4096)
    assert printer().text(col + row * 4096).text == "4096 * row + col"
    assert printer().text(1056 - row * 33 + col).text == "col - 33 * row + 1056"
    assert printer().text((col // 8) * 3 + col % 8).text == "3 * (col // 8) + col % 8"
