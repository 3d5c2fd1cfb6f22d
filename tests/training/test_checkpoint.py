"""torch.utils.checkpoint inside and around what is compiled: the gradients and the dropout mask of one run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fusec
from tests.training.helpers import STRICT, Net, Twins, X

pytestmark = [pytest.mark.usefixtures("clean"), pytest.mark.parametrize("reentrant", [False, True])]


def test_gradients_of_checkpointed_layers(reentrant: bool) -> None:
    def wrap(module: Any) -> Any:
        return lambda x: checkpoint(module, checkpoint(module, x, use_reentrant=reentrant), use_reentrant=reentrant)

    twins = Twins(wrap=wrap)
    for _ in range(2):
        twins.backward(X.clone().requires_grad_())
    twins.agree()


class Dropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(torch.sin(self.layer(x)), 0.5)


@pytest.mark.parametrize("inside", [True, False])
def test_a_checkpoint_drops_the_same_again(inside: bool, reentrant: bool) -> None:
    module = Dropped()

    def around(x: Tensor) -> Tensor:
        return checkpoint(module if inside else compiled, x, use_reentrant=reentrant) * 3  # type: ignore[no-any-return]

    compiled = fusec.compile(around if inside else module, options=STRICT)
    x = X.clone().requires_grad_()
    out = (compiled if inside else around)(x)
    out.sum().backward()
    got = [x.grad, *(p.grad for p in module.parameters())]
    module.zero_grad()
    again = X.clone().requires_grad_()
    (torch.sin(module.layer(again)) * (out != 0) * 2 * 3).sum().backward()
    torch.testing.assert_close(got, [again.grad, *(p.grad for p in module.parameters())])


def test_what_is_checkpointed_is_not_saved(reentrant: bool) -> None:
    def saved(fn: Any) -> int:
        sizes: list[int] = []
        x = X.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value]
            fusec.compile(fn, options=STRICT)(x)
        return sum(sizes)

    net = Net()
    inputs = X.numel() + sum(p.numel() for p in net.parameters())
    assert saved(net) > inputs
    if not reentrant:  # which Dynamo leaves as the call that it is
        assert saved(lambda x: checkpoint(net, x, use_reentrant=False)) <= inputs
