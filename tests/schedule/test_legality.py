"""May two nests share a kernel? The fused lines, or the sentence that says why not."""

from __future__ import annotations

import pytest

from fusec.ir.types import LoopNest
from fusec.schedule.fuse import prepared
from fusec.schedule.legality import Refusal, fuse_nests
from tests.schedule.nests import nests

EXP = "nest a (p0<64):\n%0:f32 = load x[p0]\n%1:f32 = exp %0\nstore t[p0], %1\n"
ROWS = "nest a (p0<64, r0<100):\n%0:f32 = load x[100*p0 + r0]\n%1:f32 = sum %0 over r0\nstore t[p0], %1\n"


def fused(text: str, **buffers: str) -> LoopNest | Refusal:
    left, right = nests(text, **buffers)
    return fuse_nests(prepared(left), prepared(right), "fast")


def refusal(text: str, **buffers: str) -> str:
    found = fused(text, **buffers)
    assert isinstance(found, Refusal), found
    return found.reason


def accepted(text: str, **buffers: str) -> LoopNest:
    found = fused(text, **buffers)
    assert isinstance(found, LoopNest), found
    return found


def test_a_consumer_reads_where_the_producer_wrote() -> None:
    found = accepted(
        EXP + "nest b (q0<64):\n%0:f32 = load t[q0]\n%1:f32 = neg %0\nstore y[q0], %1",
        x="f32[64]",
        t="f32[64]",
        y="f32[64]",
    )
    assert [a.name for a in found.axes] == ["p0"] and found.reads == ("x",)


def test_a_shifted_read_is_refused() -> None:
    text = EXP + "nest b (p0<63):\n%0:f32 = load t[p0 + 1]\nstore y[p0], %0"
    assert refusal(text, x="f32[64]", t="f32[64]", y="f32[63]") == "b reads t[p0 + 1], a writes t[p0]"


def test_a_read_of_two_places_is_refused() -> None:
    text = EXP + "nest b (p0<32):\n%0:f32 = load t[p0]\n%1:f32 = load t[p0 + 32]\n%2:f32 = add %0, %1\nstore y[p0], %2"
    assert "b reads t[" in refusal(text, x="f32[64]", t="f32[64]", y="f32[32]")


def test_a_gather_of_what_is_computed_is_refused() -> None:
    text = EXP + "nest b (p0<9):\n%0:i64 = load i[p0]\n%1:f32 = load t[%0]\nstore y[p0], %1"
    reason = refusal(text, x="f32[64]", t="f32[64]", i="i64[9]", y="f32[9]")
    assert reason == "b reads t at positions it loads, a computes it"


def test_a_gather_of_something_else_is_welcome() -> None:
    text = (
        EXP + "nest b (p0<64):\n%0:i64 = load i[p0]\n%1:f32 = load w[%0]\n"
        "%2:f32 = load t[p0]\n%3:f32 = mul %1, %2\nstore y[p0], %3"
    )
    found = accepted(text, x="f32[64]", t="f32[64]", i="i64[64]", w="f32[5]", y="f32[64]")
    assert found.reads == ("x", "i", "w")


@pytest.mark.parametrize("store", ["store t[p0], %0, mask=%1", "atomic_add t[p0], %0"])
def test_a_value_written_in_part_is_not_forwarded(store: str) -> None:
    text = f"nest a (p0<64):\n%0:f32 = load x[p0]\n%1:bool = load m[p0]\n{store}\n"
    text += "nest b (p0<64):\n%0:f32 = load t[p0]\nstore y[p0], %0"
    reason = refusal(text, x="f32[64]", m="bool[64]", t="f32[64]", y="f32[64]")
    assert reason == "a writes t in segments and b reads it"


def test_two_writers_of_a_buffer_stay_apart() -> None:
    text = (
        "nest a (p0<4):\n%0:f32 = load x[p0]\nstore t[p0], %0\nnest b (p0<4):\n%0:f32 = load x[p0]\nstore t[p0 + 4], %0"
    )
    assert refusal(text, x="f32[4]", t="f32[8]") == "a and b both write t"


def test_a_segment_is_not_overwritten_beside_its_reader() -> None:
    text = (
        "nest a (p0<4):\n%0:f32 = load t[p0]\nstore y[p0], %0\nnest b (p0<4):\n%0:f32 = load x[p0]\nstore t[p0 + 4], %0"
    )
    assert refusal(text, x="f32[4]", t="f32[8]", y="f32[4]") == "b writes t[p0 + 4], a reads t[p0]"


def test_rows_and_their_consumer_share_the_reduced_axis() -> None:
    text = (
        ROWS + "nest b (p0<64, p1<100):\n%0:f32 = load x[100*p0 + p1]\n%1:f32 = load t[p0]\n"
        "%2:f32 = div %0, %1\nstore y[100*p0 + p1], %2"
    )
    found = accepted(text, x="f32[64, 100]", t="f32[64]", y="f32[64, 100]")
    assert [(a.name, a.is_reduction) for a in found.axes] == [("p0", False), ("r0", True)]
    assert [i.op for i in found.body].count("load") == 1


def test_an_axis_that_one_side_lacks_is_refused_outside_the_reduction() -> None:
    text = (
        EXP
        + "nest b (p0<64, p1<7):\n%0:f32 = load t[p0]\n%1:f32 = load w[p1]\n%2:f32 = mul %0, %1\nstore y[7*p0 + p1], %2"
    )
    reason = refusal(text, x="f32[64]", t="f32[64]", w="f32[7]", y="f32[64, 7]")
    assert reason == "a does not run over p1<7, which the other nest runs over in parallel"


def test_three_kinds_of_reductions_are_refused() -> None:
    text = (
        "nest a (p0<64, r0<100):\n%0:f32 = load x[100*p0 + r0]\n%1:f32 = sum %0 over r0\nstore t[p0], %1\n"
        "nest b (r0<64, r1<100):\n%0:f32 = load x[100*r0 + r1]\n%1:f32 = sum %0 over r0, r1\nstore y[0], %1"
    )
    reason = refusal(text, x="f32[64, 100]", t="f32[64]", y="f32[1]")
    assert reason.startswith("a and b reduce over different axes: ") and "p0<64" in reason


def test_nests_without_elements_stay_alone() -> None:
    text = EXP.replace("64", "0") + "nest b (p0<0):\n%0:f32 = load t[p0]\nstore y[p0], %0"
    assert refusal(text, x="f32[0]", t="f32[0]", y="f32[0]") == "a or b has no elements"


def test_a_unit_axis_is_no_obstacle() -> None:
    text = EXP + "nest b (p0<1, p1<64, p2<1):\n%0:f32 = load t[64*p0 + p1]\nstore y[p1 + p2], %0"
    assert [a.extent for a in accepted(text, x="f32[64]", t="f32[64]", y="f32[64]").axes] == [64]


def test_a_channel_splits_into_group_and_rest() -> None:
    text = (
        "nest a (p0<2, p1<4, r0<80):\n%0:f32 = load x[320*p0 + 80*p1 + r0]\n%1:f32 = sum %0 over r0\n"
        "store t[4*p0 + p1], %1\n"
    )
    text += (
        "nest b (p0<2, p1<16, p2<20):\n%0:f32 = load x[320*p0 + 20*p1 + p2]\n"
        "%1:f32 = load t[4*p0 + p1//4]\n%2:f32 = load w[p1]\n%3:f32 = mul %0, %2\n%4:f32 = div %3, %1\n"
        "store y[320*p0 + 20*p1 + p2], %4"
    )
    found = accepted(text, x="f32[2, 16, 20]", t="f32[2, 4]", w="f32[16]", y="f32[2, 16, 20]")
    assert [a.extent for a in found.axes if a.is_reduction] == [4, 20]
