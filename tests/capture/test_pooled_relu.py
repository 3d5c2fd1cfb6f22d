"""A ReLU before a max pooling: its mask is in the offsets that the pooling saves, and gradients stay eager's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fusec
from bench.cases import Work
from bench.metered import count, total
from bench.schedules import capture, scheduled
from bench.training import TRAINING, step, with_incoming
from fusec.capture.graph import CapturedGraph
from fusec.capture.pooling import NOWHERE, POOL, POOL_BACKWARD

GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": (3, 2), "stride": (1, 2), "padding": (1, 0)},
    {"kernel_size": 2, "stride": 3},  # elements in no window
    {"kernel_size": (2, 3), "stride": 1, "dilation": (3, 2)},
    {"kernel_size": 3, "stride": 1, "dilation": 3},  # far windows hold an element: too many to ask each
    {"kernel_size": 2, "stride": 4, "dilation": (12, 10)},  # offsets of 16 bits
    {"kernel_size": (12, 11), "stride": 3},  # a window that is not unrolled
]


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    fusec.reset()
    yield
    fusec.reset()


def pooled(x: Tensor, **geometry: Any) -> Tensor:
    return F.max_pool2d(F.relu(x), **geometry)


def pooled_by_3(x: Tensor) -> Tensor:
    return F.max_pool2d(F.relu(x), 3, 2, 1)


def uneven(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Ties, zeros of both signs, planes and windows without a positive number, infinities and NaN."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    planes = x.view(-1, *shape[-2:])
    planes[0, :7, :7] = -1
    planes[0, 8:, 8:] = 0.0
    planes[1] = planes[1].clamp(max=0)
    planes[1, 2:5, 3:6] = float("-inf")
    planes[2, 4, 5], planes[2, 9, 0], planes[2, 0, 9] = float("nan"), float("inf"), -0.0
    return x.to(dtype)


def gradient(fn: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:
    """Of x, for whole numbers from outside: their sums are exact in every dtype and order."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    out = fn(x, *others)
    incoming = torch.randint(-8, 9, out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    (found,) = torch.autograd.grad(out, x, incoming)
    return found


def same(fn: Callable[..., Tensor], x: Tensor, *others: Tensor, strict: bool = True) -> tuple[Tensor, Tensor]:
    """The gradients of x, compiled and eager, which are equal."""
    compiled = fusec.compile(lambda *args: fn(*args), options={"strict": strict})
    ours, theirs = gradient(compiled, x, *others), gradient(fn, x, *others)
    assert ours.stride() == theirs.stride()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    return ours, theirs


def graphs(fn: Callable[..., Tensor], *inputs: Tensor) -> tuple[CapturedGraph, CapturedGraph]:
    """Forward and backward of one training step."""
    forward, backward = capture(lambda device: with_incoming(lambda: Work(fn, inputs))(), step)
    return forward, backward


def saved(fn: Callable[..., Tensor], *inputs: Tensor) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    """dtype and shape of each value that enters the backward graph and is no input of the function."""
    forward, backward = graphs(fn, *inputs)
    return [
        (x.dtype, tuple(x.shape))
        for x, name in zip(backward.example_inputs, backward.names, strict=True)
        if isinstance(x, Tensor) and name not in forward.names and not name.startswith("grad_")
    ]


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype).requires_grad_()


# -- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_gradients_are_eagers_bit_for_bit(geometry: dict[str, Any], dtype: torch.dtype, layout: Any) -> None:
    x = uneven(2, 3, 13, 17, dtype=dtype).to(memory_format=layout)
    ours, theirs = same(partial(pooled, **geometry), x, strict=geometry["kernel_size"] != (12, 11))
    assert torch.equal(ours.signbit(), theirs.signbit())


def test_of_one_image() -> None:
    same(pooled_by_3, uneven(3, 14, 12))


def test_an_infinite_gradient_of_a_closed_window_does_not_arrive() -> None:
    def infinite(x: Tensor) -> Tensor:
        return pooled_by_3(x) * float("inf")

    same(infinite, uneven(2, 3, 13, 17).nan_to_num())


@pytest.mark.parametrize("order", [(0, 1, 3, 2), (3, 2, 0, 1), (1, 0, 2, 3)], ids=str)
def test_other_strides(order: tuple[int, ...]) -> None:
    same(pooled_by_3, uneven(12, 13, 14, 15).permute(order))


def test_a_relu_in_place() -> None:
    same(lambda x: F.max_pool2d(F.relu_(x * 2), 3, 2, 1), uneven(2, 3, 13, 17))


def test_two_stages() -> None:
    same(lambda x: F.max_pool2d(F.relu(pooled_by_3(x) - 0.5), 2), uneven(2, 3, 13, 17))


def test_indices_that_are_used() -> None:
    def weighted(x: Tensor) -> Tensor:
        y, at = F.max_pool2d(F.relu(x), 3, 2, 1, return_indices=True)
        return y * at

    same(weighted, uneven(2, 3, 13, 17).nan_to_num(posinf=3.0))


def test_recomputed_by_the_users_checkpoint() -> None:
    same(lambda x: checkpoint(pooled_by_3, x, use_reentrant=False), uneven(2, 3, 13, 17))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels last"])
def test_the_stem_of_a_residual_network(layout: Any) -> None:
    def stem(x: Tensor, w: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return pooled_by_3(F.batch_norm(F.conv2d(x, w, None, 2, 3), None, None, scale, shift, training=True))

    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 19, 21).to(memory_format=layout), torch.randn(4, 3, 7, 7), torch.randn(4), torch.randn(4)
    found = []
    for call in (fusec.compile(stem), stem):
        given = [x.clone().requires_grad_() for x in inputs]
        (call(*given) * torch.linspace(-1, 1, 2 * 4 * 5 * 6).reshape(2, 4, 5, 6)).sum().backward()
        found.append([x.grad for x in given])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_window_at_nowhere_sends_nothing() -> None:
    """The op itself, as it runs where its graph runs eagerly."""
    geometry = ([3, 3], [2, 2], [1, 1], [1, 1], False)
    x = torch.randn(2, 3, 9, 10)
    y, offsets = POOL(x, *geometry)
    grad, closed = torch.randn_like(y), y < 1.5
    ours = POOL_BACKWARD(grad, offsets.masked_fill(closed, NOWHERE), x.shape, x.stride(), *geometry)
    theirs = POOL_BACKWARD(grad.masked_fill(closed, 0), offsets, x.shape, x.stride(), *geometry)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


# -- what is saved --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_mask_is_saved(dtype: torch.dtype) -> None:
    assert saved(pooled_by_3, leaf(2, 4, 20, 20, dtype=dtype)) == [(torch.int8, (2, 4, 10, 10))]


def test_each_graph_is_one_launch_that_moves_what_it_must() -> None:
    case = TRAINING["max_pool_relu_train"]
    counts = [count(scheduled(graph)) for graph in capture(lambda device: case.build("cpu"), case.run)]
    assert [c.kernels for c in counts] == [1, 1]
    assert total(counts).graphs_ratio <= 1.01


def test_after_a_convolution_the_pooled_values_and_offsets_are_saved() -> None:
    def block(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        return F.conv2d(F.max_pool2d(F.relu(F.conv2d(x, w, padding=1)), 2), v)

    found = saved(block, leaf(2, 3, 16, 16), leaf(4, 3, 3, 3), leaf(4, 4, 3, 3))
    assert set(found) == {(torch.float32, (2, 4, 8, 8)), (torch.int8, (2, 4, 8, 8))}


def test_after_a_batch_norm_nothing_more_is_saved() -> None:
    """The convolution's result, which its gradient needs, and numbers of a window or a channel."""

    def stem(x: Tensor, w: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return pooled_by_3(F.batch_norm(F.conv2d(x, w, padding=1), None, None, scale, shift, training=True))

    found = saved(stem, leaf(2, 3, 16, 16), leaf(4, 3, 3, 3), leaf(4), leaf(4))
    large = {(dtype, shape) for dtype, shape in found if prod(shape) > 4}
    assert large == {(torch.float32, (2, 4, 16, 16)), (torch.int8, (2, 4, 8, 8))}


# -- what is left as it is ------------------------------------------------------------------------


class Gated(torch.autograd.Function):
    """relu(x), whose gradient is what `rule(y, other, g)` makes of y = relu(x) and another tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, other: Tensor, rule: Callable[..., Tensor]) -> Tensor:
        y = F.relu(x)
        ctx.save_for_backward(y, other)
        ctx.rule = rule
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.rule(*ctx.saved_tensors, grad), None, None


RULES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "relu's own": lambda y, other, g: torch.where(y <= 0, 0, g),
    "another threshold": lambda y, other, g: torch.where(y <= 0.5, 0, g),
    "another comparison": lambda y, other, g: torch.where(y < 0, 0, g),
    "another value": lambda y, other, g: torch.where(y <= 0, 1, g),
    "the other side": lambda y, other, g: torch.where(y <= 0, g, 0),
    "another tensor": lambda y, other, g: torch.where(other <= 0, 0, g),
    "a second reader": lambda y, other, g: torch.where(y <= 0, 0, g) + g,
    "a tensor for zero": lambda y, other, g: torch.where(y <= 0, other, g),
    "a negative zero": lambda y, other, g: torch.where(y <= 0, -0.0, g),
}


@pytest.mark.parametrize("name", RULES)
def test_other_gradients(name: str) -> None:
    """A gradient that is not a ReLU's is left alone: of these rules only the first may be found in the offsets."""
    rule = RULES[name]

    def fn(x: Tensor, other: Tensor) -> Tensor:
        return F.max_pool2d(Gated.apply(x, other, rule), 3, 2, 1)

    x, other = uneven(2, 3, 13, 17).nan_to_num(posinf=2.0), uneven(2, 3, 13, 17).flip(0).nan_to_num()
    same(fn, x, other)
    _, backward = graphs(fn, x.requires_grad_(), other)
    masks = [n for n in backward.graph_module.graph.nodes if n.target is torch.ops.aten.where.self]
    assert bool(masks) == (name != "relu's own")


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: pooled_by_3(x).sum() + F.relu(x),
        lambda x: pooled_by_3(x) + F.relu(x).detach()[..., :7, :9],
        lambda x: (lambda y: F.max_pool2d(y, 3, 2, 1) + F.max_pool2d(y, 3, 2, 1, 1).flip(-1))(F.relu(x)),
        lambda x: (lambda y: F.max_pool2d(y, 3, 2, 1) + F.avg_pool2d(y, 3, 2, 1) * 9)(F.relu(x)),
        lambda x: F.max_pool2d(F.relu(x) - 1, 3, 2, 1),
        lambda x: F.max_pool2d(-F.relu(x), 3, 2, 1),
    ],
    ids=["an output", "an output without a gradient", "pooled twice", "averaged", "shifted", "negative"],
)
def test_a_relu_that_the_pooling_does_not_read_alone(fn: Callable[[Tensor], Tensor]) -> None:
    same(fn, uneven(2, 3, 13, 17).nan_to_num(posinf=2.0, neginf=-2.0))


@pytest.mark.parametrize(
    "activation",
    [
        partial(F.leaky_relu, negative_slope=0.5),
        F.relu6,
        lambda x: x.clamp(min=0),
        lambda x: F.threshold(x, 0.5, 0.0),
        lambda x: F.threshold(x, 0.0, -1.0),
    ],
    ids=["leaky", "relu6", "clamp", "threshold", "another value below"],
)
def test_other_activations(activation: Callable[[Tensor], Tensor]) -> None:
    same(lambda x: F.max_pool2d(activation(x), 3, 2, 1), (uneven(2, 3, 13, 17) * 4).nan_to_num(posinf=2.0))


def test_other_poolings() -> None:
    x = uneven(2, 3, 13, 17)
    same(lambda x: F.max_pool1d(F.relu(x[0]), 3, 2, 1), x)
    same(lambda x: F.adaptive_max_pool2d(F.relu(x), (4, 5)), x)
    same(lambda x: F.max_pool3d(F.relu(x), 2), x[None], strict=False)
