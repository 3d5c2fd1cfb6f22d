"""The sizes of a call, read from its arguments.

Enters: a Schedule with symbolic sizes; the arguments of a call. Leaves: the value of each size, and the shape and
strides that each symbolic input must have.

    in  n = s0, x: f32[s0, 64] (64, 1)      args 17, f32[17, 64]    ->    s0 = 17;  x: (17, 64), (64, 1)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fusec.ir.index import IndexLike, as_int
from fusec.ir.kernels import Schedule
from fusec.ir.sizes import size_names, size_text, solve_for_sizes

__all__ = ["CallSizes", "size_function"]


def size_function(exprs: Sequence[IndexLike], names: Sequence[str]) -> Callable[..., tuple[int, ...]]:
    """A function of sizes, in the order of `names`, that gives the values of the expressions."""
    values = "".join(f"{size_text(e, {n: n for n in names})}, " for e in exprs)
    function: Callable[..., tuple[int, ...]] = eval(f"lambda {', '.join(names)}: ({values})", {"__builtins__": {}})
    return function


class CallSizes:
    """Reads the sizes of a call. symbolic: positions of the inputs whose shape or strides hold sizes."""

    def __init__(self, schedule: Schedule) -> None:
        table = schedule.table
        inputs = [(i, table[name]) for i, name in enumerate(schedule.inputs) if name is not None]
        found = [(i, b) for i, b in inputs if any(as_int(n) is None for n in (*b.shape, *b.strides))]
        self.symbolic = tuple(i for i, _ in found)
        steps = tuple(solve_for_sizes(list(_sources(schedule))))
        self.names = tuple(name for name, *_ in steps)
        self.values = _reading(steps)
        known = [(i, b) for i, b in found if set(size_names((*b.shape, *b.strides))) <= set(self.names)]
        self._ranks = tuple((i, len(b.shape)) for i, b in known)
        self._layouts = size_function([n for _, b in known for n in (*b.shape, *b.strides)], self.names)

    def named(self, args: Sequence[Any]) -> dict[str, int]:
        """The value of every size, by its name."""
        return dict(zip(self.names, self.values(args), strict=True))

    def layouts(self, values: tuple[int, ...]) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:
        """(position, shape, strides) of every symbolic input, for these sizes."""
        numbers, start = self._layouts(*values), 0
        for position, rank in self._ranks:
            yield position, numbers[start : start + rank], numbers[start + rank : start + 2 * rank]
            start += 2 * rank


def _reading(steps: Sequence[tuple[str, str, IndexLike, IndexLike]]) -> Callable[[Sequence[Any]], tuple[int, ...]]:
    """A function of the arguments that gives the value of every size: s = (what an argument gives - rest) // factor."""
    lines, names = ["def values(args):"], list[str]()
    for name, text, factor, rest in steps:
        known = {n: n for n in names}
        value = f"int({text})" if rest == 0 else f"(int({text}) - ({size_text(rest, known)}))"
        lines.append(f"    {name} = {value}" + ("" if factor == 1 else f" // ({size_text(factor, known)})"))
        names.append(name)
    lines.append(f"    return ({', '.join(names)}{',' if len(names) == 1 else ''})")
    namespace: dict[str, Any] = {"__builtins__": {"int": int}}
    exec("\n".join(lines), namespace)
    function: Callable[[Sequence[Any]], tuple[int, ...]] = namespace["values"]
    return function


def _sources(schedule: Schedule) -> Iterator[tuple[IndexLike, str]]:
    """What arguments give, and the text that reads it."""
    for position, expr in schedule.numbers:
        yield expr, f"args[{position}]"
    for position, name in enumerate(schedule.inputs):
        if name is None:
            continue
        buffer = schedule.table[name]
        yield from ((extent, f"args[{position}].shape[{dim}]") for dim, extent in enumerate(buffer.shape))
        yield from ((stride, f"args[{position}].stride({dim})") for dim, stride in enumerate(buffer.strides))
