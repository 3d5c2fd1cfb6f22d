"""Updates of inputs written in place, where the functional graph would copy the whole input.

Enters: an aten graph that ends with `copy_(input, new value)`. Leaves: the same graph, in place.

    put = index_put(cache, [None, i], rows)          index_put_(cache, [None, i], rows)
    out = sum(put)                             ->    out = sum(cache)
    copy_(cache, put)

A scatter of any kind is rewritten when nothing reads the old value, or a view of it, afterwards. A key-value cache
that takes one token then moves one row and not itself. Everything else keeps its `copy_`, which lowering makes a nest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

__all__ = ["keep_old_values", "mutated_inputs", "write_in_place"]

aten = torch.ops.aten

# functional op -> the op that writes its first argument
_IN_PLACE: dict[Any, Any] = {
    aten.index_put.default: aten.index_put_.default,
    aten.scatter.src: aten.scatter_.src,
    aten.scatter.value: aten.scatter_.value,
    aten.scatter_add.default: aten.scatter_add_.default,
    aten.masked_scatter.default: aten.masked_scatter_.default,
}
# scatter of a view -> the view: written with copy_(view, source)
_VIEW_OF: dict[Any, Any] = {
    aten.slice_scatter.default: aten.slice.Tensor,
    aten.select_scatter.default: aten.select.int,
    aten.diagonal_scatter.default: aten.diagonal.default,
}


def write_in_place(graph_module: GraphModule) -> GraphModule:
    """Rewrite every `copy_(input, chain of scatters of that input)`; changes and returns the module."""
    graph = graph_module.graph
    changed = False
    for node in list(graph.nodes):
        if node.target is aten.copy_.default and node.args[0].op == "placeholder" and not node.users:
            changed |= _rewrite(graph, node)
    if changed:
        graph.eliminate_dead_code(lambda n: n.is_impure() or _writes(n))
        graph.lint()
        graph_module.recompile()
    return graph_module


def keep_old_values(forward: GraphModule, results: int, written: Collection[int]) -> None:
    """Save a copy for backward of an argument that is written: by then it holds the new value.

    return out, primals_2              old = clone(primals_2); return out, old

    results: outputs that are not saved values.    written: positions of the arguments that change.
    """
    graph = forward.graph
    places = [n for n in graph.nodes if n.op == "placeholder"]
    changing = {n for i, n in enumerate(places) if i in written}
    output = next(n for n in graph.nodes if n.op == "output")
    values: list[Any] = list(output.args[0])
    first = next(n for n in graph.nodes if n.op != "placeholder")
    copies: dict[Node, Node] = {}
    for position in range(results, len(values)):
        source = values[position]
        while isinstance(source, Node) and source.op == "call_function" and _is_view(source):
            source = source.args[0]
        if source not in changing:
            continue
        saved = values[position]
        if saved not in copies:
            with graph.inserting_before(first if saved is source else saved.next):
                copies[saved] = graph.call_function(aten.clone.default, (saved,))
            copies[saved].meta = dict(saved.meta)
        values[position] = copies[saved]
    if copies:
        output.args = (type(output.args[0])(values),)
        graph.lint()
        forward.recompile()


def mutated_inputs(graph_module: GraphModule) -> tuple[int, ...]:
    """Positions of the inputs that the graph writes."""
    found = set()
    placeholders = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and _writes(node):
            written = node.args[0]
            while (
                isinstance(written, Node) and written.op == "call_function" and (_is_view(written) or _writes(written))
            ):
                written = written.args[0]
            if written in placeholders:
                found.add(placeholders.index(written))
    return tuple(sorted(found))


def _rewrite(graph: Graph, copy: Node) -> bool:
    target, value = copy.args[0], copy.args[1]
    assert isinstance(target, Node)
    chain = _chain(value, target)
    if chain is None or not _same_memory(target, value):
        return False
    order = {node: i for i, node in enumerate(graph.nodes)}
    previous = target
    for link in chain:
        later = (user for alias in _aliases(previous) for user in alias.users if order[user] > order[link])
        if any(user is not copy for user in later):
            return False
        previous = link
    for link in chain:
        with graph.inserting_before(link):
            _write(graph, link, target)
        link.replace_all_uses_with(target)
    graph.erase_node(copy)
    for link in reversed(chain):
        if not link.users:
            graph.erase_node(link)
    return True


def _chain(value: Any, target: Node) -> list[Node] | None:
    """The scatters that lead from `target` to `value`, first one first; None when there is something else between."""
    chain: list[Node] = []
    node = value
    while isinstance(node, Node) and (node.target in _IN_PLACE or node.target in _VIEW_OF):
        chain.append(node)
        node = node.args[0]
    return chain[::-1] if chain and node is target else None


def _write(graph: Graph, link: Node, target: Node) -> None:
    """The in-place form of one scatter, before it."""
    if link.target in _IN_PLACE:
        written = graph.call_function(_IN_PLACE[link.target], (target, *link.args[1:]), link.kwargs)
        written.meta = dict(link.meta)
        return
    source, where = link.args[1], link.args[2:]
    nested = source if isinstance(source, Node) and _scatters_into_the_view(link, source) else None
    view = graph.call_function(_VIEW_OF[link.target], (target, *where), link.kwargs)
    args, kwargs = map_arg((view.args, view.kwargs), lambda n: n.meta["val"])  # a position may be a number of the graph
    with torch.no_grad():
        view.meta = {**link.meta, "val": _VIEW_OF[link.target](*args, **kwargs)}
    if nested is not None:
        _write(graph, nested, view)
        return
    written = graph.call_function(aten.copy_.default, (view, source))
    written.meta = dict(view.meta)


def _scatters_into_the_view(link: Node, source: Node) -> bool:
    """True for slice_scatter(x, slice_scatter(slice(x, *where), part, ..), *where): only the part changes."""
    if source.target not in _IN_PLACE and source.target not in _VIEW_OF:
        return False
    base = source.args[0]
    assert isinstance(base, Node)
    same = base.target is _VIEW_OF[link.target] and base.args == (link.args[0], *link.args[2:])
    return same and base.kwargs == link.kwargs and list(source.users) == [link]


def _aliases(node: Node) -> Iterable[Node]:
    """The node and every view made of it."""
    found, todo = {node}, [node]
    while todo:
        for user in todo.pop().users:
            if user not in found and _is_view(user):
                found.add(user)
                todo.append(user)
    return found


def _is_view(node: Node) -> bool:
    target = node.target
    if node.op != "call_function" or not isinstance(target, OpOverload) or target._schema.is_mutable:
        return False
    return any(r.alias_info is not None for r in target._schema.returns)


def _writes(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _same_memory(target: Node, value: Any) -> bool:
    """Shape and dtype agree, so that the copy changes nothing else."""
    a, b = target.meta.get("val"), value.meta.get("val")
    return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.shape == b.shape and a.dtype == b.dtype
