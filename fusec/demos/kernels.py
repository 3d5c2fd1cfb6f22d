"""The kernels of an explanation as files: scripts that run alone, and what each uses as sm_90 machine code.

Enters: an Explanation and a folder. Leaves: <folder>/<kernel>.py, and a table on the screen.

    kernel            launches  registers  spills  loads of 16 bytes  stores of 16 bytes
    add_layer_norm          12         38       0              4 / 4               1 / 1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusec.config import Config
from fusec.demos.show import heading, waiting
from fusec.inspect.dump import write_kernel_script
from fusec.inspect.explain import Explanation
from fusec.inspect.rows import KernelRow, table
from fusec.ir.types import Buffer
from fusec.runtime.build import build_kernels
from fusec.runtime.compiler import Artifact
from fusec.runtime.resources import access_width
from fusec.runtime.target import Target

__all__ = ["MachineCode", "cross_compile", "show_kernels", "write_scripts"]

ARCH = 90


@dataclass(frozen=True, slots=True)
class MachineCode:
    """What one kernel uses. wide and all: global loads, then stores: those of 16 bytes or more, and all."""

    registers: int
    spills: int
    wide: tuple[int, int]
    all: tuple[int, int]

    @classmethod
    def of(cls, artifact: Artifact) -> MachineCode:
        counts = artifact.instructions
        kinds = [{n: c for n, c in counts.items() if n.startswith(kind)} for kind in ("LDG", "STG")]
        wide = [sum(c for n, c in kind.items() if access_width(n) >= 16) for kind in kinds]
        return cls(
            artifact.registers,
            artifact.spills,
            (wide[0], wide[1]),
            (sum(kinds[0].values()), sum(kinds[1].values())),
        )


def write_scripts(explanation: Explanation, folder: Path) -> list[Path]:
    """One script a distinct kernel."""
    buffers: Mapping[str, Mapping[str, Buffer]] = {
        plan.name: record.schedule.table for record in explanation.graphs for plan in record.plans
    }
    return [
        write_kernel_script(folder / f"{k.name}.py", k.plan, k.source_info, buffers[k.plan.name])
        for k in explanation.kernels
    ]


def cross_compile(kernels: Sequence[KernelRow], arch: int = ARCH) -> list[MachineCode]:
    """Compile for an architecture, with or without a GPU here; cached like every build."""
    built = build_kernels([k.source_info for k in kernels], Target("cpu", (arch,)), Config.from_environment())
    return [MachineCode.of(kernel.artifacts[arch]) for kernel in built]


def show_kernels(explanation: Explanation, folder: Path) -> None:
    """Write the scripts, compile for sm_90, print registers, spills and the width of memory accesses."""
    kernels = explanation.kernels
    heading(f"Kernels as sm_{ARCH} machine code")
    paths = write_scripts(explanation, folder)
    with waiting(f"cross-compiling {len(kernels)} kernels"):
        codes = cross_compile(kernels)
    rows = [["kernel", "launches", "registers", "spills", "loads of 16 bytes", "stores of 16 bytes"]]
    for k, code in zip(kernels, codes, strict=True):
        loads, stores = (f"{w} of {n}" for w, n in zip(code.wide, code.all, strict=True))
        rows.append([k.name, str(k.launches), str(code.registers), str(code.spills), loads, stores])
    print("\n".join(table(rows)))
    if paths:
        print(f"\n{len(paths)} scripts in {folder}/; each checks and times its kernel: python {paths[0]}")
