"""fusec compiles PyTorch functions for NVIDIA GPUs and shows what it did.

    import fusec

    @fusec.compile
    def f(x, b):
        return torch.nn.functional.gelu(x + b)

Names are loaded on first use, so that `import fusec` costs next to nothing beside `import torch`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusec.api import compile, explain, load, precompile, replay, reset, stats
    from fusec.config import Config

__all__ = ["compile", "explain", "precompile", "load", "Config", "stats", "reset", "replay"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fusec' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module("fusec.config" if name == "Config" else "fusec.api"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
