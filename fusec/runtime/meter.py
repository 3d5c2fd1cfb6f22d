"""Count the memory traffic of kernels in the interpreter, exactly.

Enters: any number of calls inside `with meter() as m`. Leaves: `m.launches`, one entry per launch.

    with meter() as m:
        executable(x)
    m.launches[0] == ("fused_silu", {"x": Traffic(read=8192, written=0, requested=8192), "out": Traffic(...)})

Unique bytes count an element once however often it is touched; lanes that are masked off count nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

from fusec.runtime.memory import Segment


class Traffic(NamedTuple):
    """Bytes of one parameter in one launch. requested: of every active lane of every load and store."""

    read: int
    written: int
    requested: int


@dataclass
class Meter:
    """(kernel name, traffic by pointer parameter) of each launch, in order."""

    launches: list[tuple[str, dict[str, Traffic]]] = field(default_factory=list)

    def record(self, kernel: str, segments: Sequence[Segment]) -> None:
        traffic = {
            s.name: Traffic(int(s.read.sum()) * s.itemsize, int(s.written.sum()) * s.itemsize, s.requested)
            for s in segments
        }
        self.launches.append((kernel, traffic))

    def kernel(self, name: str) -> Traffic:
        """Totals of all launches of one kernel."""
        parts = [t for kernel, traffic in self.launches if kernel == name for t in traffic.values()]
        return Traffic(*(sum(column) for column in zip(*parts, strict=True))) if parts else Traffic(0, 0, 0)

    @property
    def bytes_read(self) -> int:
        return sum(t.read for _, traffic in self.launches for t in traffic.values())

    @property
    def bytes_written(self) -> int:
        return sum(t.written for _, traffic in self.launches for t in traffic.values())


_ACTIVE: ContextVar[Meter | None] = ContextVar("fusec_meter", default=None)


@contextmanager
def meter() -> Iterator[Meter]:
    """Meter every interpreted launch made inside."""
    found = Meter()
    token = _ACTIVE.set(found)
    try:
        yield found
    finally:
        _ACTIVE.reset(token)


def active_meter() -> Meter | None:
    """The innermost meter of this context."""
    return _ACTIVE.get()
