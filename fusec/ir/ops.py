"""The op table: every op an Instr may hold, with its arity, dtype rule and meaning.

One row an op. `evaluate` is the meaning on CPU tensors, PyTorch's own; `codegen/triton.py` has the
text of each row, and a test fails when a row is missing in either.

    name       arity  result dtype     meaning
    add        2      as the operands  torch.add
    lt         2      bool             torch.lt
    sum        1      as the operand   removes the axes in attrs["axes"]
    cumsum     1      as the operand   runs along the axes in attrs["axes"], row-major

Operands of one op share a dtype (lowering inserts casts), but for `where`'s condition and masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

from fusec.kernels.philox import philox

Evaluate = Callable[..., torch.Tensor]


class OpKind(Enum):
    NULLARY = "nullary"  # const, index
    MEMORY = "memory"  # load, store
    POINTWISE = "pointwise"
    REDUCTION = "reduction"
    SCAN = "scan"  # keeps the axis it runs along
    CHECK = "check"  # a value, and a condition without which it must not be used


class Result(Enum):
    """How an op's result dtype follows from its operands."""

    SAME = "same"  # the operands' common dtype
    BOOL = "bool"
    FREE = "free"  # the Instr says
    INDEX = "int64"


@dataclass(frozen=True, slots=True)
class OpInfo:
    """A row of the table. cost: instructions a point on a GPU, roughly (an add is 1)."""

    name: str
    arity: int
    result: Result
    kind: OpKind
    evaluate: Evaluate | None
    cost: int = 1


OPS: dict[str, OpInfo] = {}


def _row(
    name: str,
    arity: int,
    evaluate: Evaluate | None,
    *,
    result: Result = Result.SAME,
    kind: OpKind = OpKind.POINTWISE,
    cost: int = 1,
) -> None:
    OPS[name] = OpInfo(name, arity, result, kind, evaluate, cost)


# -- leaves and memory ----------------------------------------------------------------------------
_row("const", 0, None, result=Result.FREE, kind=OpKind.NULLARY, cost=0)  # attrs: value
_row("index", 0, None, result=Result.INDEX, kind=OpKind.NULLARY)  # attrs: expr; the value of an index expression
_row("load", 0, None, result=Result.FREE, kind=OpKind.MEMORY)  # args: [mask]; attrs: other
_row("store", 1, None, result=Result.FREE, kind=OpKind.MEMORY)  # args: value [mask]

# -- conversions ----------------------------------------------------------------------------------
_row("cast", 1, None, result=Result.FREE)  # value conversion as Tensor.to; float to int truncates
_row("bitcast", 1, None, result=Result.FREE)  # same bits, same size

# -- unary ----------------------------------------------------------------------------------------


def _trigamma(x: torch.Tensor) -> torch.Tensor:
    return torch.polygamma(1, x)


def _wide(function: Evaluate) -> Evaluate:
    """A function that PyTorch has for float32 and float64 only."""

    def evaluate(x: torch.Tensor) -> torch.Tensor:
        return function(x.float()).to(x.dtype) if x.dtype in (torch.float16, torch.bfloat16) else function(x)

    return evaluate


def _ndtr(x: torch.Tensor) -> torch.Tensor:
    """The normal distribution function as GELU writes it, which rounds once more than torch.special.ndtr at x < -1."""
    return 0.5 * (1.0 + torch.erf(x * math.sqrt(0.5)))


for _name, _function, _cost in (
    ("neg", torch.neg, 1),
    ("abs", torch.abs, 1),
    ("sign", torch.sgn, 2),
    ("floor", torch.floor, 1),
    ("ceil", torch.ceil, 1),
    ("trunc", torch.trunc, 1),
    ("round", torch.round, 1),  # half to even
    ("exp", torch.exp, 4),
    ("exp2", torch.exp2, 3),
    ("expm1", torch.expm1, 12),
    ("log", torch.log, 4),
    ("log2", torch.log2, 3),
    ("log10", torch.log10, 5),
    ("log1p", torch.log1p, 12),
    ("sqrt", torch.sqrt, 4),
    ("rsqrt", torch.rsqrt, 3),
    ("reciprocal", torch.reciprocal, 4),
    ("sigmoid", torch.sigmoid, 8),
    ("sin", torch.sin, 20),
    ("cos", torch.cos, 20),
    ("tan", torch.tan, 25),
    ("asin", torch.asin, 20),
    ("acos", torch.acos, 20),
    ("atan", torch.atan, 20),
    ("sinh", torch.sinh, 20),
    ("cosh", torch.cosh, 20),
    ("tanh", torch.tanh, 10),
    ("asinh", torch.asinh, 25),
    ("acosh", torch.acosh, 25),
    ("atanh", torch.atanh, 25),
    ("erf", torch.erf, 15),
    ("erfc", torch.erfc, 20),
    ("erfinv", torch.erfinv, 25),
    ("lgamma", torch.lgamma, 40),
    ("digamma", torch.digamma, 60),
    ("trigamma", _trigamma, 40),
    ("i0", torch.special.i0, 30),
    ("i0e", torch.special.i0e, 40),
    ("i1", torch.special.i1, 30),
    ("i1e", torch.special.i1e, 40),
    ("erfcx", _wide(torch.special.erfcx), 30),
    ("ndtr", _ndtr, 16),
    ("ndtri", _wide(torch.special.ndtri), 30),
):
    _row(_name, 1, _function, cost=_cost)
_row("isnan", 1, torch.isnan, result=Result.BOOL)
_row("isinf", 1, torch.isinf, result=Result.BOOL)
_row("signbit", 1, torch.signbit, result=Result.BOOL)
_row("not", 1, torch.bitwise_not)  # logical on bool, bitwise on integers

# -- binary ---------------------------------------------------------------------------------------


def _floor_divide(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.div(a, b, rounding_mode="floor")


def _truncated_divide(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.div(a, b, rounding_mode="trunc")


for _name, _binary, _cost in (
    ("add", torch.add, 1),
    ("sub", torch.sub, 1),
    ("mul", torch.mul, 1),
    ("div", torch.true_divide, 6),  # floating operands
    ("floordiv", _floor_divide, 8),  # rounds toward -inf, integers and floats
    ("truncdiv", _truncated_divide, 8),  # rounds toward zero
    ("mod", torch.remainder, 10),  # sign of the divisor (Python)
    ("fmod", torch.fmod, 10),  # sign of the dividend (C)
    ("pow", torch.pow, 30),
    ("atan2", torch.atan2, 25),
    ("copysign", torch.copysign, 1),
    ("nextafter", torch.nextafter, 8),  # float32 and float64
    ("minimum", torch.minimum, 2),  # NaN if either is
    ("maximum", torch.maximum, 2),
    ("fmin", torch.fmin, 1),  # the other operand if one is NaN
    ("fmax", torch.fmax, 1),
    ("and", torch.bitwise_and, 1),
    ("or", torch.bitwise_or, 1),
    ("xor", torch.bitwise_xor, 1),
    ("shl", torch.bitwise_left_shift, 1),
    ("shr", torch.bitwise_right_shift, 1),
):
    _row(_name, 2, _binary, cost=_cost)
for _name, _comparison in (
    ("eq", torch.eq),
    ("ne", torch.ne),
    ("lt", torch.lt),
    ("le", torch.le),
    ("gt", torch.gt),
    ("ge", torch.ge),
):
    _row(_name, 2, _comparison, result=Result.BOOL)

_row("where", 3, torch.where)  # where(condition: bool, a, b); dtype of a and b
# (seed, index, word 0..3), int64 -> 32 random bits, int32. A block is 60 instructions, and four elements share one.
_row("philox", 3, philox, result=Result.FREE, cost=20)

_row("checked", 2, None, kind=OpKind.CHECK)  # args: condition, value; IndexError where the condition does not hold

# -- reductions -----------------------------------------------------------------------------------
# attrs: axes. evaluate(value, dims) keeps the reduced dimensions with size 1.


def _prod(value: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    for d in dims:
        value = torch.prod(value, dim=d, keepdim=True)
    return value


def _arg_extreme(find: Any) -> Evaluate:
    # args: value, position (int64, broadcastable). The position of the first extreme in the order of positions.
    def evaluate(value: torch.Tensor, position: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
        best = find(value, dim=dims, keepdim=True)
        hit = (value == best) | (value != value)  # NaN is the extreme wherever there is one
        far = torch.iinfo(torch.int64).max
        return torch.where(hit, position, far).amin(dim=dims, keepdim=True)

    return evaluate


for _name, _reduce, _arity in (
    ("sum", lambda v, dims: torch.sum(v, dim=dims, keepdim=True, dtype=v.dtype), 1),
    ("prod", _prod, 1),
    ("max", lambda v, dims: torch.amax(v, dim=dims, keepdim=True), 1),  # NaN if any is
    ("min", lambda v, dims: torch.amin(v, dim=dims, keepdim=True), 1),
    ("any", lambda v, dims: torch.any(v, dim=dims, keepdim=True), 1),  # bool operand
    ("all", lambda v, dims: torch.all(v, dim=dims, keepdim=True), 1),
):
    _row(_name, _arity, _reduce, kind=OpKind.REDUCTION)


def _exp_sum(value: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    # sum of exp(x - max x): a softmax's denominator, computed online where rows are looped
    return torch.exp(value - torch.amax(value, dim=dims, keepdim=True)).sum(dim=dims, keepdim=True)


def _dev_sum(value: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    # sum of (x - mean x)^2: a variance before it is divided, in one pass where rows are looped
    centred = value - torch.mean(value, dim=dims, keepdim=True)
    return (centred * centred).sum(dim=dims, keepdim=True)


_row("exp_sum", 1, _exp_sum, kind=OpKind.REDUCTION, cost=10)
_row("dev_sum", 1, _dev_sum, kind=OpKind.REDUCTION, cost=4)
# a sum over a count, which must lose nothing where the values are large and near each other
_row("mean", 1, lambda v, dims: torch.mean(v, dim=dims, keepdim=True), kind=OpKind.REDUCTION, cost=4)
MOMENTS = ("dev_sum", "mean")  # both come from one state of a loop, and take two steps over a row in registers
_row("argmax", 2, _arg_extreme(torch.amax), kind=OpKind.REDUCTION, result=Result.INDEX, cost=3)
_row("argmin", 2, _arg_extreme(torch.amin), kind=OpKind.REDUCTION, result=Result.INDEX, cost=3)


# -- scans ----------------------------------------------------------------------------------------
# attrs: axes, in row-major order. evaluate(value) runs along the last dimension, the axes flattened; inclusive.


def _arg_scan(scan: Any) -> Evaluate:
    # args: value, position (int64). The position of the latest extreme so far, NaN being one.
    def evaluate(value: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        return position.gather(-1, scan(value, -1).indices)

    return evaluate


for _name, _scan, _cost in (
    ("cumsum", lambda v: torch.cumsum(v, -1, dtype=v.dtype), 4),
    ("cumprod", lambda v: torch.cumprod(v, -1, dtype=v.dtype), 4),
    ("cummax", lambda v: torch.cummax(v, -1).values, 8),  # NaN from the first one on
    ("cummin", lambda v: torch.cummin(v, -1).values, 8),
    ("logcumsumexp", lambda v: torch.logcumsumexp(v, -1), 40),
):
    _row(_name, 1, _scan, kind=OpKind.SCAN, cost=_cost)
_row("cumargmax", 2, _arg_scan(torch.cummax), kind=OpKind.SCAN, result=Result.INDEX, cost=12)
_row("cumargmin", 2, _arg_scan(torch.cummin), kind=OpKind.SCAN, result=Result.INDEX, cost=12)

TAKES_POSITIONS = ("argmax", "argmin", "cumargmax", "cumargmin")
_REDUCTION_OF = {
    "cumsum": "sum", "cumprod": "prod", "cummax": "max", "cummin": "min", "logcumsumexp": "max", "cumargmax": "max",
    "cumargmin": "min",
}  # fmt: skip


def is_reduction(op: str) -> bool:
    return OPS[op].kind is OpKind.REDUCTION


def is_scan(op: str) -> bool:
    return OPS[op].kind is OpKind.SCAN


def is_negative_zero(value: object) -> bool:
    """Of the two zeros the one that no constant line holds: Triton's constants, and equality, know only the other."""
    return isinstance(value, float) and value == 0.0 and math.copysign(1.0, value) < 0.0


def identity(op: str, dtype: torch.dtype) -> int | float | bool:
    """The value that leaves a reduction unchanged: what masked-out points contribute. Of a scan: where it starts."""
    op = _REDUCTION_OF.get(op, op)
    if op in ("sum", "any", "dev_sum", "mean"):
        return False if dtype is torch.bool else 0
    if op in ("prod", "all"):
        return True if dtype is torch.bool else 1
    lowest: float | int
    highest: float | int
    if dtype is torch.bool:
        lowest, highest = False, True
    elif dtype.is_floating_point:
        lowest, highest = float("-inf"), float("inf")
    else:
        info = torch.iinfo(dtype)
        lowest, highest = info.min, info.max
    if op in ("max", "argmax", "exp_sum"):
        return lowest
    if op in ("min", "argmin"):
        return highest
    raise KeyError(
        f"{op!r} is not a reduction; reductions are sum, prod, max, min, any, all, exp_sum, dev_sum, mean, argmax and "
        "argmin"
    )
