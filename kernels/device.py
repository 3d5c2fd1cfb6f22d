"""Device functions that generated kernels call, as `from fusec.kernels import device`.

Enters and leaves: Triton tensors inside a kernel. Shapes broadcast; every function keeps its operands' dtype.

    device.sum(x, 1)        # reduce dimension 1 of a tile, keeping it with extent 1
    device.maximum(a, b)    # NaN if either is NaN
    device.floordiv(a, b)   # rounds toward -inf, as Python and PyTorch do

Only what one `tl` builtin does not give is here: functions of libdevice, reductions that propagate NaN, and
integer division with PyTorch's signs. Triton's interpreter can run neither libdevice nor composed reductions
quickly: `fusec.kernels.interpreted.device` has the same names on CPU values, and takes this module's place there.

Functions of single numbers are in `elementwise.py`, reductions and scans in `rows.py`.
"""

from __future__ import annotations

from fusec.kernels import elementwise, rows
from fusec.kernels.elementwise import *  # noqa: F403
from fusec.kernels.rows import *  # noqa: F403

PARTS = (elementwise, rows)  # the modules whose text is part of every kernel's key
