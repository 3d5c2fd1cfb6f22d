"""Gradients of gradients: what AOTAutograd compiled cannot be differentiated twice; the second time eager mode does it.

Enters: a compiled function, and Dynamo's graph of it. Leaves: the same callable, whose gradients can be differentiated.

    g, = torch.autograd.grad(compiled(x), x, create_graph=True)     compiled
    torch.autograd.grad(g.square().sum(), x)                        eager; without this file None, zeros or an error

AOTAutograd's gradients do not lead back to the inputs. In a backward with create_graph=True they are given a node that
does: when they are differentiated, it runs the graph again with autograd and differentiates that twice. Every other
backward costs a hook that does nothing. Inputs that are no parameters are held weakly: held, they would raise the peak
of steps that never ask for this.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge
from torch.fx import GraphModule
from torch.nn import Parameter

from fusec.errors import FusecError

# Tensor._fix_weakref, the name of AOTAutograd's node: checked with torch 2.11.0 and 2.13.0.

__all__ = ["Differentiable", "draws"]

COMPILED_NODE = "CompiledFunctionBackward"
DEPTH = 8  # views between an output and the node
_version = attrgetter("_version")


class Differentiable:
    """A compiled function with gradients that can be differentiated.

    refused:  why its graph cannot be run again; None when it can.
    on_eager: told when gradients are differentiated; may raise.
    """

    def __init__(
        self,
        compiled: Callable[..., Any],
        graph: GraphModule,
        inputs: Sequence[Any],
        refused: str | None,
        on_eager: Callable[[], None],
    ) -> None:
        self.compiled, self.graph, self.refused, self.on_eager = compiled, graph, refused, on_eager
        self.fixed = tuple(i for i, x in enumerate(inputs) if isinstance(x, Parameter))
        self.other = tuple(i for i, x in enumerate(inputs) if isinstance(x, Tensor) and not isinstance(x, Parameter))
        self.sizes = tuple(i for i, x in enumerate(inputs) if not isinstance(x, Tensor))
        self.pick_fixed, self.pick_other, self.pick_sizes = map(_picking, (self.fixed, self.other, self.sizes))
        self.modes = _autocast_modes()

    def __call__(self, *args: Any) -> Any:
        outputs = self.compiled(*args)
        if torch.is_grad_enabled():
            node, ends = _ends(outputs)
            if node is not None:
                node.register_prehook(_Watch(self, node, args, ends))
        return outputs

    def run_again(self, args: Sequence[Any]) -> Any:
        """The graph's outputs, with autograd, as they were computed."""
        with ExitStack() as stack:
            for mode in self.modes:
                stack.enter_context(torch.autocast(**mode))
            return self.graph.forward(*args)


@dataclass(frozen=True, slots=True)
class _End:
    """One output of the function and the output of AOTAutograd's node that it is, or is a view of (by_base)."""

    output: int
    number: int
    by_base: bool


_end = lru_cache(maxsize=1024)(_End)  # the same ones at every call


class _Watch:
    """A hook of one call's node, before backward: it does nothing unless the gradients may be differentiated.

    Made in every call: parameters and sizes are held, other tensors weakly, and the versions of all tensors kept.
    """

    def __init__(self, owner: Differentiable, node: Node, args: Sequence[Any], ends: Sequence[_End]) -> None:
        self.owner, self.ends = owner, ends
        self.node = weakref.ref(node)  # which holds this hook
        self.fixed, other, self.sizes = owner.pick_fixed(args), owner.pick_other(args), owner.pick_sizes(args)
        self.versions = _versions(self.fixed)
        self.other, self.other_versions = tuple(map(weakref.ref, other)), _versions(other)

    def __call__(self, incoming: Sequence[Tensor | None]) -> None:
        if not torch.is_grad_enabled():
            return
        node, args = self.node(), self.arguments()
        assert node is not None, "its hook runs"

        def connect(gradients: Sequence[Tensor | None], _: Any) -> tuple[Tensor | None, ...]:
            handle.remove()
            wanted = _sources(node, args)
            twice = _Twice(self.owner, args, self.ends, incoming, wanted)
            found = [g for g, w in zip(gradients, wanted) if g is not None and w is not None]
            connected = iter(_Connected.apply(twice, found, *twice.tensors))  # type: ignore[no-untyped-call]
            return tuple(g if g is None or w is None else next(connected) for g, w in zip(gradients, wanted))

        handle = node.register_hook(connect)

    def arguments(self) -> list[Any]:
        """Those of the call; an error where one is gone or was changed."""
        if self.versions != _versions(self.fixed):
            raise _error("a parameter was changed in place since the call")
        found = [ref() for ref in self.other]
        other = [tensor for tensor in found if tensor is not None]
        if len(other) != len(found):
            raise _error("an input of the compiled graph no longer exists: keep a reference to it")
        for tensor in other:
            tensor._fix_weakref()  # what a weak reference gives must be held anew
        if self.other_versions != _versions(other):
            raise _error("an input was changed in place since the call")
        owner = self.owner
        positions = (*owner.fixed, *owner.other, *owner.sizes)
        args = dict(zip(positions, (*self.fixed, *other, *self.sizes), strict=True))
        return [args[i] for i in range(len(args))]


def _versions(tensors: Sequence[Tensor]) -> tuple[int | None, ...]:
    """How often each was written; None for an inference tensor, which does not count."""
    try:
        return tuple(map(_version, tensors))
    except RuntimeError:
        return tuple(None if t.is_inference() else t._version for t in tensors)


class _Twice:
    """The second differentiation of one call.

    args:     of the call.                 incoming: gradients of the node's outputs.
    wanted:   for each input of the node, the position of its argument, or None.
    tensors:  what the gradients depend on: the arguments that need a gradient, then the incoming gradients.
    """

    def __init__(
        self,
        owner: Differentiable,
        args: Sequence[Any],
        ends: Sequence[_End],
        incoming: Sequence[Tensor | None],
        wanted: Sequence[int | None],
    ) -> None:
        self.owner, self.wanted = owner, [w for w in wanted if w is not None]
        self.sources = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad]
        self.ends = [end for end in ends if incoming[end.number] is not None]
        self.tensors = [*(args[i] for i in self.sources), *(incoming[end.number] for end in self.ends)]
        self.rest = [None if i in set(self.sources) else a for i, a in enumerate(args)]

    def gradients(self, tensors: Sequence[Tensor]) -> list[Tensor | None]:
        """Of the wanted arguments, by eager mode, connected to `tensors`."""
        args: list[Any] = list(self.rest)
        count = len(self.sources)
        for i, tensor in zip(self.sources, tensors):
            args[i] = tensor
        outputs = self.owner.run_again(args)
        targets = [_target(outputs[end.output], end) for end in self.ends]
        for end, target, grad in zip(self.ends, targets, tensors[count:]):
            if target.shape != grad.shape:
                raise _error(f"output {end.output} is a view that cannot be traced back")
        asked: list[Tensor] = [args[i] for i in self.wanted]
        return list(torch.autograd.grad(targets, asked, tensors[count:], create_graph=True, allow_unused=True))


class _Connected(torch.autograd.Function):
    """The compiled gradients, as functions of what they depend on."""

    @staticmethod
    def forward(ctx: Any, twice: _Twice, found: Sequence[Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.twice = twice
        ctx.save_for_backward(*tensors)
        return tuple(g.view_as(g) for g in found)

    @staticmethod
    def backward(ctx: Any, *second: Tensor) -> tuple[Any, ...]:
        twice: _Twice = ctx.twice
        twice.owner.on_eager()
        if twice.owner.refused is not None:
            raise _error(twice.owner.refused)
        further = torch.is_grad_enabled()
        with torch.enable_grad():
            # Views: a derivative by one argument must not pass through another that was computed from it.
            tensors = [t.view_as(t) if further else t.detach().requires_grad_() for t in ctx.saved_tensors]
            pairs = [(g, v) for g, v in zip(twice.gradients(tensors), second) if g is not None and g.requires_grad]
        asked = [t for t in tensors if t.requires_grad]
        if not pairs:
            return (None, None, *(None for _ in tensors))
        grads, weights = zip(*pairs)
        results = iter(torch.autograd.grad(grads, asked, weights, create_graph=further, allow_unused=True))
        return (None, None, *(next(results) if t.requires_grad else None for t in tensors))


def _picking(positions: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """The arguments at these positions, at the speed of C: a model has hundreds of parameters, and each call passes."""
    if len(positions) > 1:
        return itemgetter(*positions)
    (position,) = positions or (None,)
    return lambda args: () if position is None else (args[position],)


def draws(graph_module: GraphModule) -> bool:
    """Whether a graph has random numbers: to run it again would draw others."""
    return any(
        torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) for node in graph_module.graph.nodes
    )


def _ends(outputs: Any) -> tuple[Any, tuple[_End, ...]]:
    """AOTAutograd's node behind the outputs, and which of its outputs they are; None when no gradient is wanted."""
    found: Any = None
    ends: list[_End] = []
    for i, output in enumerate(outputs if isinstance(outputs, tuple | list) else (outputs,)):
        node = output.grad_fn if isinstance(output, Tensor) else None
        number, views = (output.output_nr, 0) if node is not None else (0, 0)
        while node is not None and type(node).__name__ != COMPILED_NODE and views < DEPTH:
            (node, number), views = (node.next_functions or ((None, 0),))[0], views + 1
        if node is not None and type(node).__name__ == COMPILED_NODE and found in (None, node):
            found = node
            ends.append(_end(i, number, views > 0))
    return found, tuple(ends)


def _target(output: Tensor, end: _End) -> Tensor:
    base = output._base if end.by_base else None
    return output if base is None else base


def _sources(node: Node, args: Sequence[Any]) -> list[int | None]:
    """For each input of the node the position of its argument; None where it needs no gradient."""
    needing = [(i, a) for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad]
    positions: dict[Any, int] = {get_gradient_edge(a)[:2]: i for i, a in reversed(needing)}
    found = [positions.get(edge) for edge in node.next_functions]
    if any(w is None and edge[0] is not None for w, edge in zip(found, node.next_functions)):
        raise _error("its inputs are not those of the graph: they share memory or are of a subclass of Tensor")
    return found


def _autocast_modes() -> list[dict[str, Any]]:
    """How autocast is set while the graph is compiled; Dynamo guards it."""
    return [
        {"device_type": d, "dtype": torch.get_autocast_dtype(d), "enabled": True, "cache_enabled": False}
        for d in ("cpu", "cuda")
        if torch.is_autocast_enabled(d)
    ]


def _error(reason: str) -> FusecError:
    return FusecError(
        f"gradients of a compiled function are differentiated (create_graph=True), but {reason}; "
        "leave this call uncompiled"
    )
