"""Every error fusec raises on purpose. Each message says what was seen, what was expected, and where."""

from __future__ import annotations

__all__ = [
    "BuildError",
    "CacheWarning",
    "ConfigError",
    "FallbackWarning",
    "FusecError",
    "GroupError",
    "IndexOutOfRange",
    "LoweringError",
    "TargetError",
    "VerificationError",
]


class FusecError(Exception):
    """Base of all errors of this package."""


class ConfigError(FusecError, ValueError):
    """An unknown option, mode or value; the message lists the valid ones."""


class LoweringError(FusecError):
    """An op could not be lowered: names the op, its arguments and the user's line."""


class VerificationError(FusecError):
    """The IR broke one of its own rules: a defect of fusec. Shows the lines around the bad one."""


class BuildError(FusecError):
    """A kernel did not compile: names the kernel, the target and what the compiler said.

    kernels: the names of the kernels that failed, where they are known.
    """

    def __init__(self, message: str, kernels: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.kernels = kernels


class GroupError(FusecError):
    """Nests could not share a kernel that was planned for them; the cause says why.

    nests: their names in the lowered program.   ops: what they compute.   line: the user's line.
    nodes: the names of the captured graph's nodes they come from.
    """

    def __init__(
        self,
        cause: Exception,
        nests: frozenset[str],
        ops: tuple[str, ...] = (),
        line: str = "",
        nodes: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(f"{', '.join(ops) or ', '.join(sorted(nests))}: {type(cause).__name__}: {cause}")
        self.cause, self.nests, self.ops, self.line, self.nodes = cause, nests, ops, line, nodes


class TargetError(FusecError, RuntimeError):
    """The target asked for is not there, for example "cuda" without a GPU."""


class FallbackWarning(UserWarning):
    """Something runs as eager PyTorch would: names the op, the reason and the user's line."""


class CacheWarning(UserWarning):
    """The kernel cache cannot be used; kernels are compiled in memory."""


class IndexOutOfRange(FusecError, IndexError):
    """An index of the user's data is out of range."""
