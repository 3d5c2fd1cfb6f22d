"""Each rewrite equals the eager kernel; what must stay whole is not in the table."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fusec.capture import decompositions
from fusec.capture.decompositions import KEPT, decomposition_table

aten = torch.ops.aten


def rewritten(fn: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, set[str]]:
    """The result of the decomposed graph of fn, and the names of its ops."""
    graph = make_fx(fn, decomposition_table=decomposition_table())(*inputs)
    return graph(*inputs), {str(n.target) for n in graph.graph.nodes if n.op == "call_function"}


def test_kept_ops_are_not_rewritten() -> None:
    packets = {getattr(op, "overloadpacket", op) for op in decomposition_table()}
    assert [name for name in KEPT if getattr(aten, name) in packets] == []


def test_pointwise_ops_that_are_lowered_are_not_rewritten() -> None:
    """The rewrite would only be slower to trace. Norms are rewritten, so that backward can choose what it keeps."""
    import fusec.lowering  # noqa: F401
    from fusec.lowering.registry import LOWERINGS

    rewritten_families = " ".join((decompositions._POINTWISE, decompositions._REDUCTIONS, decompositions._INDEXING))
    assert [op for op in decompositions._resolve(rewritten_families) if op in LOWERINGS] == []


def test_table_is_a_fresh_dict() -> None:
    decomposition_table().clear()
    assert len(decomposition_table()) > 150


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 17), (2, 5, 8), (1, 1), (4, 1000)])
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_equals_eager(dtype: torch.dtype, shape: tuple[int, ...], affine: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype)
    w, b = (torch.randn(shape[-1]).to(dtype) for _ in range(2)) if affine else (None, None)
    got, ops = rewritten(lambda x: aten.native_layer_norm(x, [shape[-1]], w, b, 1e-5)[0], x)
    expected = aten.native_layer_norm(x, [shape[-1]], w, b, 1e-5)[0]
    assert got.dtype is dtype and "aten.native_layer_norm.default" not in ops
    torch.testing.assert_close(got, expected, rtol=torch.finfo(dtype).eps * 8, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_group_norm_equals_eager(dtype: torch.dtype, channels_last: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 3, 5).to(dtype)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    w, b = torch.randn(6).to(dtype), torch.randn(6).to(dtype)
    got, _ = rewritten(lambda x: torch.nn.functional.group_norm(x, 3, w, b), x)
    torch.testing.assert_close(got, torch.nn.functional.group_norm(x, 3, w, b))


def test_batch_norm_in_eval_is_pointwise() -> None:
    torch.manual_seed(0)
    x, mean, var, w, b = torch.randn(4, 6, 5), torch.randn(6), torch.rand(6), torch.randn(6), torch.randn(6)
    got, ops = rewritten(lambda x: torch.nn.functional.batch_norm(x, mean, var, w, b, False), x)
    torch.testing.assert_close(got, torch.nn.functional.batch_norm(x, mean, var, w, b, False))
    assert not any("batch_norm" in op or "mean" in op for op in ops)


POINTWISE = {
    "hardswish": torch.nn.functional.hardswish,
    "hardtanh": torch.nn.functional.hardtanh,
    "mish": torch.nn.functional.mish,
    "elu": torch.nn.functional.elu,
    "celu": torch.nn.functional.celu,
    "softplus": torch.nn.functional.softplus,
    "leaky_relu": torch.nn.functional.leaky_relu,
    "logit": lambda x: torch.logit(x, 0.125),
    "lerp": lambda x: torch.lerp(x, x * 2, 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5),
    "addcdiv": lambda x: torch.addcdiv(x, x, x + 9, value=0.5),
    "nan_to_num": torch.nan_to_num,
    "frac": torch.frac,
    "sinc": torch.sinc,
    "xlogy": lambda x: torch.xlogy(x, x.abs()),
    "xlog1py": lambda x: torch.special.xlog1py(x.round(), x),
    "entr": lambda x: torch.special.entr(x * (x > -5)),
    "glu": lambda x: torch.nn.functional.glu(x, -1),
}


@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pointwise_rewrites_equal_eager(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(7, 18) * 3).to(dtype)
    got, ops = rewritten(lambda x: POINTWISE[name](x), x)
    assert not any(op.startswith("prims.") for op in ops)
    torch.testing.assert_close(got, POINTWISE[name](x), equal_nan=True)


FIRST_SEEN_LATER = """
import torch
from fusec.capture.decompositions import decomposition_table
decomposition_table()
import fusec

weight = torch.nn.Parameter(torch.ones(5))
weight.grad = torch.ones(5)
fusec.compile(torch.optim.AdamW([weight], foreach=False).step)()
assert fusec.stats()["extern_calls"] == 0, fusec.stats()
"""


def test_an_op_that_torch_registers_while_it_traces_is_rewritten() -> None:
    subprocess.run([sys.executable, "-c", FIRST_SEEN_LATER], check=True)
