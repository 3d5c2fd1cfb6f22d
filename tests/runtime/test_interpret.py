"""Kernel text on CPU tensors: the same numbers as PyTorch, the language left as it was, faults named."""

from __future__ import annotations

import inspect
import logging
import os
import subprocess
import sys
import threading

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

from fusec.errors import BuildError, VerificationError
from fusec.runtime import interpret
from fusec.runtime.build import compile_request
from fusec.runtime.compiler import compile_kernel
from tests.runtime.samples import add_one, kernel, row_softmax, run

ONE = {"x": 64}


@pytest.mark.parametrize("n", [1, 17, 1000, 4097])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_pointwise_equals_torch(n: int, dtype: torch.dtype) -> None:
    x = torch.randn(n, dtype=dtype)
    out = torch.full_like(x, float("nan"))
    run(add_one(n, dtype), x, out)
    assert torch.equal(out, x + 1)


@pytest.mark.parametrize(("rows", "columns", "block"), [(1, 1, 1), (17, 1000, 4), (3, 17, 8), (64, 64, 64)])
def test_softmax_equals_torch(rows: int, columns: int, block: int) -> None:
    x = torch.randn(rows, columns) * 4
    out = torch.empty_like(x)
    run(row_softmax(rows, columns, block), x, out)
    torch.testing.assert_close(out, torch.softmax(x, 1), rtol=2e-6, atol=1e-7)


def test_zero_programs_do_not_launch() -> None:
    source = kernel("none", "tl.store(x_ptr + 5, 1.0)", {"x_ptr": torch.float32}, ONE, [(0, "XBLOCK")])
    memory = torch.zeros(6)
    run(source, memory[:0])
    assert not memory.any()


def cast_kernel(n: int, source: torch.dtype, target: torch.dtype) -> None:
    body = f"""
        x0 = tl.arange(0, XBLOCK)
        mask = x0 < {n}
        tl.store(out_ptr + x0, tl.load(x_ptr + x0, mask), mask)
    """
    block = 1 << (n - 1).bit_length()
    return kernel("cast", body, {"x_ptr": source, "out_ptr": target}, {"x": block}, [(n, "XBLOCK")])


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_narrowing_rounds_to_nearest_even(target: torch.dtype) -> None:
    bits = torch.randint(-(2**31), 2**31, (20_000,), dtype=torch.int64).to(torch.int32)
    x = torch.cat([bits.view(torch.float32), torch.randn(2000), torch.tensor([0.0, -0.0, 1.99999, 3.0e38])])
    x = x[x.isfinite()]
    if target.itemsize == 1:
        x = x.clamp(-200, 200)
    out = torch.empty(x.numel(), dtype=target)
    run(cast_kernel(x.numel(), torch.float32, target), x, out)
    integer = torch.int16 if target.itemsize == 2 else torch.int8
    assert torch.equal(out.view(integer), x.to(target).view(integer))


@pytest.mark.parametrize("source", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_widening_is_exact_for_every_value(source: torch.dtype) -> None:
    integer = torch.int16 if source.itemsize == 2 else torch.int8
    info = torch.iinfo(integer)
    x = torch.arange(info.min, info.max + 1, dtype=torch.int32).to(integer).view(source)
    out = torch.empty(x.numel(), dtype=torch.float32)
    run(cast_kernel(x.numel(), source, torch.float32), x, out)
    torch.testing.assert_close(out, x.float(), rtol=0, atol=0, equal_nan=True)


def test_bfloat16_arithmetic_rounds_each_operation() -> None:
    body = """
        x0 = tl.arange(0, XBLOCK)
        x = tl.load(x_ptr + x0)
        tl.store(out_ptr + x0, x * x + x)
    """
    x = torch.randn(64, dtype=torch.bfloat16)
    out = torch.empty_like(x)
    run(kernel("chain", body, {"x_ptr": x.dtype, "out_ptr": x.dtype}, ONE, [(64, "XBLOCK")]), x, out)
    assert torch.equal(out, x * x + x)


def test_bool_and_int64() -> None:
    body = """
        x0 = tl.arange(0, XBLOCK)
        flag = tl.load(flag_ptr + x0)
        n = tl.load(n_ptr + x0)
        tl.store(out_ptr + x0, tl.where(flag, n, -n))
        tl.store(big_ptr + x0, n > 3)
    """
    flag, n = torch.randint(0, 2, (64,)).bool(), torch.randint(-(2**60), 2**60, (64,))
    out, big = torch.empty_like(n), torch.empty_like(flag)
    pointers = {"flag_ptr": torch.bool, "n_ptr": torch.int64, "out_ptr": torch.int64, "big_ptr": torch.bool}
    run(kernel("choose", body, pointers, ONE, [(64, "XBLOCK")]), flag, n, out, big)
    assert torch.equal(out, torch.where(flag, n, -n))
    assert torch.equal(big, n > 3)


def test_minimum_and_maximum_treat_nan_as_asked() -> None:
    body = """
        x0 = tl.arange(0, XBLOCK)
        x = tl.load(x_ptr + x0)
        tl.store(a_ptr + x0, tl.maximum(x, 1.0))
        tl.store(b_ptr + x0, tl.maximum(x, 1.0, propagate_nan=tl.PropagateNan.ALL))
    """
    x = torch.tensor([float("nan"), 0.5, 2.0, float("-inf")])
    a, b = torch.empty(4), torch.empty(4)
    names = ("x_ptr", "a_ptr", "b_ptr")
    run(kernel("clamp", body, dict.fromkeys(names, torch.float32), {"x": 4}, [(4, "XBLOCK")]), x, a, b)
    assert a.tolist() == [1.0, 1.0, 2.0, 1.0]
    assert b.isnan().tolist() == [True, False, False, False]


REDUCTIONS = """
@triton.jit
def pick(av, ai, bv, bi):
    take = (av > bv) | ((av == bv) & (ai < bi))
    return tl.where(take, av, bv), tl.where(take, ai, bi)


@triton.jit
def first(a, b):
    return a


@triton.jit
def reductions(x_ptr, at_ptr, first_ptr, scan_ptr, XBLOCK: tl.constexpr, RBLOCK: tl.constexpr):
    row = tl.arange(0, XBLOCK)[:, None]
    col = tl.arange(0, RBLOCK)[None, :]
    x = tl.load(x_ptr + row * RBLOCK + col)
    value, at = tl.reduce((x, col + row * 0), 1, pick)
    tl.store(at_ptr + tl.arange(0, XBLOCK), at)
    tl.store(first_ptr + tl.arange(0, XBLOCK), tl.reduce(x, 1, first))
    tl.store(scan_ptr + row * RBLOCK + col, tl.associative_scan(x, 1, add))


@triton.jit
def add(a, b):
    return a + b
"""


def test_reductions_and_scans_with_functions_of_the_text() -> None:
    source = kernel("reductions", "pass", {}, {}, [])
    text = "import triton\nimport triton.language as tl\n" + REDUCTIONS
    namespace = interpret.load_kernel("reductions", text)
    x = torch.randint(0, 50, (8, 32)).float()
    at, start, scan = torch.empty(8, dtype=torch.int32), torch.empty(8), torch.empty(8, 32)
    arguments = {"x_ptr": x, "at_ptr": at, "first_ptr": start, "scan_ptr": scan}
    interpret.run_grid(source.name, interpret.interpreted(namespace.fn), arguments, {"XBLOCK": 8, "RBLOCK": 32}, (1,))
    assert torch.equal(at.long(), torch.stack([(row == row.max()).nonzero()[0, 0] for row in x]))
    assert torch.equal(start, x[:, 0])
    torch.testing.assert_close(scan, x.cumsum(1))


def test_atomic_add_counts_every_lane() -> None:
    body = """
        x0 = tl.program_id(0) * XBLOCK + tl.arange(0, XBLOCK)
        mask = x0 < 1000
        tl.atomic_add(out_ptr + x0 % 7, tl.load(x_ptr + x0, mask, other=0.0), mask)
    """
    x, out = torch.ones(1000), torch.zeros(7)
    run(kernel("bins", body, dict.fromkeys(("x_ptr", "out_ptr"), torch.float32), ONE, [(1000, "XBLOCK")]), x, out)
    assert out.tolist() == [float(len(range(i, 1000, 7))) for i in range(7)]


def test_libdevice() -> None:
    text = (
        "from triton.language.extra.cuda import libdevice\n"
        + kernel(
            "tanh",
            "x0 = tl.arange(0, XBLOCK)\ntl.store(x_ptr + x0, libdevice.tanh(tl.load(x_ptr + x0)))",
            {"x_ptr": torch.float32},
            ONE,
            [(64, "XBLOCK")],
        ).text
    )
    x = torch.randn(64)
    expected = x.tanh()
    function = interpret.interpreted(interpret.load_kernel("tanh", text).fn)
    interpret.run_grid("tanh", function, {"x_ptr": x}, {"XBLOCK": 64}, (1,))
    assert torch.equal(x, expected)


def test_strided_and_expanded_tensors() -> None:
    body = """
        x0 = tl.arange(0, XBLOCK)
        tl.store(out_ptr + x0, tl.load(x_ptr + (x0 % 8) * 16 + x0 // 8) + tl.load(b_ptr + x0 // 8))
    """
    base = torch.randn(8, 16)
    x, b, out = base.t()[2:10], torch.randn(8, 1).expand(8, 8), torch.empty(8, 8)
    source = kernel("strided", body, dict.fromkeys(("x_ptr", "b_ptr", "out_ptr"), torch.float32), ONE, [(64, "XBLOCK")])
    run(source, x, b, out)
    assert torch.equal(out, x + b)


@pytest.mark.parametrize(
    ("verb", "line"), [("load", "x = tl.load(x_ptr + x0)"), ("store", "tl.store(x_ptr + x0, 1.0)")]
)
def test_an_access_outside_a_tensor_names_kernel_parameter_and_element(verb: str, line: str) -> None:
    body = f"x0 = tl.arange(0, XBLOCK) + 1\n{line}"
    source = kernel("outside", body, {"x_ptr": torch.float32}, ONE, [(1, None)])
    with pytest.raises(VerificationError, match=rf"kernel outside: {verb} of x_ptr\[64\], which has 64 elements"):
        run(source, torch.zeros(64))


def test_a_negative_address_is_outside_too() -> None:
    source = kernel("before", "x = tl.load(x_ptr + tl.arange(0, 4) - 1)", {"x_ptr": torch.float32}, {}, [(1, None)])
    with pytest.raises(VerificationError, match=r"x_ptr\[-1\]"):
        run(source, torch.zeros(64))


def test_a_failing_kernel_is_named_with_its_program() -> None:
    body = "x = tl.load(x_ptr + tl.arange(0, 4)) + tl.arange(0, 8)"
    source = kernel("shapes", body, {"x_ptr": torch.float32}, {}, [(3, None)])
    with pytest.raises(VerificationError, match=r"kernel shapes failed .* program \(0, 0, 0\) of grid \(3,\)"):
        run(source, torch.zeros(64))


def test_text_that_does_not_load_is_a_build_error() -> None:
    with pytest.raises(BuildError, match="broken: the generated text does not load: SyntaxError"):
        interpret.load_kernel("broken", "def broken(:\n")
    with pytest.raises(BuildError, match="defines no function of that name"):
        interpret.load_kernel("missing", "x = 1\n")


def test_the_language_is_restored_and_still_compiles() -> None:
    before = {n: getattr(tl, n) for n in dir(tl)} | {n: inspect.getattr_static(tl.tensor, n) for n in dir(tl.tensor)}
    call = JITFunction.__call__
    source = add_one(64)
    run(source, torch.zeros(64), torch.zeros(64))
    with pytest.raises(VerificationError):
        run(kernel("bad", "tl.load(x_ptr - 1)", {"x_ptr": torch.float32}, {}, [(1, None)]), torch.zeros(1))
    after = {n: getattr(tl, n) for n in dir(tl)} | {n: inspect.getattr_static(tl.tensor, n) for n in dir(tl.tensor)}
    assert after == before
    assert JITFunction.__call__ is call
    assert compile_kernel(compile_request(source, source.tile, 90)).registers > 0


def test_the_notice_appears_once(caplog: pytest.LogCaptureFixture) -> None:
    interpret.notice.cache_clear()
    with caplog.at_level(logging.WARNING, logger="fusec.runtime.interpret"):
        for _ in range(2):
            run(add_one(4), torch.zeros(4), torch.zeros(4))
    assert ["interpreter" in r.message for r in caplog.records] == [True]


def test_a_helper_of_a_real_module_is_interpreted() -> None:
    x, out = torch.randn(64), torch.empty(64)
    body = "x0 = tl.arange(0, XBLOCK)\ntl.store(out_ptr + x0, tl.sigmoid(tl.load(x_ptr + x0)))"
    run(kernel("sig", body, dict.fromkeys(("x_ptr", "out_ptr"), torch.float32), ONE, [(1, None)]), x, out)
    torch.testing.assert_close(out, x.sigmoid(), rtol=1e-6, atol=1e-7)
    assert triton.__version__


def test_threads_take_turns() -> None:
    source, failures = row_softmax(16, 100, 4), []

    def work(seed: int) -> None:
        x = torch.randn(16, 100, generator=torch.Generator().manual_seed(seed))
        for _ in range(5):
            out = torch.empty_like(x)
            run(source, x, out)
            if not torch.allclose(out, x.softmax(1), atol=1e-6):
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


INTERPRET_EVERYTHING = """
import torch, triton
from tests.runtime.samples import row_softmax, run
assert triton.knobs.runtime.interpret
x = torch.randn(4, 100)
out = torch.empty_like(x)
run(row_softmax(4, 100, 2), x, out)
torch.testing.assert_close(out, x.softmax(1), rtol=2e-6, atol=1e-7)
"""


def test_a_process_with_triton_interpret_set() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", INTERPRET_EVERYTHING]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
