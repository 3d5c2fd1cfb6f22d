"""Where random numbers are drawn for neighbours that lie side by side in a tile: four share a block of Philox.

Enters: a KernelPlan, its analysis and addresses. Leaves: the position values, each with its dimension of neighbours.

    %1 = index 1024*p0 + r0; %2 = philox %0, %1, 0      {"%1": r}   # rows start at multiples of 4
    %1 = index 1000*r0 + p0; %2 = philox %0, %1, 0      {"%1": x}
    %1 = index 37*p0 + r0;   %2 = philox %0, %1, 0      {}          # each element draws a block of its own
"""

from __future__ import annotations

from fusec.codegen.addresses import Addresses
from fusec.codegen.analysis import Analysis
from fusec.codegen.tiles import Dim
from fusec.ir.index import Expr
from fusec.ir.kernels import KernelPlan

__all__ = ["neighbours_along"]


def neighbours_along(plan: KernelPlan, analysis: Analysis, addresses: Addresses) -> dict[str, Dim]:
    """Positions that nothing but `philox` reads, with a seed that neighbours share -> the dimension they run along."""
    found: dict[str, Dim] = {}
    for number, instr in enumerate(plan.body):
        if instr.op != "index" or instr.out is None or not analysis.live[number]:
            continue
        along = _runs_along(addresses.flatten(instr.attr("expr")), addresses)
        readers = [plan.body[k] for k in analysis.users[instr.out]]
        if along is None or any(r.op != "philox" or r.args[1] != instr.out for r in readers):
            continue
        if not any(along.name in analysis.varying[r.args[0]] for r in readers):
            found[instr.out] = along
    return found


def _runs_along(flat: Expr, addresses: Addresses) -> Dim | None:
    """The dimension in which an index takes steps of 1, from a multiple of 4 in every tile of 4 points or more."""
    for dim in addresses.dims:
        rest = flat - dim.symbol
        alone = dim.name in addresses.spread(flat) - addresses.spread(rest)
        if alone and all(coefficient % 4 == 0 for _, coefficient in rest.terms):
            return dim
    return None
