"""Buffers under other names, where nodes and outputs read them.

Enters: a node or an output, and {old name: new name}. Leaves: the same, reading the new buffers; what it writes stays.

    read_from(nest n0 (p0<4): store y[p0], load t[p0]; {"t": "x"})   ->   nest n0 (p0<4): store y[p0], load x[p0]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fusec.ir.types import Extern, LoopNest, Output, TensorView

__all__ = ["map_views", "read_from", "rename_extern", "rename_output"]


def read_from(nest: LoopNest, alias: dict[str, str]) -> LoopNest:
    """Loads of a buffer that is gone read the equal one; stores stay."""
    if not any(name in alias for name in nest.reads):
        return nest
    body = []
    for instr in nest.body:
        if instr.op == "load" and instr.access is not None and instr.access.buffer in alias:
            instr = replace(instr, access=replace(instr.access, buffer=alias[instr.access.buffer]))
        body.append(instr)
    return replace(nest, body=tuple(body))


def map_views(value: Any, change: Callable[[TensorView], TensorView]) -> Any:
    """Extern arguments with every TensorView inside nested tuples, lists and dicts changed."""
    if isinstance(value, TensorView):
        return change(value)
    if isinstance(value, dict):
        return {k: map_views(v, change) for k, v in value.items()}
    return type(value)(map_views(v, change) for v in value) if type(value) in (tuple, list) else value


def rename_extern(extern: Extern, alias: dict[str, str]) -> Extern:
    if not any(name in alias for name in extern.reads):
        return extern

    def change(view: TensorView) -> TensorView:
        return replace(view, buffer=alias.get(view.buffer, view.buffer))

    kwargs = tuple((k, map_views(v, change)) for k, v in extern.kwargs)
    return replace(extern, args=map_views(extern.args, change), kwargs=kwargs)


def rename_output(output: Output, alias: dict[str, str]) -> Output:
    if not isinstance(output, TensorView):
        return output
    return replace(output, buffer=alias.get(output.buffer, output.buffer))
