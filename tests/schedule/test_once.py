"""Identical layers are scheduled once, and the schedule is the one that asking anew for every layer gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from fusec.config import Config
from fusec.ir.types import Buffer, LoopNest, Program
from fusec.lowering import lower
from fusec.schedule import schedule, simplify
from fusec.schedule.fuse import fuse_nests
from fusec.schedule.legality import Refusal
from fusec.schedule.once import Once
from tests.property.harness import trace
from tests.schedule.nests import nests, program, scheduled
from tests.schedule.test_scheduler import chains

CONFIG = Config(target="sm_90")


def layers(count: int) -> Program:
    """A residual stack: norm, two matmuls with a gate between them, a softmax mixed in."""
    weights = [torch.randn(64, 64) if i % 3 else torch.randn(64) for i in range(3 * count)]

    def stack(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        for scale, a, b in zip(weights[::3], weights[1::3], weights[2::3], strict=True):
            g = F.layer_norm(x, (64,), scale) @ a
            x = x + (F.silu(g) * torch.softmax(g * scale, -1)) @ b
        return x

    return simplify(lower(trace(stack, torch.randn(32, 64), *weights), CONFIG), CONFIG)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_sharing_answers_changes_nothing(count: int) -> None:
    steps = schedule(layers(count), CONFIG, Once())
    assert steps == schedule(layers(count), CONFIG, Once(share=False))
    assert "$" not in str(steps)


def test_more_layers_ask_more_and_nothing_new() -> None:
    few, many = Once(), Once()
    schedule(layers(4), CONFIG, few)
    schedule(layers(12), CONFIG, many)
    assert many.asked > 2 * few.asked
    assert len(many.answers) == len(few.answers)


@settings(max_examples=25)
@given(chains(), chains())
def test_random_programs_with_shared_answers(first: tuple[str, str], second: tuple[str, str]) -> None:
    once = Once()
    for text, returns in (first, second, first):
        sizes = {f"t{n}": "f32[8, 8]" for n in range(6) if f" t{n}[" in text}
        sizes |= {f"s{n}": "f32[8]" for n in range(6) if f"s{n}[" in text}
        before = program(text, inputs="x", returns=returns, x="f32[8, 8]", **sizes)
        assert schedule(before, Config(), once) == schedule(before, Config(), Once(share=False))


def test_lines_keep_their_own_origins() -> None:
    """Two equal halves of one function, on lines of their own, far apart: each kernel names its own lines."""

    def f(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        y = torch.softmax(x, -1)
        z = y @ w
        return torch.softmax(z, -1)

    steps = scheduled(f, torch.randn(8, 8), torch.randn(8, 8), config=CONFIG)
    first, _, last = steps.steps
    assert first.origins and last.origins
    assert {o.node for o in first.origins}.isdisjoint(o.node for o in last.origins)


PAIR = """
nest {a} (p0<8):
  %0:f32 = load {x}[p0]
  %1:f32 = {op} %0
  store {t}[p0], %1
nest {b} (p0<8):
  %0:f32 = load {t}[p0]
  %1:f32 = load {z}[{where}]
  %2:f32 = add %0, %1
  store {y}[p0], %2
"""


def question(pair: tuple[LoopNest, ...], table: dict[str, Buffer], precision: str) -> object:
    return fuse_nests(pair[0], pair[1], precision)


def asked(once: Once, a: str, b: str, names: str, op: str = "exp", where: str = "p0", **sizes: str) -> object:
    x, t, z, y = names
    text = PAIR.format(a=a, b=b, x=x, t=t, z=z, y=y, op=op, where=where)
    described = {name: sizes.get(name, "f32[8]") for name in sorted({*names})}
    table = program(text, **described).table
    return once(question, nests(text, **described), table, "fast")


def test_the_answer_is_told_in_the_names_of_who_asks() -> None:
    once = Once()
    asked(once, "m", "n", "xtzy")
    told = asked(once, "k", "l", "abcd")
    assert len(once.answers) == 1
    assert isinstance(told, LoopNest)
    assert (told.name, told.reads, told.writes) == ("k+l", ("a", "c"), ("b", "d"))
    assert told == asked(Once(share=False), "k", "l", "abcd")


@pytest.mark.parametrize(
    ("names", "change"),
    [
        ("abad", {}),  # the second nest reads what the first one does
        ("abcd", {"op": "sin"}),
        ("abcd", {"where": "7 - p0"}),
        ("abcd", {"c": "f32[16]"}),
        ("abcd", {"c": "f64[8]"}),
    ],
)
def test_what_differs_in_more_than_names_is_asked_anew(names: str, change: dict[str, str]) -> None:
    once = Once()
    asked(once, "m", "n", "xtzy")
    told = asked(once, "k", "l", names, **change)
    assert len(once.answers) == 2
    assert told == asked(Once(share=False), "k", "l", names, **change)


def test_a_refusal_names_the_nests_that_asked() -> None:
    once = Once()
    asked(once, "m", "n", "xtzt")
    assert asked(once, "k", "l", "abcb") == Refusal("k and l both write b")
    assert len(once.answers) == 1


@pytest.mark.parametrize(("first", "second", "answers"), [("0.0", "-0.0", 2), ("nan", "nan", 1), ("1.0", "1.0", 1)])
def test_constants_are_the_same_when_they_mean_the_same(first: str, second: str, answers: int) -> None:
    once = Once()
    for name, constant in (("a", first), ("b", second)):
        made = program(f"nest n{name} (p0<8):\n%0:f32 = const {constant}\nstore {name}[p0], %0", **{name: "f32[8]"})
        once(lone, [n for n in made.nodes if isinstance(n, LoopNest)], made.table)
    assert len(once.answers) == answers


def lone(given: tuple[LoopNest, ...], table: dict[str, Buffer]) -> LoopNest:
    return given[0]
