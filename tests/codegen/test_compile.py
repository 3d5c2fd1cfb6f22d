"""The same texts through Triton's compiler for three architectures, on a machine without a GPU."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from fusec.ir.ops import OPS, OpKind
from fusec.ir.types import Role
from fusec.runtime import resources
from fusec.runtime.build import compile_request
from fusec.runtime.compiler import Artifact, compile_kernel
from tests.codegen.plans import Build, bf16, f32, generate, i64
from tests.codegen.samples import BLOCKS, SAMPLES
from tests.codegen.test_ops import BITS, FLOAT_ONLY, INT_ONLY, pointwise

# 16-byte (loads, stores) of these kernels: every contiguous access, counted once an instruction.
WIDE = {
    "swiglu": (2, 1),
    "bias_gelu": (2, 1),
    "softmax": (1, 1),
    "layer_norm": (4, 1),
    "looped_layer_norm": (32, 4),
    "transpose": (2, 2),
    "embedding": (2, 1),
    "cat": (2, 1),
    "column_sum": (8, 0),
}


def compiled(build: Build, arch: int = 90, **blocks: int) -> Artifact:
    source = generate(build, **blocks)
    return compile_kernel(compile_request(source, source.tile, arch))


def wide(instructions: dict[str, int], kind: str) -> int:
    return sum(count for name, count in instructions.items() if name.startswith(kind) and "128" in name)


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("name", SAMPLES)
def test_compiles_without_spills(name: str, arch: int) -> None:
    artifact = compiled(SAMPLES[name](), arch, **BLOCKS[name])
    assert artifact.spills == 0
    if arch == 90 and name in WIDE:
        loads, stores = WIDE[name]
        assert wide(artifact.instructions, "LDG") >= loads, artifact.instructions
        assert wide(artifact.instructions, "STG") >= stores, artifact.instructions


@pytest.mark.parametrize("dtype", [f32, torch.float64, i64, torch.uint8, torch.bool], ids=str)
def test_every_op_compiles(dtype: torch.dtype) -> None:
    """All ops a dtype has, in one kernel."""
    floating = dtype.is_floating_point
    logical = {"and", "or", "xor", "not", "add", "mul", "minimum", "maximum", "eq", "ne", "lt", "le", "gt", "ge"}
    build = Build(x=4096)
    build.buffer("x", dtype, (4096,))
    build.buffer("y", dtype, (4096,))
    at = build.index(x0=1)
    x, y = build.load("x", at), build.load("y", at)
    for name, info in OPS.items():
        if info.kind is not OpKind.POINTWISE or name in ("cast", "bitcast", "where", "philox"):
            continue  # philox: test_a_thread_draws_once_for_four_neighbours
        if (floating and name in INT_ONLY | BITS) or (not floating and name in FLOAT_ONLY):
            continue
        if dtype is torch.bool and name not in logical:
            continue
        value = build.op(name, *(x, y)[: info.arity])
        build.buffer(f"out_{name}", build.dtypes[value], (4096,), Role.OUTPUT)
        build.store(f"out_{name}", at, value)
    assert compiled(build, x=256).spills == 0


@pytest.mark.parametrize("dtype", [f32, i64, torch.int32], ids=str)
def test_a_number_may_be_either_operand(dtype: torch.dtype) -> None:
    """op(x, 3) and op(3, x) of every binary op, in one kernel: a device function can ask no literal for its dtype."""
    build = Build(x=4096)
    build.buffer("x", dtype, (4096,))
    x, three = build.load("x", build.index(x0=1)), build.const(3, dtype)
    for name, info in OPS.items():
        missing = INT_ONLY | BITS if dtype.is_floating_point else FLOAT_ONLY
        if info.kind is not OpKind.POINTWISE or info.arity != 2 or name in missing or name == "checked":
            continue
        for side, operands in (("left", (three, x)), ("right", (x, three))):
            value = build.op(name, *operands)
            build.buffer(f"{name}_{side}", build.dtypes[value], (4096,), Role.OUTPUT)
            build.store(f"{name}_{side}", build.index(x0=1), value)
    assert compiled(build, x=256).spills == 0


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize(
    ("dims", "position", "blocks", "calls"),
    [
        ({"x": 4099}, {"x0": 1}, {"x": 1024}, 2),
        ({"x": 64, "r": 1024}, {"x0": 1024, "r0": 1}, {"x": 1}, 2),
        ({"y": 64, "x": 1000}, {"y0": 1000, "x0": 1}, {"y": 4, "x": 256}, 2),
        ({"y": 64, "x": 1000}, {"y0": 1, "x0": 1000}, {"y": 4, "x": 256}, 8),
    ],
)
def test_a_thread_draws_once_for_four_neighbours(
    dims: dict[str, int], position: dict[str, int], blocks: dict[str, int], calls: int, arch: int
) -> None:
    """8 elements a thread: two blocks of 20 wide products where positions are neighbours, and nothing is exchanged."""
    build = Build(**dims)
    shape = tuple(dims.values())
    strides = torch.empty(shape, device="meta").stride()
    build.buffer("seed", i64, (1,))
    build.buffer("x", bf16, shape)
    build.buffer("out", bf16, shape, Role.OUTPUT)
    seed, index = build.load("seed", build.index()), build.position(build.index(**position))
    bits = build._add("philox", (seed, index, build.const(2, i64)), torch.int32)
    at = build.index(**{a.name: s for a, s in zip(build.axes, strides, strict=True)})
    build.store("out", at, build.op("add", build.load("x", at), build.cast(bits, bf16)))
    artifact = compiled(build, arch, **blocks)
    text = resources._run("nvdisasm", ["-c"], artifact.cubin)
    products = len(re.findall(r"IMAD\.(?:WIDE|HI)\.U32 ", text))
    assert artifact.spills == artifact.shared == 0
    assert 16 * calls <= products <= 24 * calls, products


@pytest.mark.parametrize("looped", [False, True])
@pytest.mark.parametrize("dtype", [f32, bf16, i64, torch.int8, torch.bool], ids=str)
def test_every_reduction_compiles(dtype: torch.dtype, looped: bool) -> None:
    build = Build(looped=looped, x=64, r=1000)
    build.buffer("x", dtype, (64, 1000))
    x = build.load("x", build.index(x0=1000, r0=1))
    position = build.position(build.axis("r0"))
    for name, info in OPS.items():
        if info.kind is not OpKind.REDUCTION or (name in ("any", "all")) != (dtype is torch.bool):
            continue
        if name in ("exp_sum", "dev_sum", "mean") and not dtype.is_floating_point:
            continue
        if name in ("dev_sum", "mean") and not looped:  # a held row takes two steps of other reductions
            continue
        value = build.op(name, x, position) if info.arity == 2 else build.op(name, x)
        build.buffer(f"out_{name}", build.dtypes[value], (64,), Role.OUTPUT)
        build.store(f"out_{name}", build.index(x0=1), value)
    assert compiled(build, x=4, **({"r": 256} if looped else {})).spills == 0


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_a_check_costs_no_spill_and_keeps_accesses_wide(arch: int) -> None:
    build = Build(x=4096 * 64)
    build.buffer("ids", i64, (4096,))
    build.buffer("table", bf16, (1000, 64))
    build.buffer("out", bf16, (4096, 64), Role.OUTPUT)
    at = build.axis("x0")
    row, zero, rows = build.load("ids", at // 64), build.const(0, i64), build.const(1000, i64)
    inside = build.op("and", build.op("ge", row, zero), build.op("lt", row, rows))
    checked = build._add("checked", (inside, row), i64)
    build.store("out", at, build.load("table", build.value(checked, 999) * 64 + at % 64))
    source = generate(build, x=1024)
    assert "tl.device_assert(" in source.text
    artifact = compile_kernel(compile_request(source, source.tile, arch))
    assert artifact.spills == 0 and wide(artifact.instructions, "LDG") and wide(artifact.instructions, "STG")


@pytest.mark.parametrize("looped", [False, True])
@pytest.mark.parametrize("dtype", [f32, i64], ids=str)
def test_every_scan_compiles(dtype: torch.dtype, looped: bool) -> None:
    for name, info in OPS.items():
        if info.kind is not OpKind.SCAN or (name == "logcumsumexp" and not dtype.is_floating_point):
            continue
        build = Build(looped=looped, x=64, r=1000)
        build.buffer("x", dtype, (64, 1000))
        at = build.index(x0=1000, r0=1)
        x = build.load("x", at)
        value = build.op(name, x, build.position(build.axis("r0"))) if info.arity == 2 else build.op(name, x)
        build.buffer("out", build.dtypes[value], (64, 1000), Role.OUTPUT)
        build.store("out", at, value)
        assert compiled(build, x=1, **({"r": 256} if looped else {})).spills == 0, name


def test_eager_precision_keeps_multiply_and_add_apart() -> None:
    build = Build(x=4096)
    for name in ("x", "y", "out"):
        build.buffer(name, f32, (4096,), Role.OUTPUT if name == "out" else Role.INPUT)
    x, y = build.load("x", build.index(x0=1)), build.load("y", build.index(x0=1))
    build.store("out", build.index(x0=1), build.op("add", build.op("mul", x, y), x))
    fast = compile_request(generate(build), generate(build).tile, 90)
    apart = replace(fast, fuse_multiply_add=False)
    assert len({compile_kernel(r).cubin for r in (fast, apart)}) == 2
    build.config = replace(build.config, precision="eager")
    assert compile_request(generate(build), generate(build).tile, 90).fuse_multiply_add is False


def test_eager_precision_divides_correctly_rounded() -> None:
    x = torch.ones(4096)
    source = generate(pointwise("div", x, x, precision="eager"))
    assert "tl.div_rn(x, y)" in source.text
    assert compile_kernel(compile_request(source, source.tile, 90)).cubin


def test_one_float32_reduction_of_every_rank() -> None:
    """A kernel without a grid reduces to a scalar."""
    build = Build(r=5000)
    build.buffer("x", f32, (5000,))
    build.buffer("out", f32, (), Role.OUTPUT)
    total = build.op("sum", build.load("x", build.index(r0=1)))
    build.store("out", build.index(), total)
    source = generate(build)
    assert re.search(r"tl\.store\(out_ptr, total\)", source.text)
    assert compile_kernel(compile_request(source, source.tile, 90)).spills == 0
