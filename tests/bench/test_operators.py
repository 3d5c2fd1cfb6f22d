"""docs/operators.md says of every op how it runs, and claims no kernel that is not there."""

from __future__ import annotations

import pytest
import torch

from bench.operators import HOW, PAGE, lowered_packets, operators, page

pytestmark = pytest.mark.skipif(not torch.__version__.startswith("2.13"), reason="the page is for torch 2.13")


def written() -> dict[str, str]:
    """How each op runs, by the committed page."""
    rows = (line.split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.count(" | ") == 3)
    return {name.removeprefix("| "): how for name, how, *_ in rows if how in HOW}


def test_the_page_lists_every_op_and_claims_no_kernel_that_is_not_there() -> None:
    rows, on_page = operators(), written()
    assert {r.name for r in rows} == on_page.keys(), "python -m bench.operators writes docs/operators.md"
    now = {r.name: r.how for r in rows}
    assert [n for n, how in on_page.items() if how in ("kernel", "view") and now[n] != how] == []


def test_more_ops_are_lowered_than_the_goal_asks() -> None:
    assert lowered_packets(operators()) >= 280
    assert {"add": "kernel", "slice": "view", "mm": "library", "native_layer_norm": "decomposed"}.items() <= {
        r.name: r.how for r in operators()
    }.items()


def test_the_page_is_what_the_script_writes() -> None:
    text = page(operators())
    assert text.startswith("# How each op runs\n") and "| add | kernel | floats, ints, bool | complex |" in text
    assert text.count("\n| ") == len(operators()) + 2 + len(HOW)
