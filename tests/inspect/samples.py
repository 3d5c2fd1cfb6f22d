"""A hand-made kernel for the tests of inspect: scale rows by their sum of squares, bf16 in and out."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from fusec.capture.graph import CapturedGraph
from fusec.inspect.rows import GraphRecord
from fusec.ir.index import axis_symbol
from fusec.ir.kernels import (
    BufferPlan,
    DimKind,
    FusionDecision,
    KernelCost,
    KernelPlan,
    KernelSource,
    Param,
    Schedule,
    Strategy,
    Tile,
    TileDim,
)
from fusec.ir.types import (
    Access,
    AccessMode,
    Axis,
    AxisKind,
    Buffer,
    Extern,
    Instr,
    Origin,
    Program,
    Role,
    TensorView,
)

ROWS, COLUMNS = 6, 17

TEXT = """# scale_rows
import triton
import triton.language as tl


@triton.jit
def scale_rows(x_ptr, out_ptr, XBLOCK: tl.constexpr, RBLOCK: tl.constexpr):
    x = tl.program_id(0) * XBLOCK + tl.arange(0, XBLOCK)[:, None]
    r = tl.arange(0, RBLOCK)[None, :]
    mask = (x < 6) & (r < 17)
    value = tl.load(x_ptr + x * 17 + r, mask=mask, other=0.0).to(tl.float32)
    total = tl.sum(value * value, axis=1)[:, None]
    tl.store(out_ptr + x * 17 + r, value * total, mask=mask)
"""


def instr(out: str | None, op: str, *args: str, dtype: torch.dtype = torch.float32, **rest: object) -> Instr:
    access = rest.pop("access", None)
    origin = rest.pop("origin", None)
    assert access is None or isinstance(access, Access)
    assert origin is None or isinstance(origin, Origin)
    return Instr(out, op, args, dtype, access, tuple(sorted(rest.items())), origin)


def scale_rows() -> tuple[KernelPlan, KernelSource, dict[str, Buffer]]:
    x = Buffer("arg0", torch.bfloat16, (ROWS, COLUMNS), (COLUMNS, 1), "cpu", Role.INPUT, "x")
    out = Buffer("buf0", torch.bfloat16, (ROWS, COLUMNS), (COLUMNS, 1), "cpu", Role.OUTPUT, "out")
    p, r = axis_symbol("p0", ROWS), axis_symbol("r0", COLUMNS)
    index = COLUMNS * p + r
    square = Origin("pow_1", "aten.mul.Tensor", "model.py", 31, "total = (x * x).sum(-1)")
    scale = Origin("mul_1", "aten.mul.Tensor", "model.py", 32, "return x * total")
    body = (
        instr("%0", "load", dtype=torch.bfloat16, access=Access("arg0", index), origin=square),
        instr("%1", "cast", "%0", origin=square),
        instr("%2", "mul", "%1", "%1", origin=square),
        instr("%3", "sum", "%2", axes=("r0",), origin=square),
        instr("%4", "mul", "%1", "%3", origin=scale),
        instr(None, "store", "%4", dtype=torch.bfloat16, access=Access("buf0", index, AccessMode.STORE), origin=scale),
    )
    tile = Tile((("x", 2), ("r", 32)))
    plan = KernelPlan(
        "scale_rows",
        (Axis("p0", ROWS), Axis("r0", COLUMNS, AxisKind.REDUCTION)),
        (TileDim("x", ("p0",), DimKind.GRID), TileDim("r", ("r0",), DimKind.WHOLE)),
        (body,),
        (x, out),
        Strategy.PERSISTENT_ROW,
        tile,
        KernelCost(204, 204, 204, 400, 20, 1e-6),
        nests=("n0", "n1"),
        internal=("buf1",),
        boundary="the program returns out",
    )
    params = (
        Param("x_ptr", "pointer", "arg0", torch.bfloat16),
        Param("out_ptr", "pointer", "buf0", torch.bfloat16),
        Param("XBLOCK", "block"),
        Param("RBLOCK", "block"),
    )
    source = KernelSource("scale_rows", TEXT, params, ((ROWS, "XBLOCK"),), tile, tile, "0" * 64)
    return plan, source, {b.name: b for b in (x, out)}


def scale(x: torch.Tensor) -> torch.Tensor:
    total = (x * x).sum(-1, keepdim=True)
    return x * total


def record() -> GraphRecord:
    """`scale` as captured, scheduled by hand as one kernel, then a matmul of its result with itself."""
    plan, source, table = scale_rows()
    with FakeTensorMode() as mode:
        x = mode.from_tensor(torch.empty(ROWS, COLUMNS, dtype=torch.bfloat16))
        graph_module = make_fx(lambda x: torch.mm(scale(x), x.t()))(x)
    table["buf2"] = Buffer("buf2", torch.bfloat16, (ROWS, ROWS), (ROWS, 1), "cpu", Role.OUTPUT)
    mm = Extern(
        "extern0",
        torch.ops.aten.mm.default,
        (TensorView("buf0", (ROWS, COLUMNS), (COLUMNS, 1)), TensorView("arg0", (COLUMNS, ROWS), (1, COLUMNS))),
        (),
        ("buf2",),
        Origin("mm", "aten.mm.default", "model.py", 33, "return scaled @ x.t()"),
    )
    decisions = (
        FusionDecision("n0", "n1", True, "n1 reads each row's total once", 24, 1e-6),
        FusionDecision("n1", "extern0", False, "aten.mm is a library call"),
    )
    schedule = Schedule(
        "graph_0",
        tuple(table.values()),
        (plan, mm),
        ("arg0",),
        (TensorView("buf2", (ROWS, ROWS), (ROWS, 1)),),
        decisions,
    )
    program = Program("graph_0", schedule.buffers, (mm,), ("arg0",), schedule.outputs)
    captured = CapturedGraph(graph_module, (x,), ("x",), "inference", "graph_0")
    buffers = BufferPlan(((), ()), ((), ()), 276)
    return GraphRecord(captured, program, program, schedule, buffers, {plan.name: source}, "wrapper")
