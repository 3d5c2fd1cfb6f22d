"""Index expressions as text, with the integer width each address needs.

Enters: an `Expr` over kernel axes, and the variables that hold the tile dimensions. Leaves: text.

    dim x (i) over axes a<64, b<4096:   4096*a + b  ->  i
                                        64*b + a    ->  64 * (i % 4096) + i // 4096
    bounds above 2**31 - 1:             i           ->  i.to(tl.int64)

Width is decided an expression at a time: 32-bit arithmetic is a ring, so sums and products may wrap on the way as
long as the final value fits; only what is divided must fit by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fusec.codegen.text import ADD, ATOM, MUL, UNARY, Text, infix
from fusec.ir.index import Atom, Expr, FloorDiv, IndexLike, Mod, Monomial, Sym, as_expr, bounds, substitute, symbols_of
from fusec.ir.sizes import has_sizes, magnitude

INT32_MAX = 2**31 - 1


def fits_int32(expr: IndexLike) -> bool:
    """True when every value of the expression is proved to fit a signed 32-bit integer."""
    lo, hi = bounds(expr)
    return lo is not None and hi is not None and lo >= -(2**31) and hi <= INT32_MAX


def _in_place(atom: Atom) -> str | None:
    return None


def _positive_first(flat: Expr) -> list[tuple[Monomial, int]]:
    """Terms with a positive one in front: `col - 4 * row`, not `-4 * row + col`."""
    terms = list(flat.terms)
    first = next((k for k, (_, coefficient) in enumerate(terms) if coefficient > 0), 0)
    return [terms[first], *terms[:first], *terms[first + 1 :]]


@dataclass(frozen=True)
class IndexPrinter:
    """Prints Exprs over kernel axes.

    axes:   kernel axis name -> Expr over dimension symbols (the flattened tile dimensions).
    lookup: a symbol (dimension, size or SSA value) -> the variable that holds it.
    wide:   whether a symbol's variable is 64-bit already.
    hoist:  an expression `x // d` or `x % d` -> the variable that holds it, or None to write it in place.
    limits: where sizes decide whether an expression fits 32 bits, it is written as if it did, and what must stay below
            2**31 for that is added here, for the launch to check; None: written in 64 bits.
    """

    axes: Mapping[str, Expr]
    lookup: Callable[[Sym], str]
    wide: Callable[[Sym], bool]
    hoist: Callable[[Atom], str | None] = _in_place
    limits: set[IndexLike] | None = None

    def flatten(self, expr: IndexLike) -> Expr:
        """The expression over tile dimensions; axes of one dimension recombine where they can."""
        return substitute(as_expr(expr), self.axes)

    def text(self, flat: Expr) -> Text:
        """Text of a flattened expression, exact for every point that is not masked."""
        if flat.is_constant:
            return Text(str(flat.constant), ATOM if flat.constant >= 0 else UNARY)
        if self._fits(flat):
            return self._sum(flat, widen=False)
        return self._sum(flat, widen=True)

    def is_wide(self, flat: Expr) -> bool:
        """True when the text's type is 64-bit."""
        return not self._fits(flat) or any(self.wide(s) for s in symbols_of(flat))

    def _fits(self, flat: Expr) -> bool:
        if self.limits is None or fits_int32(flat) or not has_sizes(flat):
            return fits_int32(flat)
        largest = magnitude(flat)
        if largest is None and not any(s.kind == "size" and s.lo < 0 for s in symbols_of(flat)):
            return False
        self.limits.add(INT32_MAX + 1 if largest is None else largest)  # a size of any sign is always 64 bits wide
        return True

    def _sum(self, flat: Expr, widen: bool) -> Text:
        terms = _positive_first(flat)
        casts = self._casts(terms) if widen else [False] * len(terms)
        result: Text | None = None
        for (monomial, coefficient), cast in zip(terms, casts, strict=True):
            term = self._term(monomial, abs(coefficient), cast)
            if result is None:
                result = term if coefficient >= 0 else Text(f"-{term.wrap(UNARY)}", UNARY)
            else:
                result = infix(result, "+" if coefficient >= 0 else "-", term, ADD)
        assert result is not None
        return result

    def _casts(self, terms: Sequence[tuple[Monomial, int]]) -> list[bool]:
        """Which terms are made 64-bit: those where the term, or the 32-bit sum up to it, may not fit."""
        casts: list[bool] = []
        prefix: Expr = as_expr(0)
        wide = False
        for monomial, coefficient in terms:
            alone = Expr(((monomial, coefficient),))
            prefix = prefix + alone
            holds = any(self._is_wide_atom(a) for a in monomial)
            overflows = not fits_int32(alone) or (not wide and not fits_int32(prefix))
            cast = bool(monomial) and not holds and overflows
            if not monomial and overflows and not wide:
                wide = True  # a constant past 32 bits is a 64-bit literal; one that overflows the sum needs a cast
                casts = [k == 0 and fits_int32(alone) for k in range(len(casts))]
            casts.append(cast)
            wide = wide or cast or holds
        return casts

    def _term(self, monomial: Monomial, magnitude: int, cast: bool) -> Text:
        factors = [self._atom(a) for a in monomial]
        if cast and not any(self._is_wide_atom(a) for a in monomial):
            factors[0] = Text(f"{factors[0].wrap(ATOM)}.to(tl.int64)")
        result = Text(str(magnitude)) if magnitude != 1 or not factors else None
        for factor in factors:
            # `4 * (i // 8)` keeps its parentheses: (4 * i) // 8 is another number.
            result = factor if result is None else Text(f"{result.wrap(MUL)} * {factor.wrap(UNARY)}", MUL)
        assert result is not None
        return result

    def _is_wide_atom(self, atom: Atom) -> bool:
        if isinstance(atom, Sym):
            return self.wide(atom)
        assert isinstance(atom, FloorDiv | Mod)
        return self.is_wide(atom.num)

    def _atom(self, atom: Atom) -> Text:
        if isinstance(atom, Sym):
            return Text(self.lookup(atom))
        variable = self.hoist(atom)
        return Text(variable) if variable is not None else self.division(atom)

    def division(self, atom: Atom) -> Text:
        """`x // d` or `x % d` written out."""
        assert isinstance(atom, FloorDiv | Mod)
        lo, _ = bounds(atom.num)
        num, den = self.text(atom.num), self.text(atom.den)
        if lo is None or lo < 0:
            # Triton's // and % truncate; a numerator that may be negative needs the floor.
            function = "floordiv" if isinstance(atom, FloorDiv) else "mod"
            return Text(f"device.{function}({num.text}, {den.text})")
        operator = "//" if isinstance(atom, FloorDiv) else "%"
        return Text(f"{num.wrap(MUL)} {operator} {den.wrap(UNARY)}", MUL)
