"""Bytes a body moves: the distinct elements of global memory it touches, exactly.

Enters: SSA lines over axes. Leaves: per buffer the number of distinct elements read and written.

    nest (p0<64, r0<4096): load x[4096*p0 + r0]; load w[r0]; store y[4096*p0 + r0]
    ->  read {x: 262144, w: 4096}, written {y: 262144}

Axes that every access of a buffer uses with one common stride, larger than all the rest together, multiply the count;
the rest (offsets, windows, masks, divisions) is enumerated once. Data-dependent positions count every point, at most
the whole buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fusec.ir.analysis import computed_from, index_axes, instr_axes, varying
from fusec.ir.index import Expr, atom_expr, bounds, evaluate, substitute, symbols_of
from fusec.ir.sizes import hint_of
from fusec.ir.types import Axis, Buffer, Instr, LoopNest
from fusec.schedule.predicted import extent_hint, predicted_nest

Points = npt.NDArray[Any]

ENUMERATION_LIMIT = 1 << 22  # points; above it the count is bounded by the span of addresses


@dataclass(frozen=True, slots=True)
class Traffic:
    """Distinct elements per buffer, read and written in one launch."""

    read: dict[str, int]
    written: dict[str, int]

    def bytes_read(self, table: Mapping[str, Buffer]) -> int:
        return sum(n * table[b].itemsize for b, n in self.read.items())

    def bytes_written(self, table: Mapping[str, Buffer]) -> int:
        return sum(n * table[b].itemsize for b, n in self.written.items())


@dataclass(frozen=True, slots=True)
class _Touch:
    """One access: its index, its mask as a value name, and the axes it runs over."""

    index: Expr
    mask: str | None
    axes: frozenset[str]


def traffic(body: Sequence[Instr], axes: Sequence[Axis], table: Mapping[str, Buffer]) -> Traffic:
    """Distinct elements that one execution of the body reads and writes, per buffer; at the sizes of the first call."""
    nest = predicted_nest(LoopNest("", tuple(axes), tuple(body)))
    body, axes = nest.body, nest.axes
    values = varying(body, axes)
    lines = {i.out: i for i in body if i.out is not None}
    touches: dict[tuple[bool, str], dict[tuple[Expr, str | None], _Touch]] = {}
    for instr in body:
        if instr.access is None:
            continue
        is_load = instr.op == "load"
        masks = instr.args if is_load else instr.args[1:]
        mask = masks[0] if masks else None
        touch = _Touch(
            instr.access.index, mask, instr_axes(instr, values) if is_load else _store_axes(instr, values, mask)
        )
        touches.setdefault((is_load, instr.access.buffer), {})[(touch.index, mask)] = touch
        if instr.access.mode.is_atomic:  # it reads what it changes
            touches.setdefault((True, instr.access.buffer), {})[(touch.index, mask)] = touch
    read: dict[str, int] = {}
    written: dict[str, int] = {}
    for (is_load, buffer), found in touches.items():
        size = hint_of(table[buffer].numel)
        count = _count(list(found.values()), axes, lines, size)
        (read if is_load else written)[buffer] = count
    return Traffic(read, written)


def _store_axes(instr: Instr, values: Mapping[str, frozenset[str]], mask: str | None) -> frozenset[str]:
    assert instr.access is not None
    return index_axes(instr.access.index, values) | (values[mask] if mask is not None else frozenset())


def _count(touches: list[_Touch], axes: Sequence[Axis], lines: Mapping[str, Instr], size: int) -> int:
    extents = {a.name: extent_hint(a.extent) for a in axes}
    used = frozenset().union(*(t.axes for t in touches))
    if any(extents[a] == 0 for a in used):
        return 0
    outer, rest = _outer_axes(touches, extents, lines)
    factor = prod(extents[a] for a in outer)
    trimmed = [_Touch(substitute(t.index, dict.fromkeys(outer, 0)), t.mask, t.axes - outer) for t in touches]
    points = sum(prod(extents[a] for a in t.axes) for t in trimmed)
    if points <= ENUMERATION_LIMIT and not any(_is_data(t, lines) for t in trimmed):
        return factor * _enumerate(trimmed, extents, lines)
    span = min(rest, size)
    bound = factor * min(points, span) if span else factor * points
    return min(bound, size)


def _outer_axes(
    touches: list[_Touch], extents: Mapping[str, int], lines: Mapping[str, Instr]
) -> tuple[frozenset[str], int]:
    """Axes whose stride exceeds everything the others can add up to, and the span of the others."""
    if any(_is_data(t, lines) for t in touches):
        return frozenset(), 0
    tied = frozenset().union(*(_nonlinear_axes(t, lines) for t in touches))
    strides: list[dict[str, int]] = []
    for t in touches:
        strides.append({m[0].key: c for m, c in t.index.terms if len(m) == 1 and m[0].key in extents})
    common = {a: s for a, s in strides[0].items() if a not in tied and all(d.get(a) == s for d in strides)}
    chosen: set[str] = set()
    for axis, stride in sorted(common.items(), key=lambda item: -item[1]):
        low, high = _span(touches, chosen | {axis})
        if stride <= high - low:
            break
        chosen.add(axis)
    low, high = _span(touches, chosen)
    return frozenset(chosen), high - low + 1


def _span(touches: list[_Touch], without: set[str]) -> tuple[int, int]:
    limits = [bounds(substitute(t.index, dict.fromkeys(without, 0))) for t in touches]
    low = min((lo if lo is not None else 0) for lo, _ in limits)
    high = max((hi if hi is not None else 1 << 62) for _, hi in limits)
    return low, high


def _nonlinear_axes(touch: _Touch, lines: Mapping[str, Instr]) -> frozenset[str]:
    found: set[str] = set()
    for monomial, _ in touch.index.terms:
        if len(monomial) != 1 or monomial[0].key != getattr(monomial[0], "name", None):
            found |= {s.name for atom in monomial for s in symbols_of(atom_expr(atom))}
    if touch.mask is not None:
        for instr in computed_from(touch.mask, lines):
            found |= {s.name for e in instr.index_exprs for s in symbols_of(e)}
    return frozenset(found)


def _is_data(touch: _Touch, lines: Mapping[str, Instr]) -> bool:
    """True when the position or the mask depends on loaded data, or on more than index arithmetic."""
    if any(s.kind == "value" and _loads(s.name, lines) for s in symbols_of(touch.index)):
        return True
    return touch.mask is not None and _loads(touch.mask, lines)


def _loads(value: str, lines: Mapping[str, Instr]) -> bool:
    return not all(
        i.op in _NUMPY or i.op in ("const", "index") or (i.op == "cast" and i.dtype in _NUMPY_DTYPES)
        for i in computed_from(value, lines)
    )


def _enumerate(touches: list[_Touch], extents: Mapping[str, int], lines: Mapping[str, Instr]) -> int:
    found: list[Points] = []
    for touch in touches:
        order = sorted(touch.axes)
        env: dict[str, Any] = {
            a: np.arange(extents[a]).reshape([-1 if i == j else 1 for j in range(len(order))])
            for i, a in enumerate(order)
        }
        for symbol in symbols_of(touch.index):
            if symbol.kind == "value":
                _evaluate_slice(symbol.name, lines, env)
        shape = [extents[a] for a in order]
        position = np.broadcast_to(evaluate(touch.index, env), shape)
        if touch.mask is not None:
            position = position[np.broadcast_to(_evaluate_slice(touch.mask, lines, env), shape)]
        found.append(position.reshape(-1))
    positions = np.concatenate(found)
    if not positions.size:
        return 0
    low, high = int(positions.min()), int(positions.max())
    if high - low < 1 << 28:  # marking is many times faster than np.unique, which hashes or sorts
        marks = np.zeros(high - low + 1, dtype=bool)
        marks[positions - low] = True
        return int(np.count_nonzero(marks))
    return int(np.unique(positions).size)


_NUMPY_DTYPES: dict[torch.dtype, Any] = {
    torch.bool: np.bool_,
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.float32: np.float32,
    torch.float64: np.float64,
}
# What index arithmetic and masks are made of. numpy, because this runs while torch traces with fake tensors.
_NUMPY: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "neg": np.negative,
    "abs": np.abs,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "floordiv": np.floor_divide,
    "mod": np.mod,
    "div": np.divide,
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "not": np.invert,
    "where": np.where,
}


def _evaluate_slice(value: str, lines: Mapping[str, Instr], env: dict[str, Any]) -> Points:
    for instr in computed_from(value, lines):
        assert instr.out is not None
        if instr.op == "const":
            env[instr.out] = np.asarray(instr.attr("value"), dtype=_NUMPY_DTYPES.get(instr.dtype))
        elif instr.op == "index":
            env[instr.out] = np.asarray(evaluate(instr.attr("expr"), env))
        elif instr.op == "cast":
            env[instr.out] = np.asarray(env[instr.args[0]]).astype(_NUMPY_DTYPES[instr.dtype])
        else:
            env[instr.out] = _NUMPY[instr.op](*(env[a] for a in instr.args))
    result: Points = env[value]
    return result
