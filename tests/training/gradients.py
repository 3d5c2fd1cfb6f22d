"""Norms, softmaxes and losses, and inputs on which they lose digits: what the errors of gradients are judged on.

    step = Step("layer_norm", torch.float32, "mean", (33, 4097))
    step.errors("fast")["fast"]     ->  {"output": 1.0e-7, "gradient 0": 2.4e-7, ...}
    step.worst("fast", "eager")     ->  (0.58, "fast gradient 1: 4.19e-04, eager mode 4.82e-04")

error   max |seen - exact| / max |exact| over the elements of an output or a gradient, the mean of SEEDS draws; of a
        loss, which is one number that may be right by chance, of LOSS_SEEDS
limit   FACTOR * eager's error + half a unit in the last place of the value's dtype
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fusec

FACTOR = 1.5
SEEDS = 4
LOSS_SEEDS = 16

Function = Callable[..., Tensor]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """fn(x, *others). others: draws the other arguments for an input of a shape.

    image:    dimension 1 of the input is channels.
    constant: positions of floating arguments that no gradient is asked of.
    """

    fn: Function
    others: Callable[[Shape, torch.dtype], tuple[Tensor, ...]] = lambda shape, dtype: ()
    image: bool = False
    constant: tuple[int, ...] = ()

    def step(self, fn: Function, args: Sequence[Tensor], incoming: Tensor) -> tuple[Tensor, ...]:
        """The output, then the gradients of all floating arguments."""
        leaves = tuple(
            a.detach().requires_grad_(a.is_floating_point() and i not in self.constant) for i, a in enumerate(args)
        )
        output = fn(*leaves)
        return output.detach(), *torch.autograd.grad(output, [a for a in leaves if a.requires_grad], incoming)


# -- inputs ---------------------------------------------------------------------------------------


def _noise(shape: Shape) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


INPUTS: Mapping[str, Callable[[Shape, torch.dtype], Tensor]] = {
    "normal": lambda shape, dtype: _noise(shape),
    # bfloat16 has a spacing of 64 at 1e4: with less noise than that a row would hold two values
    "mean": lambda shape, dtype: 1e4 + _noise(shape) * (1.0 if dtype is torch.float32 else 256.0),
    "large": lambda shape, dtype: _noise(shape) * 1e3,
    "constant": lambda shape, dtype: 1.0 + _noise(shape) * (1e-3 if dtype is torch.float32 else 1e-2),
}


def _columns(shape: Shape, dtype: torch.dtype, count: int = 2) -> tuple[Tensor, ...]:
    return tuple(1 + torch.randn(shape[-1], dtype=torch.float64).to(dtype) / 4 for _ in range(count))


def _channels(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return _columns(shape[:2], dtype)


def _same(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return (_noise(shape).to(dtype),)


def _classes(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, ...]:
    target = torch.randint(0, shape[-1], shape[:-1])
    target[::5] = -100
    return (target,)


def _signs(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return (torch.randint(0, 2, shape) * 2 - 1,)


def _distribution(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return (torch.softmax(_noise(shape), -1).to(dtype),)


# -- functions ------------------------------------------------------------------------------------


def llama_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    values = x if x.dtype is torch.float64 else x.float()
    return weight * (values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def masked_softmax(x: Tensor) -> Tensor:
    later = torch.arange(x.shape[-1]) > torch.arange(x.shape[-2]).unsqueeze(-1) + x.shape[-1] // 2
    return torch.softmax(x.masked_fill(later, -math.inf), -1)


def cross_entropy(**settings: Any) -> Function:
    return lambda x, target, *weight: F.cross_entropy(x, target, *weight, **settings)


def kl_div(x: Tensor, target: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(x, -1), target, reduction="batchmean")


def hinge(x: Tensor, sign: Tensor) -> Tensor:
    return torch.clamp(1 - sign * x, min=0).mean()


def z_loss(x: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(x, target) + 1e-4 * torch.logsumexp(x, -1).square().mean()


def capped(x: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(30 * torch.tanh(x / 30), target)


def _weighted(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return (*_classes(shape, dtype), torch.rand(shape[-1], dtype=torch.float64).to(dtype) + 0.5)


CASES: Mapping[str, Case] = {
    "layer_norm": Case(lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b), _columns),
    "rms_norm": Case(lambda x, w: F.rms_norm(x, x.shape[-1:], w), lambda s, d: _columns(s, d, 1)),
    "llama_rms_norm": Case(llama_rms_norm, lambda s, d: _columns(s, d, 1)),
    "group_norm": Case(lambda x, w, b: F.group_norm(x, 2, w, b), _channels, image=True),
    "batch_norm": Case(lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), _channels, image=True),
    "instance_norm": Case(lambda x, w, b: F.instance_norm(x, None, None, w, b), _channels, image=True),
    "softmax": Case(lambda x: torch.softmax(x, -1)),
    "log_softmax": Case(lambda x: torch.log_softmax(x, -1)),
    "masked_softmax": Case(masked_softmax),
    "cross_entropy": Case(cross_entropy(), _classes),
    "cross_entropy_sum": Case(cross_entropy(reduction="sum"), _classes),
    "cross_entropy_none": Case(cross_entropy(reduction="none"), _classes),
    "cross_entropy_smooth": Case(cross_entropy(label_smoothing=0.1), _classes),
    "cross_entropy_weight": Case(cross_entropy(), _weighted, constant=(2,)),
    "nll_loss": Case(lambda x, target: F.nll_loss(x, target), _classes),
    "kl_div": Case(kl_div, _distribution),
    "bce_with_logits": Case(
        lambda x, y: F.binary_cross_entropy_with_logits(x, y), lambda s, d: (torch.rand(s).double().to(d),)
    ),
    "huber": Case(lambda x, y: F.huber_loss(x, y), _same),
    "smooth_l1": Case(lambda x, y: F.smooth_l1_loss(x, y, beta=0.5), _same),
    "hinge_embedding": Case(lambda x, sign: F.hinge_embedding_loss(x, sign), _signs),
    "hinge": Case(hinge, _signs),
    "z_loss": Case(z_loss, _classes),
    "soft_capping": Case(capped, _classes),
}

# (rows, columns) and (batch, channels, height, width)
SHAPES: tuple[Shape, ...] = ((17, 100), (33, 4097), (3, 32768), (1000, 33))
IMAGES: tuple[Shape, ...] = ((3, 4, 9, 11), (8, 6, 33, 65), (2, 4, 128, 129), (64, 10, 7, 7))


# -- errors ---------------------------------------------------------------------------------------

Errors = dict[str, float]
EAGER = "eager mode"


@dataclass(frozen=True)
class Step:
    name: str
    dtype: torch.dtype
    kind: str
    shape: Shape

    def arguments(self, seed: int) -> tuple[Tensor, ...]:
        torch.manual_seed(seed)
        return INPUTS[self.kind](self.shape, self.dtype).to(self.dtype), *CASES[self.name].others(
            self.shape, self.dtype
        )

    def errors(self, *precisions: str) -> dict[str, Errors]:
        """Errors by who computed, "eager mode" or compiled with a precision, and by value.

        Values are the "output", "gradient 0" of the input, "gradient 1" of the first other argument, ...
        """
        torch.compiler.reset()
        case = CASES[self.name]
        compiled = {p: fusec.compile(case.fn, options={"precision": p, "strict": True}) for p in precisions}
        found: dict[str, Errors] = {who: defaultdict(float) for who in (EAGER, *precisions)}
        seeds = LOSS_SEEDS if case.fn(*self.arguments(0)).dim() == 0 else SEEDS
        for seed in range(seeds):
            args = self.arguments(seed)
            with torch.no_grad():
                output = case.fn(*args)
            incoming = torch.randn_like(output) if output.dim() else torch.ones_like(output)
            wide = tuple(a.double() if a.is_floating_point() else a for a in args)
            exact = case.step(case.fn, wide, incoming.double())
            for who, fn in {EAGER: case.fn, **compiled}.items():
                for i, (seen, true) in enumerate(zip(case.step(fn, args, incoming), exact, strict=True)):
                    found[who][f"gradient {i - 1}" if i else "output"] += error(seen, true) / seeds
        return found

    def worst(self, *precisions: str) -> tuple[float, str]:
        """The largest error over its limit of anything compiled, and what it is."""
        found = self.errors(*precisions)
        assert all(map(math.isfinite, found[EAGER].values())), found[EAGER]
        floor = torch.finfo(self.dtype).eps / 2
        return max(
            (
                error / (FACTOR * found[EAGER][value] + floor),
                f"{precision} {value}: {error:.2e}, eager mode {found[EAGER][value]:.2e}",
            )
            for precision in precisions
            for value, error in found[precision].items()
        )


def error(seen: Tensor, exact: Tensor) -> float:
    """max |seen - exact| / max |exact| where exact is finite; infinite where only one of them is."""
    seen, finite = seen.double(), exact.isfinite()
    if (
        not torch.equal(seen[~finite].nan_to_num(7.0), exact[~finite].nan_to_num(7.0))
        or not seen[finite].isfinite().all()
    ):
        return math.inf
    size = exact[finite].abs().max().item()
    away = (seen[finite] - exact[finite]).abs().max().item()
    return away / size if size else away
