"""View ops are index expressions: against eager for every op, and for random chains of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fusec.ir.index import axis_symbol, evaluate
from fusec.ir.types import LoopNest
from fusec.lowering.ref import Ref
from tests.lowering.differential import assert_lowered_like_eager, lower_function, make

VIEWS = {
    "reshape": lambda x: (x.reshape(24, 5), x.reshape(-1), x.reshape(2, 2, 6, 5), x.reshape(4, 30, 1)),
    "reshape of a permuted view": lambda x: (x.transpose(0, 1).reshape(-1), x.permute(2, 0, 1).reshape(10, 12)),
    "permute": lambda x: (x.permute(2, 0, 1), x.transpose(-1, 0), x.mT, x[0].t(), x.movedim((0, 1), (2, 0))),
    "slice": lambda x: (x[1:3, ::2, -3:], x[..., 1], x[-1], x[:, 1:5:3], x[:, 5:2], x.narrow(1, -3, 2)),
    "expand": lambda x: (x[:, :1].expand(4, 3, 5), x[:, :1].expand(2, 4, 3, 5), x[:1].expand_as(x)),
    "squeeze": lambda x: (
        x[:, :1].squeeze(),
        x[:, :1].squeeze(1),
        x.unsqueeze(-1),
        x[None].squeeze((0,)),
        x.squeeze(0),
    ),
    "split": lambda x: (
        *x.split(4, 1),
        *x.chunk(3, 2),
        *x.split_with_sizes([1, 5], 1),
        *torch.tensor_split(x, (1, 3), 1),
    ),
    "unbind": lambda x: (*x.unbind(0), *x[:1, :2].unbind(-2)),
    "diagonal": lambda x: (x.diagonal(0, 0, 1), x.diagonal(1, 1, 2), x.diagonal(-2, 1, 0)),
    "unfold": lambda x: (x.unfold(1, 3, 2), x.unfold(-1, 2, 1)),
    "flip": lambda x: (x.flip(0, 2), x.flip(1), x.flip(())),
    "roll": lambda x: (x.roll(2, 1), x.roll((1, -2), (0, 2)), x.roll(7), x.roll(-100, 1), x.roll(0, 0)),
    "repeat": lambda x: (x.repeat(2, 1, 3), x.repeat(1, 1, 1), x.repeat(2, 2, 1, 1), x.tile(2)),
    "repeat_interleave": lambda x: (x.repeat_interleave(3, 1), x.repeat_interleave(2)),
    "view as another dtype": lambda x: (x.view(torch.int32), x.view(torch.int32) + 1),
    "alias": lambda x: (x, x.detach(), x.expand(4, 6, 5), x.view_as(x)),
}
NON_CONTIGUOUS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "outer dims swapped": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
}


@pytest.mark.parametrize("layout", NON_CONTIGUOUS)
@pytest.mark.parametrize("name", VIEWS)
def test_view_is_returned_and_read(name, layout):
    def both(x):
        views = VIEWS[name](x)
        return (*views, *(v + 1 for v in views))

    assert_lowered_like_eager(both, NON_CONTIGUOUS[layout](make((4, 6, 5), torch.float32)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("name", ["slice", "flip", "roll", "repeat", "reshape of a permuted view"])
def test_views_of_other_dtypes(name, dtype):
    assert_lowered_like_eager(VIEWS[name], make((4, 6, 5), dtype))


def test_views_of_sliced_and_expanded_inputs():
    sliced, expanded = make((8, 12, 5), torch.float32)[::2, ::2], make((3, 1), torch.float32).expand(3, 4)
    assert_lowered_like_eager(
        lambda x: (x.reshape(-1), x.flip(0), x[1:] * 2, x.t() if x.ndim == 2 else x.mT + 1), sliced
    )
    assert_lowered_like_eager(lambda x: (x + 1, x.clone(), x.reshape(-1), x.contiguous(), x.roll(1, 1)), expanded)


@pytest.mark.parametrize("shape", [(0,), (1,), (17,), (1000,), (4097,), (0, 5), (5, 0, 3), (1, 1), (17, 1)])
def test_awkward_extents(shape):
    def functions(x):
        yield x + 1
        yield x.reshape(-1) * 2
        yield x.flip(0)
        yield x.roll(1, 0)
        yield x.transpose(0, -1) + 1
        yield x.unsqueeze(0).expand(3, *x.shape) * 2
        yield x[1:]
        yield x.repeat(*[2] * x.ndim)
        yield torch.cat([x, x], 0)
        yield torch.stack([x, x], -1).reshape(-1)
        yield F.pad(x, (1, 1))

    assert_lowered_like_eager(lambda x: list(functions(x)), make(shape, torch.float32))


def test_a_scalar_tensor_has_views_too():
    x = torch.tensor(2.5)
    assert_lowered_like_eager(lambda x: (x.reshape(1), x.expand(3), x.squeeze(), x.flip(()), x[None, None] + 1), x)


def test_blocks_of_channels():
    x = make((2, 12, 4, 6), torch.float32)
    functions = (
        lambda x: F.pixel_shuffle(x, 2),
        lambda x: F.pixel_unshuffle(x, 2),
        lambda x: F.channel_shuffle(x, 3),
        lambda x: x.reshape(2, 3, 4, 4, 6).transpose(1, 2).flatten(1, 2).unflatten(1, (4, 3)),
    )
    for function in functions:
        assert_lowered_like_eager(function, x)


def test_as_strided_addresses_the_storage():
    x = make((4, 6, 5), torch.float32)
    assert_lowered_like_eager(
        lambda x: (torch.as_strided(x, (3, 4), (2, 5), 7), torch.as_strided(x * 2, (3, 2), (2, 3))), x
    )
    assert_lowered_like_eager(lambda x: torch.as_strided(x[1], (3, 4), (2, 5)) + 1, x)


def test_as_strided_of_an_index_view_stays_a_library_call():
    assert_lowered_like_eager(
        lambda x: torch.as_strided(x.flip(0), (3,), (2,)) + 1, make((8,), torch.float32), externs=1
    )


def test_views_leave_no_nests():
    program = lower_function(
        lambda x: (x.permute(2, 0, 1)[1:, None].flip(0).roll(2, 3) + 1,), make((4, 6, 5), torch.float32)
    )
    (nest,) = program.nodes
    assert isinstance(nest, LoopNest)
    assert [b.name for b in program.buffers] == ["x0", "add"]


# -- random chains --------------------------------------------------------------------------------


@st.composite
def chains(draw):
    """A shape and a chain of view ops on it, as (name, arguments)."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=3)))
    probe = torch.empty(shape, device="meta")
    steps = []
    for _ in range(draw(st.integers(1, 5))):
        name = draw(st.sampled_from(["permute", "slice", "flip", "roll", "reshape", "expand", "select"]))
        d = draw(st.integers(0, max(probe.ndim - 1, 0)))
        if probe.ndim == 0:
            break
        if name == "permute":
            step = ("permute", tuple(draw(st.permutations(range(probe.ndim)))))
        elif name == "slice":
            step = ("slice", (d, draw(st.integers(0, probe.shape[d] - 1)), draw(st.integers(1, 2))))
        elif name in ("flip", "select"):
            step = (name, (d,))
        elif name == "roll":
            step = ("roll", (draw(st.integers(-3, 3)), d))
        elif name == "reshape":
            factors = [n for n in range(1, probe.numel() + 1) if probe.numel() % n == 0]
            first = draw(st.sampled_from(factors))
            step = ("reshape", (first, probe.numel() // first))
        else:
            step = ("expand", (2, *probe.shape))
        probe = apply(probe, step)
        steps.append(step)
        if probe.numel() > 2000:
            break
    return shape, steps


def apply(x, step):
    name, args = step
    if name == "slice":
        d, start, stride = args
        return x[(slice(None),) * d + (slice(start, None, stride),)]
    if name == "select":
        return x.select(args[0], x.shape[args[0]] - 1)
    if name == "roll":
        return x.roll(*args)
    return {"permute": x.permute, "flip": x.flip, "reshape": x.reshape, "expand": x.expand}[name](args)


@settings(max_examples=40)
@given(chains())
def test_chains_of_views_equal_eager(chain):
    shape, steps = chain

    def function(x):
        for step in steps:
            x = apply(x, step)
        return x, x + 1

    numel = torch.Size(shape).numel()
    assert_lowered_like_eager(function, torch.arange(float(numel)).reshape(shape))


@given(st.lists(st.sampled_from([1, 2, 3, 5, 8]), min_size=1, max_size=4), st.data())
def test_reshape_reads_the_elements_in_row_major_order(shape, data):
    numel = torch.Size(shape).numel()
    factors = [n for n in range(1, numel + 1) if numel % n == 0]
    first = data.draw(st.sampled_from(factors))
    dims = data.draw(st.permutations(range(len(shape))))
    storage = torch.arange(numel).reshape(shape)
    ref = Ref.whole("x", torch.int64, shape, storage.stride(), "cpu").permute(dims).reshape((first, numel // first))
    i, j = torch.meshgrid(torch.arange(first), torch.arange(numel // first), indexing="ij")
    offset = ref.at((axis_symbol("i", first), axis_symbol("j", numel // first)))
    found = evaluate(offset, {"i": i, "j": j}) + torch.zeros_like(i)
    assert found.equal(storage.permute(dims).reshape(first, numel // first))
