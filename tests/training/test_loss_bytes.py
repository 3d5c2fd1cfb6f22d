"""Losses, forward and backward: the logits are read once in each direction, and their gradient is written once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases import Case, Work
from bench.metered import count, total
from bench.schedules import capture, scheduled
from bench.training import step, with_incoming

ROWS, CLASSES = 2048, 131072
BF16, F32 = torch.bfloat16, torch.float32


def leaf(rows: int = ROWS, columns: int = CLASSES, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(rows, columns, dtype=dtype).requires_grad_()


def labelled(columns: int = CLASSES, dtype: torch.dtype = BF16) -> tuple[Tensor, Tensor]:
    return leaf(ROWS, columns, dtype), torch.randint(0, columns, (ROWS,))


def beside(columns: int = 4096) -> tuple[Tensor, Tensor]:
    return leaf(ROWS, columns), torch.rand(ROWS, columns, dtype=BF16)


def soft_capped(x: Tensor) -> Tensor:
    return 30 * torch.tanh(x.float() / 30)


def z_loss(y: Tensor) -> Tensor:
    return 1e-4 * y.logsumexp(-1).square().mean()


def next_token(x: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(x[:, :-1].reshape(-1, x.shape[-1]).float(), t[:, 1:].reshape(-1))


LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[[], tuple[Tensor, ...]]]] = {
    "cross_entropy": (lambda x, t: F.cross_entropy(x.float(), t), labelled),
    "cross_entropy_262144": (lambda x, t: F.cross_entropy(x.float(), t), lambda: labelled(262144)),
    "cross_entropy_f32": (F.cross_entropy, lambda: labelled(32000, F32)),
    "ignore_index": (lambda x, t: F.cross_entropy(x.float(), t, ignore_index=0), labelled),
    "label_smoothing": (lambda x, t: F.cross_entropy(x.float(), t, label_smoothing=0.1), labelled),
    "weights": (lambda x, t, w: F.cross_entropy(x.float(), t, w), lambda: (*labelled(), torch.rand(CLASSES))),
    "sum": (lambda x, t: F.cross_entropy(x.float(), t, reduction="sum"), labelled),
    "none": (lambda x, t: F.cross_entropy(x.float(), t, reduction="none"), labelled),
    "probabilities": (lambda x, p: F.cross_entropy(x.float(), p), lambda: (leaf(), torch.rand(ROWS, CLASSES))),
    "next_token": (next_token, lambda: (torch.randn(4, 513, 32000, dtype=BF16).requires_grad_(),
                                        torch.randint(0, 32000, (4, 513)))),
    "z_loss": (lambda x, t: F.cross_entropy(x.float(), t) + z_loss(x.float()), labelled),
    "soft_capping": (lambda x, t: F.cross_entropy(soft_capped(x), t), labelled),
    "soft_capping_z_loss": (lambda x, t: F.cross_entropy(soft_capped(x), t) + z_loss(soft_capped(x)), labelled),
    "kl_div": (lambda x, p: F.kl_div(F.log_softmax(x.float(), -1), p, reduction="batchmean"),
               lambda: (leaf(), torch.rand(ROWS, CLASSES))),
    "distillation": (lambda x, y: F.kl_div(F.log_softmax(x.float() / 2, -1), F.log_softmax(y.float() / 2, -1),
                                           reduction="batchmean", log_target=True), lambda: (leaf(), leaf().detach())),
    "bce_with_logits": (F.binary_cross_entropy_with_logits, beside),
    "huber": (F.huber_loss, beside),
    "smooth_l1": (F.smooth_l1_loss, beside),
    "mse": (F.mse_loss, beside),
    "hinge": (lambda x, t: (1 - t * x).clamp(min=0).mean(), beside),
    "hinge_embedding": (F.hinge_embedding_loss, beside),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_reads_its_input_once_in_each_direction(name: str) -> None:
    function, inputs = LOSSES[name]

    def loss(*args: Tensor) -> Tensor:
        return function(*args)

    case = Case(name, "", with_incoming(lambda: Work(loss, inputs())), {}, {}, run=step)
    counts = [count(scheduled(graph)) for graph in capture(case.build, case.run)]
    forward, backward = counts
    assert total(counts).graphs_ratio <= 1.01
    assert forward.kernels <= 2, "the rows, and the sum of their losses"
    assert backward.kernels <= 3 and not backward.calls, "the gradient, and what one number takes"
