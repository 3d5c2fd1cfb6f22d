"""Questions about SSA lines: what varies, what is used, how much memory an access touches; and plain rewrites.

Enters: instructions and axes of a LoopNest or a KernelPlan. Leaves: facts, or new instructions.

    nest n0 (p0<64, r0<4096):               varying
      %0:f32 = load x[4096*p0 + r0]           {p0, r0}
      %1:f32 = load w[r0]                     {r0}        unique_elements = 4096
      %2:f32 = mul %0, %1                     {p0, r0}
      %3:f32 = sum %2 over r0                 {p0}
      store y[p0], %3                                     unique_elements = 64
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fusec.ir.index import Expr, IndexLike, Sym, as_int, evaluate, substitute, symbols_of, value_symbol
from fusec.ir.types import Access, Attr, Axis, Instr

__all__ = [
    "attr_key",
    "computed_from",
    "eliminate_dead",
    "excused",
    "index_axes",
    "instr_key",
    "rename",
    "renumber",
    "substitute_axes",
    "unique_elements",
    "used_values",
    "varying",
]

ENUMERATION_LIMIT = 1 << 20  # points enumerated when no closed form is known
Integers = npt.NDArray[np.int64]  # numpy, because this runs while torch traces with fake tensors


# -- what a value depends on ----------------------------------------------------------------------


def index_axes(expr: Expr, values: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """Axes an index expression depends on, through SSA values used inside it too."""
    found: set[str] = set()
    for symbol in symbols_of(expr):
        if symbol.kind == "axis":
            found.add(symbol.name)
        elif symbol.kind == "value":
            found |= values.get(symbol.name, frozenset())
    return frozenset(found)


def instr_axes(instr: Instr, values: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """Axes an instruction runs over: of a store, the points that write; of a reduction, its operands'; of a scan, also
    those it runs along."""
    found: set[str] = set()
    for arg in instr.args:
        found |= values[arg]
    for expr in instr.index_exprs:
        found |= index_axes(expr, values)
    found.update(instr.scanned_axes)
    return frozenset(found)


def varying(instrs: Iterable[Instr], axes: Iterable[Axis]) -> dict[str, frozenset[str]]:
    """The axes each SSA value depends on, by value name. An axis of extent 1 never appears."""
    known = {a.name for a in axes}
    values: dict[str, frozenset[str]] = {}
    for instr in instrs:
        if instr.out is not None:
            values[instr.out] = (instr_axes(instr, values) & known) - set(instr.reduced_axes)
    return values


# -- keys -----------------------------------------------------------------------------------------


def attr_key(value: Attr) -> Any:
    """A key that is equal exactly when two attributes mean the same: -0.0 is not 0.0, NaN is NaN, 1 is not True."""
    if isinstance(value, float):
        return ("float", value.hex())
    if isinstance(value, tuple):
        return ("tuple", *(attr_key(v) for v in value))
    return (type(value).__name__, value)


def instr_key(instr: Instr) -> tuple[Any, ...]:
    """Equal for two instructions that compute the same value; the result's name does not count."""
    attrs = tuple((name, attr_key(value)) for name, value in instr.attrs)
    return (instr.op, instr.args, instr.dtype, instr.access, attrs)


# -- rewrites -------------------------------------------------------------------------------------


def used_values(instrs: Iterable[Instr]) -> frozenset[str]:
    """Names of the SSA values some instruction reads, index expressions included."""
    return frozenset(name for instr in instrs for name in instr.value_operands)


def eliminate_dead(instrs: Sequence[Instr]) -> tuple[Instr, ...]:
    """Without the values that reach no store.

    %0 = load x[p0]
    %1 = exp %0          ->    %0 = load x[p0]
    store y[p0], %0            store y[p0], %0
    """
    needed: set[str] = set()
    kept: list[Instr] = []
    for instr in reversed(instrs):
        if instr.out is None or instr.out in needed:
            kept.append(instr)
            needed.update(instr.value_operands)
    return tuple(reversed(kept))


def computed_from(value: str, lines: Mapping[str, Instr]) -> list[Instr]:
    """The lines a value is computed from, in order."""
    order: dict[str, Instr] = {}
    stack = [(value, False)]
    while stack:
        name, done = stack.pop()
        if done:
            order[name] = lines[name]
        elif name not in order:
            stack.append((name, True))
            stack += [(operand, False) for operand in lines[name].value_operands]
    return list(order.values())


def map_exprs(instr: Instr, mapping: Mapping[str, IndexLike]) -> Instr:
    """The instruction with symbols of its index expressions replaced by name."""
    if not mapping or not instr.index_exprs:
        return instr
    access = instr.access
    if access is not None:
        access = replace(access, index=substitute(access.index, mapping))
    attrs = tuple((n, substitute(v, mapping) if isinstance(v, Expr) else v) for n, v in instr.attrs)
    return replace(instr, access=access, attrs=attrs)


def substitute_axes(instrs: Iterable[Instr], mapping: Mapping[str, IndexLike]) -> tuple[Instr, ...]:
    """Every index rewritten with axis symbols replaced by expressions; `axes` of reductions stay.

    {"p0": 64*x0 + x1}:    %0 = load x[4*p0 + 1]    ->    %0 = load x[256*x0 + 4*x1 + 1]
    """
    return tuple(map_exprs(instr, mapping) for instr in instrs)


def rename(instrs: Iterable[Instr], names: str | Mapping[str, str]) -> tuple[Instr, ...]:
    """SSA values renamed, inside index expressions too. A string is a prefix for all: "a_" makes %3 to %a_3.

    A mapping renames the values it holds, defined here or not, and leaves the rest.
    """
    result: list[Instr] = []
    for instr in instrs:

        def new(name: str) -> str:
            return f"%{names}{name.removeprefix('%')}" if isinstance(names, str) else names.get(name, name)

        symbols = {s for e in instr.index_exprs for s in symbols_of(e) if s.kind == "value"}
        moved = {s.name: value_symbol(new(s.name), s.hi) for s in symbols if new(s.name) != s.name}
        instr = map_exprs(instr, moved)
        out = None if instr.out is None else new(instr.out)
        result.append(replace(instr, out=out, args=tuple(new(a) for a in instr.args)))
    return tuple(result)


def excused(check: Instr, mask: str, taken: Container[str | None]) -> tuple[Instr, list[Instr]]:
    """A `checked` that holds where the mask does not, and the lines before it; taken: names in use.

    %2 = checked %1, %0    ->    %2.outside = not %mask;  %2.excused = or %1, %2.outside;  %2 = checked %2.excused, %0
    """
    suffix = ""
    while f"{check.out}.outside{suffix}" in taken:
        suffix += "s"
    outside, either = f"{check.out}.outside{suffix}", f"{check.out}.excused{suffix}"
    lines = [
        Instr(outside, "not", (mask,), torch.bool, None, (), check.origin),
        Instr(either, "or", (check.args[0], outside), torch.bool, None, (), check.origin),
    ]
    return replace(check, args=(either, check.args[1])), lines


def renumber(instrs: Sequence[Instr]) -> tuple[Instr, ...]:
    """Values named %0, %1, ... in order of definition: equal bodies become equal tuples."""
    outs = [i.out for i in instrs if i.out is not None]
    return rename(instrs, {name: f"%{position}" for position, name in enumerate(outs)})


# -- how much memory an access touches ------------------------------------------------------------


def unique_elements(access: Access | Expr, axes: Iterable[Axis]) -> int | None:
    """Number of distinct addresses an access touches over the axes; None when that is not known.

    Exact for static extents: mixed-radix sums have a closed form (4096*p0 + r0 touches 64*4096 elements,
    p0 + r0 touches 64 + 4096 - 1), divisions and overlapping windows are enumerated up to a limit.
    None for indices that hold loaded values or symbolic sizes, and beyond the limit.
    """
    index = access.index if isinstance(access, Access) else access
    extents: list[tuple[str, int]] = []
    empty = False
    for axis in axes:
        extent = as_int(axis.extent)
        if extent is None:
            return None
        empty = empty or extent == 0
        extents.append((axis.name, extent))
    return 0 if empty else _unique(index, tuple(extents))


@lru_cache(maxsize=16384)
def _unique(index: Expr, extents: tuple[tuple[str, int], ...]) -> int | None:
    sizes = dict(extents)
    if any(s.kind != "axis" or s.name not in sizes for s in symbols_of(index)):
        return None
    digits: list[tuple[int, int]] = []
    ragged: list[Integers] = []  # value sets that are no sums of progressions
    for part in _independent_parts(index):
        linear = part.linear()
        if linear is not None:
            digits += [(abs(c), sizes[s.name]) for s, c in linear.items()]
            continue
        values = _values(part, sizes)
        if values is None:
            return None
        found = _progressions((values - values[0]).tolist())
        if found is None:
            ragged.append(values)
        else:
            digits += found
    return _count_sums(digits, ragged) if ragged else _count(digits)


def _independent_parts(index: Expr) -> list[Expr]:
    """The index as a sum of expressions that share no axis; the constant is dropped."""
    groups: list[tuple[set[Sym], Expr]] = []
    for monomial, coefficient in index.terms:
        if not monomial:
            continue
        term = Expr(((monomial, coefficient),))
        symbols = set(symbols_of(term))
        apart = []
        for other, part in groups:
            if other & symbols:
                symbols |= other
                term = part + term
            else:
                apart.append((other, part))
        groups = [*apart, (symbols, term)]
    return [term for _, term in groups]


def _values(part: Expr, sizes: Mapping[str, int]) -> Integers | None:
    """The distinct values of an expression, sorted; None beyond the limit."""
    names = sorted({s.name for s in symbols_of(part)})
    if prod(sizes[n] for n in names) > ENUMERATION_LIMIT:
        return None
    env = {n: np.arange(sizes[n]).reshape([-1 if m == n else 1 for m in names]) for n in names}
    return np.unique(evaluate(part, env))


def _progressions(values: list[int]) -> list[tuple[int, int]] | None:
    """[0, 1, 2, 10, 11, 12] -> [(1, 3), (10, 2)]; None when the values are not a sum of progressions."""
    result: list[tuple[int, int]] = []
    while len(values) > 1:
        step = values[1] - values[0]
        run = next((i for i in range(1, len(values)) if values[i] - values[i - 1] != step), len(values))
        if len(values) % run:
            return None
        starts = values[::run]
        if values != [start + step * i for start in starts for i in range(run)]:
            return None
        result.append((step, run))
        values = starts
    return result


def _count(digits: list[tuple[int, int]]) -> int | None:
    """Number of distinct sums of stride*i, 0 <= i < extent.

    Invariant: the sums so far are A + unit*[0, steps), where A has `below` values and spans less than unit.
    """
    below, unit, steps, span = 1, 1, 1, 0
    ordered = sorted((s, n) for s, n in digits if n > 1)
    for stride, extent in ordered:
        if stride % unit == 0 and stride // unit <= steps:
            steps += (stride // unit) * (extent - 1)
        elif stride > span:
            below, unit, steps = below * steps, stride, extent
        else:
            return _count_sums(ordered, [])
        span += stride * (extent - 1)
    return below * steps


def _count_sums(digits: list[tuple[int, int]], ragged: list[Integers]) -> int | None:
    """The same by enumeration, of progressions and of other value sets."""
    sets: list[Integers] = [stride * np.arange(extent) for stride, extent in digits] + ragged
    sums: Integers = np.zeros(1, dtype=np.int64)
    for values in sets:
        if sums.size * values.size > ENUMERATION_LIMIT:
            return None
        sums = np.unique(sums.reshape(-1, 1) + values)
    return int(sums.size)
