"""Measure a kernel's candidate tiles on the device and keep the best (mode="max-autotune").

Enters: a kernel's launchers by tile and the arguments of its first launch. Leaves: the fastest tile.

    fastest({tile_a: launch_a, tile_b: launch_b}, arguments) == tile_b

A candidate runs on copies of the arguments, so that a kernel which overwrites what it reads can run many times. Rounds
are interleaved and their medians compared, so that a change of clock hits every candidate alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch

from fusec.ir.kernels import Tile

ROUNDS = 15
AHEAD = 200_000  # cycles the device sleeps first (0.1 ms), or the time between the events is the host's to launch
Launcher = Callable[..., None]
Timer = Callable[[Launcher, Sequence[Any]], float]


def fastest(launchers: Mapping[Tile, Launcher], arguments: Sequence[Any], timer: Timer | None = None) -> Tile:
    """The tile with the lowest median time; the first of equals, which is the untuned choice."""
    timer = timer or cuda_seconds
    for launcher in launchers.values():
        timer(launcher, arguments)  # first launches load code and fill caches
    times: dict[Tile, list[float]] = {tile: [] for tile in launchers}
    for _ in range(ROUNDS):
        for tile, launcher in launchers.items():
            times[tile].append(timer(launcher, arguments))
    return min(times, key=lambda tile: median(times[tile]))


def cuda_seconds(launcher: Launcher, arguments: Sequence[Any]) -> float:
    """Seconds of one launch on the current stream."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(AHEAD)
    start.record()
    launcher(*arguments)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def tile_to_json(tile: Tile) -> dict[str, Any]:
    return {"blocks": [list(b) for b in tile.blocks], "num_warps": tile.num_warps, "num_stages": tile.num_stages}
