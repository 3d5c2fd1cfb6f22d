"""Indexing by tensors: embedding, index_select, gather, index, take.

Enters: a view and index tensors. Leaves: one nest that loads the index and uses the value as a coordinate.

    embedding(weight, ids) of f32[30522, 384], i64[8, 16]

    nest n0 (p0<8, p1<16, p2<384):
      %0:i64 = load ids[16*p0 + p1]
      %1:bool = 0 <= %0 < 30522
      %2:i64 = checked %1, %0
      %3:f32 = load weight[384*%2 + p2] where %1 else 0
      store embedding[6144*p0 + 384*p1 + p2], %4

An index out of range is an IndexError on a CPU and a device assertion on a GPU, as in eager; the mask keeps the load
itself within the tensor. Negative indices count from the end where eager's do (index, take).
A boolean mask as an index makes a result whose size depends on data: that stays a library call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fusec.ir.index import Expr, product
from fusec.lowering.builder import Number
from fusec.lowering.context import Context
from fusec.lowering.positions import Checked, IndexPlan, at_least_1d, require_integers
from fusec.lowering.ref import Ref
from fusec.lowering.registry import lowering

aten = torch.ops.aten

# -- one index along one dimension ----------------------------------------------------------------


@lowering(aten.embedding.default)
def embedding(
    ctx: Context,
    weight: Ref,
    indices: Ref,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Ref:
    require_integers(indices)
    out = ctx.result()
    with ctx.nest(out.shape) as nest:
        checked = Checked(nest)
        row = checked.coordinate(nest.load(indices, nest.p[:-1]), weight.shape[0])
        nest.store(out, nest.p, nest.load(weight, (row, nest.p[-1]), checked.mask))
    return out


@lowering(aten.index_select.default)
def index_select(ctx: Context, x: Ref, dim: int, index: Ref) -> Ref:
    require_integers(index)
    out, x, index = ctx.result(), at_least_1d(x), at_least_1d(index)
    dim %= x.ndim
    with ctx.nest(out.shape) as nest:
        p = nest.p or (Expr(()),)
        checked = Checked(nest)
        picked = checked.coordinate(nest.load(index, (p[dim],)), x.shape[dim])
        nest.store(out, nest.p, nest.load(x, (*p[:dim], picked, *p[dim + 1 :]), checked.mask))
    return out


@lowering(aten.gather.default)
def gather(ctx: Context, x: Ref, dim: int, index: Ref, *, sparse_grad: bool = False) -> Ref:
    require_integers(index)
    out, x, index = ctx.result(), at_least_1d(x), at_least_1d(index)
    dim %= x.ndim
    with ctx.nest(out.shape) as nest:
        p = nest.p or (Expr(()),)
        checked = Checked(nest)
        picked = checked.coordinate(nest.load(index, p), x.shape[dim])
        nest.store(out, nest.p, nest.load(x, (*p[:dim], picked, *p[dim + 1 :]), checked.mask))
    return out


@lowering(aten.take.default)
def take(ctx: Context, x: Ref, index: Ref) -> Ref:
    require_integers(index)
    out, flat = ctx.result(), x.reshape((product(x.shape),))
    with ctx.nest(out.shape) as nest:
        checked = Checked(nest)
        picked = checked.coordinate(nest.load(index, nest.p), flat.shape[0], wrap=True)
        nest.store(out, nest.p, nest.load(flat, (picked,), checked.mask))
    return out


# -- several indices ------------------------------------------------------------------------------


def _indexed(
    ctx: Context,
    x: Ref,
    indices: Sequence[Ref | None],
    mask: Ref | None = None,
    fill: Number = 0,
    safe: bool = False,
) -> Ref:
    """x[indices]; with a mask, `fill` where it is false, and indices out of range are clamped."""
    out, plan = ctx.result(), IndexPlan(x, indices)
    with ctx.nest(out.shape) as nest:
        checked = Checked(nest)
        where = plan.coordinates(checked, clamp=mask is not None, safe=safe)
        if mask is not None:
            checked.require(nest.load(mask.expand(out.shape), nest.p))
        nest.store(out, nest.p, nest.load(x, where, checked.mask, fill))
    return out


@lowering(aten.index.Tensor)
def index_tensor(ctx: Context, x: Ref, indices: Sequence[Ref | None]) -> Ref:
    return _indexed(ctx, x, indices)


@lowering(aten._unsafe_index.Tensor)
def unsafe_index(ctx: Context, x: Ref, indices: Sequence[Ref | None]) -> Ref:
    return _indexed(ctx, x, indices, safe=True)


@lowering(aten._unsafe_masked_index.default)
def masked_index(ctx: Context, x: Ref, mask: Ref, indices: Sequence[Ref | None], fill: Number) -> Ref:
    """x[indices] where the mask holds, else fill; indices are clamped into range."""
    return _indexed(ctx, x, indices, mask, fill)
