"""softmax over the last dimension: y = exp(x - max(x)) / sum(exp(x - max(x))).

Enters: float32, bfloat16 or float16, rows with stride 1. Leaves: a contiguous tensor of the same dtype.

Up to 64 KiB the row stays in registers: one read, one write. Longer rows are read twice, the
first time with the online rule (Milakov and Gimelshein, 2018): with m' = max(m, max(block)),

    s' = s * exp(m - m') + sum(exp(block - m'))

The second pass runs backwards, so it begins with what the first pass left in the caches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fusec.kernels.launch import PERSISTENT_BYTES, as_rows, row_tile

__all__ = ["softmax"]


@triton.jit
def softmax_persistent(x_ptr, y_ptr, n_rows, n_cols, x_stride, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    cols = tl.arange(0, BLOCK)[None, :]
    mask = (rows < n_rows) & (cols < n_cols)
    x = tl.load(x_ptr + rows * x_stride + cols, mask=mask, other=float("-inf")).to(tl.float32)
    e = tl.exp(x - tl.max(x, axis=1, keep_dims=True))
    y = e * (1.0 / tl.sum(e, axis=1, keep_dims=True))
    tl.store(y_ptr + rows * n_cols + cols, y, mask=mask)


@triton.jit
def softmax_looped(x_ptr, y_ptr, n_cols, x_stride, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    x_row = x_ptr + row * x_stride
    y_row = y_ptr + row * n_cols
    cols = tl.arange(0, BLOCK)

    peak = tl.full([], float("-inf"), tl.float32)
    parts = tl.zeros([BLOCK], tl.float32)
    for start in range(0, n_cols, BLOCK):
        at = start + cols
        x = tl.load(x_row + at, mask=at < n_cols, other=float("-inf"), eviction_policy="evict_last").to(tl.float32)
        higher = tl.maximum(peak, tl.max(x, axis=0))
        shift = tl.where(higher == float("-inf"), 0.0, higher)  # -inf - -inf would be NaN before any finite value
        parts = parts * tl.exp(peak - shift) + tl.exp(x - shift)
        peak = higher
    scale = 1.0 / tl.sum(parts, axis=0)

    blocks = tl.cdiv(n_cols, BLOCK)
    for i in range(blocks):
        at = (blocks - 1 - i) * BLOCK + cols
        x = tl.load(x_row + at, mask=at < n_cols, other=float("-inf"), eviction_policy="evict_first").to(tl.float32)
        tl.store(y_row + at, tl.exp(x - peak) * scale, mask=at < n_cols)


def softmax(x: torch.Tensor, persistent_bytes: int = PERSISTENT_BYTES) -> torch.Tensor:
    """softmax(x, dim=-1); rows of more than `persistent_bytes` take the looped kernel."""
    rows = as_rows(x, "softmax")
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return y
    n_rows, n_cols = rows.shape
    tile = row_tile(n_cols, x.dtype, persistent_bytes)
    if tile.persistent:
        grid = (triton.cdiv(n_rows, tile.rows),)
        softmax_persistent[grid](
            rows, y, n_rows, n_cols, rows.stride(0), ROWS=tile.rows, BLOCK=tile.block, num_warps=tile.warps
        )
    else:
        softmax_looped[(n_rows,)](rows, y, n_cols, rows.stride(0), BLOCK=tile.block, num_warps=tile.warps)
    return y
