"""The sizes of a call, read from its arguments.

Enters: a Schedule with symbolic sizes; the arguments of a call. Leaves: the value of each size, and the shape and
strides that each symbolic input must have.

    in  n = s0, x: f32[s0, 64] (64, 1)      args 17, f32[17, 64]    ->    s0 = 17;  x: (17, 64), (64, 1)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fusec.ir.index import IndexLike, as_int, evaluate
from fusec.ir.kernels import Schedule
from fusec.ir.sizes import size_names, size_text, solve_for_sizes

__all__ = ["CallSizes", "size_function"]

Read = Callable[[Sequence[Any]], int]


def size_function(exprs: Sequence[IndexLike], names: Sequence[str]) -> Callable[..., tuple[int, ...]]:
    """A function of sizes, in the order of `names`, that gives the values of the expressions."""
    values = "".join(f"{size_text(e, {n: n for n in names})}, " for e in exprs)
    function: Callable[..., tuple[int, ...]] = eval(f"lambda {', '.join(names)}: ({values})", {"__builtins__": {}})
    return function


class CallSizes:
    """Reads the sizes of a call. symbolic: positions of the inputs whose shape or strides hold sizes."""

    def __init__(self, schedule: Schedule) -> None:
        table = schedule.table
        named = [(i, table[name]) for i, name in enumerate(schedule.inputs) if name is not None]
        found = [(i, b) for i, b in named if any(as_int(n) is None for n in (*b.shape, *b.strides))]
        self.symbolic = tuple(i for i, _ in found)
        self._steps = tuple(solve_for_sizes(list(_sources(schedule))))
        names = [name for name, *_ in self._steps]
        known = [(i, b) for i, b in found if set(size_names((*b.shape, *b.strides))) <= set(names)]
        self._ranks = tuple((i, len(b.shape)) for i, b in known)
        self._layouts = size_function([n for _, b in known for n in (*b.shape, *b.strides)], names)

    def values(self, args: Sequence[Any]) -> tuple[int, ...]:
        """The value of every size, in a fixed order."""
        return tuple(self.named(args).values())

    def named(self, args: Sequence[Any]) -> dict[str, int]:
        """The value of every size, by its name."""
        found: dict[str, int] = {}
        for name, read, factor, rest in self._steps:
            found[name] = (read(args) - evaluate(rest, found)) // evaluate(factor, found)
        return found

    def layouts(self, values: tuple[int, ...]) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:
        """(position, shape, strides) of every symbolic input, for these sizes."""
        numbers, start = self._layouts(*values), 0
        for position, rank in self._ranks:
            yield position, numbers[start : start + rank], numbers[start + rank : start + 2 * rank]
            start += 2 * rank


def _sources(schedule: Schedule) -> Iterator[tuple[IndexLike, Read]]:
    for position, expr in schedule.numbers:
        yield expr, lambda args, i=position: int(args[i])  # type: ignore[misc]
    for position, name in enumerate(schedule.inputs):
        if name is None:
            continue
        buffer = schedule.table[name]
        for dim, extent in enumerate(buffer.shape):
            yield extent, lambda args, i=position, d=dim: int(args[i].shape[d])  # type: ignore[misc]
        for dim, stride in enumerate(buffer.strides):
            yield stride, lambda args, i=position, d=dim: int(args[i].stride(d))  # type: ignore[misc]
