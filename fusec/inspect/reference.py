"""A KernelPlan as plain PyTorch text: what a kernel script checks itself against.

Enters: a KernelPlan and the buffers it touches. Leaves: the source of `def reference(...)`, which needs
nothing but torch. Every SSA line becomes one torch line over tensors with one dimension per kernel axis:

    def reference(x, out):
        p0 = axis(0, 2, 64, x.device)
        r0 = axis(1, 2, 4096, x.device)
        v0 = flat(x)[4096*p0 + r0]
        v1 = v0.to(torch.float32)
        v2 = torch.mul(v1, v1)
        v3 = torch.sum(v2, dim=(1,), keepdim=True, dtype=torch.float32)
        put(out, p0, v3)
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping

import torch

from fusec.ir.index import Expr, FloorDiv, IndexLike, Mod, Sym, as_expr, as_int, symbols_of
from fusec.ir.kernels import KernelPlan
from fusec.ir.ops import OPS
from fusec.ir.types import AccessMode, Buffer, Instr

HELPERS = '''
def axis(position, rank, extent, device):
    """0 .. extent-1 along one of `rank` dimensions."""
    shape = [1] * rank
    shape[position] = extent
    return torch.arange(extent, device=device).reshape(shape)


def flat(tensor):
    """Every element from the tensor's first to its last, in memory order."""
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride())) + 1
    return tensor.as_strided((0 if tensor.numel() == 0 else reach,), (1,))


def load(tensor, index, mask, other):
    """Elements at `index` where `mask` holds, `other` elsewhere."""
    memory = flat(tensor)
    other = torch.tensor(other, dtype=tensor.dtype, device=tensor.device)
    if memory.numel() == 0:
        return other.expand(torch.broadcast_shapes(index.shape, mask.shape))
    return torch.where(mask, memory[index.clamp(0, memory.numel() - 1)], other)


def put(tensor, index, value, mask=True, how="store", shape=()):
    """Write `value` at `index` where `mask` holds, or add it once a point of `shape`, or keep the extreme."""
    mask = torch.as_tensor(mask, device=index.device)
    shape = torch.broadcast_shapes(index.shape, value.shape, mask.shape, shape)
    index, value, mask = (t.expand(shape) for t in (index, value, mask))
    index, value = index[mask], value[mask].to(tensor.dtype)
    if how in ("atomic_max", "atomic_min"):
        flat(tensor).scatter_reduce_(0, index, value, "a" + how[-3:])
    else:
        flat(tensor).index_put_((index,), value, accumulate=how == "atomic_add")
'''.strip("\n")

# Ops whose meaning is not `torch.<evaluate.__name__>(operands)`. {0}, {1}: operands; {dims}, {dtype}.
_TEXT = {
    "cast": "{0}.to({dtype})",
    "bitcast": "{0}.view({dtype})",
    "floordiv": 'torch.div({0}, {1}, rounding_mode="floor")',
    "truncdiv": 'torch.div({0}, {1}, rounding_mode="trunc")',
    "checked": "_checked({0}, {1})",
    "trigamma": "torch.polygamma(1, {0})",
    "ndtr": "0.5 * (1.0 + torch.erf({0} * 0.7071067811865476))",
    **{op: f"torch.special.{op}({{0}})" for op in ("i0", "i0e", "i1", "i1e", "erfcx", "ndtri")},
    "sum": "torch.sum({0}, dim={dims}, keepdim=True, dtype={dtype})",
    "prod": "_prod({0}, {dims})",
    "max": "torch.amax({0}, dim={dims}, keepdim=True)",
    "min": "torch.amin({0}, dim={dims}, keepdim=True)",
    "any": "torch.any({0}, dim={dims}, keepdim=True)",
    "all": "torch.all({0}, dim={dims}, keepdim=True)",
    "exp_sum": "torch.sum(torch.exp({0} - torch.amax({0}, dim={dims}, keepdim=True)), dim={dims}, keepdim=True)",
    "dev_sum": "torch.sum(({0} - torch.mean({0}, dim={dims}, keepdim=True)) ** 2, dim={dims}, keepdim=True)",
    "mean": "torch.mean({0}, dim={dims}, keepdim=True)",
    "philox": "philox({0}, {1}, {2})",
    "argmax": "_first({0}, torch.amax({0}, dim={dims}, keepdim=True), {1}, {dims})",
    "argmin": "_first({0}, torch.amin({0}, dim={dims}, keepdim=True), {1}, {dims})",
    "cumsum": "_scan(lambda v: torch.cumsum(v, -1, dtype={dtype}), {dims}, {0})",
    "cumprod": "_scan(lambda v: torch.cumprod(v, -1, dtype={dtype}), {dims}, {0})",
    "cummax": "_scan(lambda v: torch.cummax(v, -1).values, {dims}, {0})",
    "cummin": "_scan(lambda v: torch.cummin(v, -1).values, {dims}, {0})",
    "logcumsumexp": "_scan(lambda v: torch.logcumsumexp(v, -1), {dims}, {0})",
    "cumargmax": "_scan(lambda v, p: p.gather(-1, torch.cummax(v, -1).indices), {dims}, {0}, {1})",
    "cumargmin": "_scan(lambda v, p: p.gather(-1, torch.cummin(v, -1).indices), {dims}, {0}, {1})",
}

_EXTRA_HELPERS = {
    "philox": "from fusec.kernels.philox import philox",
    "_prod": """
def _prod(value, dims):
    for dim in dims:
        value = torch.prod(value, dim=dim, keepdim=True)
    return value
""",
    "_checked": '''
def _checked(condition, value):
    """The value; IndexError where the condition does not hold."""
    if not bool(condition.all()):
        raise IndexError("index out of range")
    return value
''',
    "_scan": '''
def _scan(scan, dims, *values):
    """Scan along several dimensions as one, row-major."""
    values = torch.broadcast_tensors(*values)
    order = [d for d in range(values[0].dim()) if d not in dims] + list(dims)
    moved = [v.permute(order) for v in values]
    result = scan(*(v.flatten(v.dim() - len(dims)) for v in moved)).reshape(moved[0].shape)
    return result.permute([order.index(d) for d in range(len(order))])
''',
    "_first": '''
def _first(value, best, position, dims):
    """The smallest position that holds the extreme value; a NaN is the extreme."""
    hit = (value == best) | (value != value)
    return torch.where(hit, position, torch.iinfo(torch.int64).max).amin(dim=dims, keepdim=True)
''',
}


def identifier(name: str) -> str:
    """A Python identifier for any name; "%3" becomes v3."""
    text = re.sub(r"\W", "_", "v" + name[1:] if name.startswith("%") else name)
    return f"_{text}" if not text or text[0].isdigit() or keyword.iskeyword(text) else text


def expression_text(expr: IndexLike) -> str:
    """An index expression as Python, SSA values as identifiers."""
    parts: list[str] = []
    for monomial, coefficient in as_expr(expr).terms:
        factors = [_atom_text(a) for a in monomial]
        if abs(coefficient) != 1 or not factors:
            factors.insert(0, str(abs(coefficient)))
        sign = "-" if coefficient < 0 else "+"
        text = "*".join(factors)
        parts.append(f" {sign} {text}" if parts else ("-" if coefficient < 0 else "") + text)
    return "".join(parts) or "0"


def _atom_text(atom: object) -> str:
    if isinstance(atom, Sym):
        return identifier(atom.name)
    assert isinstance(atom, FloorDiv | Mod)
    operator = "//" if isinstance(atom, FloorDiv) else "%"
    return f"(({expression_text(atom.num)}) {operator} ({expression_text(atom.den)}))"


def op_text(op: str) -> str:
    """The torch expression of a row of the op table, with {0}, {1}, ... for its operands."""
    if op in _TEXT:
        return _TEXT[op]
    row = OPS[op]
    assert row.evaluate is not None, f"{op} has no torch function"
    name = row.evaluate.__name__
    assert getattr(torch, name, None) is row.evaluate, f"{op}: torch.{name} is not its meaning; add it to _TEXT"
    return f"torch.{name}({', '.join(f'{{{i}}}' for i in range(row.arity))})"


class _Writer:
    """Writes one plan's body; tracks on which axes each value depends."""

    def __init__(self, plan: KernelPlan, names: Mapping[str, str]) -> None:
        self.plan, self.names = plan, names
        self.rank = max(len(plan.axes), 1)
        self.position = {a.name: i for i, a in enumerate(plan.axes)}
        self.varies: dict[str, frozenset[str]] = {}
        self.used_axes: set[str] = set()
        self.extras: dict[str, None] = {}

    def axes_of(self, instr: Instr) -> frozenset[str]:
        found: frozenset[str] = frozenset()
        for expr in instr.index_exprs:
            found |= {s.name for s in symbols_of(expr) if s.kind == "axis"}
        for name in instr.value_operands:
            found |= self.varies.get(name, frozenset())
        return (found - frozenset(instr.reduced_axes)) | frozenset(instr.scanned_axes)

    def index_text(self, expr: Expr) -> str:
        self.used_axes |= {s.name for s in symbols_of(expr) if s.kind == "axis"}
        return f"zero + {expression_text(expr)}" if not symbols_of(expr) else expression_text(expr)

    def line(self, instr: Instr) -> str:
        if instr.out is not None:
            self.varies[instr.out] = self.axes_of(instr)
        args = [identifier(a) for a in instr.args]
        access = instr.access
        if access is not None and instr.op != "load":
            mask = f", {args[1]}" if len(args) > 1 else ""
            how = "" if access.mode is AccessMode.STORE else f', how="{access.mode.value}"'
            if instr.axes:
                how += f", shape={[as_int(a.extent) if a.name in instr.axes else 1 for a in self.plan.axes]}"
            return f"put({self.names[access.buffer]}, {self.index_text(access.index)}, {args[0]}{mask}{how})"
        assert instr.out is not None
        return f"{identifier(instr.out)} = {self.value_text(instr, args)}"

    def value_text(self, instr: Instr, args: list[str]) -> str:
        dtype = str(instr.dtype)
        if instr.op == "const":
            shape = [1] * self.rank
            return f"torch.full({shape}, {_literal(instr.attr('value'))}, dtype={dtype}, device=device)"
        if instr.op == "index":
            return f"({self.index_text(as_expr(instr.attr('expr')))}).to({dtype})"
        if instr.op == "load":
            assert instr.access is not None
            buffer, index = self.names[instr.access.buffer], self.index_text(instr.access.index)
            if not args:
                return f"flat({buffer})[{index}]"
            other = instr.attr("other", 0)
            return f"load({buffer}, {index}, {args[0]}, {_literal(other)})"
        dims = tuple(self.position[a] for a in instr.row_axes)
        if instr.row_axes:
            args = [self.expanded(a, t, instr.row_axes) for a, t in zip(instr.args, args, strict=True)]
        text = op_text(instr.op)
        self.extras.update({name: None for name in _EXTRA_HELPERS if name in text})
        return text.format(*args, dims=dims, dtype=dtype)

    def expanded(self, value: str, text: str, axes: tuple[str, ...]) -> str:
        """A reduction or scan counts every point: an operand that is constant along its axis is repeated."""
        missing = [a for a in axes if a not in self.varies.get(value, frozenset())]
        if not missing:
            return text
        sizes = [str(as_int(a.extent)) if a.name in missing else "-1" for a in self.plan.axes]
        return f"{text}.expand({', '.join(sizes)})"


def _literal(value: object) -> str:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return f'float("{value}")'
    return repr(value)


def reference_text(plan: KernelPlan, names: Mapping[str, str]) -> str:
    """Helpers and `def reference(device, <buffers>)`, which fills the written buffers in place.

    names: the Python name of each buffer the plan touches.
    """
    written = [_function_text(leaf, names, f"part_{k}") for k, leaf in enumerate(plan.parts)]
    written = written or [_function_text(plan, names, "reference")]
    extras = [_EXTRA_HELPERS[name].strip("\n") for name in dict.fromkeys(name for _, used in written for name in used)]
    functions = [text for text, _ in written]
    if plan.parts:
        calls = [f"    part_{k}(device, {_parameters(leaf, names)})" for k, leaf in enumerate(plan.parts)]
        functions.append("\n".join([f"def reference(device, {_parameters(plan, names)}):", *calls]))
    return "\n\n\n".join((HELPERS, *extras, *functions))


def _parameters(plan: KernelPlan, names: Mapping[str, str]) -> str:
    return ", ".join(names[b.name] for b in plan.buffers)


def _function_text(plan: KernelPlan, names: Mapping[str, str], name: str) -> tuple[str, list[str]]:
    """The function that runs one plan's lines, and the extra helpers it needs."""
    writer = _Writer(plan, names)
    lines = [writer.line(i) for i in plan.body]
    head = [
        f"{identifier(a.name)} = axis({i}, {writer.rank}, {as_int(a.extent)}, device)"
        for i, a in enumerate(plan.axes)
        if a.name in writer.used_axes
    ]
    zero = [f"zero = torch.zeros([1] * {writer.rank}, dtype=torch.int64, device=device)"]
    body = "\n".join(f"    {text}" for text in (*zero, *head, *lines))
    doc = '"""The same lines in plain PyTorch; outputs in place."""'
    return f"def {name}(device, {_parameters(plan, names)}):\n    {doc}\n{body}", list(writer.extras)


def index_bounds(plan: KernelPlan) -> dict[str, int]:
    """Largest allowed value of each integer buffer whose elements are used as an index."""
    found = [_bounds_of_one(leaf) for leaf in plan.leaves]
    return {name: min(f[name] for f in found if name in f) for name in dict.fromkeys(n for f in found for n in f)}


def _bounds_of_one(plan: KernelPlan) -> dict[str, int]:
    loaded: dict[str, str] = {}  # SSA value -> the buffer it is a (converted) copy of
    limits: dict[str, int] = {}
    for instr in plan.body:
        if instr.op == "load" and instr.out is not None and instr.access is not None:
            loaded[instr.out] = instr.access.buffer
        elif instr.op in ("cast", "where", "add", "lt") and instr.out is not None:
            source = next((loaded[a] for a in instr.args if a in loaded and instr.op != "lt"), None)
            if source is not None and not instr.dtype.is_floating_point:
                loaded[instr.out] = source
        for expr in instr.index_exprs:
            for symbol in symbols_of(expr):
                if symbol.kind == "value" and symbol.name in loaded and isinstance(symbol.hi, int):
                    name = loaded[symbol.name]
                    limits[name] = min(limits.get(name, symbol.hi), symbol.hi)
    return limits


def buffer_literal(buffer: Buffer) -> str:
    """(dtype, shape, strides) as Python."""
    shape = tuple(as_int(s) for s in buffer.shape)
    strides = tuple(as_int(s) for s in buffer.strides)
    assert None not in shape and None not in strides, f"{buffer.name} has a symbolic extent"
    assert isinstance(buffer.dtype, torch.dtype)
    return f"({buffer.dtype}, {shape}, {strides})"
