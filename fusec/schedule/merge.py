"""Mechanics of fusion: two nests over shared axes become one body.

Before                                  After (precision "fast")
  nest n0 (p0<64, p1<4096):               nest n0_n1 (p0<64, p1<4096):
    %0:bf16 = load x[4096*p0 + p1]          %0:bf16 = load x[4096*p0 + p1]
    %1:f32 = cast %0                        %1:f32 = cast %0
    %2:f32 = exp %1                         %2:f32 = exp %1
    store t[4096*p0 + p1], %2               store t[4096*p0 + p1], %2
  nest n1 (p0<64, p1<4096):                 %3:f32 = neg %2
    %0:bf16 = load t[4096*p0 + p1]          store y[4096*p0 + p1], %3
    %1:f32 = cast %0
    %2:f32 = neg %1
    store y[4096*p0 + p1], %2

A load of what the same kernel stored becomes the stored value. "fast" forwards it unrounded to a `cast` back to
the computing dtype; every other use, and every use in "eager", sees it rounded to the buffer's dtype.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch

from fusec.ir.analysis import attr_key, eliminate_dead, instr_key, rename
from fusec.ir.types import AccessMode, Attr, Instr, LoopNest


def with_unique_values(nest: LoopNest) -> LoopNest:
    """Prefix every SSA name with the nest's name, so that bodies can be joined without clashes."""
    return replace(nest, body=rename(nest.body, f"{nest.name}."))


@dataclass(slots=True)
class _Joiner:
    """Appends lines to a body, forwarding stored values and sharing equal lines."""

    precision: str
    body: list[Instr] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)  # value of an incoming line -> value here
    forwarded: dict[str, tuple[Instr, str]] = field(default_factory=dict)  # load -> itself, what was stored
    stored: dict[str, Instr] = field(default_factory=dict)  # buffer -> its store
    seen: dict[object, str] = field(default_factory=dict)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)

    def add(self, instr: Instr) -> None:
        if instr.op == "cast" and instr.args[0] in self.forwarded:
            load, value = self.forwarded[instr.args[0]]
            if self.dtypes[value] == instr.dtype and instr.out is not None:
                self.names[instr.out] = self._masked(load, value)
                return
        for operand in instr.value_operands:
            if operand in self.forwarded and operand not in self.names:
                load, value = self.forwarded[operand]
                self.names[operand] = self._masked(load, self._emit("cast", (value,), load))
        (instr,) = rename((instr,), self.names)
        if instr.op == "load" and instr.access is not None and instr.access.buffer in self.stored:
            self._forward(instr)
        elif instr.out is not None:
            key = instr_key(instr)
            if key in self.seen:
                self.names[instr.out] = self.seen[key]
                return
            self.seen[key] = instr.out
            self.dtypes[instr.out] = instr.dtype
            self.body.append(instr)
        else:
            if instr.access is not None and len(instr.args) == 1 and instr.access.mode is AccessMode.STORE:
                self.stored[instr.access.buffer] = instr
            self.body.append(instr)

    def _forward(self, load: Instr) -> None:
        assert load.out is not None and load.access is not None
        store = self.stored[load.access.buffer]
        assert store.access is not None and store.access.index == load.access.index, "legality asks for equal indices"
        value = store.args[0]
        rounds = self.dtypes[value] != load.dtype
        floats = self.dtypes[value].is_floating_point and load.dtype.is_floating_point
        if rounds and floats and self.precision == "fast":
            self.forwarded[load.out] = (load, value)
            return
        if rounds:
            value = self._emit("cast", (value,), load)
        self.names[load.out] = self._masked(load, value)

    def _masked(self, load: Instr, value: str) -> str:
        """The value, in place of what a load yields; the load's `other` where its mask is false."""
        if not load.args:
            return value
        like = replace(load, dtype=self.dtypes[value])
        other = self._emit("const", (), like, (("value", load.attr("other", 0)),))
        return self._emit("where", (load.args[0], value, other), like)

    def _emit(self, op: str, args: tuple[str, ...], like: Instr, attrs: tuple[tuple[str, Attr], ...] = ()) -> str:
        key = (op, args, like.dtype, None, tuple((n, attr_key(v)) for n, v in attrs))
        if key not in self.seen:
            name = f"{like.out}.{op}"
            if name in self.dtypes:  # rounded and unrounded
                name = f"{name}.{str(like.dtype).removeprefix('torch.')}"
            self.body.append(Instr(name, op, args, like.dtype, None, attrs, like.origin))
            self.seen[key] = name
            self.dtypes[name] = like.dtype
        return self.seen[key]


def join(left: Iterable[Instr], right: Iterable[Instr], precision: str) -> tuple[Instr, ...]:
    """One body: left's lines, then right's, sharing equal loads and values and forwarding stores to loads."""
    joiner = _Joiner(precision)
    for instr in (*left, *right):
        joiner.add(instr)
    return eliminate_dead(joiner.body)


def without_stores(body: Iterable[Instr], buffers: frozenset[str]) -> tuple[Instr, ...]:
    """Drop the stores of buffers that nobody else reads, and the lines only they needed."""
    kept = [i for i in body if i.out is not None or i.access is None or i.access.buffer not in buffers]
    return eliminate_dead(kept)
