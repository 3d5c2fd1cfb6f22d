"""What a build returns: a callable over real tensors that can also be looked into.

Enters: a schedule, its kernels in launch order, the wrapper's text. Leaves: the list of outputs of each call.

    executable(x, weight) -> [out]
    executable.kernels[0].source.text, .artifact.registers, .cached

The wrapper's `call(args, rt)` does all work of a call; `rt` is the Runtime below, made once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from fusec.config import Config
from fusec.errors import BuildError, FusecError, TargetError
from fusec.ir.index import as_int
from fusec.ir.kernels import BufferPlan, KernelPlan, Schedule
from fusec.ir.types import Buffer, Extern
from fusec.runtime.graphs import GraphReplay, ReplayBySizes, why_not
from fusec.runtime.grid import launch_grid
from fusec.runtime.launch import Kernel, aligned_copy
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
    """

    launch: tuple[Callable[..., None], ...]
    extern: tuple[Callable[..., Any], ...]
    constants: dict[str, torch.Tensor] = field(default_factory=dict)

    @staticmethod
    def empty(
        shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, device: torch.device | str
    ) -> torch.Tensor:
        return torch.empty_strided(shape, strides, dtype=dtype, device=device)

    @staticmethod
    def written(*tensors: torch.Tensor) -> None:
        """Count a write, as an in-place op of eager mode does: autograd must notice a saved tensor that changed."""
        torch.autograd.graph.increment_version([t for t in tensors if not t.is_inference()])

    @staticmethod
    def view(tensor: torch.Tensor, shape: Sequence[int], strides: Sequence[int], offset: int = 0) -> torch.Tensor:
        """A strided view; `offset` counts elements from the tensor's first."""
        return tensor.as_strided(shape, strides, tensor.storage_offset() + offset)

    @staticmethod
    def restride(tensor: torch.Tensor, shape: Sequence[int], strides: Sequence[int]) -> torch.Tensor:
        """The tensor itself when it has these strides, else a copy that has them."""
        if tensor.stride() == tuple(strides) or same_strides(tensor, strides):
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
        self.config = config
        self.counters = counters
        plans = [s for s in schedule.steps if isinstance(s, KernelPlan)]
        externs = [s for s in schedule.steps if isinstance(s, Extern)]
        if len(plans) != len(self.kernels):
            raise BuildError(f"{schedule.name}: {len(plans)} kernel steps, but {len(self.kernels)} kernels")
        self.runtime = Runtime(self.kernels, tuple(e.target for e in externs), dict(schedule.constants))
        namespace = load_namespace(f"{schedule.name}_wrapper", wrapper)
        if not callable(namespace.get("call")):
            raise BuildError(f"{schedule.name}: the wrapper text defines no call(args, rt)")
        self._call: Callable[[list[Any], Runtime], Any] = namespace["call"]
        self._checks = tuple(InputCheck.of(i, schedule.table[n]) if n else None for i, n in enumerate(schedule.inputs))
        self._layouts = [(None, None) if check is None else (check.shape, check.strides) for check in self._checks]
        sizes = CallSizes(schedule)
        self._sizes = sizes if sizes.symbolic or schedule.numbers else None
        self.graph_reason, self._run = self._choose_run(config)
        self._launches = sum(_launches(k) for k in self.kernels)
        self._externs = len(externs)
        written = {
            name for step in schedule.steps for name in (step.writes if isinstance(step, KernelPlan) else step.mutates)
        }
        self._mutated = tuple(i for i, name in enumerate(schedule.inputs) if name in written)

    def __call__(self, *inputs: Any) -> list[Any]:
        """Run the program. FusecError when an input is not what was compiled for; TargetError without its device."""
        return self._called(self._checked(inputs), inputs)

    def consume(self, inputs: list[Any]) -> list[Any]:
        """The same for a list of inputs that belong to the call: each is freed after its last use.

        The list is emptied once the inputs are seen to fit; an error before leaves it as it is.
        """
        args, written = self._checked(inputs), [inputs[i] if i in self._mutated else None for i in range(len(inputs))]
        inputs.clear()
        return self._called(args, written)

    def _called(self, args: list[Any], written: Sequence[Any]) -> list[Any]:
        """args: checked inputs, a list that is emptied. written: by position, the inputs that the program writes."""
        copies = [(written[i], args[i]) for i in self._mutated if args[i] is not written[i]]
        with torch.no_grad():
            outputs = self._run(args)
            for target, copy in copies:
                target.copy_(copy)
        if self.counters is not None:
            self.counters.kernels_launched += self._launches
            self.counters.extern_calls += self._externs
        return outputs

    def _checked(self, inputs: Sequence[Any]) -> list[Any]:
        if self.target.device == "cuda":
            require_cuda()
        if len(inputs) != len(self._checks):
            raise FusecError(f"{self.schedule.name} takes {len(self._checks)} inputs, got {len(inputs)}")
        layouts = self._layouts
        if self._sizes is not None:
            layouts = list(layouts)
            for position, shape, strides in self._sizes.layouts(self._sizes.values(inputs)):
                layouts[position] = shape, strides
        return [
            x if check is None else check.against(x, shape, strides)
            for x, check, (shape, strides) in zip(inputs, self._checks, layouts, strict=True)
        ]

    def _choose_run(self, config: Config) -> tuple[str | None, Callable[[list[Any]], list[Any]]]:
        """How calls run: as they are, or replayed as a CUDA graph; and why not replayed where that was asked for."""

        def run_once(args: list[Any]) -> list[Any]:
            return list(self._call(args, self.runtime))

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


def _launches(kernel: Kernel) -> int:
    """1, or 0 for a kernel with nothing to do; a symbolic grid counts as a launch."""
    if any(p.kind == "size" for p in kernel.source.params):
        return 1
    return int(0 not in launch_grid(kernel.source, kernel.source.tile, ()))


_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})


@dataclass(frozen=True, slots=True)
class InputCheck:
    """One input against its Buffer. shape and strides are None where they are symbolic."""

    position: int
    name: str
    dtype: torch.dtype
    device: torch.device
    shape: tuple[int, ...] | None
    strides: tuple[int, ...] | None

    @classmethod
    def of(cls, position: int, buffer: Buffer) -> InputCheck:
        shape = [as_int(n) for n in buffer.shape]
        strides = [as_int(n) for n in buffer.strides]
        return cls(
            position,
            buffer.hint or buffer.name,
            buffer.dtype,
            torch.device(buffer.device),
            None if None in shape else tuple(n for n in shape if n is not None),
            None if None in strides else tuple(n for n in strides if n is not None),
        )

    def against(self, tensor: Any, shape: tuple[int, ...] | None, strides: tuple[int, ...] | None) -> torch.Tensor:
        """The tensor, or a copy with the strides and the alignment that were compiled for.

        shape, strides: the check's own, or those that the sizes of this call give.
        """
        if (
            tensor.__class__ in _PLAIN
            and tensor.stride() == strides
            and tensor.shape == shape
            and tensor.dtype is self.dtype
            and tensor.device == self.device
            and not tensor.is_neg()
            and not (tensor.is_cuda and tensor.data_ptr() % 16)
        ):
            plain: torch.Tensor = tensor  # the common case, without a second look
            return plain
        if not isinstance(tensor, torch.Tensor):
            raise self._mismatch("a tensor", type(tensor).__name__)
        if tensor.dtype is not self.dtype:
            raise self._mismatch(self.dtype, tensor.dtype)
        at = tensor.device
        if at.type != self.device.type or self.device.index not in (None, at.index):
            error = TargetError if at.type != self.device.type else FusecError
            raise self._mismatch(f"a tensor on {self.device}", f"one on {at}", error)
        if shape is not None and tuple(tensor.shape) != shape:
            raise self._mismatch(f"shape {shape}", f"shape {tuple(tensor.shape)}")
        if tensor.is_conj() or tensor.is_neg():
            tensor = tensor.resolve_conj().resolve_neg()
        if strides is not None and tensor.stride() != strides and not same_strides(tensor, strides):
            tensor = self._with_strides(tensor, strides)
        return aligned_copy(tensor) if at.type == "cuda" and tensor.data_ptr() % 16 else tensor

    def _with_strides(self, tensor: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
        if any(n > 1 and s == 0 for n, s in zip(tensor.shape, strides, strict=True)):
            raise self._mismatch(f"strides {strides}", f"strides {tensor.stride()}")
        return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(
            tensor.detach()
        )

    def _mismatch(self, expected: object, seen: object, error: type[FusecError] = FusecError) -> FusecError:
        return error(f"input {self.position} ({self.name}): compiled for {expected}, got {seen}")


def same_strides(tensor: torch.Tensor, strides: Sequence[int]) -> bool:
    """Equal where they matter: a dimension of extent 1, or any of an empty tensor, may have any stride."""
    if tensor.numel() == 0:
        return True
    return all(n == 1 or a == b for n, a, b in zip(tensor.shape, tensor.stride(), strides, strict=True))
