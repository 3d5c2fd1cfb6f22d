"""Combined kernels: what they compute, what they move, and their machine code."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import fusec
from fusec.capture.foreach import foreach_table
from fusec.codegen.kernel import generate_kernel
from fusec.config import Config
from fusec.ir.kernels import KernelPlan, Schedule
from fusec.lowering import lower
from fusec.runtime.build import compile_request
from fusec.runtime.compiler import compile_kernel
from fusec.runtime.meter import meter
from fusec.schedule import schedule, simplify
from fusec.schedule.combine import MAX_PARTS
from tests.property.harness import build_for_cpu, trace

SIZES: tuple[tuple[int, ...], ...] = ((0,), (1,), (17,), (4097,), (3, 4), (64, 64), (1, 1), (32, 16), (100,))
Tensors = Sequence[torch.Tensor]


def randn(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.randn(s).to(dtype) for s in shapes]


def adamw(params: Tensors, grads: Tensors, means: Tensors, squares: Tensors) -> tuple[Tensors, ...]:
    lr, beta1, beta2, eps, decay, step = 1e-3, 0.9, 0.999, 1e-8, 0.01, 7
    means = torch._foreach_lerp(means, grads, 1 - beta1)
    squares = torch._foreach_addcmul(torch._foreach_mul(squares, beta2), grads, grads, 1 - beta2)
    roots = torch._foreach_div(torch._foreach_sqrt(squares), math.sqrt(1 - beta2**step))
    denominators = torch._foreach_add(roots, eps)
    decayed = torch._foreach_mul(params, 1 - lr * decay)
    return torch._foreach_addcdiv(decayed, means, denominators, -lr / (1 - beta1**step)), means, squares


def clip_grad_norm(grads: Tensors) -> list[torch.Tensor]:
    total = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    return torch._foreach_mul(grads, torch.clamp(1.0 / (total + 1e-6), max=1.0))


def scale_and_round(xs: Tensors) -> list[torch.Tensor]:
    """Several texts side by side: dtypes, ops and ranks differ."""
    return [x.exp() if k % 3 == 0 else (x * 2).to(torch.bfloat16) if k % 3 == 1 else x.abs() for k, x in enumerate(xs)]


def row_sums(xs: Tensors) -> list[torch.Tensor]:
    return [x.sum(-1) for x in xs]


def compiled(fn: Callable[..., Any]) -> Callable[..., Any]:
    return fusec.compile(fn, options={"strict": True, "verify": True})


def scheduled(fn: Callable[..., Any], *inputs: torch.Tensor) -> Schedule:
    config = Config(target="sm_90")
    return schedule(simplify(lower(trace(fn, *inputs), config), config), config)


def plans_of(steps: Schedule) -> list[KernelPlan]:
    return [s for s in steps.steps if isinstance(s, KernelPlan)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adamw_equals_eager(dtype: torch.dtype) -> None:
    args = (*(randn(SIZES, dtype) for _ in range(3)), [x.square() for x in randn(SIZES, dtype)])
    got, want = compiled(adamw)(*args), adamw(*args)
    low = dtype is torch.bfloat16  # eager rounds after each op, a fused chain once
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(list(ours), list(theirs), rtol=3e-2 if low else 1e-5, atol=3e-2 if low else 1e-6)


def test_clip_grad_norm_equals_eager() -> None:
    grads = randn([*SIZES[1:], (300, 200), (40000,)])
    torch.testing.assert_close(list(compiled(clip_grad_norm)(grads)), list(clip_grad_norm(grads)))


def test_a_launch_of_several_texts_equals_eager() -> None:
    xs = randn(SIZES[1:])
    torch.testing.assert_close(compiled(scale_and_round)(xs), scale_and_round(xs))


def test_rows_of_different_lengths_equal_eager() -> None:
    xs = randn([(5, 7), (300, 64), (3, 1000), (129, 33), (1, 5000)])
    torch.testing.assert_close(compiled(row_sums)(xs), row_sums(xs))


def step(*xs: torch.Tensor) -> list[torch.Tensor]:
    return [x * 0.9 + (x * x).sqrt() for x in xs]


def scaled(scale: torch.Tensor, *xs: torch.Tensor) -> list[torch.Tensor]:
    return [x * scale for x in xs]


def norms(*xs: torch.Tensor) -> list[torch.Tensor]:
    return [(x * x).sum() for x in xs]


def row_norms(*xs: torch.Tensor) -> list[torch.Tensor]:
    return [x / x.sum(-1, keepdim=True) for x in xs]


COUNTED: dict[str, tuple[Callable[..., Any], list[torch.Tensor]]] = {
    "step": (step, randn([(4097,), (17,), (4096,), (1,), (33, 5)])),
    "scaled": (scaled, randn([(), (4097,), (17,), (4096,), (3, 8)])),
    "norms": (norms, randn([(4097,), (17,), (4096,), (200, 300)])),
    "row_norms": (row_norms, randn([(9, 100), (70, 33), (5, 5)])),
}


@pytest.mark.parametrize("name", COUNTED)
def test_predicted_bytes_equal_metered_bytes(name: str) -> None:
    fn, inputs = COUNTED[name]
    steps = scheduled(fn, *inputs)
    assert any(p.parts for p in plans_of(steps)), "nothing was combined"
    with meter() as metered:
        build_for_cpu(steps, Config())(*inputs)
    for plan, (kernel, traffic) in zip(plans_of(steps), metered.launches, strict=True):
        seen = sum(t.read for t in traffic.values()), sum(t.written for t in traffic.values())
        assert (plan.cost.bytes_read, plan.cost.bytes_written) == seen, kernel


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("fn", [step, norms, row_norms])
def test_machine_code_spills_nothing_and_moves_sixteen_bytes(fn: Callable[..., Any], arch: int) -> None:
    shapes = [(1024, 1024 + 64 * k) for k in range(8)]
    steps = scheduled(fn, *(torch.empty(s, device="meta") for s in shapes))
    for plan in (p for p in plans_of(steps) if p.parts):
        source = generate_kernel(plan, steps.table, Config())
        artifact = compile_kernel(compile_request(source, source.tile, arch))
        assert artifact.spills == 0, source.text
        loads = {name for name in artifact.instructions if name.startswith("LDG")}
        assert any(".128" in name for name in loads), (loads, source.text)
        if fn is step:
            assert loads == {"LDG.E.128"}, source.text


def test_every_pointer_of_a_full_launch_is_selected_in_few_registers() -> None:
    steps = scheduled(step, *(torch.empty(64 * k, device="meta") for k in range(4, 4 + MAX_PARTS)))
    (plan,) = plans_of(steps)
    assert len(plan.parts) == MAX_PARTS
    source = generate_kernel(plan, steps.table, Config())
    artifact = compile_kernel(compile_request(source, source.tile, 90))
    assert artifact.spills == 0 and artifact.registers <= 64


def test_capture_knows_every_list_op_of_the_tests() -> None:
    names = {str(op).split(".")[1] for op in foreach_table()}
    assert {"_foreach_lerp", "_foreach_addcmul", "_foreach_addcdiv", "_foreach_norm", "_foreach_mul"} <= names
