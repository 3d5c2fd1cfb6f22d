"""Ops on lists of tensors as one op a tensor: what optimizers and gradient clipping call.

Enters: nothing. Leaves: {OpOverload: function} for every functional `aten._foreach_*` whose one-tensor op exists.

    _foreach_add.List(xs, ys, alpha=2)          ->  [add(x, y, alpha=2) for x, y in zip(xs, ys)]
    _foreach_addcdiv.ScalarList(xs, a, b, vs)   ->  [addcdiv(x, y, z, value=v) for x, y, z, v in zip(xs, a, b, vs)]
    _foreach_pow.ScalarAndTensor(2, xs)         ->  [pow(2, x) for x in xs]

Which arguments are lists, one element a tensor, is read from each op's schema.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["foreach_table"]

aten = torch.ops.aten
_PREFIX = "_foreach_"


def _norm(x: Tensor, order: Any = 2, dtype: torch.dtype | None = None) -> Tensor:
    result: Tensor = torch.linalg.vector_norm(x, order, dtype=dtype)
    return result


def _powsum(x: Tensor, order: Any = 2, dtype: torch.dtype | None = None) -> Tensor:
    values = x if dtype is None else x.to(dtype)
    return torch.sum(torch.pow(torch.abs(values), order))


def _extreme(of_tensors: Callable[..., Tensor], of_number: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def bound(x: Tensor, other: Any) -> Tensor:
        return of_tensors(x, other) if isinstance(other, Tensor) else of_number(x, other)

    return bound


def _scaled(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """addcmul and addcdiv take `value` by keyword, and only as a number."""

    def compute(x: Tensor, a: Tensor, b: Tensor, value: Any = 1) -> Tensor:
        if isinstance(value, Tensor):
            return x + value * (a * b if op is torch.addcmul else a / b)
        return op(x, a, b, value=value)

    return compute


def _copy(x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    result: Tensor = aten.copy.default(x, source, non_blocking)
    return result


# One-tensor functions of the lists' ops that are spelled differently, or that take their arguments differently.
_OWN: dict[str, Callable[..., Tensor]] = {
    "norm": _norm,
    "powsum": _powsum,
    "max": torch.amax,
    "clamp_max": _extreme(torch.minimum, torch.clamp_max),
    "clamp_min": _extreme(torch.maximum, torch.clamp_min),
    "maximum": _extreme(torch.maximum, torch.clamp_min),
    "minimum": _extreme(torch.minimum, torch.clamp_max),
    "addcmul": _scaled(torch.addcmul),
    "addcdiv": _scaled(torch.addcdiv),
    "copy": _copy,
    "zero": torch.zeros_like,
}


def _one_by_one(op: Any, function: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    """The op as `function` of each tensor; arguments that are lists in the schema give one element to each."""
    arguments = op._schema.arguments
    lists = {a.name for a in arguments if str(a.type) in _LISTS}
    positional = [a.name for a in arguments if not a.kwarg_only]
    # A tensor of numbers, one a list element, beside the lists: addcmul.Tensor, addcdiv.Tensor.
    numbers = {a.name for a in arguments if a.name == "scalars" and str(a.type) == "Tensor"}

    def compute(*args: Any, **kwargs: Any) -> list[Tensor]:
        given = {**dict(zip(positional, args, strict=False)), **kwargs}
        columns = {n: list(v.unbind() if n in numbers else v) for n, v in given.items() if n in lists | numbers}
        count = len(next(iter(columns.values())))
        result = []
        for position in range(count):
            values = {n: columns[n][position] if n in columns else v for n, v in given.items()}
            named = {n: values.pop(n) for n in list(values) if n not in positional}
            result.append(function(*values.values(), **named))
        return result

    return compute


_LISTS = ("List[Tensor]", "List[number]")


def _per_tensor(name: str) -> Callable[..., Tensor] | None:
    """The function of one tensor that `_foreach_<name>` maps over its lists."""
    found: Callable[..., Tensor] | None = _OWN.get(name) or getattr(torch, name, None) or getattr(aten, name, None)
    return found


def _functional(name: str) -> Sequence[Any]:
    """Overloads of an op that write to none of their arguments."""
    packet = getattr(aten, name)
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    return [o for o in overloads if not o._schema.is_mutable]


@lru_cache(maxsize=1)
def _table() -> dict[Any, Callable[..., list[Tensor]]]:
    table: dict[Any, Callable[..., list[Tensor]]] = {}
    names = {s.name.removeprefix("aten::") for s in torch._C._jit_get_all_schemas()}
    for name in sorted(n for n in names if n.startswith(_PREFIX) and not n.endswith("_")):
        function = _per_tensor(name.removeprefix(_PREFIX))
        if function is not None:
            table.update({op: _one_by_one(op, function) for op in _functional(name)})
    return table


def foreach_table() -> dict[Any, Callable[..., list[Tensor]]]:
    """{OpOverload: function of the same signature}; a fresh dict."""
    return dict(_table())
