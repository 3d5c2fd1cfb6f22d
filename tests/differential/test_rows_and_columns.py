"""Functions whose rows need what their columns add up to, and the other way round: one launch, and eager's answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fusec
from bench.cases import Case, Work
from bench.schedules import capture
from bench.schedules import scheduled as graph_schedule
from bench.training import step, with_incoming
from fusec.codegen.kernel import generate_kernel
from fusec.config import Config
from fusec.ir.kernels import DimKind, KernelPlan, Schedule, Strategy
from fusec.lowering import lower
from fusec.runtime.build import compile_request
from fusec.runtime.compiler import compile_kernel
from fusec.schedule import schedule, simplify
from tests.property.harness import trace


def sinkhorn(x: Tensor) -> Tensor:
    x = x.exp()
    for _ in range(3):
        x = x / x.sum(-1, keepdim=True)
        x = x / x.sum(-2, keepdim=True)
    return x


def both_norms(x: Tensor) -> Tensor:
    columns = F.layer_norm(x.transpose(-1, -2), (x.shape[-2],)).transpose(-1, -2)
    return F.layer_norm(columns, (x.shape[-1],))


def response_norm(x: Tensor) -> Tensor:
    """Woo et al., "ConvNeXt V2": channels of x f32[n, c, p] scaled by their share of the response."""
    response = x.norm(dim=-1, keepdim=True)
    return x * (response / (response.mean(dim=1, keepdim=True) + 1e-6)) + x


def least(x: Tensor) -> tuple[Tensor, Tensor]:
    sums = x.sum(-1)
    return sums.argmin(-1), x - sums.amin(-1).reshape(-1, 1, 1)


PATTERNS: dict[str, Callable[[Tensor], Tensor | tuple[Tensor, ...]]] = {
    "sinkhorn": sinkhorn,
    "two_softmaxes": lambda x: torch.softmax(torch.softmax(x, -1), -2),
    "both_norms": both_norms,
    "response_norm": response_norm,
    "attention_of_channels": lambda x: x * torch.softmax(x.mean(-1), -1).unsqueeze(-1),
    "least": least,
}
SIZES = ((3, 17, 33), (140, 9, 1000), (2, 5, 1), (1, 64, 64), (40, 3, 4097))


def scheduled(fn: Callable[..., object], shape: tuple[int, ...]) -> Schedule:
    config = Config(target="sm_90")
    return schedule(simplify(lower(trace(fn, torch.empty(shape, device="meta")), config), config), config)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("name", PATTERNS)
def test_answers_are_eagers(name: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    x[0, 0, 0] = float("nan") if name == "two_softmaxes" and shape[0] > 2 else 0.0
    got, want = fusec.compile(PATTERNS[name], options={"strict": True})(x), PATTERNS[name](x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("shape", [(256, 16, 64), (256, 17, 33), (256, 9, 1000), (256, 7, 4097)])
@pytest.mark.parametrize("name", PATTERNS)
def test_one_launch_reads_once_and_does_not_spill(name: str, shape: tuple[int, ...]) -> None:
    steps = scheduled(PATTERNS[name], shape)
    (plan,) = steps.steps
    assert isinstance(plan, KernelPlan) and plan.cost.bytes_read == 4 * torch.Size(shape).numel()
    source = generate_kernel(plan, steps.table, Config(target="sm_90"))
    artifact = compile_kernel(compile_request(source, source.tile, 90))
    assert artifact.spills == 0, source.text


def test_many_walks_over_the_same_rows_are_several_launches() -> None:
    """Each walk computes again what the earlier ones left at its rows."""

    def long_sinkhorn(x: Tensor) -> Tensor:
        for _ in range(16):
            x = x / x.sum(-1, keepdim=True)
            x = x / x.sum(-2, keepdim=True)
        return x

    held, walked = (scheduled(long_sinkhorn, shape).steps for shape in ((256, 64, 64), (256, 10, 1000)))
    assert (len(held), len(walked) > 1) == (1, True)


def rms_norm_step(rows: int, columns: int) -> Case:
    def work() -> Work:
        x = torch.randn(rows, columns, dtype=torch.bfloat16).requires_grad_()
        weight = torch.randn(columns, dtype=torch.bfloat16).requires_grad_()
        return Work(lambda x, w: F.rms_norm(x, (columns,), w), (x, weight))

    return Case("rms_norm", "", with_incoming(work), {}, {}, run=step)


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("columns", [8192, 12288, 16384])
def test_long_rows_are_read_once_beside_one_sum_along_the_columns(columns: int, arch: int) -> None:
    """More than 8192 columns: in parts, and the weight is loaded again for each row."""
    case = rms_norm_step(4096, columns)
    steps = graph_schedule(capture(case.build, case.run)[-1])
    first = next(s for s in steps.steps if isinstance(s, KernelPlan))
    assert first.strategy is Strategy.ROW_AND_COLUMN
    source = generate_kernel(first, steps.table, Config(target="sm_90"))
    before, inside = source.text.split("for row_start in ")
    assert ("tl.load(w_ptr" in inside, "tl.load(w_ptr" in before) == (columns > 8192, columns <= 8192)
    artifact = compile_kernel(compile_request(source, source.tile, arch))
    assert artifact.spills == 0, source.text


def layer_norm_step(rows: int, columns: int) -> Case:
    def work() -> Work:
        x = torch.randn(rows, columns, dtype=torch.bfloat16).requires_grad_()
        affine = (torch.randn(columns, dtype=torch.bfloat16).requires_grad_() for _ in range(2))
        return Work(lambda x, w, b: F.layer_norm(x, (columns,), w, b), (x, *affine))

    return Case("layer_norm", "", with_incoming(work), {}, {}, run=step)


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("columns", [8200, 10240, 11008, 12288])
def test_rows_in_parts_are_read_once_beside_two_sums_along_the_columns(columns: int, arch: int) -> None:
    case = layer_norm_step(4096, columns)
    steps = graph_schedule(capture(case.build, case.run)[-1])
    first, finish = steps.steps
    assert isinstance(first, KernelPlan) and isinstance(finish, KernelPlan)
    assert [d.kind for d in first.dims] == [DimKind.GRID, DimKind.LOOP, DimKind.PARTS]
    rows = 2 * 4096 * columns
    assert first.cost.bytes_read < 2.01 * rows and first.cost.requested_bytes > 3.9 * rows, "again from the caches"
    source = generate_kernel(first, steps.table, Config(target="sm_90"))
    assert source.text.count(f"in tl.static_range(0, {columns}, RBLOCK):") == 2, "the sums of parts have numbers"
    assert source.text.count(f"in range(0, {columns}, RBLOCK):") == 1, "a walk without such sums is a plain loop"
    assert compile_kernel(compile_request(source, source.tile, arch)).spills == 0, source.text


def test_rows_too_long_for_two_sums_are_read_again() -> None:
    case = layer_norm_step(4096, 16384)
    steps = graph_schedule(capture(case.build, case.run)[-1])
    assert all(isinstance(s, KernelPlan) and s.strategy is Strategy.LOOPED_ROW for s in steps.steps)


def test_gradients_of_rows_in_parts_are_eagers() -> None:
    rows, columns = 1030, 8200
    leaves = [torch.randn(rows, columns) + 3, torch.randn(columns), torch.randn(columns)]
    grad = torch.randn(rows, columns)

    def gradients(fn: Callable[..., Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
        given = [t.to(dtype).requires_grad_() for t in leaves]
        return torch.autograd.grad(fn(*given), given, grad.to(dtype))

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, (columns,), weight, bias)

    before = fusec.stats()["kernels_launched"]
    got, want = gradients(fusec.compile(norm, options={"strict": True}), torch.float32), gradients(norm, torch.float64)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)
    assert fusec.stats()["kernels_launched"] == before + 3, "forward, backward and what finishes the sums"


def test_what_a_walk_stored_is_read_back_behind_a_barrier() -> None:
    rows, columns = 1024, 8200

    def centred(x: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total = x + r
        result = total - total.mean(1, keepdim=True)
        return total, result, result.sum(0)

    x, r = (torch.randn(rows, columns, dtype=torch.bfloat16) for _ in range(2))
    explained = fusec.explain(centred)(x, r)
    first = explained.kernels[0].source
    assert len(explained.kernels) == 2 and "static_range" in first
    before, behind = first.split("        tl.debug_barrier()\n")
    assert "tl.store(add_ptr" in before and "tl.load(add_ptr" in behind and "tl.load(x_ptr" not in behind
    got, want = fusec.compile(centred, options={"strict": True})(x, r), centred(x.double(), r.double())
    torch.testing.assert_close(got[0], x + r)
    torch.testing.assert_close(got[1].double(), want[1], rtol=1e-2, atol=2e-2)
    torch.testing.assert_close(got[2].double(), want[2], rtol=1e-2, atol=1.0)


def test_a_long_row_that_is_stored_in_16_bits_is_read_back() -> None:
    def residual(x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        total = x + r
        wide = total.float()
        return total, wide * torch.rsqrt(wide.square().mean(1, keepdim=True) + 1e-6)

    x, r = (torch.randn(300, 40_000, dtype=torch.bfloat16) for _ in range(2))
    explained = fusec.explain(residual)(x, r)
    assert explained.kernels[0].source.count("tl.load(x_ptr") == 1, "the second pass loads what the first stored"
    got = fusec.compile(residual, options={"strict": True})(x, r)
    torch.testing.assert_close(got, residual(x, r), rtol=1e-2, atol=1e-2)


def test_dropout_in_parts_draws_what_it_drew_forwards() -> None:
    rows, columns = 1024, 8204

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(F.dropout(x, 0.5), (columns,), weight, bias)

    x = torch.randn(rows, columns).requires_grad_()
    weight, bias = torch.ones(columns).requires_grad_(), torch.zeros(columns).requires_grad_()
    y = fusec.compile(norm, options={"strict": True})(x, weight, bias)
    (dx,) = torch.autograd.grad(y, x, torch.randn(rows, columns))
    dropped = y == y.mode(1, keepdim=True).values  # zeros become the one value that comes twice
    assert 0.49 < dropped.float().mean().item() < 0.51
    assert torch.equal(dx == 0, dropped)


@pytest.mark.parametrize("columns", [9001, 16384])
def test_gradients_of_long_rows_are_eagers(columns: int) -> None:
    x, weight, grad = torch.randn(70, columns), torch.randn(columns), torch.randn(70, columns)

    def gradients(fn: Callable[..., Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [t.to(dtype).requires_grad_() for t in (x, weight)]
        return torch.autograd.grad(fn(*leaves), leaves, grad.to(dtype))

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (columns,), weight)

    got, want = gradients(fusec.compile(norm, options={"strict": True}), torch.float32), gradients(norm, torch.float64)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)
