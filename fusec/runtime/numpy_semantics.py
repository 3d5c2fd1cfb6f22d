"""Triton's operations on NumPy arrays, with the meaning they have on the GPU.

Enters: block values as `TensorHandle`s (a NumPy array and a Triton dtype). Leaves: the same.

The builder is Triton's own, with what differs from the GPU or is slow replaced: loads and stores go through `Memory`;
bfloat16 and 8-bit floats round to nearest even and compute in float32; minimum and maximum treat NaN as asked;
`erf` is vectorised; reductions and scans combine whole slices, log2(n) calls for n elements; libdevice functions exist.
Checked on Triton 3.6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton._C.libtriton import ir as triton_ir
from triton.runtime.interpreter import InterpreterBuilder, InterpreterOptions, TensorHandle, _get_np_dtype

from fusec.errors import IndexOutOfRange
from fusec.runtime.memory import Memory

Function = Callable[..., Any]

# Float dtypes NumPy lacks, as (torch dtype, integer dtype that carries the bits).
_CARRIED: dict[Any, tuple[torch.dtype, torch.dtype]] = {
    tl.bfloat16: (torch.bfloat16, torch.int16),
    tl.float8e4nv: (torch.float8_e4m3fn, torch.int8),
    tl.float8e5: (torch.float8_e5m2, torch.int8),
    tl.float8e4b8: (torch.float8_e4m3fnuz, torch.int8),
    tl.float8e5b16: (torch.float8_e5m2fnuz, torch.int8),
}
_TORCH_FLOAT = {tl.float16: torch.float16, tl.float32: torch.float32, tl.float64: torch.float64}

_ATOMIC: dict[Any, Any] = {
    triton_ir.ATOMIC_OP.ADD: np.add,
    triton_ir.ATOMIC_OP.FADD: np.add,
    triton_ir.ATOMIC_OP.MIN: np.minimum,
    triton_ir.ATOMIC_OP.UMIN: np.minimum,
    triton_ir.ATOMIC_OP.MAX: np.maximum,
    triton_ir.ATOMIC_OP.UMAX: np.maximum,
    triton_ir.ATOMIC_OP.AND: np.bitwise_and,
    triton_ir.ATOMIC_OP.OR: np.bitwise_or,
    triton_ir.ATOMIC_OP.XOR: np.bitwise_xor,
    triton_ir.ATOMIC_OP.XCHG: None,
}


_np_dtypes: dict[str, Any] = {}


def np_dtype(dtype: Any) -> Any:
    """The NumPy dtype that holds a Triton dtype (Triton's own function builds its table anew for every call)."""
    found = _np_dtypes.get(dtype.name)
    if found is None:
        found = _np_dtypes[dtype.name] = _get_np_dtype(dtype)
    return found


def _as_torch(array: Any) -> torch.Tensor:
    """A torch tensor over a copy that owns its memory, so that broadcast and read-only arrays are welcome."""
    return torch.from_numpy(np.array(array, order="C"))


def widen(data: Any, dtype: Any) -> Any:
    """float32 values of an array whose dtype NumPy lacks; any other array as it is."""
    if dtype == tl.bfloat16:
        return (data.astype(np.uint32) << np.uint32(16)).view(np.float32)
    carried = _CARRIED.get(dtype)
    if carried is None:
        return data
    return _as_torch(data).view(carried[0]).to(torch.float32).numpy()


def convert_float(data: Any, source: Any, target: Any) -> Any:
    """Float to float, rounding to nearest even."""
    if source == target:
        return data
    carried = _CARRIED.get(target)
    values = widen(data, source)
    if carried is None:
        return values.astype(np_dtype(target), copy=False)
    return _as_torch(values).to(carried[0]).view(carried[1]).numpy().view(np_dtype(target))


class Builder(InterpreterBuilder):  # type: ignore[misc]
    """The interpreter's operations; `memory` is the launch being run."""

    memory: Memory

    def __init__(self) -> None:
        super().__init__()
        self.options = InterpreterOptions(sanitize_overflow=False, debug=True)

    def create_get_program_id(self, axis: int) -> TensorHandle:
        return TensorHandle(np.array([self.grid_idx[axis]], dtype=np.int32), tl.int32)

    def get_bf16(self, value: float) -> TensorHandle:
        return TensorHandle(convert_float(np.array([value], dtype=np.float32), tl.float32, tl.bfloat16), tl.bfloat16)

    def create_assert(self, condition: Any, message: str) -> None:
        if not np.all(condition.data):
            raise IndexOutOfRange(message)

    # memory

    def create_load(self, ptr: Any, *_: Any) -> TensorHandle:
        dtype = ptr.get_element_ty()
        return TensorHandle(self.memory.load(ptr.data, None, None, np_dtype(dtype)), dtype)

    def create_masked_load(self, ptrs: Any, mask: Any, other: Any, *_: Any) -> TensorHandle:
        dtype = ptrs.get_element_ty()
        fill = None if other is None else other.data
        return TensorHandle(self.memory.load(ptrs.data, mask.data, fill, np_dtype(dtype)), dtype)

    def create_store(self, ptr: Any, val: Any, *_: Any) -> None:
        self._store(ptr, val, None)

    def create_masked_store(self, ptrs: Any, value: Any, mask: Any, *_: Any) -> None:
        self._store(ptrs, value, mask.data)

    def _store(self, ptrs: Any, value: Any, mask: Any) -> None:
        dtype = np_dtype(ptrs.get_element_ty())
        self.memory.store(ptrs.data, value.data.astype(dtype, copy=False), mask)

    def create_atomic_rmw(self, op: Any, ptr: Any, val: Any, mask: Any, *_: Any) -> TensorHandle:
        dtype = np_dtype(ptr.get_element_ty())
        old = self.memory.atomic(ptr.data, val.data.astype(dtype, copy=False), mask.data, _ATOMIC[op])
        return TensorHandle(old, val.dtype.scalar)

    def create_addptr(self, ptr: Any, offset: Any) -> TensorHandle:
        size = max(1, ptr.get_element_ty().primitive_bitwidth // 8)
        step = offset.data.astype(np.uint64)
        if size > 1:
            step *= np.uint64(size)
        return TensorHandle(ptr.data + step, ptr.dtype)

    # conversions

    def cast_impl(self, src: Any, dst_type: Any) -> TensorHandle:
        source, target = src.dtype.scalar, dst_type.scalar
        if source in _CARRIED or target in _CARRIED:
            if target.is_floating():
                values = src.data if source.is_floating() else src.data.astype(np.float32)
                source = source if source.is_floating() else tl.float32
                return TensorHandle(convert_float(values, source, target), target)
            return TensorHandle(widen(src.data, source).astype(np_dtype(target)), target)
        return TensorHandle(src.data.astype(np_dtype(target), copy=False), target)

    def create_fp_to_fp(self, src: Any, dst_type: Any, rounding_mode: Any) -> TensorHandle:
        target = dst_type.scalar
        return TensorHandle(convert_float(src.data, src.dtype.scalar, target), target)

    # arithmetic: one place decides how a dtype NumPy lacks is computed

    def binary_op(self, lhs: Any, rhs: Any, op: Function) -> TensorHandle:
        dtype = lhs.dtype.scalar
        if dtype in _CARRIED and op not in _BITWISE:
            result = op(widen(lhs.data, dtype), widen(rhs.data, dtype))
            if result.dtype == np.bool_:
                return TensorHandle(result, tl.int1)
            return TensorHandle(convert_float(result, tl.float32, dtype), dtype)
        result = op(lhs.data, rhs.data)
        if result.dtype == np.bool_:
            return TensorHandle(result, tl.int1)
        return TensorHandle(result.astype(np_dtype(dtype), copy=False), dtype)

    def unary_op(self, arg: Any, op: Function) -> TensorHandle:
        dtype = arg.dtype.scalar
        if dtype in _CARRIED:
            return TensorHandle(convert_float(op(widen(arg.data, dtype)), tl.float32, dtype), dtype)
        return TensorHandle(op(arg.data).astype(np_dtype(dtype), copy=False), dtype)

    def ternary_op(self, lhs: Any, rhs: Any, other: Any, op: Function) -> TensorHandle:
        dtype = other.dtype.scalar
        if dtype in _CARRIED and op is not np.where:
            result = op(widen(lhs.data, dtype), widen(rhs.data, dtype), widen(other.data, dtype))
            return TensorHandle(convert_float(result, tl.float32, dtype), dtype)
        result = op(lhs.data, rhs.data, other.data)
        return TensorHandle(result.astype(np_dtype(dtype), copy=False), dtype)

    def create_minnumf(self, lhs: Any, rhs: Any) -> TensorHandle:
        return self.binary_op(lhs, rhs, np.fmin)

    def create_maxnumf(self, lhs: Any, rhs: Any) -> TensorHandle:
        return self.binary_op(lhs, rhs, np.fmax)

    def create_idiv(self, lhs: Any, rhs: Any) -> TensorHandle:
        quotient = (lhs.data - np.fmod(lhs.data, rhs.data)) // rhs.data
        return TensorHandle(quotient.astype(np_dtype(lhs.dtype.scalar), copy=False), lhs.dtype.scalar)

    def create_fma(self, x: Any, y: Any, z: Any) -> TensorHandle:
        return self.ternary_op(x, y, z, _fma)

    def create_fabs(self, arg: Any) -> TensorHandle:
        return self.unary_op(arg, np.abs)

    def create_erf(self, arg: Any) -> TensorHandle:
        return self.unary_op(arg, _torch_function(torch.erf))

    def create_rsqrt(self, arg: Any) -> TensorHandle:
        return self.unary_op(arg, _rsqrt)

    def create_dot(self, a: Any, b: Any, d: Any, *_: Any) -> TensorHandle:
        left, right = widen(a.data, a.dtype.scalar), widen(b.data, b.dtype.scalar)
        return TensorHandle(np.matmul(left, right, dtype=d.data.dtype) + d.data, d.dtype.scalar)

    def create_splat(self, ret_ty: Any, arg: Any) -> TensorHandle:
        value = arg.data.reshape(-1)[0] if arg.data.ndim else arg.data
        return TensorHandle(np.broadcast_to(value, tuple(ret_ty.shape)), arg.dtype.scalar)

    def create_extern_elementwise(
        self, _library: str, _path: str, symbol: str, arguments: Any, result: Any, _pure: bool
    ) -> TensorHandle:
        name = symbol.removeprefix("__nv_")
        function = _LIBDEVICE.get(name) or _LIBDEVICE.get(name.removesuffix("f"))
        if function is None:
            raise NotImplementedError(f"{symbol} is not known to the interpreter")
        values = function(*(_as_torch(a.data) for a in arguments)).numpy()
        return TensorHandle(values.astype(np_dtype(result.scalar), copy=False), result.scalar)


def _fma(x: Any, y: Any, z: Any) -> Any:
    """x * y + z with one rounding: a float32 product is exact in float64."""
    if x.dtype == np.float32:
        return (x.astype(np.float64) * y + z).astype(np.float32)
    return x * y + z


def _rsqrt(x: Any) -> Any:
    return 1 / np.sqrt(x)


def _torch_function(function: Function) -> Function:
    return lambda array: function(_as_torch(array)).numpy()


_BITWISE = frozenset({np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.left_shift, np.right_shift})

_LIBDEVICE: dict[str, Function] = {
    "abs": torch.abs, "fabs": torch.abs, "acos": torch.acos, "acosh": torch.acosh, "asin": torch.asin,
    "asinh": torch.asinh, "atan": torch.atan, "atan2": torch.atan2, "atanh": torch.atanh, "ceil": torch.ceil,
    "copysign": torch.copysign, "cos": torch.cos, "cosh": torch.cosh, "erf": torch.erf, "erfc": torch.erfc,
    "erfinv": torch.erfinv, "exp": torch.exp, "exp2": torch.exp2, "expm1": torch.expm1, "floor": torch.floor,
    "fmod": torch.fmod, "hypot": torch.hypot, "isinf": torch.isinf, "isinff": torch.isinf, "isinfd": torch.isinf,
    "isnan": torch.isnan, "isnanf": torch.isnan, "isnand": torch.isnan, "finitef": torch.isfinite,
    "isfinited": torch.isfinite, "signbit": torch.signbit, "signbitf": torch.signbit, "signbitd": torch.signbit,
    "lgamma": torch.lgamma, "log": torch.log, "log10": torch.log10, "log1p": torch.log1p, "log2": torch.log2,
    "nearbyint": torch.round, "rint": torch.round, "nextafter": torch.nextafter, "pow": torch.pow,
    "rsqrt": torch.rsqrt, "sin": torch.sin, "sinh": torch.sinh, "sqrt": torch.sqrt, "tan": torch.tan,
    "tanh": torch.tanh, "trunc": torch.trunc, "j0": torch.special.bessel_j0, "j1": torch.special.bessel_j1,
    "y0": torch.special.bessel_y0, "y1": torch.special.bessel_y1, "cyl_bessel_i0": torch.special.i0,
    "cyl_bessel_i1": torch.special.i1,
    "erfcx": torch.special.erfcx, "normcdfinv": torch.special.ndtri,
    "fma": lambda x, y, z: x * y + z, "div_rn": torch.div, "sqrt_rn": torch.sqrt,
    "fmax": torch.fmax, "fmin": torch.fmin, "cbrt": lambda x: torch.sign(x) * torch.abs(x) ** (1 / 3),
}  # fmt: skip


# reductions and scans


def reduce(value: Any, axis: Any, combine: Any, keep_dims: bool = False, **_: Any) -> Any:
    """`tl.reduce`: neighbours are combined, then neighbours of those, so that order is kept and rounding is small."""
    many = isinstance(value, tuple | tl.tuple)
    values = tuple(value) if many else (value,)
    axis = unwrap(axis)
    rank = values[0].handle.data.ndim
    arrays = [v.handle.data.reshape(-1) if axis is None else np.moveaxis(v.handle.data, axis, -1) for v in values]
    dtypes = [v.dtype for v in values]
    direct = _DIRECT.get(combine) if len(arrays) == 1 and dtypes[0] not in _CARRIED else None
    reduced = [direct(arrays[0])] if direct is not None else _reduce_pairs(arrays, dtypes, combine)
    if unwrap(keep_dims):
        reduced = [r.reshape((1,) * rank) if axis is None else np.expand_dims(r, axis) for r in reduced]
    results = tuple(to_tensor(r, d) for r, d in zip(reduced, dtypes, strict=True))
    return results if many else results[0]


def _reduce_pairs(arrays: list[Any], dtypes: list[Any], combine: Any) -> list[Any]:
    while (length := arrays[0].shape[-1]) > 1:
        even = length - length % 2
        merged = _combine([a[..., 0:even:2] for a in arrays], [a[..., 1:even:2] for a in arrays], dtypes, combine)
        tail = [a[..., even:] for a in arrays]
        arrays = [np.concatenate([m, t], axis=-1) if t.shape[-1] else m for m, t in zip(merged, tail, strict=True)]
    return [a[..., 0] for a in arrays]


def scan(value: Any, axis: Any, combine: Any, reverse: bool = False, **_: Any) -> Any:
    """`tl.associative_scan`: inclusive, by doubling: element i takes in element i - 1, i - 2, i - 4, ..."""
    many = isinstance(value, tuple | tl.tuple)
    values = tuple(value) if many else (value,)
    axis = unwrap(axis)
    dtypes = [v.dtype for v in values]
    arrays = [np.moveaxis(v.handle.data, axis, -1) for v in values]
    arrays = [np.flip(a, -1) if unwrap(reverse) else a for a in arrays]
    length, distance = arrays[0].shape[-1], 1
    position = np.arange(length)
    while distance < length:
        earlier = [np.roll(a, distance, axis=-1) for a in arrays]
        merged = _combine(earlier, arrays, dtypes, combine)
        arrays = [np.where(position >= distance, m, a) for m, a in zip(merged, arrays, strict=True)]
        distance *= 2
    arrays = [np.flip(a, -1) if unwrap(reverse) else a for a in arrays]
    results = tuple(to_tensor(np.moveaxis(a, -1, axis), d) for a, d in zip(arrays, dtypes, strict=True))
    return results if many else results[0]


def _combine(left: list[Any], right: list[Any], dtypes: list[Any], combine: Any) -> list[Any]:
    shape = left[0].shape
    operands = [to_tensor(a, d) for a, d in zip((*left, *right), (*dtypes, *dtypes), strict=True)]
    merged = combine(*operands)
    merged = tuple(merged) if isinstance(merged, tuple | tl.tuple) else (merged,)
    return [
        np.broadcast_to(m.handle.data, shape).astype(np_dtype(d), copy=False)
        for m, d in zip(merged, dtypes, strict=True)
    ]


def _pairwise_sum(array: Any) -> Any:
    """Sum over the last axis: NumPy sums pairwise, with small error, only where that axis is contiguous."""
    return np.add.reduce(np.ascontiguousarray(array), axis=-1, dtype=array.dtype)


_DIRECT: dict[Any, Function] = {
    tl.standard._sum_combine: _pairwise_sum,
    tl.standard._elementwise_max: lambda a: np.fmax.reduce(a, axis=-1),
    tl.standard._elementwise_min: lambda a: np.fmin.reduce(a, axis=-1),
}


def to_tensor(array: Any, dtype: Any) -> Any:
    """A Triton value over a NumPy array; a 0-dimensional one becomes a scalar."""
    array = np.asarray(array)
    if array.ndim == 0:
        return tl.tensor(TensorHandle(array.reshape(1), dtype), dtype)
    return tl.tensor(TensorHandle(array, dtype), tl.block_type(dtype, list(array.shape)))


# types, made once a shape: Triton makes several tuples of constexpr for every value

_BLOCK_INIT = tl.block_type.__init__
_TENSOR_INIT = tl.tensor.__init__
_block_fields: dict[Any, dict[str, Any]] = {}
_tensor_fields: dict[str, dict[str, Any]] = {}


def block_type_init(self: Any, element_ty: Any, shape: Any) -> None:
    """`tl.block_type.__init__`, remembered."""
    key = element_ty.name, tuple(unwrap(extent) for extent in shape)
    fields = _block_fields.get(key)
    if fields is None:
        _BLOCK_INIT(self, element_ty, shape)
        _block_fields[key] = dict(vars(self))
    else:
        vars(self).update(fields)


def tensor_init(self: Any, handle: Any, type: Any) -> None:
    """`tl.tensor.__init__`, remembered."""
    fields = _tensor_fields.get(type.name)
    if fields is None:
        _TENSOR_INIT(self, None, type)
        fields = _tensor_fields[type.name] = dict(vars(self))
    vars(self).update(fields, handle=handle, type=type)


def unwrap(value: Any) -> Any:
    return value.value if isinstance(value, tl.constexpr) else value
