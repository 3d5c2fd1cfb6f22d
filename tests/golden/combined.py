import triton
import triton.language as tl


# add_kernel_part: flat, XBLOCK=1024, 4 warps
#
# model.py:7  p = p * 0.9 + g
# ops         add_0
# reads       params_ptr: f32[4096] (1)
#             grads_ptr: f32[4096] (1)
# writes      out_ptr: f32[4096] (1)
# bytes       4.1 kB read, 4.1 kB written
# boundary    its result leaves the graph
@triton.jit
def add_kernel_part(program, params_ptr, grads_ptr, out_ptr, n, XBLOCK: tl.constexpr):
    i = program * XBLOCK + tl.arange(0, XBLOCK)
    mask = i < n

    params = tl.load(params_ptr + i, mask)
    grads = tl.load(grads_ptr + i, mask)
    tl.store(out_ptr + i, params * 0.9 + grads, mask)


# add_kernel_part_1: flat, XBLOCK=1024, 4 warps
#
# model.py:7  p = p * 0.9 + g
# ops         add_2
# reads       params_ptr: f32[17] (1)
#             grads_ptr: f32[17] (1)
# writes      out_ptr: f32[17] (1)
# bytes       4.1 kB read, 4.1 kB written
# boundary    its result leaves the graph
@triton.jit
def add_kernel_part_1(program, params_ptr, grads_ptr, out_ptr, XBLOCK: tl.constexpr):
    i = program * XBLOCK + tl.arange(0, XBLOCK)
    mask = i < 17

    params = tl.load(params_ptr + i, mask)
    grads = tl.load(grads_ptr + i, mask)
    tl.store(out_ptr + i, params * 0.9 + grads, mask)


# add_kernel: 3 kernels side by side, 4 warps
#
# model.py:7  p = p * 0.9 + g
# ops         add
# parts       add_kernel_part x 2
#             add_kernel_part_1 x 1
# bytes       12.3 kB read, 12.3 kB written
# boundary    its result leaves the graph
@triton.jit
def add_kernel(
    params_ptr,
    grads_ptr,
    params_1_ptr,
    grads_1_ptr,
    params_2_ptr,
    grads_2_ptr,
    o_ptr,
    o_1_ptr,
    o_2_ptr,
    XBLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    end_0: tl.constexpr = triton.cdiv(4096, XBLOCK)
    end_1: tl.constexpr = end_0 + triton.cdiv(1008, XBLOCK)
    if program < end_1:
        if program < end_0:
            first, params, grads, out, n = 0, params_ptr, grads_ptr, o_ptr, 4096
        else:
            first, params, grads, out, n = end_0, params_1_ptr, grads_1_ptr, o_1_ptr, 1008
        add_kernel_part(program - first, params, grads, out, n, XBLOCK)
    else:
        add_kernel_part_1(program - end_1, params_2_ptr, grads_2_ptr, o_2_ptr, XBLOCK)
