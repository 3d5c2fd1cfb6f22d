"""The pitch of tones from the pretrained network, compiled."""

from __future__ import annotations

import pytest
import torch

from fusec.api import compile as fusec_compile
from fusec.demos import crepe


def test_compiled_pitch_is_within_one_percent() -> None:
    model = crepe.load()
    compiled = fusec_compile(model, options={"strict": True})
    with torch.inference_mode():
        for frequency in (110.0, 880.0):
            batch = crepe.frames(crepe.tone(frequency, 0.2))
            got = compiled(batch)
            assert (got - model(batch)).abs().max().item() < 1e-5
            assert crepe.pitch(got).median().item() == pytest.approx(frequency, rel=0.01)


def test_frames_have_mean_zero_and_deviation_one() -> None:
    frames = crepe.frames(3 + 5 * crepe.tone(440.0, 0.3))
    assert frames.shape == (4, 1024)
    torch.testing.assert_close(frames.mean(1), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(frames.std(1), torch.ones(4))


def test_pitch_of_a_certain_bin() -> None:
    probabilities = torch.zeros(2, crepe.BINS)
    probabilities[0, 0] = probabilities[1, 359] = 1.0
    lowest, highest = crepe.pitch(probabilities).tolist()
    assert lowest == pytest.approx(31.70, abs=0.01)
    assert highest == pytest.approx(2005.5, abs=0.5)
