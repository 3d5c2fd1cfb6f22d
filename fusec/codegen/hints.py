"""What a value is called: by its buffer, by its part in a known formula, by its FX node, at last by its op.

load weight                    ->  weight
sum(x) / 4096                  ->  mean
x - mean                       ->  centered
rsqrt(var + eps)               ->  rstd
the last line of aten.gelu     ->  gelu
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fusec.codegen.names import clean, is_quiet, op_name
from fusec.ir.kernels import KernelPlan
from fusec.ir.types import Buffer, Instr, Role

_REDUCTIONS = {"sum": "total", "prod": "product", "max": "largest", "min": "smallest", "any": "some", "all": "every",
               "dev_sum": "deviations", "mean": "mean"}  # fmt: skip
_OPS = {
    "not": "inverted", "and": "both", "or": "either", "lt": "below", "le": "at_most", "gt": "above", "ge": "at_least",
    "eq": "equal", "where": "chosen", "neg": "negated", "index": "position", "const": "constant", "mod": "remainder",
    "floordiv": "quotient", "cumsum": "running_sum", "cumprod": "running_product", "cummax": "running_max",
    "cummin": "running_min", "cumargmax": "running_argmax", "cumargmin": "running_argmin",
    "logcumsumexp": "running_logsumexp", "philox": "bits",
}  # fmt: skip
_MEANS = ("mean", "var", "mean_square")
_KEPT = (*_MEANS, "rstd")
_ROLES = {Role.INPUT: "in", Role.OUTPUT: "out", Role.TEMPORARY: "tmp", Role.CONSTANT: "const"}


def buffer_hint(buffer: Buffer) -> str:
    """A buffer's name for a reader: its hint, else its own name, else its role."""
    hint = clean(buffer.hint) or clean(buffer.name)
    if hint in ("", "buf", "in"):
        hint = _ROLES[buffer.role]
    return {"in": "source", "const": "constant"}.get(hint, hint)


@dataclass(frozen=True)
class Hints:
    """names: for every SSA value, not yet unique. kept: values that a reader looks for, written on their own line."""

    names: Mapping[str, str]
    kept: frozenset[str]


def value_hints(plan: KernelPlan, table: Mapping[str, Buffer]) -> Hints:
    """Names for the SSA values of a plan."""
    last_of_node: dict[str, str] = {}
    for instr in plan.body:
        if instr.origin is not None and instr.out is not None:
            last_of_node[instr.origin.node] = instr.out
    by_name: dict[str, Instr] = {i.out: i for i in plan.body if i.out is not None}
    hints: dict[str, str] = {}
    for instr in plan.body:
        if instr.out is None:
            continue
        hint = _formula(instr, hints, by_name)
        if hint is None and instr.op == "load":
            assert instr.access is not None
            hint = buffer_hint(table[instr.access.buffer])
        if hint is None and instr.origin is not None and last_of_node[instr.origin.node] == instr.out:
            spoken = op_name(instr.origin.op)
            hint = None if is_quiet(spoken) else clean(spoken)
        if not hint and instr.op in ("cast", "bitcast", "checked"):
            hint = hints[instr.args[-1]]
        hints[instr.out] = hint or _REDUCTIONS.get(instr.op) or _OPS.get(instr.op) or instr.op
    kept = {v for v, hint in hints.items() if hint in _KEPT or by_name[v].op in _REDUCTIONS}
    averaged = {a for v, hint in hints.items() if hint in _MEANS for a in by_name[v].args}
    return Hints(hints, frozenset(kept - averaged))


def _formula(instr: Instr, hints: Mapping[str, str], by_name: Mapping[str, Instr]) -> str | None:
    """Names from the formulas of norms and softmax."""
    args = instr.args
    if instr.op in _REDUCTIONS and instr.op != "sum":
        return _REDUCTIONS[instr.op]
    if instr.op == "sum":
        return "total"
    if instr.op == "rsqrt":
        return "rstd"
    if instr.op in ("div", "mul") and len(args) == 2:
        total = next((a for a in args if by_name[a].op in ("sum", "dev_sum")), None)
        other = next((a for a in args if by_name[a].op == "const"), None)
        if total is not None and other is not None:
            if by_name[total].op == "dev_sum":
                return "var"
            return _mean_of(by_name[by_name[total].args[0]], hints)
        if instr.op == "mul" and args[0] == args[1]:
            return "squared"
    if instr.op == "sub":
        if hints[args[1]] == "mean":
            return "centered"
        if by_name[args[1]].op == "max":
            return "shifted"
    return None


def _mean_of(summed: Instr, hints: Mapping[str, str]) -> str:
    if summed.op == "mul" and summed.args[0] == summed.args[1]:
        return "var" if hints[summed.args[0]] == "centered" else "mean_square"
    return "mean"
