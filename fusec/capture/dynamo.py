"""The torch.compile backend: Dynamo's graph through AOTAutograd into `compile_graph`.

Enters: Dynamo's GraphModule and example inputs. Leaves: a callable for Dynamo to run in its place.

    backend(gm, inputs, compile_graph=lambda g: g.graph_module.forward)

AOTAutograd makes the graph functional, applies `capture.decompositions` and, when a gradient is
needed, splits it into a forward and a backward graph by min-cut rematerialization. `compile_graph` is
called once per graph, with a `CapturedGraph`, and returns a callable over its inputs.
A graph with symbolic sizes is compiled once for all of them; where that cannot be done (`NotSymbolicGraph`), it is
compiled when it is called, once per tuple of sizes.
"""

from __future__ import annotations

import copy
import operator
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.eval_frame import OptimizedModule
from torch._dynamo.exc import (
    BackendCompilerFailed,
    InternalTorchDynamoError,
    TensorifyScalarRestartAnalysis,
    TorchRuntimeError,
)
from torch._dynamo.utils import counters
from torch._functorch import config as functorch_config
from torch._functorch._aot_autograd.schemas import OutputType
from torch._guards import CompileContext, TracingContext
from torch.fx import Graph, GraphModule, Node

from fusec.capture.aliases import GuardedAliases, overlaps, share_memory
from fusec.capture.decompositions import decomposition_table
from fusec.capture.graph import CapturedGraph, NotSymbolicGraph, is_symbolic, readable_name, trim_stack
from fusec.capture.inplace import keep_old_values, write_in_place
from fusec.capture.joint import partition
from fusec.capture.random import draw_in_kernels
from fusec.capture.second_order import Differentiable, draws
from fusec.capture.specialize import signature, specialize
from fusec.capture.subgraphs import compile_subgraphs, inline_subgraphs
from fusec.capture.whole import upsampling_whole

# torch._dynamo, torch._guards: checked with torch 2.11.0 and 2.13.0.

__all__ = [
    "CAPTURE_ERRORS",
    "RESTARTS",
    "BackendCompilerFailed",
    "CapturedGraph",
    "CompileGraph",
    "OptimizedModule",
    "backend",
    "breaks_since",
    "breaks_so_far",
    "compilation_number",
    "failed_at_the_start",
    "graph_break_reason",
    "placeholder_names",
]

Compiled = Callable[..., Any]
CompileGraph = Callable[[CapturedGraph], Compiled]
Breaks = tuple[dict[str, int], dict[str, int]]
Traced = tuple[Counter[str], int]

# Raised through a backend to make Dynamo trace again: never a failure.
RESTARTS: tuple[type[BaseException], ...] = (TensorifyScalarRestartAnalysis,)

# Raised to the caller when a function cannot be traced; the first is also how a user's shape error looks.
CAPTURE_ERRORS: tuple[type[Exception], ...] = (TorchRuntimeError, InternalTorchDynamoError)

_PRIMAL = re.compile(r"^primals_(\d+)$")
_ARGUMENT = re.compile(r"^arg(\d+)_1$")
_TANGENT = re.compile(r"^tangents_(\d+)$")


def backend(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    *,
    compile_graph: CompileGraph,
    name: str = "graph",
    random: str = "philox",
    version_limit: int | None = None,
    on_eager: Callable[[CapturedGraph, str], None] | None = None,
) -> Compiled:
    """Compile Dynamo's graph; `compile_graph` sees one inference graph, or a forward and later a backward.

    random:        "philox" or "eager", as in Config: who draws random numbers.
    name:          of the graph; a backward graph is called `<name>_backward`.
    version_limit: tuples of sizes compiled for one symbolic graph; beyond it new sizes run the aten graph
                   eagerly, and `on_eager(graph, reason)` is told once. None: no limit.
    """
    sources, attributes = dynamo_names(gm), attribute_names(gm)
    writing: list[CapturedGraph] = []
    forward: list[CapturedGraph] = []

    def prepare(graph_module: GraphModule) -> None:
        inline_subgraphs(graph_module)
        _normalize(graph_module)
        if random == "philox":
            draw_in_kernels(graph_module)

    def compiler(kind: str) -> Callable[[GraphModule, Sequence[Any]], Compiled]:
        def compile_aten(graph_module: GraphModule, inputs: Sequence[Any]) -> Compiled:
            prepare(graph_module)
            graph = CapturedGraph(
                graph_module,
                tuple(inputs),
                placeholder_names(graph_module, sources, attributes),
                kind,
                f"{name}_backward" if kind == "backward" else name,
            )
            written = () if kind == "backward" else _written_inputs()
            if written:
                writing.append(graph)
                _refuse_views_of_one_base(example_inputs)
            if kind == "forward":
                forward.append(graph)
            if written and kind == "forward":
                keep_old_values(graph_module, _metadata().num_forward, written)
            if not is_symbolic(inputs):
                compile_subgraphs(graph, compile_graph, prepare)
                write_in_place(graph_module)
                return _boxed(compile_graph(graph))
            return _boxed(_symbolic(graph, compile_graph, version_limit, on_eager))

        return compile_aten

    compile_function = aot_autograd(
        fw_compiler=compiler("forward"),
        bw_compiler=compiler("backward"),
        inference_compiler=compiler("inference"),
        decompositions=decomposition_table(random),
        partition_fn=partial(partition, draw=random == "philox"),
        keep_inference_input_mutations=True,  # copy_ in the graph, for `write_in_place`
    )
    # A gradient is expected to have its output's strides, as torch 2.13 expects: 2.11 makes it contiguous by a copy.
    strides = functorch_config.patch(guess_tangent_strides_as_outputs=True)
    with upsampling_whole(example_inputs), strides:
        compiled: Compiled = compile_function(gm, list(example_inputs))

    def tell(graph: CapturedGraph, reason: str) -> Callable[[], None]:
        return (lambda: on_eager(graph, reason)) if on_eager is not None else lambda: None

    if writing:
        reason = "writes inputs that now overlap in another way; such calls run as eager PyTorch would"
        compiled = GuardedAliases(compiled, gm.forward, tell(writing[0], reason))
    if forward:
        refused = (
            "it writes its inputs" if writing else "it draws random numbers" if draws(forward[0].graph_module) else None
        )
        reason = "its gradients are differentiated (create_graph=True): second derivatives run as eager PyTorch would"
        compiled = Differentiable(compiled, gm, example_inputs, refused, tell(forward[0], reason))
    return compiled


def _metadata() -> Any:
    """What AOTAutograd knows of the function it is compiling: ViewAndMutationMeta, or None."""
    context = TracingContext.try_get()
    return context.fw_metadata if context is not None else None


def _written_inputs() -> tuple[int, ...]:
    """Positions of the arguments whose data the function changes."""
    known = _metadata()
    return tuple(i for i, info in enumerate(known.input_info) if info.mutates_data) if known is not None else ()


def _refuse_views_of_one_base(inputs: Sequence[Any]) -> None:
    """AOTAutograd makes one base of written inputs that overlap, and then returns wrong views of them."""
    views = any(o.output_type is OutputType.alias_of_input for o in _metadata().output_info)
    if views and (share_memory(inputs) if is_symbolic(inputs) else overlaps(inputs)):
        raise NotImplementedError("inputs that share memory are written, and views of them returned")


def _normalize(graph_module: GraphModule) -> None:
    """lift_fresh_copy(constant) -> clone(constant): it is traced below the decomposition table.

    with_effects(token, op, *args) -> op(*args): the program keeps the order of calls without tokens.
    Stack traces end at the user's line, not at the line of torch that it called.
    """
    for node in list(graph_module.graph.nodes):
        if node.target is torch.ops.aten.lift_fresh_copy.default:
            node.target = torch.ops.aten.clone.default
        if node.target is torch.ops.higher_order.with_effects:
            _call_for_its_effect(graph_module.graph, node)
        if node.meta.get("stack_trace"):
            node.meta["stack_trace"] = trim_stack(node.meta["stack_trace"])
    graph_module.recompile()


def _call_for_its_effect(graph: Graph, node: Node) -> None:
    arguments: Any = node.args
    token, target, *args = arguments
    with graph.inserting_before(node):
        call = graph.call_function(target, tuple(args), node.kwargs)
    values = node.meta.get("val")
    results = values[1:] if isinstance(values, tuple | list) else ()
    call.meta = {**node.meta, "val": results[0] if len(results) == 1 else tuple(results) or None}
    for user in list(node.users):
        assert user.target is operator.getitem, user.format_node()
        position: Any = user.args[1]
        if position and len(results) > 1:
            user.args = (call, position - 1)
        else:
            user.replace_all_uses_with(call if position else token)
            graph.erase_node(user)
    graph.erase_node(node)
    if token.op == "placeholder":
        token.meta["val"] = None  # AOTAutograd passes nothing for it


def _symbolic(
    graph: CapturedGraph,
    compile_graph: CompileGraph,
    limit: int | None,
    on_eager: Callable[[CapturedGraph, str], None] | None,
) -> Compiled:
    """One compiled graph for all sizes; where `compile_graph` says that there is none, one for each tuple of sizes."""
    module = graph.graph_module
    in_place = GraphModule(module, copy.deepcopy(module.graph))
    write_in_place(in_place)
    try:
        return compile_graph(replace(graph, graph_module=in_place))
    except NotSymbolicGraph:
        return _Versions(graph, compile_graph, limit, on_eager)


class _Versions:
    """A symbolic graph as a table: tuple of sizes -> compiled static graph."""

    def __init__(
        self,
        graph: CapturedGraph,
        compile_graph: CompileGraph,
        limit: int | None,
        on_eager: Callable[[CapturedGraph, str], None] | None,
    ) -> None:
        self.graph, self.compile_graph, self.limit, self.on_eager = graph, compile_graph, limit, on_eager
        self.versions: dict[Any, Compiled] = {}
        self.told = False
        self.lock = threading.RLock()

    def __call__(self, *inputs: Any) -> Any:
        key = signature(inputs)
        compiled = self.versions.get(key)
        if compiled is None:
            compiled = self._compile(key, inputs)
        return compiled(*inputs)

    def _compile(self, key: Any, inputs: Sequence[Any]) -> Compiled:
        with self.lock:
            if key in self.versions:
                return self.versions[key]
            if self.limit is not None and len(self.versions) >= self.limit:
                return self._run_eagerly(f"was compiled for {self.limit} tuples of sizes; new sizes run")
            try:
                static = specialize(self.graph, inputs)
            except Exception as error:
                return self._run_eagerly(f"depends on values ({type(error).__name__}: {error}); it runs")
            write_in_place(static.graph_module)
            self.versions[key] = self.compile_graph(static)
            return self.versions[key]

    def _run_eagerly(self, reason: str) -> Compiled:
        if not self.told and self.on_eager is not None:
            self.on_eager(self.graph, f"{reason} as eager PyTorch would")
        self.told = True
        return self.graph.graph_module.forward


def _boxed(compiled: Compiled) -> Compiled:
    """AOTAutograd's calling convention: one list, emptied, so that inputs can be freed."""
    consume = getattr(compiled, "consume", None)

    def emptied(arguments: list[Any]) -> Any:
        inputs = tuple(arguments)
        arguments.clear()
        return compiled(*inputs)

    call = partial(emptied if consume is None else consume)  # takes attributes, and costs no frame of Python
    call._boxed_call = True  # type: ignore[attr-defined]
    return call


# -- names ----------------------------------------------------------------------------------------


def dynamo_names(gm: GraphModule) -> tuple[str, ...]:
    """The user's name of each placeholder of Dynamo's graph."""
    return tuple(_dynamo_name(node) for node in gm.graph.nodes if node.op == "placeholder")


def _dynamo_name(node: Node) -> str:
    argument = node.meta.get("grapharg")
    source = getattr(argument, "source", None) if argument is not None else getattr(node, "_dynamo_source", None)
    return _source_name(source) or str(node.target)


def _source_name(source: Any) -> str:
    name = getattr(source, "name", None)
    text = name() if callable(name) else name  # a method before torch 2.12, a property since
    return readable_name(text) if isinstance(text, str) and text else ""


def attribute_names(gm: GraphModule) -> dict[str, str]:
    """The user's names of tensors that Dynamo made attributes of its graph: an optimizer's parameters and state."""
    sources = getattr(gm, "_param_name_to_source", None) or {}
    return {target: name for target, source in sources.items() if (name := _source_name(source))}


def placeholder_names(
    graph_module: GraphModule, sources: Sequence[str], attributes: Mapping[str, str]
) -> tuple[str, ...]:
    """The user's name of each placeholder of an aten graph, given the names of Dynamo's placeholders and attributes."""
    placeholders = (node for node in graph_module.graph.nodes if node.op == "placeholder")
    return tuple(_aten_name(node, sources, attributes) for node in placeholders)


def _aten_name(node: Node, sources: Sequence[str], attributes: Mapping[str, str]) -> str:
    described = node.meta.get("desc")
    target = getattr(described, "target", None)
    if isinstance(target, str):  # a parameter that AOTAutograd lifted
        return attributes.get(target, target)
    index = getattr(described, "idx", None)
    name = str(node.target)
    if not isinstance(index, int):
        match, base = (_PRIMAL.match(name), 1) if _PRIMAL.match(name) else (_ARGUMENT.match(name), 0)
        index = int(match.group(1)) - base if match else None
    if index is not None and 0 <= index < len(sources):
        return sources[index]
    tangent = _TANGENT.match(name)
    return f"grad_{tangent.group(1)}" if tangent else name


def graph_break_reason(gm: GraphModule) -> str | None:
    """Why Dynamo ended this graph early, with the user's line; None when it reached the function's end."""
    reason = getattr(gm, "compile_subgraph_reason", None)
    if reason is None or not reason.graph_break:
        return None
    frames = list(reason.user_stack)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return _first_line(str(reason.reason)) + where


# -- what Dynamo knows about this compilation and its failures --------------------------------------


def compilation_number() -> int:
    """How often the frame that Dynamo is compiling was compiled before: 0 at first, then a recompilation."""
    identity = CompileContext.current_compile_id()
    number = getattr(identity, "frame_compile_id", None)
    return number if isinstance(number, int) else 0


def breaks_so_far() -> Breaks:
    """Dynamo's own counts: graph breaks, and functions it gave up whole, by reason."""
    return dict(counters["graph_break"]), dict(counters["unimplemented"])


def breaks_since(before: Breaks, known: Sequence[str]) -> tuple[str, ...]:
    """Reasons counted since `before` that are not among `known`: a break with no op in front reaches no backend."""
    found = Counter[str]()
    for reason, count in counters["graph_break"].items():
        found[_first_line(reason)] += count - before[0].get(reason, 0)
    given_up = {_first_line(r) for r, n in counters["unimplemented"].items() if n > before[1].get(r, 0)}
    for reason in known:
        first = next((f for f in found if found[f] > 0 and reason.startswith(f)), None)
        if first is not None:
            found[first] -= 1
    return (*(+found).elements(), *(f"{reason}: the function runs eagerly" for reason in given_up))


def _first_line(reason: str) -> str:
    return reason.strip().splitlines()[0]


def failed_at_the_start(error: BaseException, function: Callable[..., Any]) -> bool:
    """True when tracing failed in the frame of `function` itself, so that nothing of the call has run yet.

    After a graph break the frame is `torch_dynamo_resume_in_...`: calling the function again would repeat it.
    """
    stack = list(getattr(error, "real_stack", ()))
    if not stack:
        return False
    link: Any = function
    while link is not None:  # a decorated function is traced from its outermost wrapper
        code = getattr(link, "__code__", None)
        if code is not None and stack[0].filename == code.co_filename and stack[0].name == code.co_name:
            return True
        link = getattr(link, "__wrapped__", None)
    return bool(stack[0].filename.endswith("external_utils.py"))  # Dynamo's own frame around a library function
