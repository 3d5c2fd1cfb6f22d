"""Expressions over sizes: what a symbolic extent is worth, and how an index depends on it.

Enters: Exprs over axes and size symbols. Leaves: numbers for predictions, exact facts for everything else.

    hint_of(64*s0)                        ->  64 * (s0 at the first call)     a prediction
    affine(64*s0*p0 + s0 + p1)            ->  {p0: 64*s0, p1: 1}, s0          exact
    exact_quotient(12*s0, s0)             ->  12                              exact
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

from fusec.ir.index import (
    Atom,
    Expr,
    FloorDiv,
    IndexLike,
    Mod,
    Sym,
    as_expr,
    as_int,
    atom_expr,
    floordiv,
    is_nonnegative,
    mod,
    product,
    substitute,
    symbols_of,
)

__all__ = [
    "affine",
    "as_symbol",
    "at_hints",
    "exact_quotient",
    "has_sizes",
    "hint_of",
    "magnitude",
    "plain",
    "size_names",
    "size_text",
    "sizes_in",
    "solve_for_size",
    "solve_for_sizes",
]

T = TypeVar("T")

UNKNOWN = 64  # what a size without a hint is taken for


@lru_cache(maxsize=65536)
def has_sizes(expr: IndexLike) -> bool:
    """True when the expression holds a size symbol, in the bound of an axis too."""
    return any(s.kind == "size" or (isinstance(s.hi, Expr) and has_sizes(s.hi)) for s in symbols_of(expr))


def sizes_in(exprs: Iterable[IndexLike]) -> list[Sym]:
    """Size symbols in order of first appearance."""
    found: dict[Sym, None] = {}
    for expr in exprs:
        found.update(dict.fromkeys(sorted((s for s in symbols_of(expr) if s.kind == "size"), key=lambda s: s.name)))
    return list(found)


def size_names(exprs: Iterable[IndexLike]) -> tuple[str, ...]:
    """Names of the size symbols in expressions, in order of first appearance."""
    return tuple(dict.fromkeys(s.name for s in sizes_in(exprs)))


@lru_cache(maxsize=65536)
def at_hints(expr: IndexLike) -> Expr:
    """The expression with sizes replaced by their hints, in the bounds of axes too."""
    mapping: dict[str, IndexLike] = {}
    for symbol in symbols_of(expr):
        if symbol.kind == "size":
            mapping[symbol.name] = _hint(symbol)
        elif isinstance(symbol.hi, Expr) and has_sizes(symbol.hi):
            hi = hint_of(symbol.hi)
            mapping[symbol.name] = atom_expr(Sym(symbol.name, symbol.kind, symbol.lo, max(hi, 0)))
    return substitute(expr, mapping)


def _hint(symbol: Sym) -> int:
    if symbol.hint is not None:
        return symbol.hint
    top = symbol.hi if isinstance(symbol.hi, int) else UNKNOWN
    return max(min(UNKNOWN, top), symbol.lo)


def hint_of(expr: IndexLike) -> int:
    """The value of an expression over sizes at the first call: for predictions alone."""
    known = as_int(expr)
    if known is not None:
        return known
    value = as_int(at_hints(expr))
    assert value is not None, f"{expr} depends on more than sizes"
    return value


def _of_sizes(atom: Atom) -> bool:
    if isinstance(atom, Sym):
        return atom.kind == "size"
    assert isinstance(atom, FloorDiv | Mod)
    return all(s.kind == "size" for s in symbols_of(atom.num) | symbols_of(atom.den))


@lru_cache(maxsize=65536)
def affine(expr: Expr) -> tuple[dict[Sym, IndexLike], IndexLike] | None:
    """(coefficient of each axis or value, offset), both over sizes; None when it is not linear in them."""
    found: dict[Sym, IndexLike] = {}
    offset: IndexLike = 0
    for monomial, coefficient in expr.terms:
        varying = [a for a in monomial if not _of_sizes(a)]
        if len(varying) > 1 or (varying and not isinstance(varying[0], Sym)):
            return None
        sizes = tuple(a for a in monomial if a is not varying[0]) if varying else monomial
        factor: IndexLike = Expr(((sizes, coefficient),)) if sizes else coefficient
        if not varying:
            offset = plain(offset + factor)
            continue
        (symbol,) = varying
        assert isinstance(symbol, Sym)
        found[symbol] = plain(found.get(symbol, 0) + factor)
    return found, offset


def plain(expr: IndexLike) -> IndexLike:
    """An int where the expression is constant."""
    known = as_int(expr)
    return expr if known is None else known


@lru_cache(maxsize=65536)
def exact_quotient(num: IndexLike, den: IndexLike) -> IndexLike | None:
    """num / den where den divides num for all sizes; None when that is not proved."""
    if den == 0 or mod(num, den) != 0:
        return None
    return plain(floordiv(num, den))


def as_symbol(expr: IndexLike) -> str | None:
    """The name of the size that the expression is; None when it is anything else."""
    atom = expr.single_atom() if isinstance(expr, Expr) else None
    return atom.name if isinstance(atom, Sym) and atom.kind == "size" else None


def solve_for_size(expr: IndexLike, known: Container[str]) -> tuple[str, IndexLike, IndexLike] | None:
    """(s, c, r) with expr = c*s + r, where s is the only size not known and neither c nor r holds it."""
    unknown = [s for s in symbols_of(expr) if s.kind == "size" and s.name not in known]
    if len(unknown) != 1 or isinstance(expr, int):
        return None
    (symbol,) = unknown
    rest = plain(substitute(expr, {symbol.name: 0}))
    factor = exact_quotient(expr - rest, atom_expr(symbol))
    if factor is None or factor == 0 or symbol in symbols_of(factor):
        return None
    return symbol.name, factor, rest


def solve_for_sizes(
    values: Sequence[tuple[IndexLike, T]], known: Collection[str] = ()
) -> Iterator[tuple[str, T, IndexLike, IndexLike]]:
    """(s, where, c, r) for every size that values determine, in an order in which c and r hold sizes found before.

    values: expressions, and where the value of each is found.    Sizes that stand alone come first, then c*s + r.
    """
    found = set(known)
    for alone in (True, False):
        for expr, where in values:
            solved = solve_for_size(expr, found)
            if solved is not None and not (alone and as_symbol(expr) is None):
                name, factor, rest = solved
                found.add(name)
                yield name, where, factor, rest


def size_text(expr: IndexLike, names: Mapping[str, str]) -> str:
    """A Python expression for it; names: the variable that holds each size."""
    renamed = {s.name: Sym(names[s.name], s.kind, s.lo, s.hi, s.hint) for s in symbols_of(expr)}
    changed = {name: atom_expr(symbol) for name, symbol in renamed.items() if name != symbol.name}
    return str(substitute(expr, changed))


@lru_cache(maxsize=16384)
def magnitude(expr: IndexLike) -> IndexLike | None:
    """An expression over sizes that |expr| never exceeds; None where a symbol has no upper bound.

    64*s0*p0 + p1, p0 < s1, p1 < 64    ->    64*s0*(s1 - 1) + 63
    """
    total: IndexLike = 0
    for monomial, coefficient in as_expr(expr).terms:
        term: IndexLike = abs(coefficient)
        for atom in monomial:
            factor = _largest(atom)
            if factor is None:
                return None
            term = product((term, factor))
        total = plain(as_expr(total) + term)
    return total


def _largest(atom: Atom) -> IndexLike | None:
    if isinstance(atom, Sym):
        return atom.hi if atom.kind != "size" else atom_expr(atom) if atom.lo >= 0 else None
    assert isinstance(atom, FloorDiv | Mod)
    if any(s.kind != "size" for s in symbols_of(atom.den)):
        return None
    if isinstance(atom, Mod):
        return plain(atom.den - 1)
    largest = magnitude(atom.num)
    return None if largest is None else plain(floordiv(largest, atom.den) + (0 if is_nonnegative(atom.num) else 1))
