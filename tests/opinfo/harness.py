"""One OpInfo sample through fusec, beside eager mode.

    outcome = run_sample(op, sample, Compiler())     ->  Outcome(verdict="same", kernels=1, externs=0, ...)

A sample is compiled as a whole function would be, without Dynamo's tracing of Python: AOTAutograd, decompositions,
every pass, kernels in Triton's interpreter. What AOTAutograd cannot capture (a number read from a tensor, an output
whose size depends on values) goes through `fusec.compile` instead, where such ops break the graph.

A sample passes when it gives eager's answer (types, dtype, shape, strides, values; the inputs written as eager writes
them) or eager's error. What is asked of it is a `Task`: the result, the gradients for a fixed random gradient from
outside, or that finite differences agree with the gradients (torch.autograd.gradcheck).
"""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.testing._internal.common_device_type import toleranceOverride
from torch.testing._internal.opinfo.core import BinaryUfuncInfo, SampleInput, UnaryUfuncInfo
from torch.utils import _pytree as pytree

import fusec
from fusec.api import Backend
from fusec.capture.dynamo import CapturedGraph, backend
from fusec.config import Config
from fusec.pipeline import Stats, compile_graph

# torch.testing._internal: checked with torch 2.11.0 and 2.13.0.

log = logging.getLogger(__name__)

# What torch.testing.assert_close allows; an OpInfo's own overrides widen it.
TOLERANCE = {
    torch.float16: (1e-5, 1e-3),
    torch.bfloat16: (1e-5, 1.6e-2),
    torch.float32: (1e-5, 1.3e-6),
    torch.float64: (1e-7, 1e-7),
    torch.complex32: (1e-5, 1e-3),
    torch.complex64: (1e-5, 1.3e-6),
    torch.complex128: (1e-7, 1e-7),
}
_HALF = (torch.float16, torch.bfloat16)
WIDER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}


@dataclass(frozen=True)
class Outcome:
    """What one sample did.

    verdict:  "same", "closer" (outside the tolerance, and no further from float64 than eager), "rounded" ("same" with
              precision="eager", which rounds after each step as eager does: terms that cancel show it), "error"
              (eager's), "random" (only the form of the result is determined), or a sentence: why it failed.
    kernels, externs: launches of generated kernels and library calls.
    fallbacks: what was reported to run as eager PyTorch would.
    path:     "graph", or "function" where the sample went through Dynamo.
    without_fusec: the sample failed, and fails as well with torch.compile(backend="aot_eager"): a defect of PyTorch.
    """

    verdict: str
    kernels: int = 0
    externs: int = 0
    fallbacks: tuple[str, ...] = ()
    path: str = "graph"
    without_fusec: bool = False

    @property
    def passed(self) -> bool:
        return self.verdict in ("same", "closer", "rounded", "error", "random")


class Raised:
    """In place of a result: the error that was raised."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __repr__(self) -> str:
        return f"{type(self.error).__name__}: {str(self.error).strip()[:300]}"


class SampleTimeout(BaseException):
    """Not an Exception: nothing between here and the caller may take it for a failure to step down from."""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise SampleTimeout

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# -- arguments ------------------------------------------------------------------------------------


def copied(value: Any) -> Any:
    """The same arguments in memory of their own; tensors that share memory, or overlap themselves, still do."""
    storages: dict[int, Tensor] = {}

    def copy(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.layout is not torch.strided or x.is_quantized or x.device.type != "cpu":
            return x
        if type(x) is not Tensor and type(x) is not torch.nn.Parameter:
            return x
        storage = x.untyped_storage()
        if storage.data_ptr() not in storages:
            memory = torch.empty(storage.nbytes(), dtype=torch.uint8)
            memory.untyped_storage().copy_(storage)
            storages[storage.data_ptr()] = memory
        plain = torch.empty(0, dtype=x.dtype).set_(
            storages[storage.data_ptr()].untyped_storage(), x.storage_offset(), x.size(), x.stride()
        )
        plain = plain.conj() if x.is_conj() else plain
        plain = torch._neg_view(plain) if x.is_neg() else plain
        return plain.requires_grad_(x.requires_grad)

    return pytree.tree_map(copy, value)


def form(x: Any) -> Any:
    """What guards would look at."""
    if isinstance(x, Tensor):
        strided = x.layout is torch.strided
        where = (x.stride(), x.storage_offset(), x.is_conj(), x.is_neg()) if strided else ()
        return (x.dtype, x.layout, tuple(x.shape), x.requires_grad, *where)
    return (type(x), repr(x))


def tensors(value: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(value) if isinstance(x, Tensor)]


def elements(value: Any) -> int:
    return sum(x.numel() for x in tensors(value))


# -- calling --------------------------------------------------------------------------------------

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Step = Callable[[Callable[..., Any], Arguments, Any], Any]


@torch.no_grad()
def forward(function: Callable[..., Any], arguments: Arguments, op: Any) -> Any:
    """The result."""
    return function(*arguments[0], **arguments[1])


def backward(function: Callable[..., Any], arguments: Arguments, op: Any) -> Any:
    """The result, which of its tensors have a gradient, and the gradients for a fixed random gradient from outside."""
    result = function(*arguments[0], **arguments[1])
    outputs = [x for x in tensors(result) if x.requires_grad]
    inputs = [x for x in tensors(arguments) if x.requires_grad]
    drawn = torch.Generator().manual_seed(1)
    incoming = [_drawn(x, drawn) for x in outputs]
    found = torch.autograd.grad(outputs, inputs, incoming, allow_unused=True) if outputs else ()
    plain = pytree.tree_map_only(Tensor, Tensor.detach, result)
    gradients = ["no gradient" if g is None else _contiguous(g) for g in found]
    return plain, [x.requires_grad for x in tensors(result)], gradients


def _drawn(x: Tensor, generator: torch.Generator) -> Tensor:
    """Normal numbers of 8 bits: the same ones in float32 and in float64, which "closer" compares."""
    parts = torch.randn((*x.shape, 1 + x.is_complex()), generator=generator).to(torch.bfloat16).to(torch.float64)
    return (torch.view_as_complex(parts) if x.is_complex() else parts.squeeze(-1)).to(x.dtype)


def _contiguous(gradient: Tensor) -> Tensor:
    """The strides of a gradient are not promised, by eager mode neither."""
    return gradient.contiguous() if gradient.layout is torch.strided else gradient


def gradcheck(function: Callable[..., Any], arguments: Arguments, op: Any) -> Any:
    """True; raises where finite differences do not agree with the gradients."""
    leaves, spec = pytree.tree_flatten(arguments)
    positions = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.requires_grad]

    def seeded(*inputs: Tensor) -> Any:
        torch.manual_seed(0)
        filled = dict(zip(positions, inputs, strict=True))
        args, kwargs = pytree.tree_unflatten([filled.get(i, x) for i, x in enumerate(leaves)], spec)
        return tuple(x for x in tensors(function(*args, **kwargs)) if x.requires_grad)

    inputs = tuple(leaves[i] for i in positions)
    return not seeded(*inputs) or torch.autograd.gradcheck(
        seeded, inputs, nondet_tol=op.gradcheck_nondet_tol, fast_mode=True, check_undefined_grad=False
    )


@dataclass(frozen=True)
class Task:
    """One sample and what is asked of it.

    function: what is compiled, the op and what the suite puts around it. around: equal where that is the same.
    """

    op: Any
    function: Callable[..., Any]
    arguments: Arguments
    step: Step
    around: Any = None

    def attempt(self, function: Callable[..., Any], arguments: Arguments) -> Any:
        """What the step gives of the function, or what was raised."""
        torch.manual_seed(0)
        try:
            return self.step(function, arguments, self.op)
        except Exception as error:
            return Raised(error)


# What stands behind a dtype: "float32.backward".
STEPS: dict[str, Step] = {"": forward, "backward": backward, "gradcheck": gradcheck}


def task(op: Any, sample: Any, step: Step) -> Task:
    arguments = ((sample.input, *sample.args), dict(sample.kwargs))
    if step is forward:
        return Task(op, op, arguments, step)

    def function(*args: Any, **kwargs: Any) -> Any:
        return sample.output_process_fn_grad(op.gradcheck_wrapper(op.get_op(), *args, **kwargs))

    plain = getattr(sample.output_process_fn_grad, "__code__", None) is _AS_IT_IS
    return Task(op, function, arguments, step, None if plain else sample.output_process_fn_grad)


_AS_IT_IS = SampleInput(None).output_process_fn_grad.__code__  # what the suite gives samples that ask for no other


class NotCaptured(Exception):
    """AOTAutograd cannot make one graph of this sample."""


@dataclass
class _Graph:
    """A compiled sample: call with arguments of the same form."""

    call: Callable[..., Any]
    spec: Any
    leaves: list[Any]  # outputs that are not tensors, as traced; a marker where a tensor goes
    is_random: bool
    stats: Stats

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        outputs = iter(self.call(*tensors((args, kwargs))))
        return pytree.tree_unflatten([next(outputs) if x is _TENSOR else x for x in self.leaves], self.spec)


_TENSOR = object()


class Compiler:
    """Compiles samples of one op; a graph is kept for samples that differ only in their values."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = Config(cache=False, workers=0, random="eager") if config is None else config
        self.graphs: dict[Any, _Graph | None] = {}

    def compiled(self, task: Task, arguments: Arguments) -> _Graph | None:
        """The graph of the task's function for arguments of this form; None where no one graph can be made."""
        leaves, spec = pytree.tree_flatten(arguments)
        key = (spec, tuple(form(x) for x in leaves), task.around)
        if key not in self.graphs:
            try:
                with torch.set_grad_enabled(task.step is not forward):
                    self.graphs[key] = self._compile(task.function, leaves, spec)
            except Exception:
                log.info("no graph of %s; it goes through Dynamo", task.op, exc_info=True)
                self.graphs[key] = None
        return self.graphs[key]

    def _compile(self, function: Callable[..., Any], leaves: list[Any], spec: Any) -> _Graph:
        positions = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
        if any(leaves[i].layout is not torch.strided for i in positions):
            raise NotCaptured("an argument is not a strided tensor")
        traced: list[Any] = []

        def flat(*inputs: Tensor) -> list[Tensor]:
            filled = list(leaves)
            for i, x in zip(positions, inputs, strict=True):
                filled[i] = x
            args, kwargs = pytree.tree_unflatten(filled, spec)
            results, result_spec = pytree.tree_flatten(function(*args, **kwargs))
            if any(isinstance(r, torch.SymInt | torch.SymFloat | torch.SymBool) for r in results):
                raise NotCaptured("a number that depends on values is returned")
            traced[:] = [[_TENSOR if isinstance(r, Tensor) else r for r in results], result_spec]
            return [r for r in results if isinstance(r, Tensor)]

        graph = fx.Graph()
        graph.output(graph.call_function(flat, tuple(graph.placeholder(f"x{i}") for i in range(len(positions)))))
        stats, ops = Stats(), set[Any]()

        def compile_captured(captured: CapturedGraph) -> Callable[..., Any]:
            for node in captured.graph_module.graph.nodes:
                ops.add(node.target)
                if any(x.layout is not torch.strided for x in tensors(node.meta.get("val"))):
                    raise NotCaptured("a value is not a strided tensor: AOTAutograd loses its gradient")
            return compile_graph(captured, self.config, stats)

        inputs = [leaves[i] for i in positions]
        module = fx.GraphModule(torch.nn.Module(), graph)
        call = backend(module, inputs, compile_graph=compile_captured, random=self.config.random)
        if not any(x is _TENSOR for x in traced[0]):
            raise NotCaptured("no tensor is returned")
        is_random = any(torch.Tag.nondeterministic_seeded in getattr(op, "tags", ()) for op in ops)
        return _Graph(call, traced[1], traced[0], is_random, stats)


def run_sample(
    op: Any, sample: Any, compiler: Compiler, seconds: int = 120, decorated: bool = False, step: Step = forward
) -> Outcome:
    """Compile and run one SampleInput; eager mode is run beside it. A sample that takes longer than that fails.

    decorated: through Dynamo, as a user's decorated function.
    """
    try:
        with warnings.catch_warnings(), time_limit(seconds):
            warnings.simplefilter("ignore")  # fallbacks are counted in Stats; the others are eager's own
            return _run(task(op, sample, step), compiler, decorated)
    except SampleTimeout:
        return Outcome(f"took longer than {seconds} s")


def _run(task: Task, compiler: Compiler, decorated: bool, values: bool = True) -> Outcome:
    want_arguments, got_arguments = copied(task.arguments), copied(task.arguments)
    want = task.attempt(task.function, want_arguments)
    stats = Stats()
    graph = None if decorated else compiler.compiled(task, copied(task.arguments))
    if graph is not None:
        before = (graph.stats.kernels_launched, graph.stats.extern_calls)
        got = task.attempt(graph, got_arguments)
        stats.kernels_launched = graph.stats.kernels_launched - before[0]
        stats.extern_calls = graph.stats.extern_calls - before[1]
        stats.fallbacks[:] = graph.stats.fallbacks
    else:
        got = task.attempt(_decorated(task.function, compiler.config, stats), got_arguments)
    fallbacks = tuple(dict.fromkeys(f"{f.level}: {f}" for f in stats.fallbacks))
    verdict = _verdict(task, (want, want_arguments), (got, got_arguments), values)
    path = "function" if graph is None else "graph"
    outcome = Outcome(verdict, stats.kernels_launched, stats.extern_calls, fallbacks, path)
    if outcome.passed and graph is not None and graph.is_random and compiler.config.random == "eager":
        return _drawn_in_kernels(task, outcome)
    if outcome.passed:
        return outcome
    half = any(isinstance(x, Tensor) and x.dtype in _HALF for x in pytree.tree_leaves(task.arguments))
    if half and "values differ" in verdict and compiler.config.precision == "fast":
        stepwise = type(compiler)(replace(compiler.config, precision="eager"))
        if _run(task, stepwise, decorated, values).verdict == "same":
            return replace(outcome, verdict="rounded")
    return replace(outcome, without_fusec=_fails_without_fusec(task, (want, want_arguments)))


def _drawn_in_kernels(task: Task, same_stream: Outcome) -> Outcome:
    """The sample once more with random numbers drawn in kernels: the form is eager's, the numbers are others."""
    again = _run(task, Compiler(Config(cache=False, workers=0)), decorated=False, values=False)
    return again if not again.passed else replace(again, verdict=same_stream.verdict)


def _fails_without_fusec(task: Task, eager: tuple[Any, Any]) -> bool:
    torch.compiler.reset()
    control = torch.compile(lambda *args, **kwargs: task.function(*args, **kwargs), backend="aot_eager")
    arguments = copied(task.arguments)
    return not Outcome(_verdict(task, eager, (task.attempt(control, arguments), arguments))).passed


def _decorated(op: Callable[..., Any], config: Config, stats: Stats) -> Callable[..., Any]:
    torch.compiler.reset()

    def function(*args: Any, **kwargs: Any) -> Any:
        return op(*args, **kwargs)

    return fusec.api._compile_with(function, Backend(config, "sample", stats), config, None)


# -- comparing ------------------------------------------------------------------------------------


def _verdict(task: Task, eager: tuple[Any, Any], fused: tuple[Any, Any], values: bool = True) -> str:
    (want, want_arguments), (got, got_arguments) = eager, fused
    if isinstance(want, Raised) or isinstance(got, Raised):
        same = isinstance(want, Raised) and isinstance(got, Raised) and type(got.error) is type(want.error)
        return "error" if same else f"{got if isinstance(got, Raised) else 'an answer'}; eager: {_short(want)}"
    undetermined = not values or task.op.name in UNDETERMINED

    def found(values: bool) -> str | None:
        return difference(got, want, task, values and not undetermined) or difference(
            got_arguments, want_arguments, task, values, what="argument"
        )

    differs = found(values)
    if differs is None:
        return "random" if undetermined else "same"
    if (
        "values differ" in differs
        and found(values=False) is None
        and _no_further(task, (got, got_arguments), (want, want_arguments))
    ):
        return "closer"
    return differs


# Memory that nobody wrote.
UNDETERMINED = frozenset({"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"})


def difference(got: Any, want: Any, task: Task, values: bool = True, what: str = "result") -> str | None:
    """Why two results are not the same; None when they are."""
    a, a_spec = pytree.tree_flatten(got)
    b, b_spec = pytree.tree_flatten(want)
    if len(a) != len(b):
        return f"{len(a)} {what}s, eager {len(b)}"
    if what == "result" and a_spec != b_spec:
        return f"a {what} of {a_spec}, eager {b_spec}"
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        found = _leaf_difference(x, y, task, values)
        if found is not None:
            return f"{what} {i}: {found}"
    return None


def _leaf_difference(x: Any, y: Any, task: Task, values: bool) -> str | None:
    if not isinstance(y, Tensor):
        same = type(x) is type(y) and (x == y or repr(x) == repr(y))
        return None if same or not isinstance(y, int | float | complex | str) else f"{x!r}, eager {y!r}"
    if not isinstance(x, Tensor):
        return f"{x!r}, eager a tensor"
    if (x.dtype, x.shape, x.layout, x.device) != (y.dtype, y.shape, y.layout, y.device):
        return f"{x.dtype} {tuple(x.shape)} {x.layout}, eager {y.dtype} {tuple(y.shape)} {y.layout}"
    if y.layout is torch.strided and y.numel():
        strides = [(s, t) for n, s, t in zip(y.shape, x.stride(), y.stride(), strict=True) if n != 1]
        if any(s != t for s, t in strides):
            return f"strides {x.stride()} of {tuple(x.shape)}, eager {y.stride()}"
    if not values:
        return None
    atol, rtol = tolerance(task, y.dtype)
    try:
        torch.testing.assert_close(x, y, rtol=rtol, atol=atol, equal_nan=True, check_stride=False)
    except AssertionError as error:
        return f"values differ: {' '.join(str(error).split())[:300]}"
    signed_zeros = getattr(task.op, "signed_zeros", isinstance(task.op, UnaryUfuncInfo | BinaryUfuncInfo))
    return _zero_difference(x, y) if signed_zeros and task.step is forward else None


def _zero_difference(x: Tensor, y: Tensor) -> str | None:
    """-0.0 is not 0.0, where a zero is not the difference of two rounded values."""
    if y.layout is not torch.strided or not y.is_floating_point() or y.dtype.itemsize == 1:
        return None
    wrong = (x == 0) & (y == 0) & (x.signbit() != y.signbit())
    return f"zeros of the other sign: {int(wrong.sum())}" if bool(wrong.any()) else None


def tolerance(task: Task, dtype: torch.dtype) -> tuple[float, float]:
    """(atol, rtol): assert_close's own, or for a result the widest that the OpInfo asks for on the CPU."""
    found = [TOLERANCE.get(dtype, (0.0, 0.0))]
    for decorator in task.op.decorators if task.step is forward else ():
        for override in getattr(decorator, "decorators", [decorator]):
            if isinstance(override, toleranceOverride) and getattr(decorator, "device_type", None) in (None, "cpu"):
                limits = override.d.get(dtype)
                if limits is not None:
                    found.append((limits.atol, limits.rtol))
    return max(a for a, _ in found), max(r for _, r in found)


def _no_further(task: Task, got: Any, want: Any) -> bool:
    """True when no value of a result and its arguments is further from the one in float64 than eager's is."""

    def widen(x: Any) -> Any:
        if isinstance(x, torch.dtype):
            return WIDER.get(x, x)
        if not isinstance(x, Tensor) or x.dtype not in WIDER:
            return x
        return x.detach().to(WIDER[x.dtype]).requires_grad_(x.requires_grad)

    arguments = pytree.tree_map(widen, copied(task.arguments))
    exact = task.attempt(task.function, arguments)
    if isinstance(exact, Raised):
        return False
    triples = list(zip(*(pytree.tree_leaves(v) for v in (got, want, (exact, arguments))), strict=False))
    return all(_leaf_no_further(task, *t) for t in triples if isinstance(t[1], Tensor))


def _leaf_no_further(task: Task, got: Tensor, want: Tensor, exact: Tensor) -> bool:
    differs = _leaf_difference(got, want, task, values=True)
    if want.is_complex() and exact.is_complex():
        got, want, exact = (torch.view_as_real(x.resolve_conj()) for x in (got, want, exact))
    return differs is None or (
        "values differ" in differs
        and want.is_floating_point()
        and _closer(got, want, exact, *tolerance(task, want.dtype), gradients=task.step is backward)
    )


def _closer(got: Tensor, want: Tensor, exact: Tensor, atol: float, rtol: float, gradients: bool) -> bool:
    """Where a value is outside the tolerance, it is no further from the exact one than eager's worst there.

    gradients: sums of large terms may cancel in one of them, where eager's error is small or large by luck. The whole
    tensor's largest error is at most 1.5 times eager's.
    """
    if exact.shape != want.shape or bool((~got.isfinite() & (want.isfinite() | exact.isfinite())).any()):
        return False
    infinite = ~want.isfinite() & ~exact.isfinite()
    if not torch.equal(got[infinite].nan_to_num(), want[infinite].nan_to_num()):
        return False
    outside = ~torch.isclose(got, want, rtol=rtol, atol=atol, equal_nan=True)
    # Eager may overflow in float16 where float32 inside a kernel does not.
    finite = (outside | gradients) & want.isfinite() & exact.isfinite()
    true = exact.double()[finite]
    if not true.numel():
        return True
    error, eager = ((t.double()[finite] - true).abs().max() for t in (got, want))
    return bool(error <= eager * (1.5 if gradients else 1.0))


def _short(value: Any) -> str:
    return repr(value) if isinstance(value, Raised) else "an answer"
