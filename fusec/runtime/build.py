"""KernelSources and wrapper text to an Executable: keys, cache, parallel compilation.

Enters: a schedule, its buffer plan, its kernels' text, the wrapper's text, a Config. Leaves: an Executable.

    executable = build(schedule, buffer_plan, sources, wrapper, config, counters)
    executable(x, weight) -> [out]

A kernel for a GPU is a cubin, taken from the cache or compiled in a worker. A kernel for CPU tensors is its text: the
cache keeps a manifest of it, so that a second process can tell that it met the kernel before.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
import triton

from fusec import __version__
from fusec.config import Config
from fusec.errors import BuildError
from fusec.ir.kernels import BufferPlan, KernelSource, Schedule, Tile
from fusec.runtime.cache import Cache, Entry, digest
from fusec.runtime.compiler import Artifact, CompileRequest
from fusec.runtime.executable import Executable
from fusec.runtime.grid import block_values
from fusec.runtime.launch import Kernel
from fusec.runtime.sized import SizedKernel, divisible
from fusec.runtime.target import Target, resolve_target
from fusec.runtime.tune import tile_to_json
from fusec.runtime.worker import TIMEOUT, compile_all

__all__ = ["Counters", "Executable", "build", "build_kernels", "compile_request"]

log = logging.getLogger(__name__)

_MAX_WARPS = 32


class Counters(Protocol):
    """What a build and its launches count; the caller's own object."""

    kernels_built: int
    kernels_launched: int
    extern_calls: int
    cache_hits: int


def build(
    schedule: Schedule,
    buffer_plan: BufferPlan,
    sources: Sequence[KernelSource],
    wrapper: str,
    config: Config,
    counters: Counters | None = None,
) -> Executable:
    """Compile every kernel for the target, or take it from the cache, and load the wrapper.

    BuildError names the kernel that does not compile.
    """
    target = resolve_target(config, (b.device for b in schedule.buffers))
    kernels = build_kernels(sources, target, config, counters)
    return Executable(schedule, buffer_plan, kernels, wrapper, target, config, counters)


def build_kernels(
    sources: Sequence[KernelSource],
    target: Target,
    config: Config,
    counters: Counters | None = None,
    timeout: float = TIMEOUT,
) -> tuple[Kernel, ...]:
    """One Kernel per source, in order; equal sources share one."""
    cache = Cache.from_config(config)
    kernels = {_identity(source): _kernel(source, target, config, counters) for source in sources}
    every = [k for kernel in kernels.values() for k in kernel.variants()]
    jobs: list[Job] = []
    for kernel in every:
        if target.device == "cpu":
            kernel.met_before = _note_text(kernel.source, cache, counters, compiled=bool(target.archs))
        for arch in target.archs:
            jobs += _jobs(kernel, arch, cache, tune=config.mode == "max-autotune" and target.device == "cuda")
    _compile(jobs, cache, config, counters, timeout)
    _compile(_jobs_without_spills(every), cache, config, counters, timeout)
    for kernel in every:
        _leave_spilling_tile(kernel)
    return tuple(kernels[_identity(source)] for source in sources)


def _kernel(source: KernelSource, target: Target, config: Config, counters: Counters | None) -> Kernel:
    if not any(p.kind == "size" for p in source.params):
        return Kernel(source, target)
    even = Kernel(divisible(source), target) if target.archs else None
    return SizedKernel(source, target, even, lambda other: build_kernels([other], target, config, counters)[0])


@dataclass(frozen=True, slots=True)
class Job:
    """A kernel to compile with a tile for an architecture. optional: a candidate that may fail."""

    kernel: Kernel
    tile: Tile
    arch: int
    optional: bool = False

    def accept(self, artifact: Artifact) -> None:
        if self.optional:
            self.kernel.candidates.setdefault(self.arch, []).append((self.tile, artifact))
        else:
            self.kernel.artifacts[self.arch] = artifact


def _jobs(kernel: Kernel, arch: int, cache: Cache, tune: bool) -> list[Job]:
    """The kernel with its tile, or with the tile measured before; candidates where measuring is still to come."""
    source = kernel.source
    if not tune or not source.candidates:
        return [Job(kernel, source.tile, arch)]
    key = digest({"tuned": cache_key(source, compile_request(source, source.tile, arch)), "device": _device_name()})
    entry = cache.get(key)
    tiles = {digest(tile_to_json(t)): t for t in (source.tile, *source.candidates)}
    if entry is not None and entry.meta.get("tile") in tiles:
        kernel.tiles[arch] = tiles[entry.meta["tile"]]
        return [Job(kernel, kernel.tiles[arch], arch)]
    kernel.on_tuned = lambda _, tile: cache.put(key, Entry({"tile": digest(tile_to_json(tile))}, b""))
    others = [Job(kernel, tile, arch, optional=True) for tile in source.candidates if tile != source.tile]
    return [Job(kernel, source.tile, arch), *others]


def _jobs_without_spills(kernels: Iterable[Kernel]) -> list[Job]:
    """Other tiles for every kernel that spills: the planner's, then the same blocks shared by more warps."""
    jobs = []
    for kernel in kernels:
        tile = kernel.source.tile
        warps = [n for n in (2 * tile.num_warps, 4 * tile.num_warps) if n <= _MAX_WARPS]
        others = dict.fromkeys((*kernel.source.candidates, *(replace(tile, num_warps=n) for n in warps)))
        for arch, artifact in kernel.artifacts.items():
            if artifact.spills and not kernel.candidates.get(arch):
                jobs += [Job(kernel, other, arch, optional=True) for other in others if other != tile]
    return jobs


def _leave_spilling_tile(kernel: Kernel) -> None:
    """Replace a binary that spills by the first candidate that spills least; the other candidates are dropped."""
    for arch, artifact in list(kernel.artifacts.items()):
        candidates = kernel.candidates.get(arch, [])
        if not artifact.spills or not candidates:
            continue
        tile, best = min(candidates, key=lambda c: c[1].spills)
        if best.spills < artifact.spills:
            log.info(
                "fusec: %s spills %d bytes with %s; %s instead", kernel.name, artifact.spills, kernel.source.tile, tile
            )
            kernel.tiles[arch], kernel.artifacts[arch] = tile, best
        if kernel.on_tuned is None:
            del kernel.candidates[arch]


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def _compile(jobs: Sequence[Job], cache: Cache, config: Config, counters: Counters | None, timeout: float) -> None:
    """Give every kernel its artifacts, from the cache or from the compiler."""
    missing: list[tuple[Job, CompileRequest, str]] = []
    for job in jobs:
        request = compile_request(job.kernel.source, job.tile, job.arch)
        key = cache_key(job.kernel.source, request)
        artifact = load_artifact(cache, key)
        if artifact is None:
            missing.append((job, request, key))
        else:
            job.accept(artifact)
            _count(counters, "cache_hits")
    results = compile_all([request for _, request, _ in missing], config.workers, timeout) if missing else []
    failures: list[tuple[str, BuildError]] = []
    for (job, _, key), result in zip(missing, results, strict=True):
        if isinstance(result, Artifact):
            job.accept(result)
            cache.put(key, Entry(result.to_json(), result.cubin))
            _count(counters, "kernels_built")
        elif not job.optional:
            failures.append((job.kernel.source.name, result))
    if failures:
        more = f"\n({len(failures) - 1} more kernels failed)" if len(failures) > 1 else ""
        raise BuildError(f"{failures[0][1]}{more}", tuple(name for name, _ in failures))


def load_artifact(cache: Cache, key: str) -> Artifact | None:
    entry = cache.get(key)
    if entry is None:
        return None
    try:
        return Artifact.from_json(entry.meta, entry.blob, cached=True)
    except (TypeError, KeyError):
        return None  # written by a version with other fields


def compile_request(source: KernelSource, tile: Tile, arch: int) -> CompileRequest:
    """How a source is compiled with a tile for an architecture."""
    signature, constants, aligned = [], [], []
    blocks = block_values(source, tile)
    for position, param in enumerate(source.params):
        if param.kind == "pointer":
            assert param.dtype is not None, f"{source.name}: pointer {param.name} has no dtype"
            signature.append((param.name, "*" + _TYPES[param.dtype]))
            if param.aligned:
                aligned.append(position)
        elif param.kind == "size":
            signature.append((param.name, _TYPES[param.dtype or torch.int32]))
            if param.aligned and param.symbol is not None:  # multiples of 16
                aligned.append(position)
        else:
            signature.append((param.name, "constexpr"))
            constants.append((param.name, blocks[param.name]))
    return CompileRequest(
        name=source.name,
        text=source.text,
        signature=tuple(signature),
        constants=tuple(constants),
        aligned=tuple(aligned),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        fuse_multiply_add=source.fuse_multiply_add,
        arch=arch,
    )


_TYPES = {
    torch.bool: "i1", torch.uint8: "u8", torch.int8: "i8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64",
    torch.uint16: "u16", torch.uint32: "u32", torch.uint64: "u64", torch.float16: "fp16", torch.bfloat16: "bf16",
    torch.float32: "fp32", torch.float64: "fp64", torch.float8_e4m3fn: "fp8e4nv", torch.float8_e5m2: "fp8e5",
    torch.float8_e4m3fnuz: "fp8e4b8", torch.float8_e5m2fnuz: "fp8e5b16",
}  # fmt: skip


# keys


def cache_key(source: KernelSource, request: CompileRequest) -> str:
    """All that decides the binary: text (without comments), types, blocks, options, architecture, versions."""
    facts = request.to_json()
    del facts["text"]
    return digest({"source": source.cache_key, "request": facts, "versions": versions(), "helpers": helpers_digest()})


def text_key(source: KernelSource) -> str:
    """The key of a kernel that is interpreted."""
    facts = {"source": source.cache_key, "target": "interpreter", "versions": versions(), "helpers": helpers_digest()}
    return digest(facts)


@functools.cache
def versions() -> dict[str, Any]:
    """Versions of what makes the binary; a ptxas that is named through the environment counts by its file."""
    found: dict[str, Any] = {"fusec": __version__, "torch": torch.__version__, "triton": triton.__version__}
    for tool in ("ptxas", "ptxas_blackwell"):
        path = getattr(triton.knobs.nvidia, tool).path
        status = Path(path).stat()
        found[tool] = [str(path), status.st_size, status.st_mtime_ns]
    return found


@functools.cache
def helpers_digest() -> str:
    """Digest of the device functions that kernels import from `fusec.kernels`."""
    spec = find_spec("fusec.kernels")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    files = sorted(path for folder in folders for path in Path(folder).glob("*.py"))
    return digest([[path.name, digest(path.read_bytes())] for path in files])


def _identity(source: KernelSource) -> tuple[Any, ...]:
    grids = source.grid, source.parts, source.limits
    return source.cache_key, source.name, source.tile, source.interpreter_tile, *grids


def _note_text(source: KernelSource, cache: Cache, counters: Counters | None, compiled: bool) -> bool:
    """Whether an earlier process prepared this text; counted only where no binary is."""
    key = text_key(source)
    met = cache.get(key) is not None
    if not met:
        cache.put(key, Entry({"name": source.name, "target": "interpreter"}, b""))
    if not compiled:
        _count(counters, "cache_hits" if met else "kernels_built")
    return met


def _count(counters: Counters | None, name: str) -> None:
    if counters is not None:
        setattr(counters, name, getattr(counters, name) + 1)
