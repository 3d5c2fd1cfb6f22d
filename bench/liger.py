"""Liger's hand-written kernels of the measured cases, where the package `liger-kernel` is installed.

work = liger("rms", work)      # the same inputs, Liger's function; None without the package or without a kernel
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from bench.cases import Work


def liger(case: str, work: Work) -> Work | None:
    """The case's work by Liger."""
    if find_spec("liger_kernel") is None or case not in _KERNELS:
        return None
    return _KERNELS[case](work)


def _rms_norm(work: Work) -> Work:
    from liger_kernel.ops import LigerRMSNormFunction

    def rms_norm(x: Tensor, weight: Tensor) -> Any:
        return LigerRMSNormFunction.apply(x, weight, 1e-6, 0.0, "llama", False)

    return replace(work, fn=rms_norm)


def _layer_norm(work: Work) -> Work:
    from liger_kernel.ops import LigerLayerNormFunction

    def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Any:
        return LigerLayerNormFunction.apply(x, weight, bias, 1e-5)

    return replace(work, fn=layer_norm)


def _swiglu(work: Work) -> Work:
    from liger_kernel.ops import LigerSiLUMulFunction

    def swiglu(gate: Tensor, up: Tensor) -> Any:
        return LigerSiLUMulFunction.apply(gate, up)

    return replace(work, fn=swiglu)


def _softmax(work: Work) -> Work:
    from liger_kernel.ops import LigerSoftmaxFunction

    def softmax(x: Tensor) -> Any:
        return LigerSoftmaxFunction.apply(x)

    return replace(work, fn=softmax)


def _cross_entropy(work: Work) -> Work:
    """Liger writes the gradient over the logits, so it gets a copy: only its first call sees the case's values."""
    from liger_kernel.ops import LigerCrossEntropyFunction

    def cross_entropy(logits: Tensor, target: Tensor) -> Any:
        return LigerCrossEntropyFunction.apply(logits, target, None)[0].float()  # the others take logits.float()

    logits, target = work.args
    copy = logits.detach().clone().requires_grad_(logits.requires_grad)
    return replace(work, fn=cross_entropy, args=(copy, target))


_KERNELS: dict[str, Callable[[Work], Work]] = {
    "rms": _rms_norm,
    "rms_32768": _rms_norm,
    "rms_262144": _rms_norm,
    "rms_train": _rms_norm,
    "layer_norm": _layer_norm,
    "ln_train": _layer_norm,
    "ln_16384_train": _layer_norm,
    "swiglu": _swiglu,
    "swiglu_train": _swiglu,
    "softmax_8192": _softmax,
    "softmax_131072": _softmax,
    "softmax_train": _softmax,
    "cross_entropy": _cross_entropy,
    "xent_32000_train": _cross_entropy,
    "xent_131072_train": _cross_entropy,
    "xent_262144_train": _cross_entropy,
}
