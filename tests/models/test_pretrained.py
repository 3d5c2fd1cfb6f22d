"""Pretrained networks, compiled: their known answers, and eager's error against float64.

MiniLM and CREPE in float32, and SmolLM2 in both dtypes, are in tests/demos.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusec
from fusec.demos import crepe, minilm
from tests.models.harness import Draw, compare, leaves
from tests.models.pretrained import ESPRESSO, coffee, efficientnet, noise, silent_start, silero, vowel

DTYPES = [torch.float32, torch.bfloat16]
pytestmark = pytest.mark.usefixtures("clean")


def compiled_output(model: nn.Module, dtype: torch.dtype, *inputs: Tensor) -> Any:
    """Of the compiled model; held to eager's error against the same weights in float64. Nothing runs eagerly."""
    model = copy.deepcopy(model).to(dtype)
    cast = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    exact = [x.double() if x.is_floating_point() else x for x in cast]
    with torch.inference_mode():
        expected, precise = model(*cast), copy.deepcopy(model).double()(*exact)
        seen = fusec.compile(model, options={"strict": True})(*cast)
    _, _, faults = compare(Draw(*(dict(leaves(x)) for x in (seen, expected, precise))))
    assert faults == []
    stats = fusec.stats()
    assert stats["kernels_launched"] > 0 and (stats["graphs"], stats["graph_breaks"]) == (1, 0)
    return seen


def test_minilm_in_bfloat16_knows_what_eating_means() -> None:
    model = minilm.load()
    vectors = compiled_output(model.encoder, torch.bfloat16, *model.tokens(minilm.SENTENCES[:3])).float()
    cosines = vectors @ vectors.t()
    assert cosines[0, 1].item() == pytest.approx(0.8749, abs=1e-2)
    assert cosines[0, 2].item() == pytest.approx(-0.105, abs=1e-2)


def test_crepe_in_bfloat16_hears_the_pitch() -> None:
    tones = torch.cat([crepe.frames(crepe.tone(frequency, 0.2)) for frequency in (220.0, 440.0)])
    found = crepe.pitch(compiled_output(crepe.load(), torch.bfloat16, tones).float())
    low, high = found.chunk(2)
    assert low.median().item() == pytest.approx(220.0, rel=0.01)
    assert high.median().item() == pytest.approx(440.0, rel=0.01)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_efficientnet_sees_an_espresso(dtype: torch.dtype) -> None:
    share = compiled_output(efficientnet(), dtype, coffee()).float().softmax(-1)[0]
    assert share.argmax().item() == ESPRESSO
    assert share[ESPRESSO].item() == pytest.approx(0.94, abs=0.01 if dtype is torch.float32 else 0.05)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_silero_tells_speech_from_noise_over_20_calls(dtype: torch.dtype) -> None:
    model, program = silero()
    model = model.to(dtype)
    compiled = fusec.compile(model, options={"strict": True})
    for signal, spoken in ((noise(20), False), (vowel(20), True)):
        program.reset_states()
        with torch.inference_mode():
            exact = torch.tensor([program(frame, 16000).item() for frame in signal])
            eager, seen = (heard(network, signal, dtype) for network in (model, compiled))
        assert (seen - exact).abs().max() <= 2 * (eager - exact).abs().max() + 1e-5
        assert (seen.mean().item() > 0.5) is spoken and (spoken or seen.max().item() < 0.1)
    stats = fusec.stats()
    assert stats["graphs"] == 1 and stats["kernels_launched"] >= 40


def heard(network: Any, signal: Tensor, dtype: torch.dtype) -> Tensor:
    """The probability of speech in each frame, the state carried over from frame to frame."""
    state, found = silent_start(dtype), []
    for frame in signal:
        probability, *state = network(frame.to(dtype), *state)
        found.append(probability.item())
    return torch.tensor(found)
