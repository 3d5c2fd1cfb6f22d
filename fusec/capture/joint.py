"""The joint graph of a training step: what the forward graph saves for the backward one.

Enters: AOTAutograd's joint graph. Leaves: a forward and a backward graph, cut where the least memory is saved.

    loss = -log_softmax(x)[target]        saved:  log_softmax, f32[8192, 32000]
        ->                                saved:  x (an input), amax and log(sum(exp)), f32[8192, 1] each

The cut is torch's min-cut rematerialization: values that kernels compute again for nothing need not be saved. What may
be computed again is said here, by marks on the nodes:

- A softmax is one op that must be kept. In pieces its two numbers a row are saved in its place, and what depends on
  every element is computed again where it is used, in the kernel that reads the input anyway.
- A max pooling saves an 8-bit number a window, the position inside it (`capture/pooling.py`), and no indices. The mask
  of a ReLU before it is in those numbers, too.
- An op that becomes part of a kernel may be computed again, a library call may not.
- A value that a library call of the backward graph reads is saved: it would be written there, too.
- An input that eager mode's backward reads costs nothing to save, as a parameter does: it is in memory until then.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._functorch import config as functorch_config
from torch._functorch.partitioners import get_default_op_list, min_cut_rematerialization_partition
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import CheckpointPolicy

from fusec.capture.decompositions import computation, decomposition_table
from fusec.capture.pooling import NOWHERE, POOL, POOL_BACKWARD, Offsets
from fusec.capture.random import draw_in_kernels

# torch._functorch.{config, partitioners}, torch.fx.experimental.proxy_tensor: checked with torch 2.11.0 and 2.13.0.

__all__ = ["partition"]

aten = torch.ops.aten


def partition(
    joint: GraphModule,
    inputs: Any,
    *,
    draw: bool,
    static_lifetime_input_indices: Sequence[int] | None = None,
    **settings: Any,
) -> tuple[GraphModule, GraphModule]:
    """(forward, backward) of a joint graph; called by AOTAutograd, which also says how many outputs are forward's.

    draw: random numbers are drawn inside kernels, so that backward draws them again.
    """
    free = sorted({*(static_lifetime_input_indices or ()), *read_in_backward(joint)})
    joint = draw_in_kernels(joint) if draw else joint
    expand_softmax(joint)
    save_offsets(joint)
    mark_saved(joint)
    with functorch_config.patch(ban_recompute_not_in_allowlist=False, ban_recompute_materialized_backward=False):
        parts: tuple[GraphModule, GraphModule] = min_cut_rematerialization_partition(
            joint, inputs, static_lifetime_input_indices=free, **settings
        )
    return parts


def read_in_backward(joint: GraphModule) -> list[int]:
    """Positions of the inputs that eager mode keeps: an op that was traced in backward reads them, or views of them."""
    cheap = get_default_op_list()

    def kept(node: Node) -> bool:
        return any(
            user.meta.get("partitioner_tag") == "is_backward" or (cheap.is_view(user) and kept(user))
            for user in node.users
            if user.op == "call_function"
        )

    primals = [n for n in joint.graph.nodes if n.op == "placeholder" and str(n.target).startswith("primals")]
    return [i for i, node in enumerate(primals) if kept(node)]


# -- what may be computed again -------------------------------------------------------------------


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Parts of kernels that torch's own list of cheap ops lacks.
_CHEAP = _names("""
    cat constant_pad_nd flip roll repeat unfold slice_scatter select_scatter embedding index_select take_along_dim
    one_hot tril eye linspace amin prod all var std logsumexp
""")
# Ops of backward graphs that are kernels: a value that they read need not be in memory for them.
_KERNELS = _names("""
    max_pool2d_with_indices_backward max_pool2d_with_offsets_backward avg_pool2d_backward avg_pool3d_backward
    _adaptive_avg_pool2d_backward
    upsample_nearest2d_backward upsample_bilinear2d_backward embedding_dense_backward index_put index_add scatter
    scatter_add
""")


def mark_saved(joint: GraphModule) -> None:
    """Say which values are never computed again, unless the user's checkpointing has said something already."""
    cheap = get_default_op_list()
    backward = _after_tangents(joint)

    def fuses(node: Node) -> bool:
        return cheap.is_fusible(node) or _name(node) in _CHEAP

    def written_again(node: Node) -> bool:
        """True when a library call of the backward graph reads the value, through views or not."""
        reading = list(node.users)
        while reading:
            user = reading.pop()
            if user in backward and user.op == "call_function" and not fuses(user) and _name(user) not in _KERNELS:
                return True
            if cheap.is_view(user):
                reading += user.users
        return False

    for node in joint.graph.nodes:
        if node.op != "call_function" or node in backward or "recompute" in node.meta or cheap.is_view(node):
            continue
        if not fuses(node) or cheap.is_random(node) or written_again(node):
            node.meta["recompute"] = CheckpointPolicy.MUST_SAVE


def _after_tangents(joint: GraphModule) -> set[Node]:
    """The nodes that depend on a gradient from outside."""
    found: set[Node] = set()
    for node in joint.graph.nodes:
        is_tangent = node.op == "placeholder" and str(node.target).startswith("tangents")
        if is_tangent or (node.op != "output" and any(n in found for n in node.all_input_nodes)):
            found.add(node)
    return found


def _name(node: Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    return "" if packet is None else str(packet.__name__)


# -- softmax in pieces ----------------------------------------------------------------------------


def expand_softmax(graph_module: GraphModule) -> None:
    """softmax(x)  ->  e = exp(x - amax(x)); e / sum(e), computed in float32; log_softmax likewise."""
    for node in list(graph_module.graph.nodes):
        pieces = _PIECES.get(node.target)
        value = node.args[0].meta.get("val") if pieces is not None else None
        if pieces is not None and isinstance(value, Tensor) and value.numel() != 0:
            _replace(graph_module, node, pieces)
    graph_module.recompile()


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    values = computation(x)
    exponentials = torch.exp(values - torch.amax(values, dim, keepdim=True))
    result = exponentials / torch.sum(exponentials, dim, keepdim=True)
    return (result if half_to_float else result.to(x.dtype)).contiguous()


def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    values = computation(x)
    shifted = values - torch.amax(values, dim, keepdim=True)
    result = shifted - torch.log(torch.sum(torch.exp(shifted), dim, keepdim=True))
    return (result if half_to_float else result.to(x.dtype)).contiguous()


_PIECES: dict[Any, Callable[..., Tensor]] = {
    aten._softmax.default: _softmax,
    aten._log_softmax.default: _log_softmax,
}


# -- max pooling ----------------------------------------------------------------------------------


def save_offsets(graph_module: GraphModule) -> None:
    """max_pool_backward(g, x, ..., indices)  ->  max_pool2d_with_offsets_backward(g, offsets, ...), offsets of 8 bits.

    Where nothing else reads the indices, the pooling yields the offsets in their place.

    where(x <= 0, 0, max_pool_backward(g, x, ..., indices))
        ->  max_pool2d_with_offsets_backward(g, where(values <= 0, -1, offsets), ...)

    That is a ReLU before the pooling. A window's gradient reaches its maximum alone, and x is the pooled value there:
    where that is not above 0 the window sends its gradient nowhere, and no mask of all elements is saved.
    """
    pooling = [n for n in graph_module.graph.nodes if n.target is aten.max_pool2d_with_indices_backward.default]
    for node in pooling:
        grad, source, *geometry, indices = node.args
        x = source.meta["val"]
        window = Offsets.of(*geometry[:4])
        if window.dtype is None or any(isinstance(n, torch.SymInt) for n in x.shape):
            continue
        values, masked = _pooled_values(source, indices), _relu_gradient(node, source)
        if _is_read_once(indices) and window.is_unrolled:
            offsets = _yielded(graph_module, indices, window.dtype)
        else:
            offsets = _inserted(graph_module, node, (indices,), partial(window.offset, width=x.shape[-1]))
        if values is not None and masked is not None and window.is_gathered:
            offsets = _inserted(graph_module, node, (offsets, values), _covered)
            masked.replace_all_uses_with(node)
            graph_module.graph.erase_node(masked)
        value = node.meta["val"]
        args = (grad, offsets, list(x.shape), list(value.stride()), *geometry)
        _exchange(graph_module, node, "max_pool2d_with_offsets_backward", POOL_BACKWARD, args, value)
    if pooling:
        graph_module.recompile()


def _is_read_once(indices: Node) -> bool:
    """Whether one node alone reads these indices of a pooling."""
    pool = indices.args[0] if indices.target is operator.getitem else None
    return isinstance(pool, Node) and pool.target is aten.max_pool2d_with_indices.default and len(indices.users) == 1


def _pooled_values(source: Node, indices: Node) -> Node | None:
    """What the pooling of the source that yields these indices yields beside them."""
    pool = indices.args[0] if indices.target is operator.getitem else None
    if not isinstance(pool, Node) or pool.target is not aten.max_pool2d_with_indices.default:
        return None
    found = (n for n in pool.users if n.target is operator.getitem and n.args[1] == 0)
    return next(found, None) if pool.args[0] is source else None


def _relu_gradient(gradient: Node, relu: Node) -> Node | None:
    """where(relu <= 0, 0, gradient): the one reader of this gradient, in the form that the gradient of a ReLU has."""
    reader: Any = next(iter(gradient.users), None)
    if len(gradient.users) != 1 or reader.target is not aten.where.self or reader.args[2] is not gradient:
        return None
    mask, zero, _ = reader.args
    if mask.target is not aten.le.Scalar or mask.args[1] != 0 or _origin(mask.args[0]) is not _origin(relu):
        return None
    if zero.target is not aten.scalar_tensor.default or repr(zero.args[0]) != "0":  # -0.0 is another number
        return None
    before, after = gradient.meta["val"], reader.meta["val"]
    same = before.dtype is after.dtype and before.shape == after.shape and before.stride() == after.stride()
    return reader if same else None


def _origin(node: Node) -> Node:
    """What the node is an alias of, as what autograd saves is."""
    while node.target in (aten.alias.default, aten.detach.default):
        (node,) = node.all_input_nodes
    return node


def _covered(offsets: Tensor, values: Tensor) -> Tensor:
    return torch.where(values <= 0, NOWHERE, offsets)


def _yielded(graph_module: GraphModule, indices: Node, dtype: torch.dtype) -> Node:
    """The offsets from the pooling of these indices, which yields them in their place."""
    pool = indices.args[0]
    assert isinstance(pool, Node), indices.format_node()
    values, index = pool.meta["val"]
    with index.fake_mode:
        value = torch.empty_like(index, dtype=dtype)
    changed = _exchange(graph_module, pool, "max_pool2d_with_offsets", POOL, pool.args, (values, value))
    return _exchange(graph_module, indices, "offsets", operator.getitem, (changed, 1), value)


# -- pieces ---------------------------------------------------------------------------------------


def _exchange(
    graph_module: GraphModule, node: Node, name: str, target: Callable[..., Any], args: tuple[Any, ...], value: Any
) -> Node:
    """Another call in the node's place, with the node's own metadata: line, module, original op."""
    with graph_module.graph.inserting_before(node):
        call = graph_module.graph.create_node("call_function", target, args, dict(node.kwargs), name)
    call.meta = {**{k: v for k, v in node.meta.items() if k != "tensor_meta"}, "val": value}
    node.replace_all_uses_with(call)
    graph_module.graph.erase_node(node)
    return call


def _replace(graph_module: GraphModule, node: Node, pieces: Callable[..., Tensor]) -> None:
    """The node's pieces in its place, each with the node's own metadata: line, module, original op."""
    source, *others = node.args
    assert isinstance(source, Node), node.format_node()
    node.replace_all_uses_with(_inserted(graph_module, node, (source,), lambda x: pieces(x, *others)))
    graph_module.graph.erase_node(node)


def _inserted(graph_module: GraphModule, node: Node, sources: Sequence[Node], pieces: Callable[..., Tensor]) -> Node:
    """The result of pieces(*sources), computed before the node and described as a part of it."""
    values, given = [source.meta["val"] for source in sources], iter(sources)

    def call(*inputs: Tensor) -> Tensor:
        return pieces(*inputs)  # make_fx reads the signature of a plain function

    with values[0].fake_mode:
        traced = make_fx(call, decomposition_table=decomposition_table())(*values)
    copies: dict[Node, Node] = {}
    with graph_module.graph.inserting_before(node):
        for piece in traced.graph.nodes:
            if piece.op == "placeholder":
                copies[piece] = next(given)
            elif piece.op == "output":
                (result,) = piece.args[0] if isinstance(piece.args[0], tuple | list) else piece.args
                return copies[result]
            else:
                copy = graph_module.graph.node_copy(piece, copies.__getitem__)
                copy.meta = {**node.meta, **{k: piece.meta[k] for k in ("val", "tensor_meta") if k in piece.meta}}
                copies[piece] = copy
    raise AssertionError("a traced graph ends with its output")
