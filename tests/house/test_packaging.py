"""fusec.kernels is the top-level folder kernels/, however fusec was installed; torch finds the backend by name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROBE = "import fusec, fusec.kernels.softmax as k; print(fusec.__file__); print(k.__name__, k.__file__)"


def _environment(path: str = "") -> dict[str, str]:
    clean = {n: v for n, v in os.environ.items() if n != "PYTHONPATH"}
    return {**clean, "PYTHONPATH": path, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1"}


def _probe(path: str, folder: Path) -> tuple[Path, Path]:
    """Files of fusec and of fusec.kernels.softmax, as seen with `path` on PYTHONPATH from `folder`."""
    command = [sys.executable, "-c", PROBE]
    done = subprocess.run(command, cwd=folder, env=_environment(path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    package, kernels = done.stdout.splitlines()
    name, _, file = kernels.partition(" ")
    assert name == "fusec.kernels.softmax"
    return Path(package), Path(file)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, links kept, where builds leave their traces."""
    folder = tmp_path_factory.mktemp("checkout") / "fusec"
    folder.mkdir()
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("fusec", "kernels"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "README.md").write_text("fusec")
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), "."]
    subprocess.run(command, cwd=checkout, env=_environment(), check=True, capture_output=True)
    (built,) = out.glob("fusec-*.whl")
    return built


def test_from_a_bare_checkout_on_pythonpath(checkout: Path, tmp_path: Path) -> None:
    package, kernel = _probe(str(checkout), tmp_path)
    assert package.is_relative_to(checkout)
    assert kernel.resolve() == checkout / "kernels" / "softmax.py"


def test_from_a_wheel(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(command, env=_environment(), check=True, capture_output=True)
    package, kernel = _probe(str(target), tmp_path)
    assert package.is_relative_to(target)
    assert kernel == target / "fusec" / "kernels" / "softmax.py"


def test_from_an_editable_install(checkout: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    parent = next(p for p in sys.path if p.endswith("site-packages"))
    (site / "parent.pth").write_text(parent + "\n")
    python = str(environment / "bin" / "python")
    command = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--ignore-installed"]
    done = subprocess.run([*command, "-e", str(checkout)], env=_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = subprocess.run([python, "-c", PROBE], cwd=tmp_path, env=_environment(), capture_output=True, text=True)
    assert seen.returncode == 0, seen.stderr
    package, kernels = seen.stdout.splitlines()
    assert Path(package).is_relative_to(checkout)
    assert Path(kernels.partition(" ")[2]).resolve() == checkout / "kernels" / "softmax.py"


def test_the_wheel_holds_every_module_and_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {str(p.relative_to(ROOT)) for p in (ROOT / "fusec").rglob("*.py")}
    expected |= {f"fusec/{p.relative_to(ROOT)}" for p in (ROOT / "kernels").rglob("*.py")}
    assert expected <= names
    assert "fusec/py.typed" in names
    assert not [n for n in names if n.startswith(("tests/", "bench/", "kernels/"))]


def test_torch_finds_the_backend_by_name() -> None:
    (found,) = [e for e in entry_points(group="torch_dynamo_backends") if e.name == "fusec"]
    assert found.value == "fusec.api:dynamo_backend"


def test_the_top_level_is_the_house() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    files = {"pyproject.toml", "README.md", "Dockerfile", "Makefile", "LICENSE", "CHANGELOG.md", "constraints.txt"}
    assert {n for n in top if not n.startswith(".")} <= files | {"fusec", "kernels", "tests", "bench", "docs"}
