"""Hand-built KernelPlans, and how to run one: generated text in the interpreter beside the IR's own evaluation.

plan = Build(rows(64), cols(1000)).load("x").sum().store("out").plan()
check(plan, x=torch.randn(64, 1000))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch

from fusec.codegen.kernel import generate_kernel
from fusec.config import Config
from fusec.ir.evaluate import evaluate_nest
from fusec.ir.index import Expr, IndexLike, as_expr, axis_symbol, value_symbol
from fusec.ir.kernels import (
    DimKind,
    KernelCost,
    KernelPlan,
    KernelSource,
    Strategy,
    Tile,
    TileDim,
)
from fusec.ir.ops import OPS, Result, is_reduction, is_scan
from fusec.ir.types import Access, Axis, AxisKind, Buffer, Instr, Origin, Role
from fusec.runtime.grid import launch_grid
from fusec.runtime.interpret import InterpretedKernel

MANY = 100
COST = KernelCost(4096, 4096, 4096, 0, 32, 1e-6)
f32, bf16, i64 = torch.float32, torch.bfloat16, torch.int64


def pow2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


class Build:
    """Builds a plan line by line. Axes are named x0, x1, y0, r0 after their dimension; q is a loop over rows, or held.

    A line returns the name of its value; `phase()` starts the next phase of a looped kernel.
    """

    def __init__(
        self, *, looped: bool = False, held: bool = False, precision: str = "fast", **dims: int | tuple[int, ...]
    ) -> None:
        self.config = Config(precision=precision)
        self.looped = looped
        self.dims: list[TileDim] = []
        self.axes: list[Axis] = []
        for name, extents in dims.items():
            names = []
            for k, extent in enumerate((extents,) if isinstance(extents, int) else extents):
                kind = AxisKind.REDUCTION if name in ("q", "r") else AxisKind.PARALLEL
                self.axes.append(Axis(f"{name}{k}", extent, kind))
                names.append(f"{name}{k}")
            kinds = {"r": DimKind.LOOP if looped else DimKind.WHOLE, "q": DimKind.WHOLE if held else DimKind.LOOP}
            self.dims.append(TileDim(name, tuple(names), kinds.get(name, DimKind.GRID)))
        self.phases: list[list[Instr]] = [[]]
        self.buffers: dict[str, Buffer] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.origin: Origin | None = None

    def at(self, node: str, op: str, code: str = "", line: int = 1, file: str = "model.py") -> Build:
        """Lines that follow come from this FX node."""
        self.origin = Origin(node, op, file, line, code)
        return self

    def axis(self, name: str) -> Expr:
        found = next(a for a in self.axes if a.name == name)
        return axis_symbol(found.name, found.extent)

    def index(self, **strides: int) -> Expr:
        """sum of stride * axis, plus `offset`."""
        total = as_expr(strides.pop("offset", 0))
        for name, stride in strides.items():
            total = total + self.axis(name) * stride
        return total

    def buffer(
        self, name: str, dtype: torch.dtype, shape: Sequence[int], role: Role = Role.INPUT, hint: str = ""
    ) -> None:
        strides = torch.empty(tuple(shape), device="meta").stride()
        self.buffers[name] = Buffer(name, dtype, tuple(shape), strides, "cpu", role, hint or name)

    def _add(
        self,
        op: str,
        args: tuple[str, ...],
        dtype: torch.dtype,
        access: Access | None = None,
        **attrs: Any,
    ) -> str:
        out = None if op == "store" else f"%{sum(len(p) for p in self.phases)}"
        line = Instr(out, op, args, dtype, access, tuple(sorted(attrs.items())), self.origin)
        self.phases[-1].append(line)
        if out is not None:
            self.dtypes[out] = dtype
        return out or ""

    def load(self, name: str, index: Expr, mask: str | None = None, other: Any = 0) -> str:
        access = Access(name, index)
        if mask is None:
            return self._add("load", (), self.buffers[name].dtype, access)
        return self._add("load", (mask,), self.buffers[name].dtype, access, other=other)

    def store(self, name: str, index: Expr, value: str, mask: str | None = None) -> None:
        args = (value,) if mask is None else (value, mask)
        self._add("store", args, self.buffers[name].dtype, Access(name, index))

    def const(self, value: Any, dtype: torch.dtype = f32) -> str:
        return self._add("const", (), dtype, value=value)

    def position(self, expr: IndexLike) -> str:
        return self._add("index", (), i64, expr=as_expr(expr))

    def value(self, name: str, hi: int) -> Expr:
        """An SSA value as an index."""
        return value_symbol(name, hi)

    def cast(self, value: str, dtype: torch.dtype) -> str:
        return self._add("cast", (value,), dtype)

    def op(self, op: str, *args: str, over: str = "r") -> str:
        info = OPS[op]
        dtype = self.dtypes[args[-1]]
        if info.result is Result.BOOL:
            dtype = torch.bool
        if info.result is Result.INDEX:
            dtype = i64
        if is_reduction(op) or is_scan(op):
            axes = tuple(a.name for a in self.axes if a.is_reduction and a.name[0] == over)
            return self._add(op, args, self.dtypes[args[0]] if info.result is Result.SAME else dtype, axes=axes)
        return self._add(op, args, dtype)

    def phase(self) -> None:
        self.phases.append([])

    def plan(self, **blocks: int) -> KernelPlan:
        """The plan; blocks default to small GPU-like ones."""
        extents = {d.name: 1 for d in self.dims}
        for dim in self.dims:
            for axis in self.axes:
                if axis.name in dim.axes:
                    extents[dim.name] *= int(axis.extent)  # type: ignore[arg-type]
        chosen: list[tuple[str, int]] = []
        for dim in self.dims:
            default = {DimKind.GRID: 8, DimKind.LOOP: 16, DimKind.WHOLE: pow2(extents[dim.name])}[dim.kind]
            chosen.append((dim.name, blocks.get(dim.name, default)))
        strategy = Strategy.FLAT
        if any(d.name == "q" for d in self.dims):
            strategy = Strategy.ROW_AND_COLUMN
        elif any(d.name == "r" for d in self.dims):
            strategy = Strategy.LOOPED_ROW if self.looped else Strategy.PERSISTENT_ROW
        elif len(self.dims) == 2:
            strategy = Strategy.TILE_2D
        return KernelPlan(
            name="k0",
            axes=tuple(self.axes),
            dims=tuple(self.dims),
            phases=tuple(tuple(p) for p in self.phases),
            buffers=tuple(self.buffers.values()),
            strategy=strategy,
            tile=Tile(tuple(chosen)),
            cost=COST,
            boundary="its result leaves the graph",
        )


def generate(build: Build, **blocks: int) -> KernelSource:
    return generate_kernel(build.plan(**blocks), build.buffers, build.config)


def run(source: KernelSource, tensors: dict[str, torch.Tensor], tile: Tile) -> dict[str, torch.Tensor]:
    """Interpret the text with a tile's blocks; returns copies of the tensors, written to."""
    memory = {name: t.clone() for name, t in tensors.items()}
    pointers = [memory[p.buffer] for p in source.params if p.kind == "pointer" and p.buffer is not None]
    InterpretedKernel(source).launch(pointers, [], launch_grid(source, tile, ()), tile)
    return memory


def evaluate(build: Build, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The plan's meaning on the same tensors."""
    plan = build.plan()
    memory = {name: t.clone().flatten() for name, t in tensors.items()}
    evaluate_nest(plan.axes, plan.body, build.buffers, memory)
    return {name: memory[name].view(t.shape) for name, t in tensors.items()}


def check(
    build: Build, *, rtol: float = 2e-6, atol: float = 2e-6, blocks: dict[str, int] | None = None, **inputs: Any
) -> str:
    """Interpreted text = evaluated IR, with GPU-like blocks and with the interpreter's; returns the text."""
    source = generate(build, **(blocks or {}))
    tensors = dict(inputs)
    for name, buffer in build.buffers.items():
        if name not in tensors:
            fill = torch.zeros(tuple(int(n) for n in buffer.shape), dtype=torch.float32) - 7  # type: ignore[arg-type]
            tensors[name] = fill.to(buffer.dtype)
    expected = evaluate(build, tensors)
    for tile in (source.tile, source.interpreter_tile):
        if prod(launch_grid(source, tile, ())) > MANY:
            continue  # the interpreter takes a millisecond a program
        actual = run(source, tensors, tile)
        for name in build.buffers:
            torch.testing.assert_close(
                actual[name], expected[name], rtol=rtol, atol=atol, equal_nan=True, msg=lambda m: f"{m}\n{source.text}"
            )
    return source.text


def candidate(plan: KernelPlan, **blocks: int) -> KernelPlan:
    return replace(plan, candidates=(Tile(tuple(blocks.items())),))
