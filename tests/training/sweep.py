"""All norms, softmaxes and losses, on all inputs and sizes, in both precisions: errors of their gradients as a page.

    python -m tests.training.sweep [--names layer_norm softmax] [--write bench/results/gradients.md]

Ends with 1 when an error is above its limit.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from bench.schema import Result, Row
from bench.table import Cell, markdown
from tests.training.gradients import CASES, FACTOR, IMAGES, INPUTS, LOSS_SEEDS, SEEDS, SHAPES, Step

DTYPES = (torch.float32, torch.bfloat16)


def run(name: str, dtype: torch.dtype, kind: str) -> Row:
    """The worst of all sizes. error: over its limit."""
    shapes = IMAGES if CASES[name].image else SHAPES
    found = [(*Step(name, dtype, kind, shape).worst("fast", "eager"), shape) for shape in shapes]
    over, what, shape = max(found)
    return Row(f"{name} {kind}", str(dtype).removeprefix("torch."), "x".join(map(str, shape)), error=over, note=what)


def page(result: Result) -> str:
    lines: list[list[Cell]] = [[r.case, r.variant, f"{r.error:.2f}", r.sizes, r.note] for r in result.rows]
    faults = sum((r.error or 0.0) > 1.0 for r in result.rows)
    return f"""# Errors of gradients against float64

{len(CASES)} norms, softmaxes and losses, compiled and eager; outputs and all gradients, {SEEDS} draws of each input,
{LOSS_SEEDS} of a loss's, {len(SHAPES)} sizes, both precisions. {faults} above the limit.

- error: max |seen - exact| / max |exact|, the mean over the draws. limit: {FACTOR} times eager mode's error and half a
  unit in the last place of the dtype. error / limit: the largest of all values, sizes and precisions.
- mean: noise around 1e4 (of 1, in bfloat16 of 256). large: 1e3 times noise. constant: 1 and noise of 1e-3, in
  bfloat16 of 1e-2.

{markdown(["case", "dtype", "error / limit", "size", "the value, its error and eager mode's"], lines)}

{result.made_by}
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.training.sweep", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--names", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--write", type=Path, help="write the page to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    result = Result.new("gradients", "python -m tests.training.sweep")
    for name in given.names:
        for dtype in DTYPES:
            for kind in INPUTS:
                row = run(name, dtype, kind)
                print(f"{row.case} {row.variant} {row.sizes}: {row.error:.2f} of the limit; {row.note}", flush=True)
                result = result.with_rows([row])
                if given.write is not None:
                    given.write.write_text(page(replace(result, complete=True)), encoding="utf-8")
    return int(any((r.error or 0.0) > 1.0 for r in result.rows))


if __name__ == "__main__":
    raise SystemExit(main())
