"""What the passes ask of one layer of a model, they ask of every layer: a question is answered once.

Enters: a question (a pure function of nests), the nests, the buffers they touch. Leaves: its answer.

    fuse_nests(n3: h3 = x + a3, n4: y3 = norm(h3))        asked and answered
    fuse_nests(n9: h9 = h3 + a9, n10: y9 = norm(h9))      the same but for names: the answer above in these names

Names decide nothing, so a question is put in formal names (`$b2$` for the third buffer, `$v0.5$` for the sixth value of
the first nest) and answered in them; the answer, sentences included, is then told in the names of who asked. Two
questions are the same when their nests have equal axes and lines and touch buffers of equal dtype, shape, strides,
device, role and kind of name, in the same pattern.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache, cached_property
from typing import Any, TypeVar

from fusec.ir.analysis import attr_key
from fusec.ir.index import Expr, IndexLike, substitute, symbols_of, value_symbol
from fusec.ir.types import Access, Axis, Buffer, Instr, LoopNest, Origin

__all__ = ["Once", "plain_hint"]

T = TypeVar("T")
Table = Mapping[str, Buffer]

_TOKEN = re.compile(r"\$([bnv][\d.]+)\$")


def plain_hint(buffer: Buffer) -> str:
    """Of a buffer's hint the last word, without digits: the weight of any layer is a weight."""
    return re.sub(r"\d+", "", buffer.hint.rsplit(".", 1)[-1])


@dataclass(frozen=True)
class _Form:
    """A nest without its names. key: equal for nests that differ in names alone."""

    key: int
    nest: LoopNest
    buffers: tuple[str, ...]
    origins: tuple[Origin, ...]

    @cached_property
    def values(self) -> tuple[str, ...]:
        return tuple(i.out for i in self.nest.body if i.out is not None)


@dataclass(slots=True)
class Once:
    """The answers given so far. share=False answers every question anew."""

    share: bool = True
    asked: int = 0
    answers: dict[Hashable, Any] = field(default_factory=dict)
    _forms: dict[int, _Form] = field(default_factory=dict)  # by id; a form holds its nest, so ids stay taken
    _keys: dict[Hashable, int] = field(default_factory=dict)

    def __call__(
        self, question: Callable[..., T], nests: Sequence[LoopNest], table: Table, *others: Hashable, buffer: str = ""
    ) -> T:
        """question(nests, table of their buffers, *others), with the name of one of these buffers last where given."""
        named = (buffer,) if buffer else ()
        if not self.share:
            return question(nests, table, *others, *named)
        self.asked += 1
        forms = [self._form(nest) for nest in nests]
        buffers = tuple(dict.fromkeys(name for form in forms for name in form.buffers))
        origins = tuple(dict.fromkeys(origin for form in forms for origin in form.origins))
        where = {name: i for i, name in enumerate(buffers)}
        key = (
            question,
            others,
            where.get(buffer, -1),
            tuple(form.key for form in forms),
            tuple(where[name] for form in forms for name in form.buffers),
            _pattern([origin for form in forms for origin in form.origins]),
            tuple(_described(table[name]) for name in buffers),
        )
        if key not in self.answers:
            self.answers[key] = self._ask(question, forms, buffers, origins, table, others, where.get(buffer))
        answer: T = _Telling.of(forms, buffers, origins, table).told(self.answers[key])
        return answer

    def _ask(
        self,
        question: Callable[..., Any],
        forms: Sequence[_Form],
        buffers: tuple[str, ...],
        origins: tuple[Origin, ...],
        table: Table,
        others: tuple[Hashable, ...],
        buffer: int | None,
    ) -> Any:
        formal = [f"$b{i}$" for i in range(len(buffers))]
        stands_for = dict(zip(buffers, formal, strict=True))
        renamed = {f: replace(table[name], name=f, hint=plain_hint(table[name])) for name, f in stands_for.items()}
        numbered = {origin: Origin(f"${i}$", origin.op) for i, origin in enumerate(origins)}
        nests = []
        for position, form in enumerate(forms):
            values = {name: f"%$v{position}.{i}$" for i, name in enumerate(form.values)}
            body = tuple(_renamed(i, stands_for, values, numbered) for i in form.nest.body)
            nests.append(LoopNest(f"$n{position}$", form.nest.axes, body))
        return question(nests, renamed, *others, *(() if buffer is None else (formal[buffer],)))

    def _form(self, nest: LoopNest) -> _Form:
        found = self._forms.get(id(nest))
        if found is not None:
            return found
        buffers: dict[str, int] = {}
        origins: dict[Origin | None, int] = {None: -1}
        values: dict[str, int] = {}
        lines = tuple(_line(instr, buffers, values, origins) for instr in nest.body)
        key = self._keys.setdefault((nest.axes, lines), len(self._keys))
        del origins[None]
        form = _Form(key, nest, tuple(buffers), tuple(o for o in origins if o is not None))
        self._forms[id(nest)] = form
        return form


def _line(instr: Instr, buffers: dict[str, int], values: dict[str, int], origins: dict[Origin | None, int]) -> Hashable:
    """A line with positions in place of names, in order of first use."""
    access = instr.access
    touched: Hashable = None
    if access is not None:
        number = buffers.setdefault(access.buffer, len(buffers))
        touched = (number, access.mode, _numbered(access.index, values))
    attrs = tuple((n, _numbered(v, values) if isinstance(v, Expr) else attr_key(v)) for n, v in instr.attrs)
    args = tuple(values[a] for a in instr.args)
    if instr.out is not None:
        values[instr.out] = len(values)
    origin = origins.setdefault(instr.origin, len(origins))
    return instr.op, instr.out is None, args, instr.dtype, touched, attrs, origin


def _numbered(expr: Expr, values: Mapping[str, int]) -> Expr:
    return _with_values(expr, {name: f"%{number}" for name, number in values.items()}) if _has_values(expr) else expr


def _has_values(expr: Expr) -> bool:
    return any(s.kind == "value" for s in symbols_of(expr))


def _with_values(expr: Expr, names: Mapping[str, str]) -> Expr:
    symbols = [s for s in symbols_of(expr) if s.kind == "value"]
    moved: dict[str, IndexLike] = {s.name: value_symbol(names.get(s.name, s.name), s.hi) for s in symbols}
    return substitute(expr, moved)


def _pattern(origins: Sequence[Origin]) -> tuple[int, ...]:
    first: dict[Origin, int] = {}
    return tuple(first.setdefault(origin, i) for i, origin in enumerate(origins))


def _described(buffer: Buffer) -> Hashable:
    return buffer.dtype, buffer.shape, buffer.strides, buffer.device, buffer.role, plain_hint(buffer)


def _renamed(
    instr: Instr, buffers: Mapping[str, str], values: Mapping[str, str], origins: Mapping[Origin, Origin]
) -> Instr:
    """The line with every name looked up; what is not found stays."""
    access = instr.access
    if access is not None:
        index = _with_values(access.index, values) if _has_values(access.index) else access.index
        access = Access(buffers.get(access.buffer, access.buffer), index, access.mode)
    attrs = instr.attrs
    if any(isinstance(v, Expr) and _has_values(v) for _, v in attrs):
        attrs = tuple((n, _with_values(v, values) if isinstance(v, Expr) else v) for n, v in attrs)
    out = instr.out if instr.out is None else values.get(instr.out, instr.out)
    args = tuple([values.get(a, a) for a in instr.args])
    origin = instr.origin if instr.origin is None else origins.get(instr.origin, instr.origin)
    return Instr(out, instr.op, args, instr.dtype, access, attrs, origin)


class _Names(dict[str, str]):
    """Looks a name up that may hold formal names: "%$v0.3$.cast" -> "%n7.3.cast".

    taken: values of who asked. A value made from a formal name must not meet one that was made so before:
    "%$v0.3$.cast" is new in the answer, "%n7.3.cast" may be old.
    """

    def __init__(self, tokens: Mapping[str, str], taken: Iterable[str]) -> None:
        super().__init__()
        self.tokens, self.taken = tokens, set(taken)

    def __missing__(self, text: str) -> str:
        told = _TOKEN.sub(lambda match: self.tokens[match[1]], text) if "$" in text else text
        if told.startswith("%") and not _TOKEN.fullmatch(text, 1):
            while told in self.taken:
                told += "s"
            self.taken.add(told)
        self[text] = told
        return told

    def get(self, text: str, _default: Any = None) -> str:
        return self[text]


@dataclass(slots=True)
class _Telling:
    """An answer in the names of who asked."""

    names: _Names
    origins: dict[Origin, Origin]
    table: Table

    @classmethod
    def of(
        cls, forms: Sequence[_Form], buffers: tuple[str, ...], origins: tuple[Origin, ...], table: Table
    ) -> _Telling:
        tokens = {f"b{i}": name for i, name in enumerate(buffers)}
        for position, form in enumerate(forms):
            tokens[f"n{position}"] = form.nest.name
            tokens |= {f"v{position}.{i}": name.removeprefix("%") for i, name in enumerate(form.values)}
        numbered = {Origin(f"${i}$", origin.op): origin for i, origin in enumerate(origins)}
        return cls(_Names(tokens, (v for form in forms for v in form.values)), numbered, table)

    def told(self, answer: Any) -> Any:
        if isinstance(answer, str):
            return self.names[answer]
        if isinstance(answer, Instr):
            return _renamed(answer, self.names, self.names, self.origins)
        if isinstance(answer, Buffer):
            return self.table[self.names[answer.name]]
        if isinstance(answer, tuple):
            told = tuple([self.told(item) for item in answer])
            return told if any(a is not b for a, b in zip(answer, told, strict=True)) else answer
        if isinstance(answer, frozenset):
            return frozenset(self.told(item) for item in answer)
        return self._fields(answer, _field_names(answer.__class__))

    def _fields(self, answer: Any, names: tuple[str, ...]) -> Any:
        before = [getattr(answer, name) for name in names]
        told = [self.told(value) for value in before]
        same = all(a is b for a, b in zip(before, told, strict=True))
        return answer if same else type(answer)(**dict(zip(names, told, strict=True)))


@cache
def _field_names(kind: Any) -> tuple[str, ...]:
    """The fields of a dataclass; () for every other type, and for an Axis, which holds no name of a program."""
    return tuple(f.name for f in fields(kind)) if is_dataclass(kind) and kind is not Axis else ()
