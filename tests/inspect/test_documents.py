"""README and guide say what is: the kernel shown is the kernel generated, every link and command exists.

After a change of generated text: python -m tests.inspect.test_documents
"""

from __future__ import annotations

import re
import runpy
import tempfile
from pathlib import Path

import pytest

from fusec import cli
from fusec.api import reset
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
