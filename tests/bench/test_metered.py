"""The table of launches and bytes: its definitions, its agreement with the interpreter, and the committed copy."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import fusec
from bench import metered
from bench.cases import CASES, Work
from bench.metered import Counts, above, count, total
from bench.peer import PEER
from bench.schedules import schedules
from bench.schema import Result, Row
from bench.training import TRAINING
from fusec.ir.kernels import Schedule
from fusec.runtime.meter import meter

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"
QUICK = ("bias_gelu", "transpose_pointwise", "split_heads_scale", "rms", "group_norm_silu_nhwc", "softmax_8192",
         "group_norm_silu_train")  # fmt: skip


def scheduled(fn: object, *args: torch.Tensor) -> Schedule:
    (found,) = schedules(lambda device: Work(fn, args))  # type: ignore[arg-type]
    return found


def test_a_fused_chain_is_perfect() -> None:
    counts = count(scheduled(lambda x, b: (x + b).relu(), torch.empty(64, 128), torch.empty(128)))
    assert (counts.kernels, counts.calls) == (1, 0)
    assert counts.minimum == counts.must == counts.kernel_bytes == 4 * (2 * 64 * 128 + 128)
    assert (counts.bytes_ratio, counts.avoidable) == (1.0, 0.0)


def test_a_library_call_counts_its_operands() -> None:
    counts = count(scheduled(lambda x, w: (x @ w).relu(), torch.empty(64, 32), torch.empty(32, 16)))
    assert (counts.kernels, counts.calls) == (1, 1)
    assert counts.call_bytes == 4 * (64 * 32 + 32 * 16 + 64 * 16)
    assert counts.minimum == counts.call_bytes  # x, w and a result as large as the product
    assert counts.must == counts.kernel_bytes == 4 * 2 * 64 * 16  # reads the product, leaves the result
    assert counts.avoidable == 0.0


def test_an_input_that_is_written_is_read_and_left() -> None:
    def momentum(p: torch.Tensor, g: torch.Tensor, m: torch.Tensor) -> None:
        m.mul_(0.9).add_(g)
        p.sub_(m, alpha=0.1)

    counts = count(scheduled(momentum, *(torch.empty(64, 33) for _ in range(3))))
    assert counts.minimum == counts.must == counts.kernel_bytes == 4 * 64 * 33 * (3 + 2)


def test_what_kernels_hand_to_each_other_is_avoidable() -> None:
    def two_rows_at_a_time(x: torch.Tensor) -> torch.Tensor:
        first = torch.softmax(x, 1)
        return torch.softmax(first, 0)  # needs all rows of what is reduced over columns: two kernels

    counts = count(scheduled(two_rows_at_a_time, torch.empty(3000, 2000)))
    assert counts.kernels > 1
    assert counts.must == 2 * 4 * 3000 * 2000
    assert counts.avoidable >= 1.0


def test_a_broadcast_read_is_asked_for_by_every_lane() -> None:
    counts = count(scheduled(lambda x, b: x + b, torch.empty(512, 256), torch.empty(256)))
    assert counts.requested == 4 * 3 * 512 * 256


def test_graphs_add_up() -> None:
    one = Counts(1, 2, 30, 40, 50, 55, 60, 70)
    assert asdict(total([one, one])) == {k: 2 * v for k, v in asdict(one).items()}


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if not c.whole])
def test_predicted_bytes_are_the_bytes_the_interpreter_meters(name: str) -> None:
    work = CASES[name].build("cpu", small=True)
    with meter() as metered_:
        explanation = fusec.explain(work.fn)(*work.args)
    kernel_bytes = sum(count(s).kernel_bytes for s in explanation.schedules)
    assert metered_.bytes_read + metered_.bytes_written == kernel_bytes


def test_above_names_what_is_worse() -> None:
    peer = asdict(PEER["clip_grad_norm"])
    assert above(Row("clip_grad_norm", "fusec", counts=peer)) == ""
    assert above(Row("clip_grad_norm", "fusec", counts={**peer, "kernels": 52})) == "launches"
    assert (
        above(Row("clip_grad_norm", "fusec", counts={**peer, "kernels": 52, "avoidable": 0.6}))
        == "launches and avoidable"
    )
    assert above(Row("rms", "fusec", note="KeyError: x")) == "KeyError: x"


@pytest.fixture(scope="module")
def committed() -> dict[str, Row]:
    result = Result.read(RESULTS / "metered.json")
    assert result.complete
    return {r.case: r for r in result.rows if r.variant == "fusec"}


def test_the_committed_table_has_every_case(committed: dict[str, Row]) -> None:
    assert list(committed) == list(PEER)
    text = (RESULTS / "metered.md").read_text()
    assert all(f"| {name} |" in text for name in PEER)


# What is still above the peer, and what it would take. A case that gets better must leave this list.
STILL_ABOVE: dict[str, str] = {
    # two column sums by 256 programs, 2 % of the bytes: the peer leaves them to library calls
    "ln_train": "avoidable",
}


def test_the_committed_table_is_nowhere_else_above_the_peer(committed: dict[str, Row]) -> None:
    assert {name: above(row) for name, row in committed.items() if above(row)} == STILL_ABOVE


@pytest.mark.parametrize("name", QUICK)
def test_the_committed_table_is_what_the_code_does_now(name: str, committed: dict[str, Row]) -> None:
    _, now = metered.meter(name)
    assert now.counts == committed[name].counts, f"run python3 -m bench.metered: {json.dumps(now.counts)}"


@pytest.mark.parametrize("name", TRAINING)
def test_a_training_step_is_that_of_eager(name: str) -> None:
    case = TRAINING[name]
    torch.manual_seed(0)
    work = case.build("cpu", small=True)
    same = {"precision": "eager", "options": {"random": "eager"}}
    torch.manual_seed(1)
    want = case.run(work, work.fn)
    torch.manual_seed(1)
    got = case.run(work, fusec.compile(work.fn, **same))  # type: ignore[call-overload]
    for a, b in zip(got, want, strict=True):
        assert a.dtype is b.dtype
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)
    fusec.reset()


def test_what_a_step_saves_is_neither_input_nor_output() -> None:
    """silu(g) * u: g, u and the incoming gradient are read, the result and two gradients written."""
    case = TRAINING["swiglu_train"]
    assert metered.step(case).minimum == 6 * 8192 * 11008 * 2


def test_the_peers_bytes_of_a_model_follow_from_its_avoidable() -> None:
    counts = Counts(2, 3, kernel_bytes=120, call_bytes=300, minimum=50, graphs=50, must=100, requested=120)
    assert metered.implied(metered.Peer(2, 3, None, 0.2, 1.0), counts).bytes_ratio == counts.bytes_ratio == 8.4
    assert metered.implied(metered.Peer(2, 3, 1.5, 0.2, 1.0), counts).bytes_ratio == 1.5
    assert metered.implied(metered.Peer(2, 4, None, 0.2, 1.0), counts).bytes_ratio is None


def test_library_calls_alone_move_more_than_a_models_inputs_and_outputs() -> None:
    for name in ("llama_infer", "bert_infer", "gpt2_infer"):
        counts = metered.step(CASES[name])
        assert counts.call_bytes > 1.5 * counts.minimum, name
