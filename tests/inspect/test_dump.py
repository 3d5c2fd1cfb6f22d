"""Stages become numbered files; a kernel script runs alone, and fails when its kernel is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fusec.inspect.dump import dump_stage, kernel_script, write_kernel_script
from fusec.inspect.reference import expression_text, identifier, index_bounds, op_text, reference_text
from fusec.ir.index import axis_symbol, value_symbol
from fusec.ir.kernels import DimKind, KernelCost, KernelPlan, Strategy, Tile, TileDim
from fusec.ir.ops import OPS, OpKind
from fusec.ir.types import Access, AccessMode, Axis, Buffer, Role
from tests.inspect.samples import instr, scale_rows


def run_script(path: Path) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"OMP_NUM_THREADS": "1"}
    environ.pop("PYTHONPATH", None)
    return subprocess.run([sys.executable, path.name], cwd=path.parent, env=environ, capture_output=True, text=True)


def test_stage_is_a_numbered_file(tmp_path: Path) -> None:
    path = dump_stage(tmp_path / "g0", 3, "buffer plan", "peak 12 bytes")
    assert path == tmp_path / "g0" / "03_buffer_plan.txt"
    assert path.read_text() == "peak 12 bytes\n"


def test_kernel_script_runs_alone_and_checks_itself(tmp_path: Path) -> None:
    plan, source, table = scale_rows()
    done = run_script(write_kernel_script(tmp_path / "k" / "scale_rows.py", plan, source, table))
    assert done.returncode == 0, done.stderr
    assert "scale_rows: ok, largest difference" in done.stdout


def test_kernel_script_fails_on_a_wrong_kernel(tmp_path: Path) -> None:
    plan, source, table = scale_rows()
    path = tmp_path / "wrong.py"
    path.write_text(kernel_script(plan, source, table).replace("value * total, mask", "value + total, mask"))
    done = run_script(path)
    assert done.returncode != 0
    assert "Mismatched elements" in done.stderr


def test_every_op_of_the_table_has_torch_text() -> None:
    rows = [r for r in OPS.values() if r.kind in (OpKind.POINTWISE, OpKind.REDUCTION)]
    for row in rows:
        text = op_text(row.name)
        assert "{0}" in text and text.count("{1}") == (row.arity > 1), f"{row.name}: {text}"


@pytest.mark.parametrize("op", ["sum", "prod", "max", "min", "argmax", "argmin"])
def test_reduction_text_means_what_the_table_means(op: str) -> None:
    namespace: dict[str, object] = {"torch": torch}
    x = Buffer("x", torch.float32, (3, 5), (5, 1), "cpu", Role.INPUT)
    arg = op.startswith("arg")
    out = Buffer("out", torch.int64 if arg else torch.float32, (3,), (1,), "cpu", Role.OUTPUT)
    p, r = axis_symbol("p0", 3), axis_symbol("r0", 5)
    body = (
        instr("%0", "load", access=Access("x", 5 * p + r)),
        instr("%1", "index", dtype=torch.int64, expr=r),
        instr("%2", op, "%0", *(["%1"] if arg else []), dtype=out.dtype, axes=("r0",)),
        instr(None, "store", "%2", dtype=out.dtype, access=Access("out", p, AccessMode.STORE)),
    )
    plan = plan_of(body, (Axis("p0", 3), Axis("r0", 5)), (x, out))
    exec(reference_text(plan, {"x": "x", "out": "out"}), namespace)
    value, result = torch.randn(3, 5), torch.zeros(3, dtype=out.dtype)
    value[1, 2] = value[1, 4] = value[1].abs().max() * (-1 if "min" in op else 1)
    namespace["reference"]("cpu", value, result)  # type: ignore[operator]
    operands = (value, torch.arange(5)[None, :]) if arg else (value,)
    row = OPS[op].evaluate
    assert row is not None
    torch.testing.assert_close(result, row(*operands, (1,))[:, 0])


def test_a_reduction_counts_points_its_operand_does_not_vary_over() -> None:
    out = Buffer("out", torch.float32, (3,), (1,), "cpu", Role.OUTPUT)
    body = (
        instr("%0", "const", value=2.0),
        instr("%1", "sum", "%0", axes=("r0",)),
        instr(None, "store", "%1", access=Access("out", axis_symbol("p0", 3), AccessMode.STORE)),
    )
    plan = plan_of(body, (Axis("p0", 3), Axis("r0", 5)), (out,))
    namespace: dict[str, object] = {"torch": torch}
    exec(reference_text(plan, {"out": "out"}), namespace)
    result = torch.zeros(3)
    namespace["reference"]("cpu", result)  # type: ignore[operator]
    assert result.tolist() == [10.0, 10.0, 10.0]


def test_masked_load_and_store_stay_inside() -> None:
    x = Buffer("x", torch.float32, (4,), (1,), "cpu", Role.INPUT)
    out = Buffer("out", torch.float32, (6,), (1,), "cpu", Role.OUTPUT)
    p = axis_symbol("p0", 8)
    body = (
        instr("%0", "index", dtype=torch.int64, expr=p),
        instr("%1", "const", dtype=torch.int64, value=4),
        instr("%2", "lt", "%0", "%1", dtype=torch.bool),
        instr("%3", "load", "%2", access=Access("x", p), other=float("-inf")),
        instr("%4", "const", dtype=torch.int64, value=6),
        instr("%5", "lt", "%0", "%4", dtype=torch.bool),
        instr(None, "store", "%3", "%5", access=Access("out", p, AccessMode.STORE)),
    )
    namespace: dict[str, object] = {"torch": torch}
    exec(reference_text(plan_of(body, (Axis("p0", 8),), (x, out)), {"x": "x", "out": "out"}), namespace)
    result = torch.zeros(6)
    namespace["reference"]("cpu", torch.arange(4.0), result)  # type: ignore[operator]
    assert result.tolist() == [0.0, 1.0, 2.0, 3.0, float("-inf"), float("-inf")]


def test_indices_loaded_from_memory_are_bounded() -> None:
    ids = Buffer("ids", torch.int64, (4,), (1,), "cpu", Role.INPUT)
    p = axis_symbol("p0", 4)
    weight = Buffer("w", torch.float32, (10,), (1,), "cpu", Role.INPUT)
    body = (
        instr("%0", "load", dtype=torch.int64, access=Access("ids", p)),
        instr("%1", "load", access=Access("w", value_symbol("%0", 9))),
    )
    assert index_bounds(plan_of(body, (Axis("p0", 4),), (ids, weight))) == {"ids": 9}


def test_index_text_keeps_division_and_values() -> None:
    p = axis_symbol("p0", 64)
    assert expression_text(4 * (p // 8) + p % 8 - 3) == "4*((p0) // (8)) + ((p0) % (8)) - 3"
    assert expression_text(value_symbol("%12", 9) * 5) == "5*v12"
    assert identifier("class") == "_class"


def plan_of(body: tuple[object, ...], axes: tuple[Axis, ...], buffers: tuple[Buffer, ...]) -> KernelPlan:
    dims = (TileDim("x", tuple(a.name for a in axes), DimKind.GRID),)
    cost = KernelCost(0, 0, 0, 0, 0, 0.0)
    return KernelPlan("k", axes, dims, (body,), buffers, Strategy.FLAT, Tile((("x", 8),)), cost)  # type: ignore[arg-type]
