"""Example inputs for a GPU that is not here: same shapes, strides and dtypes, no memory.

Enters: a function or module and its arguments. Leaves: the same on fake tensors, and the mode they live in.

    module, (x,), mode = on_fake(model, (torch.randn(4, 8),), "cuda")   # x: FakeTensor(device="cuda:0", size=(4, 8))

Without a GPU, fake CUDA tensors cannot be indexed (CPU-only build) or made from numbers (CUDA build). There, functions
are captured on fake CPU tensors and `on_cuda` moves the aten graph.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_map_only

from fusec.capture.graph import CapturedGraph
from fusec.capture.specialize import GraphCopier

# torch._subclasses.fake_tensor, torch.utils._pytree: checked with torch 2.11.0 and 2.13.0.

__all__ = ["on_cuda", "on_fake"]

aten = torch.ops.aten


def on_fake(fn: Any, arguments: Any, device: str) -> tuple[Any, Any, FakeTensorMode]:
    """(fn, arguments, mode): parameters, buffers and arguments replaced by fake tensors that need no gradient."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        made = _fake_like(tensor, mode, device)
        return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made

    module = fn if isinstance(fn, nn.Module) else getattr(fn, "__self__", None)
    if isinstance(module, nn.Module):
        memo: dict[int, Any] = {id(t): fake(t) for t in (*module.parameters(), *module.buffers())}
        moved = copy.deepcopy(module, memo)
        fn = moved if fn is module else getattr(moved, fn.__name__)
    return fn, tree_map_only(torch.Tensor, fake, arguments), mode


def on_cuda(graph: CapturedGraph) -> CapturedGraph:
    """The graph as it is on `cuda`: every device argument moved, CPU-only ops replaced by what CUDA calls."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    arguments = tree_map_only(torch.Tensor, lambda t: _fake_like(t, mode, "cuda"), graph.example_inputs)
    mover = _Mover(graph.graph_module, mode)
    with mode, torch.no_grad():
        mover.run(arguments)
    moved = GraphModule(graph.graph_module, mover.graph)
    for name, constant in mover.constants.items():
        setattr(moved, name, constant)
    return CapturedGraph(moved, arguments, graph.names, graph.kind, graph.name)


def _fake_like(tensor: torch.Tensor, mode: FakeTensorMode, device: str) -> torch.Tensor:
    with mode, torch.no_grad():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


class _Mover(GraphCopier):
    """Copies a graph from the CPU to CUDA. constants: fake tensors in place of the graph's own."""

    def __init__(self, module: GraphModule, mode: FakeTensorMode) -> None:
        super().__init__(module, mode)
        self.constants: dict[str, torch.Tensor] = {}

    def rewrite(self, node: Node) -> tuple[Callable[..., Any], Any, Any]:
        target, args, kwargs = super().rewrite(node)
        args, kwargs = tree_map_only(torch.device, lambda _: torch.device("cuda", 0), (args, kwargs))
        if target is aten._scaled_dot_product_flash_attention_for_cpu.default:
            return self._attention(*args, **kwargs)
        return target, args, kwargs

    def attribute(self, path: str) -> Any:
        value = super().attribute(path)
        if not isinstance(value, torch.Tensor) or not value.dim():  # kernels hold numbers by value
            return value
        self.constants[path] = _fake_like(value, self.mode, "cuda")
        return self.constants[path]

    def _attention(
        self,
        query: Node,
        key: Node,
        value: Node,
        dropout: float = 0.0,
        causal: bool = False,
        attn_mask: Node | None = None,
        scale: float | None = None,
    ) -> tuple[Callable[..., Any], Any, Any]:
        """What scaled_dot_product_attention dispatches to: flash for 16 bits without a mask, else memory-efficient."""
        if attn_mask is None and self.values[query].dtype in (torch.float16, torch.bfloat16):
            flash = aten._scaled_dot_product_flash_attention.default
            return flash, (query, key, value, dropout, causal, False), {"scale": scale}
        efficient = aten._scaled_dot_product_efficient_attention.default
        return efficient, (query, key, value, attn_mask, False, dropout, causal), {"scale": scale}
