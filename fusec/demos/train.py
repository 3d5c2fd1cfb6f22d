"""A training run: a small GPT learns from Python's own documentation, eager beside compiled, from equal weights.

Enters: a number of steps. Leaves: the losses of both, as a table and as curves; whether they are equal.

    step   eager  compiled  difference  eager against itself
       1  5.5142    5.5142     0.0e+00               4.8e-07
      50  3.0235    3.0235     7.2e-07               1.4e-06

Equal means: no further apart than eager mode is from itself, when only the order changes in which it adds (the rows of
a batch in another order) or the weights that it starts from, by one unit in the last place. The text is that of
`help()`, which every Python ships; letters are bytes. `weights="smollm2"` fine-tunes the pretrained SmolLM2-135M on it.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusec.api import compile as fusec_compile
from fusec.api import explain
from fusec.demos import smollm2
from fusec.demos.curves import panels, picture
from fusec.demos.kernels import show_kernels
from fusec.demos.show import Progress, heading, waiting
from fusec.inspect.eager import Totals
from fusec.inspect.explain import Explanation
from fusec.inspect.rows import table
from fusec.ir.printer import format_bytes

__all__ = ["GPT", "WEIGHTS", "Pretrained", "Result", "Sizes", "Task", "compare", "run", "task"]

Batch = tuple[Tensor, Tensor]
Compiler = Callable[[Any], Any]
WEIGHTS = ("random", "smollm2")
AGAIN = 7  # runs of eager mode beside the first
RESOLUTION = 4  # units in the last place of a float32 loss that are no difference


@dataclass(frozen=True)
class Sizes:
    """Of the GPT and its batches."""

    layers: int = 2
    width: int = 64
    heads: int = 4
    context: int = 64
    batch: int = 8
    rate: float = 3e-3


GPU = Sizes(layers=6, width=384, heads=6, context=256, batch=32, rate=1e-3)


class Block(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width
        self.heads = sizes.heads
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm_2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.out(mixed)
        result: Tensor = x + self.down(F.gelu(self.up(self.norm_2(x))))
        return result


class GPT(nn.Module):
    """Bytes int64[n, t] and the bytes that follow them -> the mean cross-entropy, f32[]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.byte, self.place = nn.Embedding(256, sizes.width), nn.Embedding(sizes.context, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width)
        for embedding in (self.byte, self.place):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, ids: Tensor, following: Tensor) -> Tensor:
        x = self.byte(ids) + self.place.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.norm(x) @ self.byte.weight.t()
        return F.cross_entropy(logits.flatten(0, 1), following.flatten())


class Pretrained(nn.Module):
    """The same of a model of transformers, for its own tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, following: Tensor) -> Tensor:
        logits = self.model(input_ids=ids, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), following.flatten())


@dataclass(frozen=True)
class Task:
    """What every run starts from: a module that returns a loss, the batches of its steps, a learning rate."""

    model: nn.Module
    batches: tuple[Batch, ...]
    rate: float

    def train(self, compiler: Compiler = lambda f: f, advance: Callable[[], None] = lambda: None) -> list[float]:
        """The loss before each step of AdamW. compiler: of the model and of the optimizer's step."""
        model = copy.deepcopy(self.model)
        optimizer = self.optimizer(model)
        loss_of, update = compiler(model), compiler(optimizer.step)
        losses: list[Tensor] = []
        for ids, following in self.batches:
            loss = loss_of(ids, following)
            loss.backward()
            update()
            optimizer.zero_grad()
            losses.append(loss.detach())
            advance()
        return [float(loss) for loss in losses]

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=self.rate, betas=(0.9, 0.95), foreach=True)


def text() -> str:
    """Half a million letters of English about Python."""
    return "\n".join(topics.topics[name] for name in sorted(topics.topics))


def task(steps: int, sizes: Sizes | None = None, weights: str = "random", device: str = "cpu") -> Task:
    """With weights of a fixed seed, or the pretrained ones; batches are windows of the text at random places."""
    if sizes is None:
        sizes = Sizes() if device == "cpu" else GPU
    if weights == "smollm2":
        loaded = smollm2.load()
        model: nn.Module = Pretrained(loaded.step.model)
        tokens = torch.tensor(loaded.tokenizer(text()[:100_000]).input_ids)
        sizes = Sizes(context=sizes.context, batch=max(sizes.batch // 8, 1), rate=3e-5)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = GPT(sizes)
        tokens = torch.tensor(list(text().encode()))
    draws = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(steps):
        starts = torch.randint(0, len(tokens) - sizes.context, (sizes.batch, 1), generator=draws)
        rows = tokens[starts + torch.arange(sizes.context + 1)].to(device)
        batches.append((rows[:, :-1].contiguous(), rows[:, 1:].contiguous()))
    return Task(model.train().to(device), tuple(batches), sizes.rate)


# -- eager mode again -----------------------------------------------------------------------------


def reordered(seed: int) -> Callable[[Task], Task]:
    """The rows of each batch in another order: the same mean, added up in another way."""

    def change(given: Task) -> Task:
        draws = torch.Generator().manual_seed(seed)
        batches = []
        for ids, following in given.batches:
            order = torch.randperm(len(ids), generator=draws).to(ids.device)
            batches.append((ids[order], following[order]))
        return Task(given.model, tuple(batches), given.rate)

    return change


def nudged(seed: int) -> Callable[[Task], Task]:
    """A third of the weights one unit in the last place up, a third down."""

    def change(given: Task) -> Task:
        draws = torch.Generator().manual_seed(seed)
        model = copy.deepcopy(given.model)
        with torch.no_grad():
            for p in model.parameters():
                way = torch.randint(-1, 2, p.shape, generator=draws).to(p.device)
                p.copy_(torch.where(way == 0, p, torch.nextafter(p, p + way)))
        return Task(model, given.batches, given.rate)

    return change


@dataclass(frozen=True)
class Result:
    """Losses by step. again: of eager mode with its sums in another order or its weights in the last place changed."""

    eager: list[float]
    compiled: list[float]
    again: tuple[list[float], ...]

    @property
    def differences(self) -> list[float]:
        return [abs(a - b) for a, b in zip(self.eager, self.compiled, strict=True)]

    @property
    def spread(self) -> list[float]:
        """The largest difference of any two runs of eager mode."""
        return [max(step) - min(step) for step in zip(self.eager, *self.again, strict=True)]

    @property
    def allowed(self) -> float:
        return max(*self.spread, RESOLUTION * torch.finfo(torch.float32).eps * max(self.eager))

    @property
    def equal(self) -> bool:
        """Never further from eager mode than two of its own runs came from each other; NaN is not equal."""
        return all(d <= self.allowed for d in self.differences)


def compare(given: Task, compiler: Compiler = fusec_compile, again: int = AGAIN) -> Result:
    """All runs of a task."""
    steps = len(given.batches)
    with Progress("eager", steps) as bar:
        eager = given.train(advance=bar.advance)
    with Progress("compiled", steps) as bar:
        compiled = given.train(compiler, bar.advance)
    changes = [(reordered if i % 2 == 0 else nudged)(i) for i in range(again)]
    with Progress(f"eager, {again} runs more", again * steps) as bar:
        runs = tuple(change(given).train(advance=bar.advance) for change in changes)
    return Result(eager, compiled, runs)


# -- the demo -------------------------------------------------------------------------------------


def run(out: Path, steps: int = 50, weights: str = "random") -> int:
    """The demo: prints losses, curves, what a step was compiled to; writes kernels to `out`. 1 where losses differ."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with waiting("loading text and weights"):
        given = task(steps, weights=weights, device=device)
    count = sum(p.numel() for p in given.model.parameters())
    name = "a small GPT" if weights == "random" else "SmolLM2"
    heading(f"{name} ({count:,} parameters, float32) learns Python's documentation, {steps} steps of AdamW")
    result = compare(given)
    print("\n".join(_losses(result)))
    heading("Loss")
    print("\n".join(panels({"eager": result.eager, "compiled by fusec": result.compiled}, "loss")))
    path = out / "loss.png"
    curves = {"eager": result.eager, "compiled by fusec": result.compiled}
    if picture(path, curves, {"compiled": result.differences, "eager against itself": result.spread}):
        print(f"\nthe same in {path}")
    print(f"\n{_verdict(result)}")

    heading("What was compiled: the loss and its gradients")
    step, update = _explained(given)
    print(step)
    heading("One step")
    print("\n".join(_totals(step, update)))
    show_kernels(step, out)
    return 0 if result.equal else 1


def _losses(result: Result) -> list[str]:
    steps = len(result.eager)
    shown = sorted({0, steps - 1, *range(4, steps, 5)})
    rows = [["step", "eager", "compiled by fusec", "difference", "eager against itself"]]
    for i in shown:
        losses = (f"{result.eager[i]:.5f}", f"{result.compiled[i]:.5f}")
        rows.append([str(i + 1), *losses, f"{result.differences[i]:.1e}", f"{result.spread[i]:.1e}"])
    return table(rows, left=0)


def _verdict(result: Result) -> str:
    how = f"{len(result.again) + 1} runs: rows of a batch in another order, weights changed in the last place"
    answer = "equal within" if result.equal else "NOT equal: beyond"
    return (
        f"largest difference of a compiled loss: {max(result.differences):.1e}\n"
        f"eager against itself:                  {max(result.spread):.1e}  ({how})\n"
        f"{answer} the spread of eager against itself ({result.allowed:.1e} allowed)"
    )


def _explained(given: Task) -> tuple[Explanation, Explanation]:
    """Of the loss with its gradients, and of the optimizer's step."""
    model = copy.deepcopy(given.model)
    optimizer = given.optimizer(model)

    def step(ids: Tensor, following: Tensor) -> None:
        model(ids, following).backward()

    found = explain(step)(*given.batches[0])
    optimizer.step()  # makes its state
    return found, explain(optimizer.step)()


def _totals(step: Explanation, update: Explanation) -> list[str]:
    parts = {"loss and gradients": step, "AdamW": update}
    rows = [["", "launches, eager", "fusec", "bytes moved, eager", "fusec", "peak memory, eager", "fusec"]]
    for name, e in parts.items():
        rows.append([name, *_cells(e.eager, e.fused)])
    rows.append(["a step", *_cells(step.eager + update.eager, step.fused + update.fused)])
    return table(rows)


def _cells(eager: Totals, fused: Totals) -> list[str]:
    launches = [str(eager.launches), str(fused.launches)]
    pairs = itertools.chain((eager.bytes, fused.bytes), (eager.peak, fused.peak))
    return [*launches, *(format_bytes(n) for n in pairs)]
