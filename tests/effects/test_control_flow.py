"""Graph breaks, control flow, checkpoints, functional transforms and the modes around a call: each as in eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops.associative_scan import associative_scan
from torch._higher_order_ops.map import map as map_along
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import checkpoint

import fusec
from fusec.errors import FallbackWarning
from tests.effects.helpers import explained, launched, same_as_eager

pytestmark = pytest.mark.usefixtures("clean")
X = torch.randn(6, 8)


def with_gradients(fn: Callable[..., Tensor], *args: Tensor) -> None:
    """The result and every gradient agree with eager."""
    pairs = [[a.clone().requires_grad_() for a in args] for _ in range(2)]
    results = [
        call(*given) for call, given in zip((fusec.compile(fn, options={"strict": True}), fn), pairs, strict=True)
    ]
    for result in results:
        result.square().sum().backward()
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*[[a.grad for a in given] for given in pairs])


# -- control flow: a call of PyTorch's over graphs compiled here -----------------------------------


def branches(x: Tensor) -> Tensor:
    chosen = torch.cond(x.sum() > 0, lambda v: torch.sin(v) + 1, lambda v: torch.cos(v) - 1, (x,))
    return chosen * 2  # type: ignore[no-any-return]


@pytest.mark.parametrize("sign", [1, -1])
def test_cond_runs_the_branch_that_eager_runs_and_gives_its_gradient(sign: int) -> None:
    same_as_eager(branches, X.abs() * sign)
    with_gradients(branches, X.abs() * sign)


def test_the_branches_of_cond_are_graphs_of_their_own() -> None:
    found = explained(branches, X)
    assert len(found.schedules) == 3 and [e.target for e in found.externs] == ["higher_order.cond"]
    assert not fusec.stats()["fallbacks"]


LOOPS: dict[str, Callable[[Tensor], Any]] = {
    "while_loop": lambda x: while_loop(lambda i, v: i < 5, lambda i, v: (i + 1, v * 1.5 + 1), (torch.tensor(0), x)),
    "while_loop by value": lambda x: while_loop(lambda v: v.sum() < 100, lambda v: (v.abs() + 1,), (x,)),
    "scan": lambda x: scan(lambda carry, row: (carry + row, carry * row), torch.zeros(8), x, dim=0),
    "associative_scan": lambda x: associative_scan(lambda a, b: a * b + 1, x, dim=0, combine_mode="generic"),
    "map": lambda x: map_along(lambda row: row.sin() + row.sum(), x),
    "nested": lambda x: torch.cond(
        x.sum() > 0, lambda v: torch.cond(v[0, 0] > 0, lambda w: w + 1, lambda w: w - 1, (v,)), lambda v: v * 1, (x,)
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops(name: str) -> None:
    same_as_eager(LOOPS[name], X)
    assert fusec.stats()["kernels_launched"] and not fusec.stats()["fallbacks"]


def test_a_nested_region_is_taken_into_the_graph_around_it() -> None:
    region = torch.compiler.nested_compile_region(lambda x: torch.sin(x) + 1)
    same_as_eager(lambda x: region(region(x)) * 2, X)
    assert launched() == (1, 0)


def test_flex_attention_equals_eager_and_says_what_runs_eagerly() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    q = torch.randn(1, 2, 16, 16)
    same_as_eager(lambda q: flex_attention(q, q, q, score_mod=lambda s, b, h, i, j: s + (i - j) * 0.1) + 1, q)
    assert "flex_attention run as eager" in fusec.stats()["fallbacks"][0]["reason"]


# -- graph breaks ---------------------------------------------------------------------------------


def test_printing_breaks_the_graph_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    def fn(x: Tensor) -> Tensor:
        y = x * 2
        print("seen", tuple(y.shape))
        return y + 1

    same_as_eager(fn, X)
    assert capsys.readouterr().out == "seen (6, 8)\n" * 2 and fusec.stats()["graph_breaks"] == 1


def test_a_branch_on_a_value() -> None:
    def fn(x: Tensor) -> Tensor:
        return x + 1 if x.sum().item() > 0 else x - 1

    for sign in (1, -1):
        same_as_eager(fn, X.abs() * sign)


# -- autograd and functional transforms -----------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant: bool) -> None:
    with_gradients(lambda x: checkpoint(lambda y: torch.sin(y).exp() * 2, x, use_reentrant=reentrant) * 3, X)


def cube(y: Tensor) -> Tensor:
    return (y**3).sum()


def pulled_back(x: Tensor) -> tuple[Tensor, Tensor]:
    out, vjp = torch.func.vjp(lambda y: y.sin() * y, x)
    return out, vjp(torch.ones_like(out))[0]


LINEAR = nn.Linear(8, 4)
TRANSFORMS: dict[str, Callable[[Tensor], Any]] = {
    "vmap": lambda x: torch.func.vmap(lambda row: torch.softmax(row, 0) * row.sum())(x),
    "grad": lambda x: torch.func.grad(cube)(x),
    "vmap of grad": lambda x: torch.func.vmap(torch.func.grad(cube))(x),
    "jvp": lambda x: torch.func.jvp(lambda y: y.sin() * y, (x,), (torch.ones_like(x),)),
    "vjp": pulled_back,
    "jacrev": lambda x: torch.func.jacrev(lambda y: y**3)(x[0]),
    "hessian": lambda x: torch.func.hessian(cube)(x[0]),
    "functional_call": lambda x: torch.func.functional_call(
        LINEAR, {k: 2 * v for k, v in LINEAR.named_parameters()}, (x,)
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_functional_transforms(name: str) -> None:
    with torch.no_grad():
        same_as_eager(TRANSFORMS[name], X)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x * grad  # not the derivative: this one must run


def hooked(x: Tensor) -> Tensor:
    y = x.sin()
    y.register_hook(lambda grad: grad * 2)
    return y * 3


def partly_without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = (x * 2).sin()
    return x * scale


@pytest.mark.parametrize("fn", [lambda x: Square.apply(x.sin()) + 1, hooked, partly_without_gradient])
def test_the_users_own_gradients(fn: Callable[[Tensor], Tensor]) -> None:
    with_gradients(fn, X)


def test_hooks_of_a_module() -> None:
    layer = nn.Linear(8, 8)
    layer.register_forward_pre_hook(lambda m, given: (given[0] * 2,))
    layer.register_forward_hook(lambda m, given, out: out + 1)
    with torch.no_grad():
        same_as_eager(lambda m, x: m(x), layer, X)


# -- modes ----------------------------------------------------------------------------------------


def test_autocast() -> None:
    layer = nn.Linear(8, 8)

    def fn(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.gelu(layer(x)) + x.sum()

    with torch.no_grad():
        same_as_eager(fn, X, tolerance=2e-2)
        assert fusec.compile(fn)(X).dtype is fn(X).dtype
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        same_as_eager(lambda x: layer(x) * 2, X, tolerance=2e-2)


def test_inference_mode_around_and_inside() -> None:
    def fn(x: Tensor) -> Tensor:
        with torch.inference_mode():
            y = x * 2
        return y + 1

    same_as_eager(fn, X)
    with torch.inference_mode():
        same_as_eager(lambda x: x.add_(1).sin(), X.clone())
        assert fusec.compile(lambda x: x + 1)(X).is_inference()


def test_a_wrapper_subclass_passes_through() -> None:
    def fn(t: Tensor) -> Tensor:
        return torch.sin(t) * 2 + 1

    ours, theirs = (TwoTensor(X.clone(), X + 1).requires_grad_() for _ in range(2))
    got, want = fusec.compile(fn, options={"strict": True})(ours), fn(theirs)
    assert type(got) is TwoTensor
    for result in (got, want):
        result.sum().backward()
    torch.testing.assert_close((got.a, got.b), (want.a, want.b))
    torch.testing.assert_close((ours.grad.a, ours.grad.b), (theirs.grad.a, theirs.grad.b))
    assert fusec.stats()["kernels_launched"] == 2


def test_nothing_here_warns_of_a_fallback(recwarn: pytest.WarningsRecorder) -> None:
    same_as_eager(branches, X)
    assert not [w for w in recwarn if issubclass(w.category, FallbackWarning)]
