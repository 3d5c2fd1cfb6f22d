"""The text of reductions: one call over a tile, or an accumulator that a loop combines into.

    persistent    total = device.sum(x, 1)
    looped        total_acc = tl.full([XBLOCK, RBLOCK], 0.0, tl.float32)
                  for col_start in range(0, 4096, RBLOCK):
                      total_acc += x
                  total = device.sum(total_acc, 1)

Sums and products of float16 and bfloat16 accumulate in float32, those of narrow integers in int32; the result is
converted back.
"""

from __future__ import annotations

import torch

from fusec.codegen.text import Text, call
from fusec.codegen.tiles import Dim
from fusec.codegen.triton import convert, dtype_text, literal
from fusec.ir.ops import MOMENTS, identity
from fusec.ir.types import Instr

_LOW_PRECISION = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
_NARROW_INTEGERS = (torch.int8, torch.int16, torch.uint8, torch.uint16)
_AUGMENTED = {"sum": "+=", "prod": "*=", "any": "|=", "all": "&="}
_BOOL = {"sum": "any", "max": "any", "prod": "all", "min": "all"}


def accumulator_dtype(op: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype a reduction of `dtype` computes in."""
    if dtype in _LOW_PRECISION:
        return torch.float32
    if dtype in _NARROW_INTEGERS and op in ("sum", "prod"):
        return torch.int32
    return dtype


def _op(instr: Instr, dtype: torch.dtype) -> str:
    """On bools a sum or max is any, a product or min is all."""
    return _BOOL.get(instr.op, instr.op) if dtype is torch.bool else instr.op


def axis_argument(dim: Dim) -> tuple[str, ...]:
    """The axis of a reduction along one dimension of a tile; () of a tile that has one."""
    return () if dim.rank == 1 else (str(dim.position),)


def reduce_call(instr: Instr, operands: list[Text], dim: Dim, dtype: torch.dtype) -> Text:
    """The call that reduces one dimension of tiles; `dtype` is the operand's."""
    result = call(f"device.{_op(instr, dtype)}", *(o.text for o in operands), *axis_argument(dim))
    if instr.op in ("argmax", "argmin"):
        return result
    return convert(result, accumulator_dtype(instr.op, dtype), instr.dtype)


def initial(instr: Instr, names: list[str], shape: str, dtype: torch.dtype) -> list[str]:
    """Accumulators of that shape holding the identity."""
    wide = accumulator_dtype(instr.op, dtype)
    neutral = literal(identity(instr.op, dtype), wide)
    lines = [f"{names[0]} = tl.full({shape}, {neutral.text}, {dtype_text(wide)})"]
    if instr.op in ("exp_sum", *MOMENTS):
        lines += [f"{name} = tl.full({shape}, 0.0, {dtype_text(wide)})" for name in names[1:]]
    elif len(names) > 1:
        lines.append(f"{names[1]} = tl.full({shape}, {2**63 - 1}, tl.int64)")
    return lines


def combine(
    instr: Instr, names: list[str], operands: list[Text], dtype: torch.dtype, mask: str = "", step: str = ""
) -> list[str]:
    """One iteration: the accumulators take in the tile's operands.

    mask, step: where the tile lies inside the row, and the iteration's number. Only moments have need of them: no
    operand leaves a mean unchanged.
    """
    op = _op(instr, dtype)
    if op in _AUGMENTED:
        return [f"{names[0]} {_AUGMENTED[op]} {operands[0].text}"]
    if op in ("argmax", "argmin"):
        better = "larger" if op == "argmax" else "smaller"
        both = f"{names[0]}, {names[1]}"
        return [f"{both} = device.{better}({both}, {operands[0].text}, {operands[1].text})"]
    if op == "exp_sum":
        both = f"{names[0]}, {names[1]}"
        return [f"{both} = device.exp_sum_step({both}, {operands[0].text})"]
    if op in MOMENTS:
        state = ", ".join(names)
        return [f"{state} = device.moments_step({state}, {operands[0].text}, {mask or True}, {step})"]
    library = "device" if dtype.is_floating_point else "tl"
    return [f"{names[0]} = {library}.{op}imum({names[0]}, {operands[0].text})"]


def finish(instr: Instr, names: list[str], dim: Dim, dtype: torch.dtype) -> Text:
    """After the loop: reduce the accumulators themselves."""
    if instr.op in ("exp_sum", *MOMENTS):
        result = call(f"device.{instr.op}_of", *names, *axis_argument(dim))
        return convert(result, accumulator_dtype(instr.op, dtype), instr.dtype)
    return reduce_call(instr, [Text(n) for n in names], dim, dtype)
