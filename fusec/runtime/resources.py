"""What a compiled kernel uses, read back from its cubin with the tools of the triton wheel.

Enters: a cubin. Leaves: Resources, and on demand the counts of its memory instructions.

    read_resources(cubin)    == Resources(registers=24, spills=0, shared=1024)
    memory_instructions(cubin) == {"LDG.E.128": 2, "STG.E.128": 1}
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton

from fusec.errors import BuildError

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_TIMEOUT = 60.0

_USAGE = re.compile(r"REG:(\d+)\s+STACK:(\d+)\s+SHARED:(\d+)\s+LOCAL:(\d+)")
_MEMORY = re.compile(r"\b((?:LDGSTS|LDG|STG|LDL|STL|REDG|RED|ATOMG|ATOM)(?:\.[A-Z0-9]+)*)\b")
_WIDTHS = {"8": 1, "U8": 1, "S8": 1, "16": 2, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}


@dataclass(frozen=True, slots=True)
class Resources:
    """registers: 32-bit, per thread. spills: bytes of stack and local memory per thread. shared: static bytes."""

    registers: int
    spills: int
    shared: int


def read_resources(cubin: bytes) -> Resources:
    """Registers, spills and static shared memory of the only kernel in a cubin."""
    output = _run("cuobjdump", ["--dump-resource-usage"], cubin)
    found = _USAGE.search(output)
    if found is None:
        raise BuildError(f"cuobjdump printed no resource usage: {output.strip()[:200]!r}")
    registers, stack, shared, local = (int(number) for number in found.groups())
    return Resources(registers, max(stack, local), shared)


def memory_instructions(cubin: bytes) -> dict[str, int]:
    """How often each global, local and atomic memory instruction occurs in the machine code."""
    return dict(sorted(Counter(_MEMORY.findall(_run("nvdisasm", ["-c"], cubin))).items()))


def access_width(instruction: str) -> int:
    """Bytes one thread moves: 16 for LDG.E.128, 4 where no width is written."""
    return next((_WIDTHS[part] for part in instruction.split(".")[1:] if part in _WIDTHS), 4)


def _run(tool: str, arguments: list[str], cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_TOOLS / tool), *arguments, file.name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            raise BuildError(f"{tool} could not read the cubin: {error}") from error
    return done.stdout
