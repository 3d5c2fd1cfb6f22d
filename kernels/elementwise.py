"""Device functions of single numbers: libdevice's, PyTorch's division and remainder, random numbers, 8-bit floats.

Enters and leaves: Triton tensors inside a kernel. Shapes broadcast; every function keeps its operands' dtype. Generated
kernels call them as `device.maximum(a, b)`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice

# -- elementwise, floating point ------------------------------------------------------------------


@triton.jit
def exp(x: tl.tensor) -> tl.tensor:
    """exp to 1 ulp. `tl.exp` is exp2 of a rounded product: off by |x| / 2 ulp."""
    return libdevice.exp(x)


@triton.jit
def exp_rough(x: tl.tensor) -> tl.tensor:
    """exp of float32 as `tl.exp` rounds it, in 2 instructions for 5: results below 2**-126 are 0."""
    return tl.exp2(x * 1.4426950408889634)


@triton.jit
def expm1(x: tl.tensor) -> tl.tensor:
    return libdevice.expm1(x)


@triton.jit
def log10(x: tl.tensor) -> tl.tensor:
    return libdevice.log10(x)


@triton.jit
def log1p(x: tl.tensor) -> tl.tensor:
    return libdevice.log1p(x)


@triton.jit
def sigmoid(x: tl.tensor) -> tl.tensor:
    return 1.0 / (1.0 + libdevice.exp(-x))


@triton.jit
def sigmoid_rough(x: tl.tensor) -> tl.tensor:
    """Sigmoid for results that are stored with 16 bits. `1 / y` guards against y above 2**126, 4 instructions for 1."""
    return libdevice.fast_dividef(1.0, 1.0 + exp_rough(-x))


@triton.jit
def sigmoid_rn(x: tl.tensor) -> tl.tensor:
    """Sigmoid with a correctly rounded division."""
    y = 1.0 + libdevice.exp(-x)
    if x.dtype == tl.float32:
        return tl.div_rn(tl.full([1], 1.0, tl.float32), y)
    else:
        return 1.0 / y


@triton.jit
def _quarter_turns(x: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """x = turns * pi/2 + rest, with |rest| <= pi/4; turns modulo 4. Cody and Waite, with pi/2 in three float64 parts.

    libdevice reduces large arguments through a table on the stack, which every kernel with a sine would pay for.
    Exact to float32 up to |x| = 2**50 and to float64 up to 2**30; beyond, the rest is only kept in bounds.
    """
    y = x.to(tl.float64)
    turns = tl.floor(y * 0.6366197723675814 + 0.5)
    rest = tl.fma(turns, tl.full(turns.shape, -1.5707963267948966, tl.float64), y)
    rest = tl.fma(turns, tl.full(turns.shape, -6.123233995736766e-17, tl.float64), rest)
    rest = tl.fma(turns, tl.full(turns.shape, 1.4973849048591833e-33, tl.float64), rest)
    rest = minimum(maximum(rest, -0.7853981633974484), 0.7853981633974484)
    return rest.to(x.dtype), turns - 4.0 * tl.floor(turns * 0.25)


@triton.jit
def _sin_near_zero(r: tl.tensor) -> tl.tensor:
    """sin on [-pi/4, pi/4] (coefficients of Cephes)."""
    z = r * r
    if r.dtype == tl.float64:
        p = 1.58962301576546568060e-10 * z - 2.50507477628578072866e-8
        p = ((p * z + 2.75573136213857245213e-6) * z - 1.98412698295895385996e-4) * z
        p = (p + 8.33333333332211858878e-3) * z - 1.66666666666666307295e-1
    else:
        p = (-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1
    return tl.fma(r * z, p, r)


@triton.jit
def _cos_near_zero(r: tl.tensor) -> tl.tensor:
    """cos on [-pi/4, pi/4] (coefficients of Cephes)."""
    z = r * r
    if r.dtype == tl.float64:
        p = -1.13585365213876817300e-11 * z + 2.08757008419747316778e-9
        p = ((p * z - 2.75573141792967388112e-7) * z + 2.48015872888517045348e-5) * z
        p = (p - 1.38888888888730564116e-3) * z + 4.16666666666665929218e-2
    else:
        p = (2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2
    return tl.fma(z * z, p, 1.0 - 0.5 * z)


@triton.jit
def sin(x: tl.tensor) -> tl.tensor:
    rest, turns = _quarter_turns(x)
    odd = (turns == 1.0) | (turns == 3.0)
    value = tl.where(odd, _cos_near_zero(rest), _sin_near_zero(rest))
    value = tl.where(turns >= 2.0, value * -1.0, value)
    return tl.where(x == 0.0, x, value)  # keeps the sign of a zero


@triton.jit
def cos(x: tl.tensor) -> tl.tensor:
    rest, turns = _quarter_turns(x)
    odd = (turns == 1.0) | (turns == 3.0)
    value = tl.where(odd, _sin_near_zero(rest), _cos_near_zero(rest))
    return tl.where((turns == 1.0) | (turns == 2.0), value * -1.0, value)


@triton.jit
def tan(x: tl.tensor) -> tl.tensor:
    rest, turns = _quarter_turns(x)
    odd = (turns == 1.0) | (turns == 3.0)
    s = _sin_near_zero(rest)
    c = _cos_near_zero(rest)
    value = _divide(tl.where(odd, c * -1.0, s), tl.where(odd, s, c))
    return tl.where(x == 0.0, x, value)


@triton.jit
def asin(x: tl.tensor) -> tl.tensor:
    return libdevice.asin(x)


@triton.jit
def acos(x: tl.tensor) -> tl.tensor:
    return libdevice.acos(x)


@triton.jit
def atan(x: tl.tensor) -> tl.tensor:
    return libdevice.atan(x)


@triton.jit
def sinh(x: tl.tensor) -> tl.tensor:
    return libdevice.sinh(x)


@triton.jit
def cosh(x: tl.tensor) -> tl.tensor:
    return libdevice.cosh(x)


@triton.jit
def tanh(x: tl.tensor) -> tl.tensor:
    return libdevice.tanh(x)


@triton.jit
def asinh(x: tl.tensor) -> tl.tensor:
    return libdevice.asinh(x)


@triton.jit
def acosh(x: tl.tensor) -> tl.tensor:
    return libdevice.acosh(x)


@triton.jit
def atanh(x: tl.tensor) -> tl.tensor:
    return libdevice.atanh(x)


@triton.jit
def erf(x: tl.tensor) -> tl.tensor:
    return libdevice.erf(x)


@triton.jit
def erfc(x: tl.tensor) -> tl.tensor:
    return libdevice.erfc(x)


@triton.jit
def erfinv(x: tl.tensor) -> tl.tensor:
    return libdevice.erfinv(x)


@triton.jit
def lgamma(x: tl.tensor) -> tl.tensor:
    return libdevice.lgamma(x)


@triton.jit
def _one_over(x: tl.tensor) -> tl.tensor:
    """1 / x correctly rounded."""
    return _divide(tl.full(x.shape, 1.0, x.dtype), x)


@triton.jit
def digamma(x: tl.tensor) -> tl.tensor:
    """The derivative of lgamma: recurrence up to 10, then the asymptotic series (Cephes)."""
    whole = x == tl.floor(x)
    pole = (x <= 0.0) & whole
    mirrored = x < 0.0
    y = tl.where(mirrored, 1.0 - x, x)
    result = tl.zeros(y.shape, y.dtype)
    for _ in tl.static_range(10):
        low = y < 10.0
        result -= tl.where(low, _one_over(tl.where(y == 0.0, 1.0, y)), 0.0)
        y = tl.where(low, y + 1.0, y)
    z = _one_over(y * y)
    series = 8.33333333333333333333e-2 * z - 2.10927960927960927961e-2
    series = (series * z + 7.57575757575757575758e-3) * z - 4.16666666666666666667e-3
    series = (series * z + 3.96825396825396825397e-3) * z - 8.33333333333333333333e-3
    series = (series * z + 8.33333333333333333333e-2) * z
    value = result + tl.log(y) - 0.5 * _one_over(y) - tl.where(y < 1e17, series, 0.0)
    angle = (x - libdevice.rint(x)) * 3.141592653589793
    value = tl.where(mirrored, value - 3.141592653589793 * _one_over(tan(angle)), value)
    value = tl.where(pole, float("nan"), value)
    return tl.where(x == 0.0, libdevice.copysign(tl.full(x.shape, float("inf"), x.dtype), x * -1.0), value)


@triton.jit
def trigamma(x: tl.tensor) -> tl.tensor:
    """The derivative of digamma: reflection below 1/2, six steps of recurrence, the asymptotic series."""
    mirrored = x < 0.5
    y = tl.where(mirrored, 1.0 - x, x)
    result = tl.zeros(y.shape, y.dtype)
    for _ in tl.static_range(6):
        result += _one_over(y * y)
        y += 1.0
    z = _one_over(y * y)
    series = 1.0 + 0.5 * _one_over(y) + z * (1.0 / 6.0 - z * (1.0 / 30.0 - z * (1.0 / 42.0)))
    result += _divide(series, y)
    s = sin((x - libdevice.rint(x)) * 3.141592653589793)
    reflected = 9.869604401089358 * _one_over(s * s) - result
    return tl.where(mirrored, reflected, result)


@triton.jit
def i0(x: tl.tensor) -> tl.tensor:
    return libdevice.cyl_bessel_i0(x)


@triton.jit
def i1(x: tl.tensor) -> tl.tensor:
    return libdevice.cyl_bessel_i1(x)


@triton.jit
def _scaled_bessel(x: tl.tensor, near: tl.tensor, MU: tl.constexpr) -> tl.tensor:
    """exp(-|x|) I(x) for MU = 4 * order**2: `near` where that is precise, Hankel's series for large |x|."""
    large: tl.constexpr = 500.0 if x.dtype == tl.float64 else 30.0
    size = tl.abs(x)
    far = size > large
    z = 0.125 * _one_over(tl.where(far, size, 1.0))
    series = 1.0 - z * ((MU - 49.0) * 0.25)
    series = 1.0 - z * ((MU - 25.0) * (1.0 / 3.0)) * series
    series = 1.0 - z * ((MU - 9.0) * 0.5) * series
    series = 1.0 - z * (MU - 1.0) * series
    scale = tl.rsqrt(tl.where(far, size, 1.0) * 6.283185307179586)
    value = tl.where(size == float("inf"), 0.0, scale * series)
    inner = tl.where(far, 0.0, size)
    return tl.where(far, value, libdevice.exp(inner * -1.0) * near)


@triton.jit
def i0e(x: tl.tensor) -> tl.tensor:
    """exp(-|x|) I0(x)."""
    return _scaled_bessel(x, libdevice.cyl_bessel_i0(x), 0.0)


@triton.jit
def i1e(x: tl.tensor) -> tl.tensor:
    """exp(-|x|) I1(x)."""
    value = _scaled_bessel(x, libdevice.cyl_bessel_i1(tl.abs(x)), 4.0)
    return tl.where(x < 0.0, value * -1.0, value)


@triton.jit
def erfcx(x: tl.tensor) -> tl.tensor:
    """exp(x**2) erfc(x)."""
    return libdevice.erfcx(x)


@triton.jit
def ndtr(x: tl.tensor) -> tl.tensor:
    """The normal distribution function, as GELU in eager mode computes it."""
    return 0.5 * (1.0 + libdevice.erf(x * tl.full([], 0.7071067811865476, x.dtype)))


@triton.jit
def ndtr_rough(x: tl.tensor) -> tl.tensor:
    """The same for results of 16 bits: off by 9e-6 of itself, in both tails, with half of erf's instructions.

    Below 0 it is exp(-x^2 / 2) P(t), t = 1 / (1 + c |x|): Abramowitz and Stegun's form 7.1.26 with a polynomial that is
    fitted to the relative error.
    """
    t = libdevice.fast_dividef(1.0, 1.0 + 0.45961940777125596 * tl.abs(x))
    p = 0.17786043050164957 + t * (-0.23587028509719698 + t * 0.07183156584077672)
    p = 0.18319554343025407 + t * (0.18690491732518585 + t * (0.11608057350107975 + t * p))
    below = p * t * tl.exp2(x * x * -0.7213475204444817)
    return tl.where(x < 0.0, below, 1.0 - below)


@triton.jit
def ndtri(x: tl.tensor) -> tl.tensor:
    """The inverse of the normal distribution function."""
    return libdevice.normcdfinv(x)


@triton.jit
def nextafter(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """The next number from a towards b."""
    return libdevice.nextafter(a, b)


@triton.jit
def trunc(x: tl.tensor) -> tl.tensor:
    return libdevice.trunc(x)


@triton.jit
def round(x: tl.tensor) -> tl.tensor:
    """To the nearest integer, halves to even."""
    return libdevice.rint(x)


@triton.jit
def atan2(y: tl.tensor, x: tl.tensor) -> tl.tensor:
    return libdevice.atan2(y, x)


@triton.jit
def copysign(x: tl.tensor, sign: tl.tensor) -> tl.tensor:
    return libdevice.copysign(x, sign)


@triton.jit
def fmod(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """The remainder with the sign of the dividend; floating point (integers: `a % b` in Triton)."""
    return libdevice.fmod(a, b)


@triton.jit
def sign(x: tl.tensor) -> tl.tensor:
    """-1, 0 or 1; 0 for NaN."""
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


@triton.jit
def minimum(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """NaN if either operand is."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def maximum(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """NaN if either operand is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def fmin(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """The other operand if one is NaN."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.NONE)


@triton.jit
def fmax(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """The other operand if one is NaN."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.NONE)


# -- division, remainder, powers, shifts ----------------------------------------------------------


@triton.jit
def _divide(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """a / b correctly rounded."""
    if a.dtype == tl.float32:
        return tl.div_rn(a, b)
    else:
        return a / b


@triton.jit
def truncdiv(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """a / b rounded toward zero; floating point (integers: `a // b` in Triton)."""
    return libdevice.trunc(_divide(a, b))


@triton.jit
def floordiv(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """a / b rounded toward -inf, integers and floating point."""
    if a.dtype.is_floating():
        remainder = libdevice.fmod(a, b)
        quotient = _divide(a - remainder, b)
        quotient = tl.where((remainder != 0) & ((b < 0) != (remainder < 0)), quotient - 1.0, quotient)
        nearest = tl.floor(quotient)
        nearest = tl.where(quotient - nearest > 0.5, nearest + 1.0, nearest)
        exact = _divide(a, b)
        nearest = tl.where(quotient == 0, libdevice.copysign(quotient * 0.0, exact), nearest)
        return tl.where(b == 0, exact, nearest)
    elif a.dtype.is_int_unsigned():
        return a // b
    else:
        quotient = a // b
        return tl.where((a - quotient * b != 0) & ((a < 0) != (b < 0)), quotient - 1, quotient)


@triton.jit
def mod(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """The remainder with the sign of the divisor (Python's), integers and floating point."""
    if a.dtype.is_floating():
        remainder = libdevice.fmod(a, b)
        return tl.where((remainder != 0) & ((b < 0) != (remainder < 0)), remainder + b, remainder)
    elif a.dtype.is_int_unsigned():
        return a % b
    else:
        remainder = a % b
        return tl.where((remainder != 0) & ((remainder < 0) != (b < 0)), remainder + b, remainder)


@triton.jit
def pow(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """a ** b. Integers by repeated squaring, modulo 2**bits; a negative exponent gives 0 but for bases 1 and -1."""
    if a.dtype.is_floating():
        return libdevice.pow(a, b)
    else:
        result = a * 0 + 1
        base = a
        left = b
        bits: tl.constexpr = a.dtype.primitive_bitwidth
        for _ in tl.static_range(bits):
            result = tl.where(left & 1 != 0, result * base, result)
            base = base * base
            left = left >> 1
        odd = tl.where(b & 1 != 0, a, a * a)
        inverse = tl.where((a == 1) | (a * a == 1), odd, a * 0)
        return tl.where(b < 0, inverse, result)


@triton.jit
def shl(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """a << b; 0 when b is not a shift of a's width."""
    bits = a.dtype.primitive_bitwidth
    inside = (b >= 0) & (b < bits)
    return tl.where(inside, a << tl.where(inside, b, b * 0), a * 0)


@triton.jit
def shr(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """a >> b, keeping the sign; b outside a's width shifts everything out."""
    bits = a.dtype.primitive_bitwidth
    inside = (b >= 0) & (b < bits)
    return a >> tl.where(inside, b, b * 0 + (bits - 1))


# -- random numbers -------------------------------------------------------------------------------


@triton.jit
def _philox_block(
    seed: tl.tensor, counter: tl.tensor, word: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The four words of Philox4x32-10 at (counter, word). A product of 64 bits is one instruction."""
    seed = tl.core.to_tensor(seed).to(tl.uint64)
    key_a = seed.to(tl.uint32)
    key_b = (seed >> 32).to(tl.uint32)
    a = counter.to(tl.uint32)
    if counter.dtype.primitive_bitwidth > 32:
        b = (counter >> 32).to(tl.uint32)
    else:
        b = a * 0
    c = a * 0 + word
    d = a * 0
    for _ in tl.static_range(10):
        from_a = a.to(tl.uint64) * 0xD2511F53
        from_c = c.to(tl.uint64) * 0xCD9E8D57
        a = (from_c >> 32).to(tl.uint32) ^ b ^ key_a
        c = (from_a >> 32).to(tl.uint32) ^ d ^ key_b
        b = from_c.to(tl.uint32)
        d = from_a.to(tl.uint32)
        key_a = tl.add(key_a, 0x9E3779B9, sanitize_overflow=False)
        key_b = tl.add(key_b, 0xBB67AE85, sanitize_overflow=False)
    return a, b, c, d


@triton.jit
def _philox_lane(seed: tl.tensor, counter: tl.tensor, lane: tl.tensor, word: tl.constexpr) -> tl.tensor:
    a, b, c, d = _philox_block(seed, counter, word)
    bits = tl.where(lane < 2, tl.where(lane == 0, a, b), tl.where(lane == 2, c, d))
    return bits.to(tl.int32, bitcast=True)


@triton.jit
def philox(seed: tl.tensor, index: tl.tensor, word: tl.constexpr) -> tl.tensor:
    """32 random bits as int32: word number 0 to 3 of the element at `index` (32 or 64 bits), see kernels/philox.py."""
    index = tl.core.to_tensor(index)  # a literal where a tensor has one element
    return _philox_lane(seed, index >> 2, index & 3, word)


@triton.jit
def philox_neighbours(seed: tl.tensor, first: tl.tensor, shape: tl.constexpr, word: tl.constexpr) -> tl.tensor:
    """philox at first + 0, 1, 2, ... along the one dimension of `shape` that is not 1; `first` is a multiple of 4.

    Each block number is written four times side by side, so a thread that holds neighbours computes their block once.
    """
    first = tl.core.to_tensor(first)
    points: tl.constexpr = tl.zeros(shape, tl.int1).numel
    if points < 4:
        return philox(seed, first + tl.reshape(tl.arange(0, points), shape), word)
    else:
        blocks = tl.broadcast_to(tl.arange(0, points // 4)[:, None], [points // 4, 4])
        lanes = tl.broadcast_to(tl.arange(0, 4)[None, :], [points // 4, 4])
        return _philox_lane(seed, (first >> 2) + tl.reshape(blocks, shape), tl.reshape(lanes, shape), word)


# -- 8-bit floats ---------------------------------------------------------------------------------
# The conversion instruction rounds to nearest even, saturates, and gives NaN without a sign. PyTorch's keeps the sign.


@triton.jit
def _signed(bits: tl.tensor, x: tl.tensor) -> tl.tensor:
    """The bits of an 8-bit float, with the sign of the float32 value x."""
    return bits | ((x.to(tl.int32, bitcast=True) >> 24) & -128).to(tl.int8)


@triton.jit
def float8_e4m3fn(x: tl.tensor) -> tl.tensor:
    """float32 to float8_e4m3fn; 448 is the largest, also for infinity."""
    bits = x.to(tl.float8e4nv).to(tl.int8, bitcast=True)
    return _signed(bits, x).to(tl.float8e4nv, bitcast=True)


@triton.jit
def float8_e4m3fn_or_nan(x: tl.tensor) -> tl.tensor:
    """float32 to float8_e4m3fn; NaN above 464, the last number that rounds to 448."""
    bits = x.to(tl.float8e4nv).to(tl.int8, bitcast=True)
    bits = tl.where(tl.abs(x) > 464.0, 0x7F, bits).to(tl.int8)
    return _signed(bits, x).to(tl.float8e4nv, bitcast=True)


@triton.jit
def float8_e5m2(x: tl.tensor) -> tl.tensor:
    """float32 to float8_e5m2; infinite from 61440, the first number that does not round to 57344."""
    bits = x.to(tl.float8e5).to(tl.int8, bitcast=True)
    bits = tl.where(tl.abs(x) >= 61440.0, 0x7C, bits).to(tl.int8)
    return _signed(bits, x).to(tl.float8e5, bitcast=True)
