"""A graph with symbolic sizes becomes the same graph for the sizes of one call.

Enters: a CapturedGraph with SymInts, and the arguments of a call. Leaves: a CapturedGraph of ints.

    view(x, [s0 * 2, 8]), s0 = 5   ->   view(x, [10, 8])

One compiled version is kept for each tuple of sizes (`signature`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Interpreter
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import preserve_node_meta

from fusec.capture.graph import CapturedGraph

# torch._subclasses.fake_tensor: checked with torch 2.11.0 and 2.13.0.

__all__ = ["signature", "specialize"]

Signature = tuple[Any, ...]


def signature(inputs: Sequence[Any]) -> Signature:
    """What one specialisation depends on: numbers as they are, tensors by shape and strides."""
    return tuple((*x.shape, *x.stride()) if isinstance(x, torch.Tensor) else x for x in inputs)


def specialize(graph: CapturedGraph, inputs: Sequence[Any]) -> CapturedGraph:
    """Trace `graph` again with the sizes of `inputs`; node metadata (the user's lines) is kept."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor):
            return value
        with torch.no_grad():
            return mode.from_tensor(value, static_shapes=True)

    arguments = [fake(x) for x in inputs]
    modes = [a.fake_mode for a in arguments if isinstance(a, FakeTensor)]
    mode = modes[0] if modes else mode

    def run(*args: Any) -> Any:
        return Interpreter(graph.graph_module).run(*args)

    with mode, preserve_node_meta(), torch.no_grad():
        traced = make_fx(run, record_module_stack=False)(*arguments)
    return CapturedGraph(traced, tuple(arguments), graph.names, graph.kind, graph.name)
