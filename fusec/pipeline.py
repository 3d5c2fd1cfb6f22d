"""Every pass by name, in order: the table of contents of fusec. Read this first.

Enters: a CapturedGraph and a Config. Leaves: a callable over the graph's inputs that returns its outputs.

    capture -> lower -> simplify -> schedule -> plan_memory -> generate -> wrap -> build -> launch

Each pass is a plain function of values. `config.verify` checks what a pass made, `config.dump` writes it:

    out/rms_norm_0/01_program.txt 02_simplified.txt 03_schedule.txt 04_buffers.txt 05_wrapper.txt kernels/...

The fallback ladder: an op that cannot be lowered is a library call (in `lowering`); nests whose common kernel cannot
be planned, generated or compiled get a kernel each, and an op whose own kernel cannot is a library call; a graph for
which that does not help runs one kernel a nest, failing that as eager PyTorch would. Each step down is counted and
warned of once; `config.strict` makes it an error.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import torch

from fusec.capture.graph import CapturedGraph, NotSymbolicGraph, is_symbolic, user_lines
from fusec.capture.inplace import mutated_inputs
from fusec.codegen.kernel import generate_kernel
from fusec.codegen.sizes import passing, with_own_sizes
from fusec.codegen.wrapper import generate_wrapper
from fusec.config import Config
from fusec.errors import BuildError, FallbackWarning, FusecError, GroupError
from fusec.inspect.dump import dump_stage, write_kernel_script
from fusec.inspect.rows import GraphRecord
from fusec.ir.kernels import BufferPlan, KernelPlan, KernelSource, Schedule
from fusec.ir.printer import format_bytes, format_program, format_schedule
from fusec.ir.types import Extern, Program
from fusec.ir.verify import verify_program, verify_schedule
from fusec.lowering import is_fallback, lower
from fusec.runtime.build import Executable, build
from fusec.schedule import group_error, plan_memory, schedule, simplify
from fusec.schedule.alike import signature

__all__ = ["CompiledGraph", "Fallback", "Stats", "compile_graph", "compile_passes"]

log = logging.getLogger("fusec.pipeline")

T = TypeVar("T")

_version: Callable[[torch.Tensor], int] = attrgetter("_version")

GROUP_LIMIT = 12  # compilations of a graph with kernels taken apart, before all of it runs unfused


@dataclass(frozen=True, slots=True)
class Fallback:
    """Something that runs as eager PyTorch would. level: "op", "sizes", "group", "graph", "call" or "mode"."""

    level: str
    op: str
    reason: str
    line: str = ""

    def __str__(self) -> str:
        where = f" ({self.line})" if self.line else ""
        return f"{self.op}{where}: {self.reason}"


@dataclass
class Stats:
    """What happened so far. Passed to whoever counts; `fusec.stats()` shows it."""

    graphs: int = 0
    graph_breaks: list[str] = field(default_factory=list)
    kernels_built: int = 0
    kernels_launched: int = 0
    extern_calls: int = 0
    fallbacks: list[Fallback] = field(default_factory=list)
    cache_hits: int = 0
    recompiles: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and, for fallbacks, plain dicts."""
        with self.lock:
            return {
                "graphs": self.graphs,
                "graph_breaks": len(self.graph_breaks),
                "kernels_built": self.kernels_built,
                "kernels_launched": self.kernels_launched,
                "extern_calls": self.extern_calls,
                "fallbacks": [asdict(f) for f in self.fallbacks],
                "cache_hits": self.cache_hits,
                "recompiles": self.recompiles,
            }

    def clear(self) -> None:
        """Everything back to zero; compiled graphs keep counting into this object."""
        with self.lock:
            self.graphs = self.kernels_built = self.kernels_launched = self.extern_calls = 0
            self.cache_hits = self.recompiles = 0
            self.graph_breaks.clear()
            self.fallbacks.clear()

    def fall_back(self, fallback: Fallback) -> None:
        """Count a fallback; warn the first time this one is seen."""
        with self.lock:
            seen = fallback in self.fallbacks
            self.fallbacks.append(fallback)
        if not seen:
            warnings.warn(f"fusec: {fallback}", FallbackWarning, stacklevel=3)


# -- the passes -----------------------------------------------------------------------------------


def compile_passes(
    graph: CapturedGraph,
    config: Config,
    stats: Stats,
    apart: Set[str] = frozenset(),
    calls: Mapping[str, str] | None = None,
) -> tuple[GraphRecord, Executable]:
    """All passes in order, without the fallback ladder: an error is an error.

    apart: nests that are not fused.    calls: nodes of the graph that are library calls, and why.
    GroupError names the nests of a kernel that cannot be planned, generated or compiled.
    """
    run = _Passes(graph.name, config)
    program = run("program", lambda: lower(graph, config, graph.name, calls), verify_program, format_program)
    simplified = run("simplified", lambda: simplify(program, config), verify_program, format_program)
    steps = run("schedule", lambda: schedule(simplified, config, apart=apart), verify_schedule, format_schedule)
    buffers = run(
        "buffers", lambda: plan_memory(steps, graph.kind == "backward"), None, lambda plan: _format_buffers(steps, plan)
    )
    plans = [step for step in steps.steps if isinstance(step, KernelPlan)]
    sources = run("kernels", lambda: _generate_kernels(plans, steps, config))
    run.write_kernels(plans, sources, steps)
    wrapper = run("wrapper", lambda: generate_wrapper(steps, buffers, sources), None, str)
    try:
        executable = run("build", lambda: build(steps, buffers, sources, wrapper, config, stats))
    except BuildError as error:
        failed = [p for p, source in zip(plans, sources, strict=True) if source.name in error.kernels]
        raise (_group_error(error, failed, steps) if failed else error) from error
    named = {plan.name: source for plan, source in zip(plans, sources, strict=True)}
    record = GraphRecord(graph, program, simplified, steps, buffers, named, wrapper, stages=tuple(run.seconds), calls=0)
    return record, executable


def _generate_kernels(plans: Sequence[KernelPlan], steps: Schedule, config: Config) -> tuple[KernelSource, ...]:
    """One KernelSource per plan. Plans that differ only in buffers or in names of sizes share its text: layers."""
    made: dict[Any, KernelSource] = {}
    sources: list[KernelSource] = []
    for plan in plans:
        own, given = with_own_sizes(plan)
        key = signature(own)
        if key not in made:
            try:
                made[key] = generate_kernel(own, {b.name: b for b in own.buffers}, config)
            except Exception as error:
                raise _group_error(error, [plan], steps) from error
        sources.append(passing(made[key], given) if given else made[key])
    return tuple(sources)


def _group_error(error: Exception, plans: Sequence[KernelPlan], steps: Schedule) -> GroupError:
    members = [name for plan in plans for name in plan.nests]
    return group_error(error, members, [o for plan in plans for o in plan.origins], steps.decisions)


class _Passes:
    """Runs one pass after the other: times, verifies and dumps what it returns."""

    def __init__(self, name: str, config: Config) -> None:
        self.config = config
        self.folder = Path(config.dump) / name if config.dump is not None else None
        self.seconds: list[tuple[str, float]] = []
        self.dumped = 0

    def __call__(
        self,
        name: str,
        compute: Callable[[], T],
        verify: Callable[[T], None] | None = None,
        text: Callable[[T], str] | None = None,
    ) -> T:
        start = time.perf_counter()
        value = compute()
        self.seconds.append((name, time.perf_counter() - start))
        if self.folder is not None and text is not None:
            self.dumped += 1
            dump_stage(self.folder, self.dumped, name, text(value))
        if self.config.verify and verify is not None:
            verify(value)
        return value

    def write_kernels(self, plans: Sequence[KernelPlan], sources: Sequence[KernelSource], steps: Schedule) -> None:
        """One script a distinct kernel; launches that share a kernel share its script."""
        if self.folder is None:
            return
        scripts = {source.name: (plan, source) for plan, source in zip(plans, sources, strict=True)}
        for name, (plan, source) in scripts.items():
            write_kernel_script(self.folder / "kernels" / f"{name}.py", plan, source, steps.table)


def _format_buffers(steps: Schedule, plan: BufferPlan) -> str:
    """step 2 add_layer_norm: allocate buf3 in buf1; then free buf0"""
    lines = [f"peak of temporaries and outputs: {format_bytes(plan.peak_bytes)}"]
    for i, (before, after) in enumerate(zip(plan.before, plan.after, strict=True)):
        name = steps.steps[i].name if i < len(steps.steps) else "end"
        made = ", ".join(a.buffer + (f" in {a.reuses}" if a.reuses else "") for a in before)
        parts = [f"allocate {made}" if made else "", f"then free {', '.join(after)}" if after else ""]
        lines.append(f"step {i} {name}: " + ("; ".join(p for p in parts if p) or "no change"))
    return "\n".join(lines)


# -- the fallback ladder --------------------------------------------------------------------------


def compile_graph(graph: CapturedGraph, config: Config, stats: Stats) -> CompiledGraph:
    """Compile a graph; where that fails, step down the ladder. FusecError under `config.strict`.

    NotSymbolicGraph, counted, when a graph with symbolic sizes cannot be compiled for all of them at once.
    """
    record, executable = None, None
    try:
        record, executable = compile_passes(graph, config, stats)
    except Exception as error:
        if config.strict:
            raise _named(graph, error) from error
        log.info("graph %s failed to compile", graph.name, exc_info=True)
        if config.fusion:
            record, executable = _compile_apart(graph, config, stats, error)
        if executable is None and is_symbolic(graph.example_inputs):
            stats.fall_back(_graph_fallback("sizes", graph, error, "is compiled anew for each tuple of sizes"))
            raise NotSymbolicGraph(str(error)) from error
        if config.fusion and executable is None:
            record, executable = _compile_unfused(graph, config, stats, error)
        if executable is None:
            stats.fall_back(_graph_fallback("graph", graph, error, "runs as eager PyTorch would"))
    return CompiledGraph(graph, record, executable, config, stats)


def _compile_apart(
    graph: CapturedGraph, config: Config, stats: Stats, error: Exception
) -> tuple[GraphRecord | None, Executable | None]:
    """The nests of a kernel that failed get one each; an op whose own kernel fails is a library call; the rest stays.

    (None, None) when another kind of failure comes up, or no kernel is left.
    """
    failed: list[GroupError] = []
    apart: frozenset[str] = frozenset()
    calls: dict[str, str] = {}
    for _ in range(GROUP_LIMIT):
        if not isinstance(error, GroupError):
            break
        if error.nests <= apart:  # nests are named anew when one becomes a call
            calls |= dict.fromkeys(error.nodes, f"its kernel failed: {type(error.cause).__name__}: {error.cause}")
            failed, apart = [], frozenset()
        else:
            failed.append(error)
            apart |= error.nests
        try:
            record, executable = compile_passes(graph, config, stats, apart, calls)
        except Exception as another:
            error = another
            log.info("graph %s failed to compile with %s apart", graph.name, sorted(apart), exc_info=True)
            continue
        if calls and not record.plans:
            break
        for group in failed:
            ops = ", ".join(group.ops) or f"graph {graph.name}"
            reason = f"run without fusion: {type(group.cause).__name__}: {group.cause}"
            stats.fall_back(Fallback("group", ops, reason, group.line or _first_line(graph)))
        return record, executable
    return None, None


def _compile_unfused(
    graph: CapturedGraph, config: Config, stats: Stats, error: Exception
) -> tuple[GraphRecord | None, Executable | None]:
    """The group level for a whole graph: every nest a kernel of its own. (None, None) when that fails as well."""
    try:
        record, executable = compile_passes(graph, replace(config, fusion=False), stats)
    except Exception:
        log.info("graph %s failed to compile without fusion", graph.name, exc_info=True)
        return None, None
    stats.fall_back(_graph_fallback("group", graph, error, "runs without fusion"))
    return record, executable


def _graph_fallback(level: str, graph: CapturedGraph, error: Exception, outcome: str) -> Fallback:
    _, text, line = _described(graph, error)
    return Fallback(level, f"graph {graph.name}", f"{outcome}: {text}", line)


def _first_line(graph: CapturedGraph) -> str:
    return next(iter(user_lines(graph.graph_module)), "")


def _described(graph: CapturedGraph, error: Exception) -> tuple[Exception, str, str]:
    """The cause; its text, with the ops where they are known; the user's line, of the group or else of the graph."""
    if not isinstance(error, GroupError):
        return error, f"{type(error).__name__}: {error}", _first_line(graph)
    ops = f"{', '.join(error.ops)}: " if error.ops else ""
    return error.cause, f"{ops}{type(error.cause).__name__}: {error.cause}", error.line or _first_line(graph)


def _named(graph: CapturedGraph, error: Exception) -> Exception:
    """The error as a FusecError that names the graph, the ops where they are known, and the user's line."""
    cause, text, line = _described(graph, error)
    if isinstance(cause, FusecError):
        return cause
    where = f" ({line})" if line else ""
    return FusecError(f"graph {graph.name}{where} failed to compile: {text}")


class CompiledGraph:
    """A graph ready to run: its Executable, or the aten graph itself where compiling or running failed.

    record: what each pass made of it, for `explain`; None when it runs eagerly.
    calls:  how often it ran.
    """

    def __init__(
        self,
        graph: CapturedGraph,
        record: GraphRecord | None,
        executable: Executable | None,
        config: Config,
        stats: Stats,
    ) -> None:
        self.graph, self.record, self.executable = graph, record, executable
        self.config, self.stats = config, stats
        self.calls = 0
        self.mutated = mutated_inputs(graph.graph_module)
        with stats.lock:
            stats.graphs += 1
        if record is not None:
            self._count_unlowered(record.program)
        if executable is not None and executable.graph_reason is not None and executable.target.device == "cuda":
            stats.fall_back(Fallback("mode", f"graph {graph.name}", f"CUDA graphs are off: {executable.graph_reason}"))

    def _count_unlowered(self, program: Program) -> None:
        for node in program.nodes:
            if isinstance(node, Extern) and is_fallback(node):
                origin = node.origin
                line = f"{origin.file}:{origin.line}" if origin is not None and origin.file else ""
                self.stats.fall_back(Fallback("op", str(node.target), f"runs as a library call: {node.reason}", line))

    def consume(self, inputs: list[Any]) -> Sequence[Any]:
        """A call that empties the list of its inputs and frees each after its last use.

        The first call keeps them, to run eagerly if it fails; so does every call of a forward or inference graph, whose
        inputs others hold.
        """
        if self.executable is not None and self.calls > 0 and self.graph.kind == "backward":
            try:
                outputs = self.executable.consume(inputs)
            except Exception:
                if not inputs:
                    raise  # they are gone
            else:
                self.calls += 1
                return outputs
        given = tuple(inputs)
        inputs.clear()
        return self._run(given)

    def __call__(self, *inputs: Any) -> Sequence[Any]:
        return self._run(inputs)

    def _run(self, inputs: tuple[Any, ...]) -> Sequence[Any]:
        if self.executable is None:
            return self._run_eagerly(inputs)
        versions = self._versions(inputs) if self.mutated else ()
        try:
            outputs = self.executable.run(inputs)
        except Exception as error:
            if self.mutated and versions != self._versions(inputs):
                raise  # an input is half written: to run again would write it twice
            plain = tuple(_plain(x) for x in inputs)
            if any(a is not b for a, b in zip(inputs, plain, strict=True)):
                return self._run(plain)
            return self._give_up(error, inputs)
        self.calls += 1
        return outputs

    def _versions(self, inputs: Sequence[Any]) -> tuple[int, ...]:
        """How often each written input was written; differs from call to call where that is not known."""
        try:
            return tuple(map(_version, [inputs[i] for i in self.mutated]))
        except RuntimeError:  # an inference tensor
            return (time.perf_counter_ns(),)

    def _run_eagerly(self, inputs: Sequence[Any]) -> Sequence[Any]:
        outputs: Sequence[Any] = self.graph.graph_module(*inputs)
        return outputs

    def _give_up(self, error: Exception, inputs: Sequence[Any]) -> Sequence[Any]:
        """Nothing was written, so the graph can be run again. What fails in eager too is the user's own error."""
        outputs = self._run_eagerly(inputs)
        if self.config.strict:
            raise _named(self.graph, error) from error
        log.info("graph %s failed when called", self.graph.name, exc_info=error)
        self.executable = None
        self.stats.fall_back(_graph_fallback("call", self.graph, error, "runs as eager PyTorch would"))
        return outputs


def _plain(value: Any) -> Any:
    """A tensor of a user's subclass as a Tensor on the same memory: library calls refuse some subclasses."""
    if not isinstance(value, torch.Tensor) or type(value) in (torch.Tensor, torch.nn.Parameter):
        return value
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(torch.Tensor)
