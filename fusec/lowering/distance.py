"""Distances between all rows of two sets, and their gradient.

Enters: rows x1 of shape [.., p, m] and x2 of shape [.., r, m]. Leaves: one nest that reduces over m; its gradient
reduces over r.

    cdist(x1, x2, p=1)     nest (p0<p, p1<r, r0<m):  sum |x1[p0, r0] - x2[p1, r0]|

Euclidean distances of many rows are left to the library, which multiplies matrices.
"""

from __future__ import annotations

import math

import torch

from fusec.ir.index import as_int
from fusec.lowering.builder import NestBuilder, Value, compute_dtype
from fusec.lowering.context import Context
from fusec.lowering.reduction import require_floating
from fusec.lowering.ref import Ref
from fusec.lowering.registry import NotLowered, lowering

aten = torch.ops.aten

MANY = 25  # rows above which eager multiplies matrices
_WITHOUT_MATMUL = 2  # compute_mode


@lowering(aten._cdist_forward.default)
def cdist(ctx: Context, x1: Ref, x2: Ref, p: float, compute_mode: int | None) -> Ref:
    require_floating(x1, x2)
    rows = [as_int(x.shape[-2]) for x in (x1, x2)]
    if p == 2 and compute_mode != _WITHOUT_MATMUL and any(n is None or n > MANY for n in rows):
        raise NotLowered("Euclidean distances of many rows multiply matrices")
    out, dtype = ctx.result(), compute_dtype(x1.dtype)
    batch, width = out.shape[:-2], x1.shape[-1]
    if as_int(width) in (0, 1):
        raise NotLowered("distances of rows of at most one element")
    a, b = (x.expand((*batch, *x.shape[-2:])) for x in (x1, x2))
    with ctx.nest(out.shape, (width,)) as nest:
        *lead, i, j = nest.p
        (r,) = nest.r
        difference = nest.load_f32(a, (*lead, i, r)) - nest.load_f32(b, (*lead, j, r))
        nest.store(out, nest.p, _norm(nest, nest.op("abs", difference), p, dtype))
    return out


def _norm(nest: NestBuilder, size: Value, p: float, dtype: torch.dtype) -> Value:
    if p == 0:
        return nest.reduce("sum", nest.cast(size.ne(0), dtype))
    if p == 1:
        return nest.reduce("sum", size)
    if p == 2:
        return nest.op("sqrt", nest.reduce("sum", size * size))
    if p == math.inf:
        return nest.reduce("max", size)
    return nest.op("pow", nest.reduce("sum", nest.op("pow", size, float(p))), 1.0 / p)


@lowering(aten._cdist_backward.default)
def cdist_backward(ctx: Context, grad: Ref, x1: Ref, x2: Ref, p: float, distance: Ref) -> Ref:
    """Of x1: the sum over r of grad * sign(d) |d|^(p - 1) / distance^(p - 1), with d = x1 - x2; 0 at no distance."""
    require_floating(grad, x1, x2)
    out = ctx.result()
    rows = x2.shape[-2]
    if as_int(rows) in (0, 1):
        raise NotLowered("the gradient of distances to at most one row")
    a, b, g, length = (x.expand((*out.shape[:-2], *x.shape[-2:])) for x in (x1, x2, grad, distance))
    with ctx.nest(out.shape, (rows,)) as nest:
        *lead, i, m = nest.p
        (r,) = nest.r
        difference = nest.load_f32(a, (*lead, i, m)) - nest.load_f32(b, (*lead, r, m))
        far = nest.load_f32(length, (*lead, i, r))
        share = _slope(nest, difference, far, p) * nest.load_f32(g, (*lead, i, r))
        nest.store(out, nest.p, nest.reduce("sum", share))
    return out


def _slope(nest: NestBuilder, difference: Value, far: Value, p: float) -> Value:
    size, sign = nest.op("abs", difference), nest.op("sign", difference)
    if p == 0:
        return nest.const(0, difference.dtype)
    if p == 1:
        return sign
    if p == math.inf:
        return nest.where(size.eq(far), sign, 0)
    apart = far.ne(0) if p > 1 else far.ne(0) & size.ne(0)
    if p == 2:
        return nest.where(apart, difference / far, 0)
    return nest.where(apart, sign * nest.op("pow", size, p - 1.0) / nest.op("pow", far, p - 1.0), 0)
