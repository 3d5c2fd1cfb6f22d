"""Producers computed where they are read: which ones, with clean indices, and why others are not."""

from __future__ import annotations

import torch

from fusec.config import Config
from fusec.ir.types import LoopNest, Program
from fusec.schedule.inline import inline
from fusec.schedule.once import Once
from tests.schedule.nests import agrees, kernels, program, scheduled

EXP = "nest a (p0<8, p1<16):\n%0:f32 = load x[16*p0 + p1]\n%1:f32 = exp %0\nstore t[16*p0 + p1], %1\n"
X = torch.randn(8, 16)


def inlined(before: Program) -> tuple[list[str], list[str]]:
    """Names of the nests left, and the sentences of the refusals."""
    after, decisions = inline(before, Config(), Once(), frozenset())
    return [n.name for n in after.nodes], [d.reason for d in decisions if not d.accepted]


def one(before: Program) -> LoopNest:
    after, _ = inline(before, Config(), Once(), frozenset())
    (nest,) = after.nodes
    assert isinstance(nest, LoopNest)
    return nest


def test_a_slice_computes_only_what_it_reads() -> None:
    text = EXP + "nest b (p0<8, p1<4):\n%0:f32 = load t[16*p0 + 2*p1 + 3]\nstore y[4*p0 + p1], %0"
    nest = one(program(text, inputs="x", returns="y", x="f32[8, 16]", t="f32[8, 16]", y="f32[8, 4]"))
    assert [str(a.index) for a in nest.loads] == ["16*p0 + 2*p1 + 3"]


def test_a_transpose_is_read_through() -> None:
    text = EXP + "nest b (p0<16, p1<8):\n%0:f32 = load t[p0 + 16*p1]\nstore y[8*p0 + p1], %0"
    before = program(text, inputs="x", returns="y", x="f32[8, 16]", t="f32[8, 16]", y="f32[16, 8]")
    assert [str(a.index) for a in one(before).loads] == ["16*p1 + p0"]
    agrees(before, X)


def test_what_leaves_the_graph_stays_in_memory() -> None:
    text = EXP + "nest b (p0<8):\n%0:f32 = load t[16*p0]\nstore y[p0], %0"
    before = program(text, inputs="x", returns="t, y", x="f32[8, 16]", t="f32[8, 16]", y="f32[8]")
    assert inlined(before) == (["a", "b"], [])
    agrees(before, X)


def test_a_buffer_of_several_writers_stays_in_memory() -> None:
    text = (
        "nest a (p0<4):\n%0:f32 = load x[p0]\nstore t[p0], %0\nnest b (p0<4):\n%0:f32 = load x[p0]\n"
        "%1:f32 = neg %0\nstore t[p0 + 4], %1\n"
    )
    text += "nest c (p0<8):\n%0:f32 = load t[p0]\n%1:f32 = exp %0\nstore y[p0], %1"
    before = program(text, inputs="x", returns="y", x="f32[4]", t="f32[8]", y="f32[8]")
    assert inlined(before)[0] == ["a", "b", "c"]
    agrees(before, torch.randn(4))


def test_what_reads_an_input_that_a_call_changes_later_stays_before_it() -> None:
    text = "nest a (p0<4):\n%0:f32 = load x[p0]\n%1:f32 = exp %0\nstore t[p0], %1\n"
    text += "extern e: _ = aten.copy_.default(x, z) mutates x\n"
    text += "nest b (p0<4):\n%0:f32 = load t[p0]\n%1:f32 = neg %0\nstore y[p0], %1"
    before = program(text, inputs="x, z", returns="y", x="f32[4]", z="f32[4]", t="f32[4]", y="f32[4]")
    steps = agrees(before, torch.randn(4), torch.randn(4))
    assert [s.name for s in steps.steps][1] == "e"


def test_a_read_after_the_change_stays_after_it() -> None:
    text = "extern e: _ = aten.copy_.default(x, z) mutates x\n"
    text += "nest a (p0<4):\n%0:f32 = load x[p0]\n%1:f32 = exp %0\nstore t[p0], %1\n"
    text += "nest b (p0<4):\n%0:f32 = load t[p0]\n%1:f32 = neg %0\nstore y[p0], %1"
    before = program(text, inputs="x, z", returns="y", x="f32[4]", z="f32[4]", t="f32[4]", y="f32[4]")
    steps = agrees(before, torch.randn(4), torch.randn(4))
    assert steps.steps[0].name == "e" and len(steps.steps) == 2


def test_much_work_is_not_repeated_for_every_window() -> None:
    powers = "".join(f"%{i + 1}:f32 = pow %{i}, %{i}\n" for i in range(40))
    text = f"nest a (p0<4096):\n%0:f32 = load x[p0]\n{powers}store t[p0], %40\n"
    text += "nest b (p0<2048, p1<2048):\n%0:f32 = load t[p0 + p1]\nstore y[2048*p0 + p1], %0"
    sizes = {"x": "f32[4096]", "t": "f32[4096]", "y": "f32[2048, 2048]"}
    names, refused = inlined(program(text, inputs="x", returns="y", **sizes))
    assert names == ["a", "b"] and refused[0].startswith("computing a again 1023.0 times costs ")


def test_many_inputs_are_not_read_again_for_two_consumers() -> None:
    lines = ["%0:f32 = load x0[p0]"]
    for i in range(1, 5):
        lines += [f"%l{i}:f32 = load x{i}[p0]", f"%{i}:f32 = add %{i - 1}, %l{i}"]
    text = "nest a (p0<64):\n" + "\n".join(lines) + "\nstore t[p0], %4\n"
    text += "nest b (p0<64):\n%0:f32 = load t[p0]\nstore y[p0], %0\n"
    text += "nest c (p0<64):\n%0:f32 = load t[63 - p0]\nstore z[p0], %0"
    sizes = dict.fromkeys(("x0", "x1", "x2", "x3", "x4", "t", "y", "z"), "f32[64]")
    names, refused = inlined(program(text, inputs="x0, x1, x2, x3, x4", returns="y, z", **sizes))
    assert names == ["a", "b", "c"]
    assert refused == ["a reads 0.00 MB to make 0.00 MB: too much to read again for 2 consumers"] * 2


def rotary(q: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return q * cos + torch.cat((-q[..., 32:], q[..., :32]), -1) * sin


def test_rotary_embedding_is_one_kernel_without_divisions() -> None:
    (kernel,) = kernels(scheduled(rotary, torch.randn(2, 8, 32, 64), torch.randn(32, 64), torch.randn(32, 64)))
    assert all("//" not in str(e) and "%" not in str(e) for i in kernel.body for e in i.index_exprs)


def test_producers_of_a_concatenation_are_computed_in_it() -> None:
    (kernel,) = kernels(scheduled(lambda x, y: torch.cat([x.exp(), y.sin()], 1), torch.randn(8, 5), torch.randn(8, 7)))
    assert [len(i.args) for i in kernel.body if i.op == "load"] == [1, 1], "each source is read under its own mask"
    assert len(kernel.writes) == 1


def test_masks_of_a_chain_of_paddings_keep_names_of_their_own() -> None:
    text, shape = "", 4
    for name, source, target in (("a", "x", "t"), ("b", "t", "u"), ("c", "u", "y")):
        text += (
            f"nest {name} (p0<{shape + 1}):\n%0:i64 = index p0\n%1:i64 = const 1\n%2:bool = ge %0, %1\n"
            f"%3:f32 = load {source}[p0 - 1], mask=%2, other={shape}.0\n%4:f32 = exp %3\nstore {target}[p0], %4\n"
        )
        shape += 1
    before = program(text, inputs="x", returns="y", x="f32[4]", t="f32[5]", u="f32[6]", y="f32[7]")
    names = [i.out for i in one(before).body if i.out is not None]
    assert len(names) == len(set(names))
    agrees(before, torch.randn(4))
