"""Which gradients a step computes, who sees them and how they add up: as in eager mode."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fusec
from bench.cases import Work
from bench.schedules import capture
from tests.training.helpers import STRICT, Net, Twins, X, same_gradients

pytestmark = pytest.mark.usefixtures("clean")


# -- several backward calls -----------------------------------------------------------------------


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_accumulate_over_calls(set_to_none: bool) -> None:
    twins = Twins()
    for _ in range(2):
        for part in X.split(3):
            twins.backward(part)
        twins.agree()
        twins.each(lambda _, module: module.zero_grad(set_to_none=set_to_none))
        assert all((g is None) == set_to_none for g in twins.gradients()[0])


def test_a_retained_graph_runs_backward_twice() -> None:
    """The first call of a backward graph keeps what it reads, later ones free it: neither may free what is retained."""
    twins = Twins()

    def twice(call: Any, _: Any) -> None:
        loss = call(X).square().sum()
        for retain in (True, True, False):
            loss.backward(retain_graph=retain)
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()

    twins.each(twice)
    twins.each(twice)
    twins.agree()


def test_backward_in_another_thread() -> None:
    twins = Twins()

    def step(call: Any, _: Any) -> None:
        thread = threading.Thread(target=call(X).square().sum().backward)
        thread.start()
        thread.join()

    twins.each(step)
    twins.agree()


# -- parameters -----------------------------------------------------------------------------------


def test_frozen_parameters_get_no_gradient_and_cost_nothing() -> None:
    twins = Twins(prepare=lambda module: module.up.requires_grad_(False))
    twins.backward(X)
    twins.agree()
    assert twins.modules[0].up.weight.grad is None

    def graphs(frozen: bool) -> tuple[int, int]:
        """(matmuls of backward, saved values) on fake tensors."""

        def build(device: str) -> Work:
            net = Net()
            net.up.requires_grad_(not frozen)
            parameters = tuple(p for p in net.parameters() if p.requires_grad)
            return Work(net, (X,), parameters=parameters, incoming=(torch.ones(7, 16),))

        def step(work: Work, fn: Any) -> Any:
            return torch.autograd.grad(fn(*work.args), work.parameters, work.incoming)

        _, backward = capture(build, step)
        nodes = backward.graph_module.graph.nodes
        return sum(n.target is torch.ops.aten.mm.default for n in nodes), len(backward.example_inputs)

    assert (graphs(frozen=False), graphs(frozen=True)) == ((3, 9), (2, 8))  # no gradient of x in both


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table(ids)))


def test_one_parameter_of_two_modules() -> None:
    twins, ids = Twins(Tied), torch.randint(0, 11, (4, 5))
    twins.backward(ids, loss=lambda y: F.cross_entropy(y.flatten(0, 1), ids.flatten()))
    twins.agree()
    assert len(list(twins.modules[0].parameters())) == 1


def test_parameters_frozen_between_steps() -> None:
    twins = Twins()
    for frozen in (False, True, False):
        for module in twins.modules:
            module.up.requires_grad_(not frozen)
            module.zero_grad()
        twins.backward(X)
        twins.agree()


def test_parameters_written_between_steps() -> None:
    def step(call: Any, module: Any) -> None:
        call(X).square().mean().backward()
        with torch.no_grad():
            for p in module.parameters():
                p.sub_(0.1 * p.grad)
                p.grad = None

    twins = Twins()
    for _ in range(3):
        twins.each(step)
    twins.agree()


def test_a_parameter_written_before_backward_is_an_error_as_in_eager() -> None:
    x, w = X.clone().requires_grad_(), torch.randn(16, requires_grad=True)
    for call in (fusec.compile(lambda x, w: (x * w).sin(), options=STRICT), lambda x, w: (x * w).sin()):
        out = call(x, w)
        with torch.no_grad():
            w.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


def test_statistics_of_a_batch_norm_between_train_and_eval() -> None:
    twins = Twins(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    for training in (True, False, True):
        for module in twins.modules:
            module.train(training)
        twins.backward(torch.randn(2, 3, 6, 6))
    twins.agree()


# -- hooks ----------------------------------------------------------------------------------------


def hook_parameter(module: Net) -> None:
    module.up.weight.register_hook(lambda grad: grad * 2)


def hook_forward(module: Net) -> None:
    module.norm.register_forward_pre_hook(lambda _, given: (given[0] * 2,))
    module.norm.register_forward_hook(lambda _, given, out: out + 1)


def hook_backward(module: Net) -> None:
    module.norm.register_full_backward_pre_hook(lambda _, grads: (grads[0] * 3,))
    module.norm.register_full_backward_hook(lambda _, grads, outgoing: (grads[0] * 2,))


def hook_outermost(module: Net) -> None:
    module.register_full_backward_hook(lambda _, grads, outgoing: None)


def update_in_backward(module: Net) -> None:
    def update(p: Tensor) -> None:
        assert p.grad is not None
        with torch.no_grad():
            p.sub_(0.1 * p.grad)
        p.grad = None

    for p in module.parameters():
        p.register_post_accumulate_grad_hook(update)


HOOKS = [hook_parameter, hook_forward, hook_backward, hook_outermost, update_in_backward]


@pytest.mark.parametrize("prepare", HOOKS)
def test_hooks(prepare: Any) -> None:
    twins = Twins(prepare=prepare)
    for _ in range(2):
        twins.backward(X.clone().requires_grad_())
    twins.agree()


def test_a_backward_hook_sees_what_it_sees_in_eager_mode() -> None:
    seen: dict[Any, list[Tensor]] = {}
    twins = Twins()
    for module in twins.modules:
        module.norm.register_full_backward_hook(
            lambda m, grads, out: seen.setdefault(id(m), []).extend((grads[0].clone(), out[0].clone()))
        )
    twins.backward(X)
    ours, theirs = (seen[id(m.norm)] for m in twins.modules)
    torch.testing.assert_close(ours, theirs)


def hooked_inside(x: Tensor) -> Tensor:
    y = x.sin()
    y.register_hook(lambda grad: grad * 2)
    return y * 3


class Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x**3 * factor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return 5 * x * grad * ctx.factor, None  # not the derivative: this one must run


def partly_detached(x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = x.std()
    return (x / scale) * x.sin().detach() + Cubed.apply(x.cos(), 2.0)


@pytest.mark.parametrize("fn", [hooked_inside, partly_detached])
def test_gradients_of_the_users_own(fn: Any) -> None:
    same_gradients(fn, X)


# -- what comes in and what goes out --------------------------------------------------------------


def test_views_and_expanded_inputs() -> None:
    def fn(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return (x.sin() * y + z).square()

    found = []
    for call in (fusec.compile(fn, options=STRICT), fn):
        torch.manual_seed(1)
        base, row, table = (torch.randn(s, requires_grad=True) for s in ((4, 33), (1, 16), (16, 4)))
        call(base[:, 1::2], row.expand(4, 16), table.t()).sum().backward()
        found.append([base.grad, row.grad, table.grad])
    torch.testing.assert_close(*found)


INCOMING = {
    "expanded": torch.tensor(2.0).expand(7, 16),
    "transposed": torch.randn(16, 7).t(),
    "sliced": torch.randn(14, 33)[::2, ::2][:, :16],
    "in place of one": torch.ones(7, 16),
}


def test_incoming_gradients_of_any_strides_reach_one_graph() -> None:
    fn = fusec.compile(lambda x: x.sin() * 2, options=STRICT)
    for incoming in INCOMING.values():
        ours, theirs = (X.clone().requires_grad_() for _ in range(2))
        fn(ours).backward(incoming)
        (theirs.sin() * 2).backward(incoming)
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert fusec.stats()["graphs"] == 2


def three(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.sin() * w, x.cos(), w * 2


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 2)])
def test_outputs_that_the_loss_does_not_use(used: tuple[int, ...]) -> None:
    """What only unused outputs depend on gets zeros, as by torch.compile, where eager mode leaves None."""
    found = []
    for call in (fusec.compile(three, options=STRICT), three):
        x, w = X.clone().requires_grad_(), torch.ones(16, requires_grad=True)
        outputs = call(x, w)
        sum(outputs[i].sum() for i in used).backward()  # type: ignore[union-attr]
        found.append([torch.zeros_like(t) if t.grad is None else t.grad for t in (x, w)])
    torch.testing.assert_close(*found)


def test_the_gradient_of_some_inputs_alone() -> None:
    def fn(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return (x @ w + b).tanh()

    w = torch.randn(16, 3, requires_grad=True)
    x, b = X.clone().requires_grad_(), torch.zeros(3)
    ours, theirs = (torch.autograd.grad(f(x, w, b).sum(), w) for f in (fusec.compile(fn, options=STRICT), fn))
    torch.testing.assert_close(ours, theirs)


def test_outputs_that_are_inputs_or_views() -> None:
    def fn(x: Tensor) -> tuple[Tensor, ...]:
        y = x.sin()
        return x.view(-1), x, y, y.view(-1), y.t(), x.t()[2:]

    found = []
    for call in (fusec.compile(fn, options=STRICT), fn):
        x = X.clone().requires_grad_()
        given = x * 1
        outputs = call(given)
        starts = [o.untyped_storage().data_ptr() for o in outputs]
        assert starts[0] == starts[1] == starts[5] and starts[2] == starts[3] == starts[4] and outputs[1] is given
        sum(o.square().sum() * i for i, o in enumerate(outputs)).backward()  # type: ignore[union-attr]
        found.append(x.grad)
    torch.testing.assert_close(*found)


def test_anomaly_mode_and_hooks_of_saved_tensors() -> None:
    twins = Twins()

    def step(call: Any, _: Any) -> None:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
            loss = call(X).square().sum()
        with torch.autograd.detect_anomaly(check_nan=True):
            loss.backward()

    with pytest.warns(UserWarning, match="Anomaly"):
        twins.each(step)
    twins.agree()


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weight_norms_gradient_is_one_kernel(dtype: torch.dtype, dim: int) -> None:
    v = torch.randn(17, 33, dtype=dtype).requires_grad_()
    g = torch.rand(17, 1, dtype=dtype).requires_grad_() if dim == 0 else torch.rand(33, dtype=dtype).view(1, 33)

    def normed(v: Tensor) -> Tensor:
        return torch._weight_norm(v, g, dim)

    incoming = torch.randn(17, 33, dtype=dtype)
    (want,) = torch.autograd.grad(normed(v), v, incoming)
    (got,) = torch.autograd.grad(fusec.compile(normed)(v), v, incoming)
    torch.testing.assert_close(got, want)
    stats = fusec.stats()
    assert (stats["kernels_launched"], stats["extern_calls"]) == (2, 0)
