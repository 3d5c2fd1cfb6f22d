"""Matrix products whose rows do not start at multiples of 16 bytes, with operands that are padded until they do.

Enters: a 16-bit matrix product of CUDA tensors, as AOTAutograd traces it. Leaves: the product of padded operands, cut.

    mm(x[16384, 768], w[768, 50257])   ->   mm(x, pad(w)[768, 50264])[:, :50257].contiguous()

cuBLAS has its quick kernels for aligned leading dimensions alone. On an H200 the example, the logits of GPT-2, takes
14.1 ms as it is and 2.0 ms padded; reading and writing the result once more is 0.8 ms, padding a weight one copy. Zeros
add nothing to a product, so values are those of the quick kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["COPY", "alignment_table", "padding"]

aten = torch.ops.aten

ALIGNMENT = 16  # bytes
# FLOP/s of a large product without and with alignment, bytes/s of a copy: an H200.
SLOW, QUICK, COPY = 90e12, 650e12, 4e12


def padding(a: Tensor, b: Tensor) -> tuple[int, int, int] | None:
    """How much to add to (rows, inner, columns) of a @ b; None where the product is quick as it is, or too small."""
    if a.device.type != "cuda" or a.dtype not in (torch.float16, torch.bfloat16) or a.dtype is not b.dtype:
        return None
    (rows, inner), columns = a.shape, b.shape[1]
    if not all(isinstance(n, int) for n in (rows, inner, columns, *a.stride(), *b.stride())):
        return None  # symbolic
    lanes = ALIGNMENT // a.element_size()
    slow_a, slow_b = max(a.stride()) % lanes != 0, max(b.stride()) % lanes != 0
    wrong = (
        slow_a and a.stride(0) == 1,  # of the dimension along which rows in memory run
        (slow_a and a.stride(1) == 1) or (slow_b and b.stride(0) == 1),
        (slow_b and b.stride(1) == 1) or columns % lanes != 0,
    )
    extra = tuple(-n % lanes if w else 0 for w, n in zip(wrong, (rows, inner, columns), strict=True))
    return extra if any(extra) and _pays(rows, inner, columns, extra) else None  # type: ignore[return-value]


def _pays(rows: int, inner: int, columns: int, extra: tuple[int, ...]) -> bool:
    """The product's gain is more than what copying costs, each copy a read and a write of 2 bytes an element."""
    more_rows, more_inner, more_columns = extra
    copied = rows * inner * bool(more_rows or more_inner) + inner * columns * bool(more_inner or more_columns)
    copied += rows * columns * bool(more_rows or more_columns)
    return 2 * rows * inner * columns * (1 / SLOW - 1 / QUICK) > 4 * copied / COPY


def _padded(a: Tensor, b: Tensor, extra: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    rows, inner, columns = extra
    return _with_zeros(a, rows, inner), _with_zeros(b, inner, columns)


def _with_zeros(x: Tensor, rows: int, columns: int) -> Tensor:
    """More rows and columns, in memory as it was: GPT-2's logits take 2.25 ms on an H100 with the inner dimension
    contiguous in both operands, as a weight has it, and 2.95 ms without."""
    if not rows and not columns:
        return x
    if x.stride(0) == 1 and x.stride(1) != 1:
        return F.pad(x.t(), (0, rows, 0, columns)).t()
    return F.pad(x, (0, columns, 0, rows))


def _cut(product: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return product.narrow(0, 0, a.shape[0]).narrow(1, 0, b.shape[1]).contiguous()


def _mm(a: Tensor, b: Tensor, *rest: Any, **kwargs: Any) -> Any:
    extra = padding(a, b)
    if extra is None or rest or kwargs:
        return NotImplemented
    return _cut(aten.mm(*_padded(a, b, extra)), a, b)


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *rest: Any, **kwargs: Any) -> Any:
    extra = padding(a, b)
    if extra is None or rest or kwargs or bias.dim() != 1:
        return NotImplemented
    return _cut(aten.addmm(F.pad(bias, (0, extra[2])) if extra[2] else bias, *_padded(a, b, extra)), a, b)


def alignment_table() -> dict[Any, Callable[..., Any]]:
    """{OpOverload: function of the same signature, or NotImplemented where nothing is gained}; a fresh dict."""
    return {aten.mm.default: _mm, aten.addmm.default: _addmm}
