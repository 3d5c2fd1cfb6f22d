"""From text to binaries: three targets, resources read back, counters, the cache across processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fusec.config import Config
from fusec.errors import BuildError, CacheWarning
from fusec.ir.kernels import KernelSource, Tile
from fusec.runtime import build as build_module
from fusec.runtime import cache as cache_module
from fusec.runtime.build import build, build_kernels, cache_key, compile_request
from fusec.runtime.compiler import compile_kernel
from fusec.runtime.resources import access_width
from fusec.runtime.target import Target
from tests.runtime.samples import add_one, counters, kernel, program, row_softmax

ARCHS = (80, 90, 100)


def compiled(source: KernelSource, config: Config, archs: tuple[int, ...] = ARCHS):
    (found,) = build_kernels([source], Target("cpu", archs), config)
    return found


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return Config(cache_dir=tmp_path_factory.mktemp("cache"), workers=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_three_targets_without_spills_and_with_wide_accesses(config: Config, dtype: torch.dtype) -> None:
    found = compiled(add_one(4096, dtype, block=1024), config)
    assert sorted(found.artifacts) == list(ARCHS)
    for arch, artifact in found.artifacts.items():
        assert artifact.arch == arch
        assert artifact.cubin.startswith(b"\x7fELF")
        assert 0 < artifact.registers < 64
        assert artifact.spills == 0
        widths = {access_width(i) for i in artifact.instructions}
        assert widths == {16}, artifact.instructions


def test_pointers_that_are_not_aligned_are_not_read_16_bytes_at_a_time(config: Config) -> None:
    body = "x0 = tl.program_id(0) * XBLOCK + tl.arange(0, XBLOCK)\ntl.store(out_ptr + x0, tl.load(x_ptr + x0))"
    pointers = dict.fromkeys(("x_ptr", "out_ptr"), torch.float32)
    source = kernel("unaligned", body, pointers, {"x": 1024}, [(4096, "XBLOCK")], aligned=False)
    found = compiled(source, config, (90,)).artifacts[90]
    assert {access_width(i) for i in found.instructions} == {4}


def spilling() -> KernelSource:
    lines = ["x0 = tl.arange(0, XBLOCK)"]
    lines += [f"a{i} = tl.load(x_ptr + x0 + {i} * XBLOCK)" for i in range(12)]
    lines += ["tl.debug_barrier()"]
    lines += [f"tl.store(x_ptr + x0 + {i} * XBLOCK, a{i} * a{(i + 5) % 12})" for i in range(12)]
    return kernel("spills", "\n".join(lines), {"x_ptr": torch.float32}, {"x": 4096}, [(1, None)])


def test_spills_are_read_back() -> None:
    source = spilling()
    artifact = compile_kernel(compile_request(source, source.tile, 90))
    assert artifact.spills > 0
    assert any(name.startswith("STL") for name in artifact.instructions)


def test_a_tile_that_spills_is_replaced_by_one_that_does_not(config: Config) -> None:
    found = compiled(spilling(), config, (90,))
    assert found.artifact.spills == 0
    assert found.tiles[90].num_warps == found.artifact.num_warps > found.source.tile.num_warps
    assert not found.candidates
    again = compiled(spilling(), config, (90,))
    assert again.cached
    assert again.tiles == found.tiles


def test_shared_memory_is_read_back(config: Config) -> None:
    artifact = compiled(row_softmax(64, 4096, 1), config, (90,)).artifacts[90]
    assert artifact.shared > 0
    assert artifact.num_warps == 4


def test_counters_tell_built_from_cached(tmp_path: Path) -> None:
    config, sources = Config(cache_dir=tmp_path, workers=0), [add_one(64), row_softmax(4, 4, 4), add_one(64)]
    first, second = counters(), counters()
    assert not any(k.cached for k in build_kernels(sources, Target("cpu", (90,)), config, first))
    kernels = build_kernels(sources, Target("cpu", (90,)), config, second)
    assert (first.kernels_built, first.cache_hits) == (2, 0)
    assert (second.kernels_built, second.cache_hits) == (0, 2)
    assert all(k.cached for k in kernels)
    assert kernels[0] is kernels[2]


def test_interpreted_kernels_count_as_built_once(tmp_path: Path) -> None:
    config, first, second = Config(cache_dir=tmp_path), counters(), counters()
    build_kernels([add_one(64)], Target("cpu", ()), config, first)
    (found,) = build_kernels([add_one(64)], Target("cpu", ()), config, second)
    assert (first.kernels_built, first.cache_hits) == (1, 0)
    assert (second.kernels_built, second.cache_hits) == (0, 1)
    assert found.cached
    assert found.artifact is None


def test_a_damaged_binary_is_compiled_again(tmp_path: Path) -> None:
    config, source = Config(cache_dir=tmp_path, workers=0), add_one(64)
    good = compiled(source, config, (90,)).artifact
    (path,) = (tmp_path / "kernels-1").glob("*.cubin")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    again = compiled(source, config, (90,))
    assert not again.cached
    assert again.artifact.cubin == good.cubin
    assert compiled(source, config, (90,)).cached


def test_an_unwritable_cache_still_builds_with_one_warning(tmp_path: Path) -> None:
    cache_module.warn_once.cache_clear()
    (tmp_path / "file").write_text("")
    config = Config(cache_dir=tmp_path / "file" / "cache", workers=0)
    with pytest.warns(CacheWarning) as caught:
        found = [compiled(add_one(64, name=n), config, (90,)) for n in ("a", "b")]
    assert len(caught) == 1
    assert all(k.artifact.registers for k in found)


def test_whatever_decides_the_binary_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(source: KernelSource, tile: Tile | None = None, arch: int = 90) -> str:
        return cache_key(source, compile_request(source, tile or source.tile, arch))

    source = add_one(64)
    keys = [
        key(source),
        key(source, arch=80),
        key(source, Tile(source.tile.blocks, num_warps=8)),
        key(source, Tile((("x", 512),))),
        key(add_one(65)),
        key(add_one(64, torch.bfloat16)),
        key(add_one(64, name="other")),
    ]
    monkeypatch.setattr(build_module, "versions", lambda: {"fusec": "other"})
    keys.append(key(source))
    monkeypatch.setattr(build_module, "helpers_digest", lambda: "other")
    keys.append(key(source))
    assert len(set(keys)) == len(keys)


def test_one_failing_kernel_is_named_among_many(config: Config) -> None:
    bad = kernel("bad", "x = tl.lode(x_ptr)", {"x_ptr": torch.float32}, {}, [(1, None)])
    with pytest.raises(BuildError, match=r"bad does not compile for sm_90(?s:.*)lode"):
        build_kernels([add_one(64), bad], Target("cpu", (90,)), config)


SECOND = """
import json, sys, time
from pathlib import Path
import torch
from fusec.config import Config
from fusec.runtime.build import build
from tests.runtime.samples import add_one, counters, program
x = torch.randn(1000)
source = add_one(1000)
count = counters()
schedule, plan, wrapper = program(source, x)
started = time.perf_counter()
executable = build(schedule, plan, [source], wrapper, Config(target="sm_90", cache_dir=Path(sys.argv[1])), count)
seconds = time.perf_counter() - started
assert torch.equal(executable(x)[0], x + 1)
print(json.dumps({**vars(count), "seconds": seconds, "registers": executable.kernels[0].artifact.registers}))
"""


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def once() -> dict[str, float]:
        command = [sys.executable, "-c", SECOND, str(tmp_path / "cache")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first, second = once(), once()
    assert (first["kernels_built"], first["cache_hits"]) == (1, 0)
    assert (second["kernels_built"], second["cache_hits"]) == (0, 1)
    assert second["registers"] == first["registers"]
    assert second["seconds"] < first["seconds"] / 3


def test_a_build_for_cpu_tensors_with_a_gpu_target_runs_and_holds_binaries(config: Config) -> None:
    x = torch.randn(17, 9).t()
    source, count = add_one(153), counters()
    schedule, plan, wrapper = program(source, x)
    executable = build(schedule, plan, [source], wrapper, config.updated({"target": "sm_100"}), count)
    assert torch.equal(executable(x)[0], x + 1)
    assert executable.kernels[0].artifact.arch == 100
    assert repr(executable) == "Executable(sample: 1 launches, 0 library calls, cpu, sm_100)"
    assert count.kernels_launched == 1
