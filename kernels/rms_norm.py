"""rms_norm over the last dimension: y = x / sqrt(mean(x^2) + eps) * weight.

Enters: x in float32, bfloat16 or float16, rows with stride 1; weight with one value a column, or None.
Leaves: a contiguous tensor of x's dtype. All arithmetic is float32; the result is rounded once.

Up to 64 KiB the row stays in registers: one read, one write. Longer rows are read twice; the
second pass runs backwards, so it begins with what the first pass left in the caches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fusec.kernels.launch import PERSISTENT_BYTES, as_rows, check_vector, row_tile

__all__ = ["rms_norm"]


@triton.jit
def rms_norm_persistent(  # type: ignore[no-untyped-def]
    x_ptr,
    weight_ptr,
    y_ptr,
    n_rows,
    n_cols,
    x_stride,
    eps,
    SCALED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    cols = tl.arange(0, BLOCK)[None, :]
    mask = (rows < n_rows) & (cols < n_cols)
    x = tl.load(x_ptr + rows * x_stride + cols, mask=mask, other=0.0).to(tl.float32)
    mean_square = tl.sum(x * x, axis=1, keep_dims=True) / n_cols
    y = x * (1.0 / tl.sqrt_rn(mean_square + eps))
    if SCALED:
        y *= tl.load(weight_ptr + cols, mask=cols < n_cols, other=0.0, eviction_policy="evict_last").to(tl.float32)
    tl.store(y_ptr + rows * n_cols + cols, y, mask=mask)


@triton.jit
def rms_norm_looped(  # type: ignore[no-untyped-def]
    x_ptr, weight_ptr, y_ptr, n_cols, x_stride, eps, SCALED: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    x_row = x_ptr + row * x_stride
    y_row = y_ptr + row * n_cols
    cols = tl.arange(0, BLOCK)

    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, n_cols, BLOCK):
        at = start + cols
        x = tl.load(x_row + at, mask=at < n_cols, other=0.0, eviction_policy="evict_last").to(tl.float32)
        squares += x * x
    scale = 1.0 / tl.sqrt_rn(tl.sum(squares, axis=0) / n_cols + eps)

    blocks = tl.cdiv(n_cols, BLOCK)
    for i in range(blocks):
        at = (blocks - 1 - i) * BLOCK + cols
        mask = at < n_cols
        y = tl.load(x_row + at, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32) * scale
        if SCALED:
            y *= tl.load(weight_ptr + at, mask=mask, other=0.0, eviction_policy="evict_last").to(tl.float32)
        tl.store(y_row + at, y, mask=mask)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    persistent_bytes: int = PERSISTENT_BYTES,
) -> torch.Tensor:
    """rms_norm(x, x.shape[-1:], weight, eps); rows of more than `persistent_bytes` take the looped kernel."""
    rows = as_rows(x, "rms_norm")
    if weight is not None:
        check_vector(weight, x.shape[-1], "weight", "rms_norm")
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return y
    n_rows, n_cols = rows.shape
    tile = row_tile(n_cols, x.dtype, persistent_bytes)
    scaled = weight is not None
    if tile.persistent:
        grid = (triton.cdiv(n_rows, tile.rows),)
        args = (rows, weight if scaled else rows, y, n_rows, n_cols, rows.stride(0), eps)
        rms_norm_persistent[grid](*args, SCALED=scaled, ROWS=tile.rows, BLOCK=tile.block, num_warps=tile.warps)
    else:
        looped = (rows, weight if scaled else rows, y, n_cols, rows.stride(0), eps)
        rms_norm_looped[(n_rows,)](*looped, SCALED=scaled, BLOCK=tile.block, num_warps=tile.warps)
    return y
