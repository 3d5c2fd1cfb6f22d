"""The graphs that capture makes of a function, without compiling them.

(graph,) = capture(lambda x: x + 1, torch.randn(3))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fusec.capture.dynamo import backend
from fusec.capture.graph import CapturedGraph


def capture(fn: Callable[..., Any], *args: Any, **options: Any) -> list[CapturedGraph]:
    """Call `fn` once through Dynamo; options are those of `fusec.capture.dynamo.backend`."""
    graphs: list[CapturedGraph] = []

    def compile_graph(graph: CapturedGraph) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.graph_module.forward

    torch.compile(fn, backend=lambda gm, inputs: backend(gm, inputs, compile_graph=compile_graph, **options))(*args)
    return graphs
