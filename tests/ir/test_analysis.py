"""Analyses and rewrites of SSA lines."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from fusec.ir.analysis import (
    attr_key,
    eliminate_dead,
    instr_key,
    rename,
    renumber,
    substitute_axes,
    unique_elements,
    used_values,
    varying,
)
from fusec.ir.index import as_expr, axis_symbol, evaluate, size_symbol, value_symbol
from fusec.ir.overlap import addresses, provably_disjoint
from fusec.ir.parser import parse_program
from fusec.ir.printer import format_instr
from fusec.ir.types import Axis, Instr, LoopNest

NEST = """
program f (x, rows)
  in  x: f32[4, 6] (6, 1) cpu
  in  rows: i64[4] (1) cpu
  out y: f32[4] (1) cpu
nest n0 (p0<4, r0<6, r1<1):
  %0:i64 = load rows[p0]
  %1:f32 = load x[6*%0 + r0]
  %2:f32 = const 2.0
  %3:f32 = mul %1, %2
  %4:i64 = index r0
  %5:f32 = sum %3 over r0
  %6:bool = lt %0, %0
  %7:f32 = load x[0], mask=%6, other=0.0
  store y[p0], %5
return y
"""


def nest() -> LoopNest:
    node = parse_program(NEST).nodes[0]
    assert isinstance(node, LoopNest)
    return node


def test_varying_follows_addresses_masks_and_reductions() -> None:
    shown = {name: "".join(sorted(axes)) for name, axes in varying(nest().body, nest().axes).items()}
    assert shown == {
        "%0": "p0", "%1": "p0r0", "%2": "", "%3": "p0r0", "%4": "r0", "%5": "p0", "%6": "p0", "%7": "p0"
    }  # fmt: skip


def test_dead_values_go_and_addresses_keep_theirs() -> None:
    assert [i.out for i in eliminate_dead(nest().body)] == ["%0", "%1", "%2", "%3", "%5", None]
    assert "%0" in used_values(eliminate_dead(nest().body))


def test_rename_reaches_into_addresses() -> None:
    renamed = rename(nest().body, "a_")
    assert format_instr(renamed[1]) == "%a_1:f32 = load x[6*%a_0 + r0]"
    assert rename(nest().body, {"%0": "%9"})[1].value_operands == ("%9",)
    assert renumber(renamed) == nest().body


def test_substitute_axes_rewrites_every_index() -> None:
    q = axis_symbol("q", 12)
    lines = substitute_axes(nest().body, {"p0": q // 3, "r0": 2 * (q % 3)})
    assert format_instr(lines[0]) == "%0:i64 = load rows[q//3]"
    assert format_instr(lines[4]) == "%4:i64 = index 2*(q%3)"


def test_keys_tell_constants_apart() -> None:
    values = [0.0, -0.0, 0, False, 1, 1.0, True, float("nan")]
    keys = [attr_key(v) for v in values]
    assert len(set(keys)) == len(values)
    assert attr_key(float("nan")) == attr_key(float("nan"))
    zero, minus = (Instr("%0", "const", (), torch.float32, attrs=(("value", v),)) for v in (0.0, -0.0))
    assert zero == minus and instr_key(zero) != instr_key(minus)


# -- unique elements ------------------------------------------------------------------------------

SETTINGS = settings(max_examples=300, deadline=None, derandomize=True)


@SETTINGS
@given(st.lists(st.tuples(st.integers(-40, 40), st.integers(1, 6)), max_size=5), st.integers(0, 9))
def test_unique_elements_of_linear_indices(terms: list[tuple[int, int]], offset: int) -> None:
    axes = [Axis(f"p{i}", n) for i, (_, n) in enumerate(terms)]
    index = as_expr(offset)
    for axis, (stride, _) in zip(axes, terms, strict=True):
        index = index + stride * axis.symbol
    seen = addresses(index, axes)
    assert seen is not None
    assert unique_elements(index, axes) == len(set(seen.tolist()))


@SETTINGS
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 7), st.integers(1, 7), st.sampled_from(["//", "%", "both"]),
    st.integers(1, 20),
)  # fmt: skip
def test_unique_elements_with_divisions(n: int, m: int, d: int, e: int, kind: str, stride: int) -> None:
    axes = [Axis("p0", n), Axis("p1", m)]
    p, q = (a.symbol for a in axes)
    index = {"//": stride * (p // d) + q % e, "%": (p % d) * stride + q, "both": (stride * p + q) // d % e}[kind]
    values = {evaluate(index, {"p0": i, "p1": j}) for i in range(n) for j in range(m)}
    assert unique_elements(index, axes) == len(values)


@pytest.mark.parametrize(
    ("strides", "extents", "count"),
    [
        ((4096, 1), (64, 4096), 64 * 4096),  # rows
        ((0, 1), (64, 4096), 4096),  # broadcast
        ((8192, 2), (1 << 14, 4096), (1 << 14) * 4096),  # every other element
        ((1, 1), (1 << 20, 1 << 20), (1 << 21) - 1),  # a window slides over a row
        ((1024, 32, 1), (1 << 10, 32, 32), 1 << 20),  # split axes
        ((-1, 4096), (4096, 8), 8 * 4096),  # flipped
    ],
)
def test_large_accesses_have_closed_forms(strides: tuple[int, ...], extents: tuple[int, ...], count: int) -> None:
    axes = [Axis(f"p{i}", n) for i, n in enumerate(extents)]
    index = as_expr(0)
    for axis, stride in zip(axes, strides, strict=True):
        index = index + stride * axis.symbol
    assert unique_elements(index, axes) == count


def test_unknown_and_empty_accesses() -> None:
    axes = [Axis("p0", 4)]
    assert unique_elements(64 * value_symbol("%0", 9) + axes[0].symbol, axes) is None
    assert unique_elements(axes[0].symbol * size_symbol("n"), axes) is None
    assert unique_elements(axes[0].symbol, [Axis("p0", 4), Axis("p1", 0)]) == 0
    assert unique_elements(as_expr(7), axes) == 1


def test_counting_works_while_torch_traces_with_fake_tensors() -> None:
    axes = [Axis("p0", 7), Axis("p1", 5)]
    with FakeTensorMode():
        assert unique_elements((axes[0].symbol + axes[1].symbol) % 6, axes) == 6


@SETTINGS
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.integers(0, 20)),
    st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.integers(0, 20)),
)
def test_disjointness_is_proved_only_where_it_holds(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> None:
    sets = []
    exprs = []
    for stride, extent, inner, start in (a, b):
        axes = [Axis("p0", extent), Axis("p1", inner)]
        expr = stride * axes[0].symbol + axes[1].symbol + start
        exprs.append(expr)
        sets.append({stride * i + j + start for i in range(extent) for j in range(inner)})
    assert not (provably_disjoint(*exprs) and sets[0] & sets[1])
