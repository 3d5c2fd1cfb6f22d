"""Which binary of a kernel with size arguments runs for the sizes of a launch; 64-bit indices where 32 do not do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fusec
from fusec.api import Backend
from fusec.config import Config
from fusec.errors import VerificationError
from fusec.pipeline import CompiledGraph, Stats, compile_graph
from fusec.runtime.sized import SizedKernel, divisible

pytestmark = pytest.mark.usefixtures("clean")
FAR = 2**31 - 7  # elements between two rows: the third lies past what 32 bits reach


def compiled(fn: object, *args: Tensor, **options: object) -> tuple[object, CompiledGraph]:
    """The function compiled for all sizes, called once, and its graph."""
    graphs: list[CompiledGraph] = []

    def keep(graph: object, config: Config, stats: Stats) -> CompiledGraph:
        graphs.append(compile_graph(graph, config, stats))  # type: ignore[arg-type]
        return graphs[-1]

    backend = Backend(Config.from_environment().updated(options), compile_graph=keep)
    called = torch.compile(fn, backend=backend, dynamic=True)  # type: ignore[call-overload]
    called(*args)
    return called, graphs[-1]


def kernel_of(graph: CompiledGraph) -> SizedKernel:
    assert graph.executable is not None
    (kernel,) = graph.executable.kernels
    assert isinstance(kernel, SizedKernel)
    return kernel


def plus_one(x: Tensor) -> Tensor:
    return x + 1


def far_rows(rows: int) -> Tensor:
    """int8[rows, 5] whose rows are FAR apart; of its memory only the pages that are touched exist."""
    memory = torch.empty((rows - 1) * FAR + 64, dtype=torch.int8)
    view = memory.as_strided((rows, 5), (FAR, 1))
    view.copy_(torch.arange(rows * 5, dtype=torch.int8).view(rows, 5))
    return view


def test_the_launch_takes_64_bits_where_32_do_not_reach() -> None:
    _, graph = compiled(plus_one, torch.randn(4, 6))
    kernel = kernel_of(graph)
    assert kernel.source.wide is not None and "int64" not in kernel.source.text
    assert kernel._choose((2**10, 2**10)) is None and kernel._choose((2**15, 2**15)) is None
    wide = kernel._choose((2**16, 2**16))
    assert wide is kernel.wide and wide is kernel._choose((2**40, 2))
    assert "tl.program_id(0).to(tl.int64) * XBLOCK" in kernel.source.wide.text
    assert {p.dtype for p in kernel.source.wide.params if p.kind == "size"} == {torch.int64}


def test_offsets_past_32_bits_are_read_right() -> None:
    called, graph = compiled(plus_one, far_rows(2))
    kernel = kernel_of(graph)
    for rows in (2, 3):  # the same kernel: in 32 bits, then in 64
        x = far_rows(rows)
        assert torch.equal(called(x), x.clone() + 1)  # type: ignore[operator]
    assert kernel.wide is not None and fusec.stats()["fallbacks"] == []


def test_static_offsets_past_32_bits_are_read_right() -> None:
    x = far_rows(3)
    out = fusec.compile(lambda x: (x + 1, x.sum(1)))(x)
    torch.testing.assert_close(out, (x.clone() + 1, x.clone().sum(1)))


def test_32_bits_would_not_have_reached() -> None:
    """The narrow text at sizes that its limits exclude: an address wraps around and is caught."""
    _, graph = compiled(plus_one, far_rows(2))
    narrow, x = kernel_of(graph), far_rows(3)
    assert [p.size for p in narrow.source.params if p.kind == "size"] == ["s0", "s1", "s2"]
    with pytest.raises(VerificationError):
        super(SizedKernel, narrow).interpret([x, torch.empty(3, 5, dtype=torch.int8)], (3, 5, FAR))


def test_even_sizes_take_a_binary_with_wide_accesses() -> None:
    _, graph = compiled(plus_one, torch.randn(4, 6), target="sm_90")
    kernel = kernel_of(graph)
    assert kernel._choose((32, 64)) is kernel.even and kernel._choose((32, 63)) is None
    assert kernel.even is not None and divisible(kernel.source).text == kernel.source.text
    assert kernel.artifact is not None and kernel.even.artifact is not None
    assert kernel.artifact.cubin != kernel.even.artifact.cubin


def test_rows_of_other_lengths_take_the_same_text_with_another_tile() -> None:
    called, graph = compiled(lambda x: x.softmax(-1), torch.randn(4, 20), target="sm_90")
    kernel = kernel_of(graph)
    assert dict(kernel.source.tile.blocks) == {"x": 16, "r": 64}
    blocks = {n: dict((kernel._choose((4, n)) or kernel).source.tile.blocks) for n in (64, 65, 1000, 5000)}
    assert [b["r"] for b in blocks.values()] == [64, 256, 1024, 4096] and blocks[5000]["x"] == 1
    assert {k.source.text for k in kernel.variants()} == {kernel.source.text} and len(kernel.others) == 3
    assert all(k.artifact is not None and not k.artifact.spills for k in kernel.variants())
    x = torch.randn(5, 2000)
    torch.testing.assert_close(called(x), x.softmax(-1))  # type: ignore[operator]


@pytest.mark.parametrize("rows", [4, 32, 5])
def test_rows_of_known_number_are_masked_for_every_tile(rows: int) -> None:
    first, long = torch.randn(rows, 2000), torch.randn(rows, 20)
    torch._dynamo.mark_dynamic(first, 1)
    graphs: list[CompiledGraph] = []
    backend = Backend(
        Config.from_environment(), compile_graph=lambda *a: graphs.append(compile_graph(*a)) or graphs[-1]
    )  # type: ignore[func-returns-value]
    torch.compile(lambda x: x.softmax(-1), backend=backend)(first)
    source = kernel_of(graphs[-1]).source
    assert ("row_mask" in source.text) == (rows % 16 != 0)
    out = torch.empty_like(long)
    kernel_of(graphs[-1]).interpret([long, out], [20], next(t for n, t in source.buckets if n == 64))
    torch.testing.assert_close(out, long.softmax(-1))
