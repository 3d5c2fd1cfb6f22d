"""The peak of a training step: never above eager mode's, on fake tensors of full size and by the allocator of a run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fusec
from bench.memory import MEDIUM, measure, peak, plan
from bench.training import TRAINING

pytestmark = pytest.mark.usefixtures("clean")

# Partial sums of column reductions, float32 and one row a program: the one thing that eager mode's kernels do without.
# Of embeddings, float32 sums of the tokens and copies of a small table's: eager mode's kernel takes more, a float32
# line a token and sorted indices, which fake tensors do not see.
WORKSPACE = {
    "ln_train": 0.035,
    "residual_dropout_ln_train": 0.015,
    "embedding_large_train": 0.06,
    "relative_bias_train": 0.01,
}


@pytest.mark.parametrize("name", TRAINING)
def test_at_full_size_a_step_holds_no_more_than_in_eager_mode(name: str) -> None:
    eager, ours = plan(TRAINING[name])
    assert 0 < ours <= eager * (1 + WORKSPACE.get(name, 0))


@pytest.mark.parametrize("name", ["swiglu_train", "huber_train", "masked_attn_softmax_train"])
def test_what_the_allocator_saw(name: str) -> None:
    eager, ours = measure(TRAINING[name], sizes=MEDIUM[name])
    assert 0 < ours <= eager


def test_what_was_saved_is_freed_while_backward_runs() -> None:
    """A deep network's backward: each layer's saved value goes as its gradient comes."""
    layers, rows, width = 12, 512, 64
    net = nn.Sequential(*(m for _ in range(layers) for m in (nn.Linear(width, width, bias=False), nn.Tanh())))
    x = torch.randn(rows, width)
    compiled = fusec.compile(net, options={"strict": True})

    def backward(call: nn.Module) -> int:
        for _ in range(2):
            call(x).sum().backward()
        net.zero_grad()
        loss: Tensor = call(x).sum()
        return peak(loss.backward)

    saved = rows * width * 4
    ours, eager = backward(compiled), backward(net)
    assert ours <= eager + saved // 2 and ours < 4 * saved
