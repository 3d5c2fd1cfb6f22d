"""Library calls: what happens to an op that has no lowering, or whose lowering declined.

Enters: an FX node with lowered arguments. Leaves: one `Extern` whose arguments are strided views.

    x3 = extern aten.mm.default(view(relu, (64, 512), (512, 1)), view(weight, ...)) -> mm     # library call

A view that is not strided (a rolled or flipped one) is copied first; an op that would return an alias of its
input is called by its copying form; an op that writes an argument names the buffer in `mutates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from fusec.errors import LoweringError
from fusec.ir.types import Extern, ExternArg, Role, TensorView
from fusec.lowering.builder import FLOAT8, KERNEL_DTYPES
from fusec.lowering.context import Context, op_hint, sizes, strides_of
from fusec.lowering.ref import Ref
from fusec.lowering.registry import NotLowered, lowering
from fusec.lowering.symbols import new_size, number_of

# Packets for which a library is the right answer, by the name of the packet.
LIBRARY_NAMES = """
    mm addmm bmm baddbmm addbmm addmv mv dot vdot _scaled_mm _int_mm _grouped_mm
    convolution cudnn_convolution convolution_backward
    scaled_dot_product_attention _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention
    _scaled_dot_product_cudnn_attention _scaled_dot_product_attention_math
    _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_fused_attention_overrideable
    _scaled_dot_product_flash_attention_backward _scaled_dot_product_efficient_attention_backward
    _scaled_dot_product_cudnn_attention_backward _scaled_dot_product_flash_attention_for_cpu_backward
    _scaled_dot_product_fused_attention_overrideable_backward
    sort topk kthvalue median nanmedian mode _unique2 unique_dim unique_consecutive nonzero masked_select
    _fft_r2c _fft_c2c _fft_c2r random_seeds
    linalg_qr _linalg_svd _linalg_eigh linalg_inv_ex linalg_cholesky_ex linalg_lu_factor_ex _linalg_solve_ex
    linalg_lu linalg_householder_product _linalg_det _linalg_slogdet triangular_solve cholesky_solve
    lstm gru _cudnn_rnn mkldnn_rnn_layer _embedding_bag ctc_loss _ctc_loss
"""
LIBRARY = frozenset(LIBRARY_NAMES.split())
RANDOM = "random numbers from PyTorch's own generator"
LIBRARY_CALL = "library call"


def is_fallback(call: Extern) -> bool:
    """True where a kernel was wanted: not for what a library does best, random numbers of eager's own stream, custom
    ops, dtypes that no kernel holds (complex numbers), another device, nor for what only writes or checks arguments."""
    return not call.reason.startswith((LIBRARY_CALL, RANDOM)) and any(call.outputs) and not call.mutates


def lower_extern(ctx: Context, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str | None = None) -> Any:
    """Keep the current node as a call; returns what the node's users see."""
    target = copying_form(ctx.node.target)
    mutated: list[Ref] = _mutated(target, args, kwargs)
    inputs = pytree.tree_map_only(Ref, lambda x: _argument(ctx, x, x in mutated), (args, kwargs), is_leaf=_is_ref)
    outputs, value, defines = _results(ctx, target, args)
    if reason is None:
        reason = _reason(target, ctx.node.target, [*_dtypes(args, kwargs), *_result_dtypes(ctx.node.meta.get("val"))])
    mutates = tuple(dict.fromkeys(x.buffer for x in mutated))
    ctx.extern(
        target, _frozen(inputs[0]), {k: _frozen(v) for k, v in inputs[1].items()}, outputs, reason, mutates, defines
    )
    return value


@lowering(torch.ops.aten._assert_scalar.default)
def assert_scalar(ctx: Context, condition: Any, message: str) -> None:
    """Nothing where the condition is proved."""
    if condition is not True:
        ctx.extern(ctx.node.target, (condition, message), outputs=[None])


@lowering(
    *(torch.ops.aten.sym_constrain_range.default, torch.ops.aten.sym_constrain_range_for_size.default),
)
def constrain_range(ctx: Context, *_: Any, **__: Any) -> None:
    """The ranges are those of the graph's symbols already."""


def _reason(target: Any, original: Any, dtypes: Sequence[torch.dtype]) -> str:
    if isinstance(target, OpOverload):
        if target.overloadpacket.__name__ in LIBRARY:
            return LIBRARY_CALL
        if torch.Tag.nondeterministic_seeded in target.tags:
            return RANDOM
        if target.namespace not in ("aten", "prims"):
            return LIBRARY_CALL  # an op that the user defined, or a collective: it is called as it is
    foreign = [d for d in dtypes if d not in KERNEL_DTYPES and d not in FLOAT8]
    if foreign:
        return f"{LIBRARY_CALL}: kernels do not compute {str(foreign[0]).removeprefix('torch.')}"
    return f"no lowering for {original}"


def _dtypes(*values: Any) -> list[torch.dtype]:
    return [v.dtype for v in pytree.tree_leaves(values, is_leaf=_is_ref) if isinstance(v, Ref)]


def _result_dtypes(meta: Any) -> list[torch.dtype]:
    return [v.dtype for v in pytree.tree_leaves(meta) if isinstance(v, torch.Tensor)]


def copying_form(target: Any) -> Any:
    """aten.view_as_real -> aten.view_as_real_copy: the result gets memory of its own. Other ops as they are."""
    if not isinstance(target, OpOverload) or not target.is_view:
        return target
    packet = getattr(torch.ops.aten, f"{target.overloadpacket.__name__}_copy", None)
    return getattr(packet, target._overloadname, target) if packet is not None else target


def _is_ref(value: Any) -> bool:
    return isinstance(value, Ref)


def _argument(ctx: Context, x: Ref, written: bool) -> TensorView:
    if written:
        found = x.tensor_view()
        if found is None:
            raise LoweringError(f"{ctx.origin.op} writes a view of {x.buffer!r} that is not strided")
        return found
    return ctx.view(x)


def _mutated(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Ref]:
    """The arguments that the op's schema says it writes."""
    if not isinstance(target, OpOverload) or not target._schema.is_mutable:
        return []
    found: list[Ref] = []
    for position, parameter in enumerate(target._schema.arguments):
        if parameter.alias_info is not None and parameter.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(parameter.name)
            found += [v for v in pytree.tree_leaves(value, is_leaf=_is_ref) if isinstance(v, Ref)]
    return found


def _results(ctx: Context, target: Any, args: tuple[Any, ...]) -> tuple[list[str | None], Any, list[str | None]]:
    """Buffers for what the call returns: their names in order, the value the graph sees, and the sizes it gives."""
    meta = ctx.node.meta.get("val")
    returns_argument = isinstance(target, OpOverload) and target._schema.is_mutable
    if returns_argument and isinstance(meta, torch.Tensor) and args and isinstance(args[0], Ref):
        return [None], args[0], []
    metas = list(meta) if isinstance(meta, tuple | list) else [meta]
    defines = [new_size(m, ctx.known_sizes) for m in metas]
    # Another number beside tensors is known: flash attention returns the lengths of its sequences.
    refs = [
        number_of(m) if name is not None or (isinstance(m, int | torch.SymInt) and len(metas) > 1) else _result(ctx, m)
        for m, name in zip(metas, defines, strict=True)
    ]
    value = tuple(refs) if isinstance(meta, tuple | list) else refs[0]
    return [r.buffer if isinstance(r, Ref) else None for r in refs], value, defines if any(defines) else []


def _result(ctx: Context, meta: Any) -> Ref | None:
    if meta is None:
        return None
    if isinstance(meta, torch.Tensor):
        if meta.layout is not torch.strided:
            raise LoweringError(f"{ctx.origin.op} returns a {meta.layout} tensor")
        return ctx.buffer(
            op_hint(ctx.node), meta.dtype, sizes(meta.shape), strides_of(meta), str(meta.device), Role.TEMPORARY
        )
    if ctx.node.users:
        raise LoweringError(f"{ctx.origin.op} turns tensor data into a Python number that later ops use")
    return None


def _frozen(value: Any) -> ExternArg:
    """Lists become tuples, so that the argument can be hashed."""
    if isinstance(value, tuple | list):
        return tuple(_frozen(v) for v in value)
    return value


__all__ = ["LIBRARY", "NotLowered", "copying_form", "is_fallback", "lower_extern"]
