"""Random numbers that a kernel can compute: one draw of seeds from PyTorch's generator a call, Philox for the rest.

Enters: an aten graph, forward, inference or joint. Leaves: the same graph, in place.

    rand = aten.rand([8, 4])              seeds = fusec.random_seeds(2, device)
    noise = aten.randn_like(x)      ->    rand  = fusec.random_uniform(seeds, 0, [8, 4], [0, 1], float32)
                                          noise = fusec.random_normal(seeds, 1, [8, 4], [0, 1], float32)

Drawing seeds advances the generator of the device, so `torch.manual_seed` and saved generator states reproduce a call
and two calls differ. The number at a point depends on its seed and its row-major position alone: not on blocks, not on
strides; four neighbours share a block of Philox. A joint graph is rewritten before it is partitioned: the seeds are
saved for backward, and what was drawn from them is computed there again.

`random_table` rewrites the other distributions in terms of rand, randn and randint. With Config.random "eager" neither
is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.utils.checkpoint import CheckpointPolicy

from fusec.kernels.philox import philox

__all__ = ["dense_strides", "draw_in_kernels", "random_table", "uniform_digits"]

aten = torch.ops.aten
RANGE_BITS = 60  # integers are drawn from 62 random bits


# -- the ops --------------------------------------------------------------------------------------

_LIBRARY = torch.library.Library("fusec", "DEF")
_SHAPE = "SymInt[] size, int[] order, ScalarType dtype"
_LIBRARY.define("random_seeds(int count, Device device) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
_LIBRARY.define(f"random_uniform(Tensor seeds, int which, {_SHAPE}) -> Tensor")
_LIBRARY.define(f"random_normal(Tensor seeds, int which, {_SHAPE}) -> Tensor")
_LIBRARY.define(f"random_integers(Tensor seeds, int which, SymInt low, SymInt high, {_SHAPE}) -> Tensor")


def dense_strides(size: Sequence[Any], order: Sequence[int]) -> list[Any]:
    """Strides of a tensor without gaps whose dimensions lie in memory as `order` says, outermost first."""
    strides: list[Any] = [1] * len(size)
    step: Any = 1
    for dim in reversed(order):
        strides[dim] = step
        step = step * size[dim]
    return strides


def uniform_digits(dtype: torch.dtype) -> int:
    """Bits of a uniform number: multiples of 2**-digits in [0, 1) are exact in the dtype."""
    return {torch.float64: 53, torch.float16: 11, torch.bfloat16: 8}.get(dtype, 24)


def _seeds(count: int, device: torch.device) -> Tensor:
    return torch.randint(-(1 << 63), (1 << 63) - 1, (count,), dtype=torch.int64, device=device)


def _words(seeds: Tensor, which: int, size: Sequence[int]) -> Callable[[int], Tensor]:
    """word -> 32 random bits at every point, as int64 in [0, 2**32)."""
    points = torch.arange(math.prod(size), device=seeds.device).view(tuple(size))
    return lambda word: philox(seeds[which], points, word).to(torch.int64) & 0xFFFFFFFF


def _laid_out(value: Tensor, order: Sequence[int], dtype: torch.dtype) -> Tensor:
    strides = dense_strides(value.shape, order)
    return torch.empty_strided(value.shape, strides, dtype=dtype, device=value.device).copy_(value)


def _unit(words: Callable[[int], Tensor], first: int, digits: int) -> Tensor:
    """[0, 1) in float64, from one word, or two for more than 32 digits."""
    bits = words(first) if digits <= 32 else words(first) | (words(first + 1) & 0x1FFFFF) << 32
    return (bits & ((1 << digits) - 1)).to(torch.float64) * 2.0**-digits


def _uniform(seeds: Tensor, which: int, size: Sequence[int], order: Sequence[int], dtype: torch.dtype) -> Tensor:
    return _laid_out(_unit(_words(seeds, which, size), 0, uniform_digits(dtype)), order, dtype)


def _normal(seeds: Tensor, which: int, size: Sequence[int], order: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Box and Muller: sqrt(-2 ln u) cos(2 pi v), u in (0, 1]."""
    words = _words(seeds, which, size)
    if dtype is torch.float64:
        u, v = 1.0 - _unit(words, 0, 53), _unit(words, 2, 53)
    else:
        u = (words(0) & 0x7FFFFFFF).to(torch.float32) * 2.0**-31 + 2.0**-32
        v = (words(1) & 0xFFFFFF).to(torch.float32) * 2.0**-24
    return _laid_out(torch.sqrt(-2 * torch.log(u)) * torch.cos(2 * math.pi * v), order, dtype)


def _integers(
    seeds: Tensor, which: int, low: int, high: int, size: Sequence[int], order: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """low + 62 random bits modulo (high - low)."""
    words = _words(seeds, which, size)
    bits = (words(0) & 0x7FFFFFFF) << 31 | (words(1) & 0x7FFFFFFF)
    return _laid_out(low + bits % (high - low), order, dtype)


def _fake(seeds: Tensor, which: int, *args: Any) -> Tensor:
    size, order, dtype = args[-3:]
    return torch.empty_strided(size, dense_strides(size, order), dtype=dtype, device=seeds.device)


for _name, _function in (("random_uniform", _uniform), ("random_normal", _normal), ("random_integers", _integers)):
    _LIBRARY.impl(_name, _function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fusec::{_name}", _fake, lib=_LIBRARY)
_LIBRARY.impl("random_seeds", _seeds, "CompositeExplicitAutograd")


torch.library.register_fake(
    "fusec::random_seeds",
    lambda count, device: torch.empty((count,), dtype=torch.int64, device=device),
    lib=_LIBRARY,
)

_UNIFORM, _NORMAL = torch.ops.fusec.random_uniform.default, torch.ops.fusec.random_normal.default
_INTEGERS = torch.ops.fusec.random_integers.default


# -- the graph ------------------------------------------------------------------------------------


def draw_in_kernels(graph_module: GraphModule) -> GraphModule:
    """rand, randn and randint of a graph as functions of seeds drawn once a device; changes and returns the module."""
    graph = graph_module.graph
    found: dict[torch.device, list[tuple[Node, Any, tuple[Any, ...]]]] = {}
    for node in graph.nodes:
        drawn = _drawn(node)
        if drawn is not None:
            found.setdefault(node.meta["val"].device, []).append((node, *drawn))
    for device, draws in found.items():
        seeds = _insert_seeds(graph, draws, device)
        for which, (node, op, bounds) in enumerate(draws):
            _replace(graph, node, op, (seeds, which, *bounds))
    if found:
        graph.lint()
        graph_module.recompile()
    return graph_module


def _insert_seeds(graph: Graph, draws: Sequence[tuple[Node, Any, Any]], device: torch.device) -> Node:
    first = next(n for n in graph.nodes if n.op not in ("placeholder", "get_attr"))
    mode = draws[0][0].meta["val"].fake_mode
    with graph.inserting_before(first):
        target = torch.ops.fusec.random_seeds.default
        seeds = graph.create_node("call_function", target, (len(draws), device), name="seeds")
    with mode:
        seeds.meta = {"val": torch.empty((len(draws),), dtype=torch.int64, device=device)}
    seeds.meta["recompute"] = CheckpointPolicy.MUST_SAVE
    if "stack_trace" in draws[0][0].meta:
        seeds.meta["stack_trace"] = draws[0][0].meta["stack_trace"]
    return seeds


def _drawn(node: Node) -> tuple[Any, tuple[Any, ...]] | None:
    """(op, bounds) of a draw that a kernel can make; None for every other node."""
    value = node.meta.get("val")
    if node.op != "call_function" or not isinstance(value, Tensor) or value.layout is not torch.strided:
        return None
    if node.target in (aten.rand.default, aten.rand_like.default):
        return (_UNIFORM, ()) if value.dtype.is_floating_point else None
    if node.target in (aten.randn.default, aten.randn_like.default):
        return (_NORMAL, ()) if value.dtype.is_floating_point else None
    if node.target in (aten.randint.default, aten.randint_like.default):
        high = node.args[0 if node.target is aten.randint.default else 1]
        return (_INTEGERS, (0, high)) if _in_range(0, high) else None
    if node.target in (aten.randint.low, aten.randint_like.low_dtype):
        low, high = node.args[:2] if node.target is aten.randint.low else node.args[1:3]
        return (_INTEGERS, (low, high)) if _in_range(low, high) else None
    return None


def _in_range(low: Any, high: Any) -> bool:
    """Enough random bits for the range; a symbolic bound is a size."""
    return not (isinstance(low, int) and isinstance(high, int)) or 0 < high - low <= 1 << RANGE_BITS


def _replace(graph: Graph, node: Node, op: Any, args: tuple[Any, ...]) -> None:
    value = node.meta["val"]
    with graph.inserting_before(node):
        size = _size(graph, node)
        arguments = (*args, size, _memory_order(value), value.dtype)
        name = op.overloadpacket.__name__.removeprefix("random_")
        made = graph.create_node("call_function", op, arguments, name=name)
    made.meta = {**node.meta, "recompute": CheckpointPolicy.PREFER_RECOMPUTE}
    node.replace_all_uses_with(made)
    graph.erase_node(node)


def _size(graph: Graph, node: Node) -> list[Any]:
    """The extents of a draw: those of its `size` argument, or of the tensor it is like."""
    listed = [a for a in node.args if isinstance(a, list | tuple)]
    if listed:
        return list(listed[0])
    like, value = node.args[0], node.meta["val"]
    extents: list[Any] = []
    for dim, extent in enumerate(value.shape):
        if isinstance(extent, int):
            extents.append(extent)
            continue
        extents.append(graph.call_function(aten.sym_size.int, (like, dim)))
        extents[-1].meta["val"] = extent
    return extents


def _memory_order(value: Tensor) -> list[int]:
    """Dimensions from the outermost in memory to the innermost."""
    strides = [s if isinstance(s, int) else s.node.hint or 0 for s in value.stride()]
    return sorted(range(value.dim()), key=lambda d: (-strides[d], d))


# -- distributions --------------------------------------------------------------------------------


def _computed_in(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def _uniform_like(x: Tensor) -> Tensor:
    """[0, 1) in the dtype that x is computed in."""
    return torch.rand_like(x, dtype=_computed_in(x))


def _normal_like(x: Tensor) -> Tensor:
    return torch.randn_like(x, dtype=_computed_in(x))


def _native_dropout(x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    """x * mask / (1 - p), mask true with probability 1 - p."""
    if train is False or p == 0:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    if p == 1:
        return torch.zeros_like(x), torch.zeros_like(x, dtype=torch.bool)
    mask = torch.rand_like(x, dtype=torch.float32) >= p
    return x * mask * (1.0 / (1.0 - p)), mask


def _bernoulli(p: Tensor) -> Tensor:
    return (_uniform_like(p) < p).to(p.dtype)


def _bernoulli_p(x: Tensor, p: float = 0.5) -> Tensor:
    return (_uniform_like(x) < p).to(x.dtype)


def _bernoulli_tensor(x: Tensor, p: Tensor) -> Tensor:
    return (torch.rand_like(x, dtype=_computed_in(p)) < p).to(x.dtype)


def _uniform_between(x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    torch._check(
        low <= high, lambda: f"uniform_ expects to return a [from, to) range, but found from={low} > to={high}"
    )
    return (torch.rand_like(x) * (high - low) + low).to(x.dtype)


def _normal_functional(x: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return (_normal_like(x) * std + mean).to(x.dtype)


def _normal_of(mean: Any, std: Any = 1.0) -> Tensor:
    """mean and std: tensors, at least one, or one number."""
    like: Tensor = mean + std
    drawn: Tensor = _normal_like(like) * std + mean
    return drawn.to(like.dtype)


def _normal_sized(mean: float, std: float, size: Sequence[int], **options: Any) -> Tensor:
    return torch.randn(size, **options) * std + mean


def _exponential(x: Tensor, rate: float = 1.0) -> Tensor:
    """-ln(u) / rate with u in (0, 1); never 0, so that the logarithm of the result is finite."""
    u = _uniform_like(x)
    tiny = torch.finfo(u.dtype).eps / 4
    return (torch.clamp_min(-torch.log(u + tiny), tiny) / rate).to(x.dtype)


def _geometric(x: Tensor, p: float) -> Tensor:
    """Trials up to the first success: floor(ln(1 - u) / ln(1 - p)) + 1."""
    if p == 1:
        return torch.ones_like(x)
    return (torch.floor(torch.log1p(-_uniform_like(x)) / math.log1p(-p)) + 1).to(x.dtype)


def _cauchy(x: Tensor, median: float = 0.0, sigma: float = 1.0) -> Tensor:
    return (median + sigma * torch.tan(math.pi * (_uniform_like(x) - 0.5))).to(x.dtype)


def _log_normal(x: Tensor, mean: float = 1.0, std: float = 2.0) -> Tensor:
    return torch.exp(_normal_like(x) * std + mean).to(x.dtype)


def _integers_from(x: Tensor, low: int, high: int | None) -> Tensor:
    if high is None:
        high = 1 << 24 if x.dtype.is_floating_point else torch.iinfo(x.dtype).max
    return torch.randint_like(x, low, high, dtype=torch.int64).to(x.dtype)


def _without_generator(function: Callable[..., Any]) -> Callable[..., Any]:
    """Numbers of a generator that the user made are left to the op itself."""

    def rewrite(*args: Any, generator: Any = None, **kwargs: Any) -> Any:
        return NotImplemented if generator is not None else function(*args, **kwargs)

    return rewrite


def random_table() -> dict[Any, Callable[..., Any]]:
    """{OpOverload: function of the same signature} over rand_like, randn_like and randint_like."""
    own: dict[Any, Callable[..., Any]] = {
        aten.native_dropout.default: _native_dropout,
        aten.bernoulli.default: _bernoulli,
        aten.bernoulli.p: _bernoulli_p,
        aten.bernoulli.Tensor: _bernoulli_tensor,
        aten.uniform.default: _uniform_between,
        aten.normal_functional.default: _normal_functional,
        aten.normal.Tensor_float: _normal_of,
        aten.normal.float_Tensor: _normal_of,
        aten.normal.Tensor_Tensor: _normal_of,
        aten.normal.float_float: _normal_sized,
        aten.exponential.default: _exponential,
        aten.geometric.default: _geometric,
        aten.cauchy.default: _cauchy,
        aten.log_normal.default: _log_normal,
        getattr(aten.random, "from"): _integers_from,
        aten.random.to: lambda x, high: _integers_from(x, 0, high),
    }
    return {op: _without_generator(function) for op, function in own.items()}
