"""Compiled equals eager on CUDA tensors: real launches, nothing left to eager mode, no spills."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fusec
from bench.measure import relative_error, tensors_of
from tests.gpu.patterns import PATTERNS, Pattern

DEVICE = "cuda"
IDS = [p.name for p in PATTERNS]
# A result rounded once to its dtype, beside eager mode's, which may have rounded several times.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.int8: 2e-2, torch.float64: 1e-12}


def compared(seen: Any, expected: Any, tolerance: float = 0.0) -> None:
    for a, b in zip(tensors_of(seen), tensors_of(expected), strict=True):
        assert (a.shape, a.dtype, a.stride(), a.device) == (b.shape, b.dtype, b.stride(), b.device)
        error = relative_error(a, b)
        assert error <= max(tolerance, TOLERANCE.get(b.dtype, 0.0)), (
            f"{b.dtype}: off by {error:.2e} of the largest value"
        )


@pytest.mark.parametrize("pattern", PATTERNS, ids=IDS)
def test_compiled_equals_eager(pattern: Pattern) -> None:
    args = pattern.make(DEVICE)
    expected = pattern.fn(*args)
    fusec.reset()
    compiled = fusec.compile(pattern.fn, fullgraph=True)
    compared(compiled(*args), expected, pattern.tolerance)
    compared(compiled(*args), expected, pattern.tolerance)
    stats = fusec.stats()
    assert stats["fallbacks"] == []
    if pattern.kernels is not None:
        assert 1 <= stats["kernels_launched"] / 2 <= pattern.kernels


@pytest.mark.parametrize("pattern", PATTERNS, ids=IDS)
def test_nothing_spills(pattern: Pattern) -> None:
    explanation = fusec.explain(pattern.fn, fullgraph=True)(*pattern.make(DEVICE))
    for kernel in explanation.kernels:
        assert kernel.resources["registers"] > 0
        assert kernel.resources["spills"] == 0, f"{kernel.name} spills\n{kernel.source}"


ELEMENTWISE = ("chain", "bias_gelu", "dtype_chain", "swiglu", "broadcast", "transpose_add", "masked_fill")


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_precision_eager_rounds_where_eager_rounds(name: str) -> None:
    pattern = next(p for p in PATTERNS if p.name == name)
    args = pattern.make(DEVICE)
    seen = fusec.compile(pattern.fn, precision="eager")(*args)
    for a, b in zip(tensors_of(seen), tensors_of(pattern.fn(*args)), strict=True):
        assert relative_error(a, b) <= {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[b.dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gelu_keeps_the_digits_of_its_tail(dtype: torch.dtype) -> None:
    """Eager's own float32 has none below -5: 1 + erf(x) cancels."""
    x = torch.linspace(-8, 8, 100_001, device=DEVICE).to(dtype)
    exact = x.double() * 0.5 * torch.erfc(-x.double() * 0.5**0.5)  # torch.special.ndtr has 2 % of error at -8
    seen, eager = fusec.compile(torch.nn.functional.gelu)(x), torch.nn.functional.gelu(x)
    error, eagers = ((y.double() - exact).abs() / exact.abs().clamp_min(1e-30) for y in (seen, eager))
    normal = exact.abs() > torch.finfo(dtype).tiny
    assert error[normal].max() <= 1.01 * eagers[normal].max()
    if dtype is not torch.float32:
        assert error[normal].max() <= torch.finfo(dtype).eps


def test_other_streams_are_respected() -> None:
    x = torch.randn(1 << 22, device=DEVICE)
    compiled = fusec.compile(lambda t: t * 2 + 1)
    compiled(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = x.clone()
        for _ in range(20):
            y = compiled(y) * 0.5
    torch.cuda.current_stream().wait_stream(stream)
    expected = x
    for _ in range(20):
        expected = (expected * 2 + 1) * 0.5
    torch.testing.assert_close(y, expected)


def test_launches_can_be_captured_in_a_cuda_graph() -> None:
    x = torch.randn(65, 768, device=DEVICE)
    compiled = fusec.compile(lambda t: torch.nn.functional.layer_norm(t, (768,)) * 2)
    for _ in range(3):
        compiled(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = compiled(x)
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.testing.assert_close(out, torch.nn.functional.layer_norm(x, (768,)) * 2)


def test_a_module_trains() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.LayerNorm(128), torch.nn.Linear(128, 8)
    )
    model = model.to(DEVICE)
    x, y = torch.randn(33, 64, device=DEVICE), torch.randint(0, 8, (33,), device=DEVICE)
    torch.nn.functional.cross_entropy(model(x), y).backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    torch.nn.functional.cross_entropy(fusec.compile(model)(x), y).backward()
    assert len(expected) == 6
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-6)


def test_memory_is_given_back() -> None:
    x = torch.randn(1 << 20, device=DEVICE)
    compiled = fusec.compile(lambda t: (t.exp() + 1).sum())
    for _ in range(3):
        compiled(x)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(10):
        compiled(x)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before
