"""The make targets, without running them: what they would do, and that every dependency has a pin."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _make(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *args], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("demo", "fusec demo"),
        ("test", "pytest -n 2"),
        ("test-models", "-m tests.models.sweep"),
        ("test-opinfo", "tests.opinfo.sweep --workers 2"),
        ("test-opinfo-backward", "--dtypes float32.backward,float64.gradcheck"),
        ("fuzz", "-m tests.property.fuzz --first 0 --programs 2000"),
        ("lint", "hadolint Dockerfile"),
        ("gpu", "bench.gpu --budget 8m"),
    ],
)
def test_a_target_does_its_own_set_up_and_its_job(target: str, command: str, tmp_path: Path) -> None:
    planned = _make("-n", f"VENV={tmp_path / 'venv'}", "DEVICE=cpu", target)
    assert planned.returncode == 0, planned.stderr
    assert "-m venv" in planned.stdout and "install -q" in planned.stdout
    assert command in planned.stdout


@pytest.mark.parametrize(("device", "torch"), [("cpu", "2.13.0"), ("cuda", "2.11.0")])
def test_the_device_decides_the_build_of_torch(device: str, torch: str, tmp_path: Path) -> None:
    assert f"torch=={torch}" in _make("-n", f"VENV={tmp_path / 'venv'}", f"DEVICE={device}", "deps").stdout


def test_an_unknown_device_is_refused() -> None:
    refused = _make("-n", "DEVICE=tpu", "test")
    assert refused.returncode != 0 and 'DEVICE must be cpu or cuda, got "tpu"' in refused.stderr


def test_ci_runs_lint_and_test() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash" and "set -eu" in lines
    assert lines[-2:] == ["make lint", "make test"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {_name(r) for r in project["dependencies"]}
    wanted |= {_name(r) for extra in project["optional-dependencies"].values() for r in extra}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^=]+", line) for line in lines)
    assert wanted - {_name(line) for line in lines} == {"torch"}  # its pin depends on the device
