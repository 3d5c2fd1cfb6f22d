"""What the demos print with: headings, aligned tables, a progress bar, a clock while something loads.

Enters: text and counts. Leaves: lines on a stream; a bar only where the stream is a terminal.

    with Progress("tokens", 32) as bar:        tokens  [##########----------]  16/32  4.1 s
        bar.advance()
    with waiting("loading SmolLM2"): ...       loading SmolLM2 ... 12.3 s
"""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TextIO

from fusec.errors import FusecError

__all__ = ["Progress", "heading", "package_folder", "require", "waiting"]

WIDTH = 28
REFRESH = 0.1  # seconds between redraws


def heading(text: str) -> None:
    """A blank line, the text, a rule."""
    print(f"\n{text}\n{'-' * len(text)}")


class _Clock:
    """Redraws a line of a terminal ten times a second, so that a long step is seen to run."""

    def __init__(self, line: Callable[[], str], stream: TextIO) -> None:
        self.line, self.stream = line, stream
        self.finished = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True) if stream.isatty() else None
        if self.thread is not None:
            self.thread.start()

    def _run(self) -> None:
        while not self.finished.wait(REFRESH):
            self.stream.write(f"\r\x1b[2K{self.line()}")
            self.stream.flush()

    def stop(self, last: str) -> None:
        """Take the line away; `last` stays in its place."""
        self.finished.set()
        if self.thread is not None:
            self.thread.join()
            self.stream.write("\r\x1b[2K")
        self.stream.write(last)
        self.stream.flush()


class Progress:
    """A bar of `total` steps, redrawn in place; off a terminal it prints one line at the end."""

    def __init__(self, label: str, total: int, stream: TextIO | None = None) -> None:
        self.label, self.total, self.done = label, total, 0
        self.stream = sys.stderr if stream is None else stream

    def __enter__(self) -> Progress:
        self.start = time.monotonic()
        self.clock = _Clock(self.line, self.stream)
        return self

    def advance(self, steps: int = 1) -> None:
        self.done = min(self.done + steps, self.total)

    def line(self) -> str:
        filled = WIDTH * self.done // max(self.total, 1)
        bar = "#" * filled + "-" * (WIDTH - filled)
        return f"{self.label}  [{bar}]  {self.done}/{self.total}  {time.monotonic() - self.start:.1f} s"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        last = f"{self.label}: {self.done} in {time.monotonic() - self.start:.1f} s\n"
        self.clock.stop(last if kind is None else "")


@contextmanager
def waiting(label: str, stream: TextIO | None = None) -> Iterator[None]:
    """A running clock beside `label` until the block ends; then one line with the time it took."""
    start = time.monotonic()
    clock = _Clock(lambda: f"{label} ... {time.monotonic() - start:.1f} s", sys.stderr if stream is None else stream)
    last = ""
    try:
        yield
        last = f"{label}: {time.monotonic() - start:.1f} s\n"
    finally:
        clock.stop(last)


# -- packages that carry weights ------------------------------------------------------------------

Finder = Callable[[str], object]


def require(what: str, modules: Sequence[str], command: str, find: Finder = importlib.util.find_spec) -> None:
    """FusecError naming the modules that are not installed and the command that installs them."""
    missing = [m for m in modules if find(m) is None]
    if missing:
        raise FusecError(f"{what} needs {', '.join(missing)}, which is not installed; install it with\n    {command}")


def package_folder(module: str, *files: str) -> Path:
    """The folder of an installed package, found without importing it; FusecError when a file is missing in it."""
    spec = importlib.util.find_spec(module)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not places:
        raise FusecError(f"the package {module} is not installed")
    folder = Path(places[0])
    for name in files:
        if not (folder / name).is_file():
            raise FusecError(f"{folder} has no {name}: another version of the package? reinstall {module}")
    return folder
