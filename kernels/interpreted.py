"""The functions of `fusec.kernels.device` for Triton's interpreter, computed by PyTorch on the CPU.

Enters and leaves: the interpreter's tensors (numpy arrays inside). The interpreter runs no libdevice and reduces with
unknown combine functions one element at a time; here each function is one call on whole arrays.

    module.device = interpreted.device     # what a loader does with a generated module before interpreting it
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import TensorHandle

from fusec.kernels.philox import philox

Function = Callable[..., Any]


def _plain(value: Any) -> Any:
    """A constexpr's value; anything else as it is."""
    return value.value if isinstance(value, tl.constexpr) else value


def _array(value: Any, like: Any = None) -> torch.Tensor:
    """The interpreter's tensor, or a Python number, as a PyTorch tensor sharing memory where it can."""
    value = _plain(value)
    if not isinstance(value, tl.tensor):
        return torch.tensor(value, dtype=None if like is None else _array(like).dtype)
    return torch.from_numpy(np.require(value.handle.data, requirements=["C", "W"]))


def _tensor(value: torch.Tensor, dtype: Any, scalar: bool) -> Any:
    """A PyTorch result as the interpreter's tensor; its scalars hold arrays of one element."""
    data = value.numpy()
    if scalar:
        return tl.tensor(TensorHandle(data.reshape(1), dtype), dtype)
    return tl.tensor(TensorHandle(data, dtype), tl.block_type(dtype, list(data.shape)))


def _elementwise(function: Function) -> Function:
    def apply(*operands: Any) -> Any:
        typed = next(o for o in operands if isinstance(o, tl.tensor))
        result = function(*(_array(o, typed) for o in operands))
        scalar = not any(isinstance(o, tl.tensor) and o.type.is_block() for o in operands)
        return _tensor(result.to(_array(typed).dtype), typed.dtype.scalar, scalar)

    return apply


def _reduction(function: Function) -> Function:
    def apply(x: Any, axis: Any = None) -> Any:
        dim = _plain(axis)
        values = _array(x)
        result = function(values if dim is not None else values.reshape(1, -1), 1 if dim is None else dim)
        return _tensor(result.to(values.dtype), x.dtype.scalar, dim is None)

    return apply


def _ndtr(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * (1.0 + torch.erf(x * math.sqrt(0.5)))


def _sum(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Halves of a block are added until one element is left: log2(n) roundings, as threads of a GPU exchange halves.

    torch.sum adds eighths of a row one after the other, which rounds more often where rows are short.
    """
    if not values.is_floating_point():
        return values.sum(dim, keepdim=True)
    while (n := values.shape[dim]) > 1:
        half = n // 2  # a block's extent is a power of two
        values = values.narrow(dim, 0, half) + values.narrow(dim, half, half)
    return values


def _prod(values: torch.Tensor, dim: int) -> torch.Tensor:
    return values.prod(dim, keepdim=True)


def _positions(better: Function) -> Function:
    """Reduce (value, position) to the position of the first extreme."""
    extreme = torch.amax if better is torch.gt else torch.amin

    def apply(x: Any, position: Any, axis: Any = None) -> Any:
        dim = _plain(axis)
        values, at = torch.broadcast_tensors(_array(x), _array(position))
        if dim is None:
            values, at = values.reshape(1, -1), at.reshape(1, -1)
        along = 1 if dim is None else dim
        best = extreme(values, dim=along, keepdim=True)
        hit = (values == best) | ((values != values) & (best != best))
        far = torch.iinfo(at.dtype).max
        found = torch.where(hit, at, far).amin(dim=along, keepdim=True)
        return _tensor(found, position.dtype.scalar, dim is None)

    return apply


def _exp_sum_step(m: Any, s: Any, x: Any) -> tuple[Any, Any]:
    """One step of a looped exp_sum: the running maxima of groups of neighbouring points, the sums relative to them."""
    running, total, value = (_array(v) for v in (m, s, x))
    points = value.reshape(*running.shape, -1)
    largest = torch.maximum(running, points.amax(-1))
    shift = torch.where(largest == float("-inf"), 0.0, largest)
    total = total * torch.exp(running - shift) + torch.exp(points - shift.unsqueeze(-1)).sum(-1)
    scalar = not m.type.is_block()
    return _tensor(largest, m.dtype.scalar, scalar), _tensor(total, s.dtype.scalar, scalar)


def _exp_sum_of(m: Any, s: Any, axis: Any = None) -> Any:
    """The sum of exp(x - max x) from the points' maxima and sums."""
    dim = _plain(axis)
    running, total = torch.broadcast_tensors(_array(m), _array(s))
    if dim is None:
        running, total = running.reshape(1, -1), total.reshape(1, -1)
    along = 1 if dim is None else dim
    result = _sum(total * torch.exp(running - running.amax(along, keepdim=True)), along)
    return _tensor(result, s.dtype.scalar, dim is None)


def _add_to_part(sums: Any, part: Any, x: Any) -> tuple[Any, ...]:
    """The sums of all parts of a row, x added to those of one part."""
    at = int(_plain(part))
    return (*sums[:at], sums[at] + x, *sums[at + 1 :])


def _moments_step(first: Any, mean: Any, s: Any, count: Any, x: Any, inside: Any, step: Any) -> tuple[Any, ...]:
    """A step of a looped mean and dev_sum: the first value, the mean relative to it, the sum about that, the count."""
    values = (_array(v) for v in (first, mean, s, count, x))
    start, centre, total, before, value, kept = torch.broadcast_tensors(*values, _array(inside, mean).to(torch.bool))
    start = torch.where(kept & (before == 0), value, start)
    after = before + kept.to(before.dtype)
    difference = torch.where(kept, value - start - centre, 0.0)
    change = difference / after.clamp(min=1.0)
    results = (start, centre + change, total + difference * (difference - change), after)
    return tuple(_tensor(r, mean.dtype.scalar, not mean.type.is_block()) for r in results)


def _dev_sum_of(first: Any, mean: Any, s: Any, count: Any, axis: Any = None) -> Any:
    """The sum of (x - mean x)^2 from the points' means, sums and counts."""

    def result(start: torch.Tensor, centre: torch.Tensor, total: torch.Tensor, number: torch.Tensor, dim: int) -> Any:
        points = number.sum(dim, keepdim=True)
        centre = centre + start - (start * number).sum(dim, keepdim=True) / points
        apart = centre - (centre * number).sum(dim, keepdim=True) / points
        return (total + number * apart * apart).sum(dim, keepdim=True)

    return _moment(result, (first, mean, s, count), axis)


def _mean_of(first: Any, mean: Any, s: Any, count: Any, axis: Any = None) -> Any:
    """The mean from the points' means and counts."""

    def result(start: torch.Tensor, centre: torch.Tensor, _: torch.Tensor, number: torch.Tensor, dim: int) -> Any:
        points = number.sum(dim, keepdim=True)
        about = (start * number).sum(dim, keepdim=True) / points
        return about + ((centre + (start - about)) * number).sum(dim, keepdim=True) / points

    return _moment(result, (first, mean, s, count), axis)


def _moment(result: Function, state: tuple[Any, ...], axis: Any) -> Any:
    """A result of the state of a loop over the points."""
    dim = _plain(axis)
    arrays = torch.broadcast_tensors(*(_array(v) for v in state))
    if dim is None:
        arrays = [v.reshape(1, -1) for v in arrays]
    return _tensor(result(*arrays, 1 if dim is None else dim), state[0].dtype.scalar, dim is None)


def _philox(seed: Any, index: Any, word: Any) -> Any:
    """32 random bits at every point, as int32."""
    bits = philox(_array(seed), _array(index, seed), _plain(word))
    scalar = not any(isinstance(o, tl.tensor) and o.type.is_block() for o in (seed, index))
    return _tensor(bits, tl.int32, scalar)


def _philox_neighbours(seed: Any, first: Any, shape: Any, word: Any) -> Any:
    """_philox at first + 0, 1, 2, ... along the one dimension of `shape` that is not 1."""
    extents = [_plain(extent) for extent in _plain(shape)]
    start = _array(first)
    index = start + torch.arange(math.prod(extents), dtype=start.dtype).reshape(extents)
    return _tensor(philox(_array(seed), index, _plain(word)), tl.int32, False)


def _scan(function: Function) -> Function:
    def apply(x: Any, axis: Any) -> Any:
        values = _array(x)
        return _tensor(function(values, _plain(axis)), x.dtype.scalar, False)

    return apply


def _scan_of_pairs(scan: Function) -> Function:
    """Running extremes, and the latest positions that hold them."""

    def apply(x: Any, position: Any, axis: Any) -> tuple[Any, Any]:
        dim = _plain(axis)
        values, at = torch.broadcast_tensors(_array(x), _array(position))
        extremes, indices = scan(values, dim)
        found = at.gather(dim, indices)
        return _tensor(extremes, x.dtype.scalar, False), _tensor(found, position.dtype.scalar, False)

    return apply


def _positions_of(pairs: Function) -> Function:
    return lambda x, position, axis: pairs(x, position, axis)[1]


def _later(better: Function) -> Function:
    """The better of two (value, position) pairs at every point; NaN is best, and a tie takes the second."""

    def apply(a: Any, a_at: Any, b: Any, b_at: Any) -> tuple[Any, Any]:
        va, pa, vb, pb = torch.broadcast_tensors(*(_array(v) for v in (a, a_at, b, b_at)))
        take = (vb != vb) | ((va == va) & better(vb, va))
        return (
            _tensor(torch.where(take, vb, va), b.dtype.scalar, False),
            _tensor(torch.where(take, pb, pa), b_at.dtype.scalar, False),
        )

    return apply


def _step(better: Function) -> Function:
    """One step of a looped argmax or argmin: the better of two (value, position) pairs at every point."""

    def apply(a: Any, a_at: Any, b: Any, b_at: Any) -> tuple[Any, Any]:
        va, pa, vb, pb = torch.broadcast_tensors(*(_array(v) for v in (a, a_at, b, b_at)))
        a_nan, b_nan = va != va, vb != vb
        tie = (va == vb) | (a_nan & b_nan)
        take = torch.where(tie, pa < pb, better(va, vb) | (a_nan & ~b_nan))
        scalar = not a.type.is_block()
        return (
            _tensor(torch.where(take, va, vb), a.dtype.scalar, scalar),
            _tensor(torch.where(take, pa, pb), a_at.dtype.scalar, scalar),
        )

    return apply


_UNARY: dict[str, Function] = {
    "exp": torch.exp,
    "exp_rough": torch.exp,
    "expm1": torch.expm1,
    "log10": torch.log10,
    "log1p": torch.log1p,
    "sigmoid": torch.sigmoid,
    "sigmoid_rn": torch.sigmoid,
    "sigmoid_rough": torch.sigmoid,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "asin": torch.asin,
    "acos": torch.acos,
    "atan": torch.atan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "tanh": torch.tanh,
    "asinh": torch.asinh,
    "acosh": torch.acosh,
    "atanh": torch.atanh,
    "erf": torch.erf,
    "erfc": torch.erfc,
    "erfinv": torch.erfinv,
    "lgamma": torch.lgamma,
    "digamma": torch.digamma,
    "trigamma": lambda x: torch.polygamma(1, x),
    "i0": torch.special.i0,
    "i0e": torch.special.i0e,
    "i1": torch.special.i1,
    "i1e": torch.special.i1e,
    "erfcx": torch.special.erfcx,
    "ndtr": _ndtr,
    "ndtr_rough": _ndtr,
    "ndtri": torch.special.ndtri,
    "trunc": torch.trunc,
    "round": torch.round,
    "sign": torch.sgn,
}


def _truncated_divide(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.div(a, b, rounding_mode="trunc")


def _guarded(function: Function) -> Function:
    """Integer division by zero stops PyTorch; at a masked point it must not stop the kernel."""

    def apply(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return function(a, b if b.is_floating_point() else torch.where(b == 0, torch.ones_like(b), b))

    return apply


def _floor_divide(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.div(a, b, rounding_mode="floor")


def _power(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.pow(a, b)


_BINARY: dict[str, Function] = {
    "atan2": torch.atan2,
    "copysign": torch.copysign,
    "nextafter": torch.nextafter,
    "fmod": torch.fmod,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "fmin": torch.fmin,
    "fmax": torch.fmax,
    "logaddexp": torch.logaddexp,
    "truncdiv": _truncated_divide,
    "floordiv": _guarded(_floor_divide),
    "mod": _guarded(torch.remainder),
    "pow": _power,
    "shl": torch.bitwise_left_shift,
    "shr": torch.bitwise_right_shift,
}

_REDUCTIONS: dict[str, Function] = {
    "sum": _sum,
    "exp_sum": lambda v, dim: _sum(torch.exp(v - v.amax(dim, keepdim=True)), dim),
    "prod": _prod,
    "max": lambda v, dim: v.amax(dim, keepdim=True),
    "min": lambda v, dim: v.amin(dim, keepdim=True),
    "any": lambda v, dim: v.any(dim, keepdim=True),
    "all": lambda v, dim: v.all(dim, keepdim=True),
}


def _float8(dtype: Any) -> Function:
    """The interpreter rounds 8-bit floats as PyTorch does."""
    return lambda x: x.to(dtype)


device = SimpleNamespace(
    **{name: _elementwise(f) for name, f in {**_UNARY, **_BINARY}.items()},
    **{name: _reduction(f) for name, f in _REDUCTIONS.items()},
    philox=_philox,
    philox_neighbours=_philox_neighbours,
    argmax=_positions(torch.gt),
    argmin=_positions(torch.lt),
    add_to_part=_add_to_part,
    exp_sum_step=_exp_sum_step,
    exp_sum_of=_exp_sum_of,
    moments_step=_moments_step,
    dev_sum_of=_dev_sum_of,
    mean_of=_mean_of,
    cumsum=_scan(lambda v, dim: torch.cumsum(v, dim, dtype=v.dtype)),
    cumprod=_scan(lambda v, dim: torch.cumprod(v, dim, dtype=v.dtype)),
    cummax=_scan(lambda v, dim: torch.cummax(v, dim).values),
    cummin=_scan(lambda v, dim: torch.cummin(v, dim).values),
    logcumsumexp=_scan(torch.logcumsumexp),
    cumargmax_pairs=_scan_of_pairs(torch.cummax),
    cumargmin_pairs=_scan_of_pairs(torch.cummin),
    cumargmax=_positions_of(_scan_of_pairs(torch.cummax)),
    cumargmin=_positions_of(_scan_of_pairs(torch.cummin)),
    later_larger=_later(torch.ge),
    later_smaller=_later(torch.le),
    larger=_step(torch.gt),
    smaller=_step(torch.lt),
    float8_e4m3fn=_float8(tl.float8e4nv),
    float8_e4m3fn_or_nan=_float8(tl.float8e4nv),
    float8_e5m2=_float8(tl.float8e5),
)
