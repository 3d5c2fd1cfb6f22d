"""The command line: fusec demo | explain | bench | cache | doctor.

Enters: arguments. Leaves: text on the screen, an exit status: 0, 1 for an error fusec explains, 2 for bad usage.

    fusec demo smollm2 --out kernels      fusec explain model.py:forward f32[8,128] f32[128]
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import triton

from fusec.api import explain
from fusec.config import Config
from fusec.demos import crepe, minilm, smollm2, train
from fusec.errors import FusecError
from fusec.inspect.rows import table
from fusec.ir.printer import format_bytes
from fusec.runtime.build import versions
from fusec.runtime.cache import CacheError, cache_directory, clear, usage

__all__ = ["main"]

DEMOS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "minilm": lambda given: minilm.run(given.out),
    "smollm2": lambda given: smollm2.run(given.out),
    "crepe": lambda given: crepe.run(given.out),
    "train": lambda given: train.run(given.out, given.steps, given.weights),
}
DTYPES = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f64": torch.float64,
    "i64": torch.int64,
    "i32": torch.int32,
    "bool": torch.bool,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    given = _parser().parse_args(arguments)
    if given.command is None:
        _parser().print_help()
        return 2
    try:
        status: int | None = given.run(given)
    except (FusecError, CacheError) as error:
        print(f"fusec: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("fusec", description="A kernel-fusion compiler for PyTorch that explains itself.")
    parser.add_argument("--version", action="version", version=f"fusec {_version('fusec')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    demo = commands.add_parser("demo", help="watch a model being captured, fused, compiled, explained; or trained")
    demo.add_argument("model", nargs="?", default="minilm", choices=sorted(DEMOS), help="which model (minilm)")
    demo.add_argument("--steps", type=_positive, default=50, help="of the training run (50)")
    demo.add_argument(
        "--weights",
        default="random",
        choices=train.WEIGHTS,
        help="that the training run starts from (random); smollm2 takes minutes a step without a GPU",
    )
    demo.add_argument("--out", type=Path, default=Path("fusec_kernels"), help="folder for the kernels' scripts")
    demo.set_defaults(run=_demo)

    explained = commands.add_parser("explain", help="what becomes of a function of yours")
    explained.add_argument("function", metavar="FILE:FUNCTION", help="a Python file and a function or module in it")
    explained.add_argument("inputs", nargs="*", metavar="TENSOR", help="random inputs: f32[8,128], i64[4]<100")
    explained.add_argument("--html", type=Path, help="write a page as well")
    explained.add_argument("--source", action="store_true", help="print the generated kernels")
    explained.set_defaults(run=_explain)

    bench = commands.add_parser("bench", help="the GPU benchmark of a checkout")
    bench.add_argument("rest", nargs=argparse.REMAINDER, help="passed on to bench.gpu")
    bench.set_defaults(run=_bench)

    cache = commands.add_parser("cache", help="the compiled kernels on disk")
    cache.add_argument("action", nargs="?", default="show", choices=("show", "clear"))
    cache.set_defaults(run=_cache)

    doctor = commands.add_parser("doctor", help="versions, devices, compilers, cache: what a bug report needs")
    doctor.set_defaults(run=_doctor)
    return parser


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return str(versions()["fusec"]) if package == "fusec" else "not installed"


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _demo(given: argparse.Namespace) -> int | None:
    return DEMOS[given.model](given)


# -- explain --------------------------------------------------------------------------------------


def _explain(given: argparse.Namespace) -> None:
    function = load_function(given.function)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = [random_tensor(text, device) for text in given.inputs]
    with torch.no_grad():
        explanation = explain(function)(*inputs)
    print(explanation)
    if given.source:
        for kernel in explanation.kernels:
            print(f"\n{kernel.source}")
    if given.html is not None:
        print(f"\nwrote {explanation.html(given.html)}")


def load_function(text: str) -> Callable[..., Any]:
    """The callable that "model.py:forward" names; FusecError when file or function is not there."""
    file, _, name = text.rpartition(":")
    path = Path(file)
    if not file or not name:
        raise FusecError(f"expected FILE:FUNCTION such as model.py:forward, got {text!r}")
    if not path.is_file():
        raise FusecError(f"no file {file!r}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise FusecError(f"{file!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.resolve().parent))
    spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if not callable(found):
        known = sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise FusecError(f"{file} has no function {name!r}; it has {', '.join(known) or 'none'}")
    result: Callable[..., Any] = found
    return result


def random_tensor(text: str, device: str = "cpu") -> torch.Tensor:
    """ "f32[8,128]" -> normal values; "i64[4]<100" -> integers below 100; "bool[3]" -> bits; "f32[]" -> a scalar."""
    match = re.fullmatch(r"(\w+)\[([\d,\s]*)\](?:<(\d+))?", text.strip())
    if match is None or match[1] not in DTYPES:
        raise FusecError(f"expected a tensor such as f32[8,128], dtype one of {', '.join(DTYPES)}; got {text!r}")
    dtype, shape = DTYPES[match[1]], [int(n) for n in match[2].split(",") if n.strip()]
    if dtype.is_floating_point:
        return torch.randn(shape, device=device).to(dtype)
    top = 2 if dtype is torch.bool else int(match[3] or 100)
    return torch.randint(0, top, shape, device=device).to(dtype)


# -- bench, cache, doctor -------------------------------------------------------------------------


def _bench(given: argparse.Namespace) -> int:
    if not Path("bench/gpu.py").is_file():
        raise FusecError("the benchmarks are part of the repository: run this in a checkout, or make gpu there")
    return subprocess.run([sys.executable, "-m", "bench.gpu", *given.rest], check=False).returncode


def _cache(given: argparse.Namespace) -> None:
    directory = cache_directory(Config.from_environment())
    if given.action == "clear":
        print(f"removed {clear(directory)} entries from {directory}")
        return
    entries, size = usage(directory)
    print(f"{directory}: {entries} entries, {format_bytes(size)}")


def _doctor(given: argparse.Namespace) -> None:
    rows = [
        ["fusec", _version("fusec")],
        ["python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"],
        ["torch", f"{torch.__version__} (CUDA {torch.version.cuda or 'not built in'})"],
        ["triton", triton.__version__],
        ["ptxas", _ptxas()],
        ["GPU", _gpus()],
        ["cache", _cache_state(cache_directory(Config.from_environment()))],
        *([name, _version(name)] for name in ("transformers", "rich", "pygments")),
    ]
    print("\n".join(table(rows, left=2)))


def _ptxas() -> str:
    path = Path(triton.knobs.nvidia.ptxas.path)
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=20)
    release = re.search(r"release ([\d.]+)", done.stdout)
    return f"{release[1]} at {path}" if release else f"does not run: {path}"


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none: CPU tensors run in Triton's interpreter; kernels still compile for any target"
    found = []
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        found.append(f"{p.name} (sm_{p.major}{p.minor}, {format_bytes(p.total_memory)})")
    return ", ".join(found)


def _cache_state(directory: Path) -> str:
    try:
        entries, size = usage(directory)
    except (CacheError, OSError) as error:
        return f"cannot be used: {error}"
    beside = next(p for p in (directory, *directory.parents) if p.exists())
    return f"{directory}: {entries} entries, {format_bytes(size)}; {format_bytes(shutil.disk_usage(beside).free)} free"
