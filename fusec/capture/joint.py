"""The joint graph of a training step: what the forward graph saves for the backward one.

Enters: AOTAutograd's joint graph. Leaves: a forward and a backward graph, cut where the least memory is saved.

    loss = -log_softmax(x)[target]        saved:  log_softmax, f32[8192, 32000]
        ->                                saved:  x (an input), amax and log(sum(exp)), f32[8192, 1] each

The cut is torch's min-cut rematerialization: values that kernels compute again for nothing need not be saved. What may
be computed again is said here, by marks on the nodes:

- A softmax is one op that must be kept. In pieces its two numbers a row are saved in its place, and what depends on
  every element is computed again where it is used, in the kernel that reads the input anyway.
- An op that becomes part of a kernel may be computed again, a library call may not.
- A value that a library call of the backward graph reads is saved: it would be written there, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch import config as functorch_config
from torch._functorch.partitioners import get_default_op_list, min_cut_rematerialization_partition
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import CheckpointPolicy

from fusec.capture.random import draw_in_kernels

# torch._functorch.{config, partitioners}, torch.fx.experimental.proxy_tensor: checked with torch 2.11.0 and 2.13.0.

__all__ = ["partition"]

aten = torch.ops.aten


def partition(joint: GraphModule, inputs: Any, *, draw: bool, **settings: Any) -> tuple[GraphModule, GraphModule]:
    """(forward, backward) of a joint graph; called by AOTAutograd, which also says how many outputs are forward's.

    draw: random numbers are drawn inside kernels, so that backward draws them again.
    """
    joint = draw_in_kernels(joint) if draw else joint
    expand_softmax(joint)
    mark_saved(joint)
    with functorch_config.patch(ban_recompute_not_in_allowlist=False, ban_recompute_materialized_backward=False):
        parts: tuple[GraphModule, GraphModule] = min_cut_rematerialization_partition(joint, inputs, **settings)
    return parts


# -- what may be computed again -------------------------------------------------------------------

# Parts of kernels that torch's own list of cheap ops lacks.
_CHEAP = frozenset(
    [
        "cat",
        "constant_pad_nd",
        "flip",
        "roll",
        "repeat",
        "unfold",
        "embedding",
        "index_select",
        "take_along_dim",
        "one_hot",
        "tril",
        "eye",
        "linspace",
        "slice_scatter",
        "select_scatter",
        "amin",
        "prod",
        "all",
        "var",
        "std",
        "logsumexp",
    ]
)


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
            if user in backward and user.op == "call_function" and not fuses(user):
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
    values = _computation(x)
    exponentials = torch.exp(values - torch.amax(values, dim, keepdim=True))
    result = exponentials / torch.sum(exponentials, dim, keepdim=True)
    return result if half_to_float else result.to(x.dtype)


def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    values = _computation(x)
    shifted = values - torch.amax(values, dim, keepdim=True)
    result = shifted - torch.log(torch.sum(torch.exp(shifted), dim, keepdim=True))
    return result if half_to_float else result.to(x.dtype)


def _computation(x: Tensor) -> Tensor:
    return x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x


_PIECES: dict[Any, Callable[..., Tensor]] = {
    aten._softmax.default: _softmax,
    aten._log_softmax.default: _log_softmax,
}


def _replace(graph_module: GraphModule, node: Node, pieces: Callable[..., Tensor]) -> None:
    """The node's pieces in its place, each with the node's own metadata: line, module, original op."""
    source, *others = node.args
    assert isinstance(source, Node), node.format_node()
    value = source.meta["val"]
    with value.fake_mode:
        traced = make_fx(lambda x: pieces(x, *others))(value)
    copies: dict[Node, Any] = {}
    with graph_module.graph.inserting_before(node):
        for piece in traced.graph.nodes:
            if piece.op == "placeholder":
                copies[piece] = source
            elif piece.op == "output":
                (result,) = piece.args[0] if isinstance(piece.args[0], tuple | list) else piece.args
                node.replace_all_uses_with(copies[result])
            else:
                copy = graph_module.graph.node_copy(piece, copies.__getitem__)
                copy.meta = {**node.meta, **{k: piece.meta[k] for k in ("val", "tensor_meta") if k in piece.meta}}
                copies[piece] = copy
    graph_module.graph.erase_node(node)
