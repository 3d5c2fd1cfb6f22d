"""layer_norm over the last dimension: y = (x - mean) / sqrt(var + eps) * weight + bias.

Enters: x in float32, bfloat16 or float16, rows with stride 1; weight and bias with one value a column,
both or neither. Leaves: a contiguous tensor of x's dtype. Arithmetic is float32, rounded once.

Up to 64 KiB the row stays in registers, and the variance is that of x - mean. Longer rows are
read twice: the first pass keeps Welford's mean and sum of squared deviations for every lane of the block,

    delta = x - mean;  mean' = mean + delta / n;  m2' = m2 + delta * (x - mean')

without a barrier in the loop, and joins the lanes once (Chan, Golub and LeVeque, 1979).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fusec.kernels.launch import PERSISTENT_BYTES, as_rows, check_vector, row_tile

__all__ = ["layer_norm"]


@triton.jit
def layer_norm_persistent(  # type: ignore[no-untyped-def]
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    n_rows,
    n_cols,
    x_stride,
    eps,
    AFFINE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    cols = tl.arange(0, BLOCK)[None, :]
    live = cols < n_cols
    mask = (rows < n_rows) & live
    x = tl.load(x_ptr + rows * x_stride + cols, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=1, keep_dims=True) / n_cols
    centred = tl.where(live, x - mean, 0.0)
    variance = tl.sum(centred * centred, axis=1, keep_dims=True) / n_cols
    y = centred * (1.0 / tl.sqrt_rn(variance + eps))
    if AFFINE:
        weight = tl.load(weight_ptr + cols, mask=live, other=0.0, eviction_policy="evict_last").to(tl.float32)
        bias = tl.load(bias_ptr + cols, mask=live, other=0.0, eviction_policy="evict_last").to(tl.float32)
        y = y * weight + bias
    tl.store(y_ptr + rows * n_cols + cols, y, mask=mask)


@triton.jit
def layer_norm_looped(  # type: ignore[no-untyped-def]
    x_ptr, weight_ptr, bias_ptr, y_ptr, n_cols, x_stride, eps, AFFINE: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    x_row = x_ptr + row * x_stride
    y_row = y_ptr + row * n_cols
    cols = tl.arange(0, BLOCK)

    lane_mean = tl.zeros([BLOCK], tl.float32)
    lane_m2 = tl.zeros([BLOCK], tl.float32)
    count = 0.0
    for start in range(0, n_cols, BLOCK):
        at = start + cols
        mask = at < n_cols
        x = tl.load(x_row + at, mask=mask, other=0.0, eviction_policy="evict_last").to(tl.float32)
        count += 1.0
        delta = tl.where(mask, x - lane_mean, 0.0)
        lane_mean += delta * (1.0 / count)
        lane_m2 += delta * tl.where(mask, x - lane_mean, 0.0)
    # Lane j saw the columns j, j + BLOCK, ...: ceil((n_cols - j) / BLOCK) of them.
    lane_count = tl.maximum((n_cols - cols + BLOCK - 1) // BLOCK, 0).to(tl.float32)
    mean = tl.sum(lane_mean * lane_count, axis=0) / n_cols
    spread = lane_mean - mean
    variance = tl.sum(lane_m2 + lane_count * spread * spread, axis=0) / n_cols
    scale = 1.0 / tl.sqrt_rn(variance + eps)

    blocks = tl.cdiv(n_cols, BLOCK)
    for i in range(blocks):
        at = (blocks - 1 - i) * BLOCK + cols
        mask = at < n_cols
        x = tl.load(x_row + at, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
        y = (x - mean) * scale
        if AFFINE:
            weight = tl.load(weight_ptr + at, mask=mask, other=0.0, eviction_policy="evict_last").to(tl.float32)
            bias = tl.load(bias_ptr + at, mask=mask, other=0.0, eviction_policy="evict_last").to(tl.float32)
            y = y * weight + bias
        tl.store(y_row + at, y, mask=mask)


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    persistent_bytes: int = PERSISTENT_BYTES,
) -> torch.Tensor:
    """layer_norm(x, x.shape[-1:], weight, bias, eps); rows over `persistent_bytes` are looped over."""
    rows = as_rows(x, "layer_norm")
    if (weight is None) != (bias is None):
        raise ValueError("layer_norm takes weight and bias together, or neither")
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None:
            check_vector(vector, x.shape[-1], name, "layer_norm")
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return y
    n_rows, n_cols = rows.shape
    tile = row_tile(n_cols, x.dtype, persistent_bytes)
    affine = weight is not None
    scale, shift = (weight, bias) if affine else (rows, rows)
    if tile.persistent:
        grid = (triton.cdiv(n_rows, tile.rows),)
        args = (rows, scale, shift, y, n_rows, n_cols, rows.stride(0), eps)
        layer_norm_persistent[grid](*args, AFFINE=affine, ROWS=tile.rows, BLOCK=tile.block, num_warps=tile.warps)
    else:
        looped = (rows, scale, shift, y, n_cols, rows.stride(0), eps)
        layer_norm_looped[(n_rows,)](*looped, AFFINE=affine, BLOCK=tile.block, num_warps=tile.warps)
    return y
