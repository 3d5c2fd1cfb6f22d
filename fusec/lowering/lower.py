"""The pass `lower`: an FX graph of aten ops in, a `Program` of loop nests and library calls out.

    def f(x, w): return torch.relu(x + w)

    before   %add = aten.add.Tensor(%x, %w);  %relu = aten.relu.default(%add)
    after    nest n0 (p0<17): %0 = load x[p0]; %1 = load w[p0]; %2 = add %0, %1; store add[p0], %2
             nest n1 (p0<17): %0 = load add[p0]; %1 = const 0; %2 = maximum %0, %1; store relu[p0], %2

One walk in graph order. A view op leaves no nest; an op that has no lowering, or whose lowering declines or
fails, becomes a library call whose reason says so. Nothing an op does can stop the walk unless `config.strict` asks
for it.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import fx
from torch.utils._python_dispatch import _disable_current_modes

from fusec.config import Config
from fusec.errors import LoweringError
from fusec.ir.index import Expr, IndexLike, SymbolicSize
from fusec.ir.renaming import renamed_sizes
from fusec.ir.sizes import size_names
from fusec.ir.types import Extern, Origin, Output, Program, Role, TensorView
from fusec.lowering.bound import is_bound, lower_bound
from fusec.lowering.builder import FLOAT8, KERNEL_DTYPES
from fusec.lowering.context import Context, sizes, strides_of
from fusec.lowering.extern import LIBRARY_CALL, is_fallback, lower_extern
from fusec.lowering.origin import describe, origin_of
from fusec.lowering.ref import Ref
from fusec.lowering.registry import LibraryCall, NotLowered, find_lowering
from fusec.lowering.symbols import NotSymbolic, number_of, symbolic

# torch.utils._python_dispatch: checked with torch 2.11.0 and 2.13.0.

log = logging.getLogger("fusec.lowering")


_SIZES_OF = frozenset(
    {
        torch.ops.aten.sym_size.int, torch.ops.aten.sym_stride.int, torch.ops.aten.sym_numel.default,
        torch.ops.aten.sym_storage_offset.default,
    }
)  # fmt: skip


class Graph(Protocol):
    """What lowering needs of a captured graph; `fusec.capture.CapturedGraph` is one."""

    @property
    def graph_module(self) -> fx.GraphModule: ...
    @property
    def names(self) -> Sequence[str]: ...


def lower(
    graph: Graph, config: Config | None = None, name: str = "program", calls: Mapping[str, str] | None = None
) -> Program:
    """Lower a captured graph. LoweringError, naming the op and the user's line, when that is impossible.

    calls: graph nodes that are to be library calls, by name, and why.
    """
    walk = _Walk(graph, config or Config(), calls or {})
    env = _shape_env(graph.graph_module.graph.nodes)
    guards = 0 if env is None else len(env.guards)
    for node in graph.graph_module.graph.nodes:
        walk.visit(node)
    if env is not None and len(env.guards) != guards:
        raise LoweringError("lowering fixed a symbolic size")
    return renamed_sizes(walk.program(name))


def _shape_env(nodes: Iterable[fx.Node]) -> Any:
    """The ShapeEnv of the graph's symbolic arguments; None without one."""
    for node in nodes:
        value = node.meta.get("val")
        numbers = (*value.shape, *value.stride()) if isinstance(value, torch.Tensor) else (value,)
        for number in numbers:
            env = getattr(number.node, "shape_env", None) if symbolic(number) else None
            if env is not None:
                return env
    return None


class _Walk:
    """The state of one walk: the Context and what each FX node stands for."""

    def __init__(self, graph: Graph, config: Config, calls: Mapping[str, str]) -> None:
        self.graph, self.calls = graph, calls
        nodes = list(graph.graph_module.graph.nodes)
        self.context = Context(config, _device(nodes), nodes[0], Origin("", ""))
        self.env: dict[fx.Node, Any] = {}
        self.over: dict[str, list[fx.Node]] = {}  # nodes that are, or were once, an index into a buffer
        self.inputs: list[str | None] = []
        self.numbers: list[tuple[int, IndexLike]] = []  # arguments that are symbolic numbers
        self.outputs: tuple[Output, ...] = ()
        self.position = {node: i for i, node in enumerate(nodes)}
        self.maker: dict[str, fx.Node] = {}  # which node made a buffer

    def visit(self, node: fx.Node) -> None:
        ctx = self.context
        ctx.node, ctx.origin = node, origin_of(node)
        before = len(ctx.made)
        if node.op == "placeholder":
            self._bind(node, self._placeholder(node))
        elif node.op == "get_attr":
            self._bind(node, self._constant(node))
        elif node.op == "output":
            try:
                self.outputs = self._outputs(node)
            except NotLowered as error:
                raise self._error(f"the output cannot be copied: {error}") from error
        elif node.target is operator.getitem:
            container, index = self._lowered(node.args)
            self._bind(node, container[index])
        else:
            self._bind(node, self._call(node))
        for name in ctx.made[before:]:
            self.maker[name] = node

    def _bind(self, node: fx.Node, value: Any) -> None:
        self.env[node] = value
        if isinstance(value, Ref):
            self.over.setdefault(value.buffer, []).append(node)

    # -- leaves -----------------------------------------------------------------------------------

    def _placeholder(self, node: fx.Node) -> Any:
        meta = node.meta.get("val")
        names = self.graph.names
        hint = names[len(self.inputs)] if len(self.inputs) < len(names) else node.name
        if not isinstance(meta, torch.Tensor):
            if symbolic(meta):
                meta = self._number(meta)
                self.context.known_sizes.update(size_names([meta] if isinstance(meta, Expr) else []))
                self.numbers.append((len(self.inputs), meta))
            self.inputs.append(None)
            return meta
        if meta.layout is not torch.strided:
            raise LoweringError(f"input {hint!r} is a {meta.layout} tensor; inputs are strided tensors")
        ref = self.context.buffer(hint, meta.dtype, sizes(meta.shape), strides_of(meta), str(meta.device), Role.INPUT)
        self.inputs.append(ref.buffer)
        if ref.ndim == 0 and ref.device == "cpu":
            self.context.scalars.add(ref.buffer)
        return ref

    def _constant(self, node: fx.Node) -> Any:
        value: Any = self.graph.graph_module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        if not isinstance(value, torch.Tensor):
            return value
        hint = str(node.target).rsplit(".", 1)[-1].strip("_")
        ref = self.context.buffer(
            hint, value.dtype, sizes(value.shape), strides_of(value), str(value.device), Role.CONSTANT
        )
        self.context.constants[ref.buffer] = value
        if value.dim() == 0 and value.dtype in KERNEL_DTYPES:
            with _disable_current_modes():  # a fake-tensor mode of the capture may still be on
                self.context.numbers[ref.buffer] = value.item()
        return ref

    # -- calls ------------------------------------------------------------------------------------

    def _lowered(self, arguments: Any) -> Any:
        return fx.node.map_aggregate(arguments, self._leaf)

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self.env[value]
        return self._number(value) if symbolic(value) else value

    def _call(self, node: fx.Node) -> Any:
        ctx = self.context
        known = node.meta.get("val")
        if isinstance(known, int | float) and not symbolic(known):
            return known  # a size or arithmetic on sizes
        if symbolic(known) and (node.target in _SIZES_OF or not isinstance(node.target, torch._ops.OpOverload)):
            return self._number(known)
        if torch.Tag.inplace_view in getattr(node.target, "tags", ()):
            raise self._error("the shape of a tensor changes in place")
        self._protect_from_writes(node)
        args, kwargs = self._lowered(node.args), self._lowered(node.kwargs)
        if is_bound(node.target):
            return self._bound(args, kwargs)
        function = find_lowering(node.target)
        if node.name in self.calls:
            return self._extern(args, kwargs, self.calls[node.name])
        if function is None:
            log.info("library call: %s (%s)", node.target, describe(ctx.origin))
            return self._extern(args, kwargs, None)
        before = (len(ctx.made), len(ctx.nodes))
        try:
            value = function(ctx, *args, **kwargs)
            self._check_memory(node, value)
            return value
        except LoweringError as error:
            raise self._error(str(error), _describe_args(args, kwargs)) from error
        except (NotLowered, NotSymbolic, SymbolicSize) as refusal:
            reason = f"{LIBRARY_CALL}: {refusal}" if isinstance(refusal, LibraryCall) else str(refusal)
            log.info("library call: %s: %s (%s)", node.target, reason, describe(ctx.origin))
        except Exception as error:
            arguments = _describe_args(args, kwargs)
            reason = f"lowering failed for ({arguments}): {type(error).__name__}: {error}"
            log.info("library call: %s", node.target, exc_info=True)
            if ctx.config.strict:
                raise self._error(f"lowering failed: {type(error).__name__}: {error}", arguments) from error
        ctx.undo(*before)
        return self._extern(args, kwargs, reason)

    def _check_memory(self, node: fx.Node, value: Any) -> None:
        """LibraryCall for new memory of a dtype that no kernel writes: complex numbers are flipped by PyTorch."""
        if not isinstance(value, Ref) or value.dtype in KERNEL_DTYPES or value.dtype in FLOAT8:
            return
        if not _is_view(node.target) or value.tensor_view() is None:
            raise LibraryCall(f"kernels do not compute {str(value.dtype).removeprefix('torch.')}")

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return lower_bound(self.context, args, kwargs)
        except (NotLowered, NotSymbolic, SymbolicSize) as error:
            raise self._error(str(error)) from error

    def _extern(self, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str | None) -> Any:
        ctx = self.context
        try:
            value = lower_extern(ctx, args, kwargs, reason)
        except (NotLowered, NotSymbolic, SymbolicSize, LoweringError) as error:
            raise self._error(str(error), _describe_args(args, kwargs)) from error
        call = ctx.nodes[-1]
        if ctx.config.strict and isinstance(call, Extern) and is_fallback(call):
            raise self._error(f"it would run as a library call: {call.reason}", _describe_args(args, kwargs))
        return value

    def _number(self, value: Any) -> Any:
        try:
            number = number_of(value)
        except NotSymbolic as error:
            raise self._error(str(error)) from error
        return number

    def _error(self, reason: str, arguments: str = "...") -> LoweringError:
        origin = self.context.origin
        return LoweringError(f"{origin.op}({arguments}) at {describe(origin)}: {reason}")

    def _protect_from_writes(self, node: fx.Node) -> None:
        """Before an op writes its first argument, give memory to what is only an index into it and is read later.

        y = roll(x); x.copy_(z); return y   # y is an index expression over x: it must keep the old x
        """
        if not _writes(node.target):
            return
        written = {a.buffer for a in self._lowered(node.args[:1]) if isinstance(a, Ref)}
        now = self.position[node]
        for buffer in written:
            for other in sorted(set(self.over[buffer]), key=self.position.__getitem__):
                is_index = self.env[other].buffer == buffer  # a node may have got memory since
                if is_index and any(self.position[user] > now for user in other.users):
                    self._give_memory(other)
        self.context.node, self.context.origin = node, origin_of(node)

    # -- outputs ----------------------------------------------------------------------------------

    def _outputs(self, node: fx.Node) -> tuple[Output, ...]:
        returned = node.args[0] if isinstance(node.args[0], tuple | list) else (node.args[0],)
        return tuple(self._output(n) for n in returned)

    def _output(self, node: Any) -> Output:
        if not isinstance(node, fx.Node):
            return node  # type: ignore[no-any-return]
        value = self.env[node]
        if not isinstance(value, Ref):
            if value is None or isinstance(value, int | Expr):
                return value
            raise LoweringError(f"output {node.name!r} is a {type(value).__name__}; outputs are tensors, ints or None")
        self._give_memory(node)
        returned: Ref = self.env[node]
        self.context.node, self.context.origin = node, origin_of(node)
        strides = strides_of(node.meta["val"])
        view = returned.tensor_view(strides)
        if view is not None and _same_strides(view, strides):
            return view
        return self.context.copied(returned, strides, hint=node.name)

    def _give_memory(self, node: fx.Node) -> None:
        """What eager makes in new memory, and is only an index into another buffer here, becomes a buffer.

        return x.repeat(1, 2)[:, ::3]   # the repeat is copied; the slice is a view of the copy
        """
        views: list[fx.Node] = []
        source = node
        while source.op == "call_function" and (source.target is operator.getitem or _is_view(source.target)):
            views.append(source)
            source = source.args[0]  # type: ignore[assignment]
        value = self.env[source]
        if source.op != "call_function" or not isinstance(value, Ref) or _writes(source.target):
            return
        if self.maker[value.buffer] is source:
            made = self.env[node]
            if isinstance(made, Ref) and made.buffer != value.buffer and self.maker[made.buffer] not in views:
                for view in reversed(views):  # lowered before its source got memory
                    self.visit(view)
            return
        ctx = self.context
        ctx.node, ctx.origin = source, origin_of(source)
        copy = ctx.copied(value, strides_of(source.meta["val"]), hint=source.name)
        self.maker[copy.buffer] = source
        self._bind(source, Ref.of_view(copy, value.dtype, value.device))
        for view in reversed(views):
            self.visit(view)

    def program(self, name: str) -> Program:
        ctx = self.context
        whole = {o.buffer for o in self.outputs if isinstance(o, TensorView)}
        buffers = tuple(
            replace(b, role=Role.OUTPUT) if b.name in whole and b.role is Role.TEMPORARY else b
            for b in ctx.buffers.values()
        )
        used = {n for node in ctx.nodes for n in (*node.reads, *node.writes)} | whole | set(self.inputs)
        kept = tuple(b for b in buffers if b.name in used)
        constants = tuple((n, t) for n, t in ctx.constants.items() if n in used)
        nodes, inputs, numbers = tuple(ctx.nodes), tuple(self.inputs), tuple(self.numbers)
        return Program(name, kept, nodes, inputs, self.outputs, constants, numbers)


def _is_view(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target.is_view


def _writes(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _same_strides(view: TensorView, strides: Sequence[IndexLike]) -> bool:
    if any(n == 0 for n in view.shape):
        return True
    return all(n == 1 or a == b for n, a, b in zip(view.shape, view.strides, strides, strict=True))


def _device(nodes: Sequence[fx.Node]) -> str:
    """Where nests run: the first CUDA device that a value of the graph lives on, else the CPU."""
    found: dict[str, None] = {}
    for node in nodes:
        meta = node.meta.get("val")
        for value in meta if isinstance(meta, tuple | list) else (meta,):
            if isinstance(value, torch.Tensor):
                found.setdefault(str(value.device))
    return next((d for d in found if not d.startswith("cpu")), "cpu")


def _describe_args(args: Sequence[Any], kwargs: dict[str, Any]) -> str:
    def show(value: Any) -> str:
        if isinstance(value, Ref):
            dims = ", ".join(str(n) for n in value.shape)
            return f"{value.buffer}: {str(value.dtype).removeprefix('torch.')}[{dims}]"
        if isinstance(value, tuple | list):
            return "[" + ", ".join(show(v) for v in value) + "]"
        return repr(value)

    return ", ".join([*(show(a) for a in args), *(f"{k}={show(v)}" for k, v in kwargs.items())])


__all__ = ["Extern", "Graph", "lower"]
