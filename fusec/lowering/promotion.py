"""Type promotion: PyTorch's rules for the dtype in which a pointwise op computes, and the target's for 8-bit floats.

int64[8] + 1.5          computes in float32, gives float32
bf16[8] + f32[]         computes in float32, gives bf16 (a 0-dim tensor does not widen its category)
int64[8] / int64[8]     computes in float32
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND as Kind
from torch._prims_common import elementwise_dtypes

from fusec.ir.index import Expr
from fusec.lowering.builder import compute_dtype
from fusec.lowering.ref import Ref
from fusec.lowering.symbols import SymbolicFloat

# torch._prims_common: checked with torch 2.11.0 and 2.13.0.


@lru_cache(maxsize=4096)
def _promoted(operands: tuple[Any, ...], kind: Kind) -> torch.dtype:
    samples = [
        torch.empty((1,) if o[1] else (), dtype=o[0], device="meta") if isinstance(o, tuple) else o(1) for o in operands
    ]
    _, result = elementwise_dtypes(*samples, type_promotion_kind=Kind.DEFAULT)
    if kind is Kind.INT_TO_FLOAT and not (result.is_floating_point or result.is_complex):
        return torch.get_default_dtype()
    return result


def common_dtype(operands: tuple[Any, ...], kind: Kind = Kind.DEFAULT) -> torch.dtype:
    """The dtype operands are brought to: Refs and Python numbers, None is skipped."""
    numbers = {Expr: int, SymbolicFloat: float}
    key = tuple(
        (o.dtype, o.ndim > 0) if isinstance(o, Ref) else numbers.get(type(o), type(o))
        for o in operands
        if o is not None
    )
    return _promoted(key, kind)


def converts_float8(target: str | None, device: str) -> bool:
    """True when kernels for `target` on `device` may convert to and from 8-bit floats.

    Triton has the conversions of sm_89 and later; before, the op stays a library call. The interpreter has them all.
    """
    if target is not None and target.startswith("sm_") and int(target.removeprefix("sm_")) < 89:
        return False
    if target != "cuda" and not device.startswith("cuda"):
        return True
    if torch.cuda.is_available():
        return torch.cuda.get_device_capability(device if device.startswith("cuda") else None) >= (8, 9)
    return target is not None and target.startswith("sm_")


__all__ = ["Kind", "common_dtype", "compute_dtype", "converts_float8"]
