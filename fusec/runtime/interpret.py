"""Run a kernel's text on CPU tensors, one program instance after the other, in this process.

Enters: a KernelSource and CPU tensors. Leaves: the tensors the kernel stores to.

    kernel = InterpretedKernel(source)
    kernel.launch([x, out], sizes=[], tile=source.interpreter_tile)

Triton's own interpreter wants TRITON_INTERPRET for the whole process and prepares the language anew for each launch.
Here the list of replaced names is made once; a launch swaps them in and out, so the same process still compiles
with `triton.jit`. Functions called from a kernel (helpers, `tl.sum`, ...) are rewritten the first time they are called.
Private names of Triton are used here and in `numpy_semantics`; checked on Triton 3.6.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import logging
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch.profiler import record_function
from triton.language.extra.cuda import libdevice
from triton.language.semantic import TritonSemantic
from triton.runtime.interpreter import (
    InterpretedFunction,
    TensorHandle,
    _LangPatchScope,
    _patch_lang_core,
    _patch_lang_tensor,
)
from triton.runtime.jit import JITFunction

from fusec.errors import IndexOutOfRange, VerificationError
from fusec.ir.kernels import KernelSource, Tile
from fusec.kernels import device
from fusec.kernels.interpreted import device as interpreted_device
from fusec.runtime.grid import block_values
from fusec.runtime.memory import Memory, Segment, base_address
from fusec.runtime.module import load_kernel
from fusec.runtime.numpy_semantics import Builder, block_type_init, reduce, scan, tensor_init

log = logging.getLogger(__name__)

_LOCK = threading.RLock()  # the language is replaced for the whole process during a launch
_BUILDER = Builder()
_SEMANTIC = TritonSemantic(_BUILDER)

_POINTER_TYPES: dict[torch.dtype, Any] = {
    torch.bool: tl.int1, torch.uint8: tl.uint8, torch.int8: tl.int8, torch.int16: tl.int16, torch.int32: tl.int32,
    torch.int64: tl.int64, torch.uint16: tl.uint16, torch.uint32: tl.uint32, torch.uint64: tl.uint64,
    torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32, torch.float64: tl.float64,
    torch.float8_e4m3fn: tl.float8e4nv, torch.float8_e5m2: tl.float8e5, torch.float8_e4m3fnuz: tl.float8e4b8,
    torch.float8_e5m2fnuz: tl.float8e5b16,
}  # fmt: skip

PROFILED = "fusec.interpret: "  # how a launch is called in torch.profiler: its own memory is no kernel's

Hook = Callable[[Sequence[Segment]], None]


class InterpretedKernel:
    """A kernel ready to run on CPU tensors."""

    def __init__(self, source: KernelSource) -> None:
        self.source = source
        function = load_kernel(source.name, source.text).fn
        for name, value in function.__globals__.items():
            if value is device:  # helpers: PyTorch on whole arrays in place of libdevice
                function.__globals__[name] = interpreted_device
        self.function = rewrite(function)

    def launch(
        self,
        tensors: Sequence[torch.Tensor],
        sizes: Sequence[int],
        grid: tuple[int, ...],
        tile: Tile,
        meter: Hook | None = None,
    ) -> None:
        """Run every program instance; `meter` receives the memory segments afterwards."""
        if 0 in grid:
            return
        notice()
        params = self.source.params
        pointers = zip([p.name for p in params if p.kind == "pointer"], tensors, strict=True)
        sized = [p for p in params if p.kind == "size"]
        values = [(p.name, _number(v, p.dtype)) for p, v in zip(sized, sizes, strict=True)]
        arguments = {**dict(pointers), **dict(values)}
        with record_function(f"{PROFILED}{self.source.name}"):
            run_grid(self.source.name, self.function, arguments, block_values(self.source, tile), grid, meter)


def _number(value: int, dtype: torch.dtype | None) -> Any:
    """A size as a value of its parameter's dtype."""
    if dtype is None:
        return value
    width = _POINTER_TYPES[dtype]
    return tl.tensor(TensorHandle(np.array([value], dtype=str(dtype).removeprefix("torch.")), width), width)


def run_grid(
    name: str,
    function: Callable[..., None],
    arguments: Mapping[str, Any],
    constants: Mapping[str, Any],
    grid: tuple[int, ...],
    meter: Hook | None = None,
) -> None:
    """Run an interpreted function for every program of a grid.

    arguments: tensors and numbers by parameter name. constants: `tl.constexpr` parameters.
    VerificationError names the kernel, the program and what went wrong; IndexOutOfRange is the user's data's.
    """
    tensors = [(n, v) for n, v in arguments.items() if isinstance(v, torch.Tensor)]
    memory = Memory(name, tensors, metered=meter is not None)
    position = {n: i for i, (n, _) in enumerate(tensors)}
    values = {
        n: _pointer(position[n], v) if isinstance(v, torch.Tensor) else _SEMANTIC.to_tensor(v)
        for n, v in arguments.items()
    }
    x, y, z = (*grid, 1, 1)[:3]
    with _LOCK, _interpreted_language(memory, grid):
        try:
            for i, j, k in itertools.product(range(x), range(y), range(z)):
                _BUILDER.grid_idx = (i, j, k)
                function(**values, **constants)
        except (VerificationError, IndexOutOfRange):
            raise
        except Exception as error:
            where = f"program {_BUILDER.grid_idx} of grid {grid}"
            message = f"kernel {name} failed in the interpreter, {where}: {type(error).__name__}: {error}"
            raise VerificationError(message) from error
    if meter is not None:
        meter(memory.segments)


def _pointer(position: int, tensor: torch.Tensor) -> Any:
    """The address of a segment as a Triton pointer."""
    dtype = tl.pointer_type(_POINTER_TYPES[tensor.dtype])
    return tl.tensor(TensorHandle(np.array([base_address(position)], dtype=np.uint64), dtype), dtype)


@cache
def notice() -> None:
    """Say once a process that kernels run in the interpreter."""
    log.warning("fusec: CPU tensors: kernels run in Triton's interpreter, which is exact but slow; use CUDA for speed")


# the language, replaced


@contextmanager
def _interpreted_language(memory: Memory, grid: tuple[int, ...]) -> Iterator[None]:
    _BUILDER.memory = memory
    _BUILDER.set_grid_dim(*(*grid, 1, 1)[:3])
    changes = _changes()
    try:
        for target, name, value, _ in changes:
            setattr(target, name, value)
        with np.errstate(all="ignore"):
            yield
    finally:
        for target, name, _, original in reversed(changes):
            if original is _ABSENT:
                delattr(target, name)
            else:
                setattr(target, name, original)
        del _BUILDER.memory


_ABSENT = object()


@cache
def _changes() -> tuple[tuple[Any, str, Any, Any], ...]:
    """(object, attribute, value while interpreting, value otherwise) for everything that is replaced."""
    scope = _LangPatchScope()
    found: dict[tuple[int, str], tuple[Any, str, Any, Any]] = {}

    def change(target: Any, name: str, value: Any) -> None:
        original = vars(target).get(name, _ABSENT)
        found.setdefault((id(target), name), (target, name, value, original))

    for function_class in (JITFunction, InterpretedFunction):
        change(function_class, "__call__", _call_interpreted)
    for module in (tl, tl.core):
        change(module, "reduce", reduce)
        change(module, "associative_scan", scan)
    change(tl.tensor, "__init__", tensor_init)
    change(tl.block_type, "__init__", block_type_init)
    change(tl.tensor, "__index__", lambda self: self.handle.data.item())
    for target in (tl, tl.core, tl.tensor, tl.math, tl.core.tensor_descriptor_base, libdevice):
        for name, member in inspect.getmembers(target, tl.core.is_builtin):
            change(target, name, _bound_builtin(member))
    originals = {(id(o), n): vars(o).get(n, _ABSENT) for o, n in _core_names()}
    for module in (tl, tl.core):
        _patch_lang_core(module, scope)
    _patch_lang_tensor(tl.tensor, scope)
    patched = [(target, name, vars(target)[name]) for target, name, _ in scope._changes]
    scope.restore()
    for target, name, value in patched:
        if (id(target), name) not in found:
            original = originals.get((id(target), name), vars(target).get(name, _ABSENT))
            found[id(target), name] = (target, name, value, original)
    return tuple(found.values())


def _core_names() -> tuple[tuple[Any, str], ...]:
    """Attributes Triton's own patches add to the tensor class although it may not define them."""
    return tuple((tl.tensor, name) for name in ("__index__", "__bool__", "__repr__", "__str__", "T"))


def _bound_builtin(member: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs["_semantic"] = _SEMANTIC
        return member(*args, **kwargs)

    return call


def _call_interpreted(function: Any, *args: Any, **kwargs: Any) -> Any:
    """What calling a `@triton.jit` function means while a kernel is interpreted."""
    kwargs.pop("_semantic", None)
    return interpreted(function.fn)(*args, **kwargs)


# functions, rewritten


@cache
def interpreted(function: Callable[..., Any]) -> Callable[..., Any]:
    """`rewrite`, remembered for functions that live as long as the process."""
    return rewrite(function)


def rewrite(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with every assigned value turned into a Triton value, as the compiler would."""
    lines, first = inspect.getsourcelines(function)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    _Assignments().visit(tree)
    ast.increment_lineno(ast.fix_missing_locations(tree), first - 1)
    namespace = {**function.__globals__, _TO_TENSOR: _to_tensor}
    local: dict[str, Any] = {}
    exec(compile(tree, function.__code__.co_filename, "exec"), namespace, local)
    rewritten: Callable[..., Any] = local[definition.name]
    return rewritten


_TO_TENSOR = "__fusec_to_tensor"


def _to_tensor(value: Any) -> Any:
    return _SEMANTIC.to_tensor(value, False)


class _Assignments(ast.NodeTransformer):
    """`a = v` becomes `a = to_tensor(v)`, and `a, b = v, w` so for each; annotated assignments and loops stay."""

    def visit_Assign(self, node: ast.Assign) -> ast.Assign:
        if isinstance(node.value, ast.Tuple):
            node.value.elts = [self._converted(v) for v in node.value.elts]
        else:
            node.value = self._converted(node.value)
        return node

    @staticmethod
    def _converted(value: ast.expr) -> ast.expr:
        return ast.Call(func=ast.Name(id=_TO_TENSOR, ctx=ast.Load()), args=[value], keywords=[])
