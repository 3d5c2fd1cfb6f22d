"""Python numbers as a dtype holds them, without making tensors.

converted(300, torch.uint8)        -> 44          # integers wrap
converted(2.7, torch.int64)        -> 2           # toward zero
converted(0.1, torch.bfloat16)     -> 0.10009765625
"""

from __future__ import annotations

import math
import struct

import torch

Number = bool | int | float


def converted(value: Number, dtype: torch.dtype) -> Number:
    """The number that a scalar of this dtype holds after PyTorch's conversion; float32 keeps its float64 digits."""
    if dtype is torch.bool:
        return bool(value)
    if dtype is torch.bfloat16:
        return _bfloat16(float(value))
    if dtype is torch.float16:
        return _float16(float(value))
    if dtype.is_floating_point:
        return float(value)
    info = torch.iinfo(dtype)
    span = 1 << info.bits
    return (int(value) - info.min) % span + info.min


def _float32_bits(value: float) -> int:
    try:
        bits: int = struct.unpack("<I", struct.pack("<f", value))[0]
    except OverflowError:  # past the largest float32
        bits = 0x7F800000 if value > 0 else 0xFF800000
    return bits


def _bfloat16(value: float) -> float:
    """Rounded to float32, then half to even to the upper 16 bits."""
    if math.isnan(value):
        return value
    bits = _float32_bits(value)
    kept = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    result: float = struct.unpack("<f", struct.pack("<I", kept))[0]
    return result


def _float16(value: float) -> float:
    single = struct.unpack("<f", struct.pack("<I", _float32_bits(value)))[0]
    try:
        result: float = struct.unpack("<e", struct.pack("<e", single))[0]
    except OverflowError:  # past the largest float16
        result = math.copysign(math.inf, value)
    return result
