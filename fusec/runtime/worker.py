"""Compile many kernels at once, each in a process that may die or hang without harm.

Enters: CompileRequests. Leaves: an Artifact or a BuildError for each, in order.

    compile_all(requests, workers=2, timeout=120.0) -> [Artifact(...), BuildError("fused_add: ..."), ...]

A worker is `python -c "... main()"`: it imports neither PyTorch nor the user's script, reads one JSON request a line
and answers one JSON line. A worker that dies is replaced; its kernel is tried once more, then reported. A worker that
does not answer within `timeout` seconds is killed with everything it started.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO

from fusec.errors import BuildError
from fusec.runtime.compiler import Artifact, CompileRequest, compile_kernel

TIMEOUT = 120.0
_START = "from fusec.runtime.worker import main; main()"
_STDERR_LIMIT = 2000

Result = Artifact | BuildError


def default_workers(kernels: int) -> int:
    """One process a core, never more than kernels or 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(kernels, cores, 16))


def compile_all(requests: Sequence[CompileRequest], workers: int | None, timeout: float = TIMEOUT) -> list[Result]:
    """Compile every request; workers 0 compiles in this process, None chooses."""
    if workers == 0 or not sys.executable:
        return [_compile_here(request) for request in requests]
    count = min(workers, len(requests)) if workers is not None else default_workers(len(requests))
    jobs: queue.SimpleQueue[int] = queue.SimpleQueue()
    for position in range(len(requests)):
        jobs.put(position)
    results: dict[int, Result] = {}
    threads = [
        threading.Thread(target=_serve, args=(jobs, requests, results, timeout), daemon=True) for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[position] for position in range(len(requests))]


def _compile_here(request: CompileRequest) -> Result:
    try:
        return compile_kernel(request)
    except BuildError as error:
        return error


def _serve(
    jobs: queue.SimpleQueue[int], requests: Sequence[CompileRequest], results: dict[int, Result], timeout: float
) -> None:
    """One thread, one worker process at a time: take jobs until none is left."""
    worker: WorkerProcess | None = None
    try:
        while True:
            try:
                position = jobs.get_nowait()
            except queue.Empty:
                return
            worker, results[position] = _compile_there(worker, requests[position], timeout)
    finally:
        if worker is not None:
            worker.close()


def _compile_there(
    worker: WorkerProcess | None, request: CompileRequest, timeout: float
) -> tuple[WorkerProcess | None, Result]:
    where = f"{request.name} for sm_{request.arch}"
    for attempt in (1, 2):
        try:
            worker = worker or WorkerProcess()
            return worker, worker.compile(request, timeout)
        except TimeoutError:
            assert worker is not None
            worker.kill()
            return None, BuildError(f"{where}: the compiler did not answer within {timeout:g} s and was stopped")
        except (OSError, ValueError) as error:
            said = worker.last_words() if worker is not None else ""
            if worker is not None:
                worker.kill()
            worker = None
            if attempt == 2:
                return None, BuildError(f"{where}: the compiler process died ({error}){said}")
    raise AssertionError("unreachable")


@dataclass
class WorkerProcess:
    """A compiler process in a session of its own, so that its children end with it."""

    process: subprocess.Popen[bytes] = field(init=False)
    _errors: IO[bytes] = field(default_factory=tempfile.TemporaryFile)  # a file never fills up as a pipe does
    _buffer: bytes = b""

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(),
            start_new_session=True,
        )

    def compile(self, request: CompileRequest, timeout: float) -> Result:
        """Send one request, wait for its answer. TimeoutError, or OSError and ValueError when the process died."""
        _pipe(self.process.stdin).write(json.dumps(request.to_json()).encode() + b"\n")
        _pipe(self.process.stdin).flush()
        answer = json.loads(self._read_line(time.monotonic() + timeout))
        if "error" in answer:
            return BuildError(answer["error"])
        return Artifact.decoded(answer)

    def _read_line(self, deadline: float) -> bytes:
        descriptor = _pipe(self.process.stdout).fileno()
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                raise OSError(self._ended())
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)
        code = self.process.returncode
        if code is not None and code < 0:
            return f"signal {signal.Signals(-code).name}"
        return f"exit status {code}"

    def last_words(self) -> str:
        """The end of what the process wrote to its error output, on lines of their own."""
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace").strip()
        return f":\n{text[-_STDERR_LIMIT:]}" if text else ""

    def close(self) -> None:
        """End of input: the process leaves by itself; one that does not is killed."""
        with contextlib.suppress(OSError):
            _pipe(self.process.stdin).close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.kill()
        self._close_files()

    def kill(self) -> None:
        """End the process and everything it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._close_files()

    def _close_files(self) -> None:
        for file in (self.process.stdin, self.process.stdout, self._errors):
            with contextlib.suppress(OSError):
                _pipe(file).close()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _environment() -> dict[str, str]:
    """This process's environment, with this process's import path."""
    path = [entry or os.getcwd() for entry in sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1", "TRITON_INTERPRET": "0"}


def main() -> None:
    """The worker's loop. Whatever the compiler prints goes to the error output; answers alone go out."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        try:
            answer = compile_kernel(CompileRequest.from_json(json.loads(line))).encoded()
        except BuildError as error:
            answer = {"error": str(error)}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()
