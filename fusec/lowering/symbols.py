"""torch's symbolic numbers as index expressions.

Enters: an int or a SymInt, whose expression is sympy over the symbols of a ShapeEnv. Leaves: an int or an Expr whose
size symbols carry the ShapeEnv's ranges and, as hints, the values at the first call. No guard is added.

    SymInt(64*s77 + 1), s77 in [2, inf), 16 at the first call    ->    64*s77 + 1

A SymFloat becomes a `SymbolicFloat`, which a nest computes from its sizes in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch

from fusec.ir.index import Expr, IndexLike, as_expr, as_int, floordiv, is_nonnegative, mod, size_symbol, symbols_of
from fusec.ir.sizes import as_symbol, hint_of, plain
from fusec.ir.types import Relation

# SymNode, ShapeEnv (var_to_range, its hints, _maybe_evaluate_static), torch.utils._sympy: checked with torch 2.13.0.

_UNBOUNDED = 2**62  # a bound past this says nothing

__all__ = ["NotSymbolic", "SymbolicFloat", "extent_of", "new_size", "number_of", "stride_of", "symbolic"]


class NotSymbolic(Exception):
    """A symbolic number that kernels and wrappers cannot compute; the message says which."""


@dataclass(frozen=True)
class SymbolicFloat:
    """A float that is computed from sizes; expr is sympy over names of size symbols, sizes those symbols."""

    expr: Any
    sizes: tuple[tuple[str, Expr], ...]

    def __float__(self) -> float:
        raise NotSymbolic(f"{self.expr} is not known at compile time")


def symbolic(value: Any) -> bool:
    """True for torch's symbolic numbers."""
    return isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool)


def number_of(value: Any) -> Any:
    """A symbolic number as an Expr, a SymbolicFloat or a Relation; anything else as it is."""
    if isinstance(value, torch.SymInt):
        return extent_of(value)
    if isinstance(value, torch.SymBool):
        return _relation(value.node)
    if isinstance(value, torch.SymFloat):
        node = value.node
        found = tuple((str(s), as_expr(_symbol(s, node.shape_env))) for s in sorted(node.expr.free_symbols, key=str))
        return SymbolicFloat(node.expr, found) if node.expr.free_symbols else float(node.expr)
    return value


def _relation(node: Any) -> Relation | bool:
    """A comparison; True or False where the ranges decide it."""
    operators = {"GreaterThan": ">=", "LessThan": "<=", "StrictGreaterThan": ">", "StrictLessThan": "<"}
    op = {**operators, "Equality": "==", "Unequality": "!="}.get(type(node.expr).__name__)
    if str(node.expr) in ("True", "False"):
        return str(node.expr) == "True"
    if op is None:
        raise NotSymbolic(f"the truth of {node.expr}")
    left, right = (as_expr(_translate(e, node.shape_env, strides=False)) for e in node.expr.args)
    proofs = {">=": left - right, "<=": right - left, ">": left - right - 1, "<": right - left - 1}
    return True if op in proofs and is_nonnegative(proofs[op]) else Relation(op, plain(left), plain(right))


def new_size(value: Any, known: Container[str]) -> str | None:
    """The name of the size that a number introduces: it is not known before the call that returns it."""
    name = as_symbol(extent_of(value)) if isinstance(value, torch.SymInt) else None
    return None if name is None or name in known else name


def extent_of(value: Any) -> IndexLike:
    """An extent. NotSymbolic for an expression that is no polynomial with floor divisions and remainders."""
    if not isinstance(value, torch.SymInt):
        return int(value)
    node = value.node
    found = plain(_translate(node.expr, node.shape_env, strides=False))
    return found if as_int(found) is not None or as_symbol(found) else _guarded(value, found)


def _guarded(value: Any, expr: IndexLike) -> IndexLike:
    """0 or 1 where torch's guards say so: a tensor of extent n // 2 that was broadcast has extent 1."""
    env = value.node.shape_env
    few = hint_of(expr)
    if few not in (0, 1) or any(s.hint is None for s in symbols_of(expr)):
        return expr
    return few if str(env._maybe_evaluate_static((value == few).node.expr)) == "True" else expr


def stride_of(value: Any) -> IndexLike:
    """A stride; max(1, n), where n is an extent of the same tensor, is n: with n = 0 no element has an address."""
    if not isinstance(value, torch.SymInt):
        return int(value)
    node = value.node
    return plain(_translate(node.expr, node.shape_env, strides=True))


def _symbol(symbol: Any, env: Any) -> IndexLike:
    ranges = env.var_to_range.get(symbol)
    lo = _bound(ranges.lower) if ranges is not None else None
    hi = _bound(ranges.upper) if ranges is not None else None
    value = _hints(env).get(symbol)
    if lo is not None and lo == hi:
        return lo
    hi = hi if hi is None or hi < _UNBOUNDED else None
    return size_symbol(str(symbol), -_UNBOUNDED if lo is None else lo, hi, None if value is None else int(value))


def _hints(env: Any) -> Any:
    """Values at the first call by symbol; the attribute's name before torch 2.12 was another one."""
    return env.backed_var_to_val if hasattr(env, "backed_var_to_val") else env.var_to_val


def _bound(value: Any) -> int | None:
    return int(value) if value.is_Integer else None  # an infinity is no integer


# By name, because sympy need not be imported for a graph that has no symbols.
_DIVISIONS: dict[str, Callable[[IndexLike, IndexLike], Expr]] = {
    "FloorDiv": floordiv,
    "CleanDiv": floordiv,
    "CeilDiv": lambda a, b: floordiv(a + b - 1, b),
    "Mod": mod,
    "PythonMod": mod,
}


def _translate(expr: Any, env: Any, *, strides: bool) -> IndexLike:
    """A sympy expression over the symbols of a ShapeEnv."""

    def visit(e: Any) -> IndexLike:
        kind = type(e).__name__
        if e.is_Integer:
            return int(e)
        if e.is_Symbol:
            return _symbol(e, env)
        if kind == "Add":
            return reduce(lambda a, b: a + b, map(visit, e.args), as_expr(0))
        if kind == "Mul":
            return reduce(lambda a, b: a * b, map(visit, e.args), as_expr(1))
        if kind in ("Pow", "PowByNatural") and e.args[1].is_Integer and int(e.args[1]) >= 0:
            return reduce(lambda a, b: a * b, [visit(e.args[0])] * int(e.args[1]), as_expr(1))
        if kind == "Identity":
            return visit(e.args[0])
        if kind == "Max":
            return _largest([visit(a) for a in e.args], e, strides)
        if kind == "Min":
            return -as_expr(_largest([-as_expr(visit(a)) for a in e.args], e, False))
        if kind == "ModularIndexing":
            return mod(divided(floordiv, e.args[0], e.args[1], e), visit(e.args[2]))
        if kind in _DIVISIONS:
            return divided(_DIVISIONS[kind], e.args[0], e.args[1], e)
        raise NotSymbolic(f"the size {e} is not a polynomial with divisions")

    def divided(division: Callable[[IndexLike, IndexLike], Expr], a: Any, b: Any, shown: Any) -> Expr:
        denominator = visit(b)
        if not is_nonnegative(as_expr(denominator) - 1):
            raise NotSymbolic(f"the size {shown} divides by what may be 0")
        return division(visit(a), denominator)

    return visit(expr)


def _largest(values: Sequence[IndexLike], shown: Any, strides: bool) -> IndexLike:
    """The value that is proved to be the largest; in strides, n of max(1, n)."""
    for value in values:
        if all(is_nonnegative(as_expr(value) - other) for other in values):
            return value
    rest = [v for v in values if v != 1]
    if strides and len(rest) == 1 and is_nonnegative(as_expr(rest[0])):
        return rest[0]
    raise NotSymbolic(f"which part of the size {shown} is the largest depends on its sizes")
