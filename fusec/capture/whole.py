"""Ops that PyTorch's tracing rewrites by itself, whatever table of decompositions it is given, kept whole.

    with upsampling_whole(inputs):
        aot_autograd(...)(graph, inputs)

While a graph is traced, upsampling becomes a gather at computed positions. Its gradient is then an index_put that adds
atomically into float32 memory: three launches that move two to seven times the bytes. Lowering knows which outputs each
element went into (`lowering/interpolate.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._C import DispatchKey

# torch._ops.OpOverload.py_kernels, _dispatch_cache: checked with torch 2.11.0 and 2.13.0.

aten = torch.ops.aten

_PACKETS = """
    upsample_nearest1d upsample_nearest2d upsample_nearest3d
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d
"""
_KEYS = (DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd)


@contextmanager
def upsampling_whole(inputs: Sequence[Any]) -> Iterator[None]:
    """Upsampling is traced as the op it is, unless a size of the inputs is known only at run time.

    Lowering then has no table of outputs, and the rewrite, which it can lower, is the better form.
    """
    if any(_has_symbols(x) for x in inputs):
        yield
        return
    packets = [getattr(aten, name) for name in _PACKETS.split()]
    ops = [getattr(p, overload) for p in packets for overload in ("default", "vec") if overload in p.overloads()]
    taken = [(op, key, op.py_kernels.pop(key)) for op in ops for key in _KEYS if key in op.py_kernels]
    for op in ops:
        op._dispatch_cache.clear()
    try:
        yield
    finally:
        for op, key, kernel in taken:
            op.py_kernels[key] = kernel
        for op in ops:
            op._dispatch_cache.clear()


def _has_symbols(x: Any) -> bool:
    if isinstance(x, torch.Tensor):
        return any(isinstance(n, torch.SymInt) for n in x.shape)
    return isinstance(x, torch.SymInt | torch.SymFloat)
