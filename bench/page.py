"""A measured GPU file as a page and as a picture.

    python -m bench.page bench/results/gpu-nvidia-h200.json     # writes .md and .svg beside it
    python -m bench.page a.json b.json --picture c.svg          # one picture of all, a case's first measurement first

Enters: Results of bench.gpu. Leaves: a Markdown table, a line a case, and a picture of the same: how much quicker than
torch.compile each case is, and how near to a clone that moves as many bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from bench.gpu_case import KERNELS_SHOWN
from bench.schema import Result, Row
from bench.table import Cell, markdown
from bench.training import EVERY

PEER, OURS = "torch.compile", "fusec"
LONGEST_BAR = 4.0  # of the picture; a longer one ends there and says so
HEADERS = (
    *("case", "what", "eager us", "torch.compile us", "fusec us", "torch.compile / fusec", "Liger us"),
    *("of a clone's bandwidth", "kernels us, torch.compile", "kernels us, fusec"),
    *("host us, torch.compile", "host us, fusec", "first call s, torch.compile", "first call s, fusec", "error"),
)
NOTES = """\
Times are medians on the device of interleaved runs in one process, caches cold, without the gaps in which it waits for
the host; the host's time of a call is beside them, measured while up to four other cases compiled. Kernels: the sum of
their own times by PyTorch's profiler, caches warm. First calls compile beside fifteen other cases, on 16 cores, with
empty caches. torch.compile runs with its defaults. The clone copies as many bytes as inputs and outputs have; a
training step must also save what its backward reads again, and a model does matrix products, so their shares cannot
reach 1; an embedding reads few rows of a large table, so its share can be above 1. Error: the largest difference from
eager over the largest value.
"""


def by_case(*results: Result) -> dict[str, dict[str, Row]]:
    """Rows by case and variant, cases in the order of the benchmark's own list; of the first result that timed it."""
    cases: dict[str, dict[str, Row]] = {}
    for result in results:
        found: dict[str, dict[str, Row]] = {}
        for row in result.rows:
            found.setdefault(row.case, {})[row.variant] = row
        for name, rows in found.items():
            if name not in cases or speedup(cases[name]) is None:
                cases[name] = rows
    order = list(EVERY)
    return dict(sorted(cases.items(), key=lambda c: order.index(c[0]) if c[0] in EVERY else len(order)))


def speedup(rows: Mapping[str, Row]) -> float | None:
    """torch.compile's time over fusec's."""
    peer, ours = (rows[v].median_us if v in rows else None for v in (PEER, OURS))
    return peer / ours if peer and ours else None


def page(result: Result, picture: str = "") -> str:
    """The whole file as Markdown."""
    cases = by_case(result)
    found = [s for s in map(speedup, cases.values()) if s is not None]
    remark = result.extra.get("remark", "")
    lines = [f"# {result.device}", "", NOTES, *([remark, ""] if remark else [])]
    if found:
        lines.append(
            f"Against torch.compile over {len(found)} cases: {geometric_mean(found):.2f} times as quick in the "
            f"geometric mean, {min(found):.2f} to {max(found):.2f}."
        )
    if picture:
        lines += ["", f"![torch.compile's time over fusec's, case by case]({picture})"]
    lines += ["", markdown(HEADERS, [_cells(result, name, rows) for name, rows in cases.items()]), "", result.made_by]
    tests = result.extra.get("tests")
    if tests:
        lines.append(f"GPU tests in the same run: {tests['summary']}.")
    return "\n".join(lines) + "\n"


def kernel_us(result: Result, name: str, variant: str) -> float | None:
    """The sum of the kernels of a case's call; None where the file keeps only the longest."""
    found = result.extra.get("kernels", {}).get(name, {}).get(variant)
    timed = isinstance(found, list) and 0 < len(found) < KERNELS_SHOWN and isinstance(found[0], list)
    return sum(us for _, us, _ in found) if timed else None


def _cells(result: Result, name: str, rows: Mapping[str, Row]) -> list[Cell]:
    def of(variant: str, field: str, digits: int) -> Cell:
        value = getattr(rows[variant], field) if variant in rows else None
        return None if value is None else f"{value:.{digits}f}"

    ours = rows.get(OURS)
    gain = speedup(rows)
    return [
        name,
        EVERY[name].text if name in EVERY else "",
        *(of(v, "median_us", 1) for v in ("eager", PEER, OURS)),
        None if gain is None else f"{gain:.2f}",
        of("liger", "median_us", 1),
        of(OURS, "share", 2),
        *(None if us is None else f"{us:.1f}" for us in (kernel_us(result, name, v) for v in (PEER, OURS))),
        *(of(v, "host_us", 0) for v in (PEER, OURS)),
        *(of(v, "first_s", 1) for v in (PEER, OURS)),
        "" if ours is None or ours.error is None else f"{ours.error:.1e}",
    ]


def draw(results: Sequence[Result], path: Path) -> None:
    """Bars of torch.compile's time over fusec's, and beside them both shares of the clone's bandwidth."""
    from matplotlib.figure import Figure

    result = results[0]
    cases = [(n, r, s) for n, r in by_case(*results).items() if (s := speedup(r)) is not None]
    places = list(range(len(cases)))[::-1]
    figure = Figure(figsize=(10, 0.27 * len(cases) + 1.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    gains = [s for _, _, s in cases]
    colours = ["#2a6f97" if s >= 0.98 else "#bc4b51" for s in gains]
    ends = [min(s, LONGEST_BAR) for s in gains]
    left.barh(places, [end - 1 for end in ends], left=1, color=colours, height=0.7)
    left.axvline(1, color="black", linewidth=0.8)
    left.set_xscale("log")
    ticks = [t for t in (0.25, 0.5, 0.7, 1, 1.5, 2, 3, 4) if min(gains) * 0.9 <= t <= max(gains) * 1.1]
    left.set_xticks(ticks, [f"{t:g}x" for t in ticks])
    left.minorticks_off()
    for place, gain, end in zip(places, gains, ends, strict=True):
        text = f" {gain:.2f} " if gain == end else f" ... {gain:.1f} "
        left.annotate(text, (end, place), va="center", ha="left" if gain >= 1 else "right", fontsize=7)
    left.margins(x=0.12)
    left.set_ylim(-1, len(cases))
    left.set_yticks(places, [n for n, _, _ in cases], fontsize=8)
    left.set_title("time of torch.compile / time of fusec", fontsize=10)
    small = [(p, r) for p, (n, r, _) in zip(places, cases, strict=True) if not EVERY[n].whole]
    for variant, colour in ((PEER, "#9aa5b1"), (OURS, "#2a6f97")):
        shares: list[tuple[float, Any]] = [(r[variant].share or 0.0, p) for p, r in small if variant in r]
        right.plot([s for s, _ in shares], [p for _, p in shares], "o", color=colour, label=variant, markersize=5)
    for place, rows in small:
        right.plot([rows[PEER].share or 0.0, rows[OURS].share or 0.0], [place, place], color="#c8d0d8", zorder=0)
    right.set_xlim(0, max([1.1, *(1.05 * (r[v].share or 0.0) for _, r in small for v in (PEER, OURS) if v in r)]))
    right.axvline(1, color="black", linewidth=0.8)
    right.set_title("share of a clone's bandwidth", fontsize=10)
    right.legend(fontsize=8, loc="lower left")
    figure.suptitle(
        f"{result.device}, torch {result.versions['torch']}, triton {result.versions['triton']}", fontsize=11
    )
    figure.savefig(path)


def write(path: Path) -> None:
    """The page and, where matplotlib is installed and something was timed, the picture of a file, beside it."""
    result = Result.read(path)
    picture = path.with_suffix(".svg")
    picture.unlink(missing_ok=True)
    if find_spec("matplotlib") is not None and any(speedup(rows) for rows in by_case(result).values()):
        draw([result], picture)
    path.with_suffix(".md").write_text(page(result, picture.name if picture.exists() else ""))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.page", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--picture", type=Path, help="only draw, all files in one picture")
    given = parser.parse_args()
    if given.picture:
        draw([Result.read(path) for path in given.files], given.picture)
    else:
        for path in given.files:
            write(path)


if __name__ == "__main__":
    main()
