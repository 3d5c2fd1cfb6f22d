"""Every `_foreach_*` op, rewritten from its schema, equals eager; no list op is left in the graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from fusec.capture.decompositions import decomposition_table
from fusec.capture.foreach import foreach_table

SIZES = ((3, 4), (1,), (17,), (2, 5, 1))
OPS = sorted(foreach_table(), key=str)
MATRIX = ("mm",)


def tensors(op: Any, seed: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((3, 3),) * 4 if any(f"_foreach_{m}." in str(op) for m in MATRIX) else SIZES
    return [(torch.rand(s, generator=generator) * 0.8 + 0.1).to(dtype) for s in shapes]


def arguments(op: Any, dtype: torch.dtype) -> tuple[list[Any], dict[str, Any]]:
    """A value for every argument of the schema that has no default, and for alpha."""
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for seed, argument in enumerate(op._schema.arguments):
        kind = str(argument.type)
        if kind == "List[Tensor]":
            value: Any = tensors(op, seed, dtype)
        elif kind == "List[number]":
            value = [0.5, 2.0, 1.25, 3.0]
        elif kind == "Tensor":
            value = torch.tensor([0.5, 2.0, 1.25, 3.0] if argument.name == "scalars" else 1.5)
        elif kind == "number":
            value = 2 if argument.name == "ord" else 1.5
        else:
            continue
        if argument.kwarg_only:
            named[argument.name] = value
        else:
            positional.append(value)
    return positional, named


@pytest.mark.parametrize("op", OPS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_eager(op: Any, dtype: torch.dtype) -> None:
    args, kwargs = arguments(op, dtype)
    try:
        expected = op(*args, **kwargs)
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    got = foreach_table()[op](*args, **kwargs)
    torch.testing.assert_close(got, list(expected))


def test_the_table_covers_what_optimizers_call() -> None:
    names = {str(op) for op in OPS}
    for wanted in (
        "add.List",
        "addcdiv.ScalarList",
        "addcdiv.Tensor",
        "lerp.Scalar",
        "norm.Scalar",
        "pow.List",
        "copy",
    ):
        assert any(name.startswith(f"aten._foreach_{wanted}") for name in names), wanted
    assert not any(op._schema.is_mutable for op in OPS)


def test_no_list_op_is_left_of_an_optimizer_step() -> None:
    def step(params: list[torch.Tensor], grads: list[torch.Tensor], means: list[torch.Tensor]) -> Any:
        torch._foreach_lerp_(means, grads, 0.1)
        torch._foreach_mul_(params, 0.99)
        torch._foreach_addcdiv_(params, means, torch._foreach_add(torch._foreach_sqrt(grads), 1e-8), -0.01)
        return params, means

    lists = [[torch.rand(s) + 0.1 for s in SIZES] for _ in range(3)]
    functional = torch.func.functionalize(step)
    graph = make_fx(functional, decomposition_table=decomposition_table())(*lists)
    assert not [n for n in graph.graph.nodes if "_foreach_" in str(n.target)]
    expected = step(*[[t.clone() for t in ts] for ts in lists])
    torch.testing.assert_close(graph(*[[t.clone() for t in ts] for ts in lists]), expected)
