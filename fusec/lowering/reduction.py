"""Reductions: sum, mean, prod, extremes and their positions, any, all, variance, norms, logsumexp.

Enters: views and dims. Leaves: nests that hold one reduction each.

    x.mean(-1) of bf16[64, 4096]

    nest n0 (p0<64, r0<4096):
      %0:bf16 = load x[4096*p0 + r0]
      %1:f32 = cast %0
      %2:f32 = sum %1
      %3:f32 = const 4096.0
      %4:f32 = div %2, %3
      store mean[p0], %4

float16 and bfloat16 are accumulated in float32 and rounded once, by the last store; integers in int64. What
one nest leaves for the next (a mean, a row's maximum) stays in the accumulation dtype. A variance takes two
passes, mean first: sum((x - mean)^2) keeps its digits where sum(x^2) - n*mean^2 would lose them all.
A reduction over nothing is a constant, over one element the element itself: neither leaves a reduction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from fusec.ir.index import Expr, IndexLike, as_int, is_nonnegative, linearize, product
from fusec.ir.ops import identity
from fusec.lowering.builder import KERNEL_DTYPES, NestBuilder, Number, Value, compute_dtype
from fusec.lowering.context import Context, interleave, reduction_dims
from fusec.lowering.ref import Ref, contiguous_strides
from fusec.lowering.registry import NotLowered, lowering

aten = torch.ops.aten

Dims = int | Sequence[int] | None
Coordinates = tuple[IndexLike, ...]
Body = Callable[[NestBuilder, Coordinates], Value]  # the value to reduce, at coordinates of the reduced tensor
Finish = Callable[[NestBuilder, Value], Value]

_NARROW_INTEGERS = (torch.uint8, torch.int8, torch.int16)


# -- one nest -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Split:
    """The dimensions of a tensor as kept and reduced ones."""

    shape: tuple[IndexLike, ...]
    reduced: tuple[int, ...]
    kept: tuple[int, ...]

    @classmethod
    def of(cls, x: Ref, dims: Dims) -> Split:
        """No dims means all of them."""
        reduced, kept, _ = reduction_dims(x.shape, dims, False)
        return cls(x.shape, reduced, kept)

    @property
    def count(self) -> IndexLike:
        """How many elements one result is reduced from."""
        return product(self.shape[d] for d in self.reduced)

    @property
    def rows(self) -> tuple[IndexLike, ...]:
        return tuple(self.shape[d] for d in self.kept)

    @property
    def columns(self) -> tuple[IndexLike, ...]:
        return tuple(self.shape[d] for d in self.reduced)

    def join(self, p: Sequence[IndexLike], r: Sequence[IndexLike]) -> Coordinates:
        return interleave(len(self.shape), self.kept, p, self.reduced, r)

    def row_of(self, where: Sequence[IndexLike]) -> Coordinates:
        """Coordinates of the kept dimensions, given those of the tensor."""
        return tuple(where[d] for d in self.kept)

    def position(self, r: Sequence[IndexLike]) -> Expr:
        """Row-major position of an element among the reduced ones."""
        return linearize(r, contiguous_strides(self.columns))


def reduce_rows(
    ctx: Context, split: Split, op: str, body: Body, dtype: torch.dtype, out: Ref, finish: Finish | None = None
) -> Ref:
    """out[p] = finish(op over r of body(p, r)); `out` has the kept dimensions, or all with extent 1 for the reduced.

    dtype: of the reduced values. argmax and argmin give the row-major position among the reduced elements.
    """
    count = as_int(split.count)
    trivial = count is not None and count <= 1
    with ctx.nest(split.rows, () if trivial else split.columns) as nest:
        zeros = [0] * len(split.reduced)
        r = zeros if trivial else nest.r
        if count == 0:
            value = nest.const(identity(op, dtype), dtype)
        else:
            value = body(nest, split.join(nest.p, r))
            assert value.dtype is dtype, f"{op} of {value}, expected {dtype}"
            if op in ("argmax", "argmin"):
                position = nest.index(split.position(r))
                value = position if trivial else nest.reduce(op, value, position)
            elif not trivial:
                value = nest.reduce(op, value)
        value = value if finish is None else finish(nest, value)
        nest.store(out, nest.p if out.ndim == len(split.kept) else split.join(nest.p, zeros), value)
    return out


def row_temporary(ctx: Context, split: Split, dtype: torch.dtype, hint: str) -> Ref:
    """Memory for one value a row, named for a reader."""
    return ctx.temporary(dtype, split.rows, hint=hint)


def require_floating(*tensors: Ref | None) -> None:
    """NotLowered unless every tensor holds floating-point values."""
    for x in tensors:
        if x is not None and not x.dtype.is_floating_point:
            raise NotLowered(f"needs floating-point values, got {str(x.dtype).removeprefix('torch.')}")


def is_used(node: fx.Node, index: int) -> bool:
    """Whether the index-th result of a node is read by anyone."""
    for user in node.users:
        picks_one = user.op == "call_function" and getattr(user.target, "__name__", "") == "getitem"
        if not picks_one or (user.args[1] == index and user.users):
            return True
    return False


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums and products of this dtype are kept in: float32 for half types, int64 for integers and bool."""
    return compute_dtype(dtype) if dtype.is_floating_point else torch.int64


def comparable(nest: NestBuilder, value: Value) -> Value:
    """The value in a dtype that extremes are computed in; the order of values is unchanged."""
    wide = torch.int32 if value.dtype in (*_NARROW_INTEGERS, torch.bool) else compute_dtype(value.dtype)
    return nest.cast(value, wide)


def comparable_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.int32 if dtype in (*_NARROW_INTEGERS, torch.bool) else compute_dtype(dtype)


def _load_as(x: Ref, through: torch.dtype, accumulate: torch.dtype) -> Body:
    """The element, converted first to the dtype the op was asked for, then to the accumulation dtype."""

    def body(nest: NestBuilder, where: Coordinates) -> Value:
        return nest.cast(nest.cast(nest.load(x, where), through), accumulate)

    return body


# -- sum, mean, prod, counts ----------------------------------------------------------------------


def _accumulated(ctx: Context, op: str, x: Ref, dims: Dims, dtype: torch.dtype | None, mean: bool = False) -> Ref:
    """One nest for sum, prod and mean. dtype: what the user asked the values to be converted to first."""
    out = ctx.result()
    through = dtype or (x.dtype if x.dtype.is_floating_point else out.dtype)
    if through is torch.bool or through not in KERNEL_DTYPES:
        raise NotLowered(f"a {op} in {str(through).removeprefix('torch.')} is left to PyTorch")
    split, accumulate = Split.of(x, dims), accumulation_dtype(through)
    if not mean:
        return reduce_rows(ctx, split, op, _load_as(x, through, accumulate), accumulate, out)
    count = split.count
    return reduce_rows(
        ctx, split, op, _load_as(x, through, accumulate), accumulate, out, lambda nest, total: _divided(total, count)
    )


def _divided(total: Value, count: IndexLike) -> Value:
    return total if count == 1 else total / count


@lowering(aten.sum.default)
def sum_all(ctx: Context, x: Ref, *, dtype: torch.dtype | None = None) -> Ref:
    return _accumulated(ctx, "sum", x, None, dtype)


@lowering(aten.sum.dim_IntList)
def sum_dims(ctx: Context, x: Ref, dim: Dims, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Ref:
    return _accumulated(ctx, "sum", x, dim, dtype)


@lowering(aten.mean.default)
def mean_all(ctx: Context, x: Ref, *, dtype: torch.dtype | None = None) -> Ref:
    return _accumulated(ctx, "sum", x, None, dtype, mean=True)


@lowering(aten.mean.dim)
def mean_dims(ctx: Context, x: Ref, dim: Dims, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Ref:
    return _accumulated(ctx, "sum", x, dim, dtype, mean=True)


@lowering(aten.prod.default)
def prod_all(ctx: Context, x: Ref, *, dtype: torch.dtype | None = None) -> Ref:
    return _accumulated(ctx, "prod", x, None, dtype)


@lowering(aten.prod.dim_int)
def prod_dim(ctx: Context, x: Ref, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Ref:
    return _accumulated(ctx, "prod", x, dim, dtype)


@lowering(aten.nansum.default)
def nansum(ctx: Context, x: Ref, dim: Dims = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Ref:
    if not x.dtype.is_floating_point:
        return _accumulated(ctx, "sum", x, dim, dtype)
    out = ctx.result()
    through = dtype or x.dtype
    accumulate = accumulation_dtype(through)

    def body(nest: NestBuilder, where: Coordinates) -> Value:
        value = nest.load_f32(x, where)
        kept = nest.where(nest.op("isnan", value), 0, value)
        return nest.cast(nest.cast(kept, through) if through is not x.dtype else kept, accumulate)

    return reduce_rows(ctx, Split.of(x, dim), "sum", body, accumulate, out)


@lowering(aten.count_nonzero.default, aten.count_nonzero.dim_IntList)
def count_nonzero(ctx: Context, x: Ref, dim: Dims = None) -> Ref:

    def body(nest: NestBuilder, where: Coordinates) -> Value:
        return nest.cast(nest.cast(nest.load_f32(x, where), torch.bool), torch.int64)

    return reduce_rows(ctx, Split.of(x, dim), "sum", body, torch.int64, ctx.result())


# -- any, all -------------------------------------------------------------------------------------


def _logical(ctx: Context, op: str, x: Ref, dims: Dims, out: Ref | None = None) -> Ref:
    out = ctx.result() if out is None else out  # bool; uint8 for a uint8 operand
    return reduce_rows(
        ctx, Split.of(x, dims), op, lambda nest, where: nest.cast(nest.load_f32(x, where), torch.bool), torch.bool, out
    )


@lowering(aten.any.default, aten.any.dim, aten.any.dims)
def any_(ctx: Context, x: Ref, dim: Dims = None, keepdim: bool = False) -> Ref:
    _refuse_empty_list(x, dim)
    return _logical(ctx, "any", x, dim)


@lowering(aten.all.default, aten.all.dim, aten.all.dims)
def all_(ctx: Context, x: Ref, dim: Dims = None, keepdim: bool = False) -> Ref:
    _refuse_empty_list(x, dim)
    return _logical(ctx, "all", x, dim)


def _refuse_empty_list(x: Ref, dim: Dims) -> None:
    # For any and all an empty list of dims reduces nothing, for every other reduction it reduces all.
    if x.ndim and isinstance(dim, tuple | list) and not dim:
        raise NotLowered("any and all over an empty list of dims are elementwise")


# -- extremes -------------------------------------------------------------------------------------


def _extreme(ctx: Context, op: str, x: Ref, dims: Dims, out: Ref) -> Ref:
    """max or min; NaN if any is NaN."""
    if x.dtype is torch.bool:
        return _logical(ctx, "any" if op == "max" else "all", x, dims, out)
    dtype = comparable_dtype(x.dtype)
    return reduce_rows(
        ctx, Split.of(x, dims), op, lambda nest, where: comparable(nest, nest.load(x, where)), dtype, out
    )


def _position(ctx: Context, op: str, x: Ref, dims: Dims, out: Ref) -> Ref:
    """argmax or argmin: the first extreme, NaN being one."""
    dtype = comparable_dtype(x.dtype)
    return reduce_rows(
        ctx, Split.of(x, dims), op, lambda nest, where: comparable(nest, nest.load(x, where)), dtype, out
    )


@lowering(aten.amax.default)
def amax(ctx: Context, x: Ref, dim: Dims = None, keepdim: bool = False) -> Ref:
    return _extreme(ctx, "max", x, dim, ctx.result())


@lowering(aten.amin.default)
def amin(ctx: Context, x: Ref, dim: Dims = None, keepdim: bool = False) -> Ref:
    return _extreme(ctx, "min", x, dim, ctx.result())


@lowering(aten.max.default)
def max_all(ctx: Context, x: Ref) -> Ref:
    return _extreme(ctx, "max", x, None, ctx.result())


@lowering(aten.min.default)
def min_all(ctx: Context, x: Ref) -> Ref:
    return _extreme(ctx, "min", x, None, ctx.result())


def _values_and_positions(ctx: Context, op: str, x: Ref, dim: int) -> tuple[Ref | None, Ref | None]:
    values = _extreme(ctx, op, x, dim, ctx.result(0)) if is_used(ctx.node, 0) else None
    positions = _position(ctx, f"arg{op}", x, dim, ctx.result(1)) if is_used(ctx.node, 1) else None
    return values, positions


@lowering(aten.max.dim)
def max_dim(ctx: Context, x: Ref, dim: int, keepdim: bool = False) -> tuple[Ref | None, Ref | None]:
    return _values_and_positions(ctx, "max", x, dim)


@lowering(aten.min.dim)
def min_dim(ctx: Context, x: Ref, dim: int, keepdim: bool = False) -> tuple[Ref | None, Ref | None]:
    return _values_and_positions(ctx, "min", x, dim)


@lowering(aten.aminmax.default)
def aminmax(ctx: Context, x: Ref, *, dim: int | None = None, keepdim: bool = False) -> tuple[Ref | None, Ref | None]:
    smallest = _extreme(ctx, "min", x, dim, ctx.result(0)) if is_used(ctx.node, 0) else None
    largest = _extreme(ctx, "max", x, dim, ctx.result(1)) if is_used(ctx.node, 1) else None
    return smallest, largest


@lowering(aten.argmax.default)
def argmax(ctx: Context, x: Ref, dim: int | None = None, keepdim: bool = False) -> Ref:
    return _position(ctx, "argmax", x, dim, ctx.result())


@lowering(aten.argmin.default)
def argmin(ctx: Context, x: Ref, dim: int | None = None, keepdim: bool = False) -> Ref:
    return _position(ctx, "argmin", x, dim, ctx.result())


# -- variance -------------------------------------------------------------------------------------


def mean_of(ctx: Context, x: Ref, split: Split, out: Ref | None = None) -> Ref:
    """The rows' mean in the accumulation dtype."""
    dtype = compute_dtype(x.dtype)
    out = row_temporary(ctx, split, dtype, "mean") if out is None else out
    count = split.count
    body = _load_as(x, x.dtype, dtype)
    return reduce_rows(ctx, split, "sum", body, dtype, out, lambda nest, total: _divided(total, count))


def spread_of(ctx: Context, x: Ref, split: Split, out: Ref, finish: Finish) -> Ref:
    """finish(sum over r of (x - mean x)^2)."""
    dtype = compute_dtype(x.dtype)

    def body(nest: NestBuilder, where: Coordinates) -> Value:
        value = nest.load_f32(x, where)
        return value - value if split.count == 1 else value  # the mean of one element is the element

    return reduce_rows(ctx, split, "dev_sum", body, dtype, out, finish)


def _variance(ctx: Context, x: Ref, dims: Dims, correction: Number | None, out: Ref, root: bool) -> Ref:
    """sum((x - mean)^2) / max(n - correction, 0); its root for a standard deviation. Returns the mean."""
    require_floating(x)
    split = Split.of(x, dims)
    count, less = split.count, 1 if correction is None else correction
    mean = mean_of(ctx, x, split)

    def finish(nest: NestBuilder, total: Value) -> Value:
        if isinstance(count, int):
            value = total / max(0.0, count - less)
        elif less == int(less) and is_nonnegative(count - int(less)):
            value = total / (count - int(less))
        else:
            value = total / nest.op("maximum", nest.index(count, total.dtype) - float(less), 0.0)
        return nest.op("sqrt", value) if root else value

    spread_of(ctx, x, split, out, finish)
    return mean


@lowering(aten.var.correction)
def var(ctx: Context, x: Ref, dim: Dims = None, *, correction: Number | None = None, keepdim: bool = False) -> Ref:
    out = ctx.result()
    _variance(ctx, x, dim, correction, out, root=False)
    return out


@lowering(aten.std.correction)
def std(ctx: Context, x: Ref, dim: Dims = None, *, correction: Number | None = None, keepdim: bool = False) -> Ref:
    out = ctx.result()
    _variance(ctx, x, dim, correction, out, root=True)
    return out


def _with_mean(ctx: Context, x: Ref, dim: Dims, correction: Number | None, root: bool) -> tuple[Ref, Ref]:
    out = ctx.result(0)
    plain = _variance(ctx, x, dim, correction, out, root)
    split, dtype = Split.of(x, dim), compute_dtype(x.dtype)
    if _widened(ctx.node.args[0]) or split.count in (0, 1):
        return out, as_result(ctx, plain, 1)
    mean = row_temporary(ctx, split, dtype, "mean")
    return out, as_result(ctx, reduce_rows(ctx, split, "mean", _load_as(x, x.dtype, dtype), dtype, mean), 1)


def _widened(node: object) -> bool:
    """Whether a value is a half-precision one in float32: it then has no digits that a rounded mean would hide."""
    if not isinstance(node, fx.Node):
        return False
    if node.target in (aten.view.default, aten.reshape.default, aten.unsqueeze.default):
        return _widened(node.args[0])
    source = node.args[0] if node.target is aten._to_copy.default else None
    return isinstance(source, fx.Node) and source.meta["val"].dtype in (torch.float16, torch.bfloat16)


def as_result(ctx: Context, rows: Ref, index: int) -> Ref:
    """One value a row as the op's index-th result: a view of it, or a copy in the dtype that was promised."""
    out = ctx.result(index)
    view = rows.reshape(out.shape)
    if view.dtype is out.dtype:
        return view
    with ctx.nest(out.shape) as nest:
        nest.store(out, nest.p, nest.load(view, nest.p))
    return out


@lowering(aten.var_mean.correction)
def var_mean(
    ctx: Context, x: Ref, dim: Dims = None, *, correction: Number | None = None, keepdim: bool = False
) -> tuple[Ref, Ref]:
    return _with_mean(ctx, x, dim, correction, root=False)


@lowering(aten.std_mean.correction)
def std_mean(
    ctx: Context, x: Ref, dim: Dims = None, *, correction: Number | None = None, keepdim: bool = False
) -> tuple[Ref, Ref]:
    return _with_mean(ctx, x, dim, correction, root=True)


# -- norms ----------------------------------------------------------------------------------------


def _vector_norm(ctx: Context, x: Ref, p: Number | None, dims: Dims, dtype: torch.dtype | None) -> Ref:
    """(sum |x|^p)^(1/p); max |x| for p = inf, min |x| for -inf, the count of nonzero values for p = 0."""
    require_floating(x)
    out = ctx.result()
    through = dtype or x.dtype
    power = 2.0 if p is None else float(p)
    accumulate = compute_dtype(through)

    def body(nest: NestBuilder, where: Coordinates) -> Value:
        value = nest.cast(nest.cast(nest.load(x, where), through), accumulate)
        if power == 0:
            return nest.cast(value.ne(0), accumulate)
        if power == 2:
            return value * value
        magnitude = nest.op("abs", value)
        return magnitude if power in (1, math.inf, -math.inf) else nest.op("pow", magnitude, power)

    def finish(nest: NestBuilder, total: Value) -> Value:
        if power == 2:
            return nest.op("sqrt", total)
        return total if power in (0, 1, math.inf, -math.inf) else nest.op("pow", total, 1.0 / power)

    op = {math.inf: "max", -math.inf: "min"}.get(power, "sum")
    split = Split.of(x, dims)
    if as_int(split.count) == 0 and (power < 0 or power == math.inf):
        raise NotLowered(f"a norm of order {power} of nothing")
    return reduce_rows(ctx, split, op, body, accumulate, out, finish)


@lowering(aten.linalg_vector_norm.default)
def linalg_vector_norm(
    ctx: Context, x: Ref, ord: Number = 2, dim: Dims = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Ref:
    return _vector_norm(ctx, x, ord, dim, dtype)


@lowering(aten.norm.Scalar, aten.norm.ScalarOpt_dtype)
def norm_all(ctx: Context, x: Ref, p: Number | None = 2, *, dtype: torch.dtype | None = None) -> Ref:
    return _vector_norm(ctx, x, p, None, dtype)


@lowering(aten.norm.ScalarOpt_dim, aten.norm.ScalarOpt_dim_dtype)
def norm_dims(
    ctx: Context, x: Ref, p: Number | None, dim: Dims, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Ref:
    return _vector_norm(ctx, x, p, dim, dtype)


# -- logsumexp ------------------------------------------------------------------------------------


def max_of(ctx: Context, x: Ref, split: Split, finish: Finish | None = None) -> Ref:
    """The rows' maximum in the accumulation dtype."""
    dtype = compute_dtype(x.dtype)
    out = row_temporary(ctx, split, dtype, "row_max")
    return reduce_rows(ctx, split, "max", lambda nest, where: nest.load_f32(x, where), dtype, out, finish)


def sum_exp_of(ctx: Context, x: Ref, split: Split, shift: Ref, out: Ref, finish: Finish | None = None) -> Ref:
    """finish(sum over r of exp(x - shift)); shift has one value a row."""
    dtype = compute_dtype(x.dtype)

    def body(nest: NestBuilder, where: Coordinates) -> Value:
        return nest.op("exp", nest.load_f32(x, where) - nest.load(shift, split.row_of(where)))

    return reduce_rows(ctx, split, "sum", body, dtype, out, finish)


@lowering(aten.logsumexp.default)
def logsumexp(ctx: Context, x: Ref, dim: Dims, keepdim: bool = False) -> Ref:
    """max + log(sum(exp(x - max))), and an infinite max as it is: where the sum has no value, a row of -inf gives -inf.

    The sum is softmax's own, so that long rows take both in one pass.
    """
    require_floating(x)
    split, out = Split.of(x, dim), ctx.result()
    dtype = compute_dtype(x.dtype)
    if as_int(split.count) == 0:
        return reduce_rows(ctx, split, "max", lambda nest, where: nest.const(0, dtype), dtype, out)
    shift = max_of(ctx, x, split)

    def finish(nest: NestBuilder, total: Value) -> Value:
        largest = nest.load(shift, nest.p)
        return nest.where(nest.op("isinf", largest), largest, nest.op("log", total) + largest)

    return sum_exp_of(ctx, x, split, shift, out, finish)


__all__ = [
    "Body",
    "Coordinates",
    "Finish",
    "Split",
    "accumulation_dtype",
    "as_result",
    "is_used",
    "max_of",
    "mean_of",
    "reduce_rows",
    "require_floating",
    "row_temporary",
    "spread_of",
    "sum_exp_of",
]
