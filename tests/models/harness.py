"""A model compiled and eager, in float32 or bfloat16, judged against the same weights in float64.

    row = check(BY_NAME["bert"], "sdpa", torch.bfloat16, training=True)
    row.faults  ->  ()

error    ||seen - exact|| / ||exact||, over all elements of one output, one loss or one gradient; of a gradient that is
         zero but for rounding (a bias that softmax takes out again), over the largest gradient's norm; the mean over
         the architecture's draws
limit    FACTOR * eager's error + two of the dtype's epsilons; for fewer than FEW elements, where eager's error is a
         matter of luck, its largest error of any output or gradient counts
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

import fusec
from fusec.errors import FallbackWarning
from tests.models.architectures import Architecture, Inputs

FACTOR = 2.0
FEW = 64
NOTHING = 1e-12  # of the largest gradient, in float64

Tensor = torch.Tensor
Leaves = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """What one model did compiled. worst: the largest error over its limit, and of which value. faults: sentences."""

    name: str
    kind: str
    attention: str
    dtype: str
    training: bool
    seconds: float
    graphs: int = 0
    breaks: int = 0
    kernels: int = 0
    built: int = 0
    calls: int = 0
    fallbacks: tuple[str, ...] = ()
    worst: float = 0.0
    worst_at: str = ""
    faults: tuple[str, ...] = ()


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of an output: of mappings, sequences and key-value caches."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from leaves(item, f"{path}[{i}]")
    elif type(value).__module__.startswith("transformers.cache"):
        yield from leaves({k: v for k, v in vars(value).items() if not k.startswith("_")}, path)


def infer(model: Any, inputs: Inputs) -> Leaves:
    with torch.no_grad():
        return dict(leaves(model(**inputs)))


def train(model: Any, inputs: Inputs) -> Leaves:
    """Outputs, gradients of parameters and buffers after one step."""
    model.zero_grad(set_to_none=True)
    result = model(**inputs)
    result.loss.backward()
    found = {k: v.detach() for k, v in leaves(result)}
    module = getattr(model, "_orig_mod", model)
    found |= {f"grad {n}": p.grad for n, p in module.named_parameters() if p.grad is not None}
    return found | {f"buffer {n}": b.clone() for n, b in module.named_buffers()}


class InFloat64(TorchFunctionMode):
    """Where a model asks for float32, whatever its own dtype is, it gets float64."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        function = Tensor.double if function is Tensor.float else function
        widened = pytree.tree_map(lambda x: torch.float64 if x is torch.float32 else x, (args, kwargs or {}))
        return function(*widened[0], **widened[1])


def wide(inputs: Inputs) -> Inputs:
    return {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}


def distance(seen: Tensor, exact: Tensor, size: float) -> float:
    """||seen - exact|| / size over the finite elements; infinite where others are not the same."""
    seen, exact = seen.double(), exact.double()
    finite = exact.isfinite()
    if not torch.equal(seen[~finite].nan_to_num(7.0), exact[~finite].nan_to_num(7.0)):
        return float("inf")
    away = (seen[finite] - exact[finite]).norm().item()
    return away / size if size else away


def sizes(exact: Leaves) -> dict[str, float]:
    """The norm of each value; of a gradient that is nothing, the norm of the largest gradient."""
    norms = {n: v[v.isfinite()].norm().item() for n, v in exact.items() if v.is_floating_point()}
    largest = max((size for n, size in norms.items() if n.startswith("grad ")), default=0.0)
    return {n: largest if n.startswith("grad ") and size < NOTHING * largest else size for n, size in norms.items()}


@dataclass(frozen=True)
class Draw:
    """What one draw of weights and inputs gave."""

    seen: Leaves
    eager: Leaves
    exact: Leaves


def errors(draws: Sequence[Draw], of: Callable[[Draw], Leaves], names: Sequence[str]) -> dict[str, float]:
    """The mean over the draws of each value's distance from float64."""
    norms = [sizes(d.exact) for d in draws]
    return {
        n: sum(distance(of(d)[n], d.exact[n], norm[n]) for d, norm in zip(draws, norms, strict=True)) / len(draws)
        for n in names
    }


def compare(*draws: Draw) -> tuple[float, str, list[str]]:
    """The largest error over its limit, where it is, and a sentence for each fault."""
    seen, eager = draws[0].seen, draws[0].eager
    faults = [f"only one has {name}" for name in seen.keys() ^ eager.keys()]
    floating = [n for n, v in eager.items() if v.is_floating_point()]
    allowed = errors(draws, lambda d: d.eager, floating)
    alike = [n for n in floating if n in seen and (seen[n].dtype, seen[n].shape) == (eager[n].dtype, eager[n].shape)]
    reached = errors(draws, lambda d: d.seen, alike)
    typical = max((allowed[n] for n in floating if eager[n].numel() >= FEW), default=0.0)
    worst, worst_at = 0.0, ""
    for name in seen.keys() & eager.keys():
        ours, theirs = seen[name], eager[name]
        if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
            faults.append(f"{name}: {ours.dtype}{list(ours.shape)}, eager {theirs.dtype}{list(theirs.shape)}")
        elif not ours.is_floating_point():
            faults += [] if all(torch.equal(d.seen[name], d.eager[name]) for d in draws) else [f"{name}: not equal"]
        else:
            mine = reached[name]
            eagers = allowed[name] if ours.numel() >= FEW else max(typical, allowed[name])
            over = mine / (FACTOR * eagers + 2 * torch.finfo(ours.dtype).eps)
            if not over <= 1.0:
                faults.append(f"{name}: error {mine:.1e}, eager's {allowed[name]:.1e}")
            if not over <= worst:
                worst, worst_at = over, name
    return worst, worst_at, faults


def check(architecture: Architecture, attention: str, dtype: torch.dtype, training: bool) -> Row:
    """One model, one step. What goes wrong is in the row's faults: a crash, a graph run eagerly, a wrong number."""
    step = train if training else infer
    row = Row(architecture.name, architecture.kind, attention, str(dtype).removeprefix("torch."), training, 0.0)
    counted, draws = [], []
    for seed in range(architecture.draws if training else 1):
        model, inputs = architecture.build(attention, dtype, seed)
        model.train(training)
        exact_model = copy.deepcopy(model).double()
        if hasattr(exact_model.config, "num_experts_per_tok"):
            exact_model.set_experts_implementation("eager")  # grouped products know no float64
        with InFloat64():
            exact = step(exact_model, wide(inputs))
        eager = step(copy.deepcopy(model), inputs)
        found, seen = _counted(row, lambda m=model, x=inputs: step(fusec.compile(m), x))
        if seen is None:
            return found
        counted.append(found)
        draws.append(Draw(seen, eager, exact))
    worst, worst_at, faults = compare(*draws)
    faults += [fault for found in counted for fault in found.faults]
    return replace(counted[0], worst=worst, worst_at=worst_at, faults=tuple(dict.fromkeys(faults)))


def _counted(row: Row, run: Callable[[], Any]) -> tuple[Row, Any]:
    """The row with what `run` did, its time and counters, and its result; None where it raised, with a fault."""
    fusec.reset()
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FallbackWarning)
            seen = run()
    except Exception as error:
        fusec.reset()
        text = str(error).strip().splitlines() or [""]
        return replace(row, faults=(f"{type(error).__name__}: {text[0][:200]}",)), None
    seconds, stats = time.perf_counter() - start, fusec.stats()
    fusec.reset()
    counted = replace(
        row,
        seconds=seconds,
        graphs=stats["graphs"],
        breaks=stats["graph_breaks"],
        kernels=stats["kernels_launched"],
        built=stats["kernels_built"],
        calls=stats["extern_calls"],
        fallbacks=tuple(sorted({f["op"] for f in stats["fallbacks"] if f["level"] == "op"})),
        faults=tuple(f"{f['op']}: {f['reason']}" for f in stats["fallbacks"] if f["level"] != "op"),
    )
    return counted, seen


def generate(model: Any, ids: Tensor, cache: str, count: int) -> Tensor:
    kind = {"growing": "dynamic", "static": "static"}[cache]
    tokens: Tensor = model.generate(
        ids,
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        cache_implementation=kind,
        disable_compile=True,
    )
    return tokens


def check_generation(architecture: Architecture, cache: str, count: int = 8) -> Row:
    """Greedy tokens with a key-value cache that grows or has a fixed length; compiled is each forward."""
    model, inputs = architecture.build("sdpa", torch.float32)
    expected = generate(model, inputs["input_ids"], cache, count)
    row, tokens = _counted(
        Row(architecture.name, architecture.kind, f"generate, {cache} cache", "float32", False, 0.0),
        lambda: _generated(model, inputs["input_ids"], cache, count),
    )
    if tokens is None or torch.equal(tokens, expected):
        return row
    return replace(row, faults=(f"{tokens.tolist()}, eager {expected.tolist()}", *row.faults))


def _generated(model: Any, ids: Tensor, cache: str, count: int) -> Tensor:
    model.forward = fusec.compile(model.forward)
    return generate(model, ids, cache, count)
