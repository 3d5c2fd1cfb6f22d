"""Real tensors while torch traces with fake ones.

The passes run inside AOTAutograd, under whatever modes it has set. Enters: nothing. Leaves: a context in which
`torch.full((), 2.0).item()` is 2.0 and not an error about data-dependent values.

`_disable_current_modes` is private to torch; checked with 2.11.0 and 2.13.0.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["real_tensors"]


def real_tensors() -> AbstractContextManager[object]:
    """Inside, tensor operations compute; modes that were on return at the end."""
    manager: AbstractContextManager[object] = _disable_current_modes()
    return manager
