"""What runs where only PyTorch, Triton and a few packages are: everything but demos, models and coloured reports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu import PYTEST
from fusec.config import Config, user_cache_home
from fusec.runtime import cache

ROOT = Path(__file__).resolve().parents[2]
ABSENT = (
    "platformdirs",
    "rich",
    "pygments",
    "transformers",
    "safetensors",
    "accelerate",
    "expecttest",
    "xdist",
    "yaml",
)

IMPORT_ALL = f"""
import importlib, pathlib, sys
import pytest
sys.modules.update(dict.fromkeys({ABSENT!r}))  # None: the import fails as if it were not installed
skipped = []
for top in ("fusec", "kernels", "bench", "tests/gpu"):
    for file in sorted(pathlib.Path(top).rglob("*.py")):
        name = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
        if file.stem == "__main__":
            continue
        try:
            importlib.import_module(name)
        except pytest.skip.Exception:
            skipped.append(name)
print(*skipped)
"""


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ".", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_module_is_imported_without_the_optional_packages() -> None:
    assert run(IMPORT_ALL) == "tests.gpu.test_models", "only whole models need more"


def test_a_kernel_is_built_and_cached_without_platformdirs(tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT!r}))
import torch, fusec
from fusec.config import Config
from fusec.runtime.cache import cache_directory
x = torch.randn(17)
assert torch.equal(fusec.compile(lambda x: x * 2 + 1)(x), x * 2 + 1)
print(cache_directory(Config()))
"""
    environment = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "xdg"), "FUSEC_CACHE_DIR": ""}
    assert run(code, **environment) == str(tmp_path / "xdg" / "fusec")
    assert any(path.is_file() for path in (tmp_path / "xdg" / "fusec").rglob("*"))


def test_the_cache_without_platformdirs_is_where_platformdirs_puts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    here = cache.cache_directory(Config())
    monkeypatch.setattr(cache, "platformdirs", None)
    assert sys.platform != "linux" or cache.cache_directory(Config()) == here


def test_gpu_tests_are_collected_without_pytest_plugins() -> None:
    plugins = [option for name in ("timeout", "xdist") for option in ("-p", f"no:{name}")]
    command = [sys.executable, "-m", "pytest", *PYTEST, *plugins, "--collect-only", "tests/gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("named", "expected"), [("", None), ("relative", None), ("/caches", Path("/caches"))])
def test_user_cache_home(named: str, expected: Path | None) -> None:
    assert user_cache_home({"XDG_CACHE_HOME": named}) == (expected or Path.home() / ".cache")
