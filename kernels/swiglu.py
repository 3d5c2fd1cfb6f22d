"""swiglu: y = silu(gate) * up = gate / (1 + exp(-gate)) * up (Shazeer, 2020).

Enters: two contiguous tensors of one shape and dtype, float32, bfloat16 or float16. Leaves: a contiguous
tensor of the same. Float32 arithmetic, rounded once: two reads and one write, 16 bytes at a time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["swiglu"]

BLOCK = 4096
WARPS = 8  # 16 values a thread: two 16-byte loads of each bfloat16 operand in flight


@triton.jit
def swiglu_flat(gate_ptr, up_ptr, y_ptr, n, BLOCK: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    at = program * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    gate = tl.load(gate_ptr + at, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
    up = tl.load(up_ptr + at, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
    tl.store(y_ptr + at, gate / (1.0 + tl.exp(-gate)) * up, mask=mask)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up."""
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(
            f"swiglu takes two tensors alike, got {tuple(gate.shape)} {gate.dtype} and {tuple(up.shape)} {up.dtype}"
        )
    if gate.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"swiglu takes float32, bfloat16 or float16, got {gate.dtype}")
    if not (gate.is_contiguous() and up.is_contiguous()):
        raise ValueError(f"swiglu needs contiguous tensors, got strides {gate.stride()} and {up.stride()}")
    y = torch.empty_like(gate)
    n = gate.numel()
    if n:
        # The last block reaches past n: offsets need 64 bits as soon as its end does.
        wide = n + BLOCK > 2**31 - 1
        swiglu_flat[(triton.cdiv(n, BLOCK),)](gate, up, y, n, BLOCK=BLOCK, WIDE=wide, num_warps=WARPS)
    return y
