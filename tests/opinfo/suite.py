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

from tests.opinfo.harness import STEPS, Step, elements

DTYPES = ("float32", "bfloat16", "float16", "int64", "bool", "complex64", "float64", "int32", "uint8")
REQUIRED = DTYPES[:5]
BACKWARD = ("float32.backward", "float64.gradcheck")  # a dtype, and what is asked of the gradients in it
LARGEST = 400  # elements of a sample whose gradient is held against finite differences
ERRORS = "errors"  # in place of a dtype: the inputs for which the suite expects eager mode to raise


def _unseeded(op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The suite seeds the generator inside its random ops; the harness does, before each call."""
    return op(*args, **kwargs)


@cache
def ops() -> tuple[Any, ...]:
    """Every OpInfo, without the set that calls Python reference implementations."""
    seeding, common_methods_invocations.wrapper_set_seed = common_methods_invocations.wrapper_set_seed, _unseeded
    for op in common_methods_invocations.op_db:
        if op.gradcheck_wrapper is seeding:
            op.gradcheck_wrapper = _unseeded
    return tuple(common_methods_invocations.op_db)


def full_name(op: Any) -> str:
    """The name with its variant: "normal.in_place"."""
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else str(op.name)


def supported(op: Any, dtype: str) -> bool:
    if dtype == ERRORS:
        return op.error_inputs_func is not None
    dtype, _, gradient = dtype.partition(".")
    if gradient:
        return op.supports_autograd and getattr(torch, dtype) in op.supported_backward_dtypes("cpu")
    return getattr(torch, dtype) in op.supported_dtypes("cpu")


def step_of(dtype: str) -> Step:
    """What is asked of the samples in a dtype."""
    return STEPS[dtype.partition(".")[2]]


def samples(op: Any, dtype: str) -> Iterator[Any]:
    """The op's SampleInputs in a dtype ("float32", "float32.backward", or "errors"), the same on every run."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dtype == ERRORS:
            yield from (e.sample_input for e in op.error_inputs("cpu"))
        else:
            dtype, _, gradient = dtype.partition(".")
            drawn = op.sample_inputs("cpu", getattr(torch, dtype), requires_grad=bool(gradient))
            yield from (s for s in drawn if gradient != "gradcheck" or elements((s.input, s.args, s.kwargs)) <= LARGEST)
