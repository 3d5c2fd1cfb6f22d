"""Kernel axes: bringing two nests onto one ordered set of axes.

Enters: two nests and pairs of accesses that should touch the same element. Leaves: each nest rewritten over
shared axes. An axis is a number written in mixed radix; its *digits* are what two nests can share.

    a: (p0<64, p1<4096)  store x[4096*p0 + p1]
    b: (q0<262144)       load  x[q0]              ->  q0 = 4096*k0 + k1,  p0 = k0,  p1 = k1

Matching walks both accesses from the smallest stride up and splits digits at their common factors, so a
GroupNorm's channel becomes group x rest, and a flat chain lines up with rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fusec.ir.index import (
    Expr,
    FloorDiv,
    IndexLike,
    Mod,
    Sym,
    as_expr,
    as_int,
    axis_symbol,
    is_nonnegative,
    product,
    substitute,
    symbols_of,
)
from fusec.ir.sizes import affine, exact_quotient, has_sizes, hint_of, plain
from fusec.ir.types import Axis, AxisKind, Instr, LoopNest


@dataclass(eq=False, slots=True)
class Digit:
    """One factor of an axis; partner: the digit of the other nest that runs in step with it."""

    extent: IndexLike
    partner: Digit | None = None


@dataclass(slots=True)
class Matcher:
    """The digits of two nests' axes, least significant first, and which of them are paired."""

    left: dict[str, list[Digit]]
    right: dict[str, list[Digit]]
    _undo: list[tuple[dict[str, list[Digit]], str, list[Digit]]] = field(default_factory=list)

    @classmethod
    def of(cls, left: Iterable[Axis], right: Iterable[Axis]) -> Matcher:
        return cls({a.name: [Digit(a.extent)] for a in left}, {a.name: [Digit(a.extent)] for a in right})

    def pair(self, left_index: Expr, right_index: Expr) -> bool:
        """Pair the digits so that both indices address the same element; False and no change if impossible."""
        trial = self._copy()
        if not trial._pair(left_index, right_index):
            return False
        self.left, self.right = trial.left, trial.right
        return True

    def pair_rest(self) -> bool:
        """Pair what is left on both sides in row-major order when the numbers of points agree."""
        trial = self._copy()
        left = _strided([d for digits in reversed(trial.left.values()) for d in digits if d.partner is None])
        right = _strided([d for digits in reversed(trial.right.values()) for d in digits if d.partner is None])
        if not left or not right or product(d.extent for _, d in left) != product(d.extent for _, d in right):
            return False
        if not trial._walk(left, right):
            return False
        self.left, self.right = trial.left, trial.right
        return True

    def _copy(self) -> Matcher:
        twins: dict[int, Digit] = {}
        sides: list[dict[str, list[Digit]]] = []
        for side in (self.left, self.right):
            sides.append({n: [twins.setdefault(id(d), Digit(d.extent)) for d in ds] for n, ds in side.items()})
        for side in (self.left, self.right):
            for digits in side.values():
                for d in digits:
                    twins[id(d)].partner = None if d.partner is None else twins[id(d.partner)]
        return Matcher(sides[0], sides[1])

    def _pair(self, left_index: Expr, right_index: Expr) -> bool:
        left, right = _access_digits(left_index, self.left), _access_digits(right_index, self.right)
        return left is not None and right is not None and left[1] == right[1] and self._walk(left[0], right[0])

    def _walk(self, left: list[tuple[IndexLike, Digit]], right: list[tuple[IndexLike, Digit]]) -> bool:
        i = 0
        while i < len(left) and i < len(right):
            (left_stride, a), (right_stride, b) = left[i], right[i]
            if left_stride != right_stride:
                return False
            if a.extent != b.extent:
                splits_left = exact_quotient(a.extent, b.extent) is not None
                if not splits_left and exact_quotient(b.extent, a.extent) is None:
                    return False
                side, digit, small = (left, a, b.extent) if splits_left else (right, b, a.extent)
                low, high = self._split(digit, small)
                side[i : i + 1] = [(left_stride, low), (product((left_stride, small)), high)]
                side[i + 1 :] = sorted(side[i + 1 :], key=_by_stride)
                _refresh(left, right, digit, low, high, small)
                continue
            if a.partner is not b:
                if a.partner is not None or b.partner is not None:
                    return False
                a.partner, b.partner = b, a
            i += 1
        return len(left) == len(right)

    def _split(self, digit: Digit, low_extent: IndexLike) -> tuple[Digit, Digit]:
        low, high = self._split_one(digit, low_extent)
        if digit.partner is not None:
            other_low, other_high = self._split_one(digit.partner, low_extent)
            low.partner, other_low.partner = other_low, low
            high.partner, other_high.partner = other_high, high
        return low, high

    def _split_one(self, digit: Digit, low_extent: IndexLike) -> tuple[Digit, Digit]:
        quotient = exact_quotient(digit.extent, low_extent)
        assert quotient is not None
        low, high = Digit(low_extent), Digit(quotient)
        for side in (self.left, self.right):
            for digits in side.values():
                for position, candidate in enumerate(digits):
                    if candidate is digit:
                        digits[position : position + 1] = [low, high]
                        return low, high
        raise AssertionError("a digit belongs to an axis")


def _strided(digits: Iterable[Digit], stride: IndexLike = 1) -> list[tuple[IndexLike, Digit]]:
    result: list[tuple[IndexLike, Digit]] = []
    for digit in digits:
        result.append((stride, digit))
        stride = product((stride, digit.extent))
    return result


def _by_stride(item: tuple[IndexLike, Digit]) -> int:
    """Symbolic strides in the order they have at the first call: what it pairs is checked exactly afterwards."""
    return hint_of(item[0])


def _access_digits(
    index: Expr, side: Mapping[str, list[Digit]]
) -> tuple[list[tuple[IndexLike, Digit]], IndexLike] | None:
    """(stride, digit) of a linear access, smallest stride first, and its offset; None when it is not linear in axes."""
    found = affine(index)
    if found is None:
        return None
    strides, offset = found
    result: list[tuple[IndexLike, Digit]] = []
    for symbol, stride in strides.items():
        if symbol.kind != "axis" or symbol.name not in side or not is_nonnegative(stride):
            return None
        result += _strided(side[symbol.name], stride)
    result.sort(key=_by_stride)
    return result, offset


def _refresh(
    left: list[tuple[IndexLike, Digit]],
    right: list[tuple[IndexLike, Digit]],
    old: Digit,
    low: Digit,
    high: Digit,
    factor: IndexLike,
) -> None:
    # A split digit's partner was split too; if it stands in the other list, replace it there.
    partner = old.partner
    if partner is None:
        return
    for side in (left, right):
        for position, (stride, digit) in enumerate(side):
            if digit is partner:
                assert low.partner is not None and high.partner is not None
                side[position : position + 1] = [(stride, low.partner), (product((stride, factor)), high.partner)]
                side.sort(key=_by_stride)
                return


@dataclass(frozen=True, slots=True)
class Alignment:
    """Both nests' axes as expressions over the shared axes, and those shared axes in order."""

    axes: tuple[Axis, ...]
    left: dict[str, Expr]
    right: dict[str, Expr]
    left_names: dict[str, tuple[str, ...]]  # old axis -> the shared axes it became
    right_names: dict[str, tuple[str, ...]]


def align(matcher: Matcher, left_axes: Sequence[Axis], right_axes: Sequence[Axis]) -> Alignment:
    """Name the digits: those of the left nest keep their axis' name, paired ones are shared."""
    names: dict[int, str] = {}
    taken = {a.name for a in left_axes}
    kinds: dict[str, AxisKind] = {}
    extents: dict[str, IndexLike] = {}

    def name_digits(axis: Axis, digits: list[Digit]) -> tuple[tuple[str, ...], Expr]:
        total, stride = as_expr(0), as_expr(1)
        found: list[str] = []
        for position, digit in enumerate(digits):
            partner = digit.partner
            name = names.get(id(digit)) or (names.get(id(partner)) if partner is not None else None)
            if name is None:
                name = axis.name if len(digits) == 1 else f"{axis.name}_{len(digits) - 1 - position}"
                while name in extents or (name in taken and (len(digits) > 1 or axis not in left_axes)):
                    name += "_"
            names[id(digit)] = name
            extents[name] = digit.extent
            if axis.is_reduction or kinds.get(name) is AxisKind.REDUCTION:
                kinds[name] = AxisKind.REDUCTION
            else:
                kinds.setdefault(name, AxisKind.PARALLEL)
            total = total + axis_symbol(name, digit.extent) * stride
            stride = stride * digit.extent
            found.append(name)
        return tuple(reversed(found)), total

    left_names: dict[str, tuple[str, ...]] = {}
    right_names: dict[str, tuple[str, ...]] = {}
    left: dict[str, Expr] = {}
    right: dict[str, Expr] = {}
    order: list[str] = []
    for axis in left_axes:
        left_names[axis.name], left[axis.name] = name_digits(axis, matcher.left[axis.name])
        order += left_names[axis.name]
    for axis in right_axes:
        right_names[axis.name], right[axis.name] = name_digits(axis, matcher.right[axis.name])
        order += right_names[axis.name]
    axes = tuple(Axis(n, extents[n], kinds[n]) for n in dict.fromkeys(order) if extents[n] != 1)
    return Alignment(axes, left, right, left_names, right_names)


def rewrite_axes(
    body: Iterable[Instr], mapping: Mapping[str, IndexLike], names: Mapping[str, tuple[str, ...]]
) -> tuple[Instr, ...]:
    """Substitute axes in every index expression and in every reduction's list of axes."""
    return tuple(rewrite_instr(i, mapping, names) for i in body)


def rewrite_instr(instr: Instr, mapping: Mapping[str, IndexLike], names: Mapping[str, tuple[str, ...]]) -> Instr:
    access = instr.access
    if access is not None:
        access = replace(access, index=substitute(access.index, mapping))
    attrs = instr.attrs
    if attrs:
        attrs = tuple((key, _rewrite_attr(key, value, mapping, names)) for key, value in attrs)
    if access is instr.access and attrs == instr.attrs:
        return instr
    return replace(instr, access=access, attrs=attrs)


def _rewrite_attr(
    key: str, value: object, mapping: Mapping[str, IndexLike], names: Mapping[str, tuple[str, ...]]
) -> object:
    if isinstance(value, Expr):
        return substitute(value, mapping)
    if key == "axes" and isinstance(value, tuple):
        return tuple(n for axis in value for n in names.get(axis, (axis,)))
    return value


def without_unit_axes(nest: LoopNest) -> LoopNest:
    """Drop axes of extent 1: their symbol is the constant 0 already."""
    unit = {a.name for a in nest.axes if a.extent == 1}
    if not unit:
        return nest
    names = dict.fromkeys(unit, ())
    zero = dict.fromkeys(unit, 0)
    axes = tuple(a for a in nest.axes if a.name not in unit)
    return replace(nest, axes=axes, body=rewrite_axes(nest.body, zero, names))


def split_for_linearity(nest: LoopNest) -> LoopNest:
    """Split axes at the divisors their indices use: x[64*(p//8) + p%8], p<64  ->  x[64*p_0 + p_1], p_0<8, p_1<8."""
    for _ in range(8):
        cut = next((c for i in nest.body for e in i.index_exprs for c in _cuts(e, nest.axes)), None)
        if cut is None:
            return nest
        axis, divisor = cut
        nest = split_axis(nest, axis, divisor)
    return nest


def _cuts(expr: Expr, axes: Sequence[Axis]) -> Iterable[tuple[Axis, IndexLike]]:
    for atom in expr.atoms():
        if not isinstance(atom, FloorDiv | Mod):
            continue
        yield from _cuts(atom.num, axes)
        den = plain(atom.den)
        inner = atom.num.single_atom()
        if not isinstance(inner, Sym) or inner.kind != "axis" or any(s.kind != "size" for s in symbols_of(den)):
            continue
        axis = next((a for a in axes if a.name == inner.name), None)
        high = None if axis is None else exact_quotient(axis.extent, den)
        if axis is not None and high is not None and high not in (0, 1) and den != 1:
            yield axis, den


def split_axis(nest: LoopNest, axis: Axis, divisor: IndexLike, names: tuple[str, str] | None = None) -> LoopNest:
    """axis -> (high, low) with axis = divisor*high + low; divisor must divide the extent."""
    quotient = exact_quotient(axis.extent, divisor)
    assert quotient is not None
    taken = {a.name for a in nest.axes}
    if names is None:
        names = _fresh(f"{axis.name}h", taken), _fresh(f"{axis.name}l", taken)
    high, low = Axis(names[0], quotient, axis.kind), Axis(names[1], divisor, axis.kind)
    mapping = {axis.name: high.symbol * divisor + low.symbol}
    axes = tuple(n for a in nest.axes for n in ((high, low) if a.name == axis.name else (a,)))
    return replace(nest, axes=axes, body=rewrite_axes(nest.body, mapping, {axis.name: names}))


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def merge_axes(nest: LoopNest, may_merge: Callable[[Axis, Axis], bool]) -> LoopNest:
    """Join neighbours (a, b) into one axis m = extent_b*a + b wherever no index then needs a division by extent_b.

    x[4096*a + b]  ->  x[m]
    """
    position = 0
    while position + 1 < len(nest.axes):
        a, b = nest.axes[position], nest.axes[position + 1]
        merged = _merged(nest, a, b) if a.kind is b.kind and may_merge(a, b) else None
        if merged is None:
            position += 1
        else:
            nest = merged
            position = 0
    return nest


def _merged(nest: LoopNest, a: Axis, b: Axis) -> LoopNest | None:
    if not all(_compatible(e, a, b) for i in nest.body for e in i.index_exprs):
        return None
    extent = product((a.extent, b.extent))
    joined = Axis(a.name, extent, a.kind)
    # The new axis takes a's name with a larger extent, so both old symbols are replaced at once.
    mapping = {a.name: joined.symbol // b.extent, b.name: joined.symbol % b.extent}
    if as_int(b.extent) is None:  # every use is a multiple of extent_b*a + b, which is the new axis itself
        mapping = {a.name: as_expr(0), b.name: joined.symbol}
    body = rewrite_axes(nest.body, mapping, {a.name: (a.name,), b.name: ()})
    axes = tuple(joined if x.name == a.name else x for x in nest.axes if x.name != b.name)
    return replace(nest, axes=axes, body=body)


def _compatible(expr: Expr, a: Axis, b: Axis) -> bool:
    """True when every use of a and b is through extent_b*a + b."""
    if as_int(b.extent) is None or has_sizes(expr):
        return _compatible_with_sizes(expr, a, b)
    linear = {m[0].name: c for m, c in expr.terms if len(m) == 1 and isinstance(m[0], Sym)}
    width = as_int(b.extent)
    if width is None or linear.get(a.name, 0) != width * linear.get(b.name, 0):
        return False
    for atom in expr.atoms():
        if isinstance(atom, FloorDiv | Mod) and not (_compatible(atom.num, a, b) and _compatible(atom.den, a, b)):
            return False
    return not any(isinstance(x, Sym) and x.name in (a.name, b.name) for m, _ in expr.terms if len(m) > 1 for x in m)


def _compatible_with_sizes(expr: Expr, a: Axis, b: Axis) -> bool:
    """The same where coefficients, or the extent of b, hold sizes."""
    factors: dict[str, IndexLike] = {a.name: 0, b.name: 0}
    for monomial, coefficient in expr.terms:
        inner = [x for x in monomial if isinstance(x, Sym) and x.name in factors]
        rest = tuple(x for x in monomial if not (isinstance(x, Sym) and x.name in factors))
        if len(inner) > 1:
            return False
        for symbol in inner:
            factors[symbol.key] = plain(factors[symbol.key] + Expr(((rest, coefficient),)))
        for atom in rest:
            if isinstance(atom, FloorDiv | Mod) and not (
                _compatible_with_sizes(atom.num, a, b) and _compatible_with_sizes(atom.den, a, b)
            ):
                return False
    return factors[a.name] == product((b.extent, factors[b.name]))
