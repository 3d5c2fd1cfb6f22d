"""What every test gets: one thread, a private kernel cache, no network, and GPU tests only where there is a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

import fusec

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

torch.set_num_threads(1)

settings.register_profile(
    "fusec",
    deadline=None,
    derandomize=True,  # the same programs on every run: a failure seen once is seen again
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("fusec")

GPU_FOLDER = Path(__file__).parent / "gpu"
NO_GPU = "needs an NVIDIA GPU"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if GPU_FOLDER in item.path.parents or item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=NO_GPU))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if NO_GPU in str(r.longrepr)]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests need an NVIDIA GPU and were skipped: make gpu runs them")


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or fills the user's kernel cache, and no test inherits a FUSEC_ variable."""
    patch = pytest.MonkeyPatch()
    for name in [n for n in os.environ if n.startswith("FUSEC_")]:
        patch.delenv(name)
    folder = tmp_path_factory.mktemp("fusec_cache")
    patch.setenv("FUSEC_CACHE_DIR", str(folder))
    patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton_cache")))
    yield folder
    patch.undo()


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """One seed for all; and no test meets sizes that Dynamo remembers from another, which would be dynamic then."""
    torch.manual_seed(0)
    yield
    torch.compiler.reset()


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A kernel cache of the test's own, no compiler processes, and the counters at zero before and after."""
    monkeypatch.setenv("FUSEC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("FUSEC_WORKERS", "0")
    fusec.reset()
    yield
    fusec.reset()
