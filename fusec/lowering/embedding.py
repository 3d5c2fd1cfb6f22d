"""The gradient of an embedding: lines of a gradient, summed at the words that they belong to.

    embedding_dense_backward(grad[tokens, width], words[tokens], vocabulary)  ->  f32 or bf16 [vocabulary, width]

Into few words it is a reduction, else atomic sums (`scatter.py`), which float32 keeps for 16-bit numbers: of the whole
vocabulary where many tokens share it, and where it is large beside them of the tokens alone:

    seen[words[i]] = i                                               one token of each word
    total[i] = grad[i]                                               in float32
    total[seen[words[i]]] += grad[i]     where seen[words[i]] != i   the word's other tokens
    out = 0
    out[words[i]] = total[i]             where seen[words[i]] == i
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fusec.capture.aligned import COPY
from fusec.ir.index import Expr, as_int, product
from fusec.ir.types import AccessMode
from fusec.lowering.builder import NestBuilder, Value
from fusec.lowering.context import Context
from fusec.lowering.positions import Checked, both, require_integers
from fusec.lowering.ref import Ref
from fusec.lowering.registry import NotLowered, lowering
from fusec.lowering.scatter import Updates, Where, are_few, copied, into_few, sum_dtype, summed, zeroed

aten = torch.ops.aten

LAUNCH = 3e-6  # seconds; what sums of the tokens alone save must pay for two more


@dataclass(frozen=True)
class Words:
    """A word a token. padding: a word that gets no gradient; negative for none."""

    index: Ref
    vocabulary: int
    padding: int

    def at(self, nest: NestBuilder) -> tuple[Expr, Value | None]:
        """The word of the token at the nest's point, and the mask that holds where it counts."""
        checked = Checked(nest)
        value = nest.cast(nest.load(self.index, (nest.p[0],)), torch.int64)
        row = checked.coordinate(value, self.vocabulary)
        if self.padding >= 0:
            checked.require(value.ne(self.padding))
        return row, checked.mask


@lowering(aten.embedding_dense_backward.default)
def embedding_dense_backward(
    ctx: Context, grad: Ref, indices: Ref, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
) -> Ref:
    """zeros(num_weights, n) with grad's lines added at `indices`, but for padding_idx."""
    if scale_grad_by_freq:
        raise NotLowered("an embedding whose gradient is scaled by the frequency of its words")
    require_integers(indices)
    index = indices.reshape((product(indices.shape),))
    source = grad.reshape((index.shape[0], grad.shape[-1]))
    if are_few(num_weights, source):
        return into_few(ctx, None, 0, index, source, padding_idx)
    words = Words(index, num_weights, padding_idx)
    if _tokens_are_fewer(num_weights, source):
        return _summed_by_token(ctx, words, source)

    def place(nest: NestBuilder) -> tuple[Where, Value | None]:
        row, mask = words.at(nest)
        return (row, nest.p[1]), mask

    return summed(ctx, None, Updates(source.shape, place, lambda nest: nest.load(source, nest.p), (0,)))


def _tokens_are_fewer(vocabulary: int, source: Ref) -> bool:
    """Whether sums of the tokens alone move fewer bytes than sums of the vocabulary, in more launches."""
    sizes = [as_int(n) for n in (vocabulary, *source.shape)]
    if source.dtype not in (torch.float16, torch.bfloat16) or None in sizes or 0 in sizes:
        return False
    words, tokens, width = sizes
    saved = (4 + 4) * words * width - (2 + 4 + 4) * tokens * width  # type: ignore[operator]
    return saved / COPY > 2 * LAUNCH


def _summed_by_token(ctx: Context, words: Words, source: Ref) -> Ref:
    wide = sum_dtype(source.dtype)
    out, tokens = ctx.result(), source.shape[0]
    seen = ctx.temporary(torch.int32, (words.vocabulary,), hint="seen")
    total = ctx.temporary(wide, source.shape, hint="total")

    zeroed(ctx, seen)
    with ctx.nest((tokens,)) as nest:
        row, mask = words.at(nest)
        nest.store(seen, (row,), nest.index(nest.p[0], torch.int32), mask, AccessMode.OVERWRITE)
    copied(ctx, source, total, lambda nest, v: nest.cast(v, wide))
    zeroed(ctx, out)
    with ctx.nest(source.shape) as nest:
        row, mask = words.at(nest)
        token = nest.load(seen, (row,), mask)
        mask = both(mask, token.ne(nest.index(nest.p[0], torch.int32)))
        to = Checked(nest).coordinate(token, tokens, safe=True)
        nest.store(
            total, (to, nest.p[1]), nest.cast(nest.load(source, nest.p, mask), wide), mask, AccessMode.ATOMIC_ADD
        )
    with ctx.nest(source.shape) as nest:
        row, mask = words.at(nest)
        mask = both(mask, nest.load(seen, (row,), mask).eq(nest.index(nest.p[0], torch.int32)))
        nest.store(out, (row, nest.p[1]), nest.load(total, nest.p, mask), mask, AccessMode.OVERWRITE)
    return out
