"""Greedy decoding token by token with a fixed cache: a small random model, then the pretrained one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fusec.api import compile as fusec_compile
from fusec.api import reset, stats
from fusec.demos import smollm2

transformers = pytest.importorskip("transformers")


@pytest.fixture
def small() -> smollm2.SmolLM2:
    """Two layers of the same architecture, random weights, a tokenizer of one letter a token."""
    config = transformers.LlamaConfig(
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        vocab_size=101,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()

    def tokenizer(text: str, return_tensors: str) -> Any:
        return SimpleNamespace(input_ids=torch.tensor([[ord(c) % 101 for c in text]]))

    return smollm2.SmolLM2(
        smollm2.Step(model), tokenizer, lambda n: transformers.StaticCache(config=config, max_cache_len=n)
    )


def test_compiled_tokens_equal_eager_ones_with_one_compilation(small: smollm2.SmolLM2) -> None:
    reset()
    expected = list(small.generate("abc", 12))
    got = list(small.generate("abc", 12, fusec_compile(small.step, options={"strict": True})))
    assert got == expected and len(set(got)) > 1
    counted = stats()
    assert counted["graphs"] == 1 and counted["recompiles"] == 0
    assert counted["kernels_launched"] > 11 and not counted["fallbacks"]


def test_the_cache_is_what_makes_a_later_token(small: smollm2.SmolLM2) -> None:
    one = list(small.generate("abcd", 6))
    tokens = [ord(c) % 101 for c in "abcd"]
    for _ in range(6):  # the whole sequence again for every token, without a cache
        with torch.inference_mode():
            tokens.append(int(small.step.model(torch.tensor([tokens])).logits[0, -1].argmax()))
    assert tokens[4:] == one


@pytest.mark.slow
@pytest.mark.timeout(900)  # de-quantizing the weights takes most of it
def test_the_pretrained_model_says_paris() -> None:
    pytest.importorskip("gguf")
    model = smollm2.load()
    for dtype, count in ((torch.float32, 3), (torch.bfloat16, 2)):
        model.step.to(dtype)
        got = list(model.generate(smollm2.PROMPT, count, fusec_compile(model.step, options={"strict": True})))
        assert got == list(model.generate(smollm2.PROMPT, count))
        assert model.text(got).startswith(" Paris.")
