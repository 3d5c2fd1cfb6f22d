"""Philox4x32-10 on PyTorch tensors: what `device.philox` computes, for tensors that are not in a kernel.

Enters: a 64-bit key, the positions of elements and the number of the 32-bit word wanted at each. Leaves: int32.

    philox(seed, index, word)      # shapes broadcast; int64, int64, 0..3 -> int32

The four words of a block go to four neighbours: element `index` has word index % 4 of the block at counter
(index // 4, word), of two 64-bit halves. A kernel whose threads hold neighbours computes a block for four elements.

Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3 (2011). A counter that is not used twice with
one key gives independent numbers, in any order: the value at a point does not depend on blocks or threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["philox"]

ROUNDS = 10
_MASK = 0xFFFFFFFF
_MULTIPLY = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def _product(factor: int, value: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a product of two 32-bit numbers, from products of 16-bit halves: int64 has a sign."""
    high_half, low_half = value * (factor >> 16), value * (factor & 0xFFFF)
    high = (high_half + (low_half >> 16)) >> 16
    return high & _MASK, (value * factor) & _MASK


def philox(seed: Tensor, index: Tensor, word: int | Tensor = 0) -> Tensor:
    """Word number `word` of the element at `index` under key `seed`, as int32."""
    seed, index = torch.broadcast_tensors(seed.to(torch.int64), index.to(torch.int64))
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    c0, c1 = (index >> 2) & _MASK, (index >> 34) & _MASK
    c2, c3 = torch.full_like(c0, int(word)), torch.zeros_like(c0)
    for _ in range(ROUNDS):
        (high_a, low_a), (high_b, low_b) = _product(_MULTIPLY[0], c0), _product(_MULTIPLY[1], c2)
        c0, c1, c2, c3 = high_b ^ c1 ^ k0, low_b, high_a ^ c3 ^ k1, low_a
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    lane = index & 3
    chosen = torch.where(lane < 2, torch.where(lane == 0, c0, c1), torch.where(lane == 2, c2, c3))
    return torch.where(chosen > 0x7FFFFFFF, chosen - (1 << 32), chosen).to(torch.int32)
