"""Curves of numbers as text, panels side by side on one scale, and as a picture where matplotlib is installed.

Enters: {title: one number a step}. Leaves: lines of text; a PNG file.

    loss   eager              compiled
    5.51 | •                | •
         |  ••              |  ••
    3.02 |    ••••          |    ••••
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["panels", "picture"]

POINT = "•"


def panels(curves: Mapping[str, Sequence[float]], label: str, width: int = 50, height: int = 12) -> list[str]:
    """One panel a curve, at most `width` columns each, all from the least to the greatest value of any."""
    values = [v for curve in curves.values() for v in curve]
    low, high = min(values), max(values)
    width = min(width, max(len(c) for c in curves.values()))
    drawn = [_points(curve, width, height, low, high) for curve in curves.values()]
    margin = max(len(label), len(f"{high:.2f}"), len(f"{low:.2f}"))
    lines = [f"{label:>{margin}}   " + "   ".join(title.ljust(width) for title in curves)]
    for row in range(height):
        scale = f"{high:.2f}" if row == 0 else f"{low:.2f}" if row == height - 1 else ""
        lines.append(f"{scale:>{margin}} | " + " | ".join(panel[row] for panel in drawn))
    return [line.rstrip() for line in lines]


def _points(curve: Sequence[float], width: int, height: int, low: float, high: float) -> list[str]:
    """Rows from the top. Steps that share a column are one point, their mean."""
    rows = [[" "] * width for _ in range(height)]
    for column in range(min(width, len(curve))):
        first, last = (
            column * len(curve) // width,
            max((column + 1) * len(curve) // width, column * len(curve) // width + 1),
        )
        mean = sum(curve[first:last]) / (last - first)
        share = (high - mean) / (high - low) if high > low else 0.0
        rows[min(int(share * height), height - 1)][column] = POINT
    return ["".join(row) for row in rows]


def picture(path: Path, curves: Mapping[str, Sequence[float]], differences: Mapping[str, Sequence[float]]) -> bool:
    """Curves above, differences below on a logarithmic scale; False where there is no matplotlib.

    The curves are a reference and what is held against it; the differences are the other way round, in equal colours.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for style, (title, curve) in zip(("-", "--", ":"), curves.items()):
        above.plot(curve, style, label=title)
    for colour, (title, curve) in zip(("C1", "C0"), differences.items()):
        below.plot(curve, colour, label=title)
    above.set_ylabel("loss")
    below.set(ylabel="difference", xlabel="step")
    below.set_yscale("symlog", linthresh=1e-7)  # zeros have a place
    above.legend()
    below.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return True
