"""The training run, short: compiled equals eager within eager's own spread, and what is not equal is seen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import fusec
from fusec import cli
from fusec.demos import smollm2, train
from fusec.demos.curves import panels, picture
from fusec.inspect.explain import Explanation

pytestmark = pytest.mark.usefixtures("clean")
TINY = train.Sizes(layers=1, width=16, heads=2, context=16, batch=4)
STRICT = {"strict": True}


def test_compiled_and_eager_learn_the_same() -> None:
    result = train.compare(train.task(8, TINY), partial(fusec.compile, options=STRICT), again=2)
    assert result.equal and result.eager[-1] < result.eager[0] - 0.1
    counted = fusec.stats()
    assert counted["graphs"] == 3 and counted["recompiles"] == 0  # forward, backward, AdamW: compiled once
    assert counted["kernels_launched"] > 8 * 10


def test_every_run_starts_from_equal_weights_and_sees_the_same_batches() -> None:
    first, second = train.task(4, TINY), train.task(4, TINY)
    assert first.train() == second.train() == second.train()
    assert len({ids.data_ptr() for ids, _ in first.batches}) == 4
    ids, following = first.batches[0]
    assert torch.equal(ids[:, 1:], following[:, :-1]) and "import" in train.text()


def slightly_wrong(function: Any) -> Callable[..., Any]:
    """A loss whose gradient is 1 % too large where that is a compiler's fault: of the model, not of the optimizer."""
    if not isinstance(function, torch.nn.Module):
        return function  # type: ignore[no-any-return]

    def call(*args: Tensor) -> Tensor:
        loss = function(*args)
        function.byte.weight.register_hook(lambda grad: grad * (1 + 0.01 * torch.rand_like(grad)))
        return loss  # type: ignore[no-any-return]

    return call


def test_a_wrong_gradient_is_not_within_the_spread() -> None:
    result = train.compare(train.task(8, TINY), slightly_wrong, again=4)
    assert not result.equal and max(result.differences) > 10 * result.allowed


def test_nan_is_not_equal() -> None:
    nan = [1.0, float("nan")]
    assert not train.Result([1.0, 1.0], nan, ([1.0, 1.0],)).equal


def test_a_pretrained_model_is_trained_on_its_own_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=128,
        tie_word_embeddings=True,
    )
    step = smollm2.Step(transformers.LlamaForCausalLM(config).eval())

    def tokenizer(text: str) -> Any:
        return SimpleNamespace(input_ids=[ord(c) % 128 for c in text])

    monkeypatch.setattr(smollm2, "load", lambda: smollm2.SmolLM2(step, tokenizer, lambda n: None))
    given = train.task(3, weights="smollm2")
    assert isinstance(given.model, train.Pretrained) and given.model.training
    result = train.compare(given, partial(fusec.compile, options=STRICT), again=2)
    assert result.equal and result.eager[0] != result.eager[2] and fusec.stats()["kernels_launched"]


README = Path(__file__).parents[2] / "README.md"


def demo(losses: list[float], out: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Status of the demo with these losses of compiled code, whatever the training runs were."""
    monkeypatch.setattr(train, "compare", lambda given: train.Result([3.0, 2.0], losses, ([3.0, 2.0],)))
    monkeypatch.setattr(train, "show_kernels", lambda step, out: None)
    return cli.main(["demo", "train", "--steps", "2", "--out", str(out)])


def test_the_demo_counts_what_the_readme_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo([3.0, 2.0], tmp_path, monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "\nequal within the spread" in printed and "2 steps of AdamW" in printed
    said = next(line for line in README.read_text().splitlines() if line.startswith("| a small GPT"))
    eager, fused, eager_bytes, fused_bytes = (c.strip() for c in said.split("|")[2:6])
    found = next(line for line in printed.splitlines() if line.startswith("a step")).split()[2:]
    assert (found[0], " ".join(found[2:4])) == (eager, eager_bytes)
    assert int(found[1]) <= int(fused) and float(found[4]) <= float(fused_bytes.split()[0])


def test_losses_that_differ_are_said_and_are_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "_explained", lambda given: (Explanation(()), Explanation(())))
    assert demo([3.0, 1.9], tmp_path, monkeypatch) == 1
    assert "NOT equal" in capsys.readouterr().out


def test_panels_share_a_scale() -> None:
    lines = panels({"a": [4.0, 3.0, 2.0, 1.0], "b": [2.0, 2.0, 2.0, 2.0]}, "loss", height=4)
    assert lines == ["loss   a      b", "4.00 | •    |", "     |  •   |", "     |   •  | ••••", "1.00 |    • |"]


def test_a_picture_of_both(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert picture(tmp_path / "new" / "loss.png", {"a": [2.0, 1.0], "b": [2.0, 1.1]}, {"a": [0.0, 0.1]})
    assert (tmp_path / "new" / "loss.png").read_bytes().startswith(b"\x89PNG")
