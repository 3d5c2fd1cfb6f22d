"""What capture hands to lowering.

Enters: nothing. Leaves: the `CapturedGraph` type and the readable names of its placeholders.

    CapturedGraph(graph_module, example_inputs=(fake f32[8, 4], fake f32[5, 4]),
                  names=("encoder.layer.0.weight", "x"), kind="inference", name="graph_0")
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule

__all__ = [
    "KINDS",
    "CapturedGraph",
    "NotSymbolicGraph",
    "is_symbolic",
    "readable_name",
    "trim_stack",
    "user_lines",
    "user_location",
]

KINDS = ("inference", "forward", "backward")

_TOKEN = re.compile(r"\['([^']*)'\]|\.([A-Za-z_]\w*)|\[(\d+)\]")
_STATE = re.compile(r"\.state\[list\(dict\.keys\(.*?(?:\['(\w+)'\]|\[(\d+)\]\])$")
_PARAMETERS = re.compile(r"^.*\.param_groups\[\d+\]")
_CONTAINERS = frozenset({"_modules", "_parameters", "_buffers"})
_TORCH = os.path.dirname(torch.__file__) + os.sep
_STACK_LINE = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')


class NotSymbolicGraph(Exception):
    """No one compiled graph serves all sizes of a symbolic graph; the message says why."""


@dataclass(frozen=True)
class CapturedGraph:
    """An aten graph and what is known about its arguments.

    graph_module:   aten ops with fake tensors in node.meta["val"], decomposed by `capture.decompositions`.
    example_inputs: one per placeholder, in order: a (fake) tensor, an int, or a SymInt.
    names:          one per placeholder: the user's name ("encoder.layer.0.weight", "x").
    kind:           "inference", "forward" (outputs, then values saved for backward) or "backward".
    name:           identifies the graph in reports: "graph_0", "graph_0_backward".
    """

    graph_module: GraphModule
    example_inputs: tuple[Any, ...]
    names: tuple[str, ...]
    kind: str = "inference"
    name: str = "graph"

    def __post_init__(self) -> None:
        placeholders = [n for n in self.graph_module.graph.nodes if n.op == "placeholder"]
        assert self.kind in KINDS, self.kind
        assert len(placeholders) == len(self.example_inputs) == len(self.names), (
            f"{len(placeholders)} placeholders, {len(self.example_inputs)} inputs, {len(self.names)} names"
        )


def readable_name(source: str) -> str:
    """Dynamo's source expression as a reader would write it.

    "L['self']._modules['encoder']._modules['0']._parameters['weight']" -> "encoder.0.weight"
    "L['x']" -> "x"      "L['batch']['ids']" -> "batch.ids"      "L['xs'][1]" -> "xs.1"      "L['args'][0]" -> "input"
    "L['self'].param_groups[0]['params'][3].grad" -> "params.3.grad"
    "L['self'].state[list(dict.keys(L['self'].state))[0]]['exp_avg']" -> "exp_avg"
    """
    state = _STATE.search(source)
    if state is not None:  # of an optimizer: by the key, or where Dynamo knows only its place, by that
        return state.group(1) or f"state.{state.group(2)}"
    source = _PARAMETERS.sub("", source)
    tokens = [next(t for t in match if t) for match in _TOKEN.findall(source) if any(match)]
    in_module = any(t in _CONTAINERS for t in tokens)
    if in_module and len(tokens) > 1:
        tokens = tokens[1:]  # the module itself: `self`
    parts = [t for t in tokens if t not in _CONTAINERS]
    if parts[:1] == ["args"] and len(parts) == 2:  # Dynamo's own frame around a library module
        return "input" if parts[1] == "0" else f"input_{parts[1]}"
    if parts[:1] == ["kwargs"]:
        parts = parts[1:]
    return ".".join(parts) or source


def is_symbolic(example_inputs: Sequence[Any]) -> bool:
    """True when an argument is a symbolic number or has a symbolic size, stride or offset."""
    for value in example_inputs:
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            return True
        sizes = (*value.shape, *value.stride()) if isinstance(value, torch.Tensor) else ()
        if any(isinstance(s, torch.SymInt) for s in sizes):
            return True
    return False


def trim_stack(stack_trace: str) -> str:
    """The trace without the frames inside torch that follow the user's innermost frame.

    model.py:31, torch/nn/functional.py:7  ->  model.py:31
    """
    frames = list(_STACK_LINE.finditer(stack_trace))
    own = [i for i, frame in enumerate(frames) if not frame.group(1).startswith(_TORCH)]
    if not own or own[-1] == len(frames) - 1:
        return stack_trace
    end = stack_trace.rindex("\n", 0, frames[own[-1] + 1].start()) + 1
    return stack_trace[:end]


def user_location(stack_trace: str | None) -> tuple[str, int, str]:
    """(file, line, source) of the innermost frame outside torch itself; ("", 0, "") when there is none."""
    frames = [(m.group(1), int(m.group(2)), m.end()) for m in _STACK_LINE.finditer(stack_trace or "")]
    own = [f for f in frames if not f[0].startswith(_TORCH)] or frames
    if not own or stack_trace is None:
        return "", 0, ""
    file, line, end = own[-1]
    following = stack_trace[end:].splitlines()
    return file, line, following[1].strip() if len(following) > 1 else ""


def user_lines(graph_module: GraphModule) -> tuple[str, ...]:
    """The user's "file:line" of every node that has one, in order, without repeats."""
    located = (user_location(node.meta.get("stack_trace")) for node in graph_module.graph.nodes)
    return tuple(dict.fromkeys(f"{file}:{line}" for file, line, _ in located if file))
