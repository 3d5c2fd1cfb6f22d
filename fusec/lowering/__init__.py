"""Lowering: an FX graph of aten ops becomes a `Program` of loop nests and library calls.

    lower(graph, config) -> Program

Read registry.py (how an op is registered), ref.py (views), builder.py and context.py (how nests are built), lower.py
(the walk), then any family. A new family is one more module in the import list below.
"""

from __future__ import annotations

from fusec.lowering import (
    activations,
    arithmetic,
    casts,
    creation,
    distance,
    embedding,
    fold,
    grid,
    indexing,
    interpolate,
    logic,
    norm,
    pooling,
    pooling_backward,
    random,
    reduction,
    scan,
    scatter,
    search,
    segments,
    softmax,
    special,
    upsample,
    views,
    writes,
)
from fusec.lowering.extern import is_fallback
from fusec.lowering.lower import lower

FAMILIES = (
    activations,
    arithmetic,
    casts,
    creation,
    distance,
    embedding,
    fold,
    grid,
    indexing,
    interpolate,
    logic,
    norm,
    pooling,
    pooling_backward,
    random,
    reduction,
    scan,
    scatter,
    search,
    segments,
    softmax,
    special,
    upsample,
    views,
    writes,
)

__all__ = ["FAMILIES", "is_fallback", "lower"]
