"""Times several variants of one computation against each other on a GPU.

Enters: a Work and calls of its variants. Leaves: rows of the result schema, checked (`prepare`), with times (`timed`).

The variants run in turn, round after round, so that clocks and neighbours touch all of them alike, and medians are
compared. Before each run a buffer larger than the second-level cache is written, and the device sleeps for longer than
the call takes the host: caches are cold, and the events around a call enclose device time alone. host_us is the host's.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from bench.budget import Budget
from bench.cases import Case, Work
from bench.schema import Row

DEVICE = "cuda"
CACHE_FLUSH_BYTES = 512 << 20
MOST_ROUNDS = 40
FEWEST_ROUNDS = 5
WARM_UP = 3
CYCLES = 2e9  # of the device a second, at most
AHEAD = 2.0  # times the host's time of a call

Call = Callable[[], Any]
Alone = Callable[[], AbstractContextManager[Any]]


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Every tensor inside nested lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [t for item in value for t in tensors_of(item)]
    return []


def bytes_once(*values: Any) -> int:
    """Bytes of all tensors; memory that two of them share is counted once."""
    spans = {(t.untyped_storage().data_ptr(), t.storage_offset(), t.shape): t for t in tensors_of(values)}
    return sum(t.numel() * t.element_size() for t in spans.values())


def relative_error(seen: Any, expected: Any) -> float:
    """Largest difference over the largest expected magnitude, of all outputs."""
    worst = 0.0
    pairs = zip(tensors_of(seen), tensors_of(expected), strict=True)
    for a, b in pairs:
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ValueError(f"expected {tuple(b.shape)} {b.dtype}, got {tuple(a.shape)} {a.dtype}")
        if not b.numel():
            continue
        scale = b.double().abs().nan_to_num(0.0, 0.0, 0.0).max().clamp_min(1e-30)
        difference = (a.double() - b.double()).abs().nan_to_num(0.0, 0.0, 0.0)  # equal infinities differ by NaN
        mismatch = (a.isfinite() != b.isfinite()).any() if b.dtype.itemsize > 1 else False
        worst = max(worst, float("inf") if mismatch else float(difference.max() / scale))
    return worst


def quantile(values: Sequence[float], fraction: float) -> float:
    """Linear between neighbours, as numpy's default."""
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@dataclass
class Timer:
    """Device and host times of one variant."""

    row: Row
    call: Call
    events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    host: list[float] = field(default_factory=list)
    host_seconds: float = 0.0  # of a call, by the first ones

    def warm_up(self) -> None:
        """Calls that the times do not count; the last says how far ahead the host must be."""
        for _ in range(WARM_UP):
            torch.cuda.synchronize()
            began = time.perf_counter()
            self.call()
            self.host_seconds = time.perf_counter() - began

    def run(self) -> None:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(int(AHEAD * self.host_seconds * CYCLES))
        start.record()
        began = time.perf_counter()
        self.call()
        self.host.append((time.perf_counter() - began) * 1e6)
        end.record()
        self.events.append((start, end))

    def finished(self) -> Row:
        times = [start.elapsed_time(end) * 1e3 for start, end in self.events]
        return summary(self.row, times, self.host)


def summary(row: Row, device_us: Sequence[float], host_us: Sequence[float]) -> Row:
    """The row with median, p20, p80 and bandwidth of these times."""
    median = quantile(device_us, 0.5)
    return replace(
        row,
        median_us=median,
        p20_us=quantile(device_us, 0.2),
        p80_us=quantile(device_us, 0.8),
        host_us=quantile(host_us, 0.5),
        gbps=row.bytes / median / 1e3,
    )


def with_share(rows: Sequence[Row]) -> list[Row]:
    """share of every row: its bandwidth over the clone's."""
    clone = next((r.gbps for r in rows if r.variant == "clone"), None)
    return [replace(r, share=r.gbps / clone if clone and r.gbps is not None else None) for r in rows]


def first_call(row: Row, call: Call, expected: Any, beside: bool, alone: Alone) -> Row:
    """Compiles and checks: first_s, peak_bytes and error of one variant. beside: the first call compiles, unlocked."""
    with nullcontext() if beside else alone():
        began = time.perf_counter()
        seen = call()
        torch.cuda.synchronize()
        first_s = time.perf_counter() - began
    with alone():
        error = relative_error(seen, expected) if tensors_of(expected) else None
        del seen
        gc.collect()  # a graph in a cycle would be freed inside the call that is measured
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        peak = torch.cuda.max_memory_allocated() - before
    return replace(row, first_s=first_s, error=error, peak_bytes=peak)


def prepare(
    case: Case, work: Work, calls: Mapping[str, Call], compiled: Sequence[str] = (), alone: Alone = nullcontext
) -> list[Row]:
    """A row of every variant after its first call, without times; the note of one that failed says why.

    alone: a context that holds the device, which the first calls of `compiled` variants leave to others.
    """
    with alone():
        expected = case.run(work, work.fn)
        total = work.moved or bytes_once(work.args, work.parameters, work.incoming) + bytes_once(expected)
    rows: list[Row] = []
    for name, call in calls.items():
        row = Row(case.name, name, case.sizes, total)
        wanted = None if name == "eager" or case.random else expected
        try:
            rows.append(first_call(row, call, wanted, name in compiled, alone))
        except Exception as error:
            rows.append(replace(row, note=first_line(error)))
    return rows


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


def timed(calls: Mapping[str, Call], prepared: Sequence[Row], budget: Budget) -> list[Row]:
    """The rows with their times, and one of a clone that moves as many bytes; failed variants stay as they are."""
    timers = {r.variant: Timer(r, calls[r.variant]) for r in prepared if not r.note}
    first = prepared[0]
    half = torch.empty(max(first.bytes // 2, 1), dtype=torch.int8, device=DEVICE)
    timers["clone"] = Timer(Row(first.case, "clone", "", 2 * half.numel()), half.clone)
    _interleave(list(timers.values()), torch.empty(CACHE_FLUSH_BYTES, dtype=torch.int8, device=DEVICE), budget)
    rows = [*prepared, timers["clone"].row]
    return with_share([timers[r.variant].finished() if r.variant in timers else r for r in rows])


def _interleave(timers: Sequence[Timer], flush: torch.Tensor, budget: Budget) -> None:
    for timer in timers:
        timer.warm_up()
    for done in range(MOST_ROUNDS):
        if done >= FEWEST_ROUNDS and budget.left == 0.0:
            break
        for timer in timers:
            flush.zero_()
            timer.run()
        torch.cuda.synchronize()


def kernel_times(call: Call, calls: int = 3) -> list[tuple[str, float, float]]:
    """(name, microseconds, launches) of every kernel of one call, slowest first, by PyTorch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    found = [(e.key, e.self_device_time_total / calls, e.count / calls) for e in profile.key_averages()]
    return sorted(((name, us, count) for name, us, count in found if us), key=lambda k: -k[1])
