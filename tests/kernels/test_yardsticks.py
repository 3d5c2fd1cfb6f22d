"""The hand-written kernels: interpreted on the CPU against float64, and compiled for GPUs that are not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.runtime.jit import JITFunction

from fusec.kernels import layer_norm, rms_norm, softmax, swiglu
from fusec.kernels.launch import row_tile
from tests.kernels.helpers import ARCHITECTURES, compile_for, interpret

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WHOLE = 1 << 20
# rows, columns, bytes of a row held in registers: several rows a program, odd sizes, loops with and without a tail
SHAPES = (
    (3, 1, WHOLE),
    (5, 17, WHOLE),
    (2, 1000, WHOLE),
    (1, 4097, WHOLE),
    (2, 4097, 1024),
    (3, 32768, 4),
    (1, 40000, 4),
)
# Rounding of the result (half a unit in the last place) and of float32 arithmetic.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def close(seen: torch.Tensor, exact: torch.Tensor) -> None:
    assert seen.dtype in TOLERANCE and seen.shape == exact.shape
    error = (seen.double() - exact).abs() / exact.abs().clamp_min(
        max(exact.abs().mean().item(), torch.finfo(seen.dtype).tiny)
    )
    assert error.max() <= TOLERANCE[seen.dtype], f"relative error {error.max():.2e}"


def rows(count: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(count, columns) * 3 + 1).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_softmax(shape: tuple[int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    interpret(softmax, monkeypatch)
    x = rows(*shape[:2], dtype)
    close(softmax.softmax(x, shape[2]), torch.softmax(x.double(), -1))


@pytest.mark.parametrize("persistent", [WHOLE, 64])
def test_softmax_of_rows_with_infinities(persistent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    interpret(softmax, monkeypatch)
    x = torch.randn(4, 300)
    x[0, :280] = float("-inf")
    x[1] = float("-inf")
    x[2, 7] = float("inf")
    x[3, 5] = float("nan")
    torch.testing.assert_close(softmax.softmax(x, persistent), torch.softmax(x, -1), equal_nan=True)


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rms_norm(
    shape: tuple[int, int, int], dtype: torch.dtype, scaled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpret(rms_norm, monkeypatch)
    x = rows(*shape[:2], dtype)
    weight = torch.rand(shape[1]).to(dtype) + 0.5 if scaled else None
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    close(rms_norm.rms_norm(x, weight, 1e-6, shape[2]), exact * weight.double() if weight is not None else exact)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer_norm(
    shape: tuple[int, int, int], dtype: torch.dtype, affine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpret(layer_norm, monkeypatch)
    x = rows(*shape[:2], dtype)
    weight, bias = (torch.rand(shape[1]).to(dtype) + 0.5, torch.rand(shape[1]).to(dtype)) if affine else (None, None)
    w64, b64 = (weight.double(), bias.double()) if weight is not None and bias is not None else (None, None)
    exact = torch.nn.functional.layer_norm(x.double(), (shape[1],), w64, b64, 1e-5)
    close(layer_norm.layer_norm(x, weight, bias, 1e-5, shape[2]), exact)


@pytest.mark.parametrize("persistent", [WHOLE, 512])
def test_layer_norm_of_a_large_mean_keeps_its_variance(persistent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    interpret(layer_norm, monkeypatch)
    x = torch.randn(2, 5000) + 1e4  # the naive sum of squares would lose every digit of the variance
    exact = torch.nn.functional.layer_norm(x.double(), (5000,))
    seen = layer_norm.layer_norm(x, persistent_bytes=persistent).double()
    assert (seen - exact).abs().max() < 2e-3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (17,), (3, 1000), (4097,)], ids=str)
def test_swiglu(shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    interpret(swiglu, monkeypatch)
    gate, up = torch.randn(2, *shape).to(dtype)
    close(swiglu.swiglu(gate, up), torch.nn.functional.silu(gate.double()) * up.double())


def test_rows_at_a_stride_and_more_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    interpret(softmax, monkeypatch)
    x = torch.randn(2, 3, 2000)[:, :, :1000]
    close(softmax.softmax(x), torch.softmax(x.double(), -1))


OPS = [softmax.softmax, rms_norm.rms_norm, layer_norm.layer_norm, lambda x: swiglu.swiglu(x, x)]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", [(0, 5), (5, 0)], ids=str)
def test_nothing_in_nothing_out(op: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, int]) -> None:
    assert op(torch.empty(shape)).shape == shape


@pytest.mark.parametrize("op", OPS)
def test_what_is_not_taken_is_refused_with_what_was_seen(op: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"strides \(1, 4\)"):
        op(torch.randn(5, 4).t())
    with pytest.raises(ValueError, match=r"torch\.int64"):
        op(torch.ones(4, 4, dtype=torch.int64))


def test_vectors_must_fit_the_columns() -> None:
    with pytest.raises(ValueError, match=r"weight must be contiguous with shape \(4,\)"):
        rms_norm.rms_norm(torch.randn(2, 4), torch.ones(5))
    with pytest.raises(ValueError, match="together"):
        layer_norm.layer_norm(torch.randn(2, 4), torch.ones(4))


@pytest.mark.parametrize("columns", [1, 2, 63, 1024, 1025, 4096, 8192, 32768, 32769, 131072])
def test_a_tile_covers_the_row_and_leaves_room_in_registers(columns: int) -> None:
    tile = row_tile(columns, torch.bfloat16)
    values = tile.block * tile.rows / (32 * tile.warps)
    assert values <= 32 and 4 <= tile.warps <= 32
    assert tile.persistent == (tile.block >= columns)


Case = tuple[str, JITFunction, dict[str, str], dict[str, Any], int]


def _compiled_cases() -> list[Case]:
    """(name, kernel, signature, constants, warps) of every yardstick at every kind of tile."""
    cases: list[Case] = []
    sizes = {"n_rows": "i32", "n_cols": "i32", "x_stride": "i32", "eps": "fp32"}
    flags: dict[str, dict[str, Any]] = {"softmax": {}, "rms_norm": {"SCALED": True}, "layer_norm": {"AFFINE": True}}
    for name, module in (("softmax", softmax), ("rms_norm", rms_norm), ("layer_norm", layer_norm)):
        for dtype in ("bf16", "fp32"):
            pointers = dict.fromkeys(("x_ptr", "y_ptr", "weight_ptr", "bias_ptr"), f"*{dtype}")
            for columns in (256, 4096, 16384, 32768, 131072):
                tile = row_tile(columns, torch.bfloat16 if dtype == "bf16" else torch.float32)
                kernel = getattr(module, f"{name}_{'persistent' if tile.persistent else 'looped'}")
                signature = {n: t for n, t in {**pointers, **sizes}.items() if n in kernel.arg_names}
                constants = {**flags[name], "BLOCK": tile.block, **({"ROWS": tile.rows} if tile.persistent else {})}
                cases.append((f"{name}-{dtype}-{columns}", kernel, signature, constants, tile.warps))
    for dtype in ("bf16", "fp32"):
        signature = {"gate_ptr": f"*{dtype}", "up_ptr": f"*{dtype}", "y_ptr": f"*{dtype}", "n": "i32"}
        constants = {"BLOCK": swiglu.BLOCK, "WIDE": False}
        cases.append((f"swiglu-{dtype}", swiglu.swiglu_flat, signature, constants, swiglu.WARPS))
    return cases


CASES = _compiled_cases()


@pytest.mark.parametrize("case", CASES, ids=[c[0] for c in CASES])
def test_compiles_without_spills_and_loads_16_bytes(case: Case, tmp_path: Path) -> None:
    name, kernel, signature, constants, warps = case
    for arch in ARCHITECTURES if "4096" in name or "131072" in name or "swiglu" in name else (90,):
        binary = compile_for(kernel, signature, constants, arch, warps, tmp_path)
        assert binary.spills == 0, f"sm_{arch}: {binary.spills} spills with {binary.registers} registers"
        # Where several rows share a program, the vectors that scale them are read in smaller pieces, from a cache.
        assert binary.all_loads_wide or (constants.get("ROWS", 1) > 1 and binary.loads["128"]), binary.loads
