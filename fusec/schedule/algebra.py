"""Algebra on SSA lines: a table of exact rewrites, and the engine that applies them to a body.

Enters: the lines of a nest or a kernel. Leaves: fewer or cheaper lines with the same stores.

    %0:f32 = load x[p0]                    %0:f32 = load x[p0]
    %1:f32 = const 1.0                     store y[p0], %0
    %2:f32 = mul %0, %1            ->
    %3:bf16 = cast %2
    %4:f32 = exp %2
    store y[p0], %2

Every row is exact for NaN, infinities, -0.0 and wrapping integers, so it holds in both precisions. A row is its
equation; the test of a row evaluates both sides of it. Rows that need more than a pattern are functions below.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from fusec.ir.analysis import attr_key, computed_from, eliminate_dead, instr_key, map_exprs, rename
from fusec.ir.index import Expr, IndexLike, Sym, as_expr, axis_symbol, bounds, symbols_of
from fusec.ir.modes import real_tensors
from fusec.ir.ops import OPS, Evaluate, OpKind, is_negative_zero
from fusec.ir.types import Attr, Axis, Instr

__all__ = ["RULES", "Rule", "simplify_body"]

# -- the table ------------------------------------------------------------------------------------

Pattern = str | bool | int | float | tuple["str", tuple["Pattern", ...]]  # variable, literal, or op with operands

KINDS: dict[str, Callable[[torch.dtype], bool]] = {
    "any": lambda d: True,
    "bool": lambda d: d is torch.bool,
    "int": lambda d: d is not torch.bool and not d.is_floating_point,
    "integral": lambda d: not d.is_floating_point,
    "float": lambda d: d.is_floating_point,
    "number": lambda d: d is not torch.bool,
    "signed": lambda d: d.is_signed and d is not torch.bool,
    "wide": lambda d: d in (torch.float32, torch.float64, torch.int32, torch.int64),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """`left -> right` when x has a dtype of `kind`. One letter is a value, true and false are constants."""

    left: str
    right: str
    kind: str = "any"

    @property
    def equation(self) -> str:
        return f"{self.left} -> {self.right}"


RULES: tuple[Rule, ...] = (
    # neutral elements; x + 0.0 is not here: -0.0 + 0.0 is 0.0
    Rule("mul(x, 1)", "x"),
    Rule("add(x, 0)", "x", "integral"),
    Rule("add(x, -0.0)", "x", "float"),
    Rule("sub(x, 0)", "x", "number"),
    Rule("div(x, 1)", "x", "float"),
    Rule("floordiv(x, 1)", "x", "int"),
    Rule("truncdiv(x, 1)", "x", "int"),
    Rule("pow(x, 1)", "x", "number"),
    Rule("and(x, true)", "x", "bool"),
    Rule("or(x, false)", "x", "bool"),
    Rule("xor(x, false)", "x", "bool"),
    Rule("or(x, 0)", "x", "int"),
    Rule("xor(x, 0)", "x", "int"),
    Rule("shl(x, 0)", "x", "int"),
    Rule("shr(x, 0)", "x", "int"),
    # absorbing elements; 0.0 * x is not here: x may be NaN or infinite
    Rule("mul(x, 0)", "0", "integral"),
    Rule("and(x, false)", "false", "bool"),
    Rule("or(x, true)", "true", "bool"),
    Rule("and(x, 0)", "0", "int"),
    Rule("mod(x, 1)", "0", "int"),
    # the same twice
    Rule("sub(x, x)", "0", "int"),
    Rule("xor(x, x)", "0", "integral"),
    Rule("and(x, x)", "x", "integral"),
    Rule("or(x, x)", "x", "integral"),
    Rule("minimum(x, x)", "x"),
    Rule("maximum(x, x)", "x"),
    Rule("fmin(x, x)", "x", "number"),
    Rule("fmax(x, x)", "x", "number"),
    Rule("neg(neg(x))", "x", "number"),
    Rule("not(not(x))", "x", "integral"),
    Rule("abs(abs(x))", "abs(x)", "signed"),
    Rule("abs(neg(x))", "abs(x)", "signed"),
    Rule("trunc(trunc(x))", "trunc(x)", "float"),
    Rule("floor(floor(x))", "floor(x)", "float"),
    Rule("ceil(ceil(x))", "ceil(x)", "float"),
    Rule("round(round(x))", "round(x)", "float"),
    # signs
    Rule("mul(x, -1)", "neg(x)", "number"),
    Rule("add(x, neg(y))", "sub(x, y)", "number"),
    Rule("sub(x, neg(y))", "add(x, y)", "number"),
    Rule("mul(neg(x), neg(y))", "mul(x, y)", "number"),
    # powers, as PyTorch computes them
    Rule("pow(x, 2)", "mul(x, x)", "wide"),
    Rule("pow(x, 3)", "mul(mul(x, x), x)", "wide"),
    # comparisons
    Rule("eq(x, x)", "true", "integral"),
    Rule("ne(x, x)", "false", "integral"),
    Rule("le(x, x)", "true", "integral"),
    Rule("ge(x, x)", "true", "integral"),
    Rule("lt(x, x)", "false"),
    Rule("gt(x, x)", "false"),
    Rule("eq(x, true)", "x", "bool"),
    Rule("ne(x, false)", "x", "bool"),
    Rule("eq(x, false)", "not(x)", "bool"),
    Rule("ne(x, true)", "not(x)", "bool"),
    Rule("not(eq(x, y))", "ne(x, y)"),
    Rule("not(ne(x, y))", "eq(x, y)"),
    # selection
    Rule("where(x, y, y)", "y", "bool"),
    Rule("where(true, x, y)", "x"),
    Rule("where(false, x, y)", "y"),
    Rule("where(not(x), y, z)", "where(x, z, y)", "bool"),
    Rule("where(x, true, false)", "x", "bool"),
    Rule("where(x, false, true)", "not(x)", "bool"),
    Rule("where(x, where(x, y, z), w)", "where(x, y, w)", "bool"),
    Rule("where(x, w, where(x, y, z))", "where(x, w, z)", "bool"),
)

COMMUTATIVE = frozenset({"add", "mul", "minimum", "maximum", "fmin", "fmax", "and", "or", "xor", "eq", "ne"})


@lru_cache(maxsize=1024)
def parse(text: str) -> Pattern:
    """`mul(x, 1)` -> ("mul", ("x", 1))."""

    tokens = re.findall(r"-?[\w.]+|[(),]", text)

    def term(position: int) -> tuple[Pattern, int]:
        word = tokens[position]
        if tokens[position + 1 : position + 2] == ["("]:
            operands: list[Pattern] = []
            position += 1
            while tokens[position] != ")":
                operand, position = term(position + 1)
                operands.append(operand)
            return (word, tuple(operands)), position + 1
        if word in ("true", "false"):
            return word == "true", position + 1
        return (word if word.isalpha() else float(word) if "." in word else int(word)), position + 1

    return term(0)[0]


def _compile() -> dict[str, list[tuple[Rule, Pattern, Pattern]]]:
    table: dict[str, list[tuple[Rule, Pattern, Pattern]]] = {}
    for rule in RULES:
        left, right = parse(rule.left), parse(rule.right)
        assert isinstance(left, tuple), rule.left
        table.setdefault(left[0], []).append((rule, left, right))
    return table


_TABLE = _compile()


# -- the engine -----------------------------------------------------------------------------------


class Body:
    """A body under construction: values by name, and the name of each computation already present."""

    def __init__(self, axes: Sequence[Axis], taken: Sequence[str], frozen: frozenset[str]) -> None:
        self.extents = {a.name: a.extent for a in axes}
        self.frozen = frozen  # buffers the body writes: two loads of one may differ
        self.lines: list[Instr] = []
        self.defs: dict[str, Instr] = {}
        self.same: dict[object, str] = {}
        self.counter = 1 + max((int(n[1:]) for n in taken if n[1:].isdigit()), default=-1)

    def fresh(self) -> str:
        self.counter += 1
        return f"%{self.counter - 1}"

    def literal(self, name: str) -> bool | int | float | None:
        """The value of a constant, else None."""
        instr = self.defs[name]
        value: bool | int | float | None = instr.attr("value") if instr.op == "const" else None
        return value

    def index(self, name: str) -> Expr | None:
        """An int64 value as an index expression, if it is known as one."""
        instr = self.defs[name]
        if instr.dtype is not torch.int64:
            return None
        if instr.op == "index":
            expr: Expr = instr.attr("expr")
            return expr
        value = self.literal(name)
        return None if value is None else as_expr(int(value))

    def varies(self, name: str, axis: str) -> bool:
        """True when the value depends on an axis."""
        exprs = (e for line in computed_from(name, self.defs) for e in line.index_exprs)
        return any(s.name == axis for e in exprs for s in symbols_of(e))

    def emit(self, instr: Instr) -> str:
        """The name of a value equal to what `instr` computes; new lines only where nothing known is equal."""
        for _ in range(32):  # each row makes the line cheaper; the bound guards a wrong row
            result = self._rewrite(instr)
            if isinstance(result, str):
                return result
            if result is None:
                break
            instr = result
        key = self._key(instr)
        known = self.same.get(key)
        if known is not None:
            return known
        assert instr.out is not None
        name = instr.out if instr.out not in self.defs else self.fresh()
        instr = replace(instr, out=name)
        self.lines.append(instr)
        self.defs[name] = instr
        if instr.access is None or instr.access.buffer not in self.frozen:
            self.same[key] = name
        return name

    def _key(self, instr: Instr) -> object:
        if instr.op in COMMUTATIVE:
            instr = replace(instr, args=tuple(sorted(instr.args)))
        return instr_key(instr)

    def _rewrite(self, instr: Instr) -> str | Instr | None:
        for function in _FUNCTIONS.get(instr.op, ()):
            result = function(self, instr)
            if result is not None:
                return result
        if instr.args and OPS[instr.op].kind is OpKind.POINTWISE:
            folded = _fold_constants(self, instr) or _fold_comparison(self, instr)
            if folded is not None:
                return folded
            for rule, left, right in _TABLE.get(instr.op, ()):
                bound: dict[str, str] = {}
                if _match(self, left, instr, bound) and _applies(self, rule, bound):
                    return self._build(right, bound, instr)
        return None

    def _build(self, pattern: Pattern, bound: dict[str, str], like: Instr) -> str | Instr:
        """The right side: an existing name, or a line; inner operands are emitted first."""
        if isinstance(pattern, str):
            return bound[pattern]
        if not isinstance(pattern, tuple):
            value = bool(pattern) if like.dtype is torch.bool else pattern
            value = float(value) if like.dtype.is_floating_point else value
            return _const(like, value)
        op, operands = pattern
        names = []
        for operand in operands:
            inner = self._build(operand, bound, replace(like, out=self.fresh()))
            names.append(inner if isinstance(inner, str) else self.emit(inner))
        return replace(like, op=op, args=tuple(names), attrs=(), access=None)


def _const(like: Instr, value: Attr) -> Instr:
    return replace(like, op="const", args=(), attrs=(("value", value),), access=None)


def _match(body: Body, pattern: Pattern, instr: Instr, bound: dict[str, str]) -> bool:
    assert isinstance(pattern, tuple)
    op, operands = pattern
    if instr.op != op or len(instr.args) != len(operands):
        return False
    orders = [instr.args]
    if op in COMMUTATIVE:
        orders.append(instr.args[::-1])
    for args in orders:
        trial = dict(bound)
        if all(_match_operand(body, p, a, trial) for p, a in zip(operands, args, strict=True)):
            bound.update(trial)
            return True
    return False


def _match_operand(body: Body, pattern: Pattern, name: str, bound: dict[str, str]) -> bool:
    if isinstance(pattern, str):
        return bound.setdefault(pattern, name) == name
    if isinstance(pattern, tuple):
        return _match(body, pattern, body.defs[name], bound)
    value = body.literal(name)
    if value is None or (isinstance(pattern, bool) and body.defs[name].dtype is not torch.bool):
        return False  # true is not 1.0
    # 0 matches 0 and 0.0 but not -0.0; -0.0 matches -0.0 alone.
    return value == pattern and math.copysign(1.0, value) == math.copysign(1.0, pattern)


def _applies(body: Body, rule: Rule, bound: dict[str, str]) -> bool:
    return "x" not in bound or KINDS[rule.kind](body.defs[bound["x"]].dtype)


# -- rows that are functions ----------------------------------------------------------------------


def _fold_constants(body: Body, instr: Instr) -> Instr | None:
    """op(c1, c2) -> c"""
    evaluate = OPS[instr.op].evaluate
    values = [body.literal(name) for name in instr.args]
    if evaluate is None or None in values:
        return None
    with real_tensors():
        operands = [_scalar(v, body.defs[name].dtype) for v, name in zip(values, instr.args, strict=True)]
        return _evaluated(instr, evaluate, operands)


def _scalar(value: bool | int | float | None, dtype: torch.dtype) -> torch.Tensor:
    assert value is not None
    return torch.full((), value, dtype=dtype)


def _evaluated(instr: Instr, evaluate: Evaluate, operands: Sequence[torch.Tensor]) -> Instr | None:
    try:
        value = evaluate(*operands).item()
    except RuntimeError:  # integer division by zero: PyTorch raises it when the line runs
        return None
    return None if is_negative_zero(value) else _const(instr, value)


def _fold_comparison(body: Body, instr: Instr) -> Instr | None:
    """lt(index a, index b) -> true if a < b on the whole range, false if a >= b; the same for the other five"""
    if instr.op not in ("lt", "le", "gt", "ge", "eq", "ne"):
        return None
    a, b = (body.index(n) for n in instr.args)
    if a is None or b is None:
        return None
    lo, hi = bounds(a - b)
    below, above = hi is not None and hi < 0, lo is not None and lo > 0
    at_most, at_least = hi is not None and hi <= 0, lo is not None and lo >= 0
    equal = lo == 0 and hi == 0
    known = {
        "lt": (below, at_least),
        "le": (at_most, above),
        "gt": (above, at_most),
        "ge": (at_least, below),
        "eq": (equal, below or above),
        "ne": (below or above, equal),
    }
    true, false = known[instr.op]
    return _const(instr, true) if true or false else None


def _exact(source: torch.dtype, target: torch.dtype) -> bool:
    """True when every value of `source` is a value of `target`."""
    if source is target or source is torch.bool:
        return True
    if source.is_floating_point:
        if not target.is_floating_point:
            return False
        a, b = torch.finfo(source), torch.finfo(target)
        return b.eps <= a.eps and b.max >= a.max and b.smallest_normal * b.eps <= a.smallest_normal * a.eps
    if target is torch.bool:
        return False
    low, high = torch.iinfo(source).min, torch.iinfo(source).max
    if target.is_floating_point:
        reach = 2 / torch.finfo(target).eps  # integers up to 2^(mantissa bits + 1) are exact
        return -reach <= low and high <= reach and high <= torch.finfo(target).max
    return torch.iinfo(target).min <= low and high <= torch.iinfo(target).max


def _holds(body: Body, dtype: torch.dtype, name: str) -> bool:
    """True when rounding the value to the dtype changes nothing: but for its sign, it is one that the dtype holds."""
    instr = body.defs[name]
    if instr.op == "cast":
        source = body.defs[instr.args[0]].dtype
        return _exact(source, instr.dtype) and _exact(source, dtype)
    value = body.literal(name)
    if value is not None:
        with real_tensors():
            return bool(_scalar(value, dtype).item() == value)
    return instr.op in ("maximum", "minimum", "neg", "abs") and all(_holds(body, dtype, a) for a in instr.args)


def _cast(body: Body, instr: Instr) -> str | Instr | None:
    """cast:d(x:d) -> x;  cast:c(cast:b(x:a)) -> cast:c(x) if b holds every value of a;  cast(const) -> const

    cast:c(cast:b(x:c)) -> x if b holds x;  cast:c(where(m, cast:b(x:c), k)) -> where(m, x, cast:c(k)) likewise
    """
    inner = body.defs[instr.args[0]]
    if inner.dtype is instr.dtype:
        return inner.out
    value = body.literal(instr.args[0])
    constant = instr.dtype not in (torch.float8_e4m3fn, torch.float8_e5m2)  # Triton has no constants of these
    if value is not None and constant and (math.isfinite(value) or instr.dtype.is_floating_point):
        with real_tensors():
            return _evaluated(instr, lambda x: x.to(instr.dtype), [_scalar(value, inner.dtype)])
    if inner.op == "cast" and _exact(body.defs[inner.args[0]].dtype, inner.dtype):
        return replace(instr, args=inner.args)
    if not inner.dtype.is_floating_point or not instr.dtype.is_floating_point:
        return None
    if inner.op == "cast" and body.defs[inner.args[0]].dtype is instr.dtype:
        return inner.args[0] if _holds(body, inner.dtype, inner.args[0]) else None
    if inner.op == "where" and body.literal(inner.args[2]) is not None:
        condition, chosen, other = inner.args
        rounded = body.defs[chosen]
        if rounded.op == "cast" and _holds(body, inner.dtype, rounded.args[0]):
            wide = (body.emit(replace(instr, out=body.fresh(), args=(a,))) for a in (chosen, other))
            return replace(instr, op="where", args=(condition, *wide))
    return None


def _bitcast(body: Body, instr: Instr) -> str | Instr | None:
    """bitcast:d(x:d) -> x;  bitcast(bitcast(x)) -> bitcast(x)"""
    inner = body.defs[instr.args[0]]
    if inner.dtype is instr.dtype:
        return inner.out
    return replace(instr, args=inner.args) if inner.op == "bitcast" else None


def _divide_by_power_of_two(body: Body, instr: Instr) -> Instr | None:
    """div(x, 2^k) -> mul(x, 2^-k), exact while 2^-k is a normal number"""
    value = body.literal(instr.args[1])
    if value is None or not math.isfinite(value) or value == 0 or abs(math.frexp(value)[0]) != 0.5:
        return None
    info = torch.finfo(instr.dtype)
    if not info.smallest_normal <= abs(1 / value) <= info.max or abs(value) > info.max:
        return None
    factor = body.emit(replace(_const(instr, 1 / value), out=body.fresh()))
    return replace(instr, op="mul", args=(instr.args[0], factor))


def _index_arithmetic(body: Body, instr: Instr) -> Instr | None:
    """add(index a, index b) -> index a + b;  the same for sub, mul, and floordiv and mod by a positive constant"""
    if instr.dtype is not torch.int64:
        return None
    a, b = (body.index(n) for n in instr.args)
    if a is None or b is None or (a.is_constant and b.is_constant):
        return None
    if instr.op in ("floordiv", "mod"):
        if not b.is_constant or b.constant <= 0:
            return None
        expr = a // b if instr.op == "floordiv" else a % b
    else:
        expr = a + b if instr.op == "add" else a - b if instr.op == "sub" else a * b
    lo, hi = bounds(expr)
    wide = 1 << 62  # beyond it int64 arithmetic might wrap, polynomials do not
    if lo is None or hi is None or lo < -wide or hi > wide:
        return None
    return replace(instr, op="index", args=(), attrs=(("expr", expr),))


def _plain_index(body: Body, instr: Instr) -> str | Instr | None:
    """index 7 -> const 7;  index %3 -> %3"""
    expr: Expr = instr.attr("expr")
    if expr.is_constant:
        return _const(instr, expr.constant)
    atom = expr.single_atom()
    is_value = isinstance(atom, Sym) and atom.kind == "value" and body.defs[atom.name].dtype is torch.int64
    return atom.name if is_value and isinstance(atom, Sym) else None


def _masked_load(body: Body, instr: Instr) -> Instr | None:
    """load x[i], mask=true -> load x[i];  load x[i], mask=false, other=c -> c"""
    if not instr.args:
        return None
    mask = body.literal(instr.args[0])
    if mask is None:
        return None
    return replace(instr, args=(), attrs=()) if mask else _const(instr, instr.attr("other", 0))


def _where(body: Body, instr: Instr) -> str | None:
    """where(m, load x[i], mask=m, other=c, c) -> load x[i], mask=m, other=c"""
    condition, chosen, other = instr.args
    load = body.defs[chosen]
    value = body.literal(other)
    if load.op != "load" or load.args != (condition,) or value is None:
        return None
    with real_tensors():
        same = [attr_key(_scalar(v, load.dtype).item()) for v in (load.attr("other", 0), value)]
    return chosen if same[0] == same[1] else None


def _reduction(body: Body, instr: Instr) -> str | Instr | None:
    """sum x over r0 -> x if r0 has extent 1;  argmax(x, position) -> position;  dev_sum x -> x - x;  so do scans"""
    kept = tuple(a for a in instr.row_axes if body.extents[a] != 1)
    if len(kept) == len(instr.row_axes):
        return None
    if kept:
        return replace(instr, attrs=tuple((n, kept if n == "axes" else v) for n, v in instr.attrs))
    if instr.op == "dev_sum":
        return replace(instr, op="sub", args=instr.args * 2, attrs=())
    return instr.args[-1]


def _one_hot_sum(body: Body, instr: Instr) -> Instr | None:
    """sum of where(r0 == t, a, 0) over r0 < n  ->  where(0 <= t and t < n, a + 0, 0), with t and a the same for all r0

    The gradient of a negative log-likelihood has one entry a row; its sum, which log_softmax needs, is that entry.
    """
    chosen = body.defs[instr.args[0]]
    if chosen.op != "where" or len(instr.reduced_axes) != 1 or body.literal(chosen.args[2]) != 0:
        return None
    (axis,) = instr.reduced_axes
    condition, entry, zero = chosen.args
    sides = body.defs[condition].args if body.defs[condition].op == "eq" else ()
    here = axis_symbol(axis, body.extents[axis])
    target = next((b for a, b in (sides, sides[::-1]) if body.index(a) == here), None) if sides else None
    if target is None or body.varies(target, axis) or body.varies(entry, axis):
        return None

    def line(op: str, args: tuple[str, ...], dtype: torch.dtype, **attrs: Attr) -> str:
        return body.emit(Instr(body.fresh(), op, args, dtype, None, tuple(attrs.items()), instr.origin))

    low = line("const", (), torch.int64, value=0)
    size = line("index", (), torch.int64, expr=as_expr(body.extents[axis]))
    inside = line("and", (line("ge", (target, low), torch.bool), line("lt", (target, size), torch.bool)), torch.bool)
    found = line("add", (entry, zero), instr.dtype)  # sums start at 0.0: -0.0 becomes 0.0
    return replace(instr, op="where", args=(inside, found, zero), attrs=())


def _shifted_one_hot_sum(body: Body, instr: Instr) -> Instr | None:
    """sum of (a one-hot row - c) over r0 < n  ->  sum of that row - n*c: a loss with label smoothing has c != 0"""
    shifted = body.defs[instr.args[0]]
    if shifted.op not in ("add", "sub") or len(instr.reduced_axes) != 1 or not instr.dtype.is_floating_point:
        return None
    row, shift = shifted.args
    (axis,) = instr.reduced_axes
    found = None if body.varies(shift, axis) else _one_hot_sum(body, replace(instr, out=body.fresh(), args=(row,)))
    if found is None:
        return None
    extent = body.extents[axis]
    if isinstance(extent, int):
        count = body.emit(Instr(body.fresh(), "const", (), instr.dtype, attrs=(("value", float(extent)),)))
    else:
        number = body.emit(Instr(body.fresh(), "index", (), torch.int64, attrs=(("expr", as_expr(extent)),)))
        count = body.emit(Instr(body.fresh(), "cast", (number,), instr.dtype))
    times = body.emit(Instr(body.fresh(), "mul", (shift, count), instr.dtype, origin=instr.origin))
    return replace(instr, op=shifted.op, args=(body.emit(found), times), attrs=())


def _checked(body: Body, instr: Instr) -> str | None:
    """checked(True, x) -> x"""
    condition, value = instr.args
    return value if body.literal(condition) else None


Function = Callable[[Body, Instr], str | Instr | None]
_FUNCTIONS: dict[str, tuple[Function, ...]] = {
    "cast": (_cast,),
    "checked": (_checked,),
    "bitcast": (_bitcast,),
    "div": (_divide_by_power_of_two,),
    "index": (_plain_index,),
    "load": (_masked_load,),
    "where": (_where,),
    **dict.fromkeys(("add", "sub", "mul", "floordiv", "mod"), (_index_arithmetic,)),
    **{op: (_reduction,) for op, info in OPS.items() if info.kind in (OpKind.REDUCTION, OpKind.SCAN)},
    "sum": (_reduction, _one_hot_sum, _shifted_one_hot_sum),
}


# -- the pass over one body -----------------------------------------------------------------------


def simplify_body(instrs: Sequence[Instr], axes: Sequence[Axis]) -> tuple[Instr, ...]:
    """Common subexpressions once, algebra, masks decided by ranges, dead lines gone; the stores stay.

    %0:f32 = load x[p0]              %0:f32 = load x[p0]
    %1:f32 = load x[p0]              %2:f32 = mul %0, %0
    %2:f32 = mul %0, %1       ->     store y[p0], %2
    %3:f32 = neg %2
    %4:f32 = neg %3
    store y[p0], %4
    """
    written = frozenset(i.access.buffer for i in instrs if i.op == "store" and i.access is not None)
    body = Body(axes, [i.out for i in instrs if i.out is not None], written)
    names: dict[str, str] = {}
    for original in instrs:
        instr = _substitute_known(body, rename([original], names)[0])
        if instr.op != "store":
            assert original.out is not None and instr.out is not None
            names[original.out] = body.emit(instr)
            continue
        body.lines += _stored(body, instr)
    return eliminate_dead(body.lines)


def _stored(body: Body, store: Instr) -> Sequence[Instr]:
    """store y[i], v, mask=false -> nothing;  store y[i], where(m, v, other), mask=m -> store y[i], v, mask=m"""
    if len(store.args) == 1:
        return (store,)
    value, condition = store.args
    mask = body.literal(condition)
    if mask is not None:
        return (replace(store, args=(value,)),) if mask else ()
    chosen = body.defs[value]
    hidden = chosen.op == "where" and chosen.args[0] == condition
    return (replace(store, args=(chosen.args[1], condition)) if hidden else store,)


def _substitute_known(body: Body, instr: Instr) -> Instr:
    """load x[64*%3 + p0] with %3 = index 2*p1  ->  load x[128*p1 + p0]"""
    known: dict[str, IndexLike] = {}
    for expr in instr.index_exprs:
        for symbol in symbols_of(expr):
            value = body.index(symbol.name) if symbol.kind == "value" else None
            if value is not None:
                known[symbol.name] = value
    return map_exprs(instr, known) if known else instr
