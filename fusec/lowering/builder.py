"""Building loop nests: SSA lines over axes, with dtype rules checked as each line is written.

Enters: views (`Ref`), coordinates, Python numbers. Leaves: a `LoopNest`.

    with ctx.nest((64,), reduced=(4096,)) as nest:         # axes p0<64, r0<4096
        x = nest.load(ref, (nest.p[0], nest.r[0]))         # %0:bf16 = load x[4096*p0 + r0]
        x = nest.cast(x, torch.float32)                    # %1:f32 = cast %0
        total = nest.reduce("sum", x * x)                  # %2:f32 = mul %1, %1 ; %3:f32 = sum %2
        nest.store(out, nest.p, total)                     # store ss[p0], %3

Equal lines are written once. A Value carries its nest, so arithmetic reads as arithmetic; a Python number beside
a Value becomes a constant of the Value's dtype.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from functools import reduce
from typing import Any, Union

import torch

from fusec.ir.index import Expr, IndexLike, as_expr, as_int, value_symbol
from fusec.ir.ops import OPS, OpKind, Result, is_negative_zero
from fusec.ir.types import Access, AccessMode, Attr, Axis, AxisKind, Instr, LoopNest, Origin
from fusec.lowering.numbers import Number, converted
from fusec.lowering.ref import Ref
from fusec.lowering.registry import LibraryCall, NotLowered
from fusec.lowering.symbols import SymbolicFloat

Operand = Union["Value", bool, int, float, Expr, SymbolicFloat]

__all__ = [
    "FLOAT8",
    "KERNEL_DTYPES",
    "LOW_PRECISION",
    "NestBuilder",
    "Number",
    "Operand",
    "Value",
    "check_dtype",
    "compute_dtype",
]

LOW_PRECISION = (torch.float16, torch.bfloat16)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)  # kernels convert them and compute nothing in them
KERNEL_DTYPES = frozenset(
    {
        torch.float16, torch.bfloat16, torch.float32, torch.float64,
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    }
)  # fmt: skip


def check_dtype(dtype: torch.dtype, float8: bool = False) -> None:
    """NotLowered unless kernels can hold values of this dtype (no complex or quantised ones).

    float8: the target converts 8-bit floats.
    """
    if dtype not in KERNEL_DTYPES and not (float8 and dtype in FLOAT8):
        raise LibraryCall(f"kernels do not compute {str(dtype).removeprefix('torch.')}")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype a kernel computes in: float32 for float16 and bfloat16, else the dtype itself."""
    return torch.float32 if dtype in LOW_PRECISION else dtype


class Value:
    """One SSA value of a nest under construction."""

    __slots__ = ("dtype", "name", "nest")

    def __init__(self, nest: NestBuilder, name: str, dtype: torch.dtype) -> None:
        self.nest, self.name, self.dtype = nest, name, dtype

    def __add__(self, other: Operand) -> Value:
        return self.nest.op("add", self, other)

    def __radd__(self, other: Operand) -> Value:
        return self.nest.op("add", other, self)

    def __sub__(self, other: Operand) -> Value:
        return self.nest.op("sub", self, other)

    def __rsub__(self, other: Operand) -> Value:
        return self.nest.op("sub", other, self)

    def __mul__(self, other: Operand) -> Value:
        return self.nest.op("mul", self, other)

    def __rmul__(self, other: Operand) -> Value:
        return self.nest.op("mul", other, self)

    def __truediv__(self, other: Operand) -> Value:
        return self.nest.op("div", self, other)

    def __rtruediv__(self, other: Operand) -> Value:
        return self.nest.op("div", other, self)

    def __neg__(self) -> Value:
        return self.nest.op("neg", self)

    def __lt__(self, other: Operand) -> Value:
        return self.nest.op("lt", self, other)

    def __le__(self, other: Operand) -> Value:
        return self.nest.op("le", self, other)

    def __gt__(self, other: Operand) -> Value:
        return self.nest.op("gt", self, other)

    def __ge__(self, other: Operand) -> Value:
        return self.nest.op("ge", self, other)

    def __and__(self, other: Operand) -> Value:
        return self.nest.op("and", self, other)

    def __or__(self, other: Operand) -> Value:
        return self.nest.op("or", self, other)

    def __xor__(self, other: Operand) -> Value:
        return self.nest.op("xor", self, other)

    def __invert__(self) -> Value:
        return self.nest.op("not", self)

    def eq(self, other: Operand) -> Value:
        return self.nest.op("eq", self, other)

    def ne(self, other: Operand) -> Value:
        return self.nest.op("ne", self, other)

    def __repr__(self) -> str:
        return f"{self.name}:{str(self.dtype).removeprefix('torch.')}"

    def __bool__(self) -> bool:
        raise TypeError("a value of a nest has no truth value while the nest is being built; use nest.where")


class NestBuilder:
    """SSA lines over parallel axes p0, p1, ... and reduced axes r0, r1, ....

    p, r: the axes' symbols, the coordinates to read and write at (the constant 0 for an extent of 1).
    """

    def __init__(
        self,
        name: str,
        parallel: Sequence[IndexLike],
        reduced: Sequence[IndexLike] = (),
        origin: Origin | None = None,
        numbers: Mapping[str, Number] | None = None,
        device: str = "cpu",
        scalars: Container[str] = (),
        float8: bool = False,
    ) -> None:
        self.name, self.origin, self.device, self.float8 = name, origin, device, float8
        self._scalars = scalars  # 0-dim inputs on the CPU, which a kernel on another device may read
        self._numbers = {} if numbers is None else numbers
        self.parallel = tuple(Axis(f"p{i}", n) for i, n in enumerate(parallel))
        self.reduced = tuple(Axis(f"r{i}", n, AxisKind.REDUCTION) for i, n in enumerate(reduced))
        self.p: tuple[Expr, ...] = tuple(a.symbol for a in self.parallel)
        self.r: tuple[Expr, ...] = tuple(a.symbol for a in self.reduced)
        self._body: list[Instr] = []
        self._known: dict[Instr, Value] = {}

    # -- leaves -----------------------------------------------------------------------------------

    def const(self, value: Number | Expr | SymbolicFloat, dtype: torch.dtype) -> Value:
        """A number. It is converted to the dtype as PyTorch converts a scalar; one of sizes is computed from them."""
        check_dtype(dtype)
        if isinstance(value, Expr) and not value.is_constant:
            return self.index(value, dtype)
        if isinstance(value, SymbolicFloat):
            return self.cast(symbolic_float(self, value), dtype)
        value = value.constant if isinstance(value, Expr) else value
        number = converted(value, dtype)
        if is_negative_zero(number):
            return self.op("neg", self.const(0.0, dtype))
        return self._line("const", (), dtype, attrs=(("value", number),))

    def index(self, expr: IndexLike, dtype: torch.dtype = torch.int64) -> Value:
        """The value of an index expression, for example an arange."""
        constant = as_int(expr)
        if constant is not None:
            return self.const(constant, dtype)
        return self.cast(self._line("index", (), torch.int64, attrs=(("expr", as_expr(expr)),)), dtype)

    def load(self, ref: Ref, where: Sequence[IndexLike], mask: Value | None = None, other: Number = 0) -> Value:
        """The element of a view at coordinates; `other` where the mask is false."""
        number = self._numbers.get(ref.buffer)
        if number is not None and ref.dtype is ref.stored:
            return self.const(number, ref.dtype)
        check_dtype(ref.stored, self.float8)
        check_dtype(ref.dtype, self.float8)
        if ref.device != self.device and (ref.buffer not in self._scalars or ref.dtype in FLOAT8):
            raise LibraryCall(f"{ref.buffer!r} lives on {ref.device}, the kernels run on {self.device}")
        access = Access(ref.buffer, ref.at(where))
        if mask is None:
            value = self._line("load", (), ref.stored, access)
        else:
            value = self._line("load", (mask.name,), ref.stored, access, (("other", converted(other, ref.stored)),))
        return value if ref.dtype is ref.stored else self._line("bitcast", (value.name,), ref.dtype)

    def load_f32(self, ref: Ref, where: Sequence[IndexLike], mask: Value | None = None, other: Number = 0) -> Value:
        """`load`, then `cast` to the dtype that kernels compute in (float32 for float16 and bfloat16)."""
        return self.cast(self.load(ref, where, mask, other), compute_dtype(ref.dtype))

    def as_index(self, value: Value, extent: IndexLike) -> Expr:
        """An integer value as an index expression, known to lie in [0, extent)."""
        value = self.cast(value, torch.int64)
        top = as_int(extent)
        return as_expr_of(value, extent - 1 if top is None else max(top - 1, 0))

    # -- lines ------------------------------------------------------------------------------------

    def op(self, name: str, *operands: Operand) -> Value:
        """A pointwise op of the table. Python numbers take the dtype of the Values beside them."""
        info = OPS[name]
        assert info.kind is OpKind.POINTWISE and name not in ("cast", "bitcast"), f"{name} is not a pointwise op"
        assert len(operands) == info.arity, f"{name} takes {info.arity} operands, got {len(operands)}"
        if name == "where":
            condition, a, b = operands
            assert isinstance(condition, Value)
            return self.where(condition, a, b)
        values = self._unified(name, operands)
        dtype = torch.bool if info.result is Result.BOOL else values[0].dtype
        return self._line(name, tuple(v.name for v in values), dtype)

    def where(self, condition: Value, a: Operand, b: Operand) -> Value:
        assert condition.dtype is torch.bool, f"where needs a bool condition, got {condition}"
        left, right = self._unified("where", (a, b))
        if left.name == right.name:
            return left
        return self._line("where", (condition.name, left.name, right.name), left.dtype)

    def cast(self, value: Value, dtype: torch.dtype) -> Value:
        """Value conversion as Tensor.to. Nothing is written when the dtype is already right."""
        if value.dtype is dtype:
            return value
        if dtype is torch.bool:
            return self.op("ne", self.cast(value, torch.float32) if value.dtype in FLOAT8 else value, 0)
        check_dtype(dtype, self.float8)
        return self._line("cast", (value.name,), dtype)

    def philox(self, seed: Value, index: Value, word: int) -> Value:
        """32 random bits as int32: word number 0 to 3 of the element at `index`, under `seed`."""
        words = self.const(word, torch.int64)
        return self._line("philox", (seed.name, index.name, words.name), torch.int32)

    def bitcast(self, value: Value, dtype: torch.dtype) -> Value:
        assert value.dtype.itemsize == dtype.itemsize, f"bitcast of {value} to {dtype}"
        return value if value.dtype is dtype else self._line("bitcast", (value.name,), dtype)

    def checked(self, condition: Value, value: Value) -> Value:
        """The value; an IndexError, or a device assertion, where the condition does not hold."""
        return self._line("checked", (condition.name, value.name), value.dtype)

    def reduce(
        self, name: str, value: Value, position: Value | None = None, axes: Sequence[Axis] | None = None
    ) -> Value:
        """Reduce over the reduced axes (all of them unless `axes` says). argmax and argmin take a position."""
        assert OPS[name].kind is OpKind.REDUCTION, f"{name} is not a reduction"
        return self._over(self.reduced if axes is None else axes, name, value, position)

    def scan(self, name: str, value: Value, position: Value | None = None) -> Value:
        """Run along the reduced axes, which stay. cumargmax and cumargmin take a position."""
        assert OPS[name].kind is OpKind.SCAN, f"{name} is not a scan"
        return self._over(self.reduced, name, value, position)

    def store(
        self,
        ref: Ref,
        where: Sequence[IndexLike],
        value: Value,
        mask: Value | None = None,
        mode: AccessMode = AccessMode.STORE,
    ) -> None:
        """Write a value. Rounding float32 to float16 or bfloat16 is the store's own; any other conversion is a cast."""
        assert ref.dtype is ref.stored, "a bitcast view cannot be written"
        check_dtype(ref.dtype, self.float8 and not mode.is_atomic)
        if not (value.dtype is torch.float32 and ref.dtype in LOW_PRECISION):
            value = self.cast(value, ref.dtype)
        args = (value.name,) if mask is None else (value.name, mask.name)
        access = Access(ref.buffer, ref.at(where), mode)
        counted = tuple(a.name for a in self.parallel) if mode is AccessMode.ATOMIC_ADD else ()
        attrs = (("axes", counted),) if counted else ()
        self._body.append(Instr(None, "store", args, ref.dtype, access, attrs, self.origin))

    def finish(self) -> LoopNest:
        assert any(i.out is None for i in self._body), f"nest {self.name} stores nothing"
        return LoopNest(self.name, self.parallel + self.reduced, tuple(self._body))

    # -- inside -----------------------------------------------------------------------------------

    def _line(
        self,
        op: str,
        args: tuple[str, ...],
        dtype: torch.dtype,
        access: Access | None = None,
        attrs: tuple[tuple[str, Attr], ...] = (),
    ) -> Value:
        key = Instr(None, op, args, dtype, access, tuple((n, _key(v)) for n, v in attrs))
        found = self._known.get(key)
        if found is not None:
            return found
        value = Value(self, f"%{len(self._known)}", dtype)
        self._known[key] = value
        self._body.append(Instr(value.name, op, args, dtype, access, attrs, self.origin))
        return value

    def _over(self, axes: Sequence[Axis], name: str, value: Value, position: Value | None) -> Value:
        check_dtype(value.dtype)
        args = (value.name,) if position is None else (value.name, position.name)
        assert len(args) == OPS[name].arity, f"{name} takes {OPS[name].arity} operands, got {len(args)}"
        dtype = torch.int64 if OPS[name].result is Result.INDEX else value.dtype
        return self._line(name, args, dtype, attrs=(("axes", tuple(a.name for a in axes)),))

    def _unified(self, name: str, operands: Sequence[Operand]) -> list[Value]:
        dtypes = {o.dtype for o in operands if isinstance(o, Value)}
        assert len(dtypes) == 1, f"operands of {name} must share a dtype, got {list(operands)}"
        (dtype,) = dtypes
        check_dtype(dtype)
        return [o if isinstance(o, Value) else self.const(o, dtype) for o in operands]


def as_expr_of(value: Value, hi: IndexLike) -> Expr:
    """An SSA value as an index expression in [0, hi]."""
    return value_symbol(value.name, hi)


def symbolic_float(nest: NestBuilder, number: SymbolicFloat) -> Value:
    """A float of sizes, computed in float64 as Python does. NotLowered for a function that kernels do not have."""
    sizes = dict(number.sizes)
    binary = {"IntTrueDiv": "div", "FloatTrueDiv": "div", "FloatPow": "pow", "Pow": "pow", "Add": "add", "Mul": "mul"}

    def visit(e: Any) -> Value:
        kind = type(e).__name__
        if e.is_Symbol:
            return nest.index(sizes[str(e)], torch.float64)
        if e.is_number:
            return nest.const(float(e), torch.float64)
        if kind == "ToFloat":
            return visit(e.args[0])
        if kind in binary:
            return reduce(lambda a, b: nest.op(binary[kind], a, b), map(visit, e.args))
        if kind == "OpaqueUnaryFn_sqrt":
            return nest.op("sqrt", visit(e.args[0]))
        raise NotLowered(f"the number {number.expr} is not known at compile time")

    return visit(number.expr)


def _key(value: Any) -> Any:
    # 0.0 == -0.0, 1 == True and nan != nan: text tells constants apart.
    return repr(value) if isinstance(value, bool | int | float) else value
