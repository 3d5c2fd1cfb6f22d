"""Errors against float64 of norms, softmaxes and losses and of all their gradients are at most 1.5 times eager mode's.

Large means, large values and nearly constant rows, long rows and awkward sizes. Each norm and softmax is run on a large
mean and on one other kind of input in both dtypes, each loss on one of them in each; `python -m tests.training.sweep`
runs all of them.
"""

from __future__ import annotations

import pytest
import torch

from tests.training.gradients import CASES, IMAGES, INPUTS, SHAPES, Step

pytestmark = pytest.mark.usefixtures("clean")
DTYPES = (torch.float32, torch.bfloat16)
LOSSES = list(CASES)[list(CASES).index("cross_entropy") :]


def steps(number: int, name: str) -> list[tuple[Step, str]]:
    """(step, precision): the shapes, the other inputs and the precisions rotate from case to case."""
    shapes = IMAGES if CASES[name].image else SHAPES
    others = [kind for kind in INPUTS if kind != "mean"]
    return [
        (Step(name, dtype, kind, shapes[(number + i + j) % len(shapes)]), ("fast", "eager")[(number + i + j) % 2])
        for i, dtype in enumerate(DTYPES)
        for j, kind in enumerate(("mean", others[(number + i) % len(others)]))
        if name not in LOSSES or i == j
    ]


@pytest.mark.parametrize(("number", "name"), list(enumerate(CASES)), ids=list(CASES))
def test_errors_of_outputs_and_gradients_are_at_most_half_as_large_again_as_eagers(number: int, name: str) -> None:
    for step, precision in steps(number, name):
        over, what = step.worst(precision)
        assert over <= 1.0, f"{step}: {what}"
