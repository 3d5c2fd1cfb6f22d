import triton
import triton.language as tl

from fusec.kernels import device

# fused_add_layer_norm: looped row, XBLOCK=1 RBLOCK=4096, 4 warps
#
# model.py:40  h = self.norm(x + residual)
# ops          add, native_layer_norm
# reads        x_ptr: bf16[64, 20000] (20000, 1)
#              residual_ptr: bf16[64, 20000] (20000, 1)
#              layernorm_weight_ptr: bf16[20000] (1)
#              layernorm_bias_ptr: bf16[20000] (1)
# writes       out_ptr: bf16[64, 20000] (20000, 1)
# bytes        4.1 kB read, 4.1 kB written
# boundary     its result leaves the graph
@triton.jit
def fused_add_layer_norm(
    x_ptr,
    residual_ptr,
    layernorm_weight_ptr,
    layernorm_bias_ptr,
    out_ptr,
    XBLOCK: tl.constexpr,
    RBLOCK: tl.constexpr,
):
    row = tl.program_id(0) * XBLOCK + tl.arange(0, XBLOCK)[:, None]

    total_acc = tl.full([XBLOCK, RBLOCK], 0.0, tl.float32)
    for col_start in range(0, 20000, RBLOCK):
        col = col_start + tl.arange(0, RBLOCK)[None, :]
        offset = 20000 * row + col
        col_mask = col < 20000
        x = tl.load(x_ptr + offset, col_mask, 0.0, eviction_policy="evict_last").to(tl.float32)
        residual = tl.load(residual_ptr + offset, col_mask, 0.0, eviction_policy="evict_last").to(tl.float32)
        total_acc += x + residual
    mean = device.sum(total_acc, 1) / 20000.0

    total_acc_1 = tl.full([XBLOCK, RBLOCK], 0.0, tl.float32)
    for col_start in range(0, 20000, RBLOCK):
        col = col_start + tl.arange(0, RBLOCK)[None, :]
        offset = 20000 * row + col
        col_mask = col < 20000
        x = tl.load(x_ptr + offset, col_mask, eviction_policy="evict_last").to(tl.float32)
        residual = tl.load(residual_ptr + offset, col_mask, eviction_policy="evict_last").to(tl.float32)
        centered = x + residual - mean
        total_acc_1 += tl.where(col_mask, centered * centered, 0.0)
    var = device.sum(total_acc_1, 1) / 20000.0

    rstd = tl.rsqrt(var + 1e-05)
    for col_start in range(0, 20000, RBLOCK):
        col = col_start + tl.arange(0, RBLOCK)[None, :]
        offset = 20000 * row + col
        col_mask = col < 20000
        x = tl.load(x_ptr + offset, col_mask, eviction_policy="evict_first").to(tl.float32)
        residual = tl.load(residual_ptr + offset, col_mask, eviction_policy="evict_first").to(tl.float32)
        layernorm_weight = tl.load(layernorm_weight_ptr + col, col_mask, eviction_policy="evict_last").to(tl.float32)
        layernorm_bias = tl.load(layernorm_bias_ptr + col, col_mask, eviction_policy="evict_last").to(tl.float32)
        add = (x + residual - mean) * rstd * layernorm_weight + layernorm_bias
        tl.store(out_ptr + offset, add, col_mask)
