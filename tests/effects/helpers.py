"""A function with effects, compiled and in eager mode on copies of the same arguments: both must do the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fusec
from fusec.inspect.explain import Explanation


def tensors(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for leaf in pytree.tree_leaves(tree):
        found += [*leaf.parameters(), *leaf.buffers()] if isinstance(leaf, nn.Module) else []
        found += [leaf] if isinstance(leaf, Tensor) else []
    return found


def aliases(values: list[Tensor]) -> list[tuple[int, int]]:
    """Pairs of tensors that share memory."""
    starts = [v.untyped_storage().data_ptr() for v in values]
    pairs = [(i, j) for j in range(len(values)) for i in range(j)]
    return [(i, j) for i, j in pairs if starts[i] == starts[j] and values[i].numel() and values[j].numel()]


def same_as_eager(fn: Callable[..., Any], *args: Any, calls: int = 1, tolerance: float = 1e-5, **options: Any) -> None:
    """Outputs, arguments afterwards, strides and what shares memory with what are those of eager mode."""
    ours, theirs = copy.deepcopy(args), copy.deepcopy(args)
    compiled = fusec.compile(fn, options={"strict": True, **options})
    for _ in range(calls):
        got, want = compiled(*ours), fn(*theirs)
        mine, other = [*tensors(got), *tensors(ours)], [*tensors(want), *tensors(theirs)]
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance, equal_nan=True)
        assert [t.stride() for t in mine] == [t.stride() for t in other]
        assert aliases(mine) == aliases(other)


def explained(fn: Callable[..., Any], *args: Any) -> Explanation:
    """What a call without gradients becomes; the arguments stay as they are."""
    with torch.no_grad():
        return fusec.explain(fn)(*copy.deepcopy(args))


def launched() -> tuple[int, int]:
    """(kernels, library calls) of all calls so far."""
    counted = fusec.stats()
    return counted["kernels_launched"], counted["extern_calls"]
