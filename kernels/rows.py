"""Device functions along a dimension of a tile: reductions, which propagate NaN, and scans.

Enters and leaves: Triton tensors inside a kernel. A reduction takes `axis`, the position of the tile dimension, and
keeps it with extent 1; `axis` None reduces a one-dimensional tile to a scalar. Generated kernels call them as
`device.sum(x, 1)`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice

from fusec.kernels.elementwise import exp_rough, maximum, minimum

# -- reductions -----------------------------------------------------------------------------------


@triton.jit
def _add(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    return a + b


@triton.jit
def _multiply(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    return a * b


@triton.jit
def _or(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    return a | b


@triton.jit
def _and(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    return a & b


@triton.jit
def sum(x: tl.tensor, axis: tl.constexpr = None) -> tl.tensor:
    return tl.reduce(x, axis, _add, keep_dims=axis is not None)


@triton.jit
def add_to_part(sums: tl.tuple, part: tl.constexpr, x: tl.tensor) -> tl.tuple:
    """The sums of all parts of a row, x added to those of one part."""
    return sums[:part] + (sums[part] + x,) + sums[part + 1 :]  # noqa: RUF005  Triton knows no unpacking


@triton.jit
def exp_sum(x: tl.tensor, axis: tl.constexpr = None) -> tl.tensor:
    """Sum of exp(x - max x)."""
    return sum(_exp_of_difference(x - max(x, axis)), axis)


@triton.jit
def _exp_of_difference(x: tl.tensor) -> tl.tensor:
    if x.dtype == tl.float32:
        return exp_rough(x)
    else:
        return tl.exp(x)


@triton.jit
def exp_sum_step(m: tl.tensor, s: tl.tensor, x: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """One step of a looped exp_sum: the running maxima m of groups of neighbouring points, the sums s relative to them.

    A group is as many points of x as one thread loads together: one exponential rescales them all.
    """
    group: tl.constexpr = x.numel // m.numel
    axis: tl.constexpr = len(m.shape)
    points = tl.reshape(x, m.shape + [group])  # noqa: RUF005, Triton unpacks nothing
    largest = maximum(m, tl.reduce(points, axis, maximum))
    shift = tl.where(largest == float("-inf"), 0.0, largest)  # -inf - -inf would be NaN
    total = tl.reduce(_exp_of_difference(points - tl.expand_dims(shift, axis)), axis, _add)
    return largest, s * _exp_of_difference(m - shift) + total


@triton.jit
def exp_sum_of(m: tl.tensor, s: tl.tensor, axis: tl.constexpr = None) -> tl.tensor:
    """The sum of exp(x - max x) from the groups' maxima m and sums s."""
    return sum(s * _exp_of_difference(m - max(m, axis)), axis)


@triton.jit
def moments_step(
    first: tl.tensor,
    mean: tl.tensor,
    s: tl.tensor,
    count: tl.tensor,
    x: tl.tensor,
    inside: tl.tensor,
    step: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """One step of a looped mean and dev_sum, point by point (Welford): s is the sum of (x - mean)^2 of `count` values.

    step: how many came before, the same for all points that are inside: one division serves a whole step.
    Means are kept relative to the first value: of numbers near 10000 that differ by 1 nothing is rounded away.
    """
    first = tl.where(inside & (step == 0), x, first)
    difference = tl.where(inside, x - first - mean, 0.0)
    change = difference * (1.0 / (step + 1).to(x.dtype))
    return first, mean + change, s + difference * (difference - change), count + tl.where(inside, 1.0, 0.0)


@triton.jit
def dev_sum_of(
    first: tl.tensor, mean: tl.tensor, s: tl.tensor, count: tl.tensor, axis: tl.constexpr = None
) -> tl.tensor:
    """The sum of (x - mean x)^2 from the points' means, sums and counts (Chan, Golub and LeVeque)."""
    number = sum(count, axis)
    mean += first - sum(first * count, axis) / number
    apart = mean - sum(mean * count, axis) / number
    return sum(s + count * apart * apart, axis)


@triton.jit
def mean_of(first: tl.tensor, mean: tl.tensor, s: tl.tensor, count: tl.tensor, axis: tl.constexpr = None) -> tl.tensor:
    """The mean from the points' means and counts: about a value among them, and what that leaves."""
    number = sum(count, axis)
    about = sum(first * count, axis) / number
    return about + sum((mean + (first - about)) * count, axis) / number


@triton.jit
def prod(x: tl.tensor, axis: tl.constexpr = None) -> tl.tensor:
    return tl.reduce(x, axis, _multiply, keep_dims=axis is not None)


@triton.jit
def max(x: tl.tensor, axis: tl.constexpr = None) -> tl.tensor:
    """NaN if any point is."""
    return tl.reduce(x, axis, maximum, keep_dims=axis is not None)


@triton.jit
def min(x: tl.tensor, axis: tl.constexpr = None) -> tl.tensor:
    """NaN if any point is."""
    return tl.reduce(x, axis, minimum, keep_dims=axis is not None)


@triton.jit
def any(x: tl.tensor, axis: tl.constexpr = None) -> tl.tensor:
    return tl.reduce(x.to(tl.int32), axis, _or, keep_dims=axis is not None) != 0


@triton.jit
def all(x: tl.tensor, axis: tl.constexpr = None) -> tl.tensor:
    return tl.reduce(x.to(tl.int32), axis, _and, keep_dims=axis is not None) != 0


@triton.jit
def _larger(a: tl.tensor, a_at: tl.tensor, b: tl.tensor, b_at: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The larger of two (value, position) pairs; NaN is largest, and a tie takes the lower position."""
    tie = (a == b) | ((a != a) & (b != b))
    take = tl.where(tie, a_at < b_at, (a > b) | ((a != a) & (b == b)))
    return tl.where(take, a, b), tl.where(take, a_at, b_at)


@triton.jit
def _smaller(a: tl.tensor, a_at: tl.tensor, b: tl.tensor, b_at: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The smaller of two (value, position) pairs; NaN is smallest, and a tie takes the lower position."""
    tie = (a == b) | ((a != a) & (b != b))
    take = tl.where(tie, a_at < b_at, (a < b) | ((a != a) & (b == b)))
    return tl.where(take, a, b), tl.where(take, a_at, b_at)


@triton.jit
def argmax(x: tl.tensor, position: tl.tensor, axis: tl.constexpr = None) -> tl.tensor:
    """The lowest position that holds the largest value; NaN is largest."""
    x, position = tl.broadcast(x, position)
    _, at = tl.reduce((x, position), axis, _larger, keep_dims=axis is not None)
    return at


@triton.jit
def argmin(x: tl.tensor, position: tl.tensor, axis: tl.constexpr = None) -> tl.tensor:
    """The lowest position that holds the smallest value; NaN is smallest."""
    x, position = tl.broadcast(x, position)
    _, at = tl.reduce((x, position), axis, _smaller, keep_dims=axis is not None)
    return at


@triton.jit
def larger(a: tl.tensor, a_at: tl.tensor, b: tl.tensor, b_at: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """One step of a looped argmax, point by point."""
    return _larger(a, a_at, b, b_at)


@triton.jit
def smaller(a: tl.tensor, a_at: tl.tensor, b: tl.tensor, b_at: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """One step of a looped argmin, point by point."""
    return _smaller(a, a_at, b, b_at)


# -- scans ----------------------------------------------------------------------------------------


@triton.jit
def cumsum(x: tl.tensor, axis: tl.constexpr) -> tl.tensor:
    return tl.associative_scan(x, axis, _add)


@triton.jit
def cumprod(x: tl.tensor, axis: tl.constexpr) -> tl.tensor:
    return tl.associative_scan(x, axis, _multiply)


@triton.jit
def cummax(x: tl.tensor, axis: tl.constexpr) -> tl.tensor:
    return tl.associative_scan(x, axis, maximum)


@triton.jit
def cummin(x: tl.tensor, axis: tl.constexpr) -> tl.tensor:
    return tl.associative_scan(x, axis, minimum)


@triton.jit
def logaddexp(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """log(exp(a) + exp(b)); of two equal infinities, the infinity."""
    low = minimum(a, b)
    high = maximum(a, b)
    same = low == high
    apart = tl.where(same, 0.0, low - high)
    return tl.where(same & (tl.abs(low) == float("inf")), a, high + libdevice.log1p(libdevice.exp(apart)))


@triton.jit
def logcumsumexp(x: tl.tensor, axis: tl.constexpr) -> tl.tensor:
    return tl.associative_scan(x, axis, logaddexp)


@triton.jit
def later_larger(a: tl.tensor, a_at: tl.tensor, b: tl.tensor, b_at: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The larger of two (value, position) pairs; NaN is largest, and a tie takes the second."""
    take = (b != b) | ((a == a) & (b >= a))
    return tl.where(take, b, a), tl.where(take, b_at, a_at)


@triton.jit
def later_smaller(a: tl.tensor, a_at: tl.tensor, b: tl.tensor, b_at: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The smaller of two (value, position) pairs; NaN is smallest, and a tie takes the second."""
    take = (b != b) | ((a == a) & (b <= a))
    return tl.where(take, b, a), tl.where(take, b_at, a_at)


@triton.jit
def cumargmax_pairs(x: tl.tensor, position: tl.tensor, axis: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """The largest value up to each point and the latest position that holds it."""
    x, position = tl.broadcast(x, position)
    return tl.associative_scan((x, position), axis, later_larger)


@triton.jit
def cumargmin_pairs(x: tl.tensor, position: tl.tensor, axis: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """The smallest value up to each point and the latest position that holds it."""
    x, position = tl.broadcast(x, position)
    return tl.associative_scan((x, position), axis, later_smaller)


@triton.jit
def cumargmax(x: tl.tensor, position: tl.tensor, axis: tl.constexpr) -> tl.tensor:
    _, at = cumargmax_pairs(x, position, axis)
    return at


@triton.jit
def cumargmin(x: tl.tensor, position: tl.tensor, axis: tl.constexpr) -> tl.tensor:
    _, at = cumargmin_pairs(x, position, axis)
    return at
