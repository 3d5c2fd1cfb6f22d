"""The fallback ladder: a fault in any part costs speed and one warning, never the answer."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusec
from fusec import pipeline
from fusec.errors import BuildError, CacheWarning, FallbackWarning, FusecError, LoweringError, VerificationError
from fusec.ir.kernels import KernelPlan
from fusec.lowering.registry import LOWERINGS
from fusec.schedule import scheduler

pytestmark = pytest.mark.usefixtures("clean")  # a cache of its own, counters at zero


def gated(x: Tensor, y: Tensor) -> Tensor:
    return torch.softmax(x * torch.sigmoid(y), -1)


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


def call(fn: Any, *args: Any) -> tuple[Any, list[str]]:
    """The result, and the texts of the FallbackWarnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = fn(*args)
    return result, [str(w.message) for w in caught if issubclass(w.category, FallbackWarning)]


STAGES = ["lower", "simplify", "schedule", "plan_memory", "generate_kernel", "generate_wrapper", "build"]
ARGUMENTS = (torch.randn(5, 17), torch.randn(5, 17))


@pytest.mark.parametrize("stage", STAGES)
def test_a_fault_in_any_stage_runs_the_graph_eagerly(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, stage, failing(RuntimeError("broken on purpose")))
    compiled = fusec.compile(gated)
    got, messages = call(compiled, *ARGUMENTS)
    torch.testing.assert_close(got, gated(*ARGUMENTS))
    (message,) = messages
    assert "graph gated_0" in message and "broken on purpose" in message and "test_ladder.py" in message
    assert call(compiled, *ARGUMENTS)[1] == []  # once
    (fallback,) = fusec.stats()["fallbacks"]
    assert fallback["level"] == "graph" and "RuntimeError: broken on purpose" in fallback["reason"]
    assert fusec.stats()["kernels_launched"] == 0 and fusec.stats()["graphs"] == 1


@pytest.mark.parametrize("stage", STAGES)
def test_strict_makes_it_an_error(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, stage, failing(RuntimeError("broken on purpose")))
    with pytest.raises(FusecError, match=r"graph gated_0 .*test_ladder\.py.*broken on purpose") as caught:
        fusec.compile(gated, options={"strict": True})(*ARGUMENTS)
    assert "torch._dynamo" not in type(caught.value).__module__


@pytest.mark.parametrize("error", [BuildError("ptxas said no"), VerificationError("no such buffer")])
def test_strict_keeps_the_kind_of_a_known_error(error: FusecError, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "build", failing(error))
    with pytest.raises(type(error), match=str(error)):
        fusec.compile(gated, options={"strict": True})(*ARGUMENTS)


def test_a_fault_of_fusion_runs_unfused(monkeypatch: pytest.MonkeyPatch) -> None:
    original = pipeline.build

    def build(schedule: Any, plan: Any, sources: Any, wrapper: Any, config: Any, counters: Any) -> Any:
        if config.fusion:
            raise BuildError("fused kernel does not compile")
        return original(schedule, plan, sources, wrapper, config, counters)

    monkeypatch.setattr(pipeline, "build", build)
    got, messages = call(fusec.compile(gated), *ARGUMENTS)
    torch.testing.assert_close(got, gated(*ARGUMENTS))
    (message,) = messages
    assert "runs without fusion: BuildError: fused kernel does not compile" in message
    assert fusec.stats()["fallbacks"][0]["level"] == "group" and fusec.stats()["kernels_launched"] > 1


def two_chains(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    first = torch.softmax(x * torch.sigmoid(y), -1)
    return first, torch.frexp(first)[0].exp().tanh().sum(-1)  # another group: a library call lies between


def refusing_sigmoid(original: Callable[..., Any], plan_of: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """The pass, failing where sigmoid shares a kernel with another op."""

    def compute(*args: Any, **kwargs: Any) -> Any:
        body = plan_of(*args)
        ops = {i.origin.op for i in body if i.origin is not None}
        if "aten.sigmoid.default" in ops and len(ops) > 1:
            raise error
        return original(*args, **kwargs)

    return compute


@pytest.mark.parametrize("where", ["planned", "generated", "compiled"])
def test_only_the_group_that_fails_is_taken_apart(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fused = fusec.explain(two_chains)(*ARGUMENTS)
    fusec.reset()
    error = ValueError("no common kernel")
    if where == "planned":
        original = refusing_sigmoid(scheduler.plan_group, lambda group, *_: group.nest.body, error)
        monkeypatch.setattr(scheduler, "plan_group", original)
    elif where == "generated":
        original = refusing_sigmoid(pipeline.generate_kernel, lambda plan, *_: plan.body, error)
        monkeypatch.setattr(pipeline, "generate_kernel", original)
    else:
        build = pipeline.build

        def failing_build(schedule: Any, plan: Any, sources: Any, *rest: Any) -> Any:
            plans = [step for step in schedule.steps if isinstance(step, KernelPlan)]
            shared = [{"aten.sigmoid.default"} < {o.op for o in p.origins} for p in plans]
            bad = [source.name for source, both in zip(sources, shared, strict=True) if both]
            if bad:
                raise BuildError("no common kernel", tuple(bad))
            return build(schedule, plan, sources, *rest)

        monkeypatch.setattr(pipeline, "build", failing_build)
    got, messages = call(fusec.compile(two_chains), *ARGUMENTS)
    torch.testing.assert_close(got, two_chains(*ARGUMENTS))
    (message,) = [m for m in messages if "without fusion" in m]
    assert "aten.sigmoid.default" in message and "no common kernel" in message and "test_ladder.py" in message
    assert [f["level"] for f in fusec.stats()["fallbacks"] if f["level"] != "op"] == ["group"]
    apart = fusec.explain(two_chains)(*ARGUMENTS)
    unchanged = {k.source for k in fused.kernels} & {k.source for k in apart.kernels}
    assert len(apart.kernels) > len(fused.kernels) and any("tanh" in text for text in unchanged)


def test_an_op_whose_own_kernel_fails_becomes_a_library_call(monkeypatch: pytest.MonkeyPatch) -> None:
    original = pipeline.generate_kernel

    def generate(plan: Any, *rest: Any) -> Any:
        if any(i.origin is not None and i.origin.op == "aten.sigmoid.default" for i in plan.body):
            raise ValueError("no sigmoid today")
        return original(plan, *rest)

    monkeypatch.setattr(pipeline, "generate_kernel", generate)
    got, messages = call(fusec.compile(gated), *ARGUMENTS)
    torch.testing.assert_close(got, gated(*ARGUMENTS))
    (message,) = messages
    assert "aten.sigmoid.default" in message and "its kernel failed: ValueError: no sigmoid today" in message
    assert "test_ladder.py" in message and [f["level"] for f in fusec.stats()["fallbacks"]] == ["op"]
    assert fusec.stats()["extern_calls"] == 1 and fusec.stats()["kernels_launched"] == 1  # the rest is still fused


def test_a_fault_at_the_first_call_runs_eagerly_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusec.runtime.executable.Executable.run", failing(RuntimeError("launch failed")))
    compiled = fusec.compile(gated)
    for expected in (1, 0, 0):
        got, messages = call(compiled, *ARGUMENTS)
        torch.testing.assert_close(got, gated(*ARGUMENTS))
        assert len(messages) == expected
    assert [f["level"] for f in fusec.stats()["fallbacks"]] == ["call"]
    with pytest.raises(FusecError, match="launch failed"):
        fusec.compile(gated, options={"strict": True})(*ARGUMENTS)


def test_an_error_that_eager_mode_raises_too_is_the_users() -> None:
    embedding = nn.Embedding(4, 3)
    compiled = fusec.compile(lambda i: embedding(i).sort(-1)[0].relu())
    index = torch.tensor([0, 1])
    with torch.no_grad():
        torch.testing.assert_close(compiled(index), embedding(index).sort(-1)[0].relu())
    assert fusec.stats()["fallbacks"] == []


@pytest.mark.parametrize("strict", [False, True])
def test_a_fault_in_one_lowering_keeps_that_op_as_a_call(strict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    aten = torch.ops.aten
    key = aten.sigmoid.default if aten.sigmoid.default in LOWERINGS else aten.sigmoid
    monkeypatch.setitem(LOWERINGS, key, failing(ValueError("unforeseen")))
    if strict:
        with pytest.raises(LoweringError, match=r"aten\.sigmoid\.default.*test_ladder\.py.*unforeseen"):
            fusec.compile(gated, options={"strict": True})(*ARGUMENTS)
        return
    got, messages = call(fusec.compile(gated), *ARGUMENTS)
    torch.testing.assert_close(got, gated(*ARGUMENTS))
    (message,) = messages
    assert "aten.sigmoid.default" in message and "test_ladder.py" in message and "unforeseen" in message
    assert [f["level"] for f in fusec.stats()["fallbacks"]] == ["op"]
    assert fusec.stats()["extern_calls"] == 1 and fusec.stats()["kernels_launched"] >= 1


def uncovered(x: Tensor) -> Tensor:
    return torch.frexp(x * 2)[0] + torch.frexp(x * 3)[0] + 1


def test_an_op_without_a_lowering_warns_once_is_counted_and_is_an_error_when_strict() -> None:
    x = torch.randn(5)
    got, messages = call(fusec.compile(uncovered), x)
    torch.testing.assert_close(got, uncovered(x))
    (message,) = messages
    assert "aten.frexp.Tensor" in message and "no lowering" in message and "test_ladder.py" in message
    assert [f["level"] for f in fusec.stats()["fallbacks"]] == ["op", "op"]
    explanation = fusec.explain(uncovered)(x)
    assert explanation.counts == {"op": 2} and "runs as eager PyTorch (2 ops):" in str(explanation)
    with pytest.raises(LoweringError, match=r"aten\.frexp.*float32\[5\].*test_ladder\.py.*no lowering"):
        fusec.compile(uncovered, options={"strict": True})(x)


def test_complex_numbers_are_library_calls_on_purpose() -> None:
    x = torch.randn(5, dtype=torch.complex64)

    def rotated(x: Tensor) -> Tensor:
        return (x * 1j).abs() + 1

    got, messages = call(fusec.compile(rotated, options={"strict": True}), x)
    torch.testing.assert_close(got, rotated(x))
    assert messages == [] and fusec.stats()["fallbacks"] == [] and fusec.stats()["kernels_launched"] == 1


def test_precompile_refuses_a_graph_that_falls_back_and_accepts_a_library_call(monkeypatch: pytest.MonkeyPatch) -> None:
    _, messages = call(lambda: fusec.precompile(uncovered, (torch.randn(5),), target="sm_90"))
    assert len(messages) == 1 and "aten.frexp" in messages[0]
    monkeypatch.setattr(pipeline, "lower", failing(RuntimeError("broken on purpose")))
    with pytest.raises(FusecError, match=r"sm_90.*uncovered_0.*test_ladder\.py.*broken on purpose"):
        fusec.precompile(uncovered, (torch.randn(5),), target="sm_90")


def test_a_fault_in_the_backward_graph_keeps_the_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    original = pipeline.lower

    def lower(graph: Any, *rest: Any) -> Any:
        if graph.kind == "backward":
            raise RuntimeError("no backward today")
        return original(graph, *rest)

    monkeypatch.setattr(pipeline, "lower", lower)
    x, y = (a.clone().requires_grad_() for a in ARGUMENTS)
    _, messages = call(lambda: fusec.compile(gated)(x, y).square().sum().backward())
    got = [x.grad, y.grad]
    x.grad = y.grad = None
    gated(x, y).square().sum().backward()
    torch.testing.assert_close(got, [x.grad, y.grad])
    assert len(messages) == 1 and "gated_0_backward" in messages[0] and fusec.stats()["kernels_launched"] >= 1


def test_a_fault_of_aot_autograd_runs_dynamos_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusec.capture.dynamo.aot_autograd", failing(RuntimeError("no AOT today")))
    got, messages = call(fusec.compile(gated), *ARGUMENTS)
    torch.testing.assert_close(got, gated(*ARGUMENTS))
    assert len(messages) == 1 and "no AOT today" in messages[0]
    with pytest.raises(FusecError, match="no AOT today"):
        fusec.compile(gated, options={"strict": True})(*ARGUMENTS)


def test_an_op_that_fake_tensors_cannot_run_is_run_eagerly() -> None:
    with torch.library._scoped_library("fusec_test_faults", "DEF") as library:
        library.define("shapeless(Tensor x) -> Tensor")
        library.impl("shapeless", lambda x: x * 2, "CPU")

        def fn(x: Tensor) -> Tensor:
            return torch.ops.fusec_test_faults.shapeless(x + 1)

        x = torch.randn(3)
        got, _ = call(fusec.compile(fn), x)
        torch.testing.assert_close(got, (x + 1) * 2)


def test_what_the_verifier_refuses_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    original = pipeline.simplify

    def simplify(program: Any, config: Any) -> Any:
        return replace(original(program, config), nodes=())  # the outputs are never written

    monkeypatch.setattr(pipeline, "simplify", simplify)
    got, messages = call(fusec.compile(gated), *ARGUMENTS)
    torch.testing.assert_close(got, gated(*ARGUMENTS))
    assert len(messages) == 1 and "VerificationError" in messages[0]


UNWRITABLE = """
import os, sys, warnings, torch, fusec
x = torch.randn(4, 8)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for f in (lambda x: torch.softmax(x, -1), lambda x: x.relu() + 1):
        torch.testing.assert_close(fusec.compile(f)(x), f(x))
found = [str(w.message) for w in caught if w.category.__name__ == "CacheWarning"]
assert len(found) == 1, found
assert fusec.stats()["fallbacks"] == [] and fusec.stats()["kernels_launched"] == 2
print(found[0])
"""


@pytest.mark.parametrize("kind", ["file", "read-only", "open to all"])
def test_an_unusable_cache_directory_is_one_warning(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    if kind == "file":
        path.write_text("not a directory")
    else:
        path.mkdir()
        path.chmod(0o500 if kind == "read-only" else 0o777)
    if kind == "read-only" and os.access(path, os.W_OK):
        pytest.skip("this user may write everywhere")
    environment = {**os.environ, "FUSEC_CACHE_DIR": str(path), "FUSEC_WORKERS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", UNWRITABLE], capture_output=True, text=True, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert str(path) in done.stdout and "compiled in memory" in done.stdout


def test_strict_cannot_be_hidden_by_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEC_STRICT", "1")
    monkeypatch.setattr(pipeline, "lower", failing(RuntimeError("broken on purpose")))
    with pytest.raises(FusecError, match="broken on purpose"):
        fusec.compile(gated)(*ARGUMENTS)


def test_cache_warnings_are_not_fallbacks() -> None:
    assert not issubclass(CacheWarning, FallbackWarning)
