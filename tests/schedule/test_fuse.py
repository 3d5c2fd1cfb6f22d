"""Each rule of fusion on a function a user would write: how many launches, why, and the same answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fusec.config import Config
from fusec.ir.kernels import KernelPlan, Strategy
from fusec.ir.types import Extern, Program
from fusec.schedule import schedule
from fusec.schedule.dependence import Dependence
from tests.schedule.nests import agrees, kernels, program, reasons, scheduled

ROWS, WEIGHT = torch.randn(200, 1000), torch.randn(1000)


def rms_norm(x: Tensor, w: Tensor) -> Tensor:
    x = x + 1
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * w


@pytest.mark.parametrize(
    ("fn", "inputs", "strategy"),
    [
        (lambda x: (x.exp() + 1).sin(), (ROWS,), Strategy.FLAT),
        (lambda x: (x.exp(), x.exp().neg()), (ROWS,), Strategy.FLAT),
        (lambda x, w: (x * w, x + 1), (ROWS, WEIGHT), Strategy.FLAT),
        (lambda x: x.abs().sum(1).sqrt(), (ROWS,), Strategy.PERSISTENT_ROW),
        (lambda x: torch.softmax(x * 2, -1) + 1, (ROWS,), Strategy.PERSISTENT_ROW),
        (lambda x, w: F.layer_norm(x, (1000,), w, w), (ROWS, WEIGHT), Strategy.PERSISTENT_ROW),
        (rms_norm, (ROWS, WEIGHT), Strategy.PERSISTENT_ROW),
        (lambda x: F.group_norm(x, 4), (torch.randn(64, 16, 5, 7),), Strategy.PERSISTENT_ROW),
        (lambda x: (x * 2, x.t().contiguous() + 1), (torch.randn(300, 200),), Strategy.TILE_2D),
        (lambda x: F.layer_norm(x, (20000,)), (torch.randn(140, 20000),), Strategy.LOOPED_ROW),
    ],
    ids=["chain", "outputs", "siblings", "prologue+epilogue", "softmax", "layer_norm", "rms_norm", "group_norm",
         "transpose", "long rows"],
)  # fmt: skip
def test_one_kernel(fn: Callable[..., Any], inputs: tuple[Tensor, ...], strategy: Strategy) -> None:
    (kernel,) = kernels(scheduled(fn, *inputs))
    assert kernel.strategy is strategy


def test_mean_variance_and_the_normalised_row_read_the_input_once() -> None:
    (kernel,) = kernels(scheduled(lambda x: F.layer_norm(x, (1000,)), ROWS))
    assert [i.op for i in kernel.body].count("load") == 1
    assert kernel.cost.bytes_read == kernel.cost.bytes_written == ROWS.nbytes


def test_an_intermediate_never_reaches_memory() -> None:
    steps = scheduled(lambda x: torch.softmax(x, -1), ROWS)
    (kernel,) = kernels(steps)
    assert len(kernel.internal) == 2 and set(kernel.internal) & steps.table.keys() == set()
    assert all("never reaches memory" in reason for reason in reasons(steps, accepted=True))


def test_without_fusion_each_op_is_a_launch() -> None:
    apart = scheduled(lambda x: torch.softmax(x, -1), ROWS, config=Config(fusion=False))
    assert len(kernels(apart)) == 3 and apart.decisions == ()


def test_nothing_reaches_across_a_library_call() -> None:
    steps = scheduled(lambda x, w: (lambda a: a * 2 + a @ w)(x.exp()), torch.randn(64, 64), torch.randn(64, 64))
    first, call, last = steps.steps
    assert isinstance(first, KernelPlan) and isinstance(call, Extern) and isinstance(last, KernelPlan)
    assert reasons(steps, accepted=False) == [f"{call.name} must run between {first.nests[0]} and {last.nests[0]}"]


def test_a_cycle_through_another_kernel_is_refused() -> None:
    text = "nest a (p0<8):\n%0:f32 = load x[p0]\n%1:f32 = exp %0\nstore t[p0], %1\n"
    text += "extern e: u = aten.sin.default(t)\n"
    text += "nest b (p0<8):\n%0:f32 = load u[p0]\n%1:f32 = load x[p0]\n%2:f32 = add %0, %1\nstore y[p0], %2\n"
    text += "nest c (p0<8):\n%0:f32 = load t[p0]\n%1:f32 = load x[p0]\n%2:f32 = mul %0, %1\nstore z[p0], %2"
    sizes = dict.fromkeys(("x", "t", "u", "y", "z"), "f32[8]")
    steps = agrees(program(text, inputs="x", returns="y, z", **sizes), torch.randn(8))
    assert [s.nests if isinstance(s, KernelPlan) else s.name for s in steps.steps] == [("a", "c"), "e", ("b",)]
    assert any(r.startswith("e must run between a") for r in reasons(steps, accepted=False))


def test_a_call_that_writes_an_input_keeps_its_place() -> None:
    text = "nest a (p0<8):\n%0:f32 = load x[p0]\n%1:f32 = exp %0\nstore y[p0], %1\n"
    text += "extern e: _ = aten.copy_.default(x, w) mutates x\n"
    text += "nest b (p0<8):\n%0:f32 = load x[p0]\n%1:f32 = exp %0\nstore z[p0], %1"
    sizes = dict.fromkeys(("x", "w", "y", "z"), "f32[8]")
    steps = agrees(program(text, inputs="x, w", returns="y, z", **sizes), torch.randn(8), torch.randn(8))
    assert len(steps.steps) == 3 and steps.steps[1].name == "e"


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 0), (1, 1), (17, 1), (1, 17)])
def test_shapes_without_and_with_one_element(shape: tuple[int, ...]) -> None:
    scheduled(lambda x: (torch.softmax(x, -1), x.sum(-1), x.sum(), x * 2), torch.randn(shape))


@pytest.mark.parametrize("precision", ["fast", "eager"])
def test_a_bfloat16_round_trip_the_user_wrote_rounds(precision: str) -> None:
    def fn(x: Tensor) -> Tensor:
        return (x.to(torch.bfloat16).float() - x) * 1000

    x = torch.rand(1000) + 1
    steps = scheduled(fn, x, config=Config(precision=precision))
    (kernel,) = kernels(steps)
    assert [i.dtype for i in kernel.body if i.op == "cast"].count(torch.bfloat16) == 1


def block(layers: int) -> Callable[..., Tensor]:
    def fn(x: Tensor, w: Tensor, g: Tensor, cos: Tensor) -> Tensor:
        table = cos.cos()
        for _ in range(layers):
            x = x + (rms_norm(x, g) @ w) * table
        return x

    return fn


def test_decisions_and_launches_grow_with_the_layers_not_their_square() -> None:
    inputs = torch.randn(8, 64), torch.randn(64, 64) / 64, torch.randn(64), torch.randn(8, 64)
    few, many = (scheduled(block(n), *inputs) for n in (6, 48))
    assert len(many.steps) == 8 * (len(few.steps) - 1) + 1 or len(many.steps) <= 8 * len(few.steps)
    assert len(many.decisions) <= 10 * len(few.decisions)


def test_a_store_that_goes_may_take_the_row_with_it() -> None:
    """Its store was what said which axis is contiguous: what is left may be no kernel of rows and columns."""
    before = program(
        """
nest a (p0<32, p1<5, r0<24):
  %0:f32 = load g[120*p0 + 24*p1 + r0]
  %1:f32 = load x[120*p0 + 24*p1 + r0]
  %2:f32 = mul %0, %1
  store t[120*p0 + 24*p1 + r0], %2
  %3:f32 = sum %2 over r0
  %4:f32 = sub %2, %3
  store y[160*r0 + 5*p0 + p1], %4
nest b (p0<5, p1<24, r0<32):
  %0:f32 = load t[120*r0 + 24*p0 + p1]
  %1:f32 = sum %0 over r0
  store z[24*p0 + p1], %1
""",
        inputs="g, x",
        returns="y, z",
        g="f32[32, 5, 24]",
        x="f32[32, 5, 24]",
        t="f32[32, 5, 24]",
        y="f32[24, 32, 5]",
        z="f32[5, 24]",
    )
    steps = agrees(before, torch.randn(32, 5, 24), torch.randn(32, 5, 24))
    assert [r for r in reasons(steps, accepted=False) if "reduce over different axes" in r]
    assert len(steps.steps) == 2


NESTED = """
nest rows (p0<{n}, p1<{q}, r0<{r}):
  %0:f32 = load x[{qr}*p0 + {r}*p1 + r0]
  %1:f32 = sum %0 over r0
  store s[{q}*p0 + p1], %1
{between}
nest total (p0<{n}, r0<{q}):
  %0:f32 = load {read}[{q}*p0 + r0]
  %1:f32 = load w[r0]
  %2:f32 = mul %0, %1
  %3:f32 = sum %2 over r0
  store t[p0], %3
nest apply (p0<{n}, p1<{qr}):
  %0:f32 = load x[{qr}*p0 + p1]
  %1:f32 = load t[p0]
  %2:f32 = sub %0, %1
  store y[{qr}*p0 + p1], %2
"""


def nested(n: int, q: int, r: int, between: str = "", read: str = "s") -> Program:
    """y = x - sum over q of w * (sum over r of x), and the inner sums: what the last reads the other two make."""
    text = NESTED.format(n=n, q=q, r=r, qr=q * r, between=between, read=read)
    x, s = f"f32[{n}, {q}, {r}]", f"f32[{n}, {q}]"
    return program(text, inputs="x, w", returns="y, s", x=x, w=f"f32[{q}]", s=s, u=s, t=f"f32[{n}]", y=x)


@pytest.mark.parametrize("sizes", [(200, 8, 64), (200, 5, 17), (150, 3, 4097), (200, 12, 1000), (3, 7, 5), (1, 2, 3)])
def test_what_stands_between_two_readers_of_a_buffer_joins_them(sizes: tuple[int, int, int]) -> None:
    n, q, r = sizes
    steps = agrees(nested(n, q, r), torch.randn(n, q, r), torch.randn(q))
    (kernel,) = kernels(steps)
    assert kernel.nests == ("rows", "total", "apply") and kernel.internal == ("t",)
    assert kernel.cost.bytes_read == 4 * (n * q * r + q) and kernel.cost.bytes_written == 4 * (n * q * r + n * q)
    assert any("and 2 launches, t never reaches memory" in r for r in reasons(steps, accepted=True))


def test_all_that_stands_between_joins_or_none() -> None:
    """A row of 17000 is not held: the sums share no kernel with what uses them, and say so."""
    steps = agrees(nested(200, 3, 17000), torch.randn(200, 3, 17000), torch.randn(3))
    assert {k.nests for k in kernels(steps)} >= {("rows",), ("apply",)}
    (reason,) = [r for r in reasons(steps, accepted=False) if r.startswith("total must run between rows and apply: ")]
    assert "too long to be held" in reason


def test_a_library_call_between_keeps_its_place() -> None:
    before = nested(200, 8, 64, "extern e: u = aten.sin.default(s)", read="u")
    steps = agrees(before, torch.randn(200, 8, 64), torch.randn(8))
    assert [s.name if isinstance(s, Extern) else s.nests for s in steps.steps][:2] == [("rows",), "e"]
    assert "e must run between rows and apply" in reasons(steps, accepted=False)


def test_a_nest_that_stands_alone_keeps_its_place() -> None:
    steps = schedule(nested(200, 8, 64), Config(), apart={"total"})
    assert [k.nests for k in kernels(steps)] == [("rows",), ("total",), ("apply",)]


def test_nodes_between_are_in_an_order_they_may_run_in() -> None:
    links = [("c", "b", "a"), ("d", "c"), ("b", "a"), ("f", "d", "b"), ("e", "a")]  # (node, what it reads ...)
    order = {"a": 0} | {name: 1 + i for i, name in enumerate("bcdef")}
    text = "".join(
        f"nest {name} (p0<8):\n"
        + "".join(f"%{i}:f32 = load {r}[p0]\n" for i, r in enumerate(reads))
        + f"store {name}[p0], %0\n"
        for name, *reads in [("a", "x"), *sorted(links, key=lambda link: order[link[0]])]
    )
    nodes = program(text, inputs="x", returns="f", **dict.fromkeys("xabcdef", "f32[8]")).nodes
    dependence = Dependence(nodes)
    assert dependence.between(0, 5) == dependence.between(5, 0) == (1, 2, 3)
    assert dependence.between(0, 1) == dependence.between(4, 5) == ()
    merged = dependence.merge(dependence.merge(0, 1), 2)
    assert dependence.between(merged, 5) == (3,)
