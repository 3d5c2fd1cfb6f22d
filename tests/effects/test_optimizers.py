"""Optimizers' steps, compiled: parameters and state as eager leaves them, in a few launches, compiled once or twice."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import SGD, Adadelta, Adagrad, Adam, AdamW, Muon, Optimizer, RMSprop
from torch.optim.lr_scheduler import ExponentialLR

import fusec

pytestmark = pytest.mark.usefixtures("clean")

Make = Callable[[Sequence[nn.Parameter]], Optimizer]
Parameters = list[nn.Parameter]
SHAPES = ((17, 33), (), (1,), (0, 3), (33,))
BF16, F32 = torch.bfloat16, torch.float32


class Lion(Optimizer):
    """Symbolic discovery of optimization algorithms (Chen et al., 2023), as a user writes it."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99), decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                p.mul_(1 - lr * group["decay"])
                p.add_((beta1 * mean + (1 - beta1) * p.grad).sign_(), alpha=-lr)
                mean.lerp_(p.grad, 1 - beta2)


def parameters(dtypes: Sequence[torch.dtype] = (F32,), shapes: Sequence[tuple[int, ...]] = SHAPES) -> Parameters:
    """Tensors of awkward shapes, the last one transposed; the dtypes in turn."""
    torch.manual_seed(0)
    made = [torch.randn(s, dtype=dtypes[k % len(dtypes)]) for k, s in enumerate(shapes)]
    return [nn.Parameter(x) for x in (*made, torch.randn(12, 9, dtype=dtypes[0]).t())]


def new_gradients(params: Parameters, number: int) -> None:
    torch.manual_seed(100 + number)
    for p in params:
        p.grad = torch.empty_like(p).copy_(torch.randn(p.shape))


def trained(
    make: Make,
    params: Parameters,
    compiled: bool,
    steps: int = 3,
    between: Callable[[int, Optimizer], object] = lambda number, optimizer: None,
) -> list[Tensor]:
    """Parameters and state after some steps."""
    optimizer = make(params)
    step = fusec.compile(optimizer.step) if compiled else optimizer.step
    for number in range(steps):
        new_gradients(params, number)
        step()
        between(number, optimizer)
    state = [v for values in optimizer.state.values() for v in values.values() if isinstance(v, Tensor)]
    return [p.detach() for p in params] + state


def apart(got: Tensor, want: Tensor) -> float:
    """The largest difference in units of the last place of the largest value."""
    assert got.dtype is want.dtype and got.shape == want.shape and got.stride() == want.stride()
    if got.numel() == 0:
        return 0.0
    unit = float(want.abs().max()) * torch.finfo(want.dtype).eps
    return float((got.double() - want.double()).abs().nan_to_num(1e30).max()) / max(unit, 1e-30)


def check(make: Make, ulps: float, dtypes: Sequence[torch.dtype] = (F32,), **options: Any) -> dict[str, Any]:
    """Compare with eager; what fusec counted."""
    want = trained(make, parameters(dtypes), False, **options)
    got = trained(make, parameters(dtypes), True, **options)
    assert len(got) == len(want)
    assert max(apart(a, b) for a, b in zip(got, want, strict=True)) <= ulps
    counted = fusec.stats()
    assert not counted["extern_calls"] and not counted["fallbacks"]
    return counted


# Adam's kin: a compiled step corrects its bias in float32, as `capturable` does, and eager in Python's floats.
KINDS: dict[str, tuple[type[Optimizer], dict[str, Any], int, float]] = {
    "sgd": (SGD, {"lr": 0.1}, 1, 8),
    "momentum": (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "maximize": True}, 1, 8),
    "adam": (Adam, {"lr": 0.01}, 2, 64),
    "amsgrad": (Adam, {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1}, 2, 64),
    "adamw": (AdamW, {"lr": 0.01}, 2, 64),
    "adagrad": (Adagrad, {"lr": 0.01, "lr_decay": 0.1}, 2, 8),
    "rmsprop": (RMSprop, {"lr": 0.01, "centered": True, "momentum": 0.9}, 1, 16),
    "nadam": (optim.NAdam, {"lr": 0.01}, 2, 64),
    "radam": (optim.RAdam, {"lr": 0.01}, 2, 64),
    "adamax": (optim.Adamax, {"lr": 0.01}, 2, 64),
    "adadelta": (Adadelta, {"lr": 0.1}, 1, 8),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_step_is_one_launch_and_one_for_the_step_counts(name: str) -> None:
    kind, options, launches, ulps = KINDS[name]
    counted = check(lambda params: kind(params, foreach=True, **options), ulps)  # type: ignore[call-arg]
    assert counted["kernels_launched"] == 3 * launches
    assert counted["graphs"] == 2 if name == "momentum" else 1  # its first step makes the buffers


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_a_loop_over_tensors_is_no_more_launches(name: str) -> None:
    kind, options, launches, ulps = KINDS[name]
    counted = check(lambda params: kind(params, foreach=False, **options), ulps)  # type: ignore[call-arg]
    assert counted["kernels_launched"] == 3 * launches


@pytest.mark.parametrize("name", ["rmsprop", "nadam"])
def test_a_step_compiles_for_a_gpu(name: str) -> None:
    """The interpreter takes numbers where functions on a GPU may not: the base of a power, in every bias correction."""
    kind, options, launches, _ = KINDS[name]
    params = parameters(shapes=SHAPES[:1])
    new_gradients(params, 0)
    built = fusec.precompile(kind(params, foreach=True, **options).step, target="sm_90")  # type: ignore[call-arg]
    assert not built.explanation.fallbacks and len(built.kernels) == launches
    assert all(k.artifacts[90].spills == 0 for k in built.kernels)


def test_an_optimizer_in_plain_pytorch() -> None:
    assert check(lambda params: Lion(params, lr=0.01), 4)["kernels_launched"] == 3


def test_the_elementwise_parts_of_muon() -> None:
    """Its matrix products are library calls in bfloat16, so that results differ by roundings of these."""
    shapes = [(17, 33), (33, 17)]
    want, got = (trained(lambda p: Muon(p, lr=0.01), parameters(shapes=shapes), c) for c in (False, True))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)
    assert not fusec.stats()["fallbacks"] and fusec.stats()["kernels_launched"] == 3 * 4


@pytest.mark.parametrize("dtypes", [(BF16,), (F32, BF16)], ids=["bf16", "mixed"])
@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_parameters_of_low_precision(name: str, dtypes: tuple[torch.dtype, ...]) -> None:
    kind, options, *_ = KINDS[name]
    check(lambda params: kind(params, foreach=True, **options), 64 if F32 in dtypes else 8, dtypes)  # type: ignore[call-arg]


def test_groups_with_options_of_their_own() -> None:
    def two_groups(params: Sequence[nn.Parameter]) -> Optimizer:
        return AdamW([{"params": params[:2], "lr": 0.1, "weight_decay": 0.0}, {"params": params[2:]}], foreach=True)

    assert check(two_groups, 64)["kernels_launched"] == 3 * 2


# -- what changes between steps ----------------------------------------------------------------------


def scheduled(kind: type[Optimizer], **options: Any) -> dict[str, Any]:
    schedulers: dict[Optimizer, ExponentialLR] = {}

    def make(params: Sequence[nn.Parameter]) -> Optimizer:
        optimizer = kind(params, **copy.deepcopy(options))  # a scheduler writes a tensor in place
        schedulers[optimizer] = ExponentialLR(optimizer, 0.9)
        return optimizer

    return check(make, 64, steps=5, between=lambda number, optimizer: schedulers[optimizer].step())


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SGD, {"momentum": 0.9, "foreach": True}),
        (SGD, {"momentum": 0.9, "foreach": False}),
        (AdamW, {"foreach": True}),
        (RMSprop, {"momentum": 0.9, "foreach": True}),
        (RMSprop, {"foreach": False}),
        (Adadelta, {"foreach": True}),
    ],
)
def test_a_learning_rate_that_changes_is_compiled_for_once(kind: type[Optimizer], options: dict[str, Any]) -> None:
    assert scheduled(kind, lr=0.1, **options)["graphs"] == 2


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize(("kind", "foreach"), [(Adam, False), (Adagrad, True), (RMSprop, True)])
def test_a_learning_rate_that_is_a_tensor_is_never_compiled_for_again(kind: type[Optimizer], foreach: bool) -> None:
    assert scheduled(kind, lr=torch.tensor(0.1), foreach=foreach)["graphs"] == 1


def test_a_state_that_is_loaded_is_gone_on_with() -> None:
    def load(number: int, optimizer: Optimizer) -> None:
        if number == 1:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    check(lambda params: AdamW(params, lr=0.01, foreach=True), 64, steps=4, between=load)


# -- a step with what stands before it ----------------------------------------------------------------


def clipped_step(params: Parameters, optimizer: Optimizer) -> Callable[[], Tensor]:
    step = inspect.unwrap(type(optimizer).step)

    @torch.no_grad()
    def clip_and_step() -> Tensor:
        norm = nn.utils.clip_grad_norm_(params, 1.0)
        step(optimizer)
        return norm

    return clip_and_step


def scaled_step(params: Parameters, optimizer: Optimizer) -> Callable[[], Tensor]:
    """A loss scale of 8 taken back; a step of 0 where a gradient is not finite."""
    lr = 0.1

    @torch.no_grad()
    def unscale_and_step() -> Tensor:
        grads = torch._foreach_mul([p.grad for p in params if p.grad is not None], 1 / 8)
        finite = torch.stack([g.isfinite().all() for g in grads]).all()
        torch._foreach_add_(params, [torch.where(finite, g, 0) for g in grads], alpha=-lr)
        return finite

    return unscale_and_step


@pytest.mark.parametrize("function", [clipped_step, scaled_step])
def test_the_gradients_are_read_for_the_norm_and_for_the_step(function: Callable[..., Callable[[], Tensor]]) -> None:
    results = []
    for compiled in (False, True):
        params = parameters()
        optimizer = AdamW(params, lr=0.01, foreach=True)
        fn = function(params, optimizer)
        step = fusec.compile(fn, fullgraph=True) if compiled else fn
        for number in range(3):
            new_gradients(params, number)
            if number == 1:
                params[0].grad[3, 5] = torch.inf  # type: ignore[index]
            norm = step() if number != 1 or function is scaled_step else None
        assert norm is not None
        results.append([norm.float(), *(p.detach() for p in params), *(p.grad for p in params if p.grad is not None)])
    assert max(apart(a, b) for a, b in zip(*results, strict=True)) <= 64
    assert fusec.stats()["graphs"] == 1 and not fusec.stats()["fallbacks"]


def test_scaled_gradients_of_a_step_are_never_in_memory() -> None:
    params = [nn.Parameter(torch.randn(64, 48 + k)) for k in range(5)]
    new_gradients(params, 0)
    explanation = fusec.explain(scaled_step(params, SGD(params, lr=0.1)))()
    (schedule,) = explanation.schedules
    made = {b.name for s in schedule.steps for b in (schedule.table[n] for n in s.writes)} - set(schedule.inputs)
    assert max(schedule.table[name].nbytes for name in made) < 4 * 64
    elements = sum(p.numel() for p in params)
    assert explanation.fused.bytes < 4 * 4 * elements * 1.01  # two reads of the gradients, one of params, one write
