"""Index algebra: integer expressions over axes, sizes and loaded values.

Enters: axis symbols, Python ints. Leaves: canonical, hashable `Expr` values.

    p = axis_symbol("p0", 64); r = axis_symbol("r0", 4096)
    (4096 * p + r) // 4096   ->  p0        # because 0 <= r0 < 4096
    (4096 * p + r) % 4096    ->  r0
    (10 * p + 7) % 5         ->  2

An `Expr` is a polynomial with integer coefficients over atoms. An atom is a symbol (an axis, a
size or an SSA value used as an index), a floor division or a remainder. Every symbol carries its own
inclusive bounds, so simplification needs no context and is memoised on the expression alone.
Expressions are built canonical: equal polynomials over equal atoms are equal objects' values.

Why not sympy: building costs about 60 times as much there, substitution 20 times, `floor` and `Mod` several
hundred times (medians over 300 fresh addresses), and they do not use ranges. The rules needed are few:

Rules (d, m > 0; x an expression; each is proved against brute force in tests/ir/test_index.py):

    (d*q + x) // d            ->  q + x // d
    x // d                    ->  c              if floor(x/d) is c over the whole range of x
    (g*x + y) // (g*d)        ->  x // d         if 0 <= y < g
    (x // d) // m             ->  x // (d*m)
    (x % (d*m)) // d          ->  (x // d) % m
    (d*q + x) % d             ->  x % d
    x % d                     ->  x              if 0 <= x < d
    (g*x + y) % (g*d)         ->  g*(x % d) + y  if 0 <= y < g
    (c*(x % (d*m)) + y) % d   ->  (c*x + y) % d
    d*(x // d) + x % d        ->  x
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from math import gcd
from typing import Any, Union

__all__ = [
    "Atom",
    "Expr",
    "FloorDiv",
    "IndexLike",
    "Mod",
    "Sym",
    "SymbolicSize",
    "as_expr",
    "as_int",
    "atom_expr",
    "axis_symbol",
    "bounds",
    "delinearize",
    "evaluate",
    "floordiv",
    "is_nonnegative",
    "less_than",
    "linearize",
    "mod",
    "product",
    "size_symbol",
    "substitute",
    "symbols_of",
    "value_symbol",
]


class Atom:
    """An indivisible factor of a monomial: a symbol, a floor division or a remainder."""

    __slots__ = ("_hash", "key")
    key: str
    _hash: int

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Atom) and self.key == other.key)

    def __repr__(self) -> str:
        return self.key


class Sym(Atom):
    """A symbol with inclusive bounds; `hi` is None when nothing is known above, or a symbolic Expr.

    kind: "axis" (a loop variable), "size" (a symbolic extent, constant within a launch) or "value"
    (an SSA value of an integer dtype, named like the value, used as an index).
    hint: of a size, its value at the first call; for predictions alone, never for what must be true.
    """

    __slots__ = ("hi", "hint", "kind", "lo", "name")

    def __init__(self, name: str, kind: str, lo: int, hi: int | Expr | None, hint: int | None = None) -> None:
        self.name, self.kind, self.lo, self.hi, self.hint = name, kind, lo, hi, hint
        self.key = name
        self._hash = hash((name, lo, hi))

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Sym)
            and self.name == other.name
            and self.hi == other.hi
            and self.lo == other.lo
            and self.hint == other.hint
        )

    __hash__ = Atom.__hash__


class FloorDiv(Atom):
    """floor(num / den); den > 0."""

    __slots__ = ("den", "num")

    def __init__(self, num: Expr, den: Expr) -> None:
        self.num, self.den = num, den
        self.key = f"{_operand(num)}//{_operand(den)}"
        self._hash = hash(("//", num, den))

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, FloorDiv) and self.num == other.num and self.den == other.den)

    __hash__ = Atom.__hash__


class Mod(Atom):
    """num - den * floor(num / den), in [0, den); den > 0."""

    __slots__ = ("den", "num")

    def __init__(self, num: Expr, den: Expr) -> None:
        self.num, self.den = num, den
        self.key = f"{_operand(num)}%{_operand(den)}"
        self._hash = hash(("%", num, den))

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Mod) and self.num == other.num and self.den == other.den)

    __hash__ = Atom.__hash__


Monomial = tuple[Atom, ...]
IndexLike = Union[int, "Expr"]


def _monomial_key(monomial: Monomial) -> str:
    return "*".join(a.key for a in monomial)


class SymbolicSize(TypeError):
    """A question that only a number answers was asked of an expression over sizes."""


class Expr:
    """An integer polynomial over atoms. Immutable and hashable; build with + - * // % on other Exprs.

    An order among expressions depends on values: `<` and its like, int() and bool() ask for a constant and are a
    SymbolicSize error otherwise. `less_than` and `is_nonnegative` answer what the ranges prove.
    """

    __slots__ = ("_hash", "terms")
    terms: tuple[tuple[Monomial, int], ...]

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        self.terms = terms
        self._hash = hash(terms)

    @property
    def is_constant(self) -> bool:
        return not self.terms or (len(self.terms) == 1 and not self.terms[0][0])

    @property
    def constant(self) -> int:
        """The constant term."""
        for monomial, coefficient in self.terms:
            if not monomial:
                return coefficient
        return 0

    @property
    def is_simple(self) -> bool:
        """True for a constant or one symbol with coefficient 1: prints without parentheses."""
        if self.is_constant:
            return True
        ((monomial, coefficient),) = self.terms if len(self.terms) == 1 else (((), 0),)
        return coefficient == 1 and len(monomial) == 1 and isinstance(monomial[0], Sym)

    def single_atom(self) -> Atom | None:
        """The atom a when this expression is exactly `a`."""
        if len(self.terms) == 1:
            monomial, coefficient = self.terms[0]
            if coefficient == 1 and len(monomial) == 1:
                return monomial[0]
        return None

    def atoms(self) -> Iterator[Atom]:
        for monomial, _ in self.terms:
            yield from monomial

    def linear(self) -> dict[Sym, int] | None:
        """{symbol: coefficient} of the non-constant terms, or None if some term is not int * symbol."""
        result: dict[Sym, int] = {}
        for monomial, coefficient in self.terms:
            if not monomial:
                continue
            if len(monomial) != 1 or not isinstance(monomial[0], Sym):
                return None
            result[monomial[0]] = coefficient
        return result

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if isinstance(other, int):
            return self.is_constant and self.constant == other
        return isinstance(other, Expr) and self._hash == other._hash and self.terms == other.terms

    def __add__(self, other: IndexLike) -> Expr:
        return _add(self, as_expr(other))

    __radd__ = __add__

    def __neg__(self) -> Expr:
        return Expr(tuple((m, -c) for m, c in self.terms))

    def __sub__(self, other: IndexLike) -> Expr:
        return _add(self, -as_expr(other))

    def __rsub__(self, other: IndexLike) -> Expr:
        return _add(as_expr(other), -self)

    def __mul__(self, other: IndexLike) -> Expr:
        return _mul(self, as_expr(other))

    __rmul__ = __mul__

    def __floordiv__(self, other: IndexLike) -> Expr:
        return floordiv(self, other)

    def __rfloordiv__(self, other: IndexLike) -> Expr:
        return floordiv(other, self)

    def __mod__(self, other: IndexLike) -> Expr:
        return mod(self, other)

    def __rmod__(self, other: IndexLike) -> Expr:
        return mod(other, self)

    def __int__(self) -> int:
        if not self.is_constant:
            raise SymbolicSize(f"{self} is not known at compile time")
        return self.constant

    __index__ = __int__

    def __float__(self) -> float:
        return float(int(self))

    def __bool__(self) -> bool:
        return bool(int(self))

    def __lt__(self, other: IndexLike) -> bool:
        return int(self) < int(other)

    def __le__(self, other: IndexLike) -> bool:
        return int(self) <= int(other)

    def __gt__(self, other: IndexLike) -> bool:
        return int(self) > int(other)

    def __ge__(self, other: IndexLike) -> bool:
        return int(self) >= int(other)

    def __truediv__(self, other: float) -> float:
        return int(self) / other

    def __rtruediv__(self, other: float) -> float:
        return other / int(self)

    def __str__(self) -> str:
        return _to_text(self)

    def __repr__(self) -> str:
        return str(self)


def _operand(expr: Expr) -> str:
    return str(expr) if expr.is_simple else f"({expr})"


def _to_text(expr: Expr) -> str:
    parts: list[str] = []
    for monomial, coefficient in expr.terms:
        magnitude = abs(coefficient)
        alone = coefficient == 1 and len(monomial) == 1  # a product of divisions needs parentheses
        body = "*".join(a.key if alone or isinstance(a, Sym) else f"({a.key})" for a in monomial)
        text = body if body and magnitude == 1 else f"{magnitude}*{body}" if body else str(magnitude)
        sign = "-" if coefficient < 0 else "+"
        parts.append(f" {sign} {text}" if parts else (f"-{text}" if coefficient < 0 else text))
    return "".join(parts) or "0"


# -- construction ---------------------------------------------------------------------------------


def _sorted_terms(table: Mapping[Monomial, int]) -> tuple[tuple[Monomial, int], ...]:
    # Constants last; larger coefficients first reads like row-major addressing: 4096*p0 + r0.
    items = [(m, c) for m, c in table.items() if c]
    items.sort(key=lambda item: (not item[0], -abs(item[1]), _monomial_key(item[0])))
    return tuple(items)


ZERO = Expr(())
ONE = Expr((((), 1),))


@lru_cache(maxsize=4096)
def _int_expr(value: int) -> Expr:
    return Expr((((), value),)) if value else ZERO


def as_expr(value: IndexLike) -> Expr:
    """An Expr for an int, or the Expr itself."""
    return value if isinstance(value, Expr) else _int_expr(int(value))


def as_int(value: IndexLike) -> int | None:
    """The value of a constant expression, or None when it is symbolic."""
    if isinstance(value, int):
        return value
    return value.constant if value.is_constant else None


def atom_expr(atom: Atom) -> Expr:
    """An atom as an expression."""
    return Expr((((atom,), 1),))


@lru_cache(maxsize=65536)
def _axis(name: str, extent: IndexLike) -> Expr:
    if isinstance(extent, Expr) and not extent.is_constant:
        return atom_expr(Sym(name, "axis", 0, extent - 1))
    value = as_int(extent)
    assert value is not None
    return atom_expr(Sym(name, "axis", 0, max(value - 1, 0)))


def axis_symbol(name: str, extent: IndexLike) -> Expr:
    """The symbol of a loop variable in [0, extent). An axis of extent 1 is the constant 0."""
    if extent == 1:
        return ZERO
    return _axis(name, extent)


def size_symbol(name: str, lo: int = 0, hi: int | None = None, hint: int | None = None) -> Expr:
    """A symbolic extent in [lo, hi]; hint: its value at the first call."""
    return atom_expr(Sym(name, "size", lo, hi, hint))


def value_symbol(name: str, hi: IndexLike | None) -> Expr:
    """An SSA value `name` used as an index, known to lie in [0, hi]."""
    return atom_expr(Sym(name, "value", 0, hi if not isinstance(hi, Expr) or not hi.is_constant else hi.constant))


def product(extents: Iterable[IndexLike]) -> IndexLike:
    """The product of extents, an int whenever all are ints."""
    result: IndexLike = 1
    for extent in extents:
        result = result * extent
    constant = as_int(result)
    return result if constant is None else constant


@lru_cache(maxsize=65536)
def _add(a: Expr, b: Expr) -> Expr:
    if not a.terms:
        return b
    if not b.terms:
        return a
    table = dict(a.terms)
    for monomial, coefficient in b.terms:
        table[monomial] = table.get(monomial, 0) + coefficient
    return _recombine(table)


@lru_cache(maxsize=65536)
def _mul(a: Expr, b: Expr) -> Expr:
    table: dict[Monomial, int] = {}
    for m1, c1 in a.terms:
        for m2, c2 in b.terms:
            monomial = tuple(sorted(m1 + m2, key=lambda x: x.key)) if m1 and m2 else m1 or m2
            table[monomial] = table.get(monomial, 0) + c1 * c2
    return _recombine(table)


def _recombine(table: dict[Monomial, int]) -> Expr:
    """c*(x % d) + c*d*(x // d) -> c*x, repeated until nothing changes; c and d may hold sizes."""
    for monomial, coefficient in list(table.items()):
        if not coefficient or not any(isinstance(a, Mod) for a in monomial):
            continue
        if len(monomial) != 1 or not monomial[0].den.is_constant:  # type: ignore[attr-defined]
            rest = _recombined_with_sizes(table, monomial, coefficient)
            if rest is not None:
                return _recombine(rest)
            continue
        remainder = monomial[0]
        assert isinstance(remainder, Mod)
        den = remainder.den.constant
        quotient = floordiv(remainder.num, den)
        partner = quotient.single_atom()
        if partner is None or table.get((partner,), 0) != coefficient * den:
            continue
        rest = dict(table)
        del rest[monomial], rest[(partner,)]
        for m, c in remainder.num.terms:
            rest[m] = rest.get(m, 0) + c * coefficient
        return _recombine(rest)
    return Expr(_sorted_terms(table))


def _recombined_with_sizes(
    table: Mapping[Monomial, int], monomial: Monomial, coefficient: int
) -> dict[Monomial, int] | None:
    """The same where the factor c, or d, holds sizes: s0*(x % d) + s0*d*(x // d) -> s0*x."""
    remainder = next(a for a in monomial if isinstance(a, Mod))
    factor = list(monomial)
    factor.remove(remainder)
    if not all(isinstance(a, Sym) and a.kind == "size" for a in factor):
        return None
    scale = Expr(((tuple(factor), coefficient),))
    partner = scale * remainder.den * floordiv(remainder.num, remainder.den)
    if not partner.terms or any(table.get(m, 0) != c for m, c in partner.terms):
        return None
    gone = {monomial, *(m for m, _ in partner.terms)}
    rest = {m: c for m, c in table.items() if m not in gone}
    for m, c in (scale * remainder.num).terms:
        rest[m] = rest.get(m, 0) + c
    return rest


# -- division -------------------------------------------------------------------------------------


def _split_multiples(num: Expr, den: int) -> tuple[Expr, Expr]:
    """num = den * quotient + rest, where quotient takes every term whose coefficient den divides."""
    quotient = tuple((m, c // den) for m, c in num.terms if c % den == 0)
    rest = tuple((m, c) for m, c in num.terms if c % den)
    return Expr(quotient), Expr(rest)


def _split_symbolic(num: Expr, den: Expr) -> tuple[Expr, Expr]:
    """The same for a one-term symbolic den such as 64*s0: terms that contain den's monomial."""
    if len(den.terms) != 1:
        return (ONE, ZERO) if num == den else (ZERO, num)
    (den_monomial, den_coefficient) = den.terms[0]
    quotient: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    for monomial, coefficient in num.terms:
        left = list(monomial)
        try:
            for atom in den_monomial:
                left.remove(atom)
        except ValueError:
            left = []
            divides = False
        else:
            divides = coefficient % den_coefficient == 0
        if divides:
            quotient[tuple(left)] = quotient.get(tuple(left), 0) + coefficient // den_coefficient
        else:
            rest[monomial] = coefficient
    return Expr(_sorted_terms(quotient)), Expr(_sorted_terms(rest))


def _split_digit(rest: Expr, den: int) -> tuple[int, Expr, Expr] | None:
    """(g, high, low) with rest = g*high + low, 0 <= low < g, g > 1 and g dividing den; None when there is none.

    The largest such g leaves the smallest division: (64*p0 + 8*p1 + p2) // 16 with p1, p2 < 8 has g = 8.
    """
    factors = {gcd(den, coefficient) for monomial, coefficient in rest.terms if monomial}
    for g in sorted(factors - {1}, reverse=True):
        high = tuple((m, c // g) for m, c in rest.terms if m and c % g == 0)
        low = Expr(tuple((m, c if m else c % g) for m, c in rest.terms if c % g))
        lo, hi = bounds(low)
        if lo is not None and lo >= 0 and hi is not None and hi < g:
            return g, Expr(high) + rest.constant // g, low
    return None


def floordiv(num: IndexLike, den: IndexLike) -> Expr:
    """floor(num / den) for den > 0, simplified with the ranges of the symbols."""
    return _floordiv(as_expr(num), as_expr(den))


def mod(num: IndexLike, den: IndexLike) -> Expr:
    """num - den * floor(num / den) for den > 0, simplified with the ranges of the symbols."""
    return _mod(as_expr(num), as_expr(den))


@lru_cache(maxsize=65536)
def _floordiv(num: Expr, den: Expr) -> Expr:
    if not den.is_constant:
        quotient, rest = _split_symbolic(num, den)
        if not rest.terms:
            return quotient
        if is_nonnegative(rest) and is_nonnegative(den - 1 - rest):
            return quotient
        return quotient + atom_expr(FloorDiv(rest, den))
    d = den.constant
    if d <= 0:
        raise ZeroDivisionError(f"index division needs a positive divisor, got {num} // {d}")
    quotient, rest = _split_multiples(num, d)
    if not rest.terms:
        return quotient
    lo, hi = bounds(rest)
    if lo is not None and hi is not None and lo // d == hi // d:
        return quotient + lo // d
    split = _split_digit(rest, d)
    if split is not None:
        g, high, _ = split
        return quotient + _floordiv(high, _int_expr(d // g))
    atom = rest.single_atom()
    if isinstance(atom, FloorDiv) and atom.den.is_constant:
        return quotient + _floordiv(atom.num, atom.den * d)
    if isinstance(atom, Mod) and atom.den.is_constant and atom.den.constant % d == 0:
        return quotient + _mod(_floordiv(atom.num, den), _int_expr(atom.den.constant // d))
    return quotient + atom_expr(FloorDiv(rest, den))


@lru_cache(maxsize=65536)
def _mod(num: Expr, den: Expr) -> Expr:
    if not den.is_constant:
        _, rest = _split_symbolic(num, den)
        if not rest.terms:
            return ZERO
        if is_nonnegative(rest) and is_nonnegative(den - 1 - rest):
            return rest
        return atom_expr(Mod(rest, den))
    d = den.constant
    if d <= 0:
        raise ZeroDivisionError(f"index remainder needs a positive divisor, got {num} % {d}")
    _, rest = _split_multiples(num, d)
    for monomial, coefficient in rest.terms:
        atom = monomial[0] if len(monomial) == 1 else None
        if isinstance(atom, Mod) and atom.den.is_constant and (coefficient * atom.den.constant) % d == 0:
            return _mod(rest - coefficient * atom_expr(atom) + coefficient * atom.num, den)
    if not rest.terms:
        return ZERO
    lo, hi = bounds(rest)
    if lo is not None and hi is not None and lo // d == hi // d:
        return rest - (lo // d) * d
    split = _split_digit(rest, d)
    if split is not None:
        g, high, low = split
        return g * _mod(high, _int_expr(d // g)) + low
    constant = rest.constant
    if not 0 <= constant < d:
        return _mod(rest - constant + constant % d, den)
    return atom_expr(Mod(rest, den))


# -- ranges ---------------------------------------------------------------------------------------


@lru_cache(maxsize=65536)
def _atom_bounds(atom: Atom) -> tuple[int | None, int | None]:
    if isinstance(atom, Sym):
        hi = atom.hi
        return atom.lo, bounds(hi)[1] if isinstance(hi, Expr) else hi
    assert isinstance(atom, FloorDiv | Mod)
    den_lo, den_hi = bounds(atom.den)
    lo, hi = bounds(atom.num)
    if isinstance(atom, Mod):
        top = None if den_hi is None else den_hi - 1
        if lo is not None and lo >= 0 and hi is not None:
            top = hi if top is None else min(hi, top)
        return 0, top
    if den_lo is None or den_lo <= 0:
        return (0 if lo is not None and lo >= 0 else None), (hi if hi is not None and hi >= 0 else None)
    low = None if lo is None else (lo // den_lo if lo < 0 else (0 if den_hi is None else lo // den_hi))
    high = None if hi is None else (hi // den_lo if hi >= 0 else -1 if den_hi is None else hi // den_hi)
    return low, high


@lru_cache(maxsize=65536)
def bounds(expr: IndexLike) -> tuple[int | None, int | None]:
    """Inclusive integer bounds (lo, hi) of an expression; None where unbounded or symbolic."""
    if isinstance(expr, int):
        return expr, expr
    total_lo: int | None = 0
    total_hi: int | None = 0
    for monomial, coefficient in expr.terms:
        lo: int | None = 1
        hi: int | None = 1
        for atom in monomial:
            lo, hi = _interval_product((lo, hi), _atom_bounds(atom))
        if coefficient < 0:
            lo, hi = hi, lo
        total_lo = None if total_lo is None or lo is None else total_lo + coefficient * lo
        total_hi = None if total_hi is None or hi is None else total_hi + coefficient * hi
    return total_lo, total_hi


def _interval_product(
    a: tuple[int | None, int | None], b: tuple[int | None, int | None]
) -> tuple[int | None, int | None]:
    (a_lo, a_hi), (b_lo, b_hi) = a, b
    if a_lo is not None and a_lo >= 0 and b_lo is not None and b_lo >= 0:
        return a_lo * b_lo, None if a_hi is None or b_hi is None else a_hi * b_hi
    if a_lo is None or a_hi is None or b_lo is None or b_hi is None:
        return None, None
    corners = [a_lo * b_lo, a_lo * b_hi, a_hi * b_lo, a_hi * b_hi]
    return min(corners), max(corners)


@lru_cache(maxsize=16384)
def is_nonnegative(expr: IndexLike) -> bool:
    """True when expr >= 0 is proved over all values of its symbols; False when it is not known."""
    expr = as_expr(expr)
    lo, _ = bounds(expr)
    if lo is not None:
        return lo >= 0
    # An axis that occurs once, times something nonnegative: put the end of its range that makes expr smallest.
    for monomial, coefficient in expr.terms:
        for atom in monomial:
            if not isinstance(atom, Sym) or atom.kind != "axis" or atom.hi is None:
                continue
            once = sum(symbol.name == atom.name for m, _ in expr.terms for a in m for symbol in _symbols(atom_expr(a)))
            if once == 1 and _all_nonnegative(monomial):
                return is_nonnegative(substitute(expr, {atom.name: atom.hi if coefficient < 0 else 0}))
    # Only sizes are left: shift each to its lower bound; nonnegative coefficients then suffice.
    shifted = substitute(
        expr,
        {a.name: atom_expr(Sym(a.name, "size", 0, None)) + a.lo for a in expr.atoms() if isinstance(a, Sym) and a.lo},
    )
    return all(coefficient >= 0 and _all_nonnegative(monomial) for monomial, coefficient in shifted.terms)


def _all_nonnegative(monomial: Monomial) -> bool:
    return all((lo := _atom_bounds(atom)[0]) is not None and lo >= 0 for atom in monomial)


def less_than(a: IndexLike, b: IndexLike) -> bool:
    """True when a < b is proved."""
    return is_nonnegative(as_expr(b) - 1 - as_expr(a))


# -- traversal ------------------------------------------------------------------------------------


def symbols_of(expr: IndexLike) -> frozenset[Sym]:
    """Every symbol in the expression, those inside divisions included."""
    return frozenset() if isinstance(expr, int) else _symbols(expr)


@lru_cache(maxsize=65536)
def _symbols(expr: Expr) -> frozenset[Sym]:
    found: set[Sym] = set()
    for atom in expr.atoms():
        if isinstance(atom, Sym):
            found.add(atom)
        elif isinstance(atom, FloorDiv | Mod):
            found |= _symbols(atom.num) | _symbols(atom.den)
    return frozenset(found)


def substitute(expr: IndexLike, mapping: Mapping[str, IndexLike]) -> Expr:
    """Replace symbols by name, simplifying on the way up."""
    expr = as_expr(expr)
    if not mapping or not any(s.name in mapping for s in _symbols(expr)):
        return expr
    result = ZERO
    for monomial, coefficient in expr.terms:
        term = _int_expr(coefficient)
        for atom in monomial:
            term = term * _substitute_atom(atom, mapping)
        result = result + term
    return result


def _substitute_atom(atom: Atom, mapping: Mapping[str, IndexLike]) -> Expr:
    if isinstance(atom, Sym):
        return as_expr(mapping[atom.name]) if atom.name in mapping else atom_expr(atom)
    assert isinstance(atom, FloorDiv | Mod)
    num, den = substitute(atom.num, mapping), substitute(atom.den, mapping)
    return floordiv(num, den) if isinstance(atom, FloorDiv) else mod(num, den)


def evaluate(expr: IndexLike, env: Mapping[str, Any] | Callable[[str], Any]) -> Any:
    """The value of expr with symbols looked up by name: ints, or integer tensors that broadcast."""
    if isinstance(expr, int):
        return expr
    lookup = env if callable(env) else env.__getitem__
    total: Any = 0
    for monomial, coefficient in expr.terms:
        term: Any = coefficient
        for atom in monomial:
            if isinstance(atom, Sym):
                value = lookup(atom.name)
            else:
                assert isinstance(atom, FloorDiv | Mod)
                num, den = evaluate(atom.num, env), evaluate(atom.den, env)
                value = num // den if isinstance(atom, FloorDiv) else num % den
            term = value * term
        total = term + total
    return total


# -- coordinates ----------------------------------------------------------------------------------


def linearize(coordinates: Iterable[IndexLike], strides: Iterable[IndexLike], offset: IndexLike = 0) -> Expr:
    """offset + sum(coordinate * stride): the element offset of a strided view."""
    total = as_expr(offset)
    for coordinate, stride in zip(coordinates, strides, strict=True):
        total = total + as_expr(coordinate) * as_expr(stride)
    return total


def delinearize(offset: IndexLike, shape: Iterable[IndexLike]) -> tuple[Expr, ...]:
    """Row-major coordinates of a flat position in `shape`; inverse of linearize for contiguous strides."""
    coordinates: list[Expr] = []
    rest = as_expr(offset)
    dims = list(shape)
    for position, extent in enumerate(reversed(dims)):
        last = position == len(dims) - 1
        if extent == 1:
            coordinates.append(ZERO)
            continue
        if extent == 0:
            coordinates.append(ZERO)
            continue
        coordinates.append(rest if last else mod(rest, extent))
        rest = floordiv(rest, extent)
    return tuple(reversed(coordinates))
