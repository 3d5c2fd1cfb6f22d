"""A kernel that can be launched: on CUDA from its cubin, on CPU tensors in the interpreter.

Enters: a KernelSource with its Artifacts. Leaves: launches.

    kernel(x, out)                  # tensors, then sizes; the grid and the argument layout were computed before

On CUDA the cubin is loaded once a device through `torch._C._StaticCudaLauncher` (checked on PyTorch 2.11; the binding is
private: `_load_kernel(path, name, shared, device) -> (function, registers, spills)`, `_launch_kernel(function, x, y, z,
warps, shared, types, arguments, stream)`). A build without it launches through Triton's own `JITFunction.run`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fusec.errors import BuildError, TargetError
from fusec.ir.kernels import KernelSource, Tile
from fusec.runtime.compiler import Artifact
from fusec.runtime.grid import block_values, launch_grid
from fusec.runtime.interpret import InterpretedKernel
from fusec.runtime.memory import span
from fusec.runtime.meter import active_meter
from fusec.runtime.module import load_kernel
from fusec.runtime.target import Target, device_arch, require_cuda

Launcher = Callable[..., None]

_SIZE_CODES = {torch.int32: "i", torch.int64: "l"}


class Kernel:
    """One kernel of an executable, shared by all its launches.

    artifacts:  by architecture; empty for a kernel that is only interpreted.
    met_before: the cache knew this text (interpreted kernels).
    tile:       the blocks to launch with on a GPU; tuning may replace them before the first launch.
    """

    def __init__(self, source: KernelSource, target: Target) -> None:
        self.source = source
        self.target = target
        self.tile = source.tile
        self.artifacts: dict[int, Artifact] = {}
        self.met_before = False
        self.pointers = sum(p.kind == "pointer" for p in source.params)
        self._interpreted: InterpretedKernel | None = None
        self._launchers: dict[int, Launcher] = {}

    @property
    def name(self) -> str:
        return self.source.name

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
            launcher = self._launchers[index] = self._load(index)
        launcher(*arguments)

    def interpret(
        self, tensors: Sequence[torch.Tensor], sizes: Sequence[int] = (), tile: Tile | None = None
    ) -> None:
        """Run on CPU tensors, with large blocks unless a tile is given."""
        if self._interpreted is None:
            self._interpreted = InterpretedKernel(self.source)
        tile = tile or self.source.interpreter_tile
        meter = active_meter()
        grid = launch_grid(self.source, tile, sizes)
        self._interpreted.launch(tensors, sizes, grid, tile, None if meter is None else meter.record)

    def _load(self, index: int) -> Launcher:
        require_cuda()
        arch = device_arch(index)
        artifact = None if arch is None else self.artifacts.get(arch)
        if artifact is None:
            raise TargetError(f"kernel {self.name} was built for {self.target.names}, the device is sm_{arch}")
        static = getattr(torch._C, "_StaticCudaLauncher", None)
        if static is None:
            return triton_launcher(self.source, self.tile)
        return static_launcher(static, self.source, self.tile, artifact, index)


# CUDA


def static_launcher(static: Any, source: KernelSource, tile: Tile, artifact: Artifact, index: int) -> Launcher:
    """A launcher through PyTorch's binding: no compiler at run time, one C call a launch."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(artifact.cubin)
        file.flush()
        with torch.cuda.device(index):
            function, _, _ = static._load_kernel(file.name, artifact.name, artifact.shared, index)
    types = argument_types(source) + "O" * artifact.scratch
    scratch = (None,) * artifact.scratch
    warps, shared, launch = artifact.num_warps, artifact.shared, static._launch_kernel
    stream = torch._C._cuda_getCurrentRawStream
    current = torch.cuda.current_device
    fixed = None if any(p.kind == "size" for p in source.params) else launch_grid(source, tile, ())
    pointers = sum(p.kind == "pointer" for p in source.params)
    aligned = tuple(p.aligned for p in source.params if p.kind == "pointer")

    def run(*arguments: Any) -> None:
        grid = fixed if fixed is not None else launch_grid(source, tile, arguments[pointers:])
        if 0 in grid:
            return
        x, y, z = (*grid, 1, 1)[:3]
        if current() == index:
            launch(function, x, y, z, warps, shared, types, arguments + scratch, stream(index))
        else:
            with torch.cuda.device(index):
                launch(function, x, y, z, warps, shared, types, arguments + scratch, stream(index))

    return with_aligned_pointers(run, aligned)


def with_aligned_pointers(run: Launcher, aligned: tuple[bool, ...]) -> Launcher:
    """Pass a copy in place of a tensor that is not 16-byte aligned where the kernel was compiled for one that is."""
    if not any(aligned):
        return run

    def checked(*arguments: Any) -> None:
        moved = []
        for position, must in enumerate(aligned):
            if must and arguments[position].data_ptr() % 16:
                moved.append(position)
        if not moved:
            run(*arguments)
            return
        copies = list(arguments)
        for position in moved:
            copies[position] = aligned_copy(arguments[position])
        run(*copies)
        for position in moved:
            copy_memory(arguments[position], copies[position])

    return checked


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

    def run(*arguments: Any) -> None:
        grid = launch_grid(source, tile, arguments[pointers:])
        if 0 not in grid:
            with torch.cuda.device(arguments[0].device):
                function[grid](*arguments, **blocks, num_warps=tile.num_warps, num_stages=tile.num_stages)

    return run
