"""Random programs of pointwise, view and reduction ops, printable and reproducible from a seed.

    program = random_program(7)
    print(program)            # the user's function as Python text
    program.fn(*program.inputs)

A value is *exact* while every way of computing it gives the same bits (inputs, views, comparisons of exact values):
only exact values feed ops that jump (floor, comparisons, argmax), so that rounding cannot turn into a different answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch

SIZES = (1, 2, 3, 4, 8, 17, 32)
DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool)
MAX_ELEMENTS = 6000
SMOOTH = (
    "torch.exp(-{}.abs())",
    "torch.tanh({})",
    "torch.sigmoid({})",
    "F.gelu({})",
    "F.silu({})",
    "torch.relu({})",
    "-{}",
    "{}.abs()",
    "{} * 0.5 + 1",
    "torch.sin({})",
    "torch.sqrt({}.abs() + 1)",
    "torch.rsqrt({}.abs() + 1)",
    "{}.clamp(-1, 1)",
    "{}.to(torch.bfloat16)",
    "{}.float()",
    "{}.double()",
    "torch.log1p({}.abs())",
    "F.softplus({})",
    "{}.square()",
    "1 / ({}.abs() + 1)",
    "F.leaky_relu({}, 0.1)",
)
REDUCTIONS = (
    "{v}.sum(dim={dims}, keepdim={keep})",
    "{v}.mean(dim={dims}, keepdim={keep})",
    "{v}.amax(dim={dims}, keepdim={keep})",
    "{v}.var(dim={dims}, keepdim={keep}, correction=0)",
    "torch.softmax({v}, {dim})",
    "torch.log_softmax({v}, {dim})",
    "torch.logsumexp({v}, {dims}, keepdim={keep})",
    "F.layer_norm({v}, {v}.shape[{dim}:])",
    "{v}.sum()",
    "torch.linalg.vector_norm({v}, dim={dims}, keepdim={keep})",
    "F.normalize({v}, dim={dim})",
)


@dataclass(frozen=True)
class Value:
    name: str
    meta: torch.Tensor  # on device "meta": shape and dtype only
    exact: bool

    @property
    def is_float(self) -> bool:
        return self.meta.dtype.is_floating_point


@dataclass
class RandomProgram:
    """lines: Python statements over `inputs`; `returns`: names of the results."""

    seed: int
    inputs: list[torch.Tensor]
    lines: list[str] = field(default_factory=list)
    returns: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        arguments = ", ".join(f"x{i}" for i in range(len(self.inputs)))
        described = "\n".join(
            f"# x{i}: {str(x.dtype)[6:]}{list(x.shape)} strides {list(x.stride())}" for i, x in enumerate(self.inputs)
        )
        body = "\n".join(f"    {line}" for line in (*self.lines, f"return ({', '.join(self.returns)},)"))
        return f"# seed {self.seed}\n{described}\ndef program({arguments}):\n{body}\n"

    @property
    def fn(self) -> Callable[..., tuple[torch.Tensor, ...]]:
        namespace: dict[str, Any] = {"torch": torch, "F": torch.nn.functional}
        exec(str(self), namespace)
        function: Callable[..., tuple[torch.Tensor, ...]] = namespace["program"]
        return function


def random_program(seed: int, steps: int = 7) -> RandomProgram:
    return _Builder(random.Random(seed), seed).build(steps)


def make_input(rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """A tensor of that shape in one of the layouts users have: contiguous, transposed, expanded, sliced, offset."""
    generator = torch.Generator().manual_seed(seed)

    def values(*size: int) -> torch.Tensor:
        raw = torch.randn(size, generator=generator)
        if dtype is torch.bool:
            return raw > 0
        return (raw * 4).to(dtype) if dtype is torch.int64 else raw.to(dtype)

    layout = rng.choice(("contiguous", "contiguous", "transposed", "expanded", "sliced", "offset"))
    if layout == "transposed" and len(shape) >= 2:
        return values(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2)
    if layout == "expanded" and shape:
        dim = rng.randrange(len(shape))
        return values(*(1 if d == dim else s for d, s in enumerate(shape))).expand(shape)
    if layout == "sliced" and shape:
        return values(*shape[:-1], 2 * shape[-1] + 1)[..., 1::2]
    if layout == "offset":
        return values(prod(shape) + 3)[3:].view(shape)
    return values(*shape)


class _Builder:
    def __init__(self, rng: random.Random, seed: int) -> None:
        self.rng, self.program = rng, RandomProgram(seed, [])
        self.values: list[Value] = []

    def build(self, steps: int) -> RandomProgram:
        rng = self.rng
        shape = self._shape()
        for i in range(rng.choice((1, 2, 2, 3))):
            mine = shape if i == 0 or rng.random() < 0.6 else self._broadcastable(shape)
            x = make_input(rng, mine, rng.choice(DTYPES), 1000 * self.program.seed + i)
            self.program.inputs.append(x)
            self.values.append(Value(f"x{i}", x.to("meta"), True))
        while len(self.program.lines) < steps:
            self._step()
        unused = [v for v in self.values if not v.name.startswith("x")]
        picked = [unused[-1], *rng.sample(unused, min(len(unused), rng.choice((0, 1, 1, 2))))]
        self.program.returns = list(dict.fromkeys(v.name for v in picked))
        return self.program

    def _shape(self) -> tuple[int, ...]:
        rng = self.rng
        special = rng.random()
        if special < 0.06:
            return rng.choice([(0,), (3, 0), (0, 4)])
        if special < 0.2:
            return rng.choice([(1000,), (4097,), (2, 1000), (1, 4097), (17, 17), ()])
        while True:
            shape = tuple(rng.choice(SIZES) for _ in range(rng.choice((1, 2, 2, 3, 3, 4))))
            if prod(shape) <= MAX_ELEMENTS:
                return shape

    def _broadcastable(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        kept = shape[self.rng.randint(0, len(shape)) :]
        return tuple(1 if self.rng.random() < 0.3 else s for s in kept)

    # -- one step -----------------------------------------------------------------------------------

    def _step(self) -> None:
        value = self.rng.choice(self.values[-4:])
        make = self.rng.choice(
            (self._unary, self._unary, self._binary, self._binary, self._view, self._view, self._reduce, self._mixed)
        )
        text, exact = make(value)
        if text is None:
            return
        names: dict[str, Any] = {"torch": torch, "F": torch.nn.functional, **{v.name: v.meta for v in self.values}}
        try:
            meta = eval(text, names)
        except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError):
            return  # not a program PyTorch accepts: draw another step
        if not isinstance(meta, torch.Tensor) or meta.numel() > MAX_ELEMENTS or meta.dtype.is_complex:
            return
        name = f"v{len(self.program.lines)}"
        self.program.lines.append(f"{name} = {text}")
        self.values.append(Value(name, meta, exact))

    def _unary(self, v: Value) -> tuple[str | None, bool]:
        rng = self.rng
        if v.meta.dtype is torch.bool:
            return rng.choice((f"~{v.name}", f"{v.name}.float()", f"{v.name}.to(torch.int64)")), v.exact
        if not v.is_float:
            choice = rng.choice(
                ("-{}", "{}.abs()", "{} // 3", "{} % 5", "{} * 3 + 1", "{}.float()", "{} & 7", "{}.clamp(-3, 4)")
            )
            return choice.format(v.name), v.exact
        if v.exact and rng.random() < 0.25:
            choice = rng.choice(("{}.floor()", "{} > 0.25", "{}.round()", "{}.sign()", "{}.isnan()", "{}.trunc()"))
            return choice.format(v.name), True
        choice = rng.choice(SMOOTH)
        return choice.format(v.name), v.exact and choice in ("-{}", "{}.abs()", "torch.relu({})", "{}.clamp(-1, 1)")

    def _binary(self, v: Value) -> tuple[str | None, bool]:
        rng = self.rng
        other = rng.choice(self.values)
        exact = v.exact and other.exact
        if v.meta.dtype is torch.bool and other.meta.dtype is torch.bool:
            return f"{v.name} {rng.choice('&|^')} {other.name}", exact
        if not v.is_float and not other.is_float:
            bools = torch.bool in (v.meta.dtype, other.meta.dtype)  # eager refuses to subtract them, meta does not
            return f"{v.name} {rng.choice('+*' if bools else '+*-')} {other.name}", exact
        if exact and rng.random() < 0.2:
            return f"{v.name} {rng.choice(('<', '>=', '=='))} {other.name}", True
        choice = rng.choice(("{} + {}", "{} * {}", "{} + 2 * {}", "torch.maximum({}, {})", "torch.minimum({}, {})"))
        return choice.format(v.name, other.name), False

    def _mixed(self, v: Value) -> tuple[str | None, bool]:
        rng = self.rng
        conditions = [c for c in self.values if c.meta.dtype is torch.bool]
        other = rng.choice(self.values)
        kind = rng.randrange(5)
        if kind == 0 and conditions:
            return f"torch.where({rng.choice(conditions).name}, {v.name}, {other.name})", v.exact and other.exact
        if kind == 1 and conditions:
            return f"{v.name}.masked_fill({rng.choice(conditions).name}, 1)", v.exact
        if v.meta.dim() == 0:
            return None, False
        dim = rng.randrange(v.meta.dim())
        if kind == 2:
            return f"torch.cat(({v.name}, {other.name}, {v.name}), {dim})", v.exact and other.exact
        if kind == 3:
            return f"torch.stack(({v.name}, {other.name}), {dim})", v.exact and other.exact
        widths = f"({rng.randint(0, 2)}, {rng.randint(0, 2)})"
        return (None if v.meta.dtype is torch.bool else f"F.pad({v.name}, {widths})"), v.exact

    def _view(self, v: Value) -> tuple[str | None, bool]:
        rng, shape = self.rng, tuple(v.meta.shape)
        if not shape:
            return f"{v.name}.reshape(1, 1)", v.exact
        dim = rng.randrange(len(shape))
        size = shape[dim]
        start = rng.randint(0, max(size - 1, 0))
        factors = [k for k in (2, 3, 4, 8) if size % k == 0 and size > k]
        options = [
            f"{v.name}.transpose({dim}, {rng.randrange(len(shape))})",
            f"{v.name}.permute({', '.join(map(str, rng.sample(range(len(shape)), len(shape))))})",
            f"{v.name}.flatten({rng.randrange(dim + 1)}, {dim})",
            f"{v.name}.unsqueeze({dim})",
            f"{v.name}.narrow({dim}, {start}, {rng.randint(0, size - start)})",
            f"{v.name}.flip({dim})",
            f"torch.roll({v.name}, {rng.randint(-3, 3)}, {dim})",
            f"{v.name}.reshape(-1)",
            f"{v.name}.contiguous()",
            f"{v.name}.unsqueeze(0).expand(2, {', '.join('-1' for _ in shape)})",
        ]
        if size > 0:
            options += [f"{v.name}.select({dim}, {start})", f"{v.name}[{':, ' * dim}{start % 2}::2]"]
        if factors:
            k = rng.choice(factors)
            options += [
                f"{v.name}.unflatten({dim}, ({k}, -1))",
                f"{v.name}.unflatten({dim}, (-1, {k})).transpose({dim}, -1)",
            ]
        return rng.choice(options), v.exact

    def _reduce(self, v: Value) -> tuple[str | None, bool]:
        rng, n = self.rng, v.meta.dim()
        keep = rng.choice(("True", "False"))
        if n == 0:
            return f"{v.name}.sum()", False
        dims = sorted(rng.sample(range(n), rng.randint(1, min(n, 2))))
        dim = dims[0]
        if v.meta.dtype is torch.bool:
            return f"{v.name}.{rng.choice(('any', 'all'))}(dim={dim}, keepdim={keep})", v.exact
        if not v.is_float:
            return f"{v.name}.{rng.choice(('sum', 'amax', 'amin'))}(dim={dims}, keepdim={keep})", v.exact
        if v.exact and rng.random() < 0.15:
            return f"{v.name}.{rng.choice(('argmax', 'argmin'))}(dim={dim}, keepdim={keep})", True
        choice = rng.choice(REDUCTIONS)
        text = choice.format(v=v.name, dims=dims, dim=dim, keep=keep)
        return text, v.exact and ".amax" in choice
