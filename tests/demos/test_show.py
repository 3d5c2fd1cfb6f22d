"""Progress on a terminal and off it; what is said when a package with weights is missing."""

from __future__ import annotations

import io
import time

import pytest

from fusec.demos.show import REFRESH, Progress, package_folder, require, waiting
from fusec.errors import FusecError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_redrawn_on_a_terminal() -> None:
    stream = Terminal()
    with Progress("tokens", 4, stream) as bar:
        bar.advance(2)
        time.sleep(3 * REFRESH)
    text = stream.getvalue()
    assert "tokens  [##############--------------]  2/4" in text
    assert text.rpartition("\x1b[2K")[2].startswith("tokens: 2 in ")


def test_a_bar_is_one_line_in_a_file() -> None:
    stream = io.StringIO()
    with Progress("tokens", 3, stream) as bar:
        for _ in range(5):
            bar.advance()
    assert stream.getvalue().startswith("tokens: 3 in ") and stream.getvalue().count("\n") == 1


def test_a_failure_leaves_no_line_that_says_done() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError, match="broken"), waiting("loading", stream):
        raise ValueError("broken")
    assert stream.getvalue() == ""


def test_a_clock_runs_while_something_loads() -> None:
    stream = Terminal()
    with waiting("loading", stream):
        time.sleep(3 * REFRESH)
    assert "loading ... 0.1 s" in stream.getvalue()
    assert stream.getvalue().endswith(" s\n")


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(FusecError) as raised:
        require("the demo", ("weights", "torch"), "pip install weights", lambda m: None if m == "weights" else m)
    assert (
        str(raised.value) == "the demo needs weights, which is not installed; install it with\n    pip install weights"
    )


def test_a_package_without_its_file_is_said() -> None:
    assert (package_folder("torch", "version.py") / "nn").is_dir()
    with pytest.raises(FusecError, match=r"torch has no weights.bin"):
        package_folder("torch", "weights.bin")
    with pytest.raises(FusecError, match="no_such_package is not installed"):
        package_folder("no_such_package")
