"""Where an FX node came from: the user's file, line, source text and module.

File "model.py", line 31, in forward
    x = self.norm(x)                 ->  Origin(node="mean", op="aten.mean.dim", file="model.py", line=31, ...)
"""

from __future__ import annotations

import re

from torch import fx

from fusec.ir.types import Origin

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)[^\n]*\n?(?P<code>[^\n]*)')


def origin_of(node: fx.Node) -> Origin:
    """The innermost frame of the node's stack trace, and the path of the module it ran in."""
    file, line, code = "", 0, ""
    frames = list(_FRAME.finditer(node.meta.get("stack_trace") or ""))
    if frames:
        last = frames[-1]
        code = last["code"].strip()
        file, line, code = last["file"], int(last["line"]), "" if code.startswith("File ") else code
    return Origin(node.name, str(node.target), file, line, code, _module_path(node))


def _module_path(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return ""
    entry = list(stack.values())[-1]
    path = entry[0] if isinstance(entry, tuple) else str(entry)
    path = re.sub(r"^L\['(\w+)'\]\.?", "", path)
    return re.sub(
        r"\._modules\['([^']+)'\]|\['([^']+)'\]|\[(\d+)\]", lambda m: "." + (m[1] or m[2] or m[3]), path
    ).strip(".")


def describe(origin: Origin) -> str:
    """'model.py:31: x = self.norm(x)', or the node's name when the line is not known."""
    if not origin.file:
        return f"graph node {origin.node!r}"
    return f"{origin.file}:{origin.line}" + (f": {origin.code}" if origin.code else "")
