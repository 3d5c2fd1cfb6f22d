"""Tensors written in place: inputs, parameters, buffers, caches and views, updated by the kernel that computes them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusec
from fusec.capture.aliases import overlaps, share_memory
from fusec.errors import FallbackWarning
from tests.effects.helpers import launched, same_as_eager

pytestmark = pytest.mark.usefixtures("clean")

X, Y = torch.randn(17, 33), torch.randn(17, 33)
WIDE = torch.randn(3, 20_000)


def residual_norm(x: Tensor, y: Tensor) -> Tensor:
    x.add_(y)
    return torch.nn.functional.layer_norm(x, x.shape[-1:])


def momentum(p: Tensor, grad: Tensor, moment: Tensor) -> None:
    moment.mul_(0.9).add_(grad)
    p.sub_(0.1 * moment)


ONE_KERNEL: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "whole": (lambda x: x.add_(1), (X,)),
    "whole, result used": (lambda x: x.add_(1) * 2, (X,)),
    "transposed": (lambda x: x.mul_(2), (X.t(),)),
    "zero dimensions": (lambda x: x.add_(1), (torch.tensor(3),)),
    "of a slice": (lambda x, y: x[:, 2:5].add_(y), (X, torch.randn(17, 3))),
    "of every second": (lambda x: x[::2].zero_(), (X,)),
    "of a diagonal": (lambda x: x.diagonal().fill_(7), (X,)),
    "of a select": (lambda x: x[3].exp_(), (X,)),
    "broadcast": (lambda x, y: x.copy_(y), (X, torch.randn(33))),
    "other dtype": (lambda x, y: x.copy_(y), (X.bfloat16(), Y)),
    "softmax over itself": (lambda x: x.copy_(x.softmax(-1)), (X,)),
    "mean taken away": (lambda x: x.sub_(x.mean(-1, keepdim=True)), (X,)),
    "into another's sum": (lambda x, y: y.copy_(x.sum(0)), (X, torch.zeros(33))),
    "residual and norm": (residual_norm, (X, Y)),
    "optimizer": (momentum, (X, Y, torch.zeros(17, 33))),
}


@pytest.mark.parametrize("name", ONE_KERNEL)
def test_an_update_is_one_kernel(name: str) -> None:
    fn, args = ONE_KERNEL[name]
    same_as_eager(fn, *args, calls=2)
    assert launched() == (2, 0)


DYNAMIC: dict[str, tuple[Callable[..., Any], Callable[[int], tuple[Tensor, ...]]]] = {
    "whole": (lambda x: x.add_(1), lambda n: (torch.randn(n, n + 2),)),
    "of a slice": (lambda x, y: x[:, 1:3].add_(y).sum(), lambda n: (torch.randn(n, n + 2), torch.randn(n, 2))),
    "residual and norm": (residual_norm, lambda n: (torch.randn(n, 16), torch.randn(n, 16))),
}


@pytest.mark.parametrize("name", DYNAMIC)
def test_updates_with_symbolic_sizes(name: str) -> None:
    fn, arguments = DYNAMIC[name]
    compiled = fusec.compile(fn, dynamic=True, options={"strict": True})
    for n in (5, 6, 17):
        ours, theirs = arguments(n), arguments(n)
        for a, b in zip(ours, theirs, strict=True):
            a.copy_(b)
        torch.testing.assert_close((compiled(*ours), ours), (fn(*theirs), theirs))
    assert fusec.stats()["graphs"] == 1 and launched()[1] == 0


HARD: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "flipped over itself": (lambda x: x.copy_(x.flip(0)), (X,)),
    "transposed over itself": (lambda x: x.copy_(x.t().clone()), (torch.randn(33, 33),)),
    "shifted over itself": (lambda x: x[1:].copy_(x[:-1].clone()), (X,)),
    "old value kept": (lambda x: (x.clone(), x.add_(1), x * 2), (X,)),
    "old value elsewhere": (lambda x: (x.flip(1) + 1, x.add_(1)), (X,)),
    "long rows, softmax after": (lambda x: x.mul_(2).softmax(-1), (WIDE,)),
    "long rows, variance before": (lambda x: x.div_(x.std(-1, keepdim=True)), (WIDE,)),
    "row and column": (lambda x, s: (s.add_(x.sum(0)), x.sub_(x.mean(1, keepdim=True))), (X, torch.zeros(33))),
    "scale by own sum": (lambda x: x.mul_(x.sum()), (X,)),
    "view written, base read": (lambda x: (x.view(-1)[5:9].zero_(), x.sum())[1], (X,)),
    "base written, view returned": (lambda x: (x.t(), x.add_(1))[0], (X,)),
    "two slices": (lambda x: (x[:, :3].zero_(), x[:, 10:].neg_(), x[2:4].add_(1)), (X,)),
    "nothing, strides that meet": (lambda x: x.add_(1), (torch.empty_strided((1, 8, 0), (8, 1, 0)),)),
    "two views of a copy": (lambda x: (lambda y: (y, y.diagonal(), x.zero_()))(x.repeat(2, 1)), (X,)),
    "nothing": (lambda x: x.add_(1), (torch.randn(0, 5),)),
    "one": (lambda x: x.add_(1), (torch.randn(1),)),
    "same tensor twice": (lambda x, y: (x.add_(1), y.mul_(2)), (X, X)),
    "overlapping views": (lambda x, y: (x.add_(1), y.mul_(2))[2:], (X[:10], X[5:])),
    "swap": (lambda x, y: (x.copy_(y), y.copy_(x.clone())), (X, Y)),
    "real swap": (lambda x, y: [a.copy_(b) for a, b in zip((x, y), (y.clone(), x.clone()), strict=True)], (X, Y)),
    "bool": (lambda x: x.logical_not_(), (X > 0,)),
    "int8 wraps": (lambda x: x.add_(100), (torch.tensor([100, -100, 3], dtype=torch.int8),)),
    "complex": (lambda x: x.mul_(2j), (torch.randn(4, dtype=torch.complex64),)),
}


@pytest.mark.parametrize("name", HARD)
def test_updates_that_read_elsewhere(name: str) -> None:
    fn, args = HARD[name]
    same_as_eager(fn, *args, calls=2)


def test_overlapping_views_passed_as_two_inputs_share_memory_still() -> None:
    base, want = torch.arange(10.0), torch.arange(10.0)

    def fn(a: Tensor, b: Tensor) -> Tensor:
        a.add_(b.sum())
        return b * 2

    compiled = fusec.compile(fn)
    for _ in range(2):
        torch.testing.assert_close(compiled(base[:6], base[4:]), fn(want[:6], want[4:]))
        torch.testing.assert_close(base, want)
    apart, same = torch.arange(6.0), torch.arange(6.0)
    with pytest.warns(FallbackWarning, match="overlap in another way"):
        for ours, theirs in (((apart, base[4:]), (same, want[4:])), ((base[1:7], base[4:]), (want[1:7], want[4:]))):
            torch.testing.assert_close(compiled(*ours), fn(*theirs))
            torch.testing.assert_close((apart, base), (same, want))


def test_views_of_overlapping_inputs_are_returned_as_in_eager() -> None:
    def fn(a: Tensor, b: Tensor) -> Tensor:
        b.abs_()
        return a.unflatten(0, (-1, 2))

    base, want = torch.arange(-3.0, 3), torch.arange(-3.0, 3)
    with pytest.warns(FallbackWarning, match="share memory"):
        got = fusec.compile(fn)(base[:4], base[2:])
    torch.testing.assert_close(got, fn(want[:4], want[2:]))
    torch.testing.assert_close(base, want)


def test_where_tensors_overlap() -> None:
    base = torch.zeros(12)
    assert overlaps([base[:6], torch.zeros(6), base[4:]]) == ((0, 2, 16),)
    assert overlaps([base[:4], base[4:8], base[8:]]) == overlaps([base[:0], base, nn.Parameter(base)]) == ()
    assert share_memory([base[:4], base[4:8]]) and not share_memory([base, torch.zeros(12)])
    assert overlaps([base, base[1:3], base[5:7]]) == ((0, 1, 4), (0, 2, 20))


def test_an_expanded_input_fails_as_in_eager() -> None:
    def fn(x: Tensor) -> Tensor:
        return x.add_(1)

    for call in (fn, fusec.compile(fn)):
        with pytest.raises(RuntimeError, match="single memory location"):
            call(torch.zeros(1, 3).expand(2, 3))


def test_a_write_is_counted_where_autograd_looks() -> None:
    x = torch.zeros(3)
    fusec.compile(lambda x: x.add_(1), options={"strict": True})(x)
    assert x._version >= 1
    a, b = torch.ones(3, requires_grad=True), torch.ones(3)
    product = a * b
    fusec.compile(lambda b: b.add_(1))(b)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def scaled_by_a_counter(x: Tensor, count: Tensor) -> Tensor:
    y = x * torch.sin(count * 2)
    with torch.no_grad():
        count.add_(1)
    return y


def normalised_in_place(x: Tensor, y: Tensor) -> Tensor:
    z = torch.tanh(x * y.sin())
    y.mul_(2)
    return z * y


@pytest.mark.parametrize("fn", [scaled_by_a_counter, normalised_in_place])
def test_backward_sees_the_value_before_the_write(fn: Callable[[Tensor, Tensor], Tensor]) -> None:
    gradients = []
    for call in (fusec.compile(fn, options={"strict": True}), fn):
        x, y = X.clone().requires_grad_(), Y.clone()
        call(x, y).sum().backward()
        gradients.append((x.grad, y))
    torch.testing.assert_close(gradients[0], gradients[1])


# -- modules --------------------------------------------------------------------------------------


class Cache(nn.Module):
    """A key-value cache that takes the next token by position."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(2, 4, 16, 8))
        self.register_buffer("length", torch.tensor(0))

    def forward(self, key: Tensor) -> Tensor:
        self.keys[:, :, 3:4] = key * 2
        self.length.add_(1)
        return self.keys.sum(2)


def test_a_cache_takes_a_slice_in_the_kernel_that_computes_it() -> None:
    same_as_eager(lambda m, k: m(k), Cache(), torch.randn(2, 4, 1, 8), calls=2)
    assert launched()[1] == 0


AT, ROW = torch.tensor([4]), torch.randn(2, 1, 3)


@pytest.mark.parametrize(
    "write",
    [
        lambda cache, row: cache.index_copy_(1, AT, row * 2),
        lambda cache, row: cache.index_put_((torch.tensor([0, 1]), AT), row[:, 0] * 2),
        lambda cache, row: cache.index_add_(1, torch.tensor([2, 2]), (row * 2).expand(2, 2, 3)),
        lambda cache, row: cache.scatter_(1, torch.full((2, 1, 3), 5), row * 2),
        lambda cache, row: cache.scatter_(2, torch.zeros(2, 6, 1, dtype=torch.int64), 5.0),
        lambda cache, row: cache.scatter_add_(1, torch.zeros(2, 1, 3, dtype=torch.int64), row * 2),
        lambda cache, row: cache.__setitem__((slice(None), slice(2, 3)), row),
        lambda cache, row: cache.index_copy_(1, AT, cache[:, :1]),
    ],
)
def test_a_scatter_into_a_cache_is_a_kernel_that_moves_what_changes(write: Callable[[Tensor, Tensor], Any]) -> None:
    def fn(cache: Tensor, row: Tensor) -> Tensor:
        write(cache, row)
        return cache.sum(1)

    cache = torch.randn(2, 6, 3)
    same_as_eager(fn, cache, ROW, calls=2)
    assert launched()[1] == 0


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(33), nn.BatchNorm1d(33, momentum=None), nn.InstanceNorm1d(17, True)])
def test_running_statistics_in_training(layer: nn.Module) -> None:
    with torch.no_grad():
        same_as_eager(lambda m, x: m(x), layer, X, calls=2)
    assert launched()[1] == 0


def test_running_statistics_and_gradients() -> None:
    net = nn.Sequential(nn.Linear(33, 8), nn.BatchNorm1d(8), nn.ReLU())

    def step(net: nn.Module, x: Tensor) -> Tensor:
        return net(x).square().sum()  # type: ignore[no-any-return]

    ours, theirs = (nn.Sequential(nn.Linear(33, 8), nn.BatchNorm1d(8), nn.ReLU()) for _ in range(2))
    ours.load_state_dict(net.state_dict()), theirs.load_state_dict(net.state_dict())
    compiled = fusec.compile(step, options={"strict": True})
    for _ in range(2):
        compiled(ours, X).backward(), step(theirs, X).backward()
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=1e-4, atol=1e-5)
    grads = [[p.grad for p in net.parameters()] for net in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


# -- tools ----------------------------------------------------------------------------------------


def draw_and_write(x: Tensor) -> Tensor:
    x.mul_(2)
    return torch.softmax(x + torch.rand_like(x), -1)


def test_the_script_of_a_kernel_that_draws_and_writes_its_input_runs_alone(tmp_path: Path) -> None:
    fusec.compile(draw_and_write, options={"dump": tmp_path, "strict": True})(torch.randn(5, 9))
    (script,) = tmp_path.glob("*/kernels/*.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_replay_of_a_kernel_that_writes_its_input_agrees() -> None:
    found = fusec.replay(draw_and_write)(torch.randn(5, 9))
    assert not found.differences


@pytest.mark.parametrize("fn", [lambda x: x.softmax(0), lambda x: x.log_softmax(1), nn.LayerNorm(17)])
def test_results_of_a_transposed_input_lie_in_memory_as_eager_lays_them(fn: Callable[[Tensor], Tensor]) -> None:
    for asks in (False, True):
        x = X.t().clone(memory_format=torch.preserve_format).requires_grad_(asks)
        with torch.set_grad_enabled(asks):
            got, want = fusec.compile(fn, options={"strict": True})(x), fn(x)
        assert got.stride() == want.stride() and not x.is_contiguous()
