"""Pretrained networks, compiled, in float32 and bfloat16: their known answers, and eager's error against float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusec
from fusec.demos import crepe, minilm
from tests.models.harness import compare, leaves
from tests.models.pretrained import ESPRESSO, coffee, efficientnet, noise, silent_start, silero, vowel

DTYPES = [torch.float32, torch.bfloat16]
pytestmark = [pytest.mark.usefixtures("clean"), pytest.mark.parametrize("dtype", DTYPES, ids=str)]


def compiled_output(model: nn.Module, dtype: torch.dtype, *inputs: Tensor) -> Any:
    """Of the compiled model; held to eager's error against the same weights in float64. Nothing runs eagerly."""
    model = copy.deepcopy(model).to(dtype)
    cast = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    exact = [x.double() if x.is_floating_point() else x for x in cast]
    with torch.inference_mode():
        expected, precise = model(*cast), copy.deepcopy(model).double()(*exact)
        seen = fusec.compile(model, options={"strict": True})(*cast)
    _, _, faults = compare(dict(leaves(seen)), dict(leaves(expected)), dict(leaves(precise)))
    assert faults == []
    stats = fusec.stats()
    assert stats["kernels_launched"] > 0 and (stats["graphs"], stats["graph_breaks"]) == (1, 0)
    return seen


def test_minilm_knows_what_eating_means(dtype: torch.dtype) -> None:
    model = minilm.load()
    vectors = compiled_output(model.encoder, dtype, *model.tokens(minilm.SENTENCES[:3])).float()
    cosines, tolerance = vectors @ vectors.t(), {"abs": 5e-4 if dtype is torch.float32 else 1e-2}
    assert cosines[0, 1].item() == pytest.approx(0.8749, **tolerance)
    assert cosines[0, 2].item() == pytest.approx(-0.105, **tolerance)


def test_crepe_hears_the_pitch(dtype: torch.dtype) -> None:
    for frequency in (220.0, 440.0):
        fusec.reset()
        probabilities = compiled_output(crepe.load(), dtype, crepe.frames(crepe.tone(frequency, 0.2))).float()
        assert crepe.pitch(probabilities).median().item() == pytest.approx(frequency, rel=0.01)


def test_efficientnet_sees_an_espresso(dtype: torch.dtype) -> None:
    share = compiled_output(efficientnet(), dtype, coffee()).float().softmax(-1)[0]
    assert share.argmax().item() == ESPRESSO
    assert share[ESPRESSO].item() == pytest.approx(0.94, abs=0.01 if dtype is torch.float32 else 0.05)


def test_silero_tells_speech_from_noise_over_20_calls(dtype: torch.dtype) -> None:
    model, program = silero()
    compiled = fusec.compile(model.to(dtype), options={"strict": True})
    means = []
    for signal in (noise(20), vowel(20)):
        program.reset_states()
        state, heard = silent_start(dtype), []
        with torch.inference_mode():
            for frame in signal:
                probability, *state = compiled(frame.to(dtype), *state)
                expected = program(frame, 16000).item()
                assert probability.item() == pytest.approx(expected, abs=1e-5 if dtype is torch.float32 else 0.1)
                heard.append(probability.item())
        means.append(sum(heard) / len(heard))
    assert means[0] < 0.05 and means[1] > 0.5
    stats = fusec.stats()
    assert stats["graphs"] <= 2  # the context comes first alone, then as a slice of the last call's audio
    assert stats["kernels_launched"] >= 40
