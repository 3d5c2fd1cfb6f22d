"""Calls with arguments that no text can hold: operators, graphs and functions as arguments, dictionaries of tensors.

Enters: a node whose target is a higher-order op. Leaves: one `Extern` whose target is a `Bound`.

    cond(pred, true_graph, false_graph, (x,))   ->   extern cond(view(pred), view(x)) -> sin, add

A Bound keeps the shape of the arguments and everything in them that is neither a tensor nor a number; it is called with
the rest, flat, and returns the tensors of the result, flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.utils import _pytree as pytree

from fusec.capture.subgraphs import CompiledSubgraph
from fusec.ir.index import Expr
from fusec.ir.types import ExternArg, Role
from fusec.lowering.context import Context, op_hint, sizes, strides_of
from fusec.lowering.ref import Ref
from fusec.lowering.registry import NotLowered

# torch.utils._pytree: checked with torch 2.11.0 and 2.13.0.

__all__ = ["Bound", "is_bound", "lower_bound"]


@dataclass(frozen=True, eq=False)
class Bound:
    """target(*args, **kwargs), given by its leaves: `held` has a place's object, or None where the call gives it."""

    target: Any
    spec: pytree.TreeSpec
    held: tuple[Any, ...]
    given: frozenset[int]

    def __call__(self, *values: Any) -> Any:
        rest = iter(values)
        leaves = [next(rest) if i in self.given else held for i, held in enumerate(self.held)]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        results = pytree.tree_leaves(self.target(*args, **kwargs))
        return results[0] if len(results) == 1 else tuple(results)

    def __str__(self) -> str:
        return f"higher_order.{self.target.name()}"


def is_bound(target: Any) -> bool:
    return isinstance(target, HigherOrderOperator)


def lower_bound(ctx: Context, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Keep the current node as a call; returns what the node's users see: the same tree with Refs for tensors."""
    leaves, spec = pytree.tree_flatten((_plain(args), _plain(kwargs)))
    given = frozenset(
        i for i, leaf in enumerate(leaves) if isinstance(leaf, Ref | int | float | Expr) and not isinstance(leaf, bool)
    )
    target = Bound(ctx.node.target, spec, tuple(None if i in given else v for i, v in enumerate(leaves)), given)
    arguments: list[ExternArg] = [ctx.view(v) if isinstance(v, Ref) else v for i, v in enumerate(leaves) if i in given]
    metas, result_spec = pytree.tree_flatten(ctx.node.meta.get("val"))
    results = [_result(ctx, meta) for meta in metas]
    names = [r.buffer if isinstance(r, Ref) else None for r in results]
    ctx.extern(target, arguments, {}, names, _reason(ctx, leaves))
    return pytree.tree_unflatten(results, result_spec)


def _reason(ctx: Context, leaves: Sequence[Any]) -> str:
    """A call of the user's own, or of compiled graphs, is where it should be."""
    if any(isinstance(leaf, torch.fx.GraphModule) for leaf in leaves):
        return f"the inner graphs of {ctx.node.target.name()} run as eager PyTorch would"  # type: ignore[union-attr]
    own = all(isinstance(leaf, CompiledSubgraph) for leaf in leaves if isinstance(leaf, torch.nn.Module))
    return "library call" if own else f"no lowering for {ctx.node.target}"


def _result(ctx: Context, meta: Any) -> Ref | None:
    if not isinstance(meta, torch.Tensor):
        if meta is not None and ctx.node.users:
            raise NotLowered(f"{ctx.node.target} returns a {type(meta).__name__}")
        return None
    shape, strides = sizes(meta.shape), strides_of(meta)
    return ctx.buffer(op_hint(ctx.node), meta.dtype, shape, strides, str(meta.device), Role.TEMPORARY)


def _plain(value: Any) -> Any:
    """FX's immutable lists and dicts as plain ones."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(v) for v in value)
    return [_plain(v) for v in value] if isinstance(value, list) else value
