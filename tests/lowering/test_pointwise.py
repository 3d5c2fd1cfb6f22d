"""Every pointwise op against eager: all dtypes it takes, special values, Python scalars, broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fusec.ir.types import LoopNest
from tests.lowering.differential import assert_lowered_like_eager, lower_function, make

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DTYPES = (*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool)
INF, NAN = float("inf"), float("nan")
VALUES = [-3.5, -2.5, -1.5, -1, -0.5, -0.0, 0.0, 0.3, 0.5, 0.99, 1, 1.5, 2.5, 3.5, 7, 100.0, -100.0, INF, -INF, NAN]


def special(dtype: torch.dtype) -> torch.Tensor:
    """Values at the edges: halves, signed zeros, infinities and NaN where the dtype has them."""
    values = torch.tensor(VALUES)
    if dtype.is_floating_point:
        return values.to(dtype)
    finite = values[torch.isfinite(values)]
    return finite.abs().to(dtype) if dtype is torch.uint8 else finite.to(dtype)


def takes(function: Callable[..., Any], *inputs: Any) -> bool:
    try:
        function(*inputs)
    except (RuntimeError, NotImplementedError, TypeError):
        return False
    return True


def check_each(function: Callable[..., Any], cases: list[tuple[Any, ...]]) -> None:
    """function over every case in one Program; cases that eager refuses are left out."""
    cases = [case for case in cases if takes(function, *case)]
    assert cases
    flat = [x for case in cases for x in case]

    def every(*inputs: Any) -> list[Any]:
        left = iter(inputs)
        return [function(*(next(left) for _ in case)) for case in cases]

    assert_lowered_like_eager(every, *flat)


UNARY = """
    exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal sigmoid sin cos tan asin acos atan sinh cosh tanh
    asinh acosh atanh erf erfc erfinv lgamma floor ceil trunc round frac neg abs sign sgn square positive sinc logit
    isnan isinf isfinite isposinf isneginf signbit nan_to_num logical_not bitwise_not
"""


@pytest.mark.parametrize("name", UNARY.split())
def test_unary(name):
    check_each(getattr(torch, name), [(special(d),) for d in DTYPES])


SIMPLE_ACTIVATIONS = """
    relu relu6 hardtanh leaky_relu elu selu celu gelu silu mish softplus hardswish hardsigmoid hardshrink softshrink
    logsigmoid softsign tanhshrink
"""
ACTIVATIONS = {
    **{name: getattr(F, name) for name in SIMPLE_ACTIVATIONS.split()},
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "celu 0.7": lambda x: F.celu(x, 0.7),
    "elu 2": lambda x: F.elu(x, 2.0),
    "softplus 3": lambda x: F.softplus(x, beta=3, threshold=2),
    "threshold": lambda x: F.threshold(x, 0.5, -7.0),
    "hardtanh int": lambda x: F.hardtanh(x, -2, 2),
    "logit eps": lambda x: torch.logit(x.float(), 1e-3),
    "nan_to_num": lambda x: torch.nan_to_num(x, 1.0, 2.0, 3.0),
    "round 1": lambda x: torch.round(x, decimals=1),
    "round -1": lambda x: torch.round(x, decimals=-1),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name):
    check_each(ACTIVATIONS[name], [(special(d)[:17],) for d in (torch.float32, torch.bfloat16, torch.float64)])


def test_activations_of_two_operands():
    x = make((3, 8, 5), torch.float32)
    assert_lowered_like_eager(lambda x, w: (F.prelu(x, w), F.glu(x, 1)), x, make((8,), torch.float32))


BINARY_NAMES = """
    add sub mul div remainder fmod floor_divide atan2 copysign hypot logaddexp xlogy heaviside minimum maximum
    fmin fmax eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor
"""
BINARY = BINARY_NAMES.split()
PAIRS = (torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def divisors(dtype: torch.dtype) -> torch.Tensor:
    """Special values in another order; integers without zero, which eager may not divide by."""
    values = special(dtype).flip(0)
    return values if dtype.is_floating_point else values.masked_fill(values == 0, 1)


@pytest.mark.parametrize("name", BINARY)
def test_binary_promotes_and_broadcasts(name):
    check_each(getattr(torch, name), [(special(a)[:, None], divisors(b)) for a in PAIRS for b in PAIRS])


@pytest.mark.parametrize("scalar", [2, 2.5, -3, True, 0.1])
@pytest.mark.parametrize("name", [*BINARY, "pow", "rsub"])
def test_binary_with_a_number(name, scalar):
    function = getattr(torch, name)
    tensors = [special(d)[:15] for d in PAIRS]
    if not any(takes(function, x, scalar) for x in tensors):
        pytest.skip("eager does not take it")
    if name == "pow" and scalar is True:
        tensors = [x for x in tensors if x.dtype is not torch.bool]  # eager and its own meta function disagree
    check_each(lambda x: function(x, scalar), [(x,) for x in tensors])


def test_comparison_rounds_the_number_to_the_tensors_dtype():
    x = torch.tensor([0.1], dtype=torch.bfloat16)
    assert_lowered_like_eager(lambda x: (x == 0.1, x < 0.1, x.clamp(min=0.1), torch.where(x > 1, x, 0.1)), x)


def test_a_zero_dim_tensor_does_not_widen():
    x, s = make((17,), torch.bfloat16), torch.tensor(0.3)
    assert_lowered_like_eager(lambda x, s: (x + s, x * s, torch.where(x > s, x, s), s + 1), x, s)


POWERS = [0, 1, 2, 3, 4, 5, -1, -2, 0.5, -0.5, 1.7, -3.3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_powers(dtype):
    assert_lowered_like_eager(lambda x: [x**p for p in POWERS] + [x.abs() ** x, 2**x, 3.0**x], special(dtype))


def test_integer_powers_are_products():
    program = lower_function(lambda x: x**5, torch.arange(-9, 9))
    assert [i.op for i in program.nodes[0].body if i.op in ("mul", "pow")] == ["mul"] * 3
    assert_lowered_like_eager(lambda x: (x**5, x**0, x**1, x**0.5), torch.arange(-9, 9))


def test_integer_power_by_a_tensor_stays_a_library_call():
    assert_lowered_like_eager(lambda x, y: x**y, torch.arange(1, 6), torch.arange(5), externs=1)


@pytest.mark.parametrize("mode", ["floor", "trunc", None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.int32])
def test_division_modes(dtype, mode):
    a, b = torch.tensor([-8, -7, 7, 8, 0]).to(dtype), torch.tensor([3, -3, 3, -3, 3]).to(dtype)
    assert_lowered_like_eager(lambda a, b: (a.div(b, rounding_mode=mode), a.div(3, rounding_mode=mode)), a, b)


def test_reversed_operands():
    x = special(torch.float32)[:15]
    assert_lowered_like_eager(lambda x: (1 - x, 2 / x, 5 % x, 2 // x, torch.remainder(3, x)), x)


def test_shifts_and_wrapping_integers():
    x = torch.tensor([1, -5, 2**62, -(2**63)])
    assert_lowered_like_eager(lambda x: (x << 2, x >> 1, x * 3, x - 1, x + x, -x, ~x), x)
    small = torch.tensor([200, 100, 0, 255], dtype=torch.uint8)
    assert_lowered_like_eager(lambda x: (x + 100, x * 2, -x, x - 1, ~x), small)


@pytest.mark.parametrize("dtype", FLOATS)
def test_three_operands(dtype):
    def functions(a, b, c):
        yield torch.lerp(a, b, 0.3)
        yield torch.lerp(a, b, c.sigmoid())
        yield torch.addcmul(a, b, c, value=2)
        yield torch.addcdiv(a, b, c.exp(), value=0.5)
        yield torch.add(a, b, alpha=3)
        yield torch.sub(a, b, alpha=0.5)
        yield torch.rsub(a, b, alpha=2)

    inputs = [make((3, 17), dtype, seed=s) for s in range(3)]
    assert_lowered_like_eager(lambda *xs: list(functions(*xs)), *inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_selection_and_clamping(dtype):
    x, y = special(dtype), special(dtype).flip(0)

    def functions(x, y):
        yield torch.where(x > 0, x, y)
        yield torch.where(x > 0, x, 0)
        yield torch.where(x > 0, 1.0, 2.0)
        yield torch.where((x > 0)[:, None], x, y[:, None])
        yield x.masked_fill(x > 1, 3)
        yield x.masked_fill(y > 1, x[0])
        yield x.clamp(-1, 2)
        yield x.clamp(min=0)
        yield x.clamp(max=1)
        yield x.clamp(-0.5, 0.5)
        yield x.clamp(y, y + 1)
        yield x.clamp_min(0)
        yield x.clamp_max(y)

    assert_lowered_like_eager(lambda x, y: list(functions(x, y)), x, y)


# -- casts and copies -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool])
def test_casts(dtype):
    x = make((3, 17), dtype)
    targets = (*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.bool)
    assert_lowered_like_eager(lambda x: [x.to(t) for t in targets], x)


def test_a_round_trip_through_bfloat16_rounds():
    assert_lowered_like_eager(lambda x: x.to(torch.bfloat16).float() - x, make((1000,), torch.float32))


def test_copies_keep_or_change_strides():
    def functions(x):
        yield x.clone()
        yield x.contiguous()
        yield x.clone(memory_format=torch.contiguous_format)
        yield x.to(memory_format=torch.channels_last)
        yield x[:, :1].expand(4, 6, 5, 3).clone()
        yield torch.ops.aten.copy.default(x, torch.ones(3, dtype=torch.int32))
        yield torch.fill(x, 2.0)
        yield torch.ops.aten.fill.Tensor(x, x[0, 0, 0, 0])

    x = make((4, 5, 6, 3), torch.float32).transpose(1, 2)
    assert_lowered_like_eager(lambda x: list(functions(x)), x)


# -- derivatives ----------------------------------------------------------------------------------

aten = torch.ops.aten
DERIVATIVES = {
    "threshold": lambda g, x: aten.threshold_backward(g, x, 0.1),
    "sigmoid": lambda g, x: aten.sigmoid_backward(g, x),
    "tanh": lambda g, x: aten.tanh_backward(g, x),
    "silu": lambda g, x: aten.silu_backward(g, x),
    "gelu": lambda g, x: aten.gelu_backward(g, x),
    "gelu tanh": lambda g, x: aten.gelu_backward(g, x, approximate="tanh"),
    "leaky_relu": lambda g, x: aten.leaky_relu_backward(g, x, 0.1, False),
    "hardtanh": lambda g, x: aten.hardtanh_backward(g, x, -0.5, 0.5),
    "hardswish": lambda g, x: aten.hardswish_backward(g, x * 3),
    "hardsigmoid": lambda g, x: aten.hardsigmoid_backward(g, x * 3),
    "softplus": lambda g, x: aten.softplus_backward(g, x, 2.0, 1.0),
    "elu": lambda g, x: aten.elu_backward(g, 1.5, 1.1, 0.7, False, x),
    "elu of its result": lambda g, x: aten.elu_backward(g, 1.5, 1.1, 0.7, True, x),
    "dropout": lambda g, x: aten.native_dropout_backward(g, x > 0, 2.0),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivative(name):
    x = make((3, 17), torch.float32)
    assert_lowered_like_eager(DERIVATIVES[name], make((3, 17), torch.float32, seed=9), x, decompose=False)


# -- creation -------------------------------------------------------------------------------------

CREATION = {
    "arange": lambda x: (torch.arange(7), torch.arange(2, 9, 3), torch.arange(5, -3, -2), torch.arange(0)),
    "arange of floats": lambda x: (torch.arange(0, 1, 0.1), torch.arange(5.0), torch.arange(3, dtype=torch.bfloat16)),
    "linspace": lambda x: (torch.linspace(0, 1, 11), torch.linspace(-3, 5, 1), torch.linspace(2, -2, 8)),
    "full": lambda x: (
        torch.full((3,), 2.0),
        torch.zeros(2, 3),
        torch.ones(0, 3),
        torch.full((), 7),
        torch.full((2,), True),
    ),
    "like": lambda x: (torch.zeros_like(x), torch.ones_like(x, dtype=torch.int64), torch.full_like(x, 3.5)),
    "new": lambda x: (x.new_zeros(3), x.new_full((2,), 7.0), x.new_ones(2, 2)),
    "eye": lambda x: (torch.eye(4), torch.eye(3, 5, dtype=torch.int64)),
    "triangles": lambda x: (x.tril(), x.triu(1), x.tril(-2), x[0].triu(-1), torch.ones(5, 5, dtype=torch.bool).tril()),
    "one_hot": lambda x: F.one_hot(x.long().abs().contiguous(), 7),
    "diag_embed": lambda x: (torch.diag_embed(x), torch.diag_embed(x[0], 1), torch.diag_embed(x[0], -2, 0, 2)),
}


@pytest.mark.parametrize("name", CREATION)
def test_creation(name):
    assert_lowered_like_eager(CREATION[name], make((4, 6, 5), torch.float32))


def test_scalar_tensor_is_a_nest_without_axes():
    (nest,) = lower_function(lambda: torch.scalar_tensor(3.0, dtype=torch.bfloat16)).nodes
    assert isinstance(nest, LoopNest)
    assert [i.op for i in nest.body] == ["const", "store"]
