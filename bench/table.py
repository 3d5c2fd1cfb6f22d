"""A table on the screen: tabulate's where it is installed, plain columns otherwise.

print(table(["case", "us"], [["rms", 61.25]]))

case      us
----  ------
rms    61.25
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.schema import Result, Row

Cell = str | int | float | None


def table(headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Numbers to the right, text to the left, nothing for None."""
    try:
        from tabulate import tabulate
    except ImportError:
        return plain(headers, rows)
    text: str = tabulate(rows, headers=headers, missingval="")
    return text


def plain(headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    texts = [["" if c is None else str(c) for c in row] for row in rows]
    widths = [max([len(h), *(len(row[i]) for row in texts)]) for i, h in enumerate(headers)]
    numeric = [any(isinstance(r[i], int | float) for r in rows) for i in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        padded = (c.rjust(w) if n else c.ljust(w) for c, w, n in zip(cells, widths, numeric, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(headers), "  ".join("-" * w for w in widths), *map(line, texts)])


def markdown(headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """The same as a Markdown table."""
    lines = [list(headers), ["---"] * len(headers), *(["" if c is None else str(c) for c in r] for r in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _digits(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def timings(result: Result) -> str:
    """One line a variant; the fastest of each case is marked."""
    best: dict[str, float] = {}
    for row in result.rows:
        if row.median_us is not None and row.variant != "clone":
            best[row.case] = min(best.get(row.case, row.median_us), row.median_us)
    headers = ["case", "variant", "us", "p20", "p80", "GB/s", "of clone", "host us", "first s", "error", ""]
    return table(headers, [_cells(row, row.median_us == best.get(row.case, -1.0)) for row in result.rows])


def _cells(row: Row, fastest: bool) -> list[Cell]:
    share = None if row.share is None else f"{row.share:.0%}"
    error = None if row.error is None else f"{row.error:.1e}"
    times = [_digits(t, 1) for t in (row.median_us, row.p20_us, row.p80_us)]
    rest: list[Cell] = [_digits(row.gbps, 0), share, _digits(row.host_us, 1), _digits(row.first_s, 1), error]
    return [row.case, row.variant, *times, *rest, row.note or ("fastest" if fastest else "")]
