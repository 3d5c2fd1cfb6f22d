"""A stretch of time, written as people write it, and shared out.

budget = Budget.parse("8m")
budget.share(0.5)      # seconds: half of what is left
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """90, "90s", "1.5m" or "1h" in seconds; ValueError otherwise."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not match or not float(match[1]):
        raise ValueError(f"a budget is a positive number with s, m or h, such as 90s or 8m; got {text!r}")
    return float(match[1]) * _UNITS[match[2]]


@dataclass(frozen=True)
class Budget:
    """Ends `total` seconds after `start` on `clock`."""

    total: float
    start: float
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def parse(cls, text: str, clock: Callable[[], float] = time.monotonic) -> Budget:
        return cls(seconds(text), clock(), clock)

    @property
    def left(self) -> float:
        return max(0.0, self.start + self.total - self.clock())

    def share(self, fraction: float) -> float:
        """Seconds: this fraction of what is left."""
        return self.left * fraction
