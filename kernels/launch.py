"""What the yardsticks share: how a row is cut into a tile, and what a launcher accepts.

    row_tile(4096, torch.bfloat16)    ->  RowTile(block=4096, rows=1, warps=8, persistent=True)
    row_tile(131072, torch.bfloat16)  ->  RowTile(block=16384, rows=1, warps=32, persistent=False)

A persistent tile holds the whole row in registers, 16 or 32 values a thread. Beyond 64 KiB a row and what is
computed from it need more than the 64 registers that 1,024 threads have each, so the kernel loops.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

PERSISTENT_BYTES = 65536
LOOP_BLOCK = 16384
_WARP = 32
_SMALL_TILE = 2048  # values a program of four warps holds when rows are short


@dataclass(frozen=True, slots=True)
class RowTile:
    """block: columns at a time. rows: rows of one program. persistent: one block covers the row."""

    block: int
    rows: int
    warps: int
    persistent: bool


def row_tile(columns: int, dtype: torch.dtype, persistent_bytes: int = PERSISTENT_BYTES) -> RowTile:
    """The tile for rows of this many columns; rows of more than `persistent_bytes` are read block by block."""
    if columns * dtype.itemsize > persistent_bytes:
        block = min(LOOP_BLOCK, triton.next_power_of_2(columns))
        return RowTile(block, 1, _warps(block, 16), False)
    block = triton.next_power_of_2(columns)
    if block <= _SMALL_TILE:
        return RowTile(block, _SMALL_TILE // block, 4, True)
    return RowTile(block, 1, _warps(block, 16 if block <= 4096 else 32), True)


def _warps(block: int, values_a_thread: int) -> int:
    return max(4, min(32, block // (_WARP * values_a_thread)))


def as_rows(x: torch.Tensor, op: str) -> torch.Tensor:
    """x as a 2-D view of its last dimension; ValueError where that would need a copy."""
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"{op} takes float32, bfloat16 or float16, got {x.dtype}")
    if x.dim() == 0 or (x.shape[-1] > 1 and x.stride(-1) != 1):
        raise ValueError(f"{op} needs a last dimension with stride 1, got shape {tuple(x.shape)}, strides {x.stride()}")
    try:
        return x.view(-1, x.shape[-1]) if x.numel() else x.new_empty(0, x.shape[-1])
    except RuntimeError:
        raise ValueError(f"{op} needs rows at one stride, got shape {tuple(x.shape)}, strides {x.stride()}") from None


def check_vector(v: torch.Tensor, columns: int, name: str, op: str) -> None:
    """`v` scales or shifts columns: contiguous, one value a column."""
    if v.shape != (columns,) or not v.is_contiguous():
        raise ValueError(f"{op}: {name} must be contiguous with shape ({columns},), got {tuple(v.shape)}")


__all__ = ["LOOP_BLOCK", "PERSISTENT_BYTES", "RowTile", "as_rows", "check_vector", "row_tile"]
