"""PyTorch's own sample inputs for these families: every edge its maintainers thought of, against eager."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from tests.lowering.differential import assert_lowered_like_eager

op_db = pytest.importorskip("torch.testing._internal.common_methods_invocations").op_db

SAMPLES = 4  # for an op and a dtype, spread over all of them
FAMILIES = """
    sum mean prod amax amin max min argmax argmin any all aminmax var std var_mean std_mean count_nonzero nansum
    logsumexp linalg.vector_norm nn.functional.normalize softmax log_softmax nn.functional.layer_norm
    native_layer_norm nn.functional.group_norm nn.functional.embedding index_select gather take take_along_dim scatter
    unsafe_masked_index nn.functional.avg_pool1d nn.functional.avg_pool2d nn.functional.avg_pool3d
    nn.functional.adaptive_avg_pool1d nn.functional.adaptive_avg_pool2d nn.functional.adaptive_avg_pool3d
    nn.functional.adaptive_max_pool1d nn.functional.adaptive_max_pool2d nn.functional.adaptive_max_pool3d
"""
DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.bool)
CASES = [
    pytest.param(
        op, dtype, id=f"{op.name}{'-' + op.variant_test_name if op.variant_test_name else ''}-{str(dtype)[6:]}"
    )
    for op, dtype in itertools.product(op_db, DTYPES)
    if op.name in FAMILIES.split() and dtype in op.dtypes
]


def _calls(op: Any, dtype: torch.dtype) -> Iterator[tuple[Callable[..., Any], list[torch.Tensor]]]:
    """(function of tensors, tensors) for a few samples; the other arguments are bound."""
    samples = list(op.sample_inputs("cpu", dtype, requires_grad=False))
    for sample in samples[:: max(1, len(samples) // SAMPLES)]:
        leaves, spec = pytree.tree_flatten(((sample.input, *sample.args), sample.kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

        def call(*tensors: torch.Tensor, leaves: Any = leaves, spec: Any = spec, places: Any = places) -> Any:
            bound = list(leaves)
            for place, tensor in zip(places, tensors, strict=True):
                bound[place] = tensor
            args, kwargs = pytree.tree_unflatten(bound, spec)
            return op.op(*args, **kwargs)

        yield call, [leaves[i] for i in places]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("error:.*lowering failed.*")
@pytest.mark.parametrize(("op", "dtype"), CASES)
def test_sample_inputs(op: Any, dtype: torch.dtype) -> None:
    for call, tensors in _calls(op, dtype):
        assert_lowered_like_eager(call, *tensors, externs=None)
