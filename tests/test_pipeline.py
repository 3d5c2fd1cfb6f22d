"""The passes in order, and what they leave behind: records, dumps, counters."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fusec.capture.decompositions import decomposition_table
from fusec.capture.graph import CapturedGraph
from fusec.config import Config
from fusec.ir.evaluate import evaluate_program
from fusec.pipeline import CompiledGraph, Fallback, Stats, compile_graph, compile_passes


def captured(fn: Callable[..., Any], *inputs: Tensor, name: str = "g") -> CapturedGraph:
    graph = make_fx(fn, decomposition_table=decomposition_table(), tracing_mode="fake")(*inputs)
    values = tuple(n.meta["val"] for n in graph.graph.nodes if n.op == "placeholder")
    return CapturedGraph(graph, values, tuple(f"x{i}" for i in range(len(values))), "inference", name)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(cache_dir=tmp_path / "cache", workers=0)


def normalized(x: Tensor, w: Tensor) -> tuple[Tensor]:
    return (torch.nn.functional.layer_norm(torch.nn.functional.gelu(x), [x.shape[-1]], w),)


X, W = torch.randn(6, 33), torch.randn(33)


def test_a_record_holds_what_every_pass_made(config: Config) -> None:
    record, executable = compile_passes(captured(normalized, X, W), config, Stats())
    torch.testing.assert_close(executable(X, W)[0], normalized(X, W)[0])
    torch.testing.assert_close(evaluate_program(record.program, [X, W])[0], normalized(X, W)[0])
    names = [name for name, _ in record.stages]
    assert names == ["program", "simplified", "schedule", "buffers", "kernels", "wrapper", "build"]
    assert all(seconds >= 0 for _, seconds in record.stages)
    (plan,) = record.plans
    assert "@triton.jit" in record.sources[plan.name].text and "def call" in record.wrapper


def test_fusion_off_makes_more_launches_and_the_same_answer(config: Config) -> None:
    graph = captured(normalized, X, W)
    counts = []
    for fusion in (True, False):
        stats = Stats()
        compiled = compile_graph(graph, config.updated({"fusion": fusion}), stats)
        torch.testing.assert_close(compiled(X, W)[0], normalized(X, W)[0])
        counts.append(stats.kernels_launched)
    assert counts[0] == 1 and counts[1] > 1


@pytest.mark.parametrize("precision", ["fast", "eager"])
def test_bfloat16_is_at_least_as_near_to_float64_as_eager(precision: str, config: Config) -> None:
    x, w = X.bfloat16(), W.bfloat16()
    compiled = compile_graph(captured(normalized, x, w), config.updated({"precision": precision}), Stats())
    exact = normalized(x.double(), w.double())[0]
    (got,), (eager,) = compiled(x, w), normalized(x, w)
    assert got.dtype is torch.bfloat16
    assert (got - exact).abs().max() <= 1.5 * (eager - exact).abs().max()
    assert (got - exact).square().mean() <= 1.1 * (eager - exact).square().mean()


def test_an_empty_graph_and_one_that_returns_its_input(config: Config) -> None:
    stats = Stats()
    assert compile_graph(captured(lambda x: (x,), X), config, stats)(X)[0].data_ptr() == X.data_ptr()
    assert compile_graph(captured(lambda x: (), X), config, stats)(X) == []
    assert stats.kernels_launched == 0 and stats.fallbacks == []


def test_equal_layers_share_a_kernel_and_unequal_ones_do_not(config: Config) -> None:
    def layers(x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor]:
        for w in (a, b, a):
            x = torch.softmax(x * w, -1) @ x.mT @ x
        return (torch.softmax(x + a, -1),)

    record, executable = compile_passes(captured(layers, X, W, W + 1), config, Stats())
    torch.testing.assert_close(executable(X, W, W + 1)[0], layers(X, W, W + 1)[0])
    made = [record.sources[plan.name] for plan in record.plans]
    assert len(made) == 4 and made[1] is made[2] and made[2].text != made[3].text  # the first reads an input


def test_numbered_stages_and_kernels_that_run_alone(config: Config, tmp_path: Path) -> None:
    compile_graph(
        captured(lambda x, w: (torch.softmax(x * w, -1),), X, W, name="softmax_0"),
        config.updated({"dump": tmp_path}),
        Stats(),
    )
    folder = tmp_path / "softmax_0"
    assert sorted(p.name for p in folder.glob("*.txt")) == [
        *("01_program.txt", "02_simplified.txt", "03_schedule.txt", "04_buffers.txt", "05_wrapper.txt"),
    ]
    assert "allocate" in (folder / "04_buffers.txt").read_text()
    (script,) = (folder / "kernels").iterdir()
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: (torch.cat([torch.ones(x.shape[0], 1), x, torch.zeros(x.shape[0], 2)], -1),),
        lambda x: (torch.where(x > 0, 1.0, 0.0), torch.where(x > 0, 0, 1)),
        lambda x: (torch.linalg.inv(x @ x.mT + 9 * torch.eye(x.shape[0])),),
    ],
)
def test_nothing_falls_back(fn: Callable[..., Any], config: Config) -> None:
    stats = Stats()
    compiled = compile_graph(captured(fn, X), config.updated({"strict": True}), stats)
    torch.testing.assert_close(list(compiled(X)), list(fn(X)))
    assert [f for f in stats.fallbacks if f.level != "op"] == []


def test_ops_that_are_not_lowered_are_counted_with_their_reason(config: Config) -> None:
    stats = Stats()
    with torch.library._scoped_library("fusec_test_pipeline", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
        twice = torch.ops.fusec_test_pipeline.twice
        x = torch.randn(5, 5)
        fn = captured(lambda x: (twice(x) + 1, x @ x, torch.frexp(x)[0]), x)
        with pytest.warns(UserWarning, match=r"aten.frexp.Tensor: runs as a library call: no lowering"):
            got = compile_graph(fn, config, stats)(x)
    torch.testing.assert_close(got[0], x * 2 + 1)
    assert stats.extern_calls == 3
    (fallback,) = stats.fallbacks
    assert fallback.level == "op" and "frexp" in fallback.op and "no lowering" in fallback.reason


def test_a_fallback_is_warned_of_once_and_counted_every_time() -> None:
    stats = Stats()
    fallback = Fallback("graph", "graph g", "runs as eager PyTorch would: because", "model.py:31")
    with pytest.warns(
        UserWarning, match=r"fusec: graph g \(model\.py:31\): runs as eager PyTorch would: because"
    ) as seen:
        stats.fall_back(fallback)
        stats.fall_back(fallback)
    assert len(seen) == 1 and len(stats.as_dict()["fallbacks"]) == 2


def test_stats_clear_in_place(config: Config) -> None:
    stats = Stats()
    compiled = compile_graph(captured(lambda x: (x + 1,), X), config, stats)
    stats.clear()
    compiled(X)
    assert stats.as_dict()["graphs"] == 0 and stats.as_dict()["kernels_launched"] == 1


def test_calls_are_counted_per_graph(config: Config) -> None:
    compiled = compile_graph(captured(lambda x: (x + 1,), X), config, Stats())
    assert isinstance(compiled, CompiledGraph) and compiled.calls == 0
    for _ in range(3):
        compiled(X)
    assert compiled.calls == 3
