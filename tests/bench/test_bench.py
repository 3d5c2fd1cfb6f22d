"""What of the benchmarks can be tested without a GPU: cases, budget, schema, tables, statistics, the no-GPU line."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu, gpu_case, measure, table
from bench.budget import Budget, seconds
from bench.cases import CASES, Case, Work
from bench.measure import bytes_once, quantile, relative_error, summary, tensors_of, with_share
from bench.schema import Result, Row
from bench.training import TRAINING

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", list(CASES))
def test_a_case_runs_in_eager_at_small_sizes(name: str) -> None:
    case = CASES[name]
    assert case.small.keys() == case.full.keys()
    work = case.build("cpu", small=True)
    outputs = tensors_of(work.fn(*work.args)) or list(work.parameters)
    assert outputs and all(o.numel() and o.float().isfinite().all() for o in outputs)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if not c.whole])
def test_a_case_depends_on_every_input(name: str) -> None:
    work = CASES[name].build("cpu", small=True)
    before = [o.float().clone() for o in tensors_of(work.fn(*work.args))]
    for tensor in tensors_of(work.args):
        saved = tensor.clone()
        is_index, is_mask = saved.dtype == torch.int64, saved.dtype == torch.bool
        tensor.copy_(~saved if is_mask else (saved + 1) % 33 if is_index else 2 * saved.roll(1, -1))
        after = [o.float() for o in tensors_of(work.fn(*work.args))]
        tensor.copy_(saved)
        same = all(torch.allclose(a, b, rtol=1e-3, equal_nan=True) for a, b in zip(before, after, strict=True))
        assert not same, f"{tuple(tensor.shape)} is unused"


def test_cases_mean_what_they_say() -> None:
    rms = CASES["rms"].build("cpu", small=True)
    x, weight = rms.args
    exact = torch.nn.functional.rms_norm(x.double(), (33,), weight.double(), 1e-6)
    assert relative_error(rms.fn(*rms.args).double(), exact) < 2e-2
    clip = CASES["clip_grad_norm"].build("cpu", small=True)
    clipped = torch.cat([g.flatten() for g in clip.fn(*clip.args)])
    assert clipped.norm().item() == pytest.approx(1.0, abs=1e-4)
    adamw = CASES["adamw_foreach"].build("cpu", small=True)
    params, grads, means, squares = adamw.args
    ours = adamw.fn(params, grads, means, squares)[0][0]
    optimizer = torch.optim.AdamW([params[0].clone().requires_grad_()], lr=1e-3, weight_decay=0.01)
    (p,) = optimizer.param_groups[0]["params"]
    p.grad = grads[0].clone()
    optimizer.state[p] = {"step": torch.tensor(6.0), "exp_avg": means[0].clone(), "exp_avg_sq": squares[0].clone()}
    optimizer.step()
    torch.testing.assert_close(ours, p.detach())


@pytest.mark.parametrize(("text", "expected"), [("90", 90), ("90s", 90), ("8m", 480), ("1.5m", 90), ("1h", 3600)])
def test_budget_reads_what_people_write(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-3m", "8 minutes", "m"])
def test_budget_refuses_the_rest(text: str) -> None:
    with pytest.raises(ValueError, match=f"got '{text}'"):
        seconds(text)


def test_budget_counts_down_and_never_below_zero() -> None:
    now = [100.0]
    budget = Budget.parse("10s", lambda: now[0])
    assert (budget.left, budget.share(0.5)) == (10.0, 5.0)
    now[0] = 107.0
    assert budget.left == 3.0
    now[0] = 200.0
    assert budget.left == 0.0


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    result = Result.new("gpu", "python3 -m bench.gpu").with_rows([Row("rms", "fusec", "rows=2", 64, 1.5, 1.0, 2.0)])
    path = tmp_path / "results" / "gpu.json"
    result.write(path)
    assert Result.read(path) == result
    assert [p.name for p in path.parent.iterdir()] == ["gpu.json"]
    assert {"device", "versions", "date", "command", "rows", "schema"} <= set(json.loads(path.read_text()))


@pytest.mark.parametrize("change", [{"schema": 99}, {"surprise": 1}])
def test_a_file_of_another_schema_is_refused(tmp_path: Path, change: dict[str, int]) -> None:
    path = tmp_path / "gpu.json"
    Result.new("gpu", "x").write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=r"schema|unknown fields: surprise"):
        Result.read(path)


@pytest.mark.parametrize("path", sorted((ROOT / "bench" / "results").glob("gpu*.json")), ids=lambda p: p.name)
def test_committed_results_are_of_the_schema(path: Path) -> None:
    assert Result.read(path).rows


def test_quantiles_and_bandwidth() -> None:
    times = [10.0, 30.0, 20.0, 50.0, 40.0]
    assert (quantile(times, 0.5), quantile(times, 0.2), quantile([7.0], 0.8)) == (30.0, 18.0, 7.0)
    row = summary(Row("rms", "fusec", bytes=60_000_000), times, [5.0, 7.0, 6.0])
    assert (row.median_us, row.gbps, row.host_us) == (30.0, 2000.0, 6.0)
    clone = summary(Row("rms", "clone", bytes=80_000_000), [20.0], [1.0])
    assert [r.share for r in with_share([row, clone])] == [0.5, 1.0]
    assert [r.share for r in with_share([row])] == [None]


def test_bytes_count_shared_memory_once() -> None:
    x = torch.zeros(4, 8)
    assert bytes_once([x, x], {"a": x}) == 128
    assert bytes_once(x, torch.zeros(2, dtype=torch.bool)) == 130


def test_relative_error_sees_values_shapes_and_infinities() -> None:
    x = torch.tensor([1.0, -4.0])
    assert relative_error([x], [x]) == 0.0
    assert relative_error(torch.tensor([1.0, -3.0]), x) == 0.25
    assert relative_error(torch.tensor([1.0, float("inf")]), x) == float("inf")
    with pytest.raises(ValueError, match=r"expected \(2,\)"):
        relative_error(x[:1], x)


def test_table_without_tabulate() -> None:
    text = table.plain(["case", "us"], [["rms", 61.25], ["softmax", None]])
    assert text == "case        us\n-------  -----\nrms      61.25\nsoftmax"


def test_timings_mark_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "table", table.plain)
    rows = [Row("rms", "eager", median_us=50.0), Row("rms", "fusec", median_us=20.0, share=0.9, note="")]
    broken = Row("rms", "torch.compile", note="RuntimeError: no compiler")
    lines = table.timings(Result.new("gpu", "x").with_rows([*rows, broken])).splitlines()
    assert "fastest" in lines[3] and "90%" in lines[3] and "fastest" not in lines[2]
    assert lines[4].endswith("RuntimeError: no compiler")


def test_without_a_gpu_one_line_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = subprocess.run([sys.executable, "-m", "bench.gpu"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, gpu.NO_GPU + "\n", "")


def test_bad_arguments_list_the_valid_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--cases", "softmx"])
    assert "unknown case 'softmx'; valid: bias_gelu," in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.main(["--budget", "soon"])
    assert "got 'soon'" in capsys.readouterr().err


def test_a_process_ends_with_its_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sleeper = "import time; print('begun', flush=True); time.sleep(60)"
    rc, took, lines = gpu.run_limited([sys.executable, "-c", sleeper], 1.5, tmp_path / "log")
    assert rc == 124 and took < 10
    assert lines[0] == "begun" and "share of the budget" in lines[1]
    assert "begun" in capsys.readouterr().out and (tmp_path / "log").read_text() == "begun\n"


class FakeEvent:
    """A CUDA event whose clock is a counter: every record is one millisecond later."""

    ticks = 0.0

    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        FakeEvent.ticks += 1.0
        self.at = FakeEvent.ticks

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.at - self.at


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timing loop on the CPU: events count, memory is zero."""
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)
    monkeypatch.setattr(measure, "CACHE_FLUSH_BYTES", 1024)
    for module in (measure, gpu_case):
        monkeypatch.setattr(module, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_case, "kernel_times", lambda call: [("a_kernel", 12.346, 1.0)])


def broken(*args: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no compiler\nat all")


def compared(case: Case, work: Work, forms: dict[str, Callable[..., Any]]) -> dict[str, Row]:
    calls = {name: partial(case.run, work, form) for name, form in forms.items()}
    return {
        r.variant: r for r in measure.timed(calls, measure.prepare(case, work, calls), Budget(60.0, 0.0, lambda: 0.0))
    }


@pytest.mark.usefixtures("without_cuda")
def test_variants_are_compared_and_a_broken_one_is_noted() -> None:
    case = CASES["bias_gelu"]
    work = case.build("cpu", small=True)
    rows = compared(case, work, {"eager": work.fn, "fusec": lambda x, b: work.fn(x, b) * 2, "torch.compile": broken})
    assert rows["eager"].median_us == rows["clone"].median_us == 1000.0
    assert rows["eager"].error is None and rows["fusec"].error == pytest.approx(1.0, abs=0.1)
    assert rows["eager"].bytes == 2 * (5 * 33 + 33 + 5 * 33)
    assert rows["torch.compile"].note == "RuntimeError: no compiler" and rows["torch.compile"].median_us is None
    assert rows["fusec"].share == pytest.approx(1.0, abs=0.02)


@pytest.mark.usefixtures("without_cuda")
def test_a_case_says_what_it_checked_then_waits_then_says_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_case, "variants", lambda case, work, tuned: {"fusec": partial(case.run, work, work.fn)})
    case = replace(CASES["bias_gelu"], full=CASES["bias_gelu"].small)
    said: list[str] = []
    gpu_case.run(case, 1.0, False, said.append, lambda: "go\n", nullcontext)
    before, ready, after = said
    assert ready == gpu_case.READY and json.loads(before)["rows"][0]["median_us"] is None
    assert [r["variant"] for r in json.loads(after)["rows"]] == ["fusec", "clone"]
    assert json.loads(after)["kernels"] == {"fusec": [["a_kernel", 12.35, 1.0]]}
    gpu_case.run(case, 1.0, False, said.append, lambda: "", nullcontext)
    assert len(said) == 5, "without a line to wait for it ends"


def test_the_device_lock_is_one_process_at_a_time_and_nests(tmp_path: Path) -> None:
    lock = gpu_case.DeviceLock(tmp_path / "lock")
    other = gpu_case.DeviceLock(tmp_path / "lock")
    with lock(), lock(), pytest.raises(BlockingIOError):
        fcntl.flock(other._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with other():
        pass


STAND_IN = """
import json, sys
case = sys.argv[sys.argv.index("--case") + 1]
if case == "rms":
    sys.exit("CUDA error: an illegal memory access")
row = {"case": case, "variant": "eager", "median_us": None}
print(json.dumps({"rows": [row], "kernels": {}, "stats": {"graphs": 1}}), flush=True)
print("ready", flush=True)
sys.stdin.readline()
if case == "swiglu":
    import time
    time.sleep(60)
print(json.dumps({"rows": [row | {"median_us": 5.0}], "kernels": {}, "stats": {}}), flush=True)
"""


def test_the_benchmark_keeps_every_case_it_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One case dies, one never ends, the others' times are kept."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(gpu, "CASE_MODULE", "stand_in")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = tmp_path / "gpu.json"
    names = ["bias_gelu", "rms", "swiglu"]
    gpu.run_benchmark(Result.new("gpu", "x"), path, names, Budget.parse("3s"), str(tmp_path))
    partial_result = Result.read(path)
    assert [(r.case, r.median_us) for r in partial_result.rows] == [("bias_gelu", 5.0), ("rms", None), ("swiglu", None)]
    assert partial_result.rows[1].note == "CUDA error: an illegal memory access" and not partial_result.complete
    gpu.run_benchmark(Result.new("gpu", "x"), path, names[:1], Budget.parse("60s"), str(tmp_path))
    assert Result.read(path).complete


def test_a_partial_result_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gpu.json"
    Result.new("gpu", "x").with_rows([Row("rms", "eager", median_us=50.0)]).write(path)
    assert gpu.report(path, {"rc": 0, "summary": "12 passed in 3s"}) == 0
    out = capsys.readouterr().out
    assert "12 passed in 3s" in out and "partial: the budget ended first" in out
    assert gpu.report(path, {"rc": 1, "summary": "1 failed"}) == 1
    assert Result.read(path).extra["tests"]["rc"] == 1
    assert gpu.report(tmp_path / "none.json", {}) == 1


@pytest.mark.usefixtures("without_cuda")
def test_a_training_step_is_compared_with_its_gradients() -> None:
    case = TRAINING["swiglu_train"]
    work = case.build("cpu", small=True)
    wrong = {"eager": work.fn, "fusec": lambda gate, up: work.fn(gate, up) + up.detach() * 0.0, "half": broken_backward}
    rows = compared(case, work, wrong)
    assert rows["fusec"].error == 0.0 and rows["half"].error == pytest.approx(1.0, abs=0.1)
    assert rows["eager"].bytes == 6 * 5 * 33 * 2  # two inputs, the incoming gradient, the result, two gradients


def broken_backward(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The right result, with twice the gradient of up."""
    return torch.nn.functional.silu(gate) * (2 * up - up.detach())
