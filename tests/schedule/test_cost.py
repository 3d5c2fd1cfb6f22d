"""Predicted seconds: more bytes, more work, more passes and fewer programs never make a kernel faster."""

from __future__ import annotations

import pytest

from fusec.ir.kernels import KernelCost
from fusec.ir.types import LoopNest
from fusec.schedule.cost import DEVICES, bytes_across, device_model, estimate, max_live, splitting_pays
from tests.schedule.nests import program

SM_90 = DEVICES["sm_90"]
ROWS = "%0:f32 = load x[{c}*p0 + r0]\n%1:f32 = sum %0 over r0\n%2:f32 = div %0, %1\nstore y[{c}*p0 + r0], %2"


def nest_of(body: str, axes: str, **sizes: str) -> tuple[LoopNest, dict[str, object]]:
    found = program(f"nest n ({axes}):\n{body}", **sizes)
    (nest,) = (n for n in found.nodes if isinstance(n, LoopNest))
    return nest, found.table


def copied(points: int, ops: int = 0, dtype: str = "f32") -> KernelCost:
    lines = "".join(f"%{i + 1}:{dtype} = exp %{i}\n" for i in range(ops))
    body = f"%0:{dtype} = load x[p0]\n{lines}store y[p0], %{ops}"
    nest, table = nest_of(body, f"p0<{points}", x=f"{dtype}[{points}]", y=f"{dtype}[{points}]")
    return estimate(nest, table, SM_90)


def rows(count: int, columns: int) -> KernelCost:
    sizes = f"f32[{count}, {columns}]"
    nest, table = nest_of(ROWS.format(c=columns), f"p0<{count}, r0<{columns}", x=sizes, y=sizes)
    return estimate(nest, table, SM_90)


def test_bytes_and_seconds_grow_with_the_points() -> None:
    costs = [copied(1 << n) for n in range(0, 28, 3)]
    assert [c.bytes_read for c in costs] == [4 << n for n in range(0, 28, 3)]
    assert [c.seconds for c in costs] == sorted(c.seconds for c in costs)


def test_a_launch_is_the_least() -> None:
    assert copied(0).seconds == SM_90.launch <= copied(1).seconds


def test_half_the_bytes_take_half_the_time_beside_the_launch() -> None:
    half, full = (copied(1 << 27, dtype=d).seconds - SM_90.launch for d in ("bf16", "f32"))
    assert full == pytest.approx(2 * half)


def test_work_counts_once_it_exceeds_the_traffic() -> None:
    assert copied(1 << 24, 1).seconds == copied(1 << 24).seconds < copied(1 << 24, 200).seconds


def test_a_row_too_long_for_registers_is_asked_for_twice() -> None:
    short, long = rows(1024, 16384), rows(1024, 16385)
    assert (short.requested_bytes, long.requested_bytes) == (short.bytes_read, 2 * long.bytes_read)
    assert long.seconds > 1.2 * short.seconds


@pytest.mark.parametrize(("operand", "across"), [("49*p0 + 7*q0 + r0", 0), ("p0 + 256*q0 + 1792*r0", 4 * 256 * 49)])
def test_lanes_lie_along_a_row_of_several_short_axes(operand: str, across: int) -> None:
    """y[p, i, j] = (x - sum over i, j of x) * w[p], i and j below 7: only an x with p innermost is read across."""
    body = f"%0:f32 = load x[{operand}]\n%1:f32 = sum %0 over q0, r0\n%2:f32 = sub %0, %1\n%3:f32 = load w[p0]\n"
    body += "%4:f32 = mul %2, %3\nstore y[49*p0 + 7*q0 + r0], %4"
    x = "f32[256, 7, 7]"
    nest, table = nest_of(body, "p0<256, q0<7, r0<7", x=x, y=x, w="f32[256]")
    assert bytes_across(nest, table) == across


SUMS = "%0:f32 = load x[{n}*p0 + {r}*q0 + r0]\n%1:f32 = sum %0 over r0\n%2:f32 = sum %1 over q0\n"


def sums_of_sums(rows: int, columns: int, use: str, programs: int = 200) -> KernelCost:
    """Programs that sum their rows and then these sums."""
    n, sizes = rows * columns, f"f32[{programs}, {rows}, {columns}]"
    body = SUMS.format(n=n, r=columns) + use.format(n=n, r=columns)
    nest, table = nest_of(body, f"p0<{programs}, q0<{rows}, r0<{columns}", x=sizes, y=sizes, t=f"f32[{programs}]")
    return estimate(nest, table, SM_90)


AGAIN, STORED = "%3:f32 = sub %0, %2\nstore y[{n}*p0 + {r}*q0 + r0], %3", "store t[p0], %2"


def test_rows_that_need_the_sum_of_all_are_read_and_computed_with_again_unless_they_are_held() -> None:
    held, walked, once = sums_of_sums(4, 64, AGAIN), sums_of_sums(16, 1024, AGAIN), sums_of_sums(16, 1024, STORED)
    assert (held.requested_bytes, walked.requested_bytes) == (held.bytes_read, 2 * walked.bytes_read)
    assert once.requested_bytes == once.bytes_read == walked.bytes_read and walked.flops > once.flops


def test_each_step_of_a_walk_that_is_waited_for_takes_its_time() -> None:
    thin, wide = sums_of_sums(4096, 8, AGAIN), sums_of_sums(8, 4096, AGAIN)
    assert thin.bytes_read == wide.bytes_read and thin.seconds > 3 * wide.seconds
    assert sums_of_sums(4096, 8, STORED).seconds < thin.seconds / 2


def test_a_program_alone_that_walks_over_many_rows_waits_too() -> None:
    """One launch that reads 1 MB, but 128 steps one after the other: not as quick as launches of many programs."""
    assert sums_of_sums(8192, 32, STORED, programs=1).seconds > 2 * rows(8192, 32).seconds + 6 * SM_90.launch


def test_fewer_rows_of_the_same_size_are_slower() -> None:
    times = [rows(n, 4096).seconds / n for n in (4096, 132, 64, 8, 1)]
    assert times == sorted(times)


def test_splitting_pays_for_few_long_rows_only() -> None:
    body = "%0:f32 = load x[{c}*p0 + r0]\n%1:f32 = sum %0 over r0\nstore y[p0], %1"

    def pays(count: int, columns: int) -> bool:
        nest, table = nest_of(
            body.format(c=columns), f"p0<{count}, r0<{columns}", x=f"f32[{count}, {columns}]", y=f"f32[{count}]"
        )
        return splitting_pays(nest, table, SM_90)

    assert (pays(1, 1 << 24), pays(1024, 1 << 14), pays(1, 64)) == (True, False, False)


def test_a_faster_device_is_faster_and_an_unknown_one_has_a_model() -> None:
    nest, table = nest_of("%0:f32 = load x[p0]\nstore y[p0], %0", "p0<99999999", x="f32[99999999]", y="f32[99999999]")
    times = [estimate(nest, table, DEVICES[name]).seconds for name in ("sm_80", "sm_90", "sm_100")]
    assert times == sorted(times, reverse=True)
    assert device_model(None) is device_model("sm_999") is SM_90


def test_values_alive_at_once_need_registers() -> None:
    lines = [f"%{i}:f32 = load x{i}[p0]" for i in range(6)]
    total = "%s1:f32 = add %0, %1\n" + "\n".join(f"%s{i}:f32 = add %s{i - 1}, %{i}" for i in range(2, 6))
    nest, _ = nest_of(
        "\n".join([*lines, total, "store y[p0], %s5"]),
        "p0<64",
        **dict.fromkeys(("x0", "x1", "x2", "x3", "x4", "x5", "y"), "f32[64]"),
    )
    assert max_live(nest.body, nest.axes) == 7
