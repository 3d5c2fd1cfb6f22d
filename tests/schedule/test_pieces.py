"""Nests that compute parts of a whole: all parts at one point, when that is one kernel's business."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases import Work
from bench.metered import count
from bench.schedules import schedules
from fusec.ir.kernels import KernelPlan
from fusec.ir.types import LoopNest, Program
from fusec.schedule.once import Once
from fusec.schedule.pieces import in_pieces
from tests.schedule.nests import agrees, program

CAT = """
nest n (p0<{rows}, p1<{width}):
%0:i64 = index {at}
%1:i64 = const {first}
%2:bool = lt %0, %1
%3:f32 = load x[{first}*p0 + p1], mask=%2, other=0.0
%4:bool = not %2
%5:f32 = load x[{first}*p0 + p1 - {first}], mask=%4, other=0.0
%6:f32 = neg %5
%7:f32 = where %2, %3, %6
store y[{index}], %7
"""


def halves(rows: int, width: int, first: int, index: str = "") -> Program:
    """y = [x, -x] along p1, the first part that long."""
    text = CAT.format(rows=rows, width=width, first=first, at="p1", index=index or f"{width}*p0 + p1")
    shapes = {"x": f"f32[{rows}, {first}]", "y": f"f32[{rows}, {width}]"}
    return program(text, inputs="x", returns="y", **shapes)


def only(found: Program | None) -> LoopNest:
    assert found is not None
    (nest,) = found.nodes
    assert isinstance(nest, LoopNest)
    return nest


def test_each_half_is_computed_where_it_is_kept() -> None:
    before = halves(3, 64, 32)
    nest = only(in_pieces(before, Once(), frozenset()))
    assert [a.extent for a in nest.axes] == [3, 32]
    assert [str(a.index) for a in nest.stores] == ["64*p0 + p1", "64*p0 + p1 + 32"]
    assert [str(a.index) for a in nest.loads] == ["32*p0 + p1"], "both halves read one element"
    assert not any(i.op == "where" for i in nest.body)
    agrees(before, torch.randn(3, 32))


@pytest.mark.parametrize(
    "before",
    [
        halves(3, 62, 32),  # the parts are not equal
        halves(3, 8, 4),  # 16 bytes in a row: stores would be narrow
        halves(3, 36, 18),  # the second part starts at 72 bytes
    ],
)
def test_other_parts_stay_together(before: Program) -> None:
    assert in_pieces(before, Once(), frozenset()) is None


def test_short_parts_are_cut_where_they_are_not_contiguous() -> None:
    assert len(only(in_pieces(halves(32, 4, 2, index="32*p1 + p0"), Once(), frozenset())).stores) == 2


def test_a_nest_set_apart_stays_as_it_is() -> None:
    assert in_pieces(halves(3, 64, 32), Once(), frozenset({"n"})) is None


def test_parts_of_unequal_length_are_cut_at_what_divides_both() -> None:
    assert len(only(in_pieces(halves(3, 48, 32), Once(), frozenset())).stores) == 3


def test_what_shares_a_row_with_its_reductions_stays_whole() -> None:
    def normalized(x: Tensor, y: Tensor) -> Tensor:
        return F.layer_norm(torch.cat([x.exp(), y], 1), (128,))

    (schedule,) = schedules(lambda _: Work(normalized, (torch.randn(512, 64), torch.randn(512, 64))))
    assert count(schedule).kernels == 1


def test_the_gradient_of_chunks_is_one_kernel() -> None:
    """What makes a half is inlined into it: the gate, its gelu and the incoming gradient are read once."""

    def gradient(x: Tensor, incoming: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        _, back = torch.func.vjp(lambda g, u: F.gelu(g) * u, gate, up)
        return torch.cat(back(incoming), -1)

    (schedule,) = schedules(lambda _: Work(gradient, (torch.randn(512, 2048), torch.randn(512, 1024))))
    (plan,) = (step for step in schedule.steps if isinstance(step, KernelPlan))
    assert sum(i.op == "load" for i in plan.body) == 3
    assert sum(i.op == "ndtr" for i in plan.body) == 1
    assert count(schedule).bytes_ratio == 1.0


def test_rope_reads_each_half_once() -> None:
    def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    (schedule,) = schedules(lambda _: Work(rope, (torch.randn(64, 128), torch.randn(64, 128), torch.randn(64, 128))))
    (plan,) = (step for step in schedule.steps if isinstance(step, KernelPlan))
    assert sum(i.op == "load" for i in plan.body) == 6
    assert count(schedule).requested == sum(b.nbytes for b in plan.buffers)
