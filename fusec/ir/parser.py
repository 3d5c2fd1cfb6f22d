"""Printed programs read back: a bug report becomes the Program it shows.

Enters: the text of `format_program`. Leaves: an equal Program, without comments' origins and constants' data.

    parse_program('''
    program f (x)
      in    x: f32[64] (1) cpu
      out   y: f32[64] (1) cpu
    nest n0 (p0<64):
      %0:f32 = load x[p0]
      %1:f32 = exp %0
      store y[p0], %1
    return y
    ''')

An SSA value inside an index, `x[64*%3 + p0]`, gets no upper bound: the text does not show it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fusec.errors import FusecError
from fusec.ir.index import Expr, IndexLike, as_expr, value_symbol
from fusec.ir.ops import OPS, OpKind
from fusec.ir.printer import SHORT_NAMES
from fusec.ir.types import (
    Access,
    AccessMode,
    Axis,
    AxisKind,
    Buffer,
    Extern,
    Instr,
    LoopNest,
    Node,
    Output,
    Program,
    Role,
    TensorView,
)

__all__ = ["parse_expr", "parse_instr", "parse_program"]

_DTYPES = {name: dtype for dtype, name in SHORT_NAMES.items()}
_BUFFER = re.compile(r"(in|out|tmp|const)\s+(\w+): (\w+)\[(.*?)\] \((.*?)\) (\S+)(?: '(.*)')?$")
_NEST = re.compile(r"nest (\S+) \((.*)\):$")
_EXTERN = re.compile(r"extern (\S+): (?:(.*?) = )?([\w.]+)\((.*)\)(?: mutates (.*))?$")
_STORE = re.compile(r"(store|overwrite|atomic_\w+) (\w+)\[(.*?)\], (%\w+)(?:, mask=(%\w+))?(?: over (\w+(?:, \w+)*))?$")
_VALUE = re.compile(r"(%\w+):(\w+) = (\w+) ?(.*)$")
_LOAD = re.compile(r"(\w+)\[(.*?)\](?:, mask=(%\w+), other=(\S+))?$")
_VIEW = re.compile(r"(\w+)\[([^\[\]]*)\]\(([^()]*)\)(?: \+ (\d+))?")


def _dtype(name: str) -> torch.dtype:
    dtype = _DTYPES.get(name) or getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise FusecError(f"no dtype is called {name!r}; the short names are {', '.join(_DTYPES)}")
    return dtype


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part.strip())


def _number(text: str) -> bool | int | float:
    if text in ("True", "False"):
        return text == "True"
    return int(text) if re.fullmatch(r"-?\d+", text) else float(text)


def parse_expr(text: str, axes: Mapping[str, Axis]) -> Expr:
    """`64*p0 + r0//8` over the axes given; `%3` is an SSA value."""
    tree = ast.parse(re.sub(r"%(\w+)(?=\W|$)", _value_name, text.strip()), mode="eval")

    def walk(node: ast.expr) -> IndexLike:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name):
            if node.id.startswith("_value_"):
                return value_symbol("%" + node.id.removeprefix("_value_"), None)
            if node.id not in axes:
                raise FusecError(f"{text!r} uses {node.id!r}, which is no axis; the axes are {', '.join(axes)}")
            return axes[node.id].symbol
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return 0 - as_expr(walk(node.operand))
        if isinstance(node, ast.BinOp):
            a, b = as_expr(walk(node.left)), as_expr(walk(node.right))
            for kind, result in _OPERATORS.items():
                if isinstance(node.op, kind):
                    return result(a, b)
        raise FusecError(f"{text!r} is no index expression: + - * // % over axes, integers and values")

    return as_expr(walk(tree.body))


def _value_name(match: re.Match[str]) -> str:
    # `r0%8` is a remainder, `%8` after an operator or at the start is a value.
    before = match.string[: match.start()].rstrip()
    return match.group(0) if before and (before[-1].isalnum() or before[-1] in "_)") else f"_value_{match.group(1)}"


_OPERATORS: dict[type[ast.operator], Callable[[Expr, Expr], Expr]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
}


def parse_instr(line: str, axes: Mapping[str, Axis], table: Mapping[str, Buffer]) -> Instr:
    """One SSA line without its comment."""
    store = _STORE.match(line)
    if store:
        verb, buffer, index, value, mask, over = store.groups()
        access = Access(buffer, parse_expr(index, axes), AccessMode(verb))
        counted = (("axes", tuple(over.split(", "))),) if over else ()
        return Instr(None, "store", (value, mask) if mask else (value,), table[buffer].dtype, access, counted)
    match = _VALUE.match(line)
    if match is None or match.group(3) not in OPS:
        raise FusecError(f"cannot read {line!r} as an instruction")
    out, dtype, op, rest = match.groups()
    if op == "load":
        load = _LOAD.match(rest)
        if load is None:
            raise FusecError(f"cannot read {line!r} as a load")
        buffer, index, mask, other = load.groups()
        attrs = (("other", _number(other)),) if mask else ()
        return Instr(out, op, (mask,) if mask else (), _dtype(dtype), Access(buffer, parse_expr(index, axes)), attrs)
    if op == "const":
        return Instr(out, op, (), _dtype(dtype), attrs=(("value", _number(rest)),))
    if op == "index":
        return Instr(out, op, (), _dtype(dtype), attrs=(("expr", parse_expr(rest, axes)),))
    names, _, over = rest.partition(" over ")
    reduced = tuple(a.strip() for a in over.split(",") if a.strip())
    operands = tuple(a.strip() for a in names.split(","))
    names_axes = OPS[op].kind in (OpKind.REDUCTION, OpKind.SCAN)
    return Instr(out, op, operands, _dtype(dtype), attrs=(("axes", reduced),) if names_axes else ())


def _parse_axes(text: str) -> dict[str, Axis]:
    axes = {}
    for part in text.split(","):
        if part.strip():
            name, extent = part.strip().split("<")
            kind = AxisKind.REDUCTION if name.startswith("r") else AxisKind.PARALLEL
            axes[name] = Axis(name, int(extent), kind)
    return axes


def _parse_buffer(line: str) -> Buffer:
    match = _BUFFER.match(line)
    if match is None:
        raise FusecError(f"cannot read {line!r} as a buffer")
    role, name, dtype, shape, strides, device, hint = match.groups()
    return Buffer(name, _dtype(dtype), _ints(shape), _ints(strides), device, Role(role), hint or "")


def _parse_view(text: str, table: Mapping[str, Buffer]) -> Output:
    text = text.strip()
    if text == "None":
        return None
    if text in table:
        return TensorView(text, table[text].shape, table[text].strides)
    match = _VIEW.fullmatch(text)
    if match is None:
        return int(text)
    name, shape, strides, offset = match.groups()
    return TensorView(name, _ints(shape), _ints(strides), int(offset or 0))


def _split(text: str) -> list[str]:
    """At commas outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [p.strip() for p in parts if p.strip()]


def _parse_argument(text: str, table: Mapping[str, Buffer]) -> Any:
    if text in table or _VIEW.fullmatch(text):
        return _parse_view(text, table)
    if text.startswith("[") and text.endswith("]"):
        return tuple(_parse_argument(t, table) for t in _split(text[1:-1]))
    if text in _DTYPES:
        return _DTYPES[text]
    return float(text) if text in ("inf", "-inf", "nan") else ast.literal_eval(text)


def _parse_extern(line: str, table: Mapping[str, Buffer], reason: str) -> Extern:
    match = _EXTERN.match(line)
    if match is None:
        raise FusecError(f"cannot read {line!r} as a call")
    name, outputs, target, arguments, mutates = match.groups()
    found: Any = torch.ops
    for part in target.split("."):
        found = getattr(found, part)
    args, kwargs = [], []
    for text in _split(arguments):
        keyword = re.match(r"(\w+)=(.*)$", text)
        if keyword:
            kwargs.append((keyword.group(1), _parse_argument(keyword.group(2), table)))
        else:
            args.append(_parse_argument(text, table))
    outs = tuple(None if o == "_" else o for o in _split(outputs or ""))
    return Extern(name, found, tuple(args), tuple(kwargs), outs, reason=reason, mutates=tuple(_split(mutates or "")))


def parse_program(text: str) -> Program:
    """The Program that `format_program` printed. An axis whose name starts with r is reduced."""
    table: dict[str, Buffer] = {}
    nodes: list[Node] = []
    name, inputs, outputs = "", (), ()  # type: str, tuple[str | None, ...], tuple[Output, ...]
    header: tuple[str, dict[str, Axis]] | None = None
    body: list[Instr] = []

    def close() -> None:
        if header is not None:
            nodes.append(LoopNest(header[0], tuple(header[1].values()), tuple(body)))
        body.clear()

    for raw in text.splitlines():
        line, _, comment = (part.strip() for part in raw.partition(" #"))
        if not line:
            continue
        word = line.split()[0]
        if word == "program":
            match = re.match(r"program (\S+) \((.*)\)$", line)
            if match is None:
                raise FusecError(f"cannot read {line!r}; a program starts with 'program name (inputs)'")
            name = match.group(1)
            inputs = tuple(None if n == "_" else n for n in _split(match.group(2)))
        elif word in ("in", "out", "tmp", "const"):
            buffer = _parse_buffer(line)
            table[buffer.name] = buffer
        elif word == "nest":
            close()
            match = _NEST.match(line)
            if match is None:
                raise FusecError(f"cannot read {line!r} as the head of a nest")
            header = (match.group(1), _parse_axes(match.group(2)))
        elif word == "extern":
            close()
            header = None
            nodes.append(_parse_extern(line, table, comment.partition(";")[0]))
        elif word == "return":
            close()
            header = None
            outputs = tuple(_parse_view(o, table) for o in _split(line.removeprefix("return")))
        else:
            assert header is not None, line
            body.append(parse_instr(line, header[1], table))
    return Program(name, tuple(table.values()), tuple(nodes), inputs, outputs)
