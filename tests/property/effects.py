"""Random programs that write in place, through views and into their arguments, printable and reproducible from a seed.

    program = effects_program(7)
    print(program)            # the user's function as Python text
    program.fn(*program.inputs())

Every line is run while the program is made, on the values it will have: what eager mode refuses is left out. A value is
*exact* while every way of computing it gives the same bits; only exact values feed ops that jump.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.property.programs import make_input

SIZES = (0, 1, 2, 3, 4, 8, 17)
DTYPES = (
    torch.float32,
    torch.float32,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.bool,
)
MAX_ELEMENTS = 4000
NAN = 11  # one argument in so many holds a NaN
NAMES: dict[str, Any] = {"torch": torch, "F": torch.nn.functional}


@dataclass
class EffectsProgram:
    """lines: Python statements over x0, x1, ...; returns: names of the results.

    gradient: its floating arguments ask for a gradient.
    """

    seed: int
    made: list[str] = field(default_factory=list)  # how each argument is made, as text
    lines: list[str] = field(default_factory=list)
    returns: list[str] = field(default_factory=list)
    gradient: bool = False

    def inputs(self) -> list[Tensor]:
        """The arguments, made anew: some are views of the same memory."""
        found: list[Tensor] = []
        for text in self.made:
            found.append(eval(text, {**NAMES, "given": given, "found": found}))
        return found

    def __str__(self) -> str:
        arguments = ", ".join(f"x{i}" for i in range(len(self.made)))
        described = "\n".join(
            f"# x{i} = {text}: {str(x.dtype)[6:]}{list(x.shape)} strides {list(x.stride())}"
            for i, (text, x) in enumerate(zip(self.made, self.inputs(), strict=True))
        )
        body = "\n".join(f"    {line}" for line in (*self.lines, f"return ({', '.join(self.returns)},)"))
        return f"# seed {self.seed}\n{described}\ndef program({arguments}):\n{body}\n"

    @property
    def fn(self) -> Callable[..., tuple[Tensor, ...]]:
        namespace = dict(NAMES)
        exec(str(self), namespace)
        function: Callable[..., tuple[Tensor, ...]] = namespace["program"]
        return function


def given(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An argument with memory of its own, in one of the layouts users have."""
    x = make_input(random.Random(seed), shape, dtype, seed)
    if dtype.is_floating_point and seed % NAN == 0 and x.numel():
        x[(0,) * x.dim()] = float("nan")
    return x


def effects_program(seed: int, steps: int = 7) -> EffectsProgram:
    return _Builder(random.Random(seed), seed).build(steps)


class _Builder:
    def __init__(self, rng: random.Random, seed: int) -> None:
        self.rng, self.program = rng, EffectsProgram(seed)
        self.values: dict[str, Tensor] = {}
        self.inexact: set[int] = set()  # storages
        self.kept: list[Any] = []  # storages stay alive, so that addresses are not given out again

    def build(self, steps: int) -> EffectsProgram:
        rng, program = self.rng, self.program
        program.gradient = rng.random() < 0.12
        self._make_inputs()
        attempts = 0
        while len(program.lines) < steps and attempts < 40 * steps:
            attempts += 1
            kind = rng.choices((self._view, self._write, self._compute, self._reduce, self._draw), (30, 35, 25, 8, 2))[
                0
            ]
            self._try(*kind(rng.choice(list(self.values))))
        names = list(self.values)
        program.returns = rng.sample(names, min(len(names), rng.randint(1, 4)))
        if rng.random() < 0.1:
            program.returns.append(program.returns[0])
        drawn = [line.split(" = ")[0] for line in program.lines if "rand" in line or "dropout" in line]
        program.returns += [name for name in drawn if name not in program.returns]
        program.gradient = program.gradient and _takes_gradients(program)
        return program

    # -- arguments --------------------------------------------------------------------------------

    def _make_inputs(self) -> None:
        rng, program = self.rng, self.program
        shape = self._shape()
        for i in range(rng.choice((1, 2, 2, 3))):
            mine = shape if i == 0 or rng.random() < 0.6 else tuple(rng.choice((n, 1)) for n in shape)
            dtype = torch.float32 if program.gradient else rng.choice(DTYPES)
            number = 1000 * program.seed + i
            if program.gradient and number % NAN == 0:
                number += 1  # PyTorch's capture multiplies a NaN with the zero gradient of a written argument
            program.made.append(f"given({number}, {mine}, {dtype})")
        first = program.inputs()[0]
        if not program.gradient and rng.random() < 0.25 and first.dim():
            n = first.shape[0]
            start = rng.randint(0, max(n - 1, 0))
            choices = (f"found[0][{start}:]", f"found[0][:{start}]", "found[0].transpose(0, -1)", "found[0]")
            program.made.append(rng.choice(choices))
        self.values = {f"x{i}": x for i, x in enumerate(program.inputs())}
        self.kept.append(list(self.values.values()))

    def _shape(self) -> tuple[int, ...]:
        rng = self.rng
        if rng.random() < 0.03:
            return (1000,)
        while True:
            shape = tuple(rng.choice(SIZES) for _ in range(rng.choice((0, 1, 2, 2, 2, 3, 3, 4))))
            elements = torch.Size(shape).numel()
            if elements <= MAX_ELEMENTS and (elements or rng.random() < 0.15):
                return shape

    # -- lines ------------------------------------------------------------------------------------

    def _try(self, text: str | None, jumps: bool = False, exact: bool = True) -> None:
        """Run a line; keep it when eager mode takes it and its result is small. jumps: of exact values only."""
        if text is None:
            return
        used = [n for n in self.values if _mentions(text, n)]
        inexact = any(self._is_inexact(self.values[n]) for n in used)
        if jumps and inexact:
            return
        target, _, expression = text.partition(" = ")
        namespace = {**NAMES, **self.values}
        if not expression and torch._debug_has_internal_overlap(self.values[target.split(".")[0]]):
            return  # eager writes some of them, in no defined order
        try:
            with torch.no_grad():
                result = eval(expression or target, namespace)
        except Exception:
            return
        if not isinstance(result, Tensor) or result.numel() > MAX_ELEMENTS or result.dim() > 5:
            return
        self.program.lines.append(text)
        if expression:
            self.values[target] = result
        self.kept.append(result)
        if inexact or not exact:
            written = result if expression else self.values[used[0]]
            self.inexact.add(written.untyped_storage()._cdata)

    def _is_inexact(self, x: Tensor) -> bool:
        return x.untyped_storage()._cdata in self.inexact

    def _fresh(self) -> str:
        return f"v{len(self.program.lines)}"

    def _other(self) -> str:
        return self.rng.choice(list(self.values))

    def _view(self, name: str) -> tuple[Any, ...]:
        rng, v = self.rng, self.values[name]
        n = v.dim()
        if n == 0:
            return (f"{self._fresh()} = {name}.{rng.choice(('view(1)', 'expand(3)', 'unsqueeze(0)', 'detach()'))}",)
        dim = rng.randrange(n)
        size = v.shape[dim]
        start = rng.randint(0, max(size - 1, 0))
        options = [
            f"transpose({dim}, {rng.randrange(n)})",
            f"narrow({dim}, {start}, {rng.randint(0, size - start)})",
            f"unsqueeze({rng.randint(0, n)})",
            f"select({dim}, {start})",
            "view(-1)",
            "reshape(-1)",
            "squeeze()",
            "t()",
            "detach()",
            "flatten()",
            "diagonal()",
            f"unbind({dim})[{start}]",
            f"chunk(2, {dim})[-1]",
            f"unflatten({dim}, (-1, 2))",
            f"unfold({dim}, 2, 1)",
            "expand(2, " + ", ".join("-1" for _ in v.shape) + ")",
            "as_strided((2, 2), (1, 1))",
            "contiguous()",
        ]
        slices = ":, " * dim + rng.choice((f"{start}::2", f"{start}:", f":{start}", f"-{start + 1}"))
        text = f"{name}[{slices}]" if rng.random() < 0.3 else f"{name}.{rng.choice(options)}"
        return (f"{self._fresh()} = {text}",)

    def _write(self, name: str) -> tuple[Any, ...]:
        rng, v, other = self.rng, self.values[name], self._other()
        dim = rng.randrange(v.dim()) if v.dim() else 0
        size = v.shape[dim] if v.dim() else 1
        where = [rng.randrange(size) for _ in range(2)] if size else [0]
        number = rng.choice((0, 1, -2, 3)) if not v.is_floating_point() else rng.choice((0.5, -1.5, 2.0))
        reshapes = rng.random() < 0.2 and not name.startswith("x")  # of an argument, Dynamo ends the graph there
        exact = (
            f"{name}.copy_({other})",
            f"{name}.zero_()",
            f"{name}.fill_({number})",
            f"{name}.neg_()",
            f"{name}.masked_fill_({other}, {number})",
            f"{name}.index_fill_({dim}, torch.tensor({where}), {number})",
            f"{name}.index_copy_({dim}, torch.tensor({where[:1]}), {other})",
            f"{name}.scatter_({dim}, torch.zeros_like({name}, dtype=torch.int64), {number})",
            f"{name}.logical_not_()",
            f"{name}.clamp_(-1, 1)",
            f"{name}.t_()" if reshapes else f"{name}.abs_()",
            f"{name}.unsqueeze_(0)" if reshapes else f"{name}.relu_()",
        )
        rounded = (
            f"{name}.add_({number})",
            f"{name}.add_({other})",
            f"{name}.mul_({number})",
            f"{name}.sub_({other}, alpha=2)",
            f"{name}.mul_({other}.clamp(-1, 1))",
            f"{name}.sin_()",
            f"{name}.tanh_()",
            f"{name}.lerp_({other}, 0.25)",
            f"{name}.index_add_({dim}, torch.tensor({where}), {other})",
            f"{name}.addcmul_({other}, {other})",
            f"{name}.add_({name}.sum())",
            f"{name}.copy_({name}.flip({dim}))",
            f"{name}.div_(2)",
        )
        if rng.random() < 0.1:
            jumping = (f"{name}.floor_()", f"{name}.copy_({name} > 0)", f"{name}.round_()", f"{name}.sign_()")
            return rng.choice(jumping), True
        return (rng.choice(exact),) if rng.random() < 0.45 else (rng.choice(rounded), False, False)

    def _compute(self, name: str) -> tuple[Any, ...]:
        rng, v, other = self.rng, self.values[name], self._other()
        dim = rng.randrange(v.dim()) if v.dim() else 0
        moving = (
            f"{name}.clone()",
            f"{name}.flip({dim})",
            f"torch.roll({name}, 1, {dim})",
            f"torch.cat(({name}, {other}), {dim})",
            f"torch.stack(({name}, {other}), {dim})",
            f"torch.where({name} > 0, {name}, {other})" if not self._is_inexact(v) else f"{name}.clone()",
            f"{name}.to({rng.choice(DTYPES)})" if not v.is_floating_point() else f"{name}.float()",
            f"{name}.repeat(2" + ", 1" * max(v.dim() - 1, 0) + ")",
            f"F.pad({name}, (1, 2))",
            f"{name}.index_select({dim}, torch.tensor([0, 0]))",
            f"torch.maximum({name}, {other})",
            f"{name}.tril()",
        )
        rounded = (
            f"{name} + {other}",
            f"{name} * 0.5",
            f"{name} - {other}",
            f"torch.sin({name})",
            f"torch.sigmoid({name})",
            f"torch.softmax({name}, {dim})",
            f"{name}.cumsum({dim})",
            f"F.layer_norm({name}, {name}.shape[-1:])" if v.dim() else f"{name} + 1",
        )
        if rng.random() < 0.5:
            return (f"{self._fresh()} = {rng.choice(moving)}",)
        return f"{self._fresh()} = {rng.choice(rounded)}", False, False

    def _reduce(self, name: str) -> tuple[Any, ...]:
        rng, v = self.rng, self.values[name]
        dim = rng.randrange(v.dim()) if v.dim() else 0
        keep = rng.choice(("True", "False"))
        op = rng.choice(("sum", "mean", "amax", "amin", "prod"))
        if not v.dim():
            return f"{self._fresh()} = {name}.sum()", False, False
        if op == "prod":
            return f"{self._fresh()} = {name}.any({dim}, keepdim={keep})", True
        return f"{self._fresh()} = {name}.{op}({dim}, keepdim={keep})", False, op in ("amax", "amin")

    def _draw(self, name: str) -> tuple[Any, ...]:
        """A draw that is returned: PyTorch's capture drops one that nobody reads, and the stream moves."""
        if self.program.gradient:
            return (None,)
        text = self.rng.choice(("torch.rand_like({})", "F.dropout({}, 0.5)", "torch.randn_like({})")).format(name)
        return f"{self._fresh()} = {text}", False, False


def _takes_gradients(program: EffectsProgram) -> bool:
    """Whether eager mode runs the program on arguments that ask for a gradient."""
    try:
        program.fn(*(x.clone().requires_grad_().clone() for x in program.inputs()))
    except RuntimeError:
        return False
    return True


def _mentions(text: str, name: str) -> bool:
    return re.search(rf"(?<![\w.]){name}(?!\d)", text) is not None


def written(program: EffectsProgram) -> Sequence[str]:
    """The lines that write in place."""
    return [line for line in program.lines if " = " not in line]
