"""The body of a kernel: the plan's SSA lines as Triton statements.

Enters: a KernelPlan, its Dims and their analysis. Leaves: lines of text, and the parameters they use.

    %0:bf16 = load x[4096*p0 + r0]        x = tl.load(x_ptr + 4096 * row + col).to(tl.float32)
    %1:f32 = cast %0
    %2:f32 = mul %1, %1                   mean_square = device.sum(x * x, 1) / 4096.0
    %3:f32 = sum %2
    %4:f32 = div %3, %c

A value read once is written where it is read, while the line stays short; every other value gets a name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from fusec.codegen.accumulators import Accumulators
from fusec.codegen.addresses import Addresses, Section, Widths
from fusec.codegen.analysis import Analysis, Part, Region, row_dims, spread_of
from fusec.codegen.hints import Hints
from fusec.codegen.names import Names
from fusec.codegen.neighbours import neighbours_along
from fusec.codegen.padding import Padding
from fusec.codegen.reduce import accumulator_dtype, reduce_call
from fusec.codegen.scan import continued, scan_call
from fusec.codegen.text import AND, ATOM, MUL, UNARY, Text, call
from fusec.codegen.tiles import Dim
from fusec.codegen.triton import TEXT, Operand, convert, dtype_text, literal, render, stores_implicitly
from fusec.ir.index import as_int
from fusec.ir.kernels import DimKind, KernelPlan
from fusec.ir.ops import MOMENTS, TAKES_POSITIONS, identity, is_reduction, is_scan
from fusec.ir.types import Access, AccessMode, Instr

MAX_OPS = 4  # operations folded into one line
MAX_LINE = 76
_EVEN_AT_ZERO = {"exp", "exp2", "sigmoid", "cos", "cosh", "abs", "lt", "le", "gt", "ge", "eq", "ne"}
_COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
# float32, int32 and int64 literals keep their type as arguments of a call; others would change the result's.
_CALL_LITERALS = (torch.float32, torch.int32, torch.int64)

# Device functions of these branch on the type of their first operand, which a literal does not have on a GPU.
_TYPED_BY_FIRST = frozenset({"pow", "mod", "floordiv", "truncdiv"})


@dataclass(slots=True)
class Value:
    """An SSA value as written. ops: operations folded into the text. narrow: an index value in 32 bits."""

    text: Text
    dtype: torch.dtype
    ops: int = 0
    literal: bool | int | float | None = None
    narrow: bool = False


class Emitter:
    """Writes one kernel. Create, call `emit`, read the lines and `pointers`, `sizes`."""

    def __init__(
        self,
        plan: KernelPlan,
        dims: tuple[Dim, ...],
        analysis: Analysis,
        names: Names,
        hints: Hints,
        padding: Padding,
        pointers: Mapping[str, str],
        precision: str,
        widths: Widths = Widths.AS_KNOWN,
    ) -> None:
        self.plan, self.dims, self.analysis, self.names = plan, dims, analysis, names
        self.hints, self.kept, self.padding = hints.names, hints.kept, padding
        self.pointers, self.precision = pointers, precision
        self.values: dict[str, Value] = {}
        self.addresses = Addresses(plan, dims, analysis, names, self._index_text, self._index_is_wide, widths)
        self.accumulators = Accumulators(plan, dims, analysis, names, hints, self.addresses)
        self.neighbours = neighbours_along(plan, analysis, self.addresses)
        self.loop, self.parts = self.addresses.loop, self.addresses.parts
        self.by_name = self.addresses.by_name
        self._enter(Section(), Region(0, Part.BEFORE))

    def _enter(self, section: Section, region: Region) -> None:
        self.section, self.region = section, region
        self.addresses.enter(section, region)

    # -- phases -----------------------------------------------------------------------------------

    def emit(self) -> list[str]:
        """All lines of the body, without indentation of the function itself."""
        blocks: list[list[str]] = []
        start = 0
        for number, phase in enumerate(self.plan.phases):
            numbered = [(start + k, instr) for k, instr in enumerate(phase)]
            start += len(phase)
            blocks.append(self._phase(number, numbered))
        blocks = [b for b in blocks if b]
        result = self.addresses.top
        for block in blocks:
            result += ["", *block] if result else block
        return result

    def _phase(self, number: int, phase: list[tuple[int, Instr]]) -> list[str]:
        live = [(k, i) for k, i in phase if self.analysis.live[k]]
        parts = {p: [(k, i) for k, i in live if self.analysis.regions[k].part is p] for p in Part}
        before, inside, after = Section(), Section(), Section()
        self._walks(parts[Part.BEFORE], before, Region(number, Part.BEFORE))
        if not parts[Part.LOOP]:
            self._walks(parts[Part.AFTER], before, Region(number, Part.AFTER))
            return before.lines
        assert self.loop is not None
        declared, ending = self.accumulators.declare([i for _, i in parts[Part.LOOP]], self.loop)
        before.lines += declared
        self._walks(parts[Part.LOOP], inside, Region(number, Part.LOOP))
        self.names.end_loop()
        self._walks(parts[Part.AFTER], after, Region(number, Part.AFTER), ending)
        barrier = ["tl.debug_barrier()"] if self._rereads_stores(Region(number, Part.BEFORE)) else []
        stages = self.plan.tile.num_stages
        loop = self._loop(self.loop, inside, "range" if stages == 1 else "tl.range", stages)
        return [*barrier, *before.lines, *loop, *after.lines]

    def _walks(
        self, lines: list[tuple[int, Instr]], section: Section, region: Region, ending: Sequence[Instr] = ()
    ) -> None:
        """The lines of a region; where a row is walked along in parts, walk after walk.

        ending: reductions along the loop that has just ended, whose results come first.
        """
        self._enter(section, region)
        for instr in ending:
            if not self.accumulators.in_parts(instr):
                self._finish(instr)
        for walk in sorted({self.analysis.regions[k].walk for k, _ in lines}):
            at = [region._replace(walk=walk, inside=part) for part in Part]
            before, inside, after = ([(k, i) for k, i in lines if self.analysis.regions[k] == r] for r in at)
            if walk and self._rereads_stores(at[0]):
                section.lines.append("tl.debug_barrier()")
            self._run(before, section, at[Part.BEFORE])
            if inside:
                self._over_parts(inside, section, at, [i for i in ending if self.accumulators.in_parts(i)])
            self._run(after, section, at[Part.AFTER])

    def _over_parts(
        self, lines: list[tuple[int, Instr]], section: Section, at: Sequence[Region], ending: Sequence[Instr]
    ) -> None:
        """One walk along a row, and the sums of the row. at: the regions before, in and after it."""
        assert self.parts is not None
        body, inside = [i for _, i in lines], Section(outer=section)
        declared, sums = self.accumulators.declare(body, self.parts)
        section.lines += declared
        self._enter(inside, at[Part.LOOP])
        for instr in ending:
            self._finish(instr)
        self._run(lines, inside, at[Part.LOOP])
        numbered = any(map(self.accumulators.in_parts, (*body, *ending)))
        section.lines += self._loop(self.parts, inside, "tl.static_range" if numbered else "range")
        self._enter(section, at[Part.AFTER])
        for instr in sums:
            self._finish(instr)

    def _loop(self, dim: Dim, inside: Section, steps: str, stages: int = 1) -> list[str]:
        """A loop over blocks of a dimension. steps: what its head calls."""
        base, start = f"{dim.variable}_start", f"tl.arange(0, {dim.block}){dim.subscript}"
        ahead = f", num_stages={stages}" if stages != 1 else ""
        head = f"for {base} in {steps}(0, {self.addresses.extent(dim)}, {dim.block}{ahead}):"
        return [head, *(f"    {line}" for line in [f"{dim.variable} = {base} + {start}", *inside.lines])]

    def _rereads_stores(self, region: Region) -> bool:
        """A pass that loads what an earlier one stored must wait for all threads of the program."""
        accesses = [(r.order, i.op, i.access) for r, i in zip(self.analysis.regions, self.plan.body, strict=True)]
        written = {a.buffer for order, op, a in accesses if a and op == "store" and order < region.order}
        return any(a.buffer in written for order, op, a in accesses if a and op == "load" and order == region.order)

    def _run(self, lines: list[tuple[int, Instr]], section: Section, region: Region) -> None:
        self._enter(section, region)
        for number, instr in lines:
            if instr.op == "load":
                self._load(number, instr)
            elif instr.access is not None:
                self._store(number, instr)
            elif instr.op == "const":
                value = instr.attr("value")
                self._set(instr, Value(literal(value, instr.dtype), instr.dtype, 0, value))
            elif instr.op == "index":
                self._index(instr)
            elif is_reduction(instr.op):
                self._reduction(instr)
            elif is_scan(instr.op):
                self._scan(instr)
            elif instr.op == "philox" and instr.args[1] in self.neighbours:
                self._philox_neighbours(instr)
            elif instr.op == "checked":
                self._check(instr)
            else:
                self._pointwise(instr)

    # -- values -----------------------------------------------------------------------------------

    def _set(self, instr: Instr, value: Value) -> None:
        assert instr.out is not None
        self.values[instr.out] = value

    def _name(self, instr: Instr, value: Value) -> None:
        """Write `name = text` and remember the name."""
        assert instr.out is not None
        name = self._fresh(self.hints[instr.out])
        self.section.lines.append(f"{name} = {value.text.text}")
        self.values[instr.out] = replace(value, text=Text(name), ops=0)

    def _fresh(self, hint: str) -> str:
        return self.names.fresh(hint, local=self.region.part is Part.LOOP)

    def _folds(self, instr: Instr, value: Value) -> bool:
        """True when the value's only reader, in the same region, can hold its text."""
        assert instr.out is not None
        if self.analysis.uses[instr.out] != 1 or instr.out in self.kept:
            return False
        (user,) = self.analysis.users[instr.out]
        reader = self.plan.body[user]
        if self.analysis.regions[user] != self.region or instr.out not in reader.args:
            return False
        return value.ops <= MAX_OPS and len(value.text.text) <= MAX_LINE

    def _result(self, instr: Instr, value: Value) -> None:
        if self._folds(instr, value):
            self._set(instr, value)
        else:
            self._name(instr, value)

    def _operand(self, name: str, *, narrow: bool = False) -> Operand:
        value = self.values[name]
        text = value.text
        if value.narrow and not narrow:
            text = Text(f"{text.wrap(ATOM)}.to(tl.int64)")
        return Operand(text, value.dtype, value.literal)

    def _index_text(self, name: str) -> str:
        return self._operand(name, narrow=True).text.wrap(ATOM)

    def _index_is_wide(self, name: str) -> bool:
        value = self.values[name]
        return value.dtype in (torch.int64, torch.uint64) and not value.narrow

    def _full(self, operand: Operand) -> Operand:
        """A literal as a tensor of its dtype."""
        shape = ", ".join("1" for _ in self.dims)
        return Operand(Text(f"tl.full([{shape}], {operand.text.text}, {dtype_text(operand.dtype)})"), operand.dtype)

    def _tensor(self, operand: Operand) -> Text:
        """The text of an operand; a literal as a tensor of its dtype."""
        return self._full(operand).text if operand.is_literal else operand.text

    def _pointwise(self, instr: Instr) -> None:
        narrow = self._takes_narrow(instr)
        operands = [self._operand(a, narrow=narrow) for a in instr.args]
        operands = self._with_literals(instr, operands)
        ops = sum(self.values[a].ops for a in instr.args) + (0 if instr.op == "cast" else 1)
        source = instr.args[0] if instr.args else ""
        if instr.op == "cast" and narrow:
            operands = [replace(o, dtype=torch.int32) for o in operands]
        if instr.op == "cast" and self._store_converts(instr, operands[0]):
            self._set(instr, Value(operands[0].text, instr.dtype, self.values[source].ops))
            return
        if instr.op == "neg" and self._sign_of_zero_is_lost(instr):
            value = Value(Text(f"-{operands[0].text.wrap(UNARY)}", UNARY), instr.dtype, ops)
        elif self._divides_rows(instr):
            inverse = Text(f"1.0 / {operands[1].text.wrap(UNARY)}", MUL)
            value = Value(Text(f"{operands[0].text.wrap(MUL)} * ({inverse.text})", MUL), instr.dtype, ops)
        else:
            value = Value(render(instr.op, operands, instr.dtype, self.precision), instr.dtype, ops)
        loaded = instr.op == "cast" and "tl.load(" in operands[0].text.text
        if not loaded and len(value.text.text) > MAX_LINE and any(len(o.text.text) > 24 for o in operands):
            operands = self._shortened(instr, operands, narrow)
            value = Value(render(instr.op, operands, instr.dtype, self.precision), instr.dtype, 1)
        if loaded:
            self._name(instr, value)
        else:
            self._result(instr, value)

    def _sign_of_zero_is_lost(self, instr: Instr) -> bool:
        """True when no reader of a float32 negation tells 0.0 from -0.0."""
        assert instr.out is not None
        readers = {self.plan.body[k].op for k in self.analysis.users[instr.out]}
        return instr.dtype in (torch.float32, torch.float64) and readers <= _EVEN_AT_ZERO

    def _divides_rows(self, instr: Instr) -> bool:
        """Dividing a tile by one number a row: one division a row and a product a point, where 16 bits are kept."""
        if instr.op != "div" or self.precision != "rough" or instr.dtype is not torch.float32:
            return False
        value, divisor = (self.analysis.varying[a] for a in instr.args)
        literal_operand = any(self.values[a].literal is not None for a in instr.args)
        return not literal_operand and divisor < value

    def _store_converts(self, instr: Instr, operand: Operand) -> bool:
        """True when the value only goes into a buffer of its dtype, which converts in the same way."""
        assert instr.out is not None
        readers = [self.plan.body[k] for k in self.analysis.users[instr.out]]
        return (
            len(readers) == 1
            and readers[0].op == "store"
            and readers[0].dtype is instr.dtype
            and readers[0].args[0] == instr.out
            and self.analysis.regions[self.analysis.users[instr.out][0]] == self.region
            and stores_implicitly(operand.dtype, instr.dtype)
        )

    def _shortened(self, instr: Instr, operands: list[Operand], narrow: bool) -> list[Operand]:
        """Name the folded operands of a line that grew too long."""
        for name in dict.fromkeys(instr.args):
            value = self.values[name]
            if value.ops and value.literal is None:
                self._name(self.plan.body[self.analysis.defined[name]], value)
        return self._with_literals(instr, [self._operand(a, narrow=narrow) for a in instr.args])

    def _takes_narrow(self, instr: Instr) -> bool:
        """Comparing an index with a 32-bit number or an index, making it a float or a counter, needs no 64 bits."""
        if instr.op == "cast":
            return instr.dtype.is_floating_point and self.values[instr.args[0]].narrow
        if instr.op == "philox":
            return self.values[instr.args[1]].narrow
        if instr.op not in _COMPARISONS:
            return False
        values = [self.values[a] for a in instr.args]
        fits = [v.narrow or (isinstance(v.literal, int) and abs(v.literal) < 2**31) for v in values]
        return all(fits) and any(v.narrow for v in values)

    def _with_literals(self, instr: Instr, operands: list[Operand]) -> list[Operand]:
        """Make tensors of the literals that the op's text cannot take."""
        typed = range(1, len(operands)) if instr.op == "where" else range(len(operands))
        has_tensor = any(not operands[k].is_literal for k in typed)
        row = TEXT[instr.op]
        result = list(operands)
        for k, operand in enumerate(operands):
            if not operand.is_literal:
                continue
            if instr.op in ("shl", "shr"):
                allowed = k == 1 and 0 <= int(operand.literal or 0) < operands[0].dtype.itemsize * 8
            else:
                untyped = k == 0 and instr.op in _TYPED_BY_FIRST
                allowed = row.literals or (operand.dtype in _CALL_LITERALS and not untyped)
            if not (allowed and has_tensor and k in typed):
                result[k] = self._full(operand)
                has_tensor = True
        return result

    def _index(self, instr: Instr) -> None:
        assert instr.out is not None
        if instr.out in self.neighbours:
            return  # only the start of the tile is written, where numbers are drawn
        flat = self.addresses.flatten(instr.attr("expr"))
        constant = as_int(flat)
        if constant is not None:
            self._set(instr, Value(literal(constant, instr.dtype), instr.dtype, 0, constant))
            return
        text = self.addresses.printer.text(flat)
        value = Value(
            text, torch.int64, 0 if text.precedence == ATOM else 1, None, not self.addresses.printer.is_wide(flat)
        )
        if text.precedence == ATOM or self._folds(instr, value):
            self._set(instr, value)
        else:
            self._name(instr, value)

    def _philox_neighbours(self, instr: Instr) -> None:
        seed, position, word = instr.args
        flat = self.addresses.flatten(self.plan.body[self.analysis.defined[position]].attr("expr"))
        along = self.neighbours[position]
        first, shape = self.addresses.first(flat, along), self.addresses.shape(frozenset({along.name}))
        operands = (self._operand(seed).text.text, first, shape, self._operand(word).text.text)
        self._result(instr, Value(call("device.philox_neighbours", *operands), instr.dtype, self.values[seed].ops + 1))

    def _check(self, instr: Instr) -> None:
        """An assertion, over the lanes within the tile; the value goes on as it is."""
        condition, value = instr.args
        text = self._tensor(self._operand(condition))
        masked = frozenset(d for d in self.analysis.varying[condition] if self.by_name[d].mask is not None)
        mask = f", mask={self.addresses.mask(masked)}" if masked else ""
        self.section.lines.append(f'tl.device_assert({text.text}, "index out of range"{mask})')
        if self.values[value].ops:
            self._result(instr, self.values[value])
        else:
            self._set(instr, self.values[value])

    # -- reductions -------------------------------------------------------------------------------

    def _reduction(self, instr: Instr) -> None:
        assert instr.out is not None
        removed = row_dims(self.plan, instr, self.dims)
        operands = [self._operand(a) for a in instr.args]
        if not removed:  # axes of extent 1
            self._copy_of_row(instr, operands)
            return
        (name,) = removed
        dim = self.by_name[name]
        tiles = self._short(instr, self._reduction_operands(instr, operands, dim))
        if dim.kind.is_walked:
            masked = instr.op in MOMENTS and dim.mask is not None
            mask = self.addresses.mask(frozenset({dim.name})) if masked else ""
            self.section.lines += self.accumulators.step(instr, tiles, operands[0].dtype, dim, mask)
            return
        text = reduce_call(instr, tiles, dim, operands[0].dtype)
        ops = sum(self.values[a].ops for a in instr.args) + 2
        self._result(instr, Value(text, instr.dtype, ops))

    def _copy_of_row(self, instr: Instr, operands: list[Operand]) -> None:
        """A reduction or a scan of a row of one element is the element, or its position."""
        last = operands[-1] if instr.op in TAKES_POSITIONS else operands[0]
        self._result(instr, Value(last.text, instr.dtype, 1, last.literal))

    def _scan(self, instr: Instr) -> None:
        assert instr.out is not None
        along = row_dims(self.plan, instr, self.dims)
        operands = [self._operand(a) for a in instr.args]
        if not along:
            self._copy_of_row(instr, operands)
            return
        (name,) = along
        dim = self.by_name[name]
        full = [self._over(a, self._tensor(o), dim) for a, o in zip(instr.args, operands, strict=True)]
        tiles = self._short(instr, full)
        if dim.kind is not DimKind.LOOP:
            self._result(instr, Value(scan_call(instr, tiles, dim), instr.dtype, MAX_OPS))
            return
        result = self._fresh(self.hints[instr.out])
        names = [result] if len(tiles) == 1 else [self._fresh("extreme"), result]
        carry, dtype = self.accumulators.carry(instr), operands[0].dtype
        self.section.lines += continued(instr, names, carry, tiles, dim, dtype)
        self._set(instr, Value(Text(result), instr.dtype))

    def _over(self, name: str, text: Text, dim: Dim) -> Text:
        """The text of a value as a tile over the whole of a dimension, also where it does not vary along it."""
        spread = self.analysis.varying[name]
        if dim.name in spread:
            return text
        return call("tl.broadcast_to", text.text, self.addresses.shape(spread | {dim.name}))

    def _short(self, instr: Instr, tiles: list[Text]) -> list[Text]:
        """Operands of a reduction on lines of their own, when together they are too long for one."""
        if sum(len(t.text) for t in tiles) <= MAX_LINE or len(tiles) == 1:
            return tiles
        result = []
        for hint, tile in zip(("candidates", "positions"), tiles, strict=True):
            name = self._fresh(hint)
            self.section.lines.append(f"{name} = {tile.text}")
            result.append(Text(name))
        return result

    def _reduction_operands(self, instr: Instr, operands: list[Operand], dim: Dim) -> list[Text]:
        """Operands over the whole tile dimension, with the identity at masked points."""
        result: list[Text] = []
        for k, (name, operand) in enumerate(zip(instr.args, operands, strict=True)):
            position = k == 1
            wide = accumulator_dtype(instr.op, operand.dtype)
            text = convert(operand.text, operand.dtype, wide) if not operand.is_literal else operand.text
            neutral = literal(2**63 - 1 if position else identity(instr.op, operand.dtype), wide)
            if operand.is_literal and (dim.mask is None or instr.out in self.padding.padded):
                text = self._full(Operand(text, wide)).text
            if instr.out in self.padding.padded or instr.op in MOMENTS:
                pass
            elif dim.mask is not None:
                fill = literal(operand.literal, wide) if operand.is_literal else text
                if operand.is_literal:
                    fill = self._full(Operand(fill, wide)).text
                text = Text(f"tl.where({self.addresses.mask(frozenset({dim.name}))}, {fill.text}, {neutral.text})")
            elif not dim.kind.is_walked:
                text = self._over(name, text, dim)
            result.append(text)
        return result

    def _finish(self, instr: Instr) -> None:
        """The result of a reduction whose loop has ended."""
        (name,) = row_dims(self.plan, instr, self.dims)
        self._result(instr, Value(self.accumulators.finish(instr, self.by_name[name]), instr.dtype, 2))

    # -- memory -----------------------------------------------------------------------------------

    def _load(self, number: int, instr: Instr) -> None:
        assert instr.access is not None and instr.out is not None
        pointer, mask = self._address(instr, instr.args[0] if instr.args else None)
        arguments = [pointer]
        if mask:
            arguments.append(mask)
            fill = instr.attr("other", 0) if instr.args else self.padding.fills.get(instr.out)
            if fill is not None:
                arguments.append(literal(fill, instr.dtype).text)
        eviction = self._eviction(number, instr.access)
        if eviction:
            arguments.append(f'eviction_policy="{eviction}"')
        value = Value(Text(f"tl.load({', '.join(arguments)})"), instr.dtype, 1)
        if self._moves_to_cast(number, instr):
            self._set(instr, value)
        else:
            self._name(instr, value)

    def _moves_to_cast(self, number: int, instr: Instr) -> bool:
        """A load whose only reader is the cast that follows it is written in the cast's line."""
        assert instr.out is not None
        if self.analysis.uses[instr.out] != 1:
            return False
        (user,) = self.analysis.users[instr.out]
        if self.plan.body[user].op != "cast" or self.analysis.regions[user] != self.region:
            return False
        return not any(i.access is not None and i.op != "load" for i in self.plan.body[number:user])

    def _store(self, number: int, instr: Instr) -> None:
        assert instr.access is not None
        pointer, mask = self._address(instr, instr.args[1] if len(instr.args) > 1 else None)
        operand = self._operand(instr.args[0])
        for count in self._repeats(instr):
            operand = Operand(Text(f"{operand.text.wrap(MUL)} * {count}", MUL), operand.dtype)
        text = operand.text
        if not operand.is_literal and not stores_implicitly(operand.dtype, instr.dtype):
            text = convert(text, operand.dtype, instr.dtype)
        arguments = [pointer, text.text, *([mask] if mask else [])]
        if instr.access.mode.is_atomic:
            self.section.lines.append(f'tl.{instr.access.mode.value}({", ".join(arguments)}, sem="relaxed")')
            return
        if len(text.text) > MAX_LINE and self.values[instr.args[0]].ops:
            self._name(self.plan.body[self.analysis.defined[instr.args[0]]], self.values[instr.args[0]])
            self._store(number, instr)
            return
        if self._overwrites_shared(number, instr):
            self.section.lines.append("tl.debug_barrier()")
        self.section.lines.append(f"tl.store({', '.join(arguments)})")

    def _repeats(self, instr: Instr) -> list[str]:
        """A sum takes in its value once a point of the axes it counts: the extents of those nothing varies along."""
        if not instr.axes:
            return []
        spread = spread_of(instr, self.analysis.varying, {a.name: d.name for d in self.dims for a in d.axes})
        counted = [d for d in self.dims if d.name not in spread and any(a.name in instr.axes for a in d.axes)]
        return [self.addresses.extent(d) for d in counted]

    def _overwrites_shared(self, number: int, instr: Instr) -> bool:
        """A store over what other threads of the program may have yet to load.

        The thread that stores an element is the one that loaded it where the tile has one dimension and the address
        follows it; everywhere else several threads may load it.
        """
        assert instr.access is not None
        earlier = (i.access for i in self.plan.body[:number] if i.op == "load")
        if not any(access is not None and access.buffer == instr.access.buffer for access in earlier):
            return False
        return len(self.dims) != 1 or not self.addresses.spread(self.addresses.flatten(instr.access.index))

    def _address(self, instr: Instr, condition: str | None) -> tuple[str, str]:
        """(pointer text, mask text or "") of an access."""
        assert instr.access is not None
        flat = self.addresses.flatten(instr.access.index)
        spread = self.addresses.spread(flat)
        name = self.pointers[instr.access.buffer]
        pointer = name if as_int(flat) == 0 else f"{name} + {self.addresses.offset(flat)}"
        wider: frozenset[str] = frozenset()
        if instr.op == "store" and instr.access.mode is not AccessMode.STORE:  # points may share an address
            wider = frozenset().union(*(self.analysis.varying[a] for a in instr.args)) - spread
        masked = frozenset(d for d in spread | wider if self.by_name[d].mask is not None)
        terms = [Text(self.addresses.mask(masked), ATOM)] if masked else []
        if condition is not None:
            terms.append(self._operand(condition).text)
            wider |= self.analysis.varying[condition] - spread
        if wider or (len(self.dims) > 1 and not spread and (instr.op != "load" or condition is not None)):
            # A scalar pointer takes no block, not even one of a single element.
            pointer = f"tl.broadcast_to({pointer}, {self.addresses.shape(spread | wider)})"
        mask = terms[0].text if len(terms) == 1 else " & ".join(t.wrap(AND) for t in terms)
        return pointer, mask

    def _eviction(self, number: int, access: Access) -> str:
        """In a looped kernel: keep what a later pass, or the next row, reads again; let go what was read last."""
        if self.loop is None or self.analysis.regions[number].part is not Part.LOOP:
            return ""
        spread = self.addresses.spread(self.addresses.flatten(access.index))
        if any(d.kind is DimKind.GRID and d.name not in spread for d in self.dims):
            return "evict_last"
        same = [
            self.analysis.regions[k].order
            for k, i in enumerate(self.plan.body)
            if i.op == "load" and i.access == access
        ]
        phase = self.analysis.regions[number].order
        if max(same) > phase:
            return "evict_last"
        return "evict_first" if min(same) < phase else ""
