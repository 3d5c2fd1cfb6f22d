"""The Context of a lowering: where buffers are made, nests emitted and library calls recorded.

Enters: the FX node being lowered. Leaves: buffers and nodes of the Program, in order.

    @lowering(aten.relu.default)
    def relu(ctx: Context, x: Ref) -> Ref:
        return ctx.pointwise([x], lambda nest, v: nest.op("maximum", v, 0))

What a lowering usually needs:

    ctx.meta             the fake tensor(s) the op returns: dtype, shape and strides of the result
    ctx.result()         a temporary for it, with exactly those strides
    ctx.temporary(...)   any other temporary
    with ctx.nest(...)   a nest to fill and emit (see builder.py)
    ctx.pointwise(...)   one nest over the result's shape        ctx.reduce(...)   one reduction nest
    ctx.materialize(x)   a view copied into memory of its own    ctx.view(x)       as a TensorView, copied if it must
    ctx.extern(...)      a library call
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import fx

from fusec.config import Config
from fusec.ir.index import IndexLike, as_int, product
from fusec.ir.sizes import hint_of, size_names
from fusec.ir.types import Buffer, Extern, ExternArg, LoopNest, Node, Origin, Role, TensorView
from fusec.lowering.builder import NestBuilder, Value, check_dtype, compute_dtype
from fusec.lowering.numbers import Number
from fusec.lowering.promotion import converts_float8
from fusec.lowering.ref import Ref, contiguous_strides
from fusec.lowering.registry import LibraryCall, NotLowered
from fusec.lowering.symbols import extent_of, stride_of

PointwiseFn = Callable[..., Value]  # (nest, value, value, ...) -> value


@dataclass
class Context:
    """Everything one lowering pass builds up. `node` and `origin` are those of the op being lowered."""

    config: Config
    device: str  # where nests run: the first CUDA device of the graph, else "cpu"
    node: fx.Node
    origin: Origin
    buffers: dict[str, Buffer] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    numbers: dict[str, Number] = field(default_factory=dict)  # 0-dim constants: kernels hold them as numbers
    scalars: set[str] = field(default_factory=set)  # 0-dim inputs on the CPU
    known_sizes: set[str] = field(default_factory=set)  # names of sizes that arguments or calls have given so far
    made: list[str] = field(default_factory=list)  # the buffers in the order they were made
    _names: dict[str, int] = field(default_factory=dict)  # the last number given to each hint

    @cached_property
    def float8(self) -> bool:
        """True when kernels may convert 8-bit floats."""
        return converts_float8(self.config.target, self.device)

    # -- what the op returns ----------------------------------------------------------------------

    @property
    def meta(self) -> Any:
        """The fake tensor, or tuple of them, that the current op returns."""
        return self.node.meta["val"]

    def result(self, index: int | None = None) -> Ref:
        """A temporary for the op's result (its index-th result): dtype, shape and strides of the fake tensor.

        Strides with gaps or repetition, which a buffer never has, become contiguous ones.
        """
        meta = self.meta if index is None else self.meta[index]
        if str(meta.device) != self.device:
            raise LibraryCall(f"the result lives on {meta.device}, the kernels run on {self.device}")
        shape, strides = sizes(meta.shape), strides_of(meta)
        return self.temporary(meta.dtype, shape, strides if is_dense(shape, strides) else None)

    # -- buffers ----------------------------------------------------------------------------------

    def unique(self, hint: str) -> str:
        """An unused buffer name made from a hint: letters, digits and underscores."""
        base = re.sub(r"\W+", "_", hint).strip("_") or "buffer"
        base = f"b_{base}" if base[0].isdigit() else base
        name, n = base, self._names.get(base, 0)
        while name in self.buffers:
            n += 1
            name = f"{base}_{n}"
        self._names[base] = n
        return name

    def buffer(
        self,
        hint: str,
        dtype: torch.dtype,
        shape: Sequence[IndexLike],
        strides: Sequence[IndexLike],
        device: str,
        role: Role,
    ) -> Ref:
        name = self.unique(hint)
        self.known_sizes.update(size_names(n for n in (*shape, *strides) if not isinstance(n, int)))
        self.buffers[name] = Buffer(name, dtype, tuple(shape), tuple(strides), device, role, hint)
        self.made.append(name)
        return Ref.whole(name, dtype, shape, strides, device)

    def temporary(
        self,
        dtype: torch.dtype,
        shape: Sequence[IndexLike],
        strides: Sequence[IndexLike] | None = None,
        hint: str | None = None,
    ) -> Ref:
        """New memory, contiguous unless strides say otherwise. hint: the name a reader would use."""
        check_dtype(dtype, self.float8)
        strides = contiguous_strides(shape) if strides is None else strides
        return self.buffer(hint or op_hint(self.node), dtype, shape, strides, self.device, Role.TEMPORARY)

    # -- nests ------------------------------------------------------------------------------------

    @contextmanager
    def nest(self, parallel: Sequence[IndexLike], reduced: Sequence[IndexLike] = ()) -> Iterator[NestBuilder]:
        """A nest over axes p0, p1, ... and r0, r1, ...; it is emitted when the block ends without an error."""
        builder = NestBuilder(
            f"n{len(self.nodes)}",
            parallel,
            reduced,
            self.origin,
            self.numbers,
            self.device,
            self.scalars,
            self.float8,
        )
        yield builder
        self.nodes.append(builder.finish())

    def pointwise(self, inputs: Sequence[Ref], fn: PointwiseFn, out: Ref | None = None) -> Ref:
        """One nest over the result's shape. Inputs are broadcast, loaded and cast to the compute dtype.

        fn(nest, value, ...) gives the value that is stored into `out` (default: the op's own result).
        """
        out = self.result() if out is None else out
        with self.nest(out.shape) as nest:
            values = [nest.load_f32(x.expand(out.shape), nest.p) for x in inputs]
            nest.store(out, nest.p, fn(nest, *values))
        return out

    def reduce(
        self,
        op: str,
        x: Ref,
        dims: Sequence[int],
        *,
        keepdim: bool = False,
        prepare: Callable[[NestBuilder, Value], Value] | None = None,
        finish: Callable[[NestBuilder, Value], Value] | None = None,
        dtype: torch.dtype | None = None,
        out: Ref | None = None,
    ) -> Ref:
        """One reduction nest: out[p] = finish(op over r of prepare(x[p, r])).

        dims: what is reduced; all when empty. prepare sees the value in its compute dtype. dtype, when given, is
        that of an internal temporary (float32 means, for example) instead of the op's own result.
        """
        reduced, kept, shape = reduction_dims(x.shape, dims, keepdim)
        if out is None:
            out = self.result() if dtype is None else self.temporary(dtype, shape)
        with self.nest([x.shape[d] for d in kept], [x.shape[d] for d in reduced]) as nest:
            value = nest.load_f32(x, interleave(x.ndim, kept, nest.p, reduced, nest.r))
            value = nest.reduce(op, value if prepare is None else prepare(nest, value))
            where = interleave(x.ndim, kept, nest.p, reduced, [0] * len(reduced)) if keepdim else nest.p
            nest.store(out, where, value if finish is None else finish(nest, value))
        return out

    def materialize(
        self,
        x: Ref,
        strides: Sequence[IndexLike] | None = None,
        dtype: torch.dtype | None = None,
        hint: str | None = None,
    ) -> Ref:
        """A copy of a view in memory of its own, with these strides (contiguous by default)."""
        if x.device != self.device:
            raise LibraryCall(f"a view on {x.device} has to be copied, the kernels run on {self.device}")
        dtype = x.dtype if dtype is None else dtype
        out = self.temporary(dtype, x.shape, strides, hint or f"{self.buffers[x.buffer].hint}_copy")
        with self.nest(out.shape) as nest:
            nest.store(out, nest.p, nest.cast(nest.load(x, nest.p), dtype))
        return out

    def copied(self, x: Ref, strides: Sequence[IndexLike], hint: str | None = None) -> TensorView:
        """A copy with the strides that eager's tensor has: stride 0 where it repeats, contiguous where it has gaps."""
        repeats = [s == 0 and n not in (0, 1) for n, s in zip(x.shape, strides, strict=True)]
        once = [1 if repeated else n for n, repeated in zip(x.shape, repeats, strict=True)]
        x_once = x.view(once, lambda c: c)
        copy = self.materialize(x_once, strides if is_dense(once, strides) else None, hint=hint)
        found = copy.tensor_view(strides)
        assert found is not None
        steps = tuple(0 if repeated else s for s, repeated in zip(found.strides, repeats, strict=True))
        return TensorView(copy.buffer, x.shape, steps, 0)

    def view(self, x: Ref, strides: Sequence[IndexLike] | None = None) -> TensorView:
        """The view as a TensorView; a view that is not strided is materialized first.

        strides: those the receiver was promised; they decide dimensions of extent 1 and copies.
        """
        found = x.tensor_view(strides)
        if found is None:
            return self.copied(x, contiguous_strides(x.shape) if strides is None else strides)
        return found

    def undo(self, buffers: int, nodes: int) -> None:
        """Forget what was made after there were this many buffers and nodes."""
        for name in self.made[buffers:]:
            del self.buffers[name]
        del self.made[buffers:], self.nodes[nodes:]

    # -- library calls ----------------------------------------------------------------------------

    def extern(
        self,
        target: Any,
        args: Sequence[ExternArg],
        kwargs: dict[str, ExternArg] | None = None,
        outputs: Sequence[str | None] = (),
        reason: str = "library call",
        mutates: Sequence[str] = (),
        defines: Sequence[str | None] = (),
    ) -> None:
        """Record `outputs = target(*args, **kwargs)`; tensors are TensorViews already."""
        name = f"x{len(self.nodes)}"
        items = tuple((kwargs or {}).items())
        written, defined = tuple(mutates), tuple(defines)
        self.known_sizes.update(n for n in defined if n is not None)
        self.nodes.append(
            Extern(name, target, tuple(args), items, tuple(outputs), self.origin, reason, written, defined)
        )


# -- shapes ---------------------------------------------------------------------------------------


def sizes(values: Sequence[Any]) -> tuple[Any, ...]:
    """Extents of a fake tensor: ints, and Exprs over sizes where they are symbolic."""
    return _numbers(values, extent_of)


def strides_of(tensor: Any) -> tuple[Any, ...]:
    """Strides of a fake tensor."""
    return _numbers(tensor.stride(), stride_of)


def _numbers(values: Sequence[Any], convert: Callable[[Any], IndexLike]) -> tuple[Any, ...]:
    try:
        return tuple(convert(v) for v in values)
    except Exception as error:
        raise NotLowered(f"extents that are not known at compile time: {tuple(values)}: {error}") from error


def static(extent: IndexLike) -> int:
    """An extent as an int; NotLowered when it is symbolic."""
    value = as_int(extent)
    if value is None:
        raise NotLowered(f"an extent that is not known at compile time: {extent}")
    return value


def reduction_dims(
    shape: Sequence[IndexLike], dims: Sequence[int] | int | None, keepdim: bool
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[IndexLike, ...]]:
    """(reduced dimensions, kept dimensions, result shape); no dims means all of them."""
    n = len(shape)
    wanted = (dims,) if isinstance(dims, int) else tuple(dims or ())
    reduced = tuple(sorted({d % n for d in wanted})) if wanted and n else tuple(range(n))
    kept = tuple(d for d in range(n) if d not in reduced)
    result = tuple((1 if d in reduced else shape[d]) for d in range(n)) if keepdim else tuple(shape[d] for d in kept)
    return reduced, kept, result


def interleave(
    n: int, kept: Sequence[int], p: Sequence[IndexLike], reduced: Sequence[int], r: Sequence[IndexLike]
) -> tuple[IndexLike, ...]:
    """Coordinates of an n-dimensional tensor from those of its kept and its reduced dimensions."""
    where = {**dict(zip(kept, p, strict=True)), **dict(zip(reduced, r, strict=True))}
    return tuple(where[d] for d in range(n))


def is_dense(shape: Sequence[IndexLike], strides: Sequence[IndexLike]) -> bool:
    """True when the strides address every element of exactly as much memory as the shape needs."""
    step: IndexLike = 1
    by_stride = sorted(
        ((s, n) for s, n in zip(strides, shape, strict=True) if n != 1),
        key=lambda dim: (hint_of(dim[0]), hint_of(dim[1])),
    )
    for stride, extent in by_stride:
        if extent == 0:
            return True
        if stride != step:
            return False
        step = product((step, extent))
    return True


def op_hint(node: fx.Node) -> str:
    """A readable name for what a node computes: "add", "gelu"."""
    return re.sub(r"_\d+$", "", node.name).strip("_") or node.name


__all__ = [
    "Context",
    "LoopNest",
    "compute_dtype",
    "interleave",
    "is_dense",
    "op_hint",
    "reduction_dims",
    "sizes",
    "static",
    "strides_of",
]
