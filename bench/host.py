"""The host's time of a call of a compiled function, by part.

    python3 -m bench.host [--cases bias_gelu clip_grad_norm] [--calls 300]

    case         eager    call    Dynamo    AOTAutograd    fusec
    ---------  -------  ------  --------  -------------  -------
    bias_gelu      9.3    16.1       8.6            1.4      3.3

Enters: a case, at its small sizes. Leaves: microseconds, medians of rounds in which the variants take turns.

call:        the compiled function.
Dynamo:      its guards and its frame: the same function with a backend whose graphs return what they returned at first.
AOTAutograd: what its wrappers add to that, likewise; in a training step with autograd's own time.
fusec:       its graphs alone: the checks of their inputs, memory, launches.

Without a GPU a launch goes to a stand-in of PyTorch's binding, and nothing is computed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from types import FunctionType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch._dynamo.backends.common import aot_autograd
from torch.fx import GraphModule

from bench.cases import CASES, Case, Work, infer
from bench.table import Cell, table
from bench.training import TRAINING
from fusec.api import Backend
from fusec.capture.graph import CapturedGraph
from fusec.config import Config
from fusec.errors import FallbackWarning
from fusec.pipeline import CompiledGraph, Stats, compile_graph
from fusec.runtime.compiler import Artifact
from fusec.runtime.launch import Kernel, static_launcher
from fusec.runtime.resources import Resources

HEADERS = ("case", "eager", "call", "Dynamo", "AOTAutograd", "fusec")
USUAL = ("bias_gelu", "clip_grad_norm", "adamw_foreach", "ln_train")
ROUNDS = 9

Call = Callable[[], Any]


def main(argv: Sequence[str] | None = None) -> int:
    every = {**CASES, **TRAINING}
    parser = argparse.ArgumentParser(prog="python3 -m bench.host", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=sorted(every), default=USUAL, metavar="CASE")
    parser.add_argument("--calls", type=int, default=300, help="in each of the rounds that a median is taken of")
    given = parser.parse_args(argv)
    rows: list[list[Cell]] = []
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings(category=FallbackWarning, action="ignore"))
        if not torch.cuda.is_available():
            stack.enter_context(patch.multiple(torch._C, create=True, **_BINDING))
            stack.enter_context(patch("torch.cuda.device", lambda index: nullcontext()))
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)  # eager mode computes
        rows = [[name, *(round(us, 1) for us in parts(every[name], given.calls))] for name in given.cases]
    print("microseconds of the host, " + (_device() or "without a GPU: launches go to a stand-in"))
    print(table(HEADERS, rows))
    return 0


def parts(case: Case, calls: int) -> tuple[float, ...]:
    """Microseconds of a call in eager mode, compiled, and of the compiled call in Dynamo, AOTAutograd and fusec."""
    work = case.build("cuda" if torch.cuda.is_available() else "cpu", small=True)
    seen: dict[str, tuple[CompiledGraph, Sequence[Any]]] = {}
    recorded = _compiled(work, Backend(Config.from_environment(), "recorded", Stats(), partial(_recording, seen)))
    case.run(work, recorded)
    variants: dict[str, Call] = {
        "eager": partial(case.run, work, work.fn),
        "call": partial(case.run, work, _compiled(work, Backend(None, "timed", Stats(), _launching))),
        "dynamo": partial(infer, work, _compiled(work, _kept)),
        "aot": partial(case.run, work, _compiled(work, _kept_by_aot)),
        "graphs": lambda: [graph.consume(list(inputs)) for graph, inputs in seen.values()],
    }
    took = _microseconds(variants, calls)
    return took["eager"], took["call"], took["dynamo"], took["aot"] - took["dynamo"], took["graphs"]


def _microseconds(variants: dict[str, Call], calls: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(ROUNDS + 1):
        for name, call in variants.items():
            with torch.set_grad_enabled(name != "graphs"):  # AOTAutograd calls them without
                began = time.perf_counter()
                for _ in range(calls):
                    call()
                took = time.perf_counter() - began
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:  # the first compiles
                times[name].append(took / calls * 1e6)
    return {name: statistics.median(found) for name, found in times.items()}


def _compiled(work: Work, backend: Any) -> Callable[..., Any]:
    """With a code object of its own: Dynamo keeps what it compiled by code."""
    fn = work.fn
    own = FunctionType(fn.__code__.replace(), fn.__globals__, fn.__name__, fn.__defaults__, fn.__closure__)
    compiled: Callable[..., Any] = torch.compile(own, backend=backend)
    return compiled


# -- graphs that are timed ------------------------------------------------------------------------


def _launching(graph: CapturedGraph, config: Config, stats: Stats) -> CompiledGraph:
    """As `compile_graph`; without a GPU with launches that go to the stand-in."""
    compiled = compile_graph(graph, config, stats)
    executable = compiled.executable
    assert executable is not None, f"{graph.name} runs eagerly"
    if not torch.cuda.is_available():
        launch = tuple(map(_to_stand_in, executable.kernels))
        executable.runtime = replace(executable.runtime, launch=launch)
    return compiled


def _recording(
    seen: dict[str, tuple[CompiledGraph, Sequence[Any]]], graph: CapturedGraph, config: Config, stats: Stats
) -> Callable[..., Any]:
    compiled = _launching(graph, config, stats)

    def call(*inputs: Any) -> Sequence[Any]:
        seen[graph.name] = compiled, inputs
        return compiled(*inputs)

    return call


def _kept(gm: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """A graph that runs once and returns that again and again."""
    outputs: list[Any] = []

    def call(*args: Any) -> Any:
        if not outputs:
            outputs.append(gm.forward(*args))
        return outputs[0]

    return call


def _kept_boxed(gm: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    kept = _kept(gm, inputs)

    def call(args: list[Any]) -> Any:
        given = tuple(args)
        args.clear()
        return kept(*given)

    call._boxed_call = True  # type: ignore[attr-defined]
    return call


_kept_by_aot = aot_autograd(fw_compiler=_kept_boxed, bw_compiler=_kept_boxed, inference_compiler=_kept_boxed)


# -- the stand-in ---------------------------------------------------------------------------------

_BINDING: dict[str, Any] = {"_cuda_getDevice": lambda: 0, "_cuda_getCurrentRawStream": lambda index: 0}
_STAND_IN = SimpleNamespace(_load_kernel=lambda *_: (0, 0, 0), _launch_kernel=lambda *_: None)


def _to_stand_in(kernel: Kernel) -> Callable[..., None]:
    artifact = Artifact(kernel.name, 90, b"", Resources(0, 0, 0), kernel.source.tile.num_warps, 0, 2, 0.0)
    return static_launcher(_STAND_IN, kernel.source, kernel.source.tile, artifact, 0)


def _device() -> str:
    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else ""


if __name__ == "__main__":
    sys.exit(main())
