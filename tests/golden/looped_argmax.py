import triton
import triton.language as tl

from fusec.kernels import device

# argmax_kernel: looped row, XBLOCK=1 RBLOCK=2048, 4 warps
#
# model.py:90  token = logits.argmax(-1)
# ops          argmax
# reads        logits_ptr: f32[4, 50257] (50257, 1)
# writes       out_ptr: i64[4] (1)
# bytes        4.1 kB read, 4.1 kB written
# boundary     its result leaves the graph
@triton.jit
def argmax_kernel(logits_ptr, out_ptr, XBLOCK: tl.constexpr, RBLOCK: tl.constexpr):
    row = tl.program_id(0) * XBLOCK + tl.arange(0, XBLOCK)[:, None]

    argmax_acc = tl.full([XBLOCK, RBLOCK], float("-inf"), tl.float32)
    argmax_at = tl.full([XBLOCK, RBLOCK], 9223372036854775807, tl.int64)
    for col_start in range(0, 50257, RBLOCK):
        col = col_start + tl.arange(0, RBLOCK)[None, :]
        col_mask = col < 50257
        logits = tl.load(logits_ptr + 50257 * row + col, col_mask)
        candidates = tl.where(col_mask, logits, float("-inf"))
        positions = tl.where(col_mask, col.to(tl.int64), 9223372036854775807)
        argmax_acc, argmax_at = device.larger(argmax_acc, argmax_at, candidates, positions)
    tl.store(out_ptr + row, device.argmax(argmax_acc, argmax_at, 1))
