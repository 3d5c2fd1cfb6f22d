"""README and guide say what is: the kernel shown is the kernel generated, every link and command exists.

After a change of generated text: python -m tests.inspect.test_documents
"""

from __future__ import annotations

import inspect
import re
import runpy
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import fusec
from fusec import cli
from fusec.api import reset, stats
from fusec.inspect.explain import Explanation

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def example(folder: Path) -> Explanation:
    """Run the README's example and return its explanation."""
    code = BLOCK.findall(README.read_text())[0]
    path = folder / "model.py"
    path.write_text(
        code.replace("print(fusec.explain(", "explanation = (fusec.explain(").replace(".kernels[0].source", "")
    )
    reset()
    found = runpy.run_path(str(path))["explanation"]
    assert isinstance(found, Explanation)
    return found


def shown_kernel(explanation: Explanation) -> str:
    """The generated text without its imports."""
    source = explanation.kernels[0].source
    return source[source.index("# fused") :].rstrip() + "\n"


def renewed(text: str, kernel: str) -> str:
    """The README with the kernel block replaced."""
    first, second = list(BLOCK.finditer(text))[:2]
    assert first.start() < second.start()
    return text[: second.start(1)] + kernel + text[second.end(1) :]


def test_the_readme_shows_the_kernel_that_is_generated(tmp_path: Path) -> None:
    text = README.read_text()
    explanation = example(tmp_path)
    assert renewed(text, shown_kernel(explanation)) == text, "write it anew: python -m tests.inspect.test_documents"
    row = next(line for line in text.splitlines() if line.startswith("| `add_rms_norm` above"))
    cells = [c.strip() for c in row.split("|")[2:6]]
    eager, fused = explanation.eager, explanation.fused
    assert cells[:2] == [str(eager.launches), str(fused.launches)]
    assert cells[2:] == [f"{eager.bytes / 1e6:.1f} MB", f"{fused.bytes / 1e6:.1f} MB"]


def test_the_example_is_twelve_lines() -> None:
    code = BLOCK.findall(README.read_text())[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12


def test_the_optimizer_steps_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are a step of AdamW; the second scales the gradients to a norm of 1 first."""
    (code,) = [block for block in BLOCK.findall((ROOT / "docs" / "guide.md").read_text()) if "clipped_step" in block]
    (tmp_path / "train.py").write_text(code)
    models = [torch.nn.Linear(5, 3) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours, theirs = (torch.optim.AdamW(m.parameters(), lr=0.1) for m in models)
    for model in models:
        model(torch.ones(2, 5)).square().sum().backward()
    reset()
    train: Any = types.ModuleType("train")
    vars(train).update(fusec=fusec, inspect=inspect, torch=torch, optimizer=ours, model=models[0])
    monkeypatch.setitem(sys.modules, "train", train)  # where Dynamo looks for the functions' globals
    exec(compile(code, tmp_path / "train.py", "exec"), vars(train))
    train.step()
    norm = train.clipped_step()
    theirs.step()
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(models[1].parameters(), 1.0))
    theirs.step()
    for got, want in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got.grad, want.grad)
    assert stats()["graphs"] == 2 and not stats()["fallbacks"]


@pytest.mark.parametrize("document", ["README.md", "docs/guide.md"])
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text())
    missing = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert targets and not missing


@pytest.mark.parametrize("document", ["README.md", "docs/guide.md"])
def test_commands_exist(document: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    known = set(re.findall(r"^    (\w+)  ", capsys.readouterr().out, re.MULTILINE))
    text = "\n".join(re.findall(r"```.*?```|`[^`]+`", (ROOT / document).read_text(), re.DOTALL))
    used = set(re.findall(r"(?:^|`)fusec (\w+)", text, re.MULTILINE))
    assert known >= {"demo", "explain", "bench", "cache", "doctor"}
    assert used and used <= known
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE)) <= targets


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        README.write_text(renewed(README.read_text(), shown_kernel(example(Path(folder)))))
