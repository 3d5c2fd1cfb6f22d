"""A kernel that can be launched: on CUDA from its cubin, on CPU tensors in the interpreter.

Enters: a KernelSource with its Artifacts. Leaves: launches.

    kernel(x, out)                  # tensors, then sizes; the grid and the argument layout were computed before

On CUDA the cubin is loaded once a device through `torch._C._StaticCudaLauncher` (checked on PyTorch 2.11; the binding
is private: `_load_kernel(path, name, shared, device) -> (function, registers, spills)`,
`_launch_kernel(function, x, y, z, warps, shared, types, arguments, stream)`, a pointer argument being an address or a
tensor). A build without it launches through Triton's own `JITFunction.run`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch

from fusec.errors import BuildError, TargetError
from fusec.ir.kernels import KernelSource, Tile
from fusec.runtime.compiler import Artifact, checks
from fusec.runtime.grid import block_values, interpreter_tile, launch_grid
from fusec.runtime.interpret import InterpretedKernel
from fusec.runtime.memory import span
from fusec.runtime.meter import active_meter
from fusec.runtime.module import load_kernel
from fusec.runtime.target import Target, device_arch, require_cuda
from fusec.runtime.tune import fastest

Launcher = Callable[..., None]
Grid = tuple[int, ...]

_REMEMBERED_GRIDS = 4096
_SIZE_CODES = {torch.int32: "i", torch.int64: "l"}


class Kernel:
    """One kernel of an executable, shared by all its launches.

    artifacts:  by architecture; empty for a kernel that is only interpreted.
    tiles:      by architecture, where tuning chose another tile than the source's.
    candidates: (tile, artifact) by architecture, to be measured at the first launch (mode="max-autotune").
    on_tuned:   is told the architecture and the tile that measuring chose.
    met_before: the cache knew this text (interpreted kernels).
    """

    def __init__(self, source: KernelSource, target: Target) -> None:
        self.source = source
        self.target = target
        self.artifacts: dict[int, Artifact] = {}
        self.tiles: dict[int, Tile] = {}
        self.candidates: dict[int, list[tuple[Tile, Artifact]]] = {}
        self.on_tuned: Callable[[int, Tile], None] | None = None
        self.met_before = False
        self.pointers = sum(p.kind == "pointer" for p in source.params)
        self._interpreted: InterpretedKernel | None = None
        self._launchers: dict[int, Launcher] = {}

    @property
    def name(self) -> str:
        return self.source.name

    def variants(self) -> tuple[Kernel, ...]:
        """The kernels that launches choose from: this one."""
        return (self,)

    @property
    def cached(self) -> bool:
        """Nothing had to be compiled for it in this process."""
        return all(a.cached for a in self.artifacts.values()) if self.artifacts else self.met_before

    @property
    def artifact(self) -> Artifact | None:
        """The binary for the first architecture of the target."""
        return next((self.artifacts[a] for a in self.target.archs if a in self.artifacts), None)

    def __call__(self, *arguments: Any) -> None:
        """Launch: pointer tensors in parameter order, then the sizes."""
        if self.target.device == "cpu":
            self.interpret(arguments[: self.pointers], arguments[self.pointers :])
            return
        index = arguments[0].device.index
        launcher = self._launchers.get(index)
        if launcher is None:
            launcher = self._launchers[index] = self._load(index, arguments)
        launcher(*arguments)

    def loaded(self, index: int) -> Launcher:
        """What launches on this device without looking for it; the kernel itself where it was not loaded there."""
        return self._launchers.get(index, self)

    def interpret(self, tensors: Sequence[torch.Tensor], sizes: Sequence[int] = (), tile: Tile | None = None) -> None:
        """Run on CPU tensors, with large blocks unless a tile is given."""
        if self._interpreted is None:
            self._interpreted = InterpretedKernel(self.source)
        if tile is None:
            tile = interpreter_tile(self.source, sizes) if self.source.extents else self.source.interpreter_tile
        meter = active_meter()
        grid = launch_grid(self.source, tile, sizes)
        self._interpreted.launch(
            tensors, sizes, grid, tile, None if meter is None else partial(meter.record, self.name)
        )

    def _load(self, index: int, arguments: Sequence[Any]) -> Launcher:
        require_cuda()
        arch = device_arch(index)
        artifact = None if arch is None else self.artifacts.get(arch)
        if arch is None or artifact is None:
            raise TargetError(f"kernel {self.name} was built for {self.target.names}, the device is sm_{arch}")
        tile = self.tiles.get(arch, self.source.tile)
        launcher = self._launcher(tile, artifact, index)
        others = self.candidates.get(arch)
        if not others or torch.cuda.is_current_stream_capturing():
            return launcher
        launchers = {tile: launcher, **{t: self._launcher(t, a, index) for t, a in others}}
        copies = [aligned_copy(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        best = fastest(launchers, copies)
        self.artifacts[arch], self.tiles[arch] = {tile: artifact, **dict(others)}[best], best
        if self.on_tuned is not None:
            self.on_tuned(arch, best)
        return launchers[best]

    def _launcher(self, tile: Tile, artifact: Artifact, index: int) -> Launcher:
        static = getattr(torch._C, "_StaticCudaLauncher", None)
        if static is None:
            return triton_launcher(self.source, tile)
        return static_launcher(static, self.source, tile, artifact, index)


# CUDA


def static_launcher(static: Any, source: KernelSource, tile: Tile, artifact: Artifact, index: int) -> Launcher:
    """A launcher through PyTorch's binding: no compiler at run time, one C call a launch."""
    has_sizes = any(p.kind == "size" for p in source.params)

    @lru_cache(maxsize=_REMEMBERED_GRIDS)
    def grid_of(*sizes: int) -> Grid:
        """x, y and z; () where there is nothing to do."""
        grid = launch_grid(source, tile, sizes)
        return () if 0 in grid else (*grid, 1, 1)[:3]

    grid = None if has_sizes else grid_of()
    if grid == ():
        return lambda *_: None
    must_align = tuple(i for i, p in enumerate(q for q in source.params if q.kind == "pointer") if p.aligned)

    def realigned(*arguments: Any) -> None:
        with_aligned_pointers(run, arguments, [i for i in must_align if arguments[i].data_ptr() & 15])

    namespace: dict[str, Any] = {
        "launch": static._launch_kernel,
        "function": _load_function(static, artifact, index),
        "grid_of": grid_of,
        "fixed": (artifact.num_warps, artifact.shared, argument_types(source) + "O" * artifact.scratch),
        "stream": torch._C._cuda_getCurrentRawStream,
        "current": torch._C._cuda_getDevice,
        "device": torch.cuda.device,
        "realigned": realigned,
    }
    exec(launcher_text(source, artifact.scratch, index, grid), namespace)
    run: Launcher = namespace["run"]
    return run


def launcher_text(source: KernelSource, scratch: int, index: int, grid: Grid | None) -> str:
    """The function that launches, written out for its arguments: it runs at every launch and loops over nothing.

    grid: None where it depends on sizes.

    def run(t0, t1, n0):
        grid = grid_of(n0)
        if not grid:
            return
        a0 = t0.data_ptr()
        a1 = t1.data_ptr()
        if (a0 | a1) & 15:
            realigned(t0, t1, n0)
        elif current() == 0:
            launch(function, *grid, *fixed, (a0, a1, n0, None), stream(0))
        else:
            with device(0):
                launch(function, *grid, *fixed, (a0, a1, n0, None), stream(0))
    """
    pointers = [p for p in source.params if p.kind == "pointer"]
    tensors, addresses = [f"t{i}" for i in range(len(pointers))], [f"a{i}" for i in range(len(pointers))]
    sizes = [f"n{i}" for i in range(sum(p.kind == "size" for p in source.params))]
    arguments = ", ".join((*tensors, *sizes))
    lines = [f"def run({arguments}):"]
    if grid is None:
        lines += [f"    grid = grid_of({', '.join(sizes)})", "    if not grid:", "        return"]
    lines += [f"    {a} = {t}.data_ptr()" for a, t in zip(addresses, tensors, strict=True)]
    aligned = " | ".join(a for a, p in zip(addresses, pointers, strict=True) if p.aligned) or "0"
    values = ", ".join((*addresses, *sizes, *["None"] * scratch)) + ","
    where = "*grid" if grid is None else ", ".join(map(str, grid))
    call = f"launch(function, {where}, *fixed, ({values}), stream({index}))"
    lines += [f"    if ({aligned}) & 15:", f"        realigned({arguments})"]
    lines += [f"    elif current() == {index}:", f"        {call}"]
    lines += ["    else:", f"        with device({index}):", f"            {call}"]
    return "\n".join(lines) + "\n"


def _load_function(static: Any, artifact: Artifact, index: int) -> int:
    """Load the cubin, whose bytes were verified, on a device; the handle of its function."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(artifact.cubin)
        file.flush()
        with torch.cuda.device(index):
            function, _, _ = static._load_kernel(file.name, artifact.name, artifact.shared, index)
    return int(function)


def with_aligned_pointers(run: Launcher, arguments: Sequence[Any], positions: Sequence[int]) -> None:
    """Launch with copies of the tensors whose addresses are not the multiples of 16 that were compiled for."""
    copies = list(arguments)
    for position in positions:
        copies[position] = aligned_copy(arguments[position])
    run(*copies)
    for position in positions:
        copy_memory(arguments[position], copies[position])


def aligned_copy(tensor: torch.Tensor) -> torch.Tensor:
    """The same values and strides in memory of its own, which every allocator aligns."""
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    copy_memory(copy, tensor)
    return copy


def copy_memory(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy from the first element in memory to the last; both have the same strides, which may overlap."""
    count = span(source)
    target.detach().as_strided((count,), (1,)).copy_(source.detach().as_strided((count,), (1,)))


def argument_types(source: KernelSource) -> str:
    """One character an argument: "O" a tensor, "i" and "l" integers."""
    codes = []
    for param in source.params:
        if param.kind == "pointer":
            codes.append("O")
        elif param.kind == "size":
            codes.append(_SIZE_CODES[param.dtype or torch.int32])
    return "".join(codes)


def triton_launcher(source: KernelSource, tile: Tile) -> Launcher:
    """A launcher through Triton, which compiles and specialises by itself."""
    function = load_kernel(source.name, source.text)
    if not hasattr(function, "warmup"):
        raise BuildError(f"{source.name}: unset TRITON_INTERPRET to launch on a GPU")
    blocks = block_values(source, tile)
    pointers = sum(p.kind == "pointer" for p in source.params)
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages, "enable_fp_fusion": source.fuse_multiply_add}
    options |= checks(source.text)

    def run(*arguments: Any) -> None:
        grid = launch_grid(source, tile, arguments[pointers:])
        if 0 not in grid:
            with torch.cuda.device(arguments[0].device):
                function[grid](*arguments, **blocks, **options)

    return run
