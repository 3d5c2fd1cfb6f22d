"""What a build returns: a callable over real tensors that can also be looked into.

Enters: a schedule, its kernels in launch order, the wrapper's text. Leaves: the list of outputs of each call.

    executable(x, weight) -> [out]
    executable.kernels[0].source.text, .artifact.registers, .cached

The wrapper's `call(args, rt)` does all work of a call; `rt` is the Runtime below, made once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from fusec.config import Config
from fusec.errors import BuildError
from fusec.ir.kernels import BufferPlan, KernelPlan, Schedule
from fusec.ir.types import Buffer, Extern
from fusec.runtime.allocate import Allocate, allocators
from fusec.runtime.graphs import GraphReplay, ReplayBySizes, why_not
from fusec.runtime.grid import launch_grid
from fusec.runtime.inputs import Inputs, same_strides
from fusec.runtime.launch import Kernel
from fusec.runtime.module import load_namespace
from fusec.runtime.sizes import CallSizes
from fusec.runtime.target import Target, require_cuda

log = logging.getLogger(__name__)


class LaunchCounters(Protocol):
    kernels_launched: int
    extern_calls: int


@dataclass
class Runtime:
    """What wrapper text calls.

    launch:    one callable per kernel launch, in order: pointer tensors, then sizes.
    extern:    one callable per extern step, in order: the op's own arguments.
    constants: tensors by buffer name.
    empty:     by device, what gives new memory there: of a shape, strides and a dtype.
    """

    launch: tuple[Callable[..., None], ...]
    extern: tuple[Callable[..., Any], ...]
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    empty: Mapping[str, Allocate] = field(default_factory=lambda: allocators(["cpu"], direct=["cpu"]))

    @staticmethod
    def written(*tensors: torch.Tensor) -> None:
        """Count a write, as an in-place op of eager mode does: autograd must notice a saved tensor that changed."""
        torch.autograd.graph.increment_version(tensors)  # which passes over inference tensors: they count nothing

    @staticmethod
    def view(tensor: torch.Tensor, shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> torch.Tensor:
        """A strided view; `offset` counts elements from the tensor's first."""
        return tensor.as_strided(shape, strides, tensor.storage_offset() + offset)

    @staticmethod
    def restride(tensor: torch.Tensor, shape: tuple[int, ...], strides: tuple[int, ...]) -> torch.Tensor:
        """The tensor itself when it has these strides, else a copy that has them."""
        if tensor.stride() == strides or same_strides(tensor, strides):
            return tensor
        copy = torch.empty_strided(shape, strides, dtype=tensor.dtype, device=tensor.device)
        target = copy
        for dim, (extent, stride) in enumerate(zip(shape, strides, strict=True)):
            if extent > 1 and stride == 0:  # all points of the dimension are one place in memory, written once
                target, tensor = target.narrow(dim, 0, 1), tensor.narrow(dim, 0, 1)
        target.copy_(tensor)
        return copy


class Executable:
    """A compiled program. Call it with the program's inputs; a call returns the list of its outputs.

    kernels: one Kernel per launch, in order (launches of one kernel share it).
    target:  where it runs and what it was compiled for.
    runtime: what the wrapper calls.
    wrapper: the text that runs a call.
    graph_reason: why mode="reduce-overhead" does not replay CUDA graphs; None where it does or was not asked for.
    """

    def __init__(
        self,
        schedule: Schedule,
        buffer_plan: BufferPlan,
        kernels: Sequence[Kernel],
        wrapper: str,
        target: Target,
        config: Config,
        counters: LaunchCounters | None = None,
    ) -> None:
        self.schedule = schedule
        self.buffer_plan = buffer_plan
        self.kernels = tuple(kernels)
        self.wrapper = wrapper
        self.target = target
        self._settled = False  # it ran, so that its device is there and its kernels are loaded
        self.config = config
        self.counters = counters
        plans = [s for s in schedule.steps if isinstance(s, KernelPlan)]
        externs = [s for s in schedule.steps if isinstance(s, Extern)]
        if len(plans) != len(self.kernels):
            raise BuildError(f"{schedule.name}: {len(plans)} kernel steps, but {len(self.kernels)} kernels")
        devices = sorted({b.device for b in schedule.buffers} | {"cpu"})
        self._devices = [_device_of(plan, schedule.table) for plan in plans]
        self._one_device = _only_cuda(devices)
        self.runtime = Runtime(
            self.kernels, tuple(e.target for e in externs), dict(schedule.constants), allocators(devices, ["cpu"])
        )
        namespace = load_namespace(f"{schedule.name}_wrapper", wrapper)
        if not callable(namespace.get("call")):
            raise BuildError(f"{schedule.name}: the wrapper text defines no call(args, rt)")
        self._call: Callable[[list[Any], Runtime], Any] = namespace["call"]
        sizes = CallSizes(schedule)
        self._sizes = sizes if sizes.symbolic or schedule.numbers else None
        self._inputs = Inputs(schedule, target.device == "cuda", self._sizes)
        self.graph_reason, self._run = self._choose_run(config)
        self._launches = sum(_launches(k) for k in self.kernels)
        self._externs = len(externs)
        written = {
            name for step in schedule.steps for name in (step.writes if isinstance(step, KernelPlan) else step.mutates)
        }
        self._mutated = tuple(i for i, name in enumerate(schedule.inputs) if name in written)

    def __call__(self, *inputs: Any) -> list[Any]:
        """Run the program. FusecError when an input is not what was compiled for; TargetError without its device."""
        return self.run(inputs)

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """The same for a sequence of inputs, which is left as it is."""
        return self._called(self._checked(inputs), inputs)

    def consume(self, inputs: list[Any]) -> list[Any]:
        """The same for a list of inputs that belong to the call: each is freed after its last use.

        The list is emptied once the inputs are seen to fit; an error before leaves it as it is.
        """
        args, written = self._checked(inputs), {i: inputs[i] for i in self._mutated}
        inputs.clear()
        return self._called(args, written)

    def _called(self, args: list[Any], written: Mapping[int, Any] | Sequence[Any]) -> list[Any]:
        """args: checked inputs, a list that is emptied. written: by position, the inputs that the program writes."""
        copies = [(written[i], args[i]) for i in self._mutated if args[i] is not written[i]] if self._mutated else ()
        if copies or torch.is_grad_enabled():
            with torch.no_grad():
                outputs = self._run(args)
                for target, copy in copies:
                    target.copy_(copy)
        else:
            outputs = self._run(args)
        if not self._settled:
            self._settle()
        if self.counters is not None:
            self.counters.kernels_launched += self._launches
            self.counters.extern_calls += self._externs
        return outputs

    def _checked(self, inputs: Sequence[Any]) -> list[Any]:
        if not self._settled and self.target.device == "cuda":
            require_cuda()
        return self._inputs(inputs)

    @property
    def runtime(self) -> Runtime:
        return self._runtime

    @runtime.setter
    def runtime(self, runtime: Runtime) -> None:
        self._runtime = self._runtime_here = runtime
        if self._one_device is not None:
            here = allocators(runtime.empty, direct=["cpu", f"cuda:{self._one_device}"])
            self._runtime_here = replace(runtime, empty=here)

    def _settle(self) -> None:
        """After the first run: launches on a known device go to what was loaded there."""
        launch = (
            kernel.loaded(device) if isinstance(kernel, Kernel) and device is not None else kernel
            for kernel, device in zip(self.runtime.launch, self._devices, strict=True)
        )
        self.runtime = replace(self.runtime, launch=tuple(launch))
        self._settled = True

    def _choose_run(self, config: Config) -> tuple[str | None, Callable[[list[Any]], list[Any]]]:
        """How calls run: as they are, or replayed as a CUDA graph; and why not replayed where that was asked for."""

        def run_once(args: list[Any]) -> list[Any]:
            if self._one_device is not None and self._settled and torch._C._cuda_getDevice() == self._one_device:
                return list(self._call(args, self._runtime_here))
            return list(self._call(args, self._runtime))

        def run(args: Sequence[Any]) -> list[Any]:
            return run_once(list(args))

        if config.mode != "reduce-overhead":
            return None, run_once
        reason = why_not(self.schedule, self.target)
        if reason is None:
            if self._sizes is not None:
                return None, ReplayBySizes(self.schedule.name, run, self._sizes.values)
            return None, GraphReplay(self.schedule.name, run)
        log.info("fusec: %s: CUDA graphs are off: %s", self.schedule.name, reason)
        return reason, run_once

    def __repr__(self) -> str:
        kernels, where = len(self.kernels), ", ".join((self.target.device, *self.target.names))
        return f"Executable({self.schedule.name}: {kernels} launches, {self._externs} library calls, {where})"


def _device_of(plan: KernelPlan, table: Mapping[str, Buffer]) -> int | None:
    """The index of the CUDA device that a kernel runs on; None on the CPU."""
    return _only_cuda({table[b.name].device for b in plan.buffers})


def _only_cuda(devices: Iterable[str]) -> int | None:
    """The index of the only CUDA device among these; None where there is another number of them."""
    found = {torch.device(d).index for d in devices if torch.device(d).type == "cuda"}
    return found.pop() if len(found) == 1 else None


def _launches(kernel: Kernel) -> int:
    """1, or 0 for a kernel with nothing to do; a symbolic grid counts as a launch."""
    if any(p.kind == "size" for p in kernel.source.params):
        return 1
    return int(0 not in launch_grid(kernel.source, kernel.source.tile, ()))
