"""cat, stack, padding and scattered slices: one nest, loads masked to their segments."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fusec.ir.types import LoopNest
from tests.lowering.differential import assert_lowered_like_eager, externs_of, lower_function, make

CASES = {
    "cat": lambda x: (torch.cat([x, x * 2, x[:, :1]], 1), torch.cat([x, x[:0]], 0), torch.cat([x[0], x[1]], -1)),
    "cat of views": lambda x: torch.cat([x.transpose(0, 1).reshape(6, 20), x.reshape(20, 6).t()], 0),
    "cat promotes": lambda x: torch.cat([x, x.to(torch.int64), x > 0]),
    "cat of one": lambda x: torch.cat([x]),
    "cat of nothing": lambda x: (torch.cat([x[:0], x[:0]]), torch.cat([x.new_empty(0), x])),
    "stack": lambda x: (torch.stack([x, x + 1]), torch.stack([x, x, x], -1), torch.stack([x[0], x[1]], 1)),
    "pad": lambda x: (
        F.pad(x, (1, 2)),
        F.pad(x, (1, 2, 0, 3), value=2.5),
        F.pad(x, (-1, 2, -2, -1, 3, 0)),
        F.pad(x, (0, 0)),
    ),
    "pad of bool": lambda x: F.pad(x > 0, (1, 1), value=True),
    "reflect": lambda x: (F.pad(x, (2, 1), mode="reflect"), F.pad(x[None], (2, 3, 1, 2), mode="reflect")),
    "reflect 3d": lambda x: F.pad(x[None, None], (2, 3, 1, 2, 3, 1), mode="reflect"),
    "replicate": lambda x: (F.pad(x, (2, 7), mode="replicate"), F.pad(x[None], (2, 3, 9, 2), mode="replicate")),
    "replicate 3d": lambda x: F.pad(x[None, None], (2, 3, 1, 2, 3, 1), mode="replicate"),
    "slice_scatter": lambda x: (
        torch.slice_scatter(x, x[:, :2] * 2, 1, 1, 5, 2),
        torch.slice_scatter(x, x[:2], 0, -2),
        torch.slice_scatter(x, x * 2, 0),
        torch.slice_scatter(x, x[..., :1], 2, 4, 100, 3),
        torch.slice_scatter(x, x[:, :0], 1, 3, 3),
    ),
    "select_scatter": lambda x: (torch.select_scatter(x, x[:, 0] + 1, 1, -2), torch.select_scatter(x, x[0], 0, 3)),
    "diagonal_scatter": lambda x: (
        torch.diagonal_scatter(x[0], x[1].diagonal()),
        torch.diagonal_scatter(x[0], x[0, 0, 1:], 1),
        torch.diagonal_scatter(x[0], x[0, 0], -1),
        torch.diagonal_scatter(x, x[:4, 0, :].t(), 0, 0, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_segments(name, dtype):
    assert_lowered_like_eager(CASES[name], make((4, 6, 5), dtype))


@pytest.mark.parametrize("name", ["cat", "cat of views", "stack", "pad", "slice_scatter"])
def test_segments_of_transposed_inputs(name):
    assert_lowered_like_eager(CASES[name], make((5, 6, 4), torch.float32).permute(2, 1, 0))


def test_cat_is_one_nest_whose_loads_are_masked():
    program = lower_function(lambda a, b: torch.cat([a, b]), torch.ones(3), torch.ones(5))
    (nest,) = program.nodes
    assert isinstance(nest, LoopNest)
    assert [len(i.args) for i in nest.body if i.op == "load"] == [1, 1]
    assert [str(a.index) for a in nest.loads] == ["p0", "p0 - 3"]


def test_rotary_embedding_needs_no_library_call():
    def rotate(x, cos, sin):
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    x = make((2, 4, 17, 8), torch.bfloat16)
    assert_lowered_like_eager(rotate, x, make((17, 8), torch.bfloat16), make((17, 8), torch.bfloat16, seed=1))


def test_a_long_list_is_joined_by_the_library():
    program = lower_function(lambda x: torch.cat([x[i] for i in range(20)]), make((20, 3), torch.float32))
    assert [e.reason for e in externs_of(program)] == ["20 tensors joined, more than 16"]
