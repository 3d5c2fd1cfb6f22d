"""The known misses of the OpInfo suite: samples that do not give eager's answer or error. The table may only shrink.

A row names an op, as the report does, and means its variants, too ("linalg.pinv.singular"); what it misses in
("float32", "errors", or "*"); and why. Where `torch` is set the reason is a defect of PyTorch, which a test shows
without fusec.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Miss:
    op: str
    where: tuple[str, ...]
    reason: str
    torch: bool = False

    def covers(self, op: str, dtype: str) -> bool:
        return (op == self.op or op.startswith(f"{self.op}.")) and (dtype in self.where or "*" in self.where)


_CHANNELS_LAST = "the kernel returns channels-last strides, the op's own fake tensor says contiguous"

_OUT = "capture makes out= functional, so what eager checks of its memory or dtype is not checked"

_STATISTICS = "eager gives no gradient where only the mean or the rstd has one, finite differences and fusec do"

_FLOATING = ("float32", "bfloat16", "float16", "float64")

_PINV = ("pinverse", "linalg.pinv")

OUT_OPS = ("amax", "amin", "aminmax", "cat", "complex", "gather", "multinomial", "take")

MISSES: tuple[Miss, ...] = (
    *(Miss(op, ("errors",), _OUT, torch=True) for op in OUT_OPS),
    Miss("narrow_copy", ("errors",), "the fake tensor raises an IndexError, the kernel a RuntimeError", torch=True),
    Miss("nn.functional.max_unpool2d", (*_FLOATING, "float32.backward"), _CHANNELS_LAST, torch=True),
    Miss("native_group_norm", ("float64.gradcheck",), _STATISTICS, torch=True),
    *(Miss(op, ("complex64",), "AOTAutograd's own graph of it is no inverse", torch=True) for op in _PINV),
)
LIMIT = 13  # rows; lower it when one goes, never raise it


def miss_of(op: str, dtype: str) -> Miss | None:
    return next((m for m in MISSES if m.covers(op, dtype)), None)
