"""The IR: what a Program is made of.

    program rms_norm
      in  x: bf16[64, 4096] (4096, 1)
    nest n0 (p0<64, r0<4096):                       # pow, mean  model.py:31
      %0:bf16 = load x[4096*p0 + r0]
      %1:f32 = cast %0
      %2:f32 = mul %1, %1
      %3:f32 = sum %2
      store ss[p0], %3

Grammar
    Program  := Buffer* (LoopNest | Extern)* outputs
    LoopNest := Axis* Instr*                 SSA lines over the points of the axes
    Instr    := out ":" dtype "=" op args    | mode Access, value [, mask]    mode: store, overwrite, atomic_add, ...
    Access   := buffer "[" Expr "]"          element offset from the buffer's first element

An Instr that does not depend on an axis has one value for all points of that axis. A reduction removes
the axes named in its `axes` attribute; what follows it sees one value per remaining point. A scan keeps them, and
its value varies along them.
Everything here is immutable; a pass builds new values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Union

from fusec.ir.index import Expr, IndexLike, SymbolicSize, axis_symbol, product, symbols_of
from fusec.ir.ops import OPS, OpKind
from fusec.ir.sizes import hint_of

if TYPE_CHECKING:
    import torch

Attr = Any  # int, float, bool, str, torch.dtype, Expr, or a tuple of these: hashable


class AxisKind(Enum):
    PARALLEL = "parallel"
    REDUCTION = "reduction"


@dataclass(frozen=True, slots=True)
class Axis:
    """A loop over [0, extent)."""

    name: str
    extent: IndexLike
    kind: AxisKind = AxisKind.PARALLEL

    @property
    def symbol(self) -> Expr:
        """The axis as an index expression; the constant 0 when its extent is 1."""
        return axis_symbol(self.name, self.extent)

    @property
    def is_reduction(self) -> bool:
        return self.kind is AxisKind.REDUCTION


class Role(Enum):
    INPUT = "in"
    OUTPUT = "out"
    TEMPORARY = "tmp"
    CONSTANT = "const"


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory with a dtype, a shape and strides in elements; name is unique in its Program.

    hint: the name a reader would use for it (`weight`, `x`, `mean`); not unique.
    numbers: for a CPU 0-dim input beside CUDA tensors, device says "cpu".
    """

    name: str
    dtype: torch.dtype
    shape: tuple[IndexLike, ...]
    strides: tuple[IndexLike, ...]
    device: str
    role: Role
    hint: str = ""

    @property
    def numel(self) -> IndexLike:
        return product(self.shape)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements, each once; with symbolic sizes, at the first call."""
        return hint_of(self.numel) * self.itemsize


class AccessMode(Enum):
    LOAD = "load"
    STORE = "store"
    # Into memory that holds data already, at addresses that several points may share:
    OVERWRITE = "overwrite"  # any of the points wins
    ATOMIC_ADD = "atomic_add"
    ATOMIC_MAX = "atomic_max"  # integers
    ATOMIC_MIN = "atomic_min"

    @property
    def is_atomic(self) -> bool:
        return self in (AccessMode.ATOMIC_ADD, AccessMode.ATOMIC_MAX, AccessMode.ATOMIC_MIN)


@dataclass(frozen=True, slots=True)
class Access:
    """One element of a buffer: `index` is its offset in elements from the buffer's first element."""

    buffer: str
    index: Expr
    mode: AccessMode = AccessMode.LOAD


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an instruction came from: the FX node and the user's line."""

    node: str  # FX node name, "add_3"
    op: str  # "aten.add.Tensor"
    file: str = ""
    line: int = 0
    code: str = ""  # the user's source line, stripped
    module: str = ""  # "encoder.layer.0.attention"


@dataclass(frozen=True, slots=True)
class Instr:
    """One SSA line.

    out:    "%3", or None for a store.
    op:     a row of `fusec.ir.ops.OPS`.
    args:   names of SSA values. load: () or (mask,). store: (value,) or (value, mask).
    dtype:  of the result; for a store, of the buffer (the value is converted when it is written).
    access: for load and store only.
    attrs:  sorted (name, value) pairs. const: value. index: expr. load: other (value where masked).
            axes: names of axes. Of a reduction, those that are removed; of a scan, those it runs along; of a store
            with mode ATOMIC_ADD, those it adds once a point for, also where nothing varies along them.
    """

    out: str | None
    op: str
    args: tuple[str, ...]
    dtype: torch.dtype
    access: Access | None = None
    attrs: tuple[tuple[str, Attr], ...] = ()
    origin: Origin | None = field(default=None, compare=False)

    def attr(self, name: str, default: Attr = None) -> Attr:
        for key, value in self.attrs:
            if key == name:
                return value
        return default

    @property
    def reduced_axes(self) -> tuple[str, ...]:
        """The axes a reduction removes; () for every other op."""
        return self.axes if OPS[self.op].kind is OpKind.REDUCTION else ()

    @property
    def scanned_axes(self) -> tuple[str, ...]:
        """The axes a scan runs along, in row-major order; () for every other op."""
        return self.axes if OPS[self.op].kind is OpKind.SCAN else ()

    @property
    def row_axes(self) -> tuple[str, ...]:
        """The axes of the row that a reduction or a scan needs as a whole; () for every other op."""
        return self.axes if OPS[self.op].kind in (OpKind.REDUCTION, OpKind.SCAN) else ()

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes this line names; see `attrs`."""
        axes: tuple[str, ...] = self.attr("axes", ())
        return axes

    @property
    def index_exprs(self) -> tuple[Expr, ...]:
        """Index expressions this line holds: of its access and of an `index` op."""
        found: tuple[Expr, ...] = (self.access.index,) if self.access is not None else ()
        expr = self.attr("expr")
        return (*found, expr) if isinstance(expr, Expr) else found

    @property
    def value_operands(self) -> tuple[str, ...]:
        """args and the SSA values used inside index expressions, in order, without repeats."""
        names = list(self.args)
        for expr in self.index_exprs:
            names += sorted(s.name for s in symbols_of(expr) if s.kind == "value")
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class LoopNest:
    """SSA lines executed for every point of the axes. As lowered, at most one reduction or scan."""

    name: str
    axes: tuple[Axis, ...]
    body: tuple[Instr, ...]

    @cached_property
    def loads(self) -> tuple[Access, ...]:
        return tuple(i.access for i in self.body if i.op == "load" and i.access is not None)

    @cached_property
    def stores(self) -> tuple[Access, ...]:
        return tuple(i.access for i in self.body if i.access is not None and i.op != "load")

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """Names of the buffers read, in order of first use."""
        return tuple(dict.fromkeys(a.buffer for a in self.loads))

    @cached_property
    def writes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(a.buffer for a in self.stores))

    @cached_property
    def reductions(self) -> tuple[Instr, ...]:
        return tuple(i for i in self.body if i.reduced_axes)

    @cached_property
    def scans(self) -> tuple[Instr, ...]:
        return tuple(i for i in self.body if i.scanned_axes)

    @cached_property
    def is_pointwise(self) -> bool:
        return not self.reductions and not self.scans

    @cached_property
    def origins(self) -> tuple[Origin, ...]:
        return tuple(dict.fromkeys(i.origin for i in self.body if i.origin is not None))


@dataclass(frozen=True, slots=True)
class TensorView:
    """A strided view of a buffer: what an extern call receives and what a program returns."""

    buffer: str
    shape: tuple[IndexLike, ...]
    strides: tuple[IndexLike, ...]
    offset: IndexLike = 0


@dataclass(frozen=True, slots=True)
class Relation:
    """A comparison of sizes that a library call receives: left op right, op as in Python."""

    op: str
    left: IndexLike
    right: IndexLike

    def __bool__(self) -> bool:
        raise SymbolicSize(f"{self} is not known at compile time")

    def __str__(self) -> str:
        return f"{self.left} {self.op} {self.right}"


ExternArg = Any  # TensorView | int | float | bool | str | None | torch.dtype | ... | tuples and dicts of these


@dataclass(frozen=True)
class Extern:
    """A call that is kept as it is: `outputs = target(*args, **kwargs)`.

    target:  a torch.ops overload, called with real tensors in place of TensorViews.
    outputs: a buffer name for each returned tensor, in order (None for a non-tensor result).
             A target that returns one tensor has one output.
    reason:  why this was not lowered: "library call" for matmul and its kin, "library call: ..." where a call is meant
             for another reason, else a sentence.
    mutates: buffers the call writes in place.
    defines: names of sizes that are not known before the call: numbers it returns, by position among its outputs.
             A size that only a returned tensor has is not named here.
    """

    name: str
    target: Any
    args: tuple[ExternArg, ...]
    kwargs: tuple[tuple[str, ExternArg], ...]
    outputs: tuple[str | None, ...]
    origin: Origin | None = field(default=None, compare=False)
    reason: str = "library call"
    mutates: tuple[str, ...] = ()
    defines: tuple[str | None, ...] = ()

    @cached_property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(v.buffer for v in tensor_views((self.args, tuple(v for _, v in self.kwargs)))))

    @property
    def writes(self) -> tuple[str, ...]:
        return tuple(o for o in self.outputs if o is not None) + self.mutates


def tensor_views(value: ExternArg) -> tuple[TensorView, ...]:
    """Every TensorView inside nested tuples, lists and dicts, in order."""
    if isinstance(value, TensorView):
        return (value,)
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return tuple(v for item in value for v in tensor_views(item))
    return ()


Node = Union[LoopNest, Extern]
Output = Union[TensorView, IndexLike, None]  # a tensor, a (symbolic) int, or None


@dataclass(frozen=True)
class Program:
    """Buffers and the nodes that fill them, in an order that respects every dependence.

    numbers: (position of an argument that is a symbolic number, its value as an expression over sizes).
    """

    name: str
    buffers: tuple[Buffer, ...]
    nodes: tuple[Node, ...]
    inputs: tuple[str | None, ...]  # buffer per positional argument; None: an argument that is not a tensor
    outputs: tuple[Output, ...]
    constants: tuple[tuple[str, torch.Tensor], ...] = field(default=(), compare=False)
    numbers: tuple[tuple[int, IndexLike], ...] = ()

    @cached_property
    def table(self) -> dict[str, Buffer]:
        """Buffers by name."""
        return {b.name: b for b in self.buffers}

    @cached_property
    def readers(self) -> Mapping[str, tuple[int, ...]]:
        """Positions of the nodes that read a buffer, in order."""
        return _positions(node.reads for node in self.nodes)

    @cached_property
    def writers(self) -> Mapping[str, tuple[int, ...]]:
        """Positions of the nodes that write a buffer, in order."""
        return _positions(node.writes for node in self.nodes)

    @cached_property
    def changing(self) -> frozenset[str]:
        """Buffers with several values or writers: inputs that are written, what a call mutates, segments."""
        mutated = {name for node in self.nodes if isinstance(node, Extern) for name in node.mutates}
        several = {n for n, at in self.writers.items() if len(at) > 1 or self.table[n].role is Role.INPUT}
        return frozenset(mutated | several)

    @cached_property
    def returned(self) -> frozenset[str]:
        """Names of the buffers that leave the program."""
        return frozenset(o.buffer for o in self.outputs if isinstance(o, TensorView))


def _positions(touched: Iterable[Iterable[str]]) -> dict[str, tuple[int, ...]]:
    found: dict[str, list[int]] = {}
    for position, names in enumerate(touched):
        for name in dict.fromkeys(names):
            found.setdefault(name, []).append(position)
    return {name: tuple(at) for name, at in found.items()}


def size_exprs(node: Node) -> tuple[IndexLike, ...]:
    """Every expression of a node that may hold sizes: extents, indices, shapes and numbers it is given."""
    if isinstance(node, LoopNest):
        return (*(a.extent for a in node.axes), *(e for i in node.body for e in i.index_exprs))
    return tuple(_numbers_in((node.args, tuple(v for _, v in node.kwargs))))


def _numbers_in(value: ExternArg) -> list[IndexLike]:
    if isinstance(value, Expr):
        return [value]
    if isinstance(value, TensorView):
        return [n for n in (*value.shape, *value.strides, value.offset) if isinstance(n, Expr)]
    if isinstance(value, Relation):
        return [n for n in (value.left, value.right) if isinstance(n, Expr)]
    if isinstance(value, dict):
        value = tuple(value.values())
    return [n for item in value for n in _numbers_in(item)] if isinstance(value, tuple | list) else []
