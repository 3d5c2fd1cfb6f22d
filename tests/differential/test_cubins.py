"""Machine code of generated kernels at realistic sizes: no spills on three architectures, loads of 16 bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bench.cases import CASES, Case, Work
from bench.schedules import capture, schedules
from bench.schedules import scheduled as graph_schedule
from bench.training import TRAINING, step, with_incoming
from fusec.codegen.kernel import generate_kernel
from fusec.config import Config
from fusec.ir.kernels import KernelPlan, KernelSource, Schedule
from fusec.lowering import lower
from fusec.runtime.build import compile_request
from fusec.runtime.compiler import Artifact, compile_kernel
from fusec.runtime.resources import access_width
from fusec.schedule import schedule, simplify
from tests.differential.test_bytes import rms_norm, rotate_half
from tests.property.harness import trace

BF16 = torch.bfloat16
ARCHITECTURES = (80, 90, 100)


def of(*shape: int, dtype: torch.dtype = BF16) -> tuple[tuple[int, ...], torch.dtype]:
    return shape, dtype


def nhwc(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


# wide: every load and store of the kernel's contiguous operands is expected to be 16 bytes a thread.
WIDE: dict[str, tuple[Callable[..., Any], tuple[tuple[tuple[int, ...], torch.dtype], ...]]] = {
    "bias_gelu": (lambda x, b: F.gelu(x + b), (of(16384, 4096), of(4096))),
    "swiglu": (lambda g, u: F.silu(g) * u, (of(8192, 11008), of(8192, 11008))),
    "rms_norm": (rms_norm, (of(16384, 4096), of(4096))),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (4096,), w, b), (of(16384, 4096), of(4096), of(4096))),
    "residual_norm": (
        lambda x, r, w, b: (x + r, F.layer_norm(x + r, (4096,), w, b)),
        (of(16384, 4096), of(16384, 4096), of(4096), of(4096)),
    ),
    "softmax_8192": (lambda x: x.softmax(-1), (of(16384, 8192),)),
    "softmax_131072": (lambda x: x.softmax(-1), (of(2048, 131072),)),
    "rope": (lambda q, c, s: q * c + rotate_half(q) * s, (of(4, 32, 2048, 128), of(2048, 128), of(2048, 128))),
    "full_sum": (lambda x: x.sum(), (of(16384, 2048, dtype=torch.float32),)),
    "column_sum": (lambda x: x.sum(0), (of(16384, 2048, dtype=torch.float32),)),
    "tanh_f32": (lambda x: torch.tanh(x) * 2, (of(4096, 4096, dtype=torch.float32),)),
}
NARROW: dict[str, tuple[Callable[..., Any], tuple[tuple[tuple[int, ...], torch.dtype], ...]]] = {
    "transpose_pointwise": (lambda x, y: torch.relu(x.transpose(1, 2) + y), (of(8, 1024, 2048), of(8, 2048, 1024))),
    "group_norm_silu": (lambda x: F.silu(F.group_norm(x, 32)), (of(16, 320, 64, 64),)),
    "group_norm_nhwc": (lambda x: F.silu(F.group_norm(nhwc(x), 32)), (of(16, 320, 64, 64),)),
    "odd_rows": (lambda x: x.softmax(-1), (of(1000, 1003),)),
    "argmax": (lambda x: x.argmax(-1), (of(4096, 32000),)),
    "embedding_gradient": (
        lambda g, i: torch.ops.aten.embedding_dense_backward(g, i, 30522, 0, False),
        (of(8192, 768), of(8192, dtype=torch.int64)),
    ),
    "index_add": (lambda x, i, s: x.index_add(0, i, s * 2), (of(512, 256), of(9999, dtype=torch.int64), of(9999, 256))),
    "scatter_amax": (
        lambda x, i, s: x.scatter_reduce(1, i, s, "amax"),
        (of(256, 1000), of(256, 777, dtype=torch.int64), of(256, 777)),
    ),
    "cumsum": (lambda x: x.cumsum(1), (of(4096, 4096),)),
    "cumsum_looped": (lambda x: x.cumsum(1) / x.sum(1, keepdim=True), (of(1024, 65536, dtype=torch.float32),)),
    "cummax": (lambda x: x.cummax(1), (of(1024, 8192),)),
    "logcumsumexp": (lambda x: x.logcumsumexp(1), (of(1024, 4096, dtype=torch.float32),)),
    "upsample_bilinear": (lambda x: F.interpolate(x, (128, 128), mode="bilinear"), (of(4, 64, 64, 64),)),
    "grid_sample": (lambda x, g: F.grid_sample(x, g, align_corners=False), (of(4, 64, 64, 64), of(4, 64, 64, 2))),
    "max_pool_gradient": (
        lambda g, x, i: torch.ops.aten.max_pool2d_with_indices_backward(g, x, [3, 3], [2, 2], [1, 1], [1, 1], False, i),
        (of(8, 64, 56, 56), of(8, 64, 112, 112), of(8, 64, 56, 56, dtype=torch.int64)),
    ),
    "max_pool_offsets": (
        lambda x: torch.ops.fusec.max_pool2d_with_offsets(x, [3, 3], [2, 2], [1, 1]),
        (of(8, 64, 112, 112),),
    ),
    "max_pool_gradient_of_offsets": (
        lambda g, o: torch.ops.fusec.max_pool2d_with_offsets_backward(
            g, o, (8, 64, 112, 112), (64 * 112 * 112, 112 * 112, 112, 1), [3, 3], [2, 2], [1, 1], [1, 1], False
        ),
        (of(8, 64, 56, 56), of(8, 64, 56, 56, dtype=torch.int8)),
    ),
    "f64_norm": (lambda x: F.layer_norm(x, (1024,)), (of(512, 1024, dtype=torch.float64),)),
}


def sources_of(name: str) -> list[tuple[KernelPlan, KernelSource]]:
    fn, described = (WIDE | NARROW)[name]
    config = Config(target="sm_90")
    inputs = [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in described]
    steps = schedule(simplify(lower(trace(fn, *inputs), config), config), config)
    return [(p, generate_kernel(p, steps.table, config)) for p in steps.steps if isinstance(p, KernelPlan)]


def compiled(source: KernelSource, arch: int) -> Artifact:
    return compile_kernel(compile_request(source, source.tile, arch))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", [*WIDE, *NARROW])
def test_no_spills(name: str, arch: int) -> None:
    for _, source in sources_of(name):
        artifact = compiled(source, arch)
        assert artifact.spills == 0, f"{source.name}: {artifact.registers} registers, {artifact.spills} bytes spilled"


@pytest.mark.parametrize("name", WIDE)
def test_contiguous_operands_move_sixteen_bytes_at_a_time(name: str) -> None:
    plan, source = max(sources_of(name), key=lambda pair: pair[0].cost.bytes_read)
    found = compiled(source, 90).instructions
    loads = {i: n for i, n in found.items() if i.startswith("LDG")}
    assert any(access_width(i) >= 16 for i in loads), f"{plan.name}: {found}\n{source.text}"
    if plan.cost.bytes_written * 4 > plan.cost.bytes_read:
        stores = [i for i in found if i.startswith("STG")]
        assert any(access_width(i) >= 16 for i in stores), f"{plan.name}: {found}\n{source.text}"


@pytest.mark.parametrize("name", [n for n in TRAINING if n != "llama_train"])
def test_training_steps_do_not_spill(name: str) -> None:
    case = TRAINING[name]
    for graph in capture(case.build, case.run):
        steps = graph_schedule(graph)
        for plan in (s for s in steps.steps if isinstance(s, KernelPlan)):
            source = generate_kernel(plan, steps.table, Config(target="sm_90"))
            for arch in ARCHITECTURES:
                assert compiled(source, arch).spills == 0, f"sm_{arch}\n{source.text}"


@pytest.mark.parametrize("shape", [(16, 1280, 8, 8), (16, 1280, 16, 16), (150, 3, 33, 65), (150, 12, 64, 128)])
def test_gradients_of_group_norms_do_not_spill(shape: tuple[int, ...]) -> None:
    """Sums of sums in registers, and in two walks over rows: of 64 to 8192 points, a power of two or masked."""

    def work() -> Work:
        affine = (torch.randn(shape[1], dtype=BF16).requires_grad_() for _ in range(2))
        x = torch.randn(shape, dtype=BF16).requires_grad_()
        return Work(lambda x, w, b: F.silu(F.group_norm(x, min(shape[1] // 3, 32), w, b)), (x, *affine))

    case = Case("group_norm", "", with_incoming(work), {}, {}, run=step)
    steps = graph_schedule(capture(case.build, case.run)[-1])
    first = next(s for s in steps.steps if isinstance(s, KernelPlan))
    assert [d.name for d in first.dims] == ["x", "q", "r"]
    for arch in ARCHITECTURES:
        assert compiled(generate_kernel(first, steps.table, Config(target="sm_90")), arch).spills == 0


@pytest.fixture(scope="module")
def step_of_148_tensors() -> Schedule:
    (steps,) = schedules(CASES["adamw_step"].build)
    return steps


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_an_optimizer_step_does_not_spill(step_of_148_tensors: Schedule, arch: int) -> None:
    plans = [s for s in step_of_148_tensors.steps if isinstance(s, KernelPlan)]
    assert len(plans) == 3 and sum(len(p.parts) for p in plans) == 2 * 148
    for plan in plans:
        source = generate_kernel(plan, step_of_148_tensors.table, Config(target="sm_90"))
        artifact = compiled(source, arch)
        assert artifact.spills == 0 and artifact.registers <= 64, source.text


def test_a_max_pool_gradient_divides_nothing_for_a_window() -> None:
    """Four windows a point: a byte and a gradient each, one comparison; divisions only for the point's coordinates."""
    ((_, source),) = sources_of("max_pool_gradient_of_offsets")
    assert "device." not in source.text, source.text
    assert source.text.count("//") + source.text.count(" % ") <= 6, source.text
    points = source.tile.block("x") // (32 * source.tile.num_warps)
    loads = sum(n for i, n in compiled(source, 90).instructions.items() if i.startswith("LDG"))
    assert loads <= points * 4 * 2
