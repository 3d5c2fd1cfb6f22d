import triton
import triton.language as tl

from fusec.kernels import device

# fused_add_layer_norm: persistent row, XBLOCK=1 RBLOCK=1024, 4 warps
#
# model.py:40  h = self.norm(x + residual)
# ops          add, native_layer_norm
# reads        x_ptr: bf16[64, 768] (768, 1)
#              residual_ptr: bf16[64, 768] (768, 1)
#              layernorm_weight_ptr: bf16[768] (1)
#              layernorm_bias_ptr: bf16[768] (1)
# writes       out_ptr: bf16[64, 768] (768, 1)
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
    col = tl.arange(0, RBLOCK)[None, :]
    col_mask = col < 768
    offset = 768 * row + col

    x = tl.load(x_ptr + offset, col_mask, 0.0).to(tl.float32)
    residual = tl.load(residual_ptr + offset, col_mask, 0.0).to(tl.float32)
    add = x + residual
    mean = device.sum(add, 1) / 768.0
    centered = add - mean
    var = device.sum(tl.where(col_mask, centered * centered, 0.0), 1) / 768.0
    rstd = tl.rsqrt(var + 1e-05)
    layernorm_weight = tl.load(layernorm_weight_ptr + col, col_mask).to(tl.float32)
    layernorm_bias = tl.load(layernorm_bias_ptr + col, col_mask).to(tl.float32)
    tl.store(out_ptr + offset, centered * rstd * layernorm_weight + layernorm_bias, col_mask)
