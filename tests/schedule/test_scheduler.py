"""The passes together: random programs answer alike at every stage, and a kernel says why it ends."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusec.ir.kernels import KernelPlan
from tests.schedule.nests import agrees, kernels, program, scheduled

OPS = ("exp", "neg", "abs", "sin")
READS = ("8*p0 + p1", "8*p1 + p0", "p1", "8*p0", "63 - 8*p0 - p1", "8*p0 + (p1 + 3)%8", "8*p0 + p1//2")


@st.composite
def chains(draw: st.DrawFn) -> tuple[str, str]:
    """Nests over 8 x 8, each reads one or two earlier buffers in some order; some reduce a row and broadcast it."""
    text: list[str] = []
    names = ["x"]
    for n in range(draw(st.integers(2, 6))):
        a, b = draw(st.sampled_from(names)), draw(st.sampled_from(names))
        first, second = draw(st.sampled_from(READS)), draw(st.sampled_from(READS))
        op = draw(st.sampled_from(OPS))
        target = f"t{n}"
        if draw(st.integers(0, 3)) == 0:
            text.append(
                f"nest m{n} (p0<8, r0<8):\n%0:f32 = load {a}[{first.replace('p1', 'r0')}]\n"
                f"%1:f32 = max %0 over r0\nstore s{n}[p0], %1\n"
                f"nest n{n} (p0<8, p1<8):\n%0:f32 = load s{n}[p0]\n%1:f32 = load {b}[{second}]\n"
                f"%2:f32 = sub %0, %1\nstore {target}[8*p0 + p1], %2"
            )
        else:
            text.append(
                f"nest n{n} (p0<8, p1<8):\n%0:f32 = load {a}[{first}]\n%1:f32 = load {b}[{second}]\n"
                f"%2:f32 = sub %0, %1\n%3:f32 = sin %2\n%4:f32 = {op} %3\nstore {target}[8*p0 + p1], %4"
            )
        names.append(target)
    returned = sorted({names[-1], draw(st.sampled_from(names[1:]))})
    return "\n".join(text), ", ".join(returned)


@settings(max_examples=25)
@given(chains(), st.sampled_from(["fast", "eager"]))
def test_random_chains_of_nests_keep_their_answers(chain: tuple[str, str], precision: str) -> None:
    text, returns = chain
    sizes = {f"t{n}": "f32[8, 8]" for n in range(6) if f" t{n}[" in text}
    sizes |= {f"s{n}": "f32[8]" for n in range(6) if f"s{n}[" in text}
    before = program(text, inputs="x", returns=returns, x="f32[8, 8]", **sizes)
    steps = agrees(before, torch.linspace(-2, 2, 64).reshape(8, 8), precision=precision)
    assert sum(isinstance(s, KernelPlan) for s in steps.steps) <= len(before.nodes)


@pytest.mark.parametrize(
    ("returns", "sentence"),
    [("mm", "add goes to aten.mm, a library call"), ("add", "its result leaves the graph")],
)
def test_a_kernel_says_why_it_ends(returns: str, sentence: str) -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        return y @ y if returns == "mm" else y

    kernel = kernels(scheduled(fn, torch.randn(16, 16)))[0]
    assert kernel.boundary == sentence


def test_buffers_nobody_uses_are_gone() -> None:
    steps = scheduled(lambda x: (x.exp() + 1).sum(1), torch.randn(17, 33))
    assert len(steps.buffers) == 2
