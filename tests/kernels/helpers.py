"""Runs a yardstick in Triton's interpreter, and compiles one for a GPU that is not there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from fusec.runtime.interpret import interpreted, run_grid

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
ARCHITECTURES = (80, 90, 100)


class Interpreted:
    """kernel[grid](*args, **blocks) on CPU tensors, as a launcher calls it."""

    def __init__(self, kernel: JITFunction) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, num_warps: int, **blocks: Any) -> None:
            values = dict(zip(self.kernel.arg_names, args, strict=False))
            run_grid(self.kernel.__name__, interpreted(self.kernel.fn), values, blocks, grid)

        return launch


def interpret(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel of the module runs on CPU tensors until the test ends."""
    for name, value in list(vars(module).items()):
        if isinstance(value, JITFunction):
            monkeypatch.setattr(module, name, Interpreted(value))


@dataclass(frozen=True)
class Binary:
    """What the machine code of one kernel uses."""

    registers: int
    spills: int  # loads and stores of local memory
    loads: Mapping[str, int]  # LDG instructions by width in bits

    @property
    def all_loads_wide(self) -> bool:
        return bool(self.loads) and set(self.loads) == {"128"}


def compile_for(
    kernel: JITFunction, signature: Mapping[str, str], constants: Mapping[str, object], arch: int, warps: int, out: Path
) -> Binary:
    """Compiles with every pointer and every 32-bit size divisible by 16; signature: parameter -> Triton type."""
    names = list(kernel.arg_names)
    full = {n: signature.get(n, "constexpr") for n in names}
    constexprs = {(names.index(n),): v for n, v in constants.items()}
    divisible = [n for n, t in full.items() if t.startswith("*") or t == "i32"]
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in divisible}
    source = ASTSource(kernel, full, constexprs, attributes)
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps})
    cubin = out / f"{kernel.__name__}_{arch}.cubin"
    cubin.write_bytes(built.asm["cubin"])
    usage = _run("cuobjdump", "--dump-resource-usage", str(cubin))
    sass = _run("nvdisasm", "-c", str(cubin))
    registers = re.search(r"REG:(\d+)", usage)
    assert registers, usage
    loads: dict[str, int] = {}
    for match in re.finditer(r"\bLDG(\.[\w.]+)", sass):
        width = next((w for w in ("256", "128", "64", "U16", "U8") if f".{w}" in match[1]), "32")
        loads[width] = loads.get(width, 0) + 1
    return Binary(int(registers[1]), len(re.findall(r"\b(?:LDL|STL)\b", sass)), loads)


def _run(tool: str, *args: str) -> str:
    return subprocess.run([str(TOOLS / tool), *args], capture_output=True, text=True, check=True).stdout
