"""The accumulators of a loop: declared before it, combined with each tile inside it, reduced to results after it.

    total_acc = tl.full([XBLOCK, RBLOCK], 0.0, tl.float32)           declare
    for col_start in range(0, 4096, RBLOCK):
        total_acc += x                                               step
    total = device.sum(total_acc, 1)                                 finish

Where a row is walked along in parts, each part has its own sums along the columns:

    total_acc = (tl.full([XBLOCK, QBLOCK, RBLOCK], 0.0, tl.float32),) * 3
    for row_start in range(0, 32, QBLOCK):
        for col_start in tl.static_range(0, 12288, RBLOCK):
            total_acc = device.add_to_part(total_acc, col_start // RBLOCK, x)
    for col_start in tl.static_range(0, 12288, RBLOCK):
        total = device.sum(total_acc[col_start // RBLOCK], 1)
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from fusec.codegen.addresses import Addresses
from fusec.codegen.analysis import Analysis, row_dims
from fusec.codegen.hints import Hints
from fusec.codegen.names import Names
from fusec.codegen.reduce import combine, finish, initial
from fusec.codegen.scan import carries
from fusec.codegen.text import Text
from fusec.codegen.tiles import Dim
from fusec.ir.index import as_int
from fusec.ir.kernels import KernelPlan
from fusec.ir.ops import MOMENTS, is_scan
from fusec.ir.types import Instr


class Accumulators:
    """Names and lines of the accumulators of one kernel, and of the carries of its scans."""

    def __init__(
        self, plan: KernelPlan, dims: tuple[Dim, ...], analysis: Analysis, names: Names, hints: Hints, at: Addresses
    ) -> None:
        self.plan, self.dims, self.analysis = plan, dims, analysis
        self.names, self.hints, self.addresses = names, hints.names, at
        self._names: dict[str, list[str]] = {}
        self._shared: set[str] = set()  # reductions whose accumulators another one takes its tiles into

    def declare(self, inside: Sequence[Instr], dim: Dim) -> tuple[list[str], list[Instr]]:
        """Lines before the loop over `dim`, and the reductions along it."""
        lines: list[str] = []
        found: list[Instr] = []
        moments: dict[tuple[str, ...], list[str]] = {}
        along = [i for i in inside if i.row_axes and dim.name in row_dims(self.plan, i, self.dims)]
        maxima = {i.args: self.names.fresh(f"{self.hints[i.out]}_max") for i in along if i.op == "exp_sum" and i.out}
        for instr in along:
            assert instr.out is not None
            if is_scan(instr.op):
                lines += self._carries(instr, dim)
                continue
            found.append(instr)
            if (instr.op == "max" and instr.args in maxima) or (instr.op in MOMENTS and instr.args in moments):
                self._names[instr.out] = moments[instr.args] if instr.op in MOMENTS else [maxima[instr.args]]
                self._shared.add(instr.out)
                continue
            spread = self.analysis.varying[instr.out] | {dim.name}
            names = [self.names.fresh(f"{self.hints[instr.out]}_acc")]
            if instr.op in ("argmax", "argmin"):
                names.append(self.names.fresh(f"{self.hints[instr.out]}_at"))
            elif instr.op == "exp_sum":  # the running maxima, and the sums relative to them
                names.insert(0, maxima[instr.args])
            elif instr.op in MOMENTS:  # the first value, the mean relative to it, the sum about that, of how many
                hint = self.hints[instr.out]
                before_it = [self.names.fresh(f"{hint}_{part}") for part in ("first", "mean")]
                names = moments[instr.args] = [*before_it, *names, self.names.fresh(f"{hint}_count")]
            shape = self.addresses.shape(spread, self._neighbours(dim) if instr.op == "exp_sum" else 1)
            first = initial(instr, names, shape, self._dtype(instr))
            lines += [self._of_every_part(line) for line in first] if self.in_parts(instr) else first
            self._names[instr.out] = names
        return lines, found

    def step(self, instr: Instr, tiles: list[Text], dtype: torch.dtype, dim: Dim, mask: str) -> list[str]:
        """Lines inside the loop: the accumulators take in a tile. mask: of `dim`, where moments need it."""
        assert instr.out is not None
        if instr.out in self._shared:
            return []
        names = self._names[instr.out]
        if self.in_parts(instr):
            return [f"{names[0]} = device.add_to_part({names[0]}, {self._part()}, {tiles[0].text})"]
        return combine(instr, names, tiles, dtype, mask, f"{dim.variable}_start // {dim.block}")

    def finish(self, instr: Instr, dim: Dim) -> Text:
        """The result, after the loop; of one part, in a walk over the parts."""
        assert instr.out is not None
        names = self._names[instr.out]
        if self.in_parts(instr):
            names = [f"{name}[{self._part()}]" for name in names]
        return finish(instr, names, dim, self._dtype(instr))

    def carry(self, instr: Instr) -> list[str]:
        """What a scan carries from one block to the next."""
        assert instr.out is not None
        return self._names[instr.out]

    def in_parts(self, instr: Instr) -> bool:
        """A sum along the columns, of a row that is walked along in parts: one accumulator a part."""
        parts = self.addresses.parts
        if parts is None or instr.out is None or not instr.reduced_axes:
            return False
        return parts.name in self.analysis.varying[instr.out]

    def _part(self) -> str:
        parts = self.addresses.parts
        assert parts is not None
        return f"{parts.variable}_start // {parts.block}"

    def _of_every_part(self, line: str) -> str:
        parts = self.addresses.parts
        assert parts is not None
        extent, (name, _, value) = as_int(parts.extent), line.partition(" = ")
        assert extent is not None, "only rows of known length are walked along in parts"
        return f"{name} = ({value},) * {-(-extent // self.plan.tile.block(parts.name))}"

    def _neighbours(self, dim: Dim) -> int:
        """Points along the loop that a thread loads together, where it loops along rows: 16 bytes of the widest."""
        if dim.position != dim.rank - 1 or prod(b for d, b in self.plan.tile.blocks if d != "r") > 1:
            return 1
        sizes = {b.name: b.itemsize for b in self.plan.buffers}
        loads = [(i.access, i.out) for i in self.plan.body if i.op == "load"]
        along = [sizes[a.buffer] for a, out in loads if a and out and dim.name in self.analysis.varying[out]]
        return max(16 // max(along, default=4), 1)

    def _carries(self, instr: Instr, dim: Dim) -> list[str]:
        assert instr.out is not None
        hints = ("carry", "carry_at")[: len(instr.args)]
        names = [self.names.fresh(f"{self.hints[instr.out]}_{hint}") for hint in hints]
        self._names[instr.out] = names
        shape = self.addresses.shape(self.analysis.varying[instr.out] - {dim.name})
        return carries(instr, names, shape, self._dtype(instr))

    def _dtype(self, instr: Instr) -> torch.dtype:
        return self.plan.body[self.analysis.defined[instr.args[0]]].dtype
