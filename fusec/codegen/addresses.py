"""Indices, addresses, masks and shapes of a kernel's text, each written once where it is first needed.

Enters: the Dims, the analysis, the names. Leaves: variables, and the lines that define them:

    row = tl.program_id(0) * XBLOCK + tl.arange(0, XBLOCK)[:, None]
    col = tl.arange(0, RBLOCK)[None, :]
    col_mask = col < 1000
    offset = 1000 * row + col                # written more than once below

What does not vary along the loop is defined at the top of the kernel, the rest at its first use inside the loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum

from fusec.codegen.analysis import Analysis, Part, Region
from fusec.codegen.index import IndexPrinter
from fusec.codegen.names import Names
from fusec.codegen.text import SHIFT
from fusec.codegen.tiles import INTERPRETER_POINTS, Dim
from fusec.ir.index import (
    Atom,
    Expr,
    FloorDiv,
    IndexLike,
    Mod,
    Sym,
    as_expr,
    as_int,
    atom_expr,
    axis_symbol,
    substitute,
    symbols_of,
)
from fusec.ir.kernels import DimKind, KernelPlan
from fusec.ir.sizes import plain

# Order of definitions at the top of a kernel.
_VARIABLE, _DIVISION, _MASK, _OFFSET = range(4)


class Widths(Enum):
    """How wide sizes, and what is computed with them, are."""

    AS_KNOWN = "32-bit sizes; 64-bit addresses where 32 are not proved"
    GUARDED = "all in 32 bits: the launch checks that everything fits"
    WIDE = "64-bit sizes"


@dataclass
class Section:
    """Lines of one part of a kernel; `defined` holds the variables of indices, masks and offsets written in it.

    outer: the section around a loop over the parts of a row.
    """

    lines: list[str] = field(default_factory=list)
    defined: dict[object, str] = field(default_factory=dict)
    outer: Section | None = None


class Addresses:
    """Text of indices, addresses and masks. `enter` says which section is being written.

    value_text, value_wide: the variable of an SSA value used as an index, and whether it is 64-bit.
    """

    def __init__(
        self,
        plan: KernelPlan,
        dims: tuple[Dim, ...],
        analysis: Analysis,
        names: Names,
        value_text: Callable[[str], str],
        value_wide: Callable[[str], bool],
        widths: Widths,
    ) -> None:
        self.dims, self.analysis, self.names = dims, analysis, names
        self.value_text, self.value_wide = value_text, value_wide
        self.wide_sizes = widths is Widths.WIDE
        limits: set[IndexLike] | None = set() if widths is Widths.GUARDED else None
        self.loop = next((d for d in dims if d.kind is DimKind.LOOP), None)
        self.parts = next((d for d in dims if d.kind is DimKind.PARTS), None)
        self.by_name = {d.name: d for d in dims}
        self.by_variable = {d.variable: d for d in dims}
        self.sizes: dict[str, str] = {}
        self._starts: dict[str, Dim] = {}  # the symbol of a tile's first index -> its dimension
        self._top: list[tuple[int, int, str]] = []
        self._top_defined: dict[object, str] = {}
        self._section = Section()
        self._region = Region(0, Part.BEFORE)
        self._flat: dict[Expr, Expr] = {}
        axes = {name: expr for d in dims for name, expr in d.axis_exprs().items()}
        axes |= {a.name: Expr(()) for a in plan.axes if a.name not in axes}
        self.printer = IndexPrinter(axes, self._symbol, self._is_wide, self._hoisted, limits)
        self._count(plan)

    def require(self, sizes: Iterable[str]) -> None:
        """Make these sizes parameters, though the text may not use them."""
        for name in sizes:
            self._size(name)

    def enter(self, section: Section, region: Region) -> None:
        """Definitions that vary along the loop go into `section` from now on."""
        self._section, self._region = section, region

    @property
    def limits(self) -> frozenset[IndexLike]:
        """What must be below 2**31 where widths are guarded."""
        own = {plain(as_expr(d.extent) + INTERPRETER_POINTS) for d in self.dims if d.guarded}
        return frozenset(own | (self.printer.limits or set()))

    @property
    def top(self) -> list[str]:
        """Definitions at the top of the kernel: indices, then their parts, masks and offsets."""
        return [line for _, _, line in sorted(self._top, key=lambda item: item[:2])]

    def flatten(self, expr: Expr) -> Expr:
        """An expression over kernel axes as one over the tile's dimensions."""
        if expr not in self._flat:
            self._flat[expr] = self.printer.flatten(expr)
        return self._flat[expr]

    def first(self, flat: Expr, dim: Dim) -> str:
        """Text of an index at the start of the tile along a dimension, which it follows with coefficient 1."""
        start = as_expr(0)
        if dim.kind is not DimKind.WHOLE:
            start = axis_symbol(f"{dim.variable}_start", dim.extent)
            (symbol,) = symbols_of(start)
            self._starts[symbol.name] = dim
        return self.printer.text(substitute(flat, {dim.variable: start})).text

    def spread(self, flat: Expr) -> frozenset[str]:
        """Dimensions over which a flattened expression varies."""
        found: set[str] = set()
        for symbol in symbols_of(flat):
            if symbol.name in self.by_variable:
                found.add(self.by_variable[symbol.name].name)
            elif symbol.kind == "value":
                found |= self.analysis.varying[symbol.name]
        return frozenset(found)

    def shape(self, dims: frozenset[str], together: int = 1) -> str:
        """A tile's shape that varies over some dimensions: "[XBLOCK, 1]". together: neighbours that count as one."""
        blocks = [d.block if d.name in dims else "1" for d in self.dims]
        if together > 1:
            blocks[-1] = f"triton.cdiv({blocks[-1]}, {together})"
        return f"[{', '.join(blocks)}]"

    def extent(self, dim: Dim) -> str:
        constant = as_int(dim.extent)
        if constant is not None:
            return str(constant)
        assert isinstance(dim.extent, Expr)
        return self.printer.text(dim.extent).text

    def offset(self, flat: Expr) -> str:
        """Text of an address, to be added to a pointer; a variable when it is long and written more than once."""
        place = self._place(flat, self._region)
        text = self.printer.text(flat)
        shared = self.addresses[(place, flat)] > 1 and not _holds_values(flat)
        if not shared or text.text.isidentifier() or as_int(flat) is not None:
            return text.wrap(SHIFT + 1)
        return self._define(flat, place, _OFFSET, lambda: self._fresh("offset", place), text.text)

    def mask(self, wanted: frozenset[str]) -> str:
        """The variable that masks these dimensions."""
        masked = [d for d in self.dims if d.name in wanted]
        place = self._place_of(frozenset(d.name for d in masked), self._region)
        if len(masked) > 1:
            text = " & ".join(self.mask(frozenset({d.name})) for d in masked)
            return self._define(wanted, place, _MASK, lambda: self._fresh("mask", place), text)
        (dim,) = masked
        name = dim.mask
        assert name is not None
        return self._define(wanted, place, _MASK, lambda: name, f"{self.variable(dim)} < {self.extent(dim)}")

    def variable(self, dim: Dim) -> str:
        """The variable of a dimension; that of a loop is written at the loop's head."""
        if dim.kind.is_walked or dim.variable in self._top_defined:
            return dim.variable
        text = f"tl.arange(0, {dim.block}){dim.subscript}"
        if dim.program is not None:
            text = f"{self._program_start(dim)} + {text}"
        self._top.append((_VARIABLE, dim.position, f"{dim.variable} = {text}"))
        self._top_defined[dim.variable] = dim.variable
        return dim.variable

    def _program_start(self, dim: Dim) -> str:
        return f"{dim.instance}{'.to(tl.int64)' if dim.wide else ''} * {dim.block}"

    def _start(self, dim: Dim) -> str:
        """The variable of a tile's first index along a dimension; that of the loop is the loop's own."""
        if dim.kind.is_walked:
            return f"{dim.variable}_start"
        key = ("start", dim.variable)
        return self._define(
            key, None, _VARIABLE, lambda: self.names.fresh(f"{dim.variable}_start"), self._program_start(dim)
        )

    # -- definitions ------------------------------------------------------------------------------

    def _count(self, plan: KernelPlan) -> None:
        """How often each flattened address, and each division inside one, is written."""
        self.addresses: Counter[tuple[object, Expr]] = Counter()
        self.divisions: Counter[Atom] = Counter()
        for number, instr in enumerate(plan.body):
            if not self.analysis.live[number]:
                continue
            flats = [self.flatten(e) for e in instr.index_exprs]
            if instr.access is not None:
                self.addresses[(self._place(flats[0], self.analysis.regions[number]), flats[0])] += 1
            for flat in set(flats):
                self.divisions.update(set(_divisions(flat)))

    def _place(self, flat: Expr, region: Region) -> Region | None:
        """Where a definition lives: the loop of a phase, in it the loop over the parts, or (None) the kernel's top."""
        return self._place_of(self.spread(flat), region)

    def _place_of(self, spread: frozenset[str], region: Region) -> Region | None:
        if self.parts is not None and self.parts.name in spread:
            return region
        return region.around if self.loop is not None and self.loop.name in spread else None

    def _defined(self, place: Region | None) -> dict[object, str]:
        section = self._section_of(place)
        return self._top_defined if section is None else section.defined

    def _section_of(self, place: Region | None) -> Section | None:
        """The section of a place: the one being written, or that around it; None for the top."""
        if place is None:
            return None
        return self._section.outer if place.inside is Part.BEFORE and self._section.outer else self._section

    def _fresh(self, hint: str, place: Region | None) -> str:
        return self.names.fresh(hint, local=place is not None)

    def _define(self, key: object, place: Region | None, order: int, name: Callable[[], str], text: str) -> str:
        """Write `name = text` once in the section where it belongs."""
        section = self._section_of(place)
        defined = self._defined(place)
        if key not in defined:
            defined[key] = name()
            line = f"{defined[key]} = {text}"
            if section is None:
                self._top.append((order, len(self._top), line))
            else:
                section.lines.append(line)
        return defined[key]

    def _hoisted(self, atom: Atom) -> str | None:
        """The variable of `x // d` or `x % d`: one for each that more than one line needs."""
        flat = atom_expr(atom)
        if self.divisions[atom] < 2 or _holds_values(flat):
            return None
        place = self._place(flat, self._region)
        defined = self._defined(place)
        if flat in defined:
            return defined[flat]
        text = self.printer.division(atom).text
        return self._define(flat, place, _DIVISION, lambda: self._fresh(self._axis_hint(flat), place), text)

    def _axis_hint(self, flat: Expr) -> str:
        """`row_0` for the first axis of a dimension with several, `row_part` for another division of it."""
        for dim in self.dims:
            for position, expr in enumerate(dim.axis_exprs().values()):
                if expr == flat:
                    return f"{dim.variable}_{position}"
        variables = sorted(s.name for s in symbols_of(flat) if s.name in self.by_variable)
        return f"{variables[0] if variables else 'index'}_part"

    def _symbol(self, symbol: Sym) -> str:
        if symbol.name in self._starts:
            return self._start(self._starts[symbol.name])
        if symbol.name in self.by_variable:
            return self.variable(self.by_variable[symbol.name])
        if symbol.kind == "size":
            return self._size(symbol.name)
        return self.value_text(symbol.name)

    def _size(self, name: str) -> str:
        if name not in self.sizes:
            self.sizes[name] = self.names.fresh(name)
        return self.sizes[name]

    def _is_wide(self, symbol: Sym) -> bool:
        if symbol.name in self._starts:
            return self._starts[symbol.name].wide
        if symbol.name in self.by_variable:
            return self.by_variable[symbol.name].wide
        if symbol.kind == "size":
            return self.wide_sizes
        return symbol.kind == "value" and self.value_wide(symbol.name)


def _holds_values(flat: Expr) -> bool:
    return any(s.kind == "value" for s in symbols_of(flat))


def _divisions(flat: Expr) -> list[Atom]:
    """Every division in an expression, inner ones included."""
    found: list[Atom] = []
    for atom in flat.atoms():
        if isinstance(atom, FloorDiv | Mod):
            found += [atom, *_divisions(atom.num)]
    return found
