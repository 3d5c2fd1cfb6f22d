"""The table of lowerings: which function turns which op into loop nests.

    @lowering(aten.transpose.int)
    def transpose(ctx: Context, x: Ref, d0: int, d1: int) -> Ref: ...

A lowering is called with the Context and the node's own arguments, tensors as `Ref`s (lists of tensors as
lists of Refs), everything else as it stands in the graph. It returns a Ref, or a tuple with one entry for each
result (None for a result that is not a tensor). It may emit any number of nests through the Context. When an
op is outside what it covers it raises `NotLowered` with a sentence: the op then becomes a library call and the
sentence its reason.

A new family is a module of this package, imported once in `fusec/lowering/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch._ops import OpOverload, OpOverloadPacket

Lowering = Callable[..., Any]
LOWERINGS: dict[OpOverload | OpOverloadPacket, Lowering] = {}

F = TypeVar("F", bound=Lowering)


class NotLowered(Exception):
    """Raised by a lowering: this call stays a library call; the message is the reason, a sentence."""


class LibraryCall(NotLowered):
    """NotLowered, and no fallback: kernels are not meant for this dtype or device."""


def lowering(*targets: OpOverload | OpOverloadPacket) -> Callable[[F], F]:
    """Register a function as the lowering of these ops. A packet stands for all of its overloads."""

    def register(function: F) -> F:
        for target in targets:
            assert target not in LOWERINGS, f"{target} has two lowerings"
            LOWERINGS[target] = function
        return function

    return register


def find_lowering(target: object) -> Lowering | None:
    """The lowering of an overload: its own row first, then its packet's."""
    if not isinstance(target, OpOverload):
        return None
    own = LOWERINGS.get(target)
    if own is not None or target._schema.is_mutable:  # a packet's row is not for its in-place and out= forms
        return own
    return LOWERINGS.get(target.overloadpacket)
