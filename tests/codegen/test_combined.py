"""Several kernels as one text: the golden, and the text beside the parts' own meaning."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fusec
from fusec.codegen.kernel import generate_kernel
from fusec.config import Config
from fusec.ir.evaluate import evaluate_nest
from fusec.ir.kernels import KernelPlan, Tile
from fusec.ir.types import Buffer, Role
from fusec.runtime.grid import launch_grid
from fusec.schedule.combine import combined
from fusec.schedule.cost import device_model
from fusec.schedule.once import Once
from tests.codegen.plans import Build, f32, run
from tests.codegen.test_golden import GOLDEN, UPDATE


def decay(number: int, count: int) -> tuple[KernelPlan, dict[str, Buffer]]:
    """p * 0.9 + g of one parameter."""
    b = Build(x=count)
    b.buffer(f"p{number}", f32, (count,), hint="params")
    b.buffer(f"g{number}", f32, (count,), hint="grads")
    b.buffer(f"o{number}", f32, (count,), Role.OUTPUT)
    at = b.index(x0=1)
    b.at(f"add_{number}", "aten.add.Tensor", "p = p * 0.9 + g", 7)
    kept = b.op("mul", b.load(f"p{number}", at), b.const(0.9))
    b.store(f"o{number}", at, b.op("add", kept, b.load(f"g{number}", at)))
    return replace(b.plan(x=1024), name=f"k{number}", nests=(f"n{number}",)), b.buffers


def plan_of(*counts: int) -> tuple[KernelPlan, dict[str, Buffer]]:
    made = [decay(number, count) for number, count in enumerate(counts)]
    table = {name: b for _, buffers in made for name, b in buffers.items()}
    return combined([plan for plan, _ in made], table, device_model("sm_90"), Once()), table


def test_text() -> None:
    plan, table = plan_of(4096, 1008, 17)
    text = generate_kernel(plan, table, Config()).text
    path = GOLDEN / "combined.py"
    if UPDATE:
        path.write_text(text)
    assert text == path.read_text(), f"{path} differs; FUSEC_UPDATE_GOLDEN=1 writes it anew"


def test_a_function_serves_every_size_that_sixteen_divides() -> None:
    plan, table = plan_of(4096, 1008, 32, 17, 33)
    text = generate_kernel(plan, table, Config()).text
    assert text.count("@triton.jit") == 3 and text.count("tl.load(") == 4
    assert max(map(len, text.splitlines())) <= 120


def test_equal_sizes_need_no_argument() -> None:
    plan, table = plan_of(4096, 4096)
    text = generate_kernel(plan, table, Config()).text
    assert "mask" not in text and "first, " in text and " n," not in text


def test_grid_is_the_sum_of_the_parts() -> None:
    plan, table = plan_of(4096, 1008, 17)
    source = generate_kernel(plan, table, Config())
    assert launch_grid(source, source.tile, ()) == (4 + 1 + 1,)
    assert launch_grid(source, Tile((("XBLOCK", 16),)), ()) == (256 + 63 + 2,)


def test_many_parts_are_found_in_two_steps() -> None:
    plan, table = plan_of(*range(16, 42 * 16, 16))
    body = generate_kernel(plan, table, Config()).text.split("def add_kernel(")[-1]
    outer = [line for line in body.splitlines() if line.startswith(("    if ", "    elif ", "    else"))]
    inner = [line for line in body.splitlines() if line.startswith(("        if ", "        elif ", "        else"))]
    assert (len(outer), len(inner)) == (6, 41)


@pytest.mark.parametrize("counts", [(4096, 1008, 1, 17, 33, 1), tuple(range(16, 20 * 16, 16))])
def test_interpreted_text_equals_the_evaluated_parts(counts: tuple[int, ...]) -> None:
    plan, table = plan_of(*counts)
    source = generate_kernel(plan, table, Config())
    tensors = {name: torch.randn(tuple(int(n) for n in b.shape)) for name, b in table.items()}  # type: ignore[arg-type]
    expected = {name: t.clone() for name, t in tensors.items()}
    for part in plan.parts:
        evaluate_nest(part.axes, part.body, table, expected)
    for tile in (source.tile, source.interpreter_tile, Tile((("XBLOCK", 256),))):
        torch.testing.assert_close(run(source, tensors, tile), expected)


def test_a_block_that_parts_share_is_no_larger_than_a_tensor_may_be() -> None:
    def column_sums(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.sum(0), x[:, :36].sum(0), y.sum(0), z.sum(0)

    inputs = torch.randn(2, 936), torch.randn(52, 36), torch.randn(52, 36)  # columns of any number, beside long rows
    got = fusec.compile(column_sums, options={"strict": True})(*inputs)
    torch.testing.assert_close(got, column_sums(*inputs))
