"""What the inputs of a call must be: those that were compiled for, or copies that are.

Enters: a Schedule and the inputs of a call. Leaves: a list of them for the wrapper, or an error that names the input.

    compiled for x: f32[64, 32] (32, 1)
    x: f32[64, 32] (32, 1)      as it is
    x: f32[64, 32] (1, 64)      a copy with strides (32, 1)
    x: f32[17, 32] (32, 1)      FusecError: input 0 (x): compiled for shape (64, 32), got shape (17, 32)

Inputs like those of an earlier call pass in one step: `torch._C._dynamo.guards.TensorGuards` (private; checked with
PyTorch 2.11 and 2.13) compares type, dispatch keys, dtype, device, shape and strides of all of them. Whatever it
refuses is looked at input by input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import itemgetter, or_
from typing import Any

import torch

from fusec.errors import FusecError, TargetError
from fusec.ir.index import as_int
from fusec.ir.kernels import Schedule
from fusec.ir.types import Buffer
from fusec.runtime.launch import aligned_copy
from fusec.runtime.sizes import CallSizes

__all__ = ["InputCheck", "Inputs", "same_strides"]

Layout = tuple[tuple[int, ...] | None, tuple[int, ...] | None]

ALIGNMENT = 16  # bytes, of every pointer that a kernel takes
_LEARNED = 16  # guards made for one program: calls that alternate between kinds of inputs stop making new ones
_REMEMBERED = 256  # tuples of sizes with a guard

_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
_data_ptr: Callable[[torch.Tensor], int] = torch.Tensor.data_ptr
_TensorGuards: Any = getattr(torch._C._dynamo.guards, "TensorGuards", None)


class Inputs:
    """All inputs of a program.

    sizes: the symbolic sizes of a call, where the program has any.
    """

    def __init__(self, schedule: Schedule, on_cuda: bool, sizes: CallSizes | None) -> None:
        self.name, self.on_cuda, self.sizes = schedule.name, on_cuda, sizes
        self.checks = tuple(InputCheck.of(i, schedule.table[n]) if n else None for i, n in enumerate(schedule.inputs))
        self._layouts: list[Layout] = [(None, None) if c is None else (c.shape, c.strides) for c in self.checks]
        self._tensors = _picking(tuple(i for i, check in enumerate(self.checks) if check is not None))
        self._guards: dict[tuple[int, ...], Callable[..., bool]] = {}  # by sizes
        self._learned = 0

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """A new list of the inputs, each as it was compiled for. FusecError, TargetError: one is something else."""
        if len(inputs) != len(self.checks):
            raise FusecError(f"{self.name} takes {len(self.checks)} inputs, got {len(inputs)}")
        values = () if self.sizes is None else self.sizes.values(inputs)
        guard = self._guards.get(values)
        if guard is not None:
            tensors = self._tensors(inputs)
            if guard(*tensors) and not (self.on_cuda and reduce(or_, map(_data_ptr, tensors)) % ALIGNMENT):
                return list(inputs)
        return self._one_by_one(inputs, values)

    def _one_by_one(self, inputs: Sequence[Any], values: tuple[int, ...]) -> list[Any]:
        layouts = self._layouts
        if self.sizes is not None:
            layouts = list(layouts)
            for position, shape, strides in self.sizes.layouts(values):
                layouts[position] = shape, strides
        args = [
            x if check is None else check.against(x, shape, strides)
            for x, check, (shape, strides) in zip(inputs, self.checks, layouts, strict=True)
        ]
        if all(a is b for a, b in zip(args, inputs, strict=True)):
            self._learn(self._tensors(inputs), values)
        return args

    def _learn(self, tensors: Sequence[torch.Tensor], values: tuple[int, ...]) -> None:
        """Inputs that fit as they are: the next ones like them pass at once."""
        if not tensors or self._learned >= _LEARNED + len(self._guards) or any(type(t) not in _PLAIN for t in tensors):
            return
        if _TensorGuards is None or (values not in self._guards and len(self._guards) >= _REMEMBERED):
            return
        shapes, strides = [list(t.shape) for t in tensors], [list(t.stride()) for t in tensors]
        self._guards[values] = _TensorGuards(*tensors, dynamic_dims_sizes=shapes, dynamic_dims_strides=strides).check
        self._learned += 1


def _picking(positions: tuple[int, ...]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    if len(positions) > 1:
        return itemgetter(*positions)
    return lambda values: [values[i] for i in positions]


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
        return aligned_copy(tensor) if at.type == "cuda" and tensor.data_ptr() % ALIGNMENT else tensor

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
