"""What values hold past the end of a masked reduced dimension, and what loads put there.

Enters: a KernelPlan and its tile dimensions. Leaves: a fill for each load that wants one, and the reductions whose
operand already holds the identity there, which need no `tl.where`.

    x = tl.load(x_ptr + offset, mask, 0.0)        # fill 0
    device.sum(x * x, 1)                          # 0 * 0 is the identity of sum
    device.sum(tl.where(mask, x - mean, 0.0), 1)  # 0 - mean is not

Values past the end are found by evaluating the op table on the fills.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from fusec.codegen.analysis import Analysis, row_dims
from fusec.codegen.tiles import Dim
from fusec.ir.kernels import DimKind, KernelPlan
from fusec.ir.ops import OPS, OpKind, identity, is_reduction
from fusec.ir.types import Instr

Number = bool | int | float
_MAX_LINES = 200  # longer kernels keep their tl.where
_FILLED = {"sum", "prod", "max", "min", "any", "all", "exp_sum"}


@dataclass(frozen=True)
class Padding:
    """fills: value of a load past the end. padded: reductions whose operand holds the identity there."""

    fills: Mapping[str, Number]
    padded: frozenset[str]


def choose_padding(plan: KernelPlan, analysis: Analysis, dims: Sequence[Dim]) -> Padding:
    """Fills for the loads that vary along masked reduced dimensions, so that few reductions need a tl.where."""
    body = [i for k, i in enumerate(plan.body) if analysis.live[k]]
    if len(body) > _MAX_LINES:
        return Padding({}, frozenset())
    fills: dict[str, Number] = {}
    padded: frozenset[str] = frozenset()
    for dim in reversed(dims):
        if dim.kind is DimKind.GRID or dim.mask is None:
            continue
        own = [i for i in body if i.op in _FILLED and dim.name in row_dims(plan, i, dims)]
        varying = {
            i.out
            for i in body
            if i.op == "load" and not i.args and i.out is not None and dim.name in analysis.varying[i.out]
        }
        chosen, along = _choose(body, own, varying, {k: v for k, v in fills.items() if k in varying})
        fills |= chosen
        padded |= along
    return Padding(fills, padded)


def _choose(
    body: list[Instr], reductions: list[Instr], loads: set[str], given: Mapping[str, Number]
) -> tuple[dict[str, Number], frozenset[str]]:
    """Fills and padded reductions of one dimension; `given` fills are already decided."""
    if not reductions:
        return {}, frozenset()
    by_name = {i.out: i for i in body if i.out is not None}
    wanted = frozenset(i.out for i in reductions if i.out is not None)

    def padded(fills: Mapping[str, Number]) -> frozenset[str]:
        return _padded(body, {**fills, **given}) & wanted

    fills: dict[str, Number] = {}
    for reduction in reductions:
        source = _source(reduction.args[0], by_name)
        if source in loads and source not in fills:
            fills[source] = identity(reduction.op, by_name[source].dtype)
    zeros = {name: identity("sum", by_name[name].dtype) for name in loads if name not in fills}
    if len(padded(fills)) < len(wanted) and len(padded({**fills, **zeros})) > len(padded(fills)):
        fills |= zeros
    best = padded(fills)
    for name in list(fills):  # a fill that helps no reduction is dropped
        without = {k: v for k, v in fills.items() if k != name}
        if padded(without) == best:
            fills = without
    return fills, best


def _source(name: str, by_name: Mapping[str, Instr]) -> str:
    """The load behind a chain of casts."""
    while name in by_name and by_name[name].op == "cast" and by_name[name].dtype.is_floating_point:
        name = by_name[name].args[0]
    return name


def _padded(body: list[Instr], fills: Mapping[str, Number]) -> frozenset[str]:
    """The reductions whose operand is the identity past the end, given the fills."""
    values: dict[str, torch.Tensor | None] = {}
    by_name = {i.out: i for i in body if i.out is not None}
    padded: set[str] = set()
    for instr in body:
        if instr.out is None:
            continue
        if instr.op in _FILLED:
            value = values[instr.args[0]]
            if value is not None and value.item() == identity(instr.op, value.dtype):
                padded.add(instr.out)
        values[instr.out] = _value(instr, values, by_name, fills)
    return frozenset(padded)


def _value(
    instr: Instr,
    values: Mapping[str, torch.Tensor | None],
    by_name: Mapping[str, Instr],
    fills: Mapping[str, Number],
) -> torch.Tensor | None:
    """A line's value past the end, None where it is not known."""
    assert instr.out is not None
    if instr.out in fills:
        return torch.tensor(fills[instr.out], dtype=instr.dtype)
    if instr.op == "const":
        return torch.tensor(instr.attr("value"), dtype=instr.dtype)
    if OPS[instr.op].kind is not OpKind.POINTWISE or is_reduction(instr.op):
        return None
    operands = [values[a] for a in instr.args]
    if instr.op == "sub" and _below_the_maximum(instr, operands, by_name):
        return operands[0]
    known = [o for o in operands if o is not None]
    if len(known) != len(operands):
        return None
    if instr.op == "cast":
        return known[0].to(instr.dtype)
    evaluate = OPS[instr.op].evaluate
    if evaluate is None or (not known[0].is_floating_point() and instr.op in ("floordiv", "truncdiv", "mod", "fmod")):
        return None
    return evaluate(*known)


def _below_the_maximum(instr: Instr, operands: list[torch.Tensor | None], by_name: Mapping[str, Instr]) -> bool:
    """-inf minus the row's maximum of the same values is -inf, unless the row is NaN with and without it."""
    first, second = operands[0], by_name.get(instr.args[1])
    return (
        first is not None
        and first.is_floating_point()
        and first.item() == float("-inf")
        and second is not None
        and second.op == "max"
        and second.args[0] == instr.args[0]
    )
