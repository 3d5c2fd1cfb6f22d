"""One compilation serves every size on CUDA tensors, with and without replayed graphs, past 2^31 elements too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fusec

SIZES = (2, 17, 1000, 1023, 1024, 4097, 64)
FUNCTIONS = {
    "softmax": lambda x: x.softmax(-1),
    "layer_norm": lambda x: F.layer_norm(x, (x.shape[-1],)),
    "pointwise": lambda x: F.gelu(x) * x[:1] + x[:, :1],
    "sums": lambda x: (x.sum(0), x.sum(1), x.amax()),
    "cat": lambda x: torch.cat([x, x + 1], 1)[:, 1:],
}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    fusec.reset()
    yield
    fusec.reset()


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_sweep_of_sizes_is_compiled_once(name: str, mode: str) -> None:
    fn = FUNCTIONS[name]
    compiled = fusec.compile(fn, dynamic=True, mode=mode)
    for n in (*SIZES, *SIZES):
        for x in (torch.randn(n, 96, device="cuda"), torch.randn(5, n, device="cuda")):
            torch.testing.assert_close(compiled(x), fn(x), rtol=1e-4, atol=1e-3)
    found = fusec.stats()
    assert found["graphs"] == 1 and found["fallbacks"] == []


def test_more_than_two_to_the_31_elements() -> None:
    def fn(x: Tensor) -> Tensor:
        return x + 1

    compiled = fusec.compile(fn, dynamic=True)
    for rows in (3, 2**16 + 3):
        x = torch.zeros(rows, 2**15 + 1, dtype=torch.int8, device="cuda")
        x[-1] = 5
        out = compiled(x)
        assert out[-1].eq(6).all() and out[:-1].eq(1).all()
    assert fusec.stats()["graphs"] == 1 and fusec.stats()["fallbacks"] == []
