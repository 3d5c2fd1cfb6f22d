"""The text of scans: one call over a tile; in a loop each block goes on from what the blocks before left.

    persistent    running = device.cumsum(x, 1)
    looped        carry = tl.full([XBLOCK, 1], 0.0, tl.float32)
                  for col_start in range(0, 4096, RBLOCK):
                      running = carry + device.cumsum(x, 1)
                      carry = device.sum(tl.where(col == col_start + RBLOCK - 1, running, 0.0), 1)

Lanes past the end come last, so what they hold reaches no lane that counts.
"""

from __future__ import annotations

import torch

from fusec.codegen.reduce import axis_argument
from fusec.codegen.text import ADD, MUL, Text, call, infix
from fusec.codegen.tiles import Dim
from fusec.codegen.triton import dtype_text, literal
from fusec.ir.ops import identity
from fusec.ir.types import Instr

_JOIN = {"cummax": "maximum", "cummin": "minimum", "logcumsumexp": "logaddexp"}
_PAIRS = {"cumargmax": "later_larger", "cumargmin": "later_smaller"}


def scan_call(instr: Instr, operands: list[Text], dim: Dim) -> Text:
    """The scan of a tile along one dimension; of a pair, the positions."""
    return call(f"device.{instr.op}", *(o.text for o in operands), str(dim.position))


def carries(instr: Instr, names: list[str], shape: str, dtype: torch.dtype) -> list[str]:
    """What holds the end of the blocks before: nothing yet."""
    lines = [f"{names[0]} = tl.full({shape}, {literal(identity(instr.op, dtype), dtype).text}, {dtype_text(dtype)})"]
    return lines + [f"{name} = tl.full({shape}, 0, tl.int64)" for name in names[1:]]


def continued(
    instr: Instr, names: list[str], carry: list[str], operands: list[Text], dim: Dim, dtype: torch.dtype
) -> list[str]:
    """One block of a loop: `names` are its values (of a pair, extremes and positions), and the carry moves on."""
    axis = str(dim.position)
    end = f"{dim.variable} == {dim.variable}_start + {dim.block} - 1"
    if instr.op in _PAIRS:
        inner = ", ".join(o.text for o in operands)
        both = ", ".join(names)
        lines = [
            f"{both} = device.{instr.op}_pairs({inner}, {axis})",
            f"{both} = device.{_PAIRS[instr.op]}({', '.join(carry)}, {both})",
        ]
    else:
        block = scan_call(instr, operands, dim)
        if instr.op in _JOIN:
            library = "tl" if instr.op != "logcumsumexp" and not dtype.is_floating_point else "device"
            joined = call(f"{library}.{_JOIN[instr.op]}", carry[0], block.text)
        else:
            symbol, level = ("+", ADD) if instr.op == "cumsum" else ("*", MUL)
            joined = infix(Text(carry[0]), symbol, block, level)
        lines = [f"{names[0]} = {joined.text}"]
    for name, held, kind in zip(names, carry, (dtype, torch.int64), strict=False):
        last = call("tl.where", end, name, literal(0, kind).text)
        lines.append(f"{held} = {call('device.sum', last.text, *axis_argument(dim)).text}")
    return lines
