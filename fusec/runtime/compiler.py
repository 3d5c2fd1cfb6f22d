"""One kernel's text to machine code, with Triton, on any machine.

Enters: a CompileRequest (JSON-able, nothing of PyTorch). Leaves: an Artifact: cubin and what launching needs.

    compile_kernel(CompileRequest("fused_add", text, (("x_ptr", "*fp32"), ...), ..., arch=90)).cubin
"""

from __future__ import annotations

import base64
import functools
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fusec.errors import BuildError
from fusec.runtime.module import load_kernel
from fusec.runtime.resources import Resources, access_width, memory_instructions, read_resources

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CompileRequest:
    """signature: (parameter, Triton type or "constexpr"). constants: block values. aligned: positions of parameters
    whose addresses are multiples of 16."""

    name: str
    text: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, int], ...]
    aligned: tuple[int, ...]
    num_warps: int
    num_stages: int
    arch: int
    fuse_multiply_add: bool = True

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CompileRequest:
        def tuples(value: Any) -> Any:
            return tuple(tuples(v) for v in value) if isinstance(value, list) else value

        return cls(**{f.name: tuples(data[f.name]) for f in fields(cls)})


@dataclass(frozen=True)
class Artifact:
    """A compiled kernel. shared: dynamic shared memory to launch with. seconds: what compiling took.

    scratch: how many trailing scratch pointers the kernel takes, all null.
    """

    name: str
    arch: int
    cubin: bytes
    resources: Resources
    num_warps: int
    shared: int
    scratch: int
    seconds: float
    cached: bool = False  # read from the cache, not compiled by this process

    @property
    def registers(self) -> int:
        return self.resources.registers

    @property
    def spills(self) -> int:
        return self.resources.spills

    @functools.cached_property
    def instructions(self) -> dict[str, int]:
        """Memory instructions by name; runs the disassembler (about 0.4 s) on first use."""
        return memory_instructions(self.cubin)

    @property
    def summary(self) -> dict[str, int]:
        """What a reader asks first. Spills and shared memory in bytes; loads and stores that move 16 bytes."""
        wide = {name: count for name, count in self.instructions.items() if access_width(name) == 16}
        return {
            "registers": self.registers,
            "spills": self.spills,
            "shared": self.shared,
            "16-byte loads": sum(count for name, count in wide.items() if name.startswith("LDG")),
            "16-byte stores": sum(count for name, count in wide.items() if name.startswith("STG")),
        }

    def to_json(self) -> dict[str, Any]:
        """Everything but the cubin."""
        data = asdict(self)
        del data["cubin"], data["cached"]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any], cubin: bytes, cached: bool = False) -> Artifact:
        return cls(**{**data, "resources": Resources(**data["resources"])}, cubin=cubin, cached=cached)

    def encoded(self) -> dict[str, Any]:
        """With the cubin as text, for a pipe."""
        return {**self.to_json(), "cubin": base64.b64encode(self.cubin).decode()}

    @classmethod
    def decoded(cls, data: dict[str, Any]) -> Artifact:
        cubin = base64.b64decode(data.pop("cubin"))
        return cls.from_json(data, cubin)


def checks(text: str) -> dict[str, bool]:
    """Options that keep a kernel's assertions. They come with checks of integer overflow, which are turned off."""
    return {"debug": True, "sanitize_overflow": False} if "tl.device_assert(" in text else {}


def compile_kernel(request: CompileRequest) -> Artifact:
    """Compile one kernel in this process. BuildError names the kernel, the target and what the compiler said."""
    started = time.perf_counter()
    function = load_kernel(request.name, request.text)
    attributes = {(position,): [["tt.divisibility", 16]] for position in request.aligned}
    options = {
        "num_warps": request.num_warps,
        "num_stages": request.num_stages,
        "enable_fp_fusion": request.fuse_multiply_add,
        **checks(request.text),
    }
    try:
        source = ASTSource(function, dict(request.signature), dict(request.constants), attributes)
        with tempfile.TemporaryDirectory(prefix="fusec-triton-") as private, triton.knobs.cache.scope():
            # Triton's own cache accepts damaged files, so it starts empty every time.
            triton.knobs.cache.dir = private
            target = GPUTarget("cuda", request.arch, 32)
            compiled = _on_its_own_stack(lambda: triton.compile(source, target=target, options=options))
            cubin: bytes = compiled.asm["cubin"]
    except Exception as error:
        raise BuildError(f"{request.name} does not compile for sm_{request.arch}: {_said(error)}") from error
    return _artifact(request, compiled.metadata, cubin, time.perf_counter() - started)


def _on_its_own_stack(compute: Callable[[], T]) -> T:
    """The compiler recurses into every branch of a kernel, and Python limits the depth together with the caller's."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(compute).result()


def _artifact(request: CompileRequest, metadata: Any, cubin: bytes, seconds: float) -> Artifact:
    scratch = 0
    for name in ("global_scratch_size", "profile_scratch_size"):
        if hasattr(metadata, name):
            scratch += 1
            if getattr(metadata, name) > 0:
                raise BuildError(f"{request.name} needs {name.replace('_', ' ')}, which the launcher does not give")
    return Artifact(
        name=metadata.name,
        arch=request.arch,
        cubin=cubin,
        resources=read_resources(cubin),
        num_warps=metadata.num_warps,
        shared=metadata.shared,
        scratch=scratch,
        seconds=seconds,
    )


def _said(error: BaseException) -> str:
    """The innermost message of a chain of compiler errors, without the empty ones."""
    parts = []
    at: BaseException | None = error
    while at is not None:
        text = str(at).strip()
        if text and text not in parts:
            parts.append(f"{type(at).__name__}: {text}")
        at = at.__cause__
    return "\n".join(parts) or type(error).__name__
