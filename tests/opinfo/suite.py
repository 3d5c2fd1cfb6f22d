"""PyTorch's own table of ops with samples: what the sweep and the slice draw from.

    for op in ops():
        for sample in samples(op, "float32"): ...

Checked with torch 2.11.0 and 2.13.0.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.testing._internal import common_methods_invocations

DTYPES = ("float32", "bfloat16", "float16", "int64", "bool", "complex64", "float64", "int32", "uint8")
REQUIRED = DTYPES[:5]
ERRORS = "errors"  # in place of a dtype: the inputs for which the suite expects eager mode to raise


def _unseeded(op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The suite seeds the generator inside its random ops; the harness does, before each call."""
    return op(*args, **kwargs)


@cache
def ops() -> tuple[Any, ...]:
    """Every OpInfo, without the set that calls Python reference implementations."""
    common_methods_invocations.wrapper_set_seed = _unseeded
    return tuple(common_methods_invocations.op_db)


def full_name(op: Any) -> str:
    """The name with its variant: "normal.in_place"."""
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else str(op.name)


def supported(op: Any, dtype: str) -> bool:
    if dtype == ERRORS:
        return op.error_inputs_func is not None
    return getattr(torch, dtype) in op.supported_dtypes("cpu")


def samples(op: Any, dtype: str) -> Iterator[Any]:
    """The op's SampleInputs in a dtype ("float32", or "errors"), the same on every run."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dtype == ERRORS:
            yield from (e.sample_input for e in op.error_inputs("cpu"))
        else:
            yield from op.sample_inputs("cpu", getattr(torch, dtype), requires_grad=False)
