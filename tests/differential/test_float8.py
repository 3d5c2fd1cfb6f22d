"""8-bit floats, bit for bit: conversions in kernels against eager's, the GPU's helpers, what the compiler makes.

Kernels convert float8_e4m3fn and float8_e5m2 and compute in float32; targets before sm_89 keep the library call.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import triton.language as tl
from torch import Tensor

import fusec
from bench.cases import CASES
from fusec.inspect.explain import Explanation
from fusec.ir.types import Extern, Role
from fusec.lowering.promotion import converts_float8
from fusec.runtime import resources
from fusec.runtime.build import compile_request
from fusec.runtime.compiler import compile_kernel
from kernels import interpreted
from tests.codegen.plans import Build, generate, run
from tests.codegen.test_device import as_on_gpu

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
INF, NAN = float("inf"), float("nan")
EDGES = [
    0.0, -0.0, 1.0, -1.0, NAN, -NAN, INF, -INF, 448.0, 463.9, 464.0, 464.1, -464.0, -464.1, 480.0, -500.0, 57344.0,
    61439.0, 61440.0, -61440.0, 65504.0, 65536.0, -1e30, 3e38, 2.0**-9, 2.0**-10, 1.01 * 2.0**-10, -(2.0**-11),
    2.0**-16, 2.0**-17, 1.01 * 2.0**-17, 1e-30, -1e-45, 1.0625, 1.1875, 1.125, 1.375,
]  # fmt: skip


def numbers(n: int = 4097) -> Tensor:
    """float32 of every magnitude that 8-bit floats have, some beyond, and the edges."""
    generator = torch.Generator().manual_seed(8)
    exponents = torch.randint(-20, 20, (n,), generator=generator)
    return torch.cat([torch.tensor(EDGES), torch.randn(n, generator=generator) * 2.0**exponents])


def every(dtype: torch.dtype) -> Tensor:
    return torch.arange(256, dtype=torch.int64).to(torch.uint8).view(dtype)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[x.dtype.itemsize])


def library_calls(explanation: Explanation) -> list[object]:
    return [step.target for s in explanation.schedules for step in s.steps if isinstance(step, Extern)]


def check_one_kernel(fn: Callable[..., Tensor], *args: Tensor) -> None:
    assert library_calls(fusec.explain(fn)(*args)) == []
    expected, actual = fn(*args), fusec.compile(fn)(*args)
    assert actual.dtype is expected.dtype and actual.stride() == expected.stride()
    torch.testing.assert_close(actual.isnan(), expected.isnan())
    if expected.dtype.itemsize == 1:
        assert torch.equal(bits(actual), bits(expected))
    else:
        torch.testing.assert_close(actual, expected, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding(dtype: torch.dtype, source: torch.dtype) -> None:
    check_one_kernel(lambda x: x.to(dtype), numbers().to(source))


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_rounding_from_integers(dtype: torch.dtype) -> None:
    check_one_kernel(lambda x: x.to(dtype), torch.tensor([0, 1, -3, 17, 1000, -70000]))


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("target", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_all_values_widen(dtype: torch.dtype, target: torch.dtype) -> None:
    check_one_kernel(lambda x: x.to(target), every(dtype))


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_all_values_come_back(dtype: torch.dtype) -> None:
    check_one_kernel(lambda x: torch.maximum(x.float(), x.float() - 1).to(dtype), every(dtype))


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_to_bool_and_to_the_other_float8(dtype: torch.dtype) -> None:
    check_one_kernel(lambda x: x.to(torch.bool), every(dtype))
    check_one_kernel(lambda x: x.to(E5M2 if dtype is E4M3 else E4M3), every(dtype))


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_views_of_float8(dtype: torch.dtype) -> None:
    """Transposed, sliced, expanded, and as bytes; a sum over masked columns."""
    x = every(dtype).reshape(8, 32)
    check_one_kernel(lambda x: x.t().float() + 1, x)
    check_one_kernel(lambda x: x[1:7:2, 3:20].to(torch.bfloat16), x)
    check_one_kernel(lambda x: x.view(torch.uint8) + 1, x)
    check_one_kernel(lambda x: x.t().contiguous(), x)
    finite = torch.randn(3, 33).to(dtype)
    check_one_kernel(lambda x: x.float().amax(-1), finite)


def test_rounded_inside_a_kernel() -> None:
    """What was rounded stays rounded where the same kernel reads it again, in precision "fast" too."""
    check_one_kernel(lambda x: x.to(E4M3).float() * 2, torch.randn(1000))


def test_the_quantiser_is_one_kernel() -> None:
    work = CASES["quant_fp8_rowwise"].build("cpu", small=True)
    explanation = fusec.explain(work.fn, target="sm_90")(*work.args)
    (schedule,) = explanation.schedules
    assert len(schedule.steps) == 1 and library_calls(explanation) == []
    for actual, expected in zip(fusec.compile(work.fn)(*work.args), work.fn(*work.args), strict=True):
        assert torch.equal(bits(actual), bits(expected))


def test_other_ops_on_float8_stay_with_the_library() -> None:
    """No kernel computes in 8 bits: filling, joining."""
    x = every(E4M3).reshape(16, 16)
    for fn in (lambda x: torch.cat([x, x]), lambda x: torch.zeros_like(x), lambda x: torch.zeros(5).to(E5M2)):
        assert torch.equal(bits(fusec.compile(fn)(x)), bits(fn(x)))


def test_sm_80_keeps_the_library_call() -> None:
    x = torch.randn(100)
    for fn, argument in ((lambda x: (x * 2).to(E4M3), x), (lambda x: x.float() * 2, x.to(E5M2))):
        assert library_calls(fusec.explain(fn, target="sm_80")(argument)) == [torch.ops.aten._to_copy.default]
        result = fusec.compile(fn, target="sm_80")(argument)
        assert torch.equal(result.float(), fn(argument).float())


@pytest.mark.parametrize(
    ("target", "device", "expected"),
    [
        (None, "cpu", True),
        ("cpu", "cpu", True),
        ("sm_80", "cpu", False),
        ("sm_80", "cuda:0", False),
        ("sm_90", "cpu", True),
    ],
)
def test_which_targets_convert(target: str | None, device: str, expected: bool) -> None:
    assert converts_float8(target, device) is expected


# -- the GPU's side -------------------------------------------------------------------------------


def rounding(dtype: torch.dtype, n: int) -> Build:
    build = Build(x=n)
    build.buffer("x", torch.float32, (n,))
    build.buffer("out", dtype, (n,), Role.OUTPUT)
    build.store("out", build.index(x0=1), build.cast(build.load("x", build.index(x0=1)), dtype))
    return build


def reference(x: Tensor, dtype: torch.dtype, saturates: bool) -> Tensor:
    """Bits of the rounding, from the definition: among finite values the nearest one, of two the even one."""
    table = every(dtype)[:128].double()
    count = int(table.isfinite().sum())
    step = table[count - 1] - table[count - 2]
    finite = torch.cat([table[:count], table[count - 1 : count] + step])  # the one after the largest: out of range
    magnitude = x.double().abs().nan_to_num(0.0, posinf=1e300)
    above = torch.searchsorted(finite, magnitude).clamp(1, count)
    low, high = magnitude - finite[above - 1], finite[above] - magnitude
    nearest = torch.where((low < high) | ((low == high) & ((above - 1) % 2 == 0)), above - 1, above)
    overflow = count - 1 if saturates else 0x7F if dtype is E4M3 else 0x7C
    nearest = torch.where(nearest == count, overflow, nearest)
    nearest = torch.where(x.isnan(), 0x7F, nearest)
    return (nearest + 128 * x.signbit()).to(torch.uint8)


@pytest.mark.parametrize(
    ("helper", "dtype", "saturates"),
    [("float8_e4m3fn", E4M3, True), ("float8_e4m3fn_or_nan", E4M3, False), ("float8_e5m2", E5M2, False)],
)
def test_helpers_round_by_the_definition(
    helper: str, dtype: torch.dtype, saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The helpers' own Triton, over a conversion that saturates and has one NaN, as the GPU's instruction does."""
    monkeypatch.setattr("fusec.codegen.triton._saturates", lambda: saturates)
    x = numbers()
    source = as_on_gpu(generate(rounding(dtype, x.numel())))
    assert f"{helper}_helper(" in source.text
    monkeypatch.setattr("fusec.runtime.numpy_semantics.convert_float", _as_the_instruction)
    out = run(source, {"x": x, "out": torch.zeros_like(x).to(dtype)}, source.interpreter_tile)["out"]
    assert torch.equal(bits(out), reference(x, dtype, saturates))


def _as_the_instruction(data: object, source: object, target: object) -> object:
    dtype = {tl.float8e4nv: E4M3, tl.float8e5: E5M2}[target]
    x = torch.from_numpy(data)  # type: ignore[arg-type]
    return torch.where(x.isnan(), 0x7F, reference(x, dtype, True)).to(torch.int8).numpy().view("uint8")


def test_eager_rounds_by_the_definition_too() -> None:
    x = numbers()
    saturates = bool(torch.tensor(1e9).to(E4M3).float().isfinite())
    assert torch.equal(bits(x.to(E4M3)), reference(x, E4M3, saturates))
    assert torch.equal(bits(x.to(E5M2)), reference(x, E5M2, False))


@pytest.mark.parametrize("arch", [90, 100])
@pytest.mark.parametrize(("dtype", "name"), [(E4M3, "E4M3"), (E5M2, "E5M2")])
def test_the_compiler_takes_the_instruction(dtype: torch.dtype, name: str, arch: int) -> None:
    source = generate(rounding(dtype, 1 << 16))
    artifact = compile_kernel(compile_request(source, source.tile, arch))
    assert f"F2FP.SATFINITE.{name}." in resources._run("nvdisasm", ["-c"], artifact.cubin) and artifact.spills == 0


@pytest.mark.parametrize("arch", [90, 100])
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_loads_compile(dtype: torch.dtype, arch: int) -> None:
    """Masked loads that fill with a number, and a sum."""
    build = Build(x=64, r=100)
    build.buffer("x", dtype, (64, 100))
    build.buffer("out", torch.float32, (64,), Role.OUTPUT)
    value = build.cast(build.load("x", build.index(x0=100, r0=1)), torch.float32)
    build.store("out", build.index(x0=1), build.op("sum", value))
    source = generate(build)
    assert compile_kernel(compile_request(source, source.tile, arch)).spills == 0
    assert hasattr(interpreted.device, "float8_e5m2")
