"""Bytes counted by the meter, against sums worked out by hand."""

from __future__ import annotations

import pytest
import torch

from fusec.config import Config
from fusec.runtime.build import build, build_kernels
from fusec.runtime.meter import Traffic, meter
from fusec.runtime.target import Target
from tests.runtime.samples import add_one, kernel, program

CPU = Target("cpu", ())


def traffic(source, *tensors):
    (ready,) = build_kernels([source], CPU, Config(cache=False))
    with meter() as m:
        ready(*tensors)
    ((name, found),) = m.launches
    assert name == source.name
    return found


@pytest.mark.parametrize("n", [1, 17, 1000, 4097])
def test_masked_lanes_are_not_counted(n: int) -> None:
    found = traffic(add_one(n), torch.zeros(n), torch.zeros(n))
    assert found == {"x_ptr": Traffic(4 * n, 0, 4 * n), "out_ptr": Traffic(0, 4 * n, 4 * n)}


def test_broadcast_reads_count_once_but_are_requested_by_every_lane() -> None:
    body = """
        row = tl.program_id(0)
        col = tl.arange(0, RBLOCK)
        x = tl.load(x_ptr + row * 32 + col)
        b = tl.load(b_ptr + col)
        tl.store(out_ptr + row * 32 + col, x * b)
    """
    names = ("x_ptr", "b_ptr", "out_ptr")
    source = kernel("scale", body, dict.fromkeys(names, torch.bfloat16), {"r": 32}, [(8, None)])
    tensors = [torch.zeros(8, 32, dtype=torch.bfloat16), torch.zeros(32, dtype=torch.bfloat16)]
    found = traffic(source, *tensors, torch.zeros(8, 32, dtype=torch.bfloat16))
    assert found["x_ptr"] == Traffic(512, 0, 512)
    assert found["b_ptr"] == Traffic(64, 0, 512)
    assert found["out_ptr"] == Traffic(0, 512, 512)


def test_strided_reads_count_the_elements_touched() -> None:
    body = "x0 = tl.arange(0, XBLOCK)\ntl.store(out_ptr + x0, tl.load(x_ptr + 3 * x0, x0 < 5, other=0))"
    source = kernel("stride", body, dict.fromkeys(("x_ptr", "out_ptr"), torch.int64), {"x": 8}, [(1, None)])
    found = traffic(source, torch.zeros(64, dtype=torch.int64), torch.zeros(8, dtype=torch.int64))
    assert found == {"x_ptr": Traffic(40, 0, 40), "out_ptr": Traffic(0, 64, 64)}


def test_a_second_pass_is_requested_twice_and_unique_once() -> None:
    body = """
        x0 = tl.arange(0, XBLOCK)
        total = tl.sum(tl.load(x_ptr + x0), 0)
        tl.store(x_ptr + x0, tl.load(x_ptr + x0) / total)
    """
    found = traffic(kernel("twice", body, {"x_ptr": torch.float32}, {"x": 16}, [(1, None)]), torch.ones(16))
    assert found == {"x_ptr": Traffic(64, 64, 192)}


def test_two_parameters_over_one_tensor_are_counted_apart() -> None:
    x = torch.zeros(16)
    assert traffic(add_one(16), x, x) == {"x_ptr": Traffic(64, 0, 64), "out_ptr": Traffic(0, 64, 64)}


def test_only_launches_inside_are_metered_and_meters_nest() -> None:
    source, x = add_one(16), torch.zeros(16)
    schedule, plan, wrapper = program(source, x)
    executable = build(schedule, plan, [source], wrapper, Config(cache=False))
    executable(x)
    with meter() as outer:
        executable(x)
        with meter() as inner:
            executable(x)
    executable(x)
    assert len(outer.launches) == len(inner.launches) == 1
    assert inner.kernel("add_one") == Traffic(64, 64, 128)
    assert (inner.bytes_read, inner.bytes_written) == (64, 64)
    assert inner.kernel("other") == Traffic(0, 0, 0)
