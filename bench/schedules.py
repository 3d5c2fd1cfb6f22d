"""The Schedules of a function for a GPU that need not be there.

    (schedule,) = schedules(CASES["rms"].build, "sm_90")

The function is captured on fake tensors, which have sizes and no memory, so full sizes cost nothing. They are fake CPU
tensors, because a CPU build of torch knows no CUDA tensors; the target decides how the graph is scheduled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule

from bench.cases import Work, infer
from fusec.capture.dynamo import backend
from fusec.capture.graph import CapturedGraph
from fusec.config import Config
from fusec.ir.kernels import Schedule
from fusec.lowering import lower
from fusec.schedule import schedule, simplify


def capture(
    build: Callable[[str], Work], run: Callable[[Work, Callable[..., Any]], Any] = infer
) -> list[CapturedGraph]:
    """The graphs of a work on fake inputs; a graph break is an error. run: how to use the compiled function."""
    graphs: list[CapturedGraph] = []

    def keep(graph: CapturedGraph) -> Callable[..., Any]:
        graphs.append(graph)
        return lambda *inputs: graph.graph_module(*inputs)

    def keeping_backend(gm: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        return backend(gm, inputs, compile_graph=keep, name="case")

    torch.compiler.reset()
    with FakeTensorMode(allow_non_fake_inputs=True):
        work = build("cpu")
        run(work, torch.compile(work.fn, backend=keeping_backend, fullgraph=True, dynamic=False))
    torch.compiler.reset()
    return graphs


def scheduled(graph: CapturedGraph, target: str = "sm_90") -> Schedule:
    """Lower, simplify and schedule, with the passes and the order of fusec.pipeline."""
    config = Config(target=target)
    return schedule(simplify(lower(graph, config, graph.name), config), config)


def schedules(build: Callable[[str], Work], target: str = "sm_90") -> list[Schedule]:
    """The schedule of each graph of one call."""
    return [scheduled(graph, target) for graph in capture(build)]
