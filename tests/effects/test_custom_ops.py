"""Operators of the user: custom ops that return and that write, Triton kernels, collectives."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.interpreter import InterpretedFunction

import fusec
from tests.effects.helpers import same_as_eager

pytestmark = pytest.mark.usefixtures("clean")
X, Y = torch.randn(6, 8), torch.randn(6, 8)


@custom_op("fusec_tests::scale", mutates_args=())
def scale(x: Tensor, factor: float) -> Tensor:
    return x * factor


@scale.register_fake
def _(x: Tensor, factor: float) -> Tensor:
    return torch.empty_like(x)


scale.register_autograd(
    lambda ctx, grad: (scale(grad, ctx.factor), None),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "factor", inputs[1]),
)


@custom_op("fusec_tests::add_to", mutates_args=("x",))
def add_to(x: Tensor, y: Tensor) -> None:
    x.add_(y)


@custom_op("fusec_tests::add_and_double", mutates_args=("x", "z"))
def add_and_double(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    x.add_(y)
    z.mul_(2)
    return x * 3


@add_and_double.register_fake
def _(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return torch.empty_like(x)


@custom_op("fusec_tests::count_up", mutates_args=("xs",))
def count_up(xs: list[Tensor]) -> None:
    for x in xs:
        x.add_(1)


def writes_a_temporary(x: Tensor, y: Tensor) -> Tensor:
    z = x * 2
    add_to(z, y)
    return z + 1


def writes_an_input(x: Tensor, y: Tensor) -> Tensor:
    add_to(x, y)
    return x * 2


def writes_a_view(x: Tensor, y: Tensor) -> Tensor:
    z = torch.ones(7, 8)
    return add_and_double(x, y, z[1:]) + x + z[:6]


def writes_a_list(x: Tensor, y: Tensor) -> Tensor:
    z = x * 2
    count_up([z, y])
    return z + y


WRITING = [writes_a_temporary, writes_an_input, writes_a_view, writes_a_list]


@pytest.mark.parametrize("fn", [lambda x, y: scale(x.sin(), 2.0) + y, *WRITING])
def test_custom_ops_run_between_kernels(fn: Callable[[Tensor, Tensor], Tensor]) -> None:
    same_as_eager(fn, X, Y, calls=2)
    counted = fusec.stats()
    assert counted["kernels_launched"] and counted["extern_calls"] == 2 and not counted["fallbacks"]


def test_the_gradient_of_a_custom_op() -> None:
    ours, theirs = (X.clone().requires_grad_() for _ in range(2))
    fusec.compile(lambda x: scale(x.sin(), 2.0) + 1, options={"strict": True})(ours).sum().backward()
    (scale(theirs.sin(), 2.0) + 1).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@custom_op("fusec_tests::refuse_twos", mutates_args=())
def refuse_twos(x: Tensor) -> Tensor:
    if (x == 2).any():
        raise ValueError("a two")
    return x.clone()


@refuse_twos.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_a_call_that_fails_after_an_input_was_written_does_not_write_it_again() -> None:
    def fn(x: Tensor) -> Tensor:
        x.add_(1)
        return refuse_twos(x) * 3

    compiled, x = fusec.compile(fn), torch.zeros(5)
    torch.testing.assert_close(compiled(x), torch.full((5,), 3.0))
    with pytest.raises(ValueError, match="a two"):
        compiled(x)
    assert torch.equal(x, torch.full((5,), 2.0)) and not fusec.stats()["fallbacks"]


# -- Triton kernels -------------------------------------------------------------------------------


@triton.jit
def add_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask) + tl.load(y_ptr + i, mask), mask)


@triton_op("fusec_tests::added", mutates_args={})
def added(x: Tensor, y: Tensor) -> Tensor:
    out = torch.empty_like(x)
    wrap_triton(add_kernel)[(triton.cdiv(x.numel(), 16),)](x, y, out, x.numel(), BLOCK=16)
    return out


class Device:
    """A Triton driver that knows its target and nothing else."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`add_kernel[grid](...)` runs on CPU tensors, and Dynamo sees a machine that has Triton."""

    @torch._dynamo.disable
    def run(*args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> None:
        InterpretedFunction(add_kernel.fn).run(*args, grid=grid, warmup=warmup, **kwargs)

    monkeypatch.setattr(add_kernel, "run", run)
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    before = driver._active
    driver.set_active(Device())
    yield
    driver._active = before


def launched(x: Tensor, y: Tensor) -> Tensor:
    out = torch.empty_like(x)
    add_kernel[(triton.cdiv(x.numel(), 16),)](x * 2, y, out, x.numel(), BLOCK=16)
    return out + 1


def launched_in_place(x: Tensor, y: Tensor) -> Tensor:
    add_kernel[(3,)](x, y, x, x.numel(), BLOCK=16)
    return x * 2


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("fn", [launched, launched_in_place, lambda x, y: added(x * 2, y) + 1])
def test_a_triton_kernel_of_the_user_is_a_call_in_one_graph(fn: Callable[[Tensor, Tensor], Tensor]) -> None:
    same_as_eager(fn, X, Y)
    counted = fusec.stats()
    assert counted["graphs"] == 1 and counted["extern_calls"] == 1 and not counted["graph_breaks"]


# -- collectives ----------------------------------------------------------------------------------

WORKER = """
import sys, torch, torch.distributed as dist, torch.distributed._functional_collectives as fc, fusec
rank, world, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=world)

def functional(x):
    total = fc.all_reduce(x * 2, "sum", dist.group.WORLD)
    return fc.all_gather_tensor(total.sin() + x, 0, dist.group.WORLD) + 1, total * 3

def in_place(x):
    y = x * 2
    dist.all_reduce(y)
    return y + 1

x = torch.arange(12.0).view(3, 4) + rank
for fn in (functional, in_place):
    torch.testing.assert_close(fusec.compile(fn, options={"strict": True, "workers": 0})(x.clone()), fn(x.clone()))
assert fusec.stats()["extern_calls"] == 6 and not fusec.stats()["graph_breaks"], fusec.stats()
dist.destroy_process_group()
"""


def test_collectives_of_two_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", WORKER]
    ranks = [subprocess.Popen([*command, str(r), "2", str(tmp_path / "store")]) for r in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
