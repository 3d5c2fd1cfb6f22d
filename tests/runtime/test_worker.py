"""Compiler processes: parallel, and harmless when they fail, die or hang."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fusec.errors import BuildError
from fusec.runtime import worker
from fusec.runtime.build import compile_request
from fusec.runtime.compiler import Artifact, CompileRequest, compile_kernel
from fusec.runtime.worker import compile_all, default_workers
from tests.runtime.samples import add_one


def request(name: str = "add_one", arch: int = 90, n: int = 1024) -> CompileRequest:
    source = add_one(n, torch.bfloat16, name=name)
    return compile_request(source, source.tile, arch)


def broken(name: str = "broken") -> CompileRequest:
    good = request(name)
    return replace(good, text=good.text.replace("tl.load", "tl.lode"))


@pytest.fixture
def ptxas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Replace the assembler of worker processes by a script."""

    def install(body: str) -> None:
        script = tmp_path / "ptxas"
        script.write_text(
            f"#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'release 12.8, V12.8.93'; exit 0; fi\n{body}\n"
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("TRITON_PTXAS_PATH", str(script))

    return install


def test_workers_compile_what_this_process_compiles() -> None:
    requests = [request("one"), request("two", 80), request("three", 100)]
    results = compile_all(requests, workers=2)
    assert [(r.name, r.arch) for r in results] == [("one", 90), ("two", 80), ("three", 100)]
    here = compile_kernel(requests[0])
    assert (results[0].resources, results[0].shared) == (here.resources, here.shared)


def test_a_kernel_that_does_not_compile_does_not_stop_the_others() -> None:
    for workers in (0, 1):
        bad, good = compile_all([broken(), request()], workers)
        assert isinstance(bad, BuildError)
        assert "broken does not compile for sm_90" in str(bad)
        assert "lode" in str(bad)
        assert isinstance(good, Artifact)


def test_a_worker_that_dies_is_reported_with_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    start = "import os, sys; sys.stdin.readline(); print('out of cheese', file=sys.stderr, flush=True); os.abort()"
    monkeypatch.setattr(worker, "_START", start)
    started = time.monotonic()
    results = compile_all([request("first"), request("second")], workers=2)
    assert time.monotonic() - started < 30
    for name, result in zip(("first", "second"), results, strict=True):
        assert isinstance(result, BuildError)
        assert f"{name} for sm_90: the compiler process died (signal SIGABRT)" in str(result)
        assert "out of cheese" in str(result)


def test_a_worker_that_dies_once_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flag = tmp_path / "died"
    start = f"""
import os
if not os.path.exists({str(flag)!r}):
    open({str(flag)!r}, "w").close()
    os._exit(3)
from fusec.runtime.worker import main
main()
"""
    monkeypatch.setattr(worker, "_START", start)
    (result,) = compile_all([request()], workers=1)
    assert isinstance(result, Artifact)
    assert flag.exists()


def test_a_worker_that_cannot_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    (result,) = compile_all([request()], workers=1)
    assert isinstance(result, BuildError)
    assert "add_one for sm_90: the compiler process died" in str(result)


def ended(pid: int) -> bool:
    """Gone, or dead and not yet collected by whoever inherited it."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def test_a_hanging_assembler_is_stopped_with_its_worker(ptxas, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    ptxas(f"echo $$ > {pid_file}\nexec sleep 1000")
    started = time.monotonic()
    (result,) = compile_all([request()], workers=1, timeout=6.0)
    assert time.monotonic() - started < 25
    assert isinstance(result, BuildError)
    assert "add_one for sm_90: the compiler did not answer within 6 s" in str(result)
    assert ended(int(pid_file.read_text()))


def test_a_failing_assembler_is_a_build_error(ptxas) -> None:
    ptxas("echo 'ptxas fatal: no such register' >&2; exit 255")
    (result,) = compile_all([request()], workers=1)
    assert isinstance(result, BuildError)
    assert "no such register" in str(result)


def test_a_worker_imports_no_torch_and_leaves_at_end_of_input() -> None:
    code = "import sys; import fusec.runtime.worker; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=60).returncode == 0
    process = worker.WorkerProcess()
    process.close()
    assert process.process.returncode == 0


def test_the_number_of_workers() -> None:
    assert default_workers(1) == 1
    assert 1 <= default_workers(1000) <= 16


def test_requests_and_artifacts_survive_the_pipe() -> None:
    one = request()
    assert CompileRequest.from_json(one.to_json()) == one
    artifact = compile_kernel(one)
    assert Artifact.decoded(artifact.encoded()) == artifact
