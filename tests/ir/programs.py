"""Programs that several tests of the IR use, as text."""

from __future__ import annotations

from fusec.ir.kernels import DimKind, KernelCost, KernelPlan, Strategy, Tile, TileDim
from fusec.ir.parser import parse_program

RMS_NORM = """\
program rms_norm (x, w, _)
  in    x: bf16[64, 4096] (4096, 1) cuda:0
  in    w: bf16[4096] (1) cuda:0 'weight'
  tmp   ss: f32[64] (1) cuda:0
  out   y: bf16[64, 4096] (4096, 1) cuda:0
nest n0 (p0<64, r0<4096):
  %0:bf16 = load x[4096*p0 + r0]
  %1:f32 = cast %0
  %2:f32 = mul %1, %1
  %3:f32 = sum %2 over r0
  store ss[p0], %3
nest n1 (p0<64, p1<4096):
  %0:bf16 = load x[4096*p0 + p1]
  %1:f32 = cast %0
  %2:f32 = load ss[p0]
  %3:f32 = const 0.000244140625
  %4:f32 = mul %2, %3
  %5:f32 = rsqrt %4
  %6:f32 = mul %1, %5
  %7:bf16 = load w[p1]
  %8:f32 = cast %7
  %9:f32 = mul %6, %8
  store y[4096*p0 + p1], %9
return y, ss[8](8) + 1, 64, None"""

EVERYTHING = """\
program everything (x, rows)
  in    x: f32[8, 6] (6, 1) cpu
  in    rows: i64[4] (1) cpu
  tmp   m: f32[8, 8] (8, 1) cpu
  tmp   values: f32[8] (1) cpu
  out   y: f32[4, 10] (10, 1) cpu
  out   count: i32[8] (1) cpu
extern e0: m = aten.mm.default(x, x[6, 8](1, 6))            # library call
extern e1: values, _ = aten.max.dim(m, 1, keepdim=False)    # not lowered: two outputs
nest n0 (p0<4, p1<10):
  %0:i64 = index p1
  %1:i64 = const 6
  %2:bool = lt %0, %1
  %3:i64 = load rows[p0]
  %4:f32 = load x[6*%3 + p1], mask=%2, other=-inf
  %5:f32 = load values[(p0 + p1)%8]
  %6:f32 = const -0.0
  %7:bool = ge %4, %6
  %8:f32 = where %7, %4, %5
  store y[10*p0 + p1], %8, mask=%2
nest n1 (p0<8):
  %0:i32 = const 0
  store count[p0], %0
nest n2 (p0<4):
  %0:i64 = load rows[p0]
  %1:i32 = const 1
  atomic_add count[%0], %1
return y, count"""


def softmax_plan() -> tuple[KernelPlan, str]:
    """A looped softmax over rows of 4096 and its program's text."""
    program = parse_program("""
    program softmax (x)
      in  x: f32[64, 4096] (4096, 1) cuda:0
      out y: f32[64, 4096] (4096, 1) cuda:0
    nest n0 (p0<64, r0<4096):
      %0:f32 = load x[4096*p0 + r0]
      %1:f32 = max %0 over r0
      %2:f32 = load x[4096*p0 + r0]
      %3:f32 = sub %2, %1
      %4:f32 = exp %3
      %5:f32 = sum %4 over r0
      %6:f32 = load x[4096*p0 + r0]
      %7:f32 = sub %6, %1
      %8:f32 = exp %7
      %9:f32 = div %8, %5
      store y[4096*p0 + r0], %9
    return y
    """)
    nest = program.nodes[0]
    body = nest.body
    plan = KernelPlan(
        name="softmax",
        axes=nest.axes,
        dims=(TileDim("x", ("p0",), DimKind.GRID), TileDim("r", ("r0",), DimKind.LOOP)),
        phases=(body[:2], body[2:6], body[6:]),
        buffers=program.buffers,
        strategy=Strategy.LOOPED_ROW,
        tile=Tile((("x", 1), ("r", 1024)), num_warps=8),
        cost=KernelCost(1 << 20, 1 << 20, 4 << 20, 7 << 18, 24, 1.5e-6),
        nests=("n0", "n1", "n2"),
        internal=("amax", "exp"),
        boundary="y leaves the program",
    )
    return plan, program.name
