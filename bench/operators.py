"""docs/operators.md: how each op of PyTorch runs.

    python -m bench.operators            # writes docs/operators.md
    python -m bench.operators --print    # only the numbers

    | add | kernel | floats, ints, bool | complex |

An op is a packet of torch.ops.aten: all its overloads. In-place and out= forms are made functional by capture and stand
in the row of the op they are forms of.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket

from fusec.capture.coefficients import coefficient_table
from fusec.capture.decompositions import decomposition_table
from fusec.lowering.builder import KERNEL_DTYPES
from fusec.lowering.extern import LIBRARY
from fusec.lowering.registry import LOWERINGS, find_lowering

# torch._C._dispatch_*, torch.testing._internal: checked with torch 2.13.0.

PAGE = Path(__file__).resolve().parents[1] / "docs" / "operators.md"

HOW = {
    "kernel": "lowered to loop nests: part of a generated kernel, fused with its neighbours",
    "view": "an index expression: nothing runs, readers address the memory it names",
    "decomposed": "rewritten during capture into other ops of this table",
    "library": "a library call on purpose: what lies around it is fused up to it",
    "extern": "called as eager PyTorch calls it: no lowering, a warning once",
}
_GROUPS: dict[str, tuple[torch.dtype, ...]] = {
    "floats": (torch.float64, torch.float32, torch.float16, torch.bfloat16),
    "ints": (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    "bool": (torch.bool,),
    "complex": (torch.complex64, torch.complex128),
}


@dataclass(frozen=True)
class Operator:
    """how: a key of HOW. kernels, externs: groups of dtypes that kernels compute, and that only library calls do."""

    name: str
    how: str
    kernels: tuple[str, ...] = ()
    externs: tuple[str, ...] = ()


def packets() -> list[OpOverloadPacket]:
    """Every packet of torch.ops.aten with a functional form, by name."""
    names = {n.partition(".")[0].removeprefix("aten::") for n in _registered() if n.startswith("aten::")}
    found = [getattr(torch.ops.aten, n, None) for n in sorted(names)]
    return [p for p in found if p is not None and functional(p)]


@cache
def _registered() -> frozenset[str]:
    """Names of overloads with the dispatcher; TorchScript has others of its own."""
    return frozenset(torch._C._dispatch_get_all_op_names())


def functional(packet: OpOverloadPacket) -> list[OpOverload]:
    """The overloads that change no argument and take tensors or make them."""
    found = [getattr(packet, name) for name in packet.overloads()]
    return [o for o in found if o.name() in _registered() and not o._schema.is_mutable and _is_about_tensors(o)]


def _is_about_tensors(overload: OpOverload) -> bool:
    types = [str(a.type) for a in (*overload._schema.arguments, *overload._schema.returns)]
    return any("Tensor" in t for t in types)


def operators() -> list[Operator]:
    """A row for every packet."""
    table = decomposition_table().keys() - coefficient_table().keys()  # these stay where their number is a constant
    return [_operator(packet, table) for packet in packets()]


def _operator(packet: OpOverloadPacket, table: Set[Any]) -> Operator:
    name, overloads = packet.__name__, functional(packet)
    how = _how(name, overloads, table)
    supported = _supported().get(name, frozenset())
    groups = [g for g, dtypes in _GROUPS.items() if supported & frozenset(dtypes)]
    in_kernels = how in ("kernel", "view", "decomposed")
    kernels = tuple(g for g in groups if in_kernels and frozenset(_GROUPS[g]) & KERNEL_DTYPES)
    return Operator(name, how, kernels, tuple(g for g in groups if g not in kernels))


def _how(name: str, overloads: Sequence[OpOverload], table: Set[Any]) -> str:
    lowered = [o for o in overloads if find_lowering(o) is not None]
    if name in LIBRARY and not lowered:
        return "library"
    if any(o in table for o in overloads):
        return "decomposed"
    if lowered:
        return "view" if all(o.is_view for o in lowered) else "kernel"
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    implicit = all(has_kernel(o.name(), "CompositeImplicitAutograd") for o in overloads)
    return "decomposed" if implicit else "extern"


@cache
def _supported() -> dict[str, frozenset[torch.dtype]]:
    """dtypes of each op on CPU or CUDA, as PyTorch's own OpInfo suite lists them."""
    from torch.testing._internal.common_methods_invocations import op_db

    found: dict[str, frozenset[torch.dtype]] = {}
    for op in op_db:
        dtypes = frozenset(op.dtypes) | frozenset(op.dtypesIfCUDA or ())
        for name in {op.aten_name, op.name.rsplit(".", 1)[-1]}:
            found[name] = found.get(name, frozenset()) | dtypes
    return found


def lowered_packets(rows: Iterable[Operator]) -> int:
    """Packets of aten that have a lowering of our own, those that capture rewrites anyway not counted."""
    return sum(r.how in ("kernel", "view") for r in rows)


def rewritten_packets(rows: Iterable[Operator]) -> int:
    """Packets of aten with a lowering that capture rewrites before lowering meets them."""
    names = {getattr(k, "overloadpacket", k).__name__ for k in LOWERINGS if str(k).startswith("aten.")}
    return len(names - {r.name for r in rows if r.how in ("kernel", "view")})


def page(rows: Sequence[Operator]) -> str:
    counts = Counter(r.how for r in rows)
    lines = [
        "# How each op runs",
        "",
        f"Written by `python -m bench.operators` for torch {torch.__version__.partition('+')[0]}; {len(rows)} ops of "
        f"torch.ops.aten, {lowered_packets(rows)} of them lowered by fusec, and {rewritten_packets(rows)} more that "
        "have a lowering but are rewritten or made functional before it is asked.",
        "",
        "| how | ops | meaning |",
        "|---|---|---|",
        *(f"| {how} | {counts[how]} | {meaning} |" for how, meaning in HOW.items()),
        "",
        "floats: float64, float32, float16, bfloat16. ints: int64, int32, int16, int8, uint8. 8-bit floats are loaded, "
        "stored and converted inside kernels; complex numbers and uint16, uint32, uint64 are library calls. In-place "
        "and out= forms run as the op they are forms of. Dtypes are given for the ops of PyTorch's OpInfo suite.",
        "",
        "| op | how | kernels for | library calls for |",
        "|---|---|---|---|",
        *(f"| {r.name} | {r.how} | {', '.join(r.kernels)} | {', '.join(r.externs)} |" for r in rows),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.operators", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--print", action="store_true", help="write no file")
    given = parser.parse_args()
    rows = operators()
    counts = Counter(r.how for r in rows)
    print(f"{len(rows)} ops: " + ", ".join(f"{counts[how]} {how}" for how in HOW))
    print(f"{lowered_packets(rows)} packets lowered by fusec")
    if not given.print:
        PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
