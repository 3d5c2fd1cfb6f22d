"""Every row of the op table: its text, interpreted, equals its meaning on awkward values."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fusec.codegen.triton import TEXT
from fusec.ir.ops import OPS, OpKind, Result
from fusec.ir.types import Role
from fusec.kernels import device, interpreted
from tests.codegen.plans import Build, check, evaluate, generate, run

INF, NAN = float("inf"), float("nan")
FLOATS = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -0.5,
    1.5,
    2.5,
    -2.5,
    3.0,
    -7.0,
    0.1,
    100.0,
    -33.3,
    1e-7,
    INF,
    -INF,
    NAN,
    5.0,
    0.25,
]
FINITE = [v for v in FLOATS if abs(v) < INF]
INTS = [0, 1, -1, 2, 3, -3, 7, -7, 8, 100, -100, 63, 5, -5, 31, 64, 12]
FLOAT_ONLY = {
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal", "sigmoid", "sin", "cos",
    "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "erfc", "erfinv", "lgamma",
    "digamma", "trigamma", "i0", "i0e", "i1", "i1e", "erfcx", "ndtr", "ndtri", "div", "atan2", "copysign",
    "nextafter",
}  # fmt: skip
CASTS = [
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.int8, torch.uint8,
    torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip
INT_ONLY = {"shl", "shr"}
BITS = {"and", "or", "xor", "not"}
POINTWISE = [n for n, i in OPS.items() if i.kind is OpKind.POINTWISE and n not in ("cast", "bitcast", "where")]


def pairs(values: list, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    a = torch.tensor(values, dtype=torch.float64 if dtype.is_floating_point else torch.int64)
    x, y = torch.meshgrid(a, a, indexing="ij")
    return x.flatten().to(dtype), y.flatten().to(dtype)


def pointwise(op: str, *tensors: torch.Tensor, precision: str = "fast") -> Build:
    n = tensors[0].numel()
    build = Build(x=n, precision=precision)
    names = [f"a{k}" for k in range(len(tensors))]
    for name, tensor in zip(names, tensors, strict=True):
        build.buffer(name, tensor.dtype, tensor.shape, hint="xyz"[int(name[1])])
    values = [build.load(name, build.index(x0=1)) for name in names]
    result = build.op(op, *values)
    build.buffer("out", build.dtypes[result], tensors[0].shape, Role.OUTPUT)
    build.store("out", build.index(x0=1), result)
    return build


def test_every_op_has_text() -> None:
    assert set(TEXT) == set(OPS), "a row is missing in fusec/ir/ops.py or in fusec/codegen/triton.py"
    expressions = {n for n, row in TEXT.items() if row.render is not None}
    assert expressions == {n for n, i in OPS.items() if i.kind is OpKind.POINTWISE}


def test_helpers_have_the_same_names_on_gpu_and_in_the_interpreter() -> None:
    on_gpu = {n for n, f in vars(device).items() if hasattr(f, "fn") and not n.startswith("_")}
    assert on_gpu == {n for n in vars(interpreted.device) if not n.startswith("_")}


@pytest.mark.parametrize("op", [n for n in POINTWISE if OPS[n].arity == 1 and n not in ("not",)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_unary_floats(op: str, dtype: torch.dtype) -> None:
    x = torch.tensor(FLOATS, dtype=dtype)
    rtol = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float64: 1e-12}[dtype]
    check(pointwise(op, x), blocks={"x": 128}, a0=x, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("op", ["exp", "sqrt", "reciprocal", "sigmoid"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_unary_floats_rounded_as_eager_rounds(op: str, dtype: torch.dtype) -> None:
    x = torch.tensor(FLOATS, dtype=dtype)
    text = check(pointwise(op, x, precision="eager"), blocks={"x": 128}, a0=x, rtol=0.0, atol=0.0)
    exact = {"sqrt": "tl.sqrt_rn(", "reciprocal": "tl.div_rn(", "sigmoid": "device.sigmoid_rn("}
    if op in exact:
        assert (exact[op] in text) == (dtype is not torch.float64), "float64 is exact either way"


def test_zeros_keep_their_sign() -> None:
    x = torch.tensor([0.0, -0.0, 1.0])
    for op in ("neg", "abs", "round", "trunc", "floor", "ceil", "sin", "tanh", "sqrt", "erf"):
        build = pointwise(op, x)
        source = generate(build)
        out = run(source, {"a0": x, "out": torch.zeros(3)}, source.tile)["out"]
        assert out.signbit().tolist() == OPS[op].evaluate(x).signbit().tolist(), (op, source.text)  # type: ignore[misc]


def test_results_of_16_bits_take_the_quick_exponential() -> None:
    build = Build(x=64, r=100)
    build.buffer("x", torch.float32, (64, 100))
    build.buffer("out", torch.bfloat16, (64, 100), Role.OUTPUT)
    at = build.index(x0=100, r0=1)
    exp = build.op("exp", build.load("x", at))
    build.store("out", at, build.cast(build.op("div", exp, build.op("sum", exp)), torch.bfloat16))
    text = check(build, x=torch.randn(64, 100), rtol=1e-2, atol=1e-2)
    assert "device.exp_rough(x)" in text and "exp * (1.0 / total)" in text
    build.buffers["out"] = replace(build.buffers["out"], dtype=torch.float32)
    build.phases[-1][-1] = replace(build.phases[-1][-1], dtype=torch.float32)
    assert "device.exp(x)" in generate(build).text, "a float32 result keeps its accuracy"


@pytest.mark.parametrize("op", [n for n in POINTWISE if OPS[n].arity == 1 and n not in FLOAT_ONLY])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_unary_integers(op: str, dtype: torch.dtype) -> None:
    if dtype is torch.bool and op in ("neg", "abs", "sign", "floor", "ceil", "trunc", "round"):
        pytest.skip("not defined on bool")
    x = torch.tensor(INTS).to(dtype)
    check(pointwise(op, x), blocks={"x": 128}, a0=x)


@pytest.mark.parametrize("op", [n for n in POINTWISE if OPS[n].arity == 2 and n not in INT_ONLY | BITS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_binary_floats(op: str, dtype: torch.dtype) -> None:
    if op == "nextafter" and dtype is torch.float16:
        pytest.skip("not defined on float16")
    x, y = pairs(FLOATS, dtype)
    precision = "eager" if op == "div" else "fast"
    rtol = 3e-6 if dtype is torch.float32 else 2e-3
    check(pointwise(op, x, y, precision=precision), blocks={"x": 128}, a0=x, a1=y, rtol=rtol, atol=0.0)


@pytest.mark.parametrize("op", [n for n in POINTWISE if OPS[n].arity == 2 and n not in FLOAT_ONLY])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_binary_integers(op: str, dtype: torch.dtype) -> None:
    arithmetic = {"floordiv", "truncdiv", "mod", "fmod"}
    if dtype is torch.bool and op in arithmetic | INT_ONLY | {"pow", "sub", "fmin", "fmax"}:
        pytest.skip("not defined on bool")
    x, y = pairs(INTS, dtype)
    if op in arithmetic:
        y = torch.where(y == 0, 1, y).to(dtype)
    if op == "pow":
        y = y.abs() % 9 if dtype is not torch.bool else y
        x = x % 11
    if op in INT_ONLY and dtype is torch.uint8:
        y = y % 8
    check(pointwise(op, x, y), blocks={"x": 128}, a0=x, a1=y)


@pytest.mark.parametrize("op", ["floordiv", "mod", "maximum", "minimum", "pow", "add", "lt", "fmod"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.int8])
def test_literal_operands_keep_their_type(op: str, dtype: torch.dtype) -> None:
    values = FINITE if dtype.is_floating_point else [v for v in INTS if v]
    x = torch.tensor(values).to(dtype)
    for number in (3, -3) if op != "pow" else (3,):
        constant = number + 0.1 if dtype.is_floating_point and op != "pow" else number
        build = Build(x=x.numel())
        build.buffer("x", dtype, x.shape)
        build.buffer("left", torch.bool if op == "lt" else dtype, x.shape, Role.OUTPUT)
        build.buffer("right", torch.bool if op == "lt" else dtype, x.shape, Role.OUTPUT)
        at = build.index(x0=1)
        value, literal = build.load("x", at), build.const(constant, dtype)
        build.store("left", at, build.op(op, value, literal))
        if op not in ("floordiv", "mod", "fmod", "pow"):
            build.store("right", at, build.op(op, literal, value))
        check(build, x=x, rtol=1e-6 if dtype is torch.float32 else 1e-14, atol=0.0)


@pytest.mark.parametrize("source", CASTS)
@pytest.mark.parametrize("target", [t for t in CASTS if t is not torch.float8_e5m2])
def test_cast(source: torch.dtype, target: torch.dtype) -> None:
    values = torch.tensor([0.0, 1.0, -1.0, 2.7, -2.7, 100.3, 0.1, 27.0])
    if not source.is_signed or source is torch.bool:
        values = values.abs()
    x = values.to(source)
    build = Build(x=x.numel())
    build.buffer("x", source, x.shape)
    build.buffer("out", target, x.shape, Role.OUTPUT)
    build.store("out", build.index(x0=1), build.cast(build.load("x", build.index(x0=1)), target))
    source_text = check_exact(build, x)
    if source is torch.float32 and target is torch.bfloat16:
        assert ".to(" not in source_text, "a store converts float32 to bfloat16 by itself"


def check_exact(build: Build, x: torch.Tensor) -> str:
    """fp8 tensors have no equality of their own: compared as float32."""
    source = generate(build)
    tensors = {"x": x, "out": torch.zeros(x.shape).to(build.buffers["out"].dtype)}
    expected = evaluate(build, tensors)["out"].to(torch.float64)
    for tile in (source.tile, source.interpreter_tile):
        assert run(source, tensors, tile)["out"].to(torch.float64).tolist() == expected.tolist(), source.text
    return source.text


def test_where_takes_literals_and_bool_branches() -> None:
    x = torch.tensor(FLOATS)
    build = Build(x=x.numel())
    build.buffer("x", torch.float32, x.shape)
    build.buffer("out", torch.float32, x.shape, Role.OUTPUT)
    build.buffer("flag", torch.bool, x.shape, Role.OUTPUT)
    at = build.index(x0=1)
    value = build.load("x", at)
    positive = build.op("gt", value, build.const(0.0))
    build.store("out", at, build.op("where", positive, value, build.const(-INF)))
    build.store("flag", at, build.op("where", positive, build.op("isnan", value), build.const(True, torch.bool)))
    text = check(build, x=x)
    assert 'tl.where(above, x, float("-inf"))' in text


def test_results_know_their_dtype() -> None:
    assert OPS["lt"].result is Result.BOOL and OPS["argmax"].result is Result.INDEX
