"""What a user calls: `compile` and what stands behind it.

Enters: a function, method or module. Leaves: the same, compiled; counters; explanations; saved kernels.

    @fusec.compile
    def f(x, b):
        return torch.nn.functional.gelu(x + b)

    fusec.stats()["fallbacks"]  ->  []

Capture, guards and graph breaks are torch.compile's; fusec is the backend, and also the entry point "fusec" for
`torch.compile(m, backend="fusec")`. An error in the user's own function is raised as eager mode raises it.
"""

from __future__ import annotations

import functools
import inspect
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch.fx import GraphModule

from fusec.capture.dynamo import (
    CAPTURE_ERRORS,
    RESTARTS,
    BackendCompilerFailed,
    Breaks,
    CapturedGraph,
    OptimizedModule,
    backend,
    breaks_since,
    breaks_so_far,
    compilation_number,
    failed_at_the_start,
    graph_break_reason,
)
from fusec.capture.fake import on_cuda, on_fake
from fusec.config import Config
from fusec.errors import ConfigError, FusecError
from fusec.inspect.explain import Explanation
from fusec.inspect.replay import Replay, replay_graph
from fusec.pipeline import CompiledGraph, Fallback, Stats, compile_graph
from fusec.runtime.archive import Archive, load_archive, save_archive
from fusec.runtime.launch import Kernel
from fusec.runtime.target import require_cuda
from fusec.schedule.cost import device_model

__all__ = [
    "Backend",
    "Precompiled",
    "compile",
    "dynamo_backend",
    "explain",
    "load",
    "precompile",
    "replay",
    "reset",
    "stats",
]

F = TypeVar("F", bound=Callable[..., Any])

GraphCompiler = Callable[[CapturedGraph, Config, Stats], Callable[..., Any]]

VERSION_LIMIT = 64  # tuples of sizes compiled for one symbolic graph, unless recompile_limit says otherwise


# -- the backend ----------------------------------------------------------------------------------


class Backend:
    """A torch.compile backend: `backend(gm, inputs, *, mode=None, options=None)`.

    config: None reads the environment at each compilation.
    stats:  what it counts into; None is what `fusec.stats()` shows.
    compile_graph: what compiles each captured graph; `pipeline.compile_graph`, or something around it.
    """

    def __init__(
        self,
        config: Config | None = None,
        name: str = "graph",
        stats: Stats | None = None,
        compile_graph: GraphCompiler = compile_graph,
    ) -> None:
        self.config, self.name, self.compile_graph = config, name, compile_graph
        self.stats = _STATS if stats is None else stats
        self.lock = threading.Lock()
        self.count = 0
        self.__name__ = "fusec"

    def __call__(
        self,
        gm: GraphModule,
        example_inputs: Sequence[Any],
        *,
        mode: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Callable[..., Any]:
        config = Config.from_environment() if self.config is None else self.config
        config = _updated(config, {**({} if mode is None else {"mode": mode}), **(options or {})})
        _check_target(config)
        self._count(gm)
        try:
            return backend(
                gm,
                example_inputs,
                compile_graph=_Versioned(self, config),
                name=self._next_name(),
                random=config.random,
                version_limit=config.recompile_limit or VERSION_LIMIT,
                on_eager=functools.partial(self._on_eager, config.strict),
            )
        except RESTARTS:
            raise
        except FusecError:
            raise  # strict
        except Exception as error:
            return self._run_eagerly(gm, error, config)

    def reset(self) -> None:
        """Called by torch.compiler.reset(): its graphs are gone, their names free."""
        with self.lock:
            self.count = 0

    def _count(self, gm: GraphModule) -> None:
        reason = graph_break_reason(gm)
        with self.stats.lock:
            self.stats.recompiles += compilation_number() > 0
            if reason is not None:
                self.stats.graph_breaks.append(reason)

    def _next_name(self) -> str:
        with self.lock:
            self.count += 1
            return f"{self.name}_{self.count - 1}"

    def _on_eager(self, strict: bool, graph: CapturedGraph, reason: str) -> None:
        if strict:
            raise FusecError(f"graph {graph.name}: {reason}")
        self.stats.fall_back(Fallback("graph", f"graph {graph.name}", reason))

    def _run_eagerly(self, gm: GraphModule, error: Exception, config: Config) -> Callable[..., Any]:
        reason = f"AOTAutograd failed: {type(error).__name__}: {error}"
        if config.strict:
            raise FusecError(f"graph {self.name}: {reason}") from error
        self.stats.fall_back(Fallback("graph", f"graph {self.name}", f"runs as eager PyTorch would: {reason}"))
        forward: Callable[..., Any] = gm.forward
        return forward


class _Versioned:
    """compile_graph for one call of a Backend; a graph of a kind seen before is a recompilation for other sizes."""

    def __init__(self, owner: Backend, config: Config) -> None:
        self.owner, self.config = owner, config
        self.versions: Counter[str] = Counter()

    def __call__(self, graph: CapturedGraph) -> Callable[..., Any]:
        owner, version = self.owner, self.versions[graph.kind]
        self.versions[graph.kind] += 1
        if version:
            with owner.stats.lock:
                owner.stats.recompiles += 1
            graph = replace(graph, name=f"{graph.name}_v{version}")
        return owner.compile_graph(graph, self.config, owner.stats)


_STATS = Stats()
dynamo_backend = Backend()  # the entry point torch_dynamo_backends: torch.compile(m, backend="fusec")


# -- compile --------------------------------------------------------------------------------------


@overload
def compile(
    fn: F,
    *,
    fullgraph: bool = False,
    dynamic: bool | None = None,
    mode: str = "default",
    precision: str = "fast",
    target: str | None = None,
    options: Mapping[str, Any] | None = None,
    name: str | None = None,
    disable: bool = False,
    recompile_limit: int | None = None,
) -> F: ...


@overload
def compile(
    fn: None = None,
    *,
    fullgraph: bool = False,
    dynamic: bool | None = None,
    mode: str = "default",
    precision: str = "fast",
    target: str | None = None,
    options: Mapping[str, Any] | None = None,
    name: str | None = None,
    disable: bool = False,
    recompile_limit: int | None = None,
) -> Callable[[F], F]: ...


def compile(
    fn: Callable[..., Any] | None = None,
    *,
    fullgraph: bool = False,
    dynamic: bool | None = None,
    mode: str = "default",
    precision: str = "fast",
    target: str | None = None,
    options: Mapping[str, Any] | None = None,
    name: str | None = None,
    disable: bool = False,
    recompile_limit: int | None = None,
) -> Any:
    """Compile a function, method or module; also a decorator, with or without arguments.

    fullgraph: a graph break is an error.          dynamic: as torch.compile.
    mode:      "default", "reduce-overhead", "max-autotune".
    precision: "fast" computes low-precision chains in float32; "eager" rounds where eager mode rounds.
    target:    None: where the inputs are. "cuda", "cpu", or an architecture such as "sm_90" to compile for as well.
    options:   any other field of `fusec.Config` by name.
    name:      what reports and dumps call it; by default the function's own name.
    disable:   return `fn` as it is.
    recompile_limit: versions of one function before new ones run eagerly; None leaves torch's own.

    Raises ConfigError (unknown option or value), TypeError (not callable), TargetError ("cuda" without a GPU).
    """
    given: dict[str, Any] = {"fullgraph": fullgraph, "dynamic": dynamic, "mode": mode, "precision": precision}
    if target is not None:
        given["target"] = target
    if recompile_limit is not None:
        given["recompile_limit"] = recompile_limit
    if options is not None and not isinstance(options, Mapping):
        raise ConfigError(f"options must be a dict of Config fields, got {type(options).__name__}")
    config = _updated(Config.from_environment(), {**given, **(options or {})})
    _check_target(config)
    if not isinstance(disable, bool):
        raise ConfigError(f"disable must be True or False, got {disable!r}")
    if name is not None and not isinstance(name, str):
        raise ConfigError(f"name must be a string, got {name!r}")
    if fn is None:
        return lambda function: _compile(function, config, name, disable)
    return _compile(fn, config, name, disable)


def _compile(fn: Any, config: Config, name: str | None, disable: bool = False) -> Any:
    if not callable(fn):
        raise TypeError(f"fusec.compile takes a function, a method or a module, got {type(fn).__name__}: {fn!r}")
    if disable:
        return fn
    return _compile_with(fn, Backend(config, _identifier(name or _name_of(fn))), config, name)


def _compile_with(fn: Any, using: Backend, config: Config, name: str | None) -> Any:
    """torch.compile with this backend, and with the user's own errors as eager mode raises them."""
    settings: dict[str, Any] = {"backend": using, "fullgraph": config.fullgraph, "dynamic": config.dynamic}
    if config.recompile_limit is not None and _takes_recompile_limit():
        settings["recompile_limit"] = config.recompile_limit
    compiled: Any = torch.compile(fn, **settings)
    if isinstance(compiled, OptimizedModule):
        compiled.__class__ = CompiledModule
        object.__setattr__(compiled, "_fusec", (config, name, using.stats))
        return compiled

    @functools.wraps(compiled)
    def call(*args: Any, **kwargs: Any) -> Any:
        before, counted = breaks_so_far(), len(using.stats.graph_breaks)
        try:
            return compiled(*args, **kwargs)
        except _CALL_ERRORS as caught:
            error = caught
        finally:
            _count_breaks(before, counted, using.stats)
        return _recover(error, fn, fn, config, using.stats, args, kwargs)

    call._fusec = (fn, config, name)  # type: ignore[attr-defined]
    return call


class CompiledModule(OptimizedModule):
    """What compiling a module gives: torch's OptimizedModule, pickled as the module and how to compile it."""

    _opt_mod_attributes = OptimizedModule._opt_mod_attributes | {"_fusec"}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        config, _, stats = self._fusec
        before, counted = breaks_so_far(), len(stats.graph_breaks)
        try:
            return super().__call__(*args, **kwargs)
        except _CALL_ERRORS as caught:
            error = caught
        finally:
            _count_breaks(before, counted, stats)
        module = self._orig_mod
        return _recover(error, module, module.forward, config, stats, args, kwargs)

    def __reduce__(self) -> Any:
        config, name, _ = self._fusec
        return _compile, (self._orig_mod, config, name)


_CALL_ERRORS: tuple[type[Exception], ...] = (*CAPTURE_ERRORS, BackendCompilerFailed)


def _recover(
    error: Exception,
    fn: Callable[..., Any],
    traced: Callable[..., Any],
    config: Config,
    stats: Stats,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """After a failed capture: run eagerly, so that an error of the user's own is the one eager mode raises."""
    if isinstance(error, BackendCompilerFailed):
        inner = error.inner_exception
        raise inner if isinstance(inner, FusecError) else error
    if not failed_at_the_start(error, getattr(traced, "__func__", traced)):
        raise error
    result = fn(*args, **kwargs)
    if config.fullgraph or config.strict:
        raise error
    frame = list(getattr(error, "real_stack", ()))[-1]
    reason = f"runs as eager PyTorch would, capture failed: {_first_line(error)}"
    stats.fall_back(Fallback("call", _name_of(fn), reason, f"{frame.filename}:{frame.lineno}"))
    return result


def _count_breaks(before: Breaks, counted: int, stats: Stats) -> None:
    """Graph breaks of this call of which the backend did not hear."""
    if breaks_so_far() != before:
        with stats.lock:
            stats.graph_breaks.extend(breaks_since(before, stats.graph_breaks[counted:]))


def _updated(config: Config, options: Mapping[str, Any]) -> Config:
    for key in options:
        if not isinstance(key, str):
            raise ConfigError(f"option names are strings, got {key!r}")
    return config.updated(options)


def _check_target(config: Config) -> None:
    if config.target == "cuda":
        require_cuda()


@functools.cache
def _takes_recompile_limit() -> bool:
    return "recompile_limit" in inspect.signature(torch.compile).parameters  # torch 2.13; before, only globally


def _name_of(fn: Any) -> str:
    return str(getattr(fn, "__name__", None) or type(fn).__name__)


def _identifier(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_") or "graph"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# -- looking inside -------------------------------------------------------------------------------


def stats() -> dict[str, Any]:
    """Counters since the last `reset()`, as plain values.

    graphs, graph_breaks, kernels_built, kernels_launched, extern_calls, cache_hits, recompiles: numbers.
    fallbacks: a list of {"level", "op", "reason", "line"}, one for everything that runs as eager PyTorch would.
    """
    return _STATS.as_dict()


def reset() -> None:
    """Forget every compiled function (as torch.compiler.reset does) and set the counters to zero."""
    torch.compiler.reset()
    dynamo_backend.reset()
    _STATS.clear()


def explain(fn: Callable[..., Any], **options: Any) -> Callable[..., Explanation]:
    """`fusec.explain(fn)(*args)` runs fn once, compiled, and returns what was captured, fused, generated, launched.

    fn: a function or module, or one already compiled by fusec (its options are kept). options: as `compile`.
    """
    original, config, name = _original(fn)
    config = _updated(config, options)
    _check_target(config)

    def run(*args: Any, **kwargs: Any) -> Explanation:
        counted, graphs = Stats(), list[CompiledGraph]()

        def keep(graph: CapturedGraph, config: Config, stats: Stats) -> CompiledGraph:
            graphs.append(compile_graph(graph, config, stats))
            return graphs[-1]

        _run_watched(original, config, name, counted, keep, args, kwargs)
        return _explanation(graphs, counted)

    return run


def replay(fn: Callable[..., Any], **options: Any) -> Callable[..., Replay]:
    """`fusec.replay(fn)(*args)` runs fn once, each kernel beside eager mode, and returns what differs.

    The result is true when everything agrees; printed, it shows the first value that differs, inside fused kernels
    too. fn and options: as `explain`.
    """
    original, config, name = _original(fn)
    config = _updated(config, options)
    _check_target(config)

    def run(*args: Any, **kwargs: Any) -> Replay:
        found: list[Replay] = []

        def watch(graph: CapturedGraph, config: Config, stats: Stats) -> Callable[..., Any]:
            compiled = compile_graph(graph, config, stats)

            def call(*inputs: Any) -> Sequence[Any]:
                if compiled.record is not None and compiled.executable is not None:
                    found.append(replay_graph(compiled.record, compiled.executable, inputs))
                return compiled(*inputs)

            return call

        _run_watched(original, config, name, Stats(), watch, args, kwargs)
        launches, values, buffers = (sum(getattr(r, n) for r in found) for n in ("launches", "values", "buffers"))
        differences = tuple(d for r in found for d in r.differences)
        return Replay(name or _name_of(original), launches, values, buffers, differences)

    return run


def _run_watched(
    fn: Callable[..., Any],
    config: Config,
    name: str | None,
    counted: Stats,
    compile_graph: GraphCompiler,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    """Call fn once, compiled by a backend of its own, so that the program's own compiled versions stay as they are."""
    using = Backend(config, _identifier(name or _name_of(fn)), counted, compile_graph)
    _compile_with(fn, using, config, name)(*args, **kwargs)


def _original(fn: Any) -> tuple[Any, Config, str | None]:
    """The function or module behind a compiled one, and how it was compiled."""
    if isinstance(fn, CompiledModule):
        config, name, _ = fn._fusec
        return fn._orig_mod, config, name
    if hasattr(fn, "_fusec"):
        original, config, name = fn._fusec
        return original, config, name
    if not callable(fn):
        raise TypeError(f"fusec.explain takes a function, a method or a module, got {type(fn).__name__}: {fn!r}")
    return fn, Config.from_environment(), None


def _explanation(graphs: Sequence[CompiledGraph], counted: Stats) -> Explanation:
    records = tuple(replace(g.record, calls=g.calls, resources=_resources(g)) for g in graphs if g.record is not None)
    targets = [g.executable.target for g in graphs if g.executable is not None]
    device = targets[0].device if targets else "cpu"
    arch = targets[0].names[0] if targets and targets[0].names else None
    return Explanation(
        records,
        tuple(dict.fromkeys(str(f) for f in counted.fallbacks)),
        tuple(counted.graph_breaks),
        _device_name(device),
        device_model(arch).bandwidth,
        dict(Counter(f.level for f in counted.fallbacks)),
    )


def _resources(graph: CompiledGraph) -> dict[str, dict[str, int]]:
    """What the compiler made of each kernel, by name; empty for kernels that are only interpreted."""
    kernels = () if graph.executable is None else graph.executable.kernels
    artifacts = {k.name: k.artifact for k in kernels if k.artifact is not None}
    return {name: artifact.summary for name, artifact in artifacts.items()}


def _device_name(device: str) -> str:
    if device == "cuda" and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return "CPU tensors, in Triton's interpreter" if device == "cpu" else device


# -- ahead of time --------------------------------------------------------------------------------


class Precompiled:
    """Kernels compiled for a target, with no GPU needed. `save(path)` writes what `fusec.load(path)` reads.

    explanation: what was captured, fused and generated.
    kernels:     distinct compiled kernels; `.source.text`, `.artifacts[90].registers`, `.artifacts[90].cubin`.
    """

    def __init__(self, target: str, explanation: Explanation, kernels: Sequence[Kernel]) -> None:
        self.target, self.explanation, self.kernels = target, explanation, tuple(kernels)

    def save(self, path: str | Path) -> Archive:
        """Write kernels and a manifest into a folder; JSON and machine code, nothing that runs when it is read."""
        return save_archive(path, self.kernels)

    def __str__(self) -> str:
        return f"{len(self.kernels)} kernels for {self.target}\n{self.explanation}"


def precompile(
    fn: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: str,
    path: str | Path | None = None,
    **options: Any,
) -> Precompiled:
    """Compile fn for CUDA tensors like these arguments, on a machine that needs no GPU. Inference only.

    args, kwargs: example arguments; only shapes, strides and dtypes count, and they may be on any device.
    target:       an architecture such as "sm_90".      path: a folder to save to.      options: as `compile`.

    FusecError where a graph, or the kernel of a group, cannot be compiled, unless `strict=False`; with `strict=True`
    for every op without a kernel, too.
    """
    if not isinstance(target, str) or not target.startswith("sm_"):
        raise ConfigError(f'precompile needs an architecture such as "sm_90", got {target!r}')
    original, config, name = _original(fn)
    config = _updated(config, {**options, "target": target})
    has_cuda = torch.cuda.is_available()
    moved, inputs, mode = on_fake(original, (tuple(args), dict(kwargs or {})), "cuda" if has_cuda else "cpu")
    counted, graphs = Stats(), list[CompiledGraph]()

    def compile_on_cuda(graph: CapturedGraph, config: Config, stats: Stats) -> Callable[..., Any]:
        graphs.append(compile_graph(graph if has_cuda else on_cuda(graph), config, stats))
        return graph.graph_module.forward  # on fake tensors: shapes for what follows

    with mode, torch.no_grad():
        _run_watched(moved, config, name, counted, compile_on_cuda, *inputs)
    failed = [f for f in counted.fallbacks if f.level != "op"]
    if failed and options.get("strict", True):
        raise FusecError(f"{target}: {failed[0]}")
    for graph in graphs:
        graph.calls = 1
    executables = [g.executable for g in graphs if g.executable is not None]
    kernels = dict.fromkeys(k for e in executables for k in e.kernels)
    made = Precompiled(target, _explanation(graphs, counted), tuple(kernels))
    if path is not None:
        made.save(path)
    return made


def load(path: str | Path) -> Archive:
    """Take kernels saved by `precompile` into this machine's kernel cache: compiling the same function with the same
    shapes then builds nothing. Returns what was loaded.

    FileNotFoundError: nothing was saved there. BuildError: it is damaged.
    """
    return load_archive(path, Config.from_environment())
