"""generate_kernel on hand-built plans: masks, phases, index widths, names, safety, keys."""

from __future__ import annotations

import ast
from dataclasses import replace

import pytest
import torch

from fusec.codegen.kernel import generate_kernel
from fusec.config import Config
from fusec.errors import FusecError
from fusec.ir.kernels import KernelPlan, Tile
from fusec.ir.types import Axis, AxisKind, Instr, Role
from fusec.runtime.build import compile_request
from fusec.runtime.compiler import compile_kernel
from tests.codegen.plans import Build, bf16, check, f32, generate, i64, run


def copy(n: int, dtype: torch.dtype = f32) -> Build:
    build = Build(x=n)
    build.buffer("x", dtype, (n,))
    build.buffer("out", dtype, (n,), Role.OUTPUT)
    build.store("out", build.index(x0=1), build.load("x", build.index(x0=1)))
    return build


def values(n: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(n) * 50).to(dtype)


# -- masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 17, 1000, 4096, 4097])
@pytest.mark.parametrize("dtype", [f32, bf16, torch.float16, i64, torch.bool], ids=str)
def test_flat_copies_of_every_size_and_dtype(n: int, dtype: torch.dtype) -> None:
    check(copy(n, dtype), blocks={"x": 256}, x=values(n, dtype))


def test_a_mask_is_written_only_where_a_block_may_not_divide() -> None:
    assert "mask" not in generate(copy(4096), x=1024).text
    assert "mask = i < 4097" in generate(copy(4097), x=1024).text
    masked = generate(copy(1000), x=1024)
    assert "mask = i < 1000" in masked.text
    unmasked = generate(copy(3 * 4096), x=512)
    assert "mask" not in unmasked.text
    assert 3 * 4096 % unmasked.interpreter_tile.block("x") == 0, "the interpreter's block must divide too"


def test_a_candidate_tile_that_does_not_divide_is_dropped() -> None:
    build = copy(3 * 1024)
    plan = replace(build.plan(x=1024), candidates=(Tile((("x", 512),)), Tile((("x", 2048),))))
    source = generate_kernel(plan, build.buffers, build.config)
    assert "mask" not in source.text and [t.block("x") for t in source.candidates] == [512]


def test_an_extent_of_one_leaves_no_dimension() -> None:
    build = Build(x=1, r=300)
    build.buffer("x", f32, (1, 300))
    build.buffer("out", f32, (1,), Role.OUTPUT)
    build.store("out", build.index(), build.op("sum", build.load("x", build.index(r0=1))))
    text = check(build, x=torch.randn(1, 300), rtol=1e-5)
    assert "XBLOCK" not in text and "device.sum(x)" in text


def test_no_axes_at_all() -> None:
    build = Build(x=1)
    build.buffer("x", f32, ())
    build.buffer("out", f32, (), Role.OUTPUT)
    build.store("out", build.index(), build.op("exp", build.load("x", build.index())))
    check(build, x=torch.tensor(0.5))


# -- reductions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("looped", [False, True])
@pytest.mark.parametrize("rows, n", [(1, 1), (3, 17), (5, 128), (17, 129), (2, 0)])
@pytest.mark.parametrize("dtype", [f32, bf16, i64, torch.bool], ids=str)
def test_every_reduction(looped: bool, rows: int, n: int, dtype: torch.dtype) -> None:
    build = Build(looped=looped, x=rows, r=n)
    build.buffer("x", dtype, (rows, n))
    at = build.index(x0=n, r0=1)
    x = build.load("x", at)
    position = build.position(build.axis("r0"))
    ops = ("any", "all") if dtype is torch.bool else ("sum", "max", "min", "prod", "argmax", "argmin")
    for op in ops if n else ("sum",) * (dtype is not torch.bool):
        value = build.op(op, x, position) if op.startswith("arg") else build.op(op, x)
        build.buffer(op, build.dtypes[value], (rows,), Role.OUTPUT)
        build.store(op, build.index(x0=1), value)
    data = (torch.rand(rows, n) > 0.1) if dtype is torch.bool else (torch.randn(rows, n) * 2).round().to(dtype)
    tolerance = 2e-2 if dtype is bf16 else 1e-5
    check(build, x=data, rtol=tolerance, atol=tolerance, blocks={"x": 4, **({"r": 32} if looped else {})})


@pytest.mark.parametrize("looped", [False, True])
@pytest.mark.parametrize("op", ["max", "min", "argmax", "argmin"])
def test_extremes_propagate_nan_and_take_the_first_of_equals(op: str, looped: bool) -> None:
    data = torch.tensor([[1.0, 5.0, 5.0, -2.0, -2.0], [1.0, float("nan"), 9.0, float("nan"), -9.0], [-torch.inf] * 5])
    build = Build(looped=looped, x=3, r=5)
    build.buffer("x", f32, (3, 5))
    x = build.load("x", build.index(x0=5, r0=1))
    value = build.op(op, x, build.position(build.axis("r0"))) if op.startswith("arg") else build.op(op, x)
    build.buffer("out", build.dtypes[value], (3,), Role.OUTPUT)
    build.store("out", build.index(x0=1), value)
    blocks = {"x": 2, **({"r": 2} if looped else {})}
    source = generate(build, **blocks)
    out = run(source, {"x": data, "out": torch.zeros(3, dtype=build.dtypes[value])}, source.tile)["out"]
    torch.testing.assert_close(out, getattr(torch, {"max": "amax", "min": "amin"}.get(op, op))(data, 1), equal_nan=True)


def test_a_sum_of_what_does_not_vary_counts_every_point() -> None:
    for looped in (False, True):
        build = Build(looped=looped, x=6, r=10)
        build.buffer("x", f32, (6,))
        build.buffer("out", f32, (6,), Role.OUTPUT)
        build.buffer("ones", f32, (6,), Role.OUTPUT)
        at = build.index(x0=1)
        build.store("out", at, build.op("sum", build.load("x", at)))
        build.store("ones", at, build.op("sum", build.const(1.0)))
        check(build, x=torch.randn(6), blocks={"x": 4})


def test_padding_is_the_identity_without_a_select() -> None:
    build = Build(x=8, r=100)
    build.buffer("x", f32, (8, 100))
    build.buffer("out", f32, (8,), Role.OUTPUT)
    x = build.load("x", build.index(x0=100, r0=1))
    build.store("out", build.index(x0=1), build.op("sum", build.op("mul", x, x)))
    text = check(build, x=torch.randn(8, 100), rtol=1e-5)
    assert "col_mask, 0.0)" in text and "tl.where" not in text


def test_a_softmax_row_of_minus_infinity_and_of_nan() -> None:
    build = Build(x=4, r=9)
    build.buffer("x", f32, (4, 9))
    build.buffer("out", f32, (4, 9), Role.OUTPUT)
    at = build.index(x0=9, r0=1)
    x = build.load("x", at)
    exp = build.op("exp", build.op("sub", x, build.op("max", x)))
    build.store("out", at, build.op("div", exp, build.op("sum", exp)))
    data = torch.randn(4, 9)
    data[1], data[2, 3], data[3, 0] = -torch.inf, torch.nan, torch.inf
    text = check(build, x=data)
    assert "tl.where" not in text


def test_reducing_a_part_of_a_dimension_is_an_error() -> None:
    build = Build(x=4, r=(8, 16))
    build.buffer("x", f32, (4, 8, 16))
    build.buffer("out", f32, (4, 8), Role.OUTPUT)
    x = build.load("x", build.index(x0=128, r0=16, r1=1))
    build.phases[-1].append(Instr("%1", "sum", (x,), f32, None, (("axes", ("r1",)),)))
    build.dtypes["%1"] = f32
    build.store("out", build.index(x0=8, r0=1), "%1")
    with pytest.raises(FusecError, match=r"removes the axes r1; a kernel can reduce all axes"):
        generate(build)


# -- phases ---------------------------------------------------------------------------------------


def two_passes() -> Build:
    build = Build(looped=True, x=5, r=77)
    build.buffer("x", f32, (5, 77))
    build.buffer("scratch", f32, (5, 77), Role.TEMPORARY)
    build.buffer("out", f32, (5, 77), Role.OUTPUT)
    at = build.index(x0=77, r0=1)
    doubled = build.op("mul", build.load("x", at), build.const(2.0))
    build.store("scratch", at, doubled)
    total = build.op("sum", doubled)
    build.phase()
    build.store("out", at, build.op("sub", build.load("scratch", at), total))
    return build


def test_a_phase_that_reads_what_an_earlier_one_stored_waits() -> None:
    text = check(two_passes(), x=torch.randn(5, 77), rtol=1e-5, atol=1e-4, blocks={"x": 2, "r": 16})
    assert text.index("tl.debug_barrier()") > text.index("tl.store(scratch_ptr")
    assert text.count("for col_start in range(0, 77, RBLOCK):") == 2
    assert "\n\n    tl.debug_barrier()" in text, "one blank line between phases"


def test_eviction_hints_follow_the_last_read() -> None:
    build = Build(looped=True, x=5, r=64)
    build.buffer("x", f32, (5, 64))
    build.buffer("w", f32, (64,))
    build.buffer("out", f32, (5, 64), Role.OUTPUT)
    at = build.index(x0=64, r0=1)
    total = build.op("sum", build.load("x", at))
    build.phase()
    build.store(
        "out", at, build.op("mul", build.op("sub", build.load("x", at), total), build.load("w", build.index(r0=1)))
    )
    text = check(build, x=torch.randn(5, 64), w=torch.randn(64), rtol=1e-5, atol=1e-5)
    assert text.index("evict_last") < text.index("evict_first")
    assert 'tl.load(w_ptr + col, eviction_policy="evict_last")' in text


def test_a_value_that_waits_for_its_own_phase_is_an_error() -> None:
    build = Build(looped=True, x=4, r=64)
    build.buffer("x", f32, (4, 64))
    build.buffer("out", f32, (4, 64), Role.OUTPUT)
    at = build.index(x0=64, r0=1)
    x = build.load("x", at)
    build.store("out", at, build.op("sub", x, build.op("sum", x)))
    with pytest.raises(FusecError, match="belongs to the next phase"):
        generate(build)


# -- indices --------------------------------------------------------------------------------------


def test_several_axes_of_one_dimension_recombine_or_divide() -> None:
    build = Build(x=(4, 5, 6))
    build.buffer("x", f32, (4, 5, 6))
    build.buffer("out", f32, (6, 4, 5), Role.OUTPUT)
    value = build.load("x", build.index(x0=30, x1=6, x2=1))
    build.store("out", build.index(x0=5, x1=1, x2=20), value)
    text = check(build, x=torch.randn(4, 5, 6))
    assert "tl.load(x_ptr + i)" in text and "// 30" not in text


def test_a_transposed_2d_tile_with_ragged_edges() -> None:
    build = Build(y=33, x=70)
    build.buffer("x", f32, (70, 33))
    build.buffer("out", f32, (33, 70), Role.OUTPUT)
    build.store("out", build.index(y0=70, x0=1), build.load("x", build.index(x0=33, y0=1)))
    text = check(build, x=torch.randn(70, 33))
    assert "mask = i_mask & j_mask" in text


def test_two_grid_dimensions_and_a_reduction() -> None:
    build = Build(y=7, x=9, r=20)
    build.buffer("x", f32, (7, 20, 9))
    build.buffer("out", f32, (7, 9), Role.OUTPUT)
    total = build.op("sum", build.load("x", build.index(y0=180, r0=9, x0=1)))
    build.store("out", build.index(y0=9, x0=1), total)
    check(build, x=torch.randn(7, 20, 9), rtol=1e-5, blocks={"x": 4, "y": 2})


@pytest.mark.parametrize(
    "strides, expected",
    [
        ({"x0": 4096, "r0": 1}, "4096 * row + col"),
        ({"x0": 1 << 22, "r0": 1}, "4194304 * row.to(tl.int64) + col"),
        ({"x0": 1 << 20, "r0": 1, "offset": 2**31 - 2**29}, "1048576 * row.to(tl.int64) + col + 1610612736"),
    ],
)
def test_an_address_is_64_bit_only_where_32_bits_may_not_hold_it(strides: dict[str, int], expected: str) -> None:
    build = Build(x=1024, r=4096)
    build.buffer("x", f32, (1024, 1 << 22))
    build.buffer("out", f32, (1024,), Role.OUTPUT)
    build.store("out", build.index(x0=1), build.op("sum", build.load("x", build.index(**strides))))
    text = generate(build).text
    assert f"x_ptr + {expected}" in text
    assert "tl.store(out_ptr + row, total" in text, "the other address stays 32-bit"


def test_a_flat_index_beyond_32_bits() -> None:
    text = generate(copy(2**33), x=1024).text
    assert "i = tl.program_id(0).to(tl.int64) * XBLOCK" in text


def test_the_longer_grid_dimension_comes_first() -> None:
    build = Build(y=8, x=8 * 70000)
    build.buffer("x", f32, (8 * 70000, 8))
    build.buffer("out", f32, (8, 8 * 70000), Role.OUTPUT)
    build.store("out", build.index(y0=560000, x0=1), build.load("x", build.index(x0=8, y0=1)))
    source = generate(build, x=8, y=8)
    assert source.grid[0] == (560000, "XBLOCK") and "j = tl.program_id(0)" in source.text


def test_a_gather_with_negative_and_masked_positions() -> None:
    build = Build(x=50)
    build.buffer("ids", i64, (50,))
    build.buffer("table", f32, (7, 3))
    build.buffer("out", f32, (50,), Role.OUTPUT)
    ids = build.load("ids", build.index(x0=1))
    wrapped = build.op(
        "where", build.op("lt", ids, build.const(0, i64)), build.op("add", ids, build.const(7, i64)), ids
    )
    inside = build.op("lt", wrapped, build.const(6, i64))
    build.store("out", build.index(x0=1), build.load("table", build.value(wrapped, 6) * 3 + 2, inside, -1.0))
    check(build, ids=torch.randint(-7, 7, (50,)), table=torch.randn(7, 3), blocks={"x": 16})


def test_a_mask_wider_than_its_address() -> None:
    """The padding of a one-element load: the pointer is broadcast to the mask."""
    build = Build(x=40)
    build.buffer("x", f32, (4,))
    build.buffer("out", f32, (40,), Role.OUTPUT)
    inside = build.op("lt", build.position(build.axis("x0")), build.const(9, i64))
    build.store("out", build.index(x0=1), build.load("x", build.index(offset=3), inside, 0.5))
    check(build, x=torch.randn(4), blocks={"x": 16})


def test_positions_as_values_divide_like_python() -> None:
    build = Build(x=20)
    build.buffer("out", i64, (20,), Role.OUTPUT)
    build.buffer("real", f32, (20,), Role.OUTPUT)
    at = build.index(x0=1)
    build.store("out", at, build.position((build.axis("x0") - 9) // 4))
    build.store("real", at, build.cast(build.position(build.axis("x0")), f32))
    text = check(build, blocks={"x": 8})
    assert "i.to(tl.float32)" in text, "an index becomes a float without 64 bits"


# -- names and text -------------------------------------------------------------------------------


def named(node: str, buffer: str, code: str = "y = x + 1") -> Build:
    build = Build(x=64)
    build.buffer(buffer, f32, (64,), hint=f"encoder.layer.{node[-1]}.dense.weight")
    build.buffer("out" + buffer, f32, (64,), Role.OUTPUT)
    build.at(node, "aten.add.Tensor", code, line=int(node[-1]))
    at = build.index(x0=1)
    build.store("out" + buffer, at, build.op("add", build.load(buffer, at), build.const(1.0)))
    return build


def test_identical_layers_have_one_key_and_one_text_but_for_comments() -> None:
    first, second = generate(named("add_3", "buf3")), generate(named("add_7", "buf7", "z = h + 1"))
    assert first.cache_key == second.cache_key and first.name == second.name == "add_kernel"
    strip = [[line for line in s.text.splitlines() if not line.startswith("#")] for s in (first, second)]
    assert strip[0] == strip[1] and first.text != second.text


def test_the_key_follows_what_decides_the_binary() -> None:
    keys = {
        generate(copy(64)).cache_key,
        generate(copy(128)).cache_key,
        generate(copy(64), x=16).cache_key,
        generate(copy(64, torch.float16)).cache_key,
        generate_kernel(copy(64).plan(), copy(64).buffers, Config(precision="eager")).cache_key,
    }
    assert len(keys) == 5


HOSTILE = [
    'x"""\nimport os\nos.abort()',
    "a\rb\x0cc\u2028import os\u2029d\x85e",
    "'); raise SystemExit #",
    "weight\n@triton.jit",
    "class",
    "\u00e9\u4e2d\U0001f600",
    "tl",
    "../../etc/passwd",
    "\ud800",
]


def shape_of(text: str) -> list[str]:
    """The kinds of all syntax nodes: what is left of a text without its identifiers and comments."""
    return [type(node).__name__ for node in ast.walk(ast.parse(text))]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_nothing_of_the_users_escapes_into_code(hostile: str) -> None:
    build = Build(x=64)
    build.buffer("a", f32, (64,), hint=hostile)
    build.buffer("b", f32, (64,), Role.OUTPUT, hint=hostile)
    build.at(hostile, f"aten.{hostile}.default", hostile, file=f"/tmp/{hostile}.py")
    at = build.index(x0=1)
    build.store("b", at, build.op("add", build.load("a", at), build.const(1.0)))
    source = generate(build)
    assert all(c.isprintable() for line in source.text.split("\n") for c in line)
    assert shape_of(source.text) == shape_of(generate(named("add_3", "buf3")).text)
    source.text.encode("utf-8")
    check(build, a=torch.randn(64))


def test_a_header_says_where_the_kernel_comes_from() -> None:
    text = generate(named("add_3", "buf3")).text
    assert "# model.py:3  y = x + 1" in text
    assert "dense_weight_ptr: f32[64] (1)" in text and "boundary" in text and "4.1 kB read" in text


def test_names_tell_statistics_from_each_other() -> None:
    build = Build(x=8, r=128)
    build.buffer("x", f32, (8, 128))
    build.buffer("out", f32, (8, 128), Role.OUTPUT)
    at = build.index(x0=128, r0=1)
    x = build.load("x", at)
    n = build.const(128.0)
    centered = build.op("sub", x, build.op("div", build.op("sum", x), n))
    var = build.op("div", build.op("sum", build.op("mul", centered, centered)), n)
    rstd = build.op("rsqrt", build.op("add", var, build.const(1e-5)))
    build.store("out", at, build.op("mul", centered, rstd))
    text = check(build, x=torch.randn(8, 128), rtol=1e-5, atol=1e-5)
    body = [line.strip() for line in text.splitlines()]
    assert "mean = device.sum(x, 1) / 128.0" in body
    assert "var = device.sum(centered * centered, 1) / 128.0" in body
    assert "rstd = tl.rsqrt(var + 1e-05)" in body
    assert "tl.store(out_ptr + offset, centered * rstd)" in body


def test_a_dead_line_is_not_written() -> None:
    build = copy(64)
    build.phases[-1].insert(0, Instr("%dead", "const", (), f32, None, (("value", 3.0),)))
    build.phases[-1].insert(1, Instr("%deader", "exp", ("%dead",), f32))
    assert "tl.exp" not in generate(build).text


def test_a_plan_without_lines_still_makes_a_function() -> None:
    plan: KernelPlan = replace(copy(64).plan(), phases=((),))
    assert "pass" in generate_kernel(plan, copy(64).buffers, Config()).text


def test_an_unknown_dtype_is_named() -> None:
    build = copy(8)
    build.phases[-1].insert(1, Instr("%c", "cast", ("%0",), torch.complex64))
    build.phases[-1][-1] = replace(build.phases[-1][-1], args=("%c",))
    with pytest.raises(FusecError, match=r"torch\.complex64 has no Triton type"):
        generate(build)


def test_low_precision_ops_round_to_their_own_dtype() -> None:
    """bfloat16 operands of an op are computed in float32 and rounded after each op, as eager does."""
    build = Build(x=100)
    for name in ("x", "y"):
        build.buffer(name, bf16, (100,))
    build.buffer("out", bf16, (100,), Role.OUTPUT)
    at = build.index(x0=1)
    x, y = build.load("x", at), build.load("y", at)
    build.store("out", at, build.op("mul", build.op("add", x, y), build.const(0.1, bf16)))
    check(build, x=torch.randn(100).to(bf16), y=torch.randn(100).to(bf16), rtol=0.0, atol=0.0)


def test_axis_kinds_of_a_split_reduction() -> None:
    """A split reduction is an ordinary plan: the split axis is a grid axis, its tail masked by lines."""
    build = Build(x=(3, 4), r=30)
    build.axes = [
        Axis(a.name, a.extent, AxisKind.REDUCTION if a.name == "r0" else AxisKind.PARALLEL) for a in build.axes
    ]
    build.buffer("x", f32, (3, 100))
    build.buffer("partial", f32, (3, 4), Role.TEMPORARY)
    position = build.axis("x1") * 30 + build.axis("r0")
    inside = build.op("lt", build.position(position), build.const(100, i64))
    value = build.load("x", build.axis("x0") * 100 + position, inside, 0.0)
    build.store("partial", build.index(x0=4, x1=1), build.op("sum", value))
    check(build, x=torch.randn(3, 100), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("looped", [False, True])
def test_a_reduction_over_no_axes_is_a_copy(looped: bool) -> None:
    build = Build(looped=looped, r=100)
    build.buffer("x", f32, (100,))
    build.buffer("out", f32, (), Role.OUTPUT)
    x = build.load("x", build.index(r0=1))
    build.phases[-1].append(Instr("%1", "sum", (x,), f32, None, (("axes", ()),)))
    build.dtypes["%1"] = f32
    build.store("out", build.index(), build.op("sum", "%1"))
    check(build, x=torch.randn(100), rtol=1e-5, atol=1e-5)


def norm_backward(programs: int, rows: int, n: int) -> Build:
    """dx by rows and dweight by columns, from one read of the gradient."""
    build = Build(x=programs, q=rows, r=n)
    for name in ("grad", "normed"):
        build.buffer(name, f32, (programs * rows, n))
    build.buffer("w", f32, (n,))
    build.buffer("dx", f32, (programs * rows, n), Role.OUTPUT)
    build.buffer("partial", f32, (programs, n), Role.TEMPORARY)
    at = build.index(x0=rows * n, q0=n, r0=1)
    grad, normed = build.load("grad", at), build.load("normed", at)
    product = build.op("mul", grad, normed)
    scaled = build.op("mul", grad, build.load("w", build.index(r0=1)))
    mean = build.op("div", build.op("sum", build.op("mul", scaled, normed)), build.const(float(n)))
    build.store("dx", at, build.op("sub", scaled, build.op("mul", normed, mean)))
    build.store("partial", build.index(x0=n, r0=1), build.op("sum", product, over="q"))
    return build


@pytest.mark.parametrize("programs, rows, n", [(1, 30, 77), (3, 8, 64), (4, 5, 100), (2, 1, 9)])
def test_row_and_column_reductions_of_one_read(programs: int, rows: int, n: int) -> None:
    inputs = {k: torch.randn(programs * rows, n) for k in ("grad", "normed")}
    text = check(
        norm_backward(programs, rows, n), w=torch.randn(n), **inputs, blocks={"x": 1, "q": 2}, rtol=1e-5, atol=1e-5
    )
    assert text.count("tl.load(grad_ptr") == 1 and (rows == 1 or "for row_start in range" in text)


def test_a_row_and_column_kernel_that_ends_in_one_number() -> None:
    build = Build(q=30, r=77)
    build.buffer("x", f32, (30, 77))
    build.buffer("out", f32, (), Role.OUTPUT)
    x = build.load("x", build.index(q0=77, r0=1))
    largest = build.op("max", x)
    first = build.load("x", build.index(q0=77), build.op("gt", largest, build.const(0.0)), 0.0)
    build.store("out", build.index(), build.op("sum", build.op("sub", first, largest), over="q"))
    check(build, x=torch.randn(30, 77), blocks={"q": 4}, rtol=1e-5, atol=1e-5)
    source = generate(build, q=4)
    assert compile_kernel(compile_request(source, source.tile, 90)).spills == 0


def test_a_row_and_column_kernel_compiles() -> None:
    source = generate(norm_backward(4, 16, 1000), x=1, q=2)
    assert compile_kernel(compile_request(source, source.tile, 90)).spills == 0


def sums_of_sums(programs: int, rows: int, n: int, held: bool) -> Build:
    """The sums of rows are stored and added up, weighted; what a program's rows add up to is taken off every point."""
    build = Build(held=held, x=programs, q=rows, r=n)
    build.buffer("x", f32, (programs, rows, n))
    build.buffer("w", f32, (rows,))
    build.buffer("sums", f32, (programs, rows), Role.OUTPUT)
    build.buffer("y", f32, (programs, rows, n), Role.OUTPUT)
    at, row = build.index(x0=rows * n, q0=n, r0=1), build.index(x0=rows, q0=1)
    x = build.load("x", at)
    total = build.op("sum", x)
    build.store("sums", row, total)
    overall = build.op("sum", build.op("mul", total, build.load("w", build.index(q0=1))), over="q")
    if not held:
        build.phase()
        x, total = build.load("x", at), build.load("sums", row)
    build.store("y", at, build.op("mul", build.op("sub", x, overall), total))
    return build


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("programs, rows, n", [(1, 30, 77), (3, 8, 64), (5, 5, 100), (2, 3, 1), (9, 1, 17)])
def test_rows_that_need_what_all_of_them_add_up_to(programs: int, rows: int, n: int, held: bool) -> None:
    inputs = {"x": torch.randn(programs, rows, n), "w": torch.randn(rows)}
    blocks = {"x": 2} if held else {"x": 1, "q": 4}
    text = check(sums_of_sums(programs, rows, n, held), **inputs, blocks=blocks, rtol=1e-4, atol=1e-4)
    assert text.count("tl.load(x_ptr") == (1 if held else 2)
    assert text.count("for row_start in range") == (0 if held or rows == 1 else 2)


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("held", [False, True])
def test_rows_that_are_walked_over_again_compile(held: bool, arch: int) -> None:
    source = generate(sums_of_sums(4, 10, 500, held), x=1, **({} if held else {"q": 4}))
    assert compile_kernel(compile_request(source, source.tile, arch)).spills == 0
