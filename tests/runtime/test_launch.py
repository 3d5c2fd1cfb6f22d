"""CUDA launching, tuning and graphs without a GPU: a stand-in for PyTorch's binding records what it is given."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fusec.config import Config
from fusec.ir.index import size_symbol
from fusec.ir.kernels import Param, Tile
from fusec.ir.types import Extern
from fusec.runtime import graphs
from fusec.runtime.build import build_kernels
from fusec.runtime.compiler import Artifact
from fusec.runtime.graphs import why_not
from fusec.runtime.grid import block_values, launch_grid
from fusec.runtime.launch import Kernel, aligned_copy, copy_memory, static_launcher
from fusec.runtime.resources import Resources
from fusec.runtime.target import Target
from fusec.runtime.tune import ROUNDS, fastest
from tests.runtime.samples import add_one, program

ARTIFACT = Artifact("add_one", 90, b"\x7fELF cubin", Resources(24, 0, 0), 8, 2048, 2, 0.1)


class Binding:
    """Stands for `torch._C._StaticCudaLauncher`."""

    def __init__(self) -> None:
        self.loaded: list[tuple[Any, ...]] = []
        self.launched: list[tuple[Any, ...]] = []

    def _load_kernel(self, path: str, name: str, shared: int, device: int) -> tuple[int, int, int]:
        self.loaded.append((Path(path).read_bytes(), name, shared, device))
        return 77, 24, 0

    def _launch_kernel(self, *arguments: Any) -> None:
        self.launched.append(arguments)


@pytest.fixture
def binding(monkeypatch: pytest.MonkeyPatch) -> Binding:
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 4242, raising=False)
    return Binding()


def test_a_launch_passes_addresses_grid_and_stream(binding: Binding) -> None:
    source = add_one(1000, block=256)
    launch = static_launcher(binding, source, source.tile, ARTIFACT, 0)
    x, out = torch.zeros(1000), torch.zeros(1000)
    launch(x, out)
    launch(x, out)
    assert binding.loaded == [(ARTIFACT.cubin, "add_one", 2048, 0)]
    expected = (77, 4, 1, 1, 8, 2048, "OOOO", (x.data_ptr(), out.data_ptr(), None, None), 4242)
    assert binding.launched == [expected, expected]


def test_nothing_to_do_is_not_launched(binding: Binding) -> None:
    source = add_one(0)
    static_launcher(binding, source, source.tile, ARTIFACT, 0)(torch.zeros(0), torch.zeros(0))
    assert not binding.launched


def test_a_size_becomes_an_argument_and_decides_the_grid(binding: Binding) -> None:
    source = add_one(1000, block=256)
    params = (*source.params[:2], Param("n", "size"), source.params[2])
    source = replace(source, params=params, grid=((size_symbol("n"), "XBLOCK"),))
    launch = static_launcher(binding, source, source.tile, ARTIFACT, 0)
    x = torch.zeros(600)
    launch(x, x, 600)
    launch(x, x, 0)
    ((_, *grid, _, _, types, values, _),) = binding.launched
    assert (grid, types, values) == ([3, 1, 1], "OOiOO", (x.data_ptr(), x.data_ptr(), 600, None, None))


def test_a_tensor_that_is_not_aligned_goes_through_a_copy(binding: Binding) -> None:
    source = add_one(16)
    launch = static_launcher(binding, source, source.tile, ARTIFACT, 0)
    x, out = torch.arange(17.0)[1:], torch.zeros(16)
    launch(x, out)
    ((*_, values, _),) = binding.launched
    assert values[0] % 16 == 0
    assert values[0] != x.data_ptr()
    assert values[1] == out.data_ptr()
    loose = replace(source, params=tuple(replace(p, aligned=False) for p in source.params))
    static_launcher(binding, loose, loose.tile, ARTIFACT, 0)(x, out)
    assert binding.launched[1][-2][0] == x.data_ptr()


def test_a_launch_on_another_device_makes_it_the_current_one(binding: Binding, monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[int] = []
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext(entered.append(index)))
    source, x = add_one(1000), torch.zeros(1000)
    launch = static_launcher(binding, source, source.tile, ARTIFACT, 1)
    launch(x, x)
    assert entered == [1, 1], "to load, and to launch"
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 1)
    launch = static_launcher(binding, source, source.tile, ARTIFACT, 1)
    launch(x, x)
    assert entered == [1, 1, 1] and len(binding.launched) == 2


def test_a_call_of_a_kernel_loads_it_once_and_then_is_its_launcher(
    binding: Binding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._C, "_StaticCudaLauncher", binding, raising=False)
    monkeypatch.setattr("fusec.runtime.launch.require_cuda", lambda: None)
    monkeypatch.setattr("fusec.runtime.launch.device_arch", lambda index: 90)
    kernel = Kernel(add_one(1000), Target("cuda", (90,)))
    kernel.artifacts[90] = ARTIFACT
    assert kernel.loaded(0) is kernel
    on_device = SimpleNamespace(device=torch.device("cuda:0"), data_ptr=lambda: 256)
    kernel(on_device, on_device)
    kernel.loaded(0)(on_device, on_device)
    assert len(binding.loaded) == 1 and len(binding.launched) == 2
    assert kernel.loaded(0) is not kernel and kernel.loaded(1) is kernel


def test_copies_keep_strides_and_expanded_memory() -> None:
    x = torch.arange(40.0)[1:].as_strided((3, 4), (1, 0))
    copy = aligned_copy(x)
    assert copy.stride() == (1, 0)
    assert torch.equal(copy, x)
    copy_memory(x, torch.full((3, 1), 7.0).as_strided((3, 4), (1, 0)))
    assert x.tolist() == [[7.0] * 4] * 3


def test_grids() -> None:
    source = add_one(1000, block=256)
    assert launch_grid(source, source.tile, ()) == (4,)
    assert launch_grid(source, Tile((("x", 1024),)), ()) == (1,)
    assert launch_grid(replace(source, grid=()), source.tile, ()) == (1,)
    assert launch_grid(replace(source, grid=((7, None), (1000, "XBLOCK"))), source.tile, ()) == (7, 4)
    assert block_values(source, source.tile) == {"XBLOCK": 256}


def test_the_fastest_tile_by_median_wins() -> None:
    slow, fast, noisy = (Tile((("x", 1 << i),)) for i in range(3))
    calls: list[Tile] = []

    def timer(launcher: Any, arguments: Any) -> float:
        tile = launcher(*arguments)
        calls.append(tile)
        spike = 100.0 if len(calls) % 7 == 0 else 0.0
        return {slow: 2.0, fast: 1.0, noisy: 1.5}[tile] + spike

    launchers = {tile: (lambda tile=tile: tile) for tile in (slow, fast, noisy)}
    assert fastest(launchers, (), timer) == fast
    assert calls[:3] == calls[3:6] == [slow, fast, noisy]
    assert len(calls) == 3 * (ROUNDS + 1)


def test_equal_times_keep_the_untuned_tile() -> None:
    first, second = Tile((("x", 1),)), Tile((("x", 2),))
    assert fastest({first: lambda: None, second: lambda: None}, (), lambda *_: 1.0) == first


def test_autotuning_compiles_candidates_and_remembers_the_choice(tmp_path: Path) -> None:
    config = Config(mode="max-autotune", cache_dir=tmp_path, workers=0)
    source = add_one(4096)
    wide, unusable = Tile((("x", 1024),), num_warps=8), Tile((("x", 3),))
    source = replace(source, candidates=(wide, unusable))
    (kernel,) = build_kernels([source], Target("cuda", (90,)), config)
    assert [tile for tile, _ in kernel.candidates[90]] == [wide]
    kernel.on_tuned(90, wide)
    (again,) = build_kernels([source], Target("cuda", (90,)), config)
    assert again.tiles == {90: wide}
    assert again.artifacts[90].num_warps == 8
    assert not again.candidates
    assert again.cached


def test_graphs_say_why_not() -> None:
    schedule, _, _ = program(add_one(64), torch.zeros(64))
    gpu = replace(schedule, buffers=tuple(replace(b, device="cuda:0") for b in schedule.buffers))
    target = Target("cuda", (90,))
    assert why_not(schedule, Target("cpu", ())) == "the program runs on the CPU"
    assert why_not(gpu, target) is None
    mixed = replace(gpu, buffers=(schedule.buffers[0], gpu.buffers[1]))
    assert "x is on the cpu" in why_not(mixed, target)
    dynamic = replace(gpu, buffers=(replace(gpu.buffers[0], shape=(size_symbol("s0"),)), gpu.buffers[1]))
    assert why_not(dynamic, target) is None
    item = Extern("e", torch.ops.aten.item.default, (), (), (None,), defines=("u0",))
    assert "returns a size" in why_not(replace(gpu, steps=(item,)), target)
    nonzero = Extern("e", torch.ops.aten.nonzero.default, (), (), ("y",))
    assert "shape that depends on values" in why_not(replace(gpu, steps=(nonzero,)), target)
    in_place = Extern("e", torch.ops.aten.relu_.default, (), (), ("y",), mutates=("x",))
    assert "writes x in place" in why_not(replace(gpu, steps=(in_place,)), target)
    assert why_not(replace(gpu, inputs=("x", None)), target) == "an input is a number"
    assert why_not(replace(gpu, inputs=("x", None), numbers=((1, size_symbol("s0")),)), target) is None


def test_graphs_are_recorded_for_each_tuple_of_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "GraphReplay", lambda name, call: lambda inputs: [name, *call(inputs)])
    monkeypatch.setattr(graphs, "GRAPHS", 2)
    replay = graphs.ReplayBySizes("g", lambda inputs: [inputs[0] + 1], lambda inputs: (inputs[0],))
    assert [replay([n]) for n in (3, 5, 3, 7)] == [["g[3]", 4], ["g[5]", 6], ["g[3]", 4], [8]]
