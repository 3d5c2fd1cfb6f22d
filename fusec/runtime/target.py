"""Which machine code a build makes, and where it runs.

Enters: a Config and the devices of a program's buffers. Leaves: a Target.

    resolve_target(Config(target="sm_90"), ["cpu"]) == Target(device="cpu", archs=(90,))

`device` is where the tensors live: "cpu" runs in the interpreter. `archs` are the architectures cubins are made for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from fusec.config import Config
from fusec.errors import TargetError


@dataclass(frozen=True, slots=True)
class Target:
    """device: "cpu" or "cuda". archs: compute capabilities as 10 * major + minor, the one that runs first."""

    device: str
    archs: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"sm_{arch}" for arch in self.archs)


def resolve_target(config: Config, devices: Iterable[str]) -> Target:
    """The target of a program whose buffers live on `devices`."""
    kinds = {torch.device(d).type for d in devices}
    device = "cuda" if "cuda" in kinds else "cpu"
    asked = parse_arch(config.target)
    here = device_arch() if device == "cuda" or config.target == "cuda" else None
    archs = [arch for arch in (here if device == "cuda" else None, asked, here) if arch is not None]
    return Target(device, tuple(dict.fromkeys(archs)))


def parse_arch(target: str | None) -> int | None:
    """90 for "sm_90"; None for "cpu", "cuda" and None."""
    if target is None or not target.startswith("sm_"):
        return None
    return int(target.removeprefix("sm_"))


def device_arch(index: int | None = None) -> int | None:
    """Compute capability of a CUDA device here; None without one."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def require_cuda() -> None:
    """TargetError unless a CUDA device can be used."""
    if torch.cuda.is_available():
        return
    build = "a CPU-only build of PyTorch" if torch.version.cuda is None else "no NVIDIA GPU or driver was found"
    raise TargetError(f'target "cuda" needs a GPU: {build}. CPU tensors run in the interpreter without one')
