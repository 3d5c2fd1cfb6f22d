"""Which node must run before which: reachability over a Program's nodes, kept up to date while groups merge.

Enters: nodes in program order. Leaves: answers to "may these two become one node without a cycle?".
Sets of nodes are the bits of Python ints, so a union is one machine operation per 64 nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fusec.ir.kernels import KernelPlan
from fusec.ir.sizes import size_names
from fusec.ir.types import Extern, Node, size_exprs


class Dependence:
    """Ancestors and descendants of every live node, by small integer ids.

    direct: of the nodes given, those each waits for itself; the others it waits for through these. Merging leaves it.
    """

    def __init__(self, nodes: Sequence[Node | KernelPlan]) -> None:
        self.before: list[int] = []  # bits: nodes that must run earlier
        self.after: list[int] = []
        self.direct: list[int] = []
        writer: dict[str, int] = {}
        readers: dict[str, int] = {}
        definer = _definers(nodes)
        for position, node in enumerate(nodes):
            direct = 0
            for name in _sizes_needed(node) if definer else ():
                direct |= 1 << definer[name] if name in definer else 0
            for name in node.reads:
                if name in writer:
                    direct |= 1 << writer[name]
            for name in node.writes:  # a later write waits for earlier writes and reads
                if name in writer:
                    direct |= 1 << writer[name]
                direct |= readers.get(name, 0)
            for name in node.reads:
                readers[name] = readers.get(name, 0) | 1 << position
            for name in node.writes:
                writer[name] = position
            direct &= ~(1 << position)
            closure = direct
            for other in bits(direct):
                closure |= self.before[other]
            self.direct.append(direct)
            self.before.append(closure)
            self.after.append(0)
        for position in reversed(range(len(nodes))):
            for other in bits(self.direct[position]):
                self.after[other] |= self.after[position] | 1 << position

    def ordered(self, a: int, b: int) -> bool:
        """True when a must run before b."""
        return bool(self.before[b] >> a & 1)

    def between(self, a: int, b: int) -> tuple[int, ...]:
        """The nodes that must run after one and before the other, in an order they may run in; none: they may merge."""
        middle = (self.after[a] & self.before[b]) | (self.after[b] & self.before[a])
        return tuple(sorted(bits(middle), key=lambda i: self.before[i].bit_count()))

    def merge(self, a: int, b: int) -> int:
        """A new node in place of a and b; returns its id."""
        new = len(self.before)
        both = 1 << a | 1 << b
        before = (self.before[a] | self.before[b]) & ~both
        after = (self.after[a] | self.after[b]) & ~both
        self.before.append(before)
        self.after.append(after)
        for other in bits(before):
            self.after[other] = self.after[other] & ~both | after | 1 << new
        for other in bits(after):
            self.before[other] = self.before[other] & ~both | before | 1 << new
        return new


def _definers(nodes: Sequence[Node | KernelPlan]) -> dict[str, int]:
    """Size -> the call that makes it known, for sizes that no argument has."""
    return {n: i for i, node in enumerate(nodes) if isinstance(node, Extern) for n in node.defines if n is not None}


def _sizes_needed(node: Node | KernelPlan) -> tuple[str, ...]:
    return size_names(node.exprs if isinstance(node, KernelPlan) else size_exprs(node))


def bits(value: int) -> Iterator[int]:
    """Positions of the set bits, lowest first."""
    while value:
        low = value & -value
        yield low.bit_length() - 1
        value ^= low
