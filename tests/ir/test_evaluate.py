"""The evaluator against PyTorch: every row of the op table on awkward values, memory, reductions, whole programs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fusec.ir.evaluate import evaluate_nest, evaluate_program, evaluate_schedule, storage_size
from fusec.ir.kernels import DimKind, KernelCost, KernelPlan, Schedule, Strategy, Tile, TileDim
from fusec.ir.ops import OPS, OpKind, Result, identity
from fusec.ir.parser import parse_program
from fusec.ir.printer import SHORT_NAMES
from fusec.ir.types import Access, AccessMode, Axis, Buffer, Instr, LoopNest, Program, Role, TensorView

FLOATS = [0.0, -0.0, 1.0, -1.5, 0.5, 2.5, -2.5, 1e-3, 100.0, float("inf"), float("-inf"), float("nan")]
INTS = [0, 1, -1, 2, -7, 3, 100, -128]
SHORT = {name: dtype for dtype, name in SHORT_NAMES.items()}


def awkward(dtype: torch.dtype) -> torch.Tensor:
    if dtype is torch.bool:
        return torch.tensor([False, True])
    return torch.tensor(FLOATS if dtype.is_floating_point else INTS).to(dtype)


def run(body: str, out: str, *inputs: torch.Tensor, axes: str = "p0<12", returns: str = "") -> torch.Tensor:
    """The tensor `y` of a nest over contiguous inputs a, b, c."""
    lines = [f"program f ({', '.join('abc'[: len(inputs)])})"]
    for name, x in zip("abc", inputs, strict=False):
        lines.append(f"in {name}: {SHORT_NAMES[x.dtype]}{list(x.shape)} ({', '.join(map(str, x.stride()))}) cpu")
    program = parse_program("\n".join([*lines, f"out {out} cpu", f"nest n0 ({axes}):", body, "return y"]))
    result = evaluate_program(program, inputs)[0]
    assert isinstance(result, torch.Tensor)
    return result


POINTWISE = [
    op for op, info in OPS.items() if info.kind is OpKind.POINTWISE and op not in ("cast", "bitcast", "philox")
]
INTEGER_ONLY = {"not", "and", "or", "xor", "shl", "shr"}
BOOL_TOO = {"not", "and", "or", "xor", "eq", "ne", "where", "minimum", "maximum"}
INTEGERS_TOO = INTEGER_ONLY | {
    "neg", "abs", "sign", "add", "sub", "mul", "floordiv", "truncdiv", "mod", "fmod", "pow", "minimum", "maximum",
    "eq", "ne", "lt", "le", "gt", "ge", "where",
}  # fmt: skip
EAGER = {  # the function a user calls, where its name is not the op's
    "sign": torch.sgn, "not": torch.bitwise_not, "div": torch.true_divide, "floordiv": torch.floor_divide,
    "truncdiv": lambda a, b: torch.div(a, b, rounding_mode="trunc"), "mod": torch.remainder,
    "and": torch.bitwise_and, "or": torch.bitwise_or, "xor": torch.bitwise_xor,
    "shl": torch.bitwise_left_shift, "shr": torch.bitwise_right_shift, "i0e": torch.special.i0e,
    "i1": torch.special.i1, "i1e": torch.special.i1e, "trigamma": lambda x: torch.polygamma(1, x),
    "erfcx": lambda x: torch.special.erfcx(x.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype),
    "ndtr": lambda x: 0.5 * (1.0 + torch.erf(x * 0.5**0.5)),
    "ndtri": lambda x: torch.special.ndtri(x.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype),
}  # fmt: skip


def row_cases() -> list[tuple[str, str]]:
    cases = []
    for op in POINTWISE:
        floats = [] if op in INTEGER_ONLY else ["f32", "f64", "bf16", "f16"]
        cases += [(op, d) for d in floats + ["i64", "i32"] * (op in INTEGERS_TOO) + ["bool"] * (op in BOOL_TOO)]
    return cases


@pytest.mark.parametrize(("op", "dtype"), row_cases())
def test_pointwise_row(op: str, dtype: str) -> None:
    values = awkward(SHORT[dtype])
    divides = op in ("floordiv", "truncdiv", "mod", "fmod") and not values.is_floating_point()
    exponents = op in ("pow", "shl", "shr") and not values.is_floating_point()
    second = values[values != 0] if divides else values.abs().clamp(max=5) if exponents else values
    condition = torch.tensor([True, False])
    operands = {1: (values,), 2: (values, second), 3: (condition, values, second)}[OPS[op].arity]
    placed = [v.view([-1 if i == j else 1 for j in range(len(operands))]) for i, v in enumerate(operands)]
    grid = [g.contiguous() for g in torch.broadcast_tensors(*placed)]
    points = grid[0].numel()
    lines = [f"%{i}:{SHORT_NAMES[g.dtype]} = load {n}[p0]" for i, (n, g) in enumerate(zip("abc", grid, strict=False))]
    result = "bool" if OPS[op].result is Result.BOOL else dtype
    lines += [f"%9:{result} = {op} {', '.join(f'%{i}' for i in range(len(grid)))}", "store y[p0], %9"]
    got = run("\n".join(lines), f"y: {result}[{points}] (1)", *(g.reshape(-1) for g in grid), axes=f"p0<{points}")
    expected = EAGER.get(op, getattr(torch, op, None))(*grid).reshape(-1)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("source", ["f32", "bf16", "i64", "i8", "bool"])
@pytest.mark.parametrize("target", ["f32", "f16", "bf16", "i64", "i32", "bool"])
def test_cast_converts_as_to(source: str, target: str) -> None:
    values = awkward(SHORT[source])
    if values.is_floating_point() and target in ("i64", "i32"):
        values = values[torch.isfinite(values)]
    n = values.numel()
    got = run(
        f"%0:{source} = load a[p0]\n%1:{target} = cast %0\nstore y[p0], %1", f"y: {target}[{n}] (1)", values,
        axes=f"p0<{n}",
    )  # fmt: skip
    torch.testing.assert_close(got, values.to(SHORT[target]), rtol=0, atol=0, equal_nan=True)


def test_bitcast_keeps_bits() -> None:
    values = awkward(torch.float32)
    got = run("%0:f32 = load a[p0]\n%1:i32 = bitcast %0\nstore y[p0], %1", "y: i32[12] (1)", values)
    assert torch.equal(got, values.view(torch.int32))


# -- reductions -----------------------------------------------------------------------------------

REDUCE = {
    "sum": lambda x, d: x.sum(d, dtype=x.dtype), "prod": lambda x, d: x.prod(d, dtype=x.dtype),
    "max": lambda x, d: x.amax(d), "min": lambda x, d: x.amin(d), "any": lambda x, d: x.any(d),
    "all": lambda x, d: x.all(d),
}  # fmt: skip


@pytest.mark.parametrize(
    ("op", "dtype"), [(op, d) for op in sorted(REDUCE) for d in (["bool"] if op in ("any", "all") else ["f32", "i64"])]
)
@pytest.mark.parametrize("over", [0, 1])
def test_reduction_row(op: str, dtype: str, over: int) -> None:
    values = awkward(SHORT[dtype])
    x = values.repeat(24)[:24].view(4, 6).contiguous()
    kept, reduced = (("p0", "r0") if over == 1 else ("r0", "p0")), x.shape[1 - over]
    axes = f"p0<{reduced}, r0<{x.shape[over]}"
    body = f"%0:{SHORT_NAMES[x.dtype]} = load a[6*{kept[0]} + {kept[1]}]\n%1:{SHORT_NAMES[x.dtype]} = {op} %0 over r0"
    got = run(body + "\nstore y[p0], %1", f"y: {SHORT_NAMES[x.dtype]}[{reduced}] (1)", x, axes=axes)
    torch.testing.assert_close(got, REDUCE[op](x, over), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("op", ["argmax", "argmin"])
@pytest.mark.parametrize("values", [[3.0, 1.0, 3.0, 1.0], [1.0, float("nan"), 5.0, float("nan")], [0.0] * 4])
def test_arg_extreme_takes_the_first_and_nan_wins(op: str, values: list[float]) -> None:
    x = torch.tensor(values)
    body = f"%0:f32 = load a[r0]\n%1:i64 = index r0\n%2:i64 = {op} %0, %1 over r0\nstore y[0], %2"
    assert run(body, "y: i64[] ()", x, axes="r0<4") == getattr(torch, op)(x)


def test_a_value_that_does_not_vary_counts_once_a_point() -> None:
    assert run("%0:f32 = const 2.0\n%1:f32 = sum %0 over r0\nstore y[0], %1", "y: f32[] ()", axes="r0<8") == 16.0


@pytest.mark.parametrize(("op", "expected"), [("sum", 0.0), ("prod", 1.0), ("max", float("-inf"))])
def test_a_reduction_over_nothing_is_its_identity(op: str, expected: float) -> None:
    x = torch.empty(3, 0)
    body = f"%0:f32 = load a[p0 + r0]\n%1:f32 = {op} %0 over r0\nstore y[p0], %1"
    assert run(body, "y: f32[3] (1)", x, axes="p0<3, r0<0").tolist() == [expected] * 3
    assert identity(op, torch.float32) == expected


def test_several_reductions_over_several_axes() -> None:
    x = torch.randn(3, 4, 5)
    body = """
    %0:f32 = load a[20*p0 + 5*r0 + r1]
    %1:f32 = max %0 over r1
    %2:f32 = sub %0, %1
    %3:f32 = sum %2 over r0, r1
    store y[p0], %3"""
    got = run(body, "y: f32[3] (1)", x, axes="p0<3, r0<4, r1<5")
    torch.testing.assert_close(got, (x - x.amax(2, keepdim=True)).sum((1, 2)))


# -- memory ---------------------------------------------------------------------------------------


def test_masked_loads_stay_inside_and_give_other() -> None:
    x = torch.arange(4.0)
    body = """
    %0:i64 = index p0
    %1:i64 = const 4
    %2:bool = lt %0, %1
    %3:f32 = load a[p0], mask=%2, other=-1.0
    store y[p0], %3"""
    assert run(body, "y: f32[12] (1)", x).tolist() == [0, 1, 2, 3] + [-1] * 8


def test_masked_stores_leave_the_rest() -> None:
    x = torch.arange(12.0)
    body = """
    %0:f32 = load a[p0]
    %1:f32 = const 6.0
    %2:bool = ge %0, %1
    store y[p0], %0, mask=%2"""
    assert run(body, "y: f32[12] (1)", x).tolist() == [0] * 6 + [6, 7, 8, 9, 10, 11]


def test_a_loaded_value_is_an_index() -> None:
    rows, table = torch.tensor([2, 0, 1]), torch.randn(3, 4)
    got = run("%0:i64 = load a[p0]\n%1:f32 = load b[4*%0 + p1]\nstore y[4*p0 + p1], %1", "y: f32[3, 4] (4, 1)",
              rows, table, axes="p0<3, p1<4")  # fmt: skip
    assert torch.equal(got, table[rows])


def test_a_store_converts_and_broadcasts() -> None:
    got = run("%0:f32 = const 1.00390625\nstore y[p0], %0", "y: bf16[12] (1)")
    assert torch.equal(got, torch.full((12,), 1.00390625).to(torch.bfloat16))


def test_atomic_add_accumulates() -> None:
    rows = torch.tensor([0, 1, 0, 0])
    got = run("%0:i64 = load a[p0]\n%1:f32 = const 1.0\natomic_add y[%0], %1", "y: f32[2] (1)", rows, axes="p0<4")
    assert got.tolist() == [3.0, 1.0]


@pytest.mark.parametrize("x", [
    torch.randn(6, 4).t(), torch.randn(4, 1).expand(4, 6), torch.randn(8, 12)[::2, ::2], torch.randn(4, 7)[:, 1:],
    torch.randn(0, 5), torch.tensor(3.0), torch.randn(1, 1, 17).to(torch.bfloat16),
], ids=["transposed", "expanded", "strided", "sliced", "empty", "0-dim", "ones"])  # fmt: skip
def test_inputs_of_any_strides(x: torch.Tensor) -> None:
    axes = [Axis(f"p{i}", n) for i, n in enumerate(x.shape)]
    source = sum((a.symbol * s for a, s in zip(axes, x.stride(), strict=True)), start=0 * Axis("q", 2).symbol)
    flat = torch.empty(x.shape).stride()
    target = sum((a.symbol * s for a, s in zip(axes, flat, strict=True)), start=0 * Axis("q", 2).symbol)
    memory = {
        "a": torch.full((storage_size(x.shape, x.stride()),), float("nan"), dtype=x.dtype),
        "y": torch.zeros(x.numel(), dtype=x.dtype),
    }
    assert memory["a"].numel() <= max(1, sum(s * n for s, n in zip(x.stride(), x.shape, strict=True)))
    table = {
        "a": Buffer("a", x.dtype, tuple(x.shape), x.stride(), "cpu", Role.INPUT),
        "y": Buffer("y", x.dtype, tuple(x.shape), flat, "cpu", Role.OUTPUT),
    }
    body = (
        Instr("%0", "load", (), x.dtype, Access("a", source)),
        Instr(None, "store", ("%0",), x.dtype, Access("y", target, AccessMode.STORE)),
    )
    program = program_of(table, axes, body, x)
    assert torch.equal(evaluate_program(program, [x])[0], x)


def program_of(table: dict[str, Buffer], axes: list[Axis], body: tuple[Instr, ...], x: torch.Tensor) -> Program:
    text = "program f (a)\nreturn"
    y = table["y"]
    nest = LoopNest("n0", tuple(axes), body)
    outputs = (TensorView("y", y.shape, y.strides),)
    return replace(parse_program(text), buffers=tuple(table.values()), nodes=(nest,), outputs=outputs)


def test_calls_receive_views_and_fill_buffers() -> None:
    program = parse_program("""
    program f (a)
      in  a: f32[3, 4] (4, 1) cpu
      tmp m: f32[3, 3] (3, 1) cpu
      out v: f32[3] (1) cpu
      out i: i64[3] (1) cpu
    extern e0: m = aten.mm.default(a, a[4, 3](1, 4))
    extern e1: v, i = aten.max.dim(m, 1)
    return v, i, m[2](3) + 1, 7, None
    """)
    a = torch.randn(3, 4)
    values, positions, column, seven, none = evaluate_program(program, [a])
    expected = (a @ a.t()).max(1)
    torch.testing.assert_close(values, expected.values)
    assert torch.equal(positions, expected.indices)
    torch.testing.assert_close(column, (a @ a.t())[:2, 1])
    assert (seven, none) == (7, None)


def test_inputs_are_not_changed_by_calls_in_place() -> None:
    program = parse_program("program f (a)\nin a: f32[3] (1) cpu\nextern e0: aten.neg_.default(a) mutates a\nreturn a")
    a = torch.ones(3)
    assert evaluate_program(program, [a])[0].tolist() == [-1, -1, -1] and a.tolist() == [1, 1, 1]


def test_wrong_inputs_are_named() -> None:
    program = parse_program("program f (a)\nin a: f32[3] (1) cpu\nreturn a")
    with pytest.raises(ValueError, match="takes 1 arguments, got 2"):
        evaluate_program(program, [torch.ones(3), torch.ones(3)])
    with pytest.raises(ValueError, match=r"a has shape \(3,\), got a tensor of shape \(4,\)"):
        evaluate_program(program, [torch.ones(4)])


def test_observer_sees_inner_values() -> None:
    seen: dict[str, torch.Tensor] = {}
    table = {"y": Buffer("y", torch.float32, (3,), (1,), "cpu", Role.OUTPUT)}
    program = parse_program(
        "program f ()\nout y: f32[3] (1) cpu\nnest n0 (p0<3, r0<4):\n%0:i64 = index p0 + r0\n%1:f32 = cast %0\n"
        "%2:f32 = sum %1 over r0\nstore y[p0], %2\nreturn y"
    )
    nest = program.nodes[0]
    evaluate_nest(nest.axes, nest.body, table, {"y": torch.zeros(3)}, name="n0",
                  on_value=lambda name, instr, value: seen.update({f"{name}{instr.out}": value}))  # fmt: skip
    assert list(seen) == ["n0%0", "n0%1", "n0%2"]
    assert seen["n0%1"].shape == (3, 4) and seen["n0%2"].tolist() == [[6.0], [10.0], [14.0]]


def test_a_schedule_means_what_its_program_means() -> None:
    program = parse_program("""
    program f (a)
      in  a: f32[3, 5] (5, 1) cpu
      out y: f32[3, 5] (5, 1) cpu
    nest n0 (p0<3, r0<5):
      %0:f32 = load a[5*p0 + r0]
      %1:f32 = max %0 over r0
      %2:f32 = load a[5*p0 + r0]
      %3:f32 = sub %2, %1
      store y[5*p0 + r0], %3
    return y
    """)
    nest = program.nodes[0]
    plan = KernelPlan(
        "k0", nest.axes, (TileDim("x", ("p0",), DimKind.GRID), TileDim("r", ("r0",), DimKind.LOOP)),
        (nest.body[:2], nest.body[2:]), program.buffers, Strategy.LOOPED_ROW, Tile((("x", 1), ("r", 4))),
        KernelCost(120, 60, 180, 30, 16, 1e-6),
    )  # fmt: skip
    schedule = Schedule("f", program.buffers, (plan,), program.inputs, program.outputs)
    a = torch.randn(3, 5)
    assert torch.equal(evaluate_schedule(schedule, [a])[0], a - a.amax(1, keepdim=True))
    assert torch.equal(evaluate_schedule(schedule, [a])[0], evaluate_program(program, [a])[0])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("overwrite", [-5, 2]), ("atomic_add", [-13, 3]), ("atomic_max", [0, 2]), ("atomic_min", [-8, 0])],
)
def test_stores_that_meet_at_one_place(mode: str, expected: list[int]) -> None:
    program = parse_program(f"""
    program f (a, i)
      in  a: i64[4] (1) cpu
      in  i: i64[4] (1) cpu
      out y: i64[2] (1) cpu
    nest n0 (p0<2):
      %0:i64 = const 0
      store y[p0], %0
    nest n1 (p0<4):
      %0:i64 = load a[p0]
      %1:i64 = load i[p0]
      {mode} y[%1], %0{" over p0" if mode == "atomic_add" else ""}
    return y
    """)
    assert evaluate_program(program, [torch.tensor([-8, 1, -5, 2]), torch.tensor([0, 1, 0, 1])])[0].tolist() == expected


def test_a_sum_counts_the_points_of_axes_that_nothing_varies_along() -> None:
    program = parse_program("""
    program f ()
      out y: f32[] () cpu
    nest n0 (p0<4):
      %0:f32 = const 0.0
      store y[0], %0
    nest n1 (p0<5, p1<3):
      %0:f32 = const 2.0
      atomic_add y[0], %0 over p0, p1
    return y
    """)
    assert evaluate_program(program, [])[0].item() == 30.0


@pytest.mark.parametrize("axes", ["p0<3, r0<4, r1<5", "p0<3, r1<5, r0<4"])
@pytest.mark.parametrize("op", ["cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"])
def test_scans_run_along_their_axes_in_order(op: str, axes: str) -> None:
    x = torch.randn(3, 4, 5)
    body = f"%0:f32 = load a[20*p0 + 5*r0 + r1]\n%1:f32 = {op} %0 over r0, r1\nstore y[20*p0 + 5*r0 + r1], %1"
    got = run(body, "y: f32[3, 20] (20, 1)", x, axes=axes)
    want = getattr(torch, op)(x.view(3, 20), 1)
    torch.testing.assert_close(got, want if isinstance(want, torch.Tensor) else want.values)


def test_a_scan_of_a_constant_varies_along_its_axis() -> None:
    got = run("%0:f32 = const 2.0\n%1:f32 = cumsum %0 over r0\nstore y[r0], %1", "y: f32[4] (1)", axes="r0<4")
    assert got.tolist() == [2.0, 4.0, 6.0, 8.0]
