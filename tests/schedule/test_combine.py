"""Which kernels share a launch, which must not, and what is said about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from fusec.config import Config
from fusec.errors import VerificationError
from fusec.ir.evaluate import evaluate_schedule
from fusec.ir.kernels import KernelPlan, Schedule
from fusec.ir.parser import parse_program
from fusec.ir.types import Extern, Instr, Program
from fusec.ir.verify import verify_plan, verify_schedule
from fusec.schedule import combine as combine_module
from fusec.schedule import plan_memory, schedule
from fusec.schedule.alike import generic, likeness, signature, sizes
from fusec.schedule.combine import MAX_PARTS, MAX_POINTERS, combined
from fusec.schedule.cost import device_model
from fusec.schedule.once import Once

CONFIG = Config(target="sm_90")


def buffer(name: str, count: int, role: str = "tmp", dtype: str = "f32", device: str = "cpu") -> str:
    return f"{role} {name}: {dtype}[{count}] (1) {device}"


def unary(name: str, op: str, source: str, target: str, count: int) -> str:
    return f"nest {name} (p0<{count}):\n%0:f32 = load {source}[p0]\n%1:f32 = {op} %0\nstore {target}[p0], %1"


def total(name: str, source: str, target: str, count: int) -> str:
    return f"nest {name} (r0<{count}):\n%0:f32 = load {source}[r0]\n%1:f32 = sum %0 over r0\nstore {target}[0], %1"


def program(*lines: str, inputs: Sequence[str], returns: Sequence[str]) -> Program:
    return parse_program("\n".join([f"program f ({', '.join(inputs)})", *lines, f"return {', '.join(returns)}"]))


def foreach(op: str, counts: Sequence[int]) -> Program:
    """One nest a tensor, of one op, with nothing in common."""
    xs, ys = [f"x{k}" for k in range(len(counts))], [f"y{k}" for k in range(len(counts))]
    lines = [buffer(x, n, "in") for x, n in zip(xs, counts, strict=True)]
    lines += [buffer(y, n, "out") for y, n in zip(ys, counts, strict=True)]
    lines += [unary(f"n{k}", op, xs[k], ys[k], n) for k, n in enumerate(counts)]
    return program(*lines, inputs=xs, returns=ys)


def scheduled(p: Program) -> Schedule:
    steps = schedule(p, CONFIG)
    verify_schedule(steps)
    return steps


def launches(steps: Schedule) -> list[int]:
    """Parts of each launch; 0 is a library call."""
    return [0 if isinstance(s, Extern) else len(s.leaves) for s in steps.steps]


def test_one_op_on_many_tensors_is_one_launch() -> None:
    steps = scheduled(foreach("exp", [12, 1, 17, 4097, 4096]))
    assert launches(steps) == [5]
    (plan,) = steps.steps
    assert isinstance(plan, KernelPlan) and set(plan.nests) == {"n0", "n1", "n2", "n3", "n4"}
    assert plan.reads == tuple(b.name for b in plan.buffers[:5]) and len(plan.writes) == 5
    xs = [torch.randn(n) for n in (12, 1, 17, 4097, 4096)]
    torch.testing.assert_close(evaluate_schedule(steps, xs), [x.exp() for x in xs])


def test_each_kernel_saved_leaves_a_decision() -> None:
    steps = scheduled(foreach("exp", [12, 17, 4097]))
    found = [d for d in steps.decisions if "side by side" in d.reason]
    assert [(d.producer, d.consumer, d.accepted) for d in found] == [("n0", "n1", True), ("n0", "n2", True)]
    assert all(d.seconds_saved > 0 for d in found)


def test_costs_are_the_sum_of_the_parts_with_one_launch() -> None:
    counts = [1 << 20, 1 << 18, 100]
    (whole,) = scheduled(foreach("exp", counts)).steps
    assert isinstance(whole, KernelPlan)
    assert whole.cost.bytes_read == whole.cost.bytes_written == 4 * sum(counts)
    apart = sum(part.cost.seconds for part in whole.parts)
    assert whole.cost.seconds < apart - 1.9 * 3e-6


def test_a_common_operand_counts_once() -> None:
    p = program(
        buffer("s", 1, "in"), buffer("x", 40, "in"), buffer("z", 30, "in"), buffer("y", 40, "out"),
        buffer("w", 30, "out"),
        *(f"nest n_{a} (p0<{n}):\n%0:f32 = load {a}[p0]\n%1:f32 = load s[0]\n%2:f32 = mul %0, %1\nstore {b}[p0], %2"
          for a, b, n in (("x", "y", 40), ("z", "w", 30))),
        inputs=["s", "x", "z"], returns=["y", "w"],
    )  # fmt: skip
    (plan,) = scheduled(p).steps
    assert isinstance(plan, KernelPlan) and len(plan.parts) == 2
    assert plan.cost.bytes_read == 4 * (40 + 30 + 1)
    assert [b.name for b in plan.buffers].count("s") == 1


def test_what_depends_on_another_kernel_waits_for_it() -> None:
    p = program(
        buffer("x", 64, "in"), buffer("z", 80, "in"), buffer("a", 1), buffer("b", 1), buffer("y", 64, "out"),
        buffer("w", 80, "out"),
        total("n0", "x", "a", 64), total("n1", "z", "b", 80),
        "extern e0: c = aten.add.Tensor(a, b)", buffer("c", 1),
        *(f"nest n_{s} (p0<{n}):\n%0:f32 = load {s}[p0]\n%1:f32 = load c[0]\n%2:f32 = mul %0, %1\nstore {t}[p0], %2"
          for s, t, n in (("x", "y", 64), ("z", "w", 80))),
        inputs=["x", "z"], returns=["y", "w"],
    )  # fmt: skip
    steps = scheduled(p)
    assert launches(steps) == [2, 0, 2]
    x, z = torch.randn(64), torch.randn(80)
    scale = x.sum() + z.sum()
    torch.testing.assert_close(evaluate_schedule(steps, [x, z]), [x * scale, z * scale])


def test_rows_and_flat_kernels_stay_apart() -> None:
    p = program(
        buffer("x", 64, "in"), buffer("z", 80, "in"), buffer("a", 1, "out"), buffer("y", 80, "out"),
        total("n0", "x", "a", 64), unary("n1", "exp", "z", "y", 80),
        inputs=["x", "z"], returns=["a", "y"],
    )  # fmt: skip
    assert launches(scheduled(p)) == [1, 1]


def test_small_kernels_of_different_text_share_a_launch() -> None:
    p = program(
        buffer("x", 64, "in"), buffer("z", 80, "in"), buffer("a", 64, "out"), buffer("y", 80, "out"),
        unary("n0", "sqrt", "x", "a", 64), unary("n1", "exp", "z", "y", 80),
        inputs=["x", "z"], returns=["a", "y"],
    )  # fmt: skip
    assert launches(scheduled(p)) == [2]


@pytest.mark.parametrize(("ops", "expected"), [(("exp", "sqrt"), [1, 1]), (("exp", "exp"), [2])])
def test_long_kernels_join_only_their_own_text(ops: tuple[str, str], expected: list[int]) -> None:
    n, m = 1 << 25, (1 << 25) + 16
    p = program(
        buffer("x", n, "in"), buffer("z", m, "in"), buffer("a", n, "out"), buffer("y", m, "out"),
        unary("n0", ops[0], "x", "a", n), unary("n1", ops[1], "z", "y", m),
        inputs=["x", "z"], returns=["a", "y"],
    )  # fmt: skip
    assert launches(scheduled(p)) == expected


def test_parts_and_pointers_of_a_launch_are_bounded() -> None:
    steps = scheduled(foreach("exp", [16 * k for k in range(2, 302)]))
    plans = [s for s in steps.steps if isinstance(s, KernelPlan)]
    assert sum(len(p.leaves) for p in plans) == 300
    assert len(plans) == 2 and all(len(p.leaves) <= MAX_PARTS for p in plans)
    assert all(len(p.buffers) <= MAX_POINTERS for p in plans)


def test_kernels_without_points_are_left_alone() -> None:
    assert launches(scheduled(foreach("exp", [0, 5, 0, 6]))).count(2) == 1


def test_devices_are_not_mixed() -> None:
    p = program(
        buffer("x", 64, "in", device="cuda:0"), buffer("z", 80, "in", device="cuda:1"),
        buffer("a", 64, "out", device="cuda:0"), buffer("y", 80, "out", device="cuda:1"),
        unary("n0", "exp", "x", "a", 64), unary("n1", "exp", "z", "y", 80),
        inputs=["x", "z"], returns=["a", "y"],
    )  # fmt: skip
    assert launches(scheduled(p)) == [1, 1]


def test_peak_memory_is_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """a and b would live at once; apart, b takes the memory that a leaves."""
    monkeypatch.setattr(combine_module, "MEMORY_SLACK", 0)
    big = 1 << 20
    lines = [buffer("x", big, "in"), buffer("z", big, "in"), buffer("a", big), buffer("b", big)]
    lines += [buffer(f"{n}_sum", 1) for n in "ab"]
    p = program(
        *lines,
        unary("n0", "exp", "x", "a", big), "extern e0: a_sum = aten.sum.default(a)",
        unary("n1", "exp", "z", "b", big), "extern e1: b_sum = aten.sum.default(b)",
        inputs=["x", "z"], returns=["a_sum", "b_sum"],
    )  # fmt: skip
    steps = scheduled(p)
    assert launches(steps) == [1, 0, 1, 0]
    assert plan_memory(steps).peak_bytes < 2 * 4 * big
    assert [d.accepted for d in steps.decisions if "peak memory" in d.reason] == [False]


def test_a_launch_that_does_not_raise_the_peak_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three kernels with a large result each and two with a small one, the three go apart, though they are more."""
    monkeypatch.setattr(combine_module, "MEMORY_SLACK", 0)
    big, made = 1 << 20, "abc"
    lines = [buffer(f"x{n}", big, "in") for n in made] + [buffer(n, big) for n in made]
    lines += [buffer(f"{n}_sum", 64) for n in made] + [buffer("p", 64, "out"), buffer("q", 64, "out")]
    for n in made:
        lines += [unary(f"n{n}", "exp", f"x{n}", n, big), f"extern e{n}: {n}_sum = aten.sum.dim_IntList({n})"]
    lines += [unary("np", "sqrt", "a_sum", "p", 64), unary("nq", "sqrt", "b_sum", "q", 64)]
    steps = scheduled(program(*lines, inputs=[f"x{n}" for n in made], returns=["p", "q"]))
    assert sorted(launches(steps)) == [0, 0, 0, 1, 1, 1, 2]
    refused = [d.reason for d in steps.decisions if "peak memory" in d.reason]
    assert len(refused) == 1 and "3 kernels" in refused[0]


def layers(*more: str, returns: Sequence[str]) -> Program:
    """h = exp(sort(h)), four times, and what else there is."""
    lines = [buffer("h0", 64, "in"), buffer("side", 64, "in"), buffer("last", 64), buffer("end", 64)]
    for k in range(4):
        lines += [buffer(f"g{k}", 64), buffer(f"h{k + 1}", 64)]
        lines += [f"extern e{k}: g{k} = aten.relu.default(h{k})", unary(f"n{k}", "exp", f"g{k}", f"h{k + 1}", 64)]
    lines.append("extern e: last = aten.relu.default(h4)")
    return program(*lines, *more, inputs=["h0", "side"], returns=["last", *returns])


def test_equal_layers_keep_their_text() -> None:
    """sqrt before the layers and after them: beside one layer it would be a third text."""
    before = [buffer(name, 64) for name in ("first", "out", "late", "late_end")]
    before += ["extern d: first = aten.relu.default(side)", unary("early", "sqrt", "first", "out", 64)]
    after = [unary("n_late", "sqrt", "last", "late", 64), "extern f: late_end = aten.relu.default(late)"]
    both = [*before, "extern g: end = aten.relu.default(out)", *after]
    steps = scheduled(layers(*both, returns=["end", "late_end"]))
    plans = [s for s in steps.steps if isinstance(s, KernelPlan)]
    assert len({signature(p) for p in plans}) == 2 and all(not p.parts for p in plans)
    assert any("one more kernel to compile" in d.reason and not d.accepted for d in steps.decisions)


def test_a_kernel_that_is_alone_may_join_one_of_the_layers() -> None:
    alone = [buffer("out", 64), unary("alone", "sqrt", "side", "out", 64), "extern g: end = aten.relu.default(out)"]
    steps = scheduled(layers(*alone, returns=["end"]))
    plans = [s for s in steps.steps if isinstance(s, KernelPlan)]
    assert len({signature(p) for p in plans}) == 2 and len(plans) == 4


# -- likeness -------------------------------------------------------------------------------------


def parts(p: Program) -> list[KernelPlan]:
    return [leaf for s in scheduled(p).steps if isinstance(s, KernelPlan) for leaf in s.leaves]


def test_sizes_do_not_matter_but_what_they_divide_by_does() -> None:
    a, b, c = parts(foreach("exp", [4096, 1 << 20, 4097]))
    by_size = {sizes(p)["n"]: likeness(p) for p in (a, b, c)}
    assert by_size[4096] == by_size[1 << 20] != by_size[4097]


def test_an_op_or_a_dtype_makes_another_text() -> None:
    (a, *_), (b, *_) = parts(foreach("exp", [4096, 32])), parts(foreach("sqrt", [4096, 32]))
    assert likeness(a) != likeness(b)


def test_generic_plan_has_symbols_for_extents() -> None:
    (plan, *_) = parts(foreach("exp", [4096, 32]))
    assert str(generic(plan, {"n": 4096}).axes[0].extent) == "n"
    assert str(generic(plan, {}).body[0].access.index) == "x0"  # type: ignore[union-attr]


# -- what the verifier refuses --------------------------------------------------------------------


def test_parts_may_not_touch_what_another_one_writes() -> None:
    p = program(
        buffer("x", 64, "in"), buffer("a", 64), buffer("y", 64, "out"),
        unary("n0", "exp", "x", "a", 64), "extern e: b = aten.relu.default(a)", buffer("b", 64),
        unary("n1", "exp", "b", "y", 64),
        inputs=["x"], returns=["y"],
    )  # fmt: skip
    steps = scheduled(p)
    first, second = (s for s in steps.steps if isinstance(s, KernelPlan))
    model = device_model("sm_90")
    verify_plan(combined([first, second], steps.table, model, Once()), steps.table)
    reading = plan_reading(second, "b", "a")
    with pytest.raises(VerificationError, match="k2 reads a, which its part k0 writes"):
        verify_plan(combined([first, reading], steps.table, model, Once()), steps.table)
    with pytest.raises(VerificationError, match="both write a"):
        verify_plan(combined([first, first], steps.table, model, Once()), steps.table)


def plan_reading(plan: KernelPlan, old: str, new: str) -> KernelPlan:
    """The plan with another buffer in place of one of its own."""

    def renamed(instr: Instr) -> Instr:
        if instr.access is None or instr.access.buffer != old:
            return instr
        return replace(instr, access=replace(instr.access, buffer=new))

    buffers = tuple(replace(b, name=new) if b.name == old else b for b in plan.buffers)
    return replace(plan, buffers=buffers, phases=tuple(tuple(map(renamed, phase)) for phase in plan.phases))
