"""CUDA graphs: a whole call replayed as one launch (mode="reduce-overhead").

Enters: an executable's call and its inputs. Leaves: the same outputs, and a sentence when replay is not safe.

    replay = GraphReplay(call)
    replay(inputs)           # warms up, records, then replays
    why_not(schedule, target) == "the program runs on the CPU"

Inputs that keep their address from call to call (parameters) are read where they are; the others are copied into
memory of the graph's own. Outputs are copied out, so that a result stays valid after the next call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fusec.ir.kernels import Schedule
from fusec.ir.types import Extern
from fusec.runtime.target import Target

GRAPHS = 32  # each holds the memory of its inputs, outputs and temporaries

log = logging.getLogger(__name__)

Call = Callable[[Sequence[Any]], list[Any]]


def why_not(schedule: Schedule, target: Target) -> str | None:
    """Why the program's calls cannot be replayed as a CUDA graph; None when they can."""
    if target.device != "cuda":
        return "the program runs on the CPU"
    for buffer in schedule.buffers:
        if not buffer.device.startswith("cuda"):
            return f"{buffer.hint or buffer.name} is on the {buffer.device}, and its value would be frozen"
    for step in schedule.steps:
        if isinstance(step, Extern):
            if step.defines:
                return f"{step.target} returns a size"
            if step.mutates:
                return f"{step.target} writes {', '.join(step.mutates)} in place"
            if torch.Tag.dynamic_output_shape in getattr(step.target, "tags", ()):
                return f"{step.target} returns a shape that depends on values"
        elif written := sorted(set(step.writes).intersection(n for n in schedule.inputs if n is not None)):
            return f"{step.name} writes {', '.join(written)} in place"
    sizes = {position for position, _ in schedule.numbers}
    if any(name is None and i not in sizes for i, name in enumerate(schedule.inputs)):
        return "an input is a number"
    return None


class ReplayBySizes:
    """One recorded graph for each tuple of sizes; beyond GRAPHS of them, new sizes run as they are."""

    def __init__(self, name: str, call: Call, sizes: Callable[[Sequence[Any]], tuple[int, ...]]) -> None:
        self.name, self.call, self.sizes = name, call, sizes
        self.replays: dict[tuple[int, ...], GraphReplay] = {}

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        key = self.sizes(inputs)
        if key not in self.replays:
            if len(self.replays) >= GRAPHS:
                return self.call(inputs)
            self.replays[key] = GraphReplay(f"{self.name}{list(key)}", self.call)
        return self.replays[key](inputs)


class GraphReplay:
    """Records `call` on first use. A recording that fails is said once, and `call` runs as it is from then on."""

    def __init__(self, name: str, call: Call) -> None:
        self.name = name
        self.call = call
        self.reason: str | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Any] = []  # sizes among them
        self._fixed: tuple[int, ...] = ()
        self._outputs: list[Any] = []

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        if self.reason is not None or torch.cuda.is_current_stream_capturing():
            return self.call(inputs)
        if self._graph is None or any(inputs[i].data_ptr() != self._inputs[i].data_ptr() for i in self._fixed):
            try:
                self._record(inputs)
            except RuntimeError as error:
                self.reason = f"recording failed: {error}"
                log.warning("fusec: %s: CUDA graphs are off: %s", self.name, self.reason)
                return self.call(inputs)
        assert self._graph is not None
        for position, (own, given) in enumerate(zip(self._inputs, inputs, strict=True)):
            if position not in self._fixed and isinstance(own, torch.Tensor):
                own.copy_(given)
        self._graph.replay()
        return [o.clone() if isinstance(o, torch.Tensor) else o for o in self._outputs]

    def _record(self, inputs: Sequence[Any]) -> None:
        self._fixed = tuple(i for i, x in enumerate(inputs) if isinstance(x, torch.nn.Parameter))
        self._inputs = [
            x if i in self._fixed or not isinstance(x, torch.Tensor) else x.clone() for i, x in enumerate(inputs)
        ]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # libraries allocate their workspaces outside the recording
                self.call(self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = self.call(self._inputs)
