"""The helpers as the GPU runs them: their Triton, interpreted line by line, against PyTorch and float64."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from fusec.codegen.text import Text
from fusec.codegen.triton import Operand, render
from fusec.ir.kernels import KernelSource
from fusec.ir.ops import OPS
from fusec.ir.types import Role
from fusec.kernels import device
from tests.codegen.plans import Build, check, evaluate, generate, run
from tests.codegen.test_ops import BITS, FLOATS, INT_ONLY, INTS, POINTWISE, pairs, pointwise

f32, f64, i64 = torch.float32, torch.float64, torch.int64


def as_on_gpu(source: KernelSource) -> KernelSource:
    """The same kernel with the helpers imported by name, where the interpreter does not replace them."""
    used = sorted(set(re.findall(r"device\.(\w+)\(", source.text)))
    text = re.sub(r"device\.(\w+)\(", r"\1_helper(", source.text)
    imports = "\n".join(f"from fusec.kernels.device import {n} as {n}_helper" for n in used)
    return replace(source, text=text.replace("from fusec.kernels import device", imports))


def calls_a_helper(op: str, dtype: torch.dtype) -> bool:
    operands = [Operand(Text(name), dtype) for name in "xy"[: OPS[op].arity]]
    return "device." in render(op, operands, dtype, "fast").text


def compare(build: Build, rtol: float, atol: float = 0.0, **inputs: torch.Tensor) -> None:
    source = generate(build)
    assert "device." in source.text
    tensors = {n: inputs.get(n, torch.zeros(b.shape, dtype=b.dtype)) for n, b in build.buffers.items()}  # type: ignore[arg-type]
    expected, actual = evaluate(build, tensors), run(as_on_gpu(source), tensors, source.interpreter_tile)
    for name in build.buffers:
        torch.testing.assert_close(actual[name], expected[name], rtol=rtol, atol=atol, equal_nan=True)


@pytest.mark.parametrize(
    "op",
    [n for n in POINTWISE if OPS[n].arity == 1 and n not in ("not", "digamma", "trigamma") and calls_a_helper(n, f32)],
)
@pytest.mark.parametrize("dtype", [f32, f64])
def test_unary(op: str, dtype: torch.dtype) -> None:
    x = torch.cat([torch.tensor(FLOATS), torch.linspace(-20, 20, 401), torch.linspace(-1, 1, 101)]).to(dtype)
    tolerance = 2e-6 if dtype is f32 else 1e-12
    compare(pointwise(op, x), tolerance, tolerance, a0=x)


def random_bits(position: dict[str, int], looped: bool = False, **dims: int | tuple[int, ...]) -> Build:
    """Four words at every point of a tile; position: the strides of the elements' positions."""
    build = Build(looped=looped, **dims)
    shape = tuple(int(a.extent) for a in build.axes)  # type: ignore[arg-type]
    strides = torch.empty(shape, device="meta").stride()
    at = build.index(**{a.name: s for a, s in zip(build.axes, strides, strict=True)})
    build.buffer("seeds", i64, (2,))
    seed, index = build.load("seeds", build.index(offset=1)), build.position(build.index(**position))
    for word in range(4):
        build.buffer(f"out{word}", torch.int32, shape, Role.OUTPUT)
        bits = build._add("philox", (seed, index, build.const(word, i64)), torch.int32)
        build.store(f"out{word}", at, bits)
    return build


NEIGHBOURS = [
    random_bits({"x0": 1}, x=1000),
    random_bits({"x0": 1}, x=3),
    random_bits({"x0": 1}, x=17),
    random_bits({"x0": 1, "offset": 1 << 30}, x=4097),
    random_bits({"x0": 12, "x1": 1}, x=(5, 12)),
    random_bits({"x0": 37, "x1": 1}, x=(5, 37)),
    random_bits({"x0": 20, "r0": 1}, x=6, r=20),
    random_bits({"x0": 64, "r0": 1}, looped=True, x=6, r=64),
    random_bits({"x0": 40, "r0": 1, "offset": 8}, looped=True, x=6, r=40),
    random_bits({"x0": 1, "r0": 12}, looped=True, x=12, r=37),
    random_bits({"y0": 1, "x0": 16}, y=16, x=9),
    random_bits({"y0": 16, "x0": 1 << 34, "r0": 1}, y=3, x=5, r=16),
]
APART = [
    random_bits({"x0": 2}, x=1000),
    random_bits({"x0": (1 << 33) + 7}, x=1000),
    random_bits({"x0": 1, "offset": 2}, x=1000),
    random_bits({"x0": 1, "x1": 5}, x=(5, 12)),
    random_bits({"x0": 37, "r0": 1}, x=6, r=37),
    random_bits({"x0": 37, "r0": 1}, looped=True, x=6, r=37),
    random_bits({"x0": 1, "r0": 6}, looped=True, x=6, r=40),
    random_bits({"x0": 4}, x=6, r=40),
]


@pytest.mark.parametrize(
    ("function", "build"), [("philox_neighbours", b) for b in NEIGHBOURS] + [("philox", b) for b in APART]
)
def test_philox(function: str, build: Build) -> None:
    """The Triton of both helpers, and their twins, give the bits of the function on PyTorch tensors."""
    text = check(build, rtol=0.0, atol=0.0, seeds=torch.tensor([5, -(1 << 62) + 12345]))
    assert set(re.findall(r"device\.(philox\w*)", text)) == {function}
    compare(build, 0.0, seeds=torch.tensor([5, -(1 << 62) + 12345]))


@pytest.mark.parametrize(
    "op", [n for n in POINTWISE if OPS[n].arity == 2 and n not in BITS | INT_ONLY and calls_a_helper(n, f32)]
)
def test_binary_floats(op: str) -> None:
    x, y = pairs(FLOATS, f32)
    compare(pointwise(op, x, y), 2e-6, a0=x, a1=y)


@pytest.mark.parametrize("op", ["floordiv", "mod", "pow", "shl", "shr"])
@pytest.mark.parametrize("dtype", [i64, torch.int8, torch.uint8])
def test_binary_integers(op: str, dtype: torch.dtype) -> None:
    x, y = pairs(INTS, dtype)
    if op in ("floordiv", "mod"):
        y = torch.where(y == 0, 1, y).to(dtype)
    if op in INT_ONLY:
        y = (y.to(i64) % (8 * dtype.itemsize)).to(dtype)
    if op == "pow":
        y = (y.to(i64) % 5).to(dtype)
    compare(pointwise(op, x, y), 0.0, a0=x, a1=y)


@pytest.mark.parametrize("op", ["sum", "prod", "max", "min", "argmax", "argmin", "any", "all"])
@pytest.mark.parametrize("looped", [False, True])
def test_reductions(op: str, looped: bool) -> None:
    logical = op in ("any", "all")
    build = Build(looped=looped, x=6, r=37)
    build.buffer("x", torch.bool if logical else f32, (6, 37))
    x = build.load("x", build.index(x0=37, r0=1))
    value = build.op(op, x, build.position(build.axis("r0"))) if op.startswith("arg") else build.op(op, x)
    build.buffer("out", build.dtypes[value], (6,), Role.OUTPUT)
    build.store("out", build.index(x0=1), value)
    data = torch.rand(6, 37) > 0.03 if logical else torch.randn(6, 37).round(decimals=1)
    if not logical:
        data[1, 5], data[1, 9], data[2] = torch.nan, torch.nan, 3.0
    compare(build, 1e-5, 1e-5, x=data)


@pytest.mark.parametrize("op", ["cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "cumargmax", "cumargmin"])
@pytest.mark.parametrize("looped", [False, True])
@pytest.mark.parametrize("rows", [1, 6])
def test_scans(rows: int, looped: bool, op: str) -> None:
    build = Build(looped=looped, x=rows, r=37)
    build.buffer("x", f32, (rows, 37))
    at = build.index(x0=37, r0=1)
    x = build.load("x", at)
    value = build.op(op, x, build.position(build.axis("r0"))) if "arg" in op else build.op(op, x)
    build.buffer("out", build.dtypes[value], (rows, 37), Role.OUTPUT)
    build.store("out", at, value)
    data = torch.randn(rows, 37).round(decimals=1)
    data[-1, 5], data[-1, 9], data[0, 20:] = torch.nan, torch.nan, 3.0
    compare(build, 1e-5, 1e-5, x=data)


@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
def test_circular_functions_are_as_accurate_as_eager(name: str) -> None:
    """Against float64: at most twice as far off as PyTorch. The interpreter's fma rounds twice: nothing huge here."""
    x = torch.cat([torch.linspace(-1e4, 1e4, 2001), torch.logspace(0, 5, 400), torch.pi / 2 * torch.arange(-50, 50)])
    x = x[x != 0].to(f32)
    source = as_on_gpu(generate(pointwise(name, x)))
    actual = run(source, {"a0": x, "out": torch.zeros_like(x)}, source.interpreter_tile)["out"]
    reference = getattr(torch, name)(x.double())
    error = ((actual.double() - reference) / reference).abs()
    eager = ((getattr(torch, name)(x).double() - reference) / reference).abs()
    assert error.max() <= 2 * eager.max() + 1.2e-7, (error.max(), eager.max())


@pytest.mark.parametrize("op", ["digamma", "trigamma", "i0e", "i1e"])
@pytest.mark.parametrize("dtype", [f32, f64])
def test_series_are_as_accurate_as_eager(op: str, dtype: torch.dtype) -> None:
    """Against PyTorch's float64, relative to the value, across every change of formula."""
    x = torch.cat([torch.linspace(-9.95, 40, 1500), torch.logspace(-6, 4, 500), torch.linspace(450, 550, 50)]).to(dtype)
    source = as_on_gpu(generate(pointwise(op, x)))
    actual = run(source, {"a0": x, "out": torch.zeros_like(x)}, source.interpreter_tile)["out"].double()
    evaluate = OPS[op].evaluate
    assert evaluate is not None
    reference = evaluate(x.double())
    scale = reference.abs().clamp(min=1.0 if op == "digamma" else 0.0)  # it has a root
    error, eager = (((v.double() - reference) / scale).abs() for v in (actual, evaluate(x)))
    slack = 8 if dtype is f32 else 512  # PyTorch's own float64 is no more exact
    assert error.max() <= 2 * eager.max() + slack * torch.finfo(dtype).eps, (
        x[error.argmax()],
        error.max(),
        eager.max(),
    )


def test_poles_and_limits_of_polygammas() -> None:
    x = torch.tensor([0.0, -0.0, -1.0, -7.0, torch.inf, -torch.inf, torch.nan])
    source = as_on_gpu(generate(pointwise("digamma", x)))
    out = run(source, {"a0": x, "out": torch.zeros_like(x)}, source.interpreter_tile)["out"]
    torch.testing.assert_close(out, torch.digamma(x), equal_nan=True)


@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
def test_circular_functions_stay_in_bounds_beyond_their_range(name: str) -> None:
    x = torch.tensor([1e18, -1e30, 3e38, torch.inf, -torch.inf, torch.nan])
    source = as_on_gpu(generate(pointwise(name, x)))
    out = run(source, {"a0": x, "out": torch.zeros_like(x)}, source.interpreter_tile)["out"]
    assert out[3:].isnan().all() and (name == "tan" or (out[:3].abs() <= 1).all())


def test_a_helper_that_is_no_op_says_what_it_is() -> None:
    public = {n: f for n, f in vars(device).items() if hasattr(f, "fn") and not n.startswith("_")}
    assert {"sigmoid_rn", "larger"} <= set(public)
    assert [n for n, f in public.items() if n not in OPS and not f.fn.__doc__] == []
