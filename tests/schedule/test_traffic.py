"""Distinct elements a body touches, against counting them one by one."""

from __future__ import annotations

import pytest

from fusec.ir.types import LoopNest
from fusec.schedule.traffic import Traffic, traffic
from tests.schedule.nests import program

SIZES = {"x": "f32[64, 100]", "w": "f32[100]", "y": "f32[64, 100]", "i": "i64[64]"}


def moved(body: str, axes: str = "p0<64, p1<100", **sizes: str) -> Traffic:
    found = program(f"nest n ({axes}):\n{body}", **{**SIZES, **sizes})
    (nest,) = (n for n in found.nodes if isinstance(n, LoopNest))
    return traffic(nest.body, nest.axes, found.table)


@pytest.mark.parametrize(
    ("index", "elements"),
    [
        ("100*p0 + p1", 6400),
        ("p1", 100),
        ("7", 1),
        ("p0 + p1", 163),  # overlapping windows
        ("100*p0 + p1//2", 64 * 50),
        ("(p0 + p1)%10", 10),
        ("2*p1", 100),
    ],
)
def test_each_element_counts_once(index: str, elements: int) -> None:
    found = moved(f"%0:f32 = load x[{index}]\n%1:f32 = load x[{index}]\n%2:f32 = add %0, %1\nstore y[100*p0 + p1], %2")
    assert (found.read["x"], found.written["y"]) == (elements, 6400)


def test_shifted_reads_of_one_buffer_share_their_elements() -> None:
    found = moved("%0:f32 = load x[p1]\n%1:f32 = load x[p1 + 1]\n%2:f32 = add %0, %1\nstore y[p1], %2", "p1<100")
    assert found.read == {"x": 101}


def test_a_mask_leaves_elements_out() -> None:
    mask = "%0:i64 = index p1\n%1:i64 = const 10\n%2:bool = lt %0, %1\n"
    found = moved(f"{mask}%3:f32 = load x[100*p0 + p1], mask=%2, other=0.0\nstore y[100*p0 + p1], %3, mask=%2")
    assert found == Traffic({"x": 640}, {"y": 640})


def test_positions_from_data_count_every_point_and_at_most_the_buffer() -> None:
    body = "%0:i64 = load i[p0]\n%1:f32 = load x[100*%0 + p1]\nstore y[100*p0 + p1], %1"
    assert moved(body).read == {"i": 64, "x": 6400}
    assert moved(body, x="f32[2, 100]").read["x"] == 200


def test_nothing_moves_over_an_empty_axis() -> None:
    assert moved("%0:f32 = load x[p0]\nstore y[p0], %0", "p0<0") == Traffic({"x": 0}, {"y": 0})


def test_bytes_follow_the_dtype() -> None:
    found = program("nest n (p0<8):\n%0:bf16 = load x[p0]\n%1:f32 = cast %0\nstore y[p0], %1", x="bf16[8]", y="f32[8]")
    (nest,) = (n for n in found.nodes if isinstance(n, LoopNest))
    both = traffic(nest.body, nest.axes, found.table)
    assert (both.bytes_read(found.table), both.bytes_written(found.table)) == (16, 32)
