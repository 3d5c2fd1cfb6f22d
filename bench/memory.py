"""Peak memory of training steps, eager and compiled: what the allocator holds at most, above what was there before.

    python3 -m bench.memory [--cases ln_train llama_train] [--allocator]

Enters: a training case. Leaves: bytes that a step holds at most, above what was there before it; its results count.

By default full sizes, on fake tensors: each op of eager mode and each line of fusec's wrapper allocates and frees as it
does in a run, and nothing is computed. --allocator: PyTorch's allocator in a run, on a GPU at full size; on a CPU, with
kernels in Triton's interpreter, from the profiler's record of each allocation, at sizes for that.
"""

from __future__ import annotations

import argparse
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.profiler import profile
from torch.fx import GraphModule
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_iter

import fusec
from bench.cases import Case, Sizes
from bench.schedules import scheduled
from bench.table import Cell, table
from bench.training import TRAINING
from fusec.capture.dynamo import backend
from fusec.capture.graph import CapturedGraph
from fusec.codegen.kernel import generate_kernel
from fusec.codegen.wrapper import generate_wrapper
from fusec.config import Config
from fusec.ir.kernels import KernelPlan
from fusec.ir.types import Extern
from fusec.runtime.allocate import allocators
from fusec.runtime.executable import Runtime
from fusec.runtime.interpret import PROFILED
from fusec.runtime.module import load_namespace
from fusec.schedule import plan_memory

HEADERS = ("case", "eager", "fusec", "fusec / eager")

# Sizes at which tensors are large beside what an allocator rounds and a call allocates for itself.
MEDIUM: dict[str, Sizes] = {
    "swiglu_train": {"rows": 64, "columns": 512},
    "geglu_train": {"rows": 64, "columns": 512},
    "softmax_train": {"rows": 64, "columns": 512},
    "rope_qk_train": {"batch": 2, "tokens": 64, "heads": 8, "kv_heads": 2, "width": 32},
    "ln_train": {"rows": 64, "columns": 512},
    "ln_16384_train": {"rows": 16, "columns": 2048},
    "rms_train": {"rows": 64, "columns": 512},
    "residual_dropout_ln_train": {"rows": 64, "columns": 512},
    "group_norm_silu_train": {"batch": 4, "channels": 32, "side": 16, "groups": 8},
    "batch_norm_relu_train": {"batch": 4, "channels": 32, "side": 16},
    "batch_norm_relu_nhwc_train": {"batch": 4, "channels": 32, "side": 16},
    "masked_attn_softmax_train": {"batch": 2, "heads": 4, "tokens": 64},
    "xent_32000_train": {"rows": 16, "columns": 4000},
    "xent_131072_train": {"rows": 4, "columns": 16000},
    "xent_262144_train": {"rows": 4, "columns": 32000},
    "huber_train": {"rows": 64, "columns": 512},
    "embedding_train": {"batch": 4, "tokens": 32, "vocabulary": 100, "width": 64},
    "embedding_large_train": {"batch": 4, "tokens": 32, "vocabulary": 1000, "width": 64},
    "relative_bias_train": {"tokens": 128, "buckets": 9, "heads": 8},
    "max_pool_relu_train": {"batch": 4, "channels": 8, "side": 32},
    "llama_train": {
        "batch": 2, "tokens": 32, "hidden": 64, "heads": 4, "kv_heads": 2, "intermediate": 176, "vocabulary": 512,
    },
}  # fmt: skip


def peak(call: Callable[[], Any], device: str = "cpu") -> int:
    """Bytes that a call holds at most, above those held before it; its results count."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(use_cpu=True, profile_memory=True) as recorded:
        call()
    return _most_held(recorded.kineto_results.events())


def _most_held(events: Sequence[Any]) -> int:
    """The largest sum of allocations so far; what the interpreter allocates to compute with is no kernel's memory."""
    launches = sorted((e.start_ns(), e.end_ns()) for e in events if e.name().startswith(PROFILED))
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = most = 0
    for when, nbytes in changes:
        at = bisect_right(launches, (when, sys.maxsize)) - 1
        if at < 0 or when > launches[at][1]:
            held += nbytes
            most = max(most, held)
    return most


def measure(case: Case, device: str = "cpu", sizes: Sizes | None = None) -> tuple[int, int]:
    """(eager, fusec) bytes of one step by the allocator, each after steps that compile and warm up."""
    with torch.device(device):
        work = case.make(**(case.full if sizes is None else sizes))
    compiled = fusec.compile(work.fn, options={"strict": True})
    found = []
    for fn in (work.fn, compiled):
        for _ in range(2):
            case.run(work, fn)
        found.append(peak(partial(case.run, work, fn), device))
    fusec.reset()
    return found[0], found[1]


# -- without memory -------------------------------------------------------------------------------


class CountingMode(FakeTensorMode):
    """Fake tensors whose storages are counted while `counting` is set, from their first op until nobody holds them."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.counting = self.inside = False
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.before: set[int] = set()
        self.most = 0

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outermost, self.inside = not self.inside, True  # what an op's own shape function computes is no memory
        try:
            result = super().dispatch(func, types, args, kwargs)
        finally:
            self.inside = not outermost
        if self.counting and outermost:
            for tensor in tree_iter(result):
                if isinstance(tensor, FakeTensor):
                    self._add(tensor)
            self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return result

    def _add(self, tensor: FakeTensor) -> None:
        storage = tensor.untyped_storage()
        self.alive = {key: held for key, held in self.alive.items() if not held[0].expired()}
        if storage._cdata not in self.before and storage._cdata not in self.alive:
            self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())

    def peak(self, call: Callable[[], Any], inputs: Sequence[Any]) -> int:
        """Bytes of the storages alive at once during a call, beside those of `inputs`."""
        self.before = {x.untyped_storage()._cdata for x in inputs if isinstance(x, torch.Tensor)}
        self.alive, self.most, self.counting = {}, 0, True
        try:
            call()
        finally:
            self.counting = False
        return self.most


class Planned:
    """A graph that allocates and frees as its wrapper text says, with kernels that do nothing."""

    def __init__(self, graph: CapturedGraph) -> None:
        steps = scheduled(graph)
        config = Config(target="sm_90")
        buffers = plan_memory(steps, graph.kind == "backward")
        plans = [step for step in steps.steps if isinstance(step, KernelPlan)]
        sources = [generate_kernel(plan, steps.table, config) for plan in plans]
        externs = tuple(step.target for step in steps.steps if isinstance(step, Extern))
        empty = allocators({b.device for b in steps.buffers})  # fake tensors are made by a mode of the dispatcher
        self.runtime = Runtime(tuple(lambda *_: None for _ in plans), externs, dict(steps.constants), empty)
        self.runtime.written = lambda *_: None  # type: ignore[method-assign]
        self.call = load_namespace(steps.name, generate_wrapper(steps, buffers, sources))["call"]

    def consume(self, inputs: list[Any]) -> Sequence[Any]:
        with torch.no_grad():
            outputs: Sequence[Any] = self.call(inputs, self.runtime)
        return outputs


def plan(case: Case) -> tuple[int, int]:
    """(eager, fusec) bytes of one step at full size, on fake tensors: by what is allocated and freed, op by op."""
    torch.compiler.reset()
    with CountingMode() as mode:
        work = case.build("cpu")
        compiled: Any = torch.compile(work.fn, backend=_planning, fullgraph=True, dynamic=False)
        held = [*work.args, *work.parameters, *work.incoming]
        case.run(work, compiled)
        found = [mode.peak(partial(case.run, work, fn), held) for fn in (work.fn, compiled)]
    torch.compiler.reset()
    return found[0], found[1]


def _planning(gm: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    return backend(gm, inputs, compile_graph=Planned, name="case")  # type: ignore[arg-type]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m bench.memory", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=list(TRAINING), default=list(TRAINING), metavar="CASE")
    parser.add_argument("--allocator", action="store_true", help="measured in a run, not on fake tensors")
    options = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lines: list[list[Cell]] = []
    above = 0
    for name in options.cases:
        case = TRAINING[name]
        sizes = None if device == "cuda" else MEDIUM[name]
        eager, ours = measure(case, device, sizes) if options.allocator else plan(case)
        above += ours > eager
        lines.append([name, f"{eager:,}", f"{ours:,}", f"{ours / eager:.2f}"])
        print(lines[-1], file=sys.stderr, flush=True)
    print(table(HEADERS, lines))
    return 1 if above else 0


if __name__ == "__main__":
    sys.exit(main())
