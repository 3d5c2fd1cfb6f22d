"""Kernels compiled ahead of time for a GPU that is not here, carried in a folder, and replayed values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fusec
from fusec.errors import BuildError, CacheWarning, ConfigError

pytestmark = pytest.mark.usefixtures("clean")  # a cache of its own, counters at zero


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.LayerNorm(64)).eval()


def scaled(x: Tensor, scale: Tensor) -> Tensor:
    return torch.softmax(x * scale, -1)


def test_precompile_makes_cubins_without_a_gpu(tmp_path: Path) -> None:
    made = fusec.precompile(model(), (torch.randn(8, 64),), target="sm_90", path=tmp_path / "out")
    (kernel,) = made.kernels
    assert kernel.artifacts[90].cubin[:4] == b"\x7fELF" and kernel.artifacts[90].spills == 0
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".json", ".cubin", ".py"}
    assert "1 kernels for sm_90" in str(made) and "aten.addmm" in str(made)


def test_loaded_kernels_are_not_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (torch.randn(8, 64, dtype=torch.bfloat16), torch.ones(64, dtype=torch.bfloat16))
    fusec.precompile(scaled, arguments, target="sm_80", path=tmp_path / "out")
    monkeypatch.setenv("FUSEC_CACHE_DIR", str(tmp_path / "another machine"))
    loaded = fusec.load(tmp_path / "out")
    assert [arch for _, arch in loaded.kernels] == ["sm_80"] and "1 kernels for sm_80" in str(loaded)
    again = fusec.precompile(scaled, arguments, target="sm_80")
    assert all(kernel.cached for kernel in again.kernels)


class Attention(nn.Module):
    """Indexing, a device argument, a constant, attention with and without a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.register_buffer("positions", torch.arange(64)[None])

    def forward(self, x: Tensor, masked: bool) -> Tensor:
        n = x.shape[1]
        here = self.positions[:, :n, None].to(x.dtype)
        q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in (self.qkv(x) + here).chunk(3, -1))
        mask = torch.ones(n, n, device=x.device).tril().bool() if masked else None
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return torch.softmax(
            y[..., 0] * torch.tensor(0.5, device=x.device) + torch.tensor([0.0] * n, device=x.device), -1
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_captured_as_cuda_calls_it(dtype: torch.dtype, masked: bool) -> None:
    made = fusec.precompile(Attention().eval().to(dtype), (torch.randn(2, 5, 32, dtype=dtype), masked), target="sm_90")
    wanted = "flash" if dtype is torch.bfloat16 and not masked else "efficient"
    assert any(f"_scaled_dot_product_{wanted}_attention" in row.target for row in made.explanation.externs)
    assert made.kernels and all(kernel.artifacts[90].cubin for kernel in made.kernels)
    (graph,) = made.explanation.graphs
    assert {b.device for b in graph.schedule.buffers} == {"cuda:0"}


def test_precompile_wants_an_architecture() -> None:
    with pytest.raises(ConfigError, match="an architecture such as \"sm_90\", got 'cuda'"):
        fusec.precompile(scaled, (torch.ones(2),), target="cuda")
    with pytest.raises(ConfigError, match="unknown target 'sm_91'; did you mean"):
        fusec.precompile(scaled, (torch.ones(2),), target="sm_91")


def test_load_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fusec.load(tmp_path / "nothing")
    folder = tmp_path / "out"
    fusec.precompile(scaled, (torch.ones(4, 8), torch.ones(8)), target="sm_90", path=folder)
    (cubin,) = folder.glob("*.cubin")
    cubin.write_bytes(cubin.read_bytes()[:-1] + b"?")
    with pytest.raises(BuildError, match="SHA-256"):
        fusec.load(folder)
    manifest = folder / "manifest.json"
    document = json.loads(manifest.read_text())
    document["body"]["kernels"][0]["file"] = "../../outside"
    manifest.write_text(json.dumps(document))
    with pytest.raises(BuildError, match=r"manifest\.json is damaged"):
        fusec.load(folder)


def test_kernels_of_another_version_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fusec.precompile(scaled, (torch.ones(4, 8), torch.ones(8)), target="sm_90", path=tmp_path / "out")
    monkeypatch.setattr("fusec.runtime.archive.helpers_digest", lambda: "other")
    with pytest.warns(CacheWarning, match="another version of fusec"):
        assert fusec.load(tmp_path / "out").kernels == ()


def test_replay_agrees_with_eager() -> None:
    x = torch.randn(4, 64)
    with torch.no_grad():
        found = fusec.replay(model())(x)
    assert found and found.launches == 1 and found.values > 3 and "all agree with eager" in str(found)
    assert fusec.replay(fusec.compile(scaled))(x, torch.ones(64))
