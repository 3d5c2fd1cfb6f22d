"""Names in generated text: unique, readable, and the same for identical layers.

Enters: hints from the graph (`encoder.layer.0.LayerNorm.weight`, FX node `add_3`). Leaves: Python identifiers.

    clean("encoder.layer.0.LayerNorm.weight")  ->  "layernorm_weight"
    clean("add_3")                             ->  "add"
    Names().fresh("x"), .fresh("x")            ->  "x", "x_1"

Digits of layers and node counters are dropped, so that two layers of a model give the same text. Nothing of the
user's reaches a code line but through `clean`, nor a comment but through `comment`.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Sequence

# Names a kernel's text itself uses, or that would hide what it calls.
RESERVED = frozenset(
    {"tl", "triton", "torch", "device", "rt", "args", "call", "range", "float", *keyword.kwlist, *keyword.softkwlist}
)
_GENERIC = ("weight", "bias", "running_mean", "running_var", "data", "value")
_MAX_LENGTH = 32

# Decompositions leave these; a reader knows the op by its user's name.
_OP_NAMES = {
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "_to_copy": "cast",
    "convert_element_type": "cast",
    "index_tensor": "index",
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    "_native_batch_norm_legit_no_training": "batch_norm",
    "native_batch_norm": "batch_norm",
    "native_dropout": "dropout",
    "_fused_rms_norm": "rms_norm",
    "scalar_tensor": "full",
}
# Ops that move or convert data: named only when nothing else is in the kernel.
_QUIET = {
    "cast", "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "unsqueeze", "squeeze", "slice",
    "select", "clone", "copy", "getitem", "alias", "detach", "full", "unflatten", "as_strided", "contiguous",
}  # fmt: skip


def clean(hint: str) -> str:
    """An identifier made of a hint: its last component, with the parent's for `weight` and its like; no digits."""
    parts = [p for p in (_letters(p) for p in re.split(r"[.\[\]/'\"]+", hint)) if p and p != "self"]
    if not parts:
        return ""
    name = parts[-1]
    if name in _GENERIC and len(parts) > 1 and len(parts[-2]) + len(name) < _MAX_LENGTH:
        name = f"{parts[-2]}_{name}"
    while len(name) > _MAX_LENGTH and "_" in name:
        name = name.rpartition("_")[0]
    return name[:_MAX_LENGTH].strip("_")


def _letters(text: str) -> str:
    """Lower case, ASCII letters with underscores; counters (`add_3`, `layer2`) removed."""
    text = re.sub(r"[^0-9A-Za-z_]+", "_", text).lower()
    text = re.sub(r"(?<=[a-z])\d+(?=_|$)|(?:(?<=_)|^)\d+(?=_|$)", "", text)
    text = re.sub(r"_+", "_", text).strip("_")
    return "" if text[:1].isdigit() else text


def op_name(op: str) -> str:
    """The user's name of an FX op: "aten.native_layer_norm.default" -> "layer_norm"."""
    parts = op.split(".")
    name = parts[1] if len(parts) > 1 and parts[0] in ("aten", "prims", "fusec", "torch", "torchvision") else parts[0]
    name = _OP_NAMES.get(name, name)
    name = re.sub(r"[^0-9A-Za-z_]+", "_", name).strip("_")
    return name if name.isidentifier() else "op"


def is_quiet(name: str) -> bool:
    """True for an op that only moves or converts data."""
    return name in _QUIET


def kernel_name(ops: Iterable[str]) -> str:
    """A function name from FX ops in order: at most five distinct ones, 48 letters."""
    names = list(dict.fromkeys(op_name(o) for o in ops))
    spoken = [n for n in names if n not in _QUIET] or [n for n in names if n != "getitem"]
    chosen: list[str] = []
    for name in _compose(spoken):
        if len(chosen) == 5 or sum(map(len, chosen)) + len(name) > 48:
            break
        chosen.append(name)
    return "_".join(["fused", *chosen]) if len(chosen) > 1 else f"{chosen[0] if chosen else 'copy'}_kernel"


_COMPOSED = (
    # (all of these, is spoken as): the parts of a norm or a softmax, where a decomposition left them.
    ({"var_mean", "rsqrt"}, {"var_mean", "rsqrt", "sub"}, "layer_norm"),
    ({"mean", "rsqrt", "pow"}, {"mean", "rsqrt", "pow"}, "rms_norm"),
    ({"amax", "exp", "sum"}, {"amax", "exp", "sum", "sub"}, "softmax"),
)


def _compose(names: Sequence[str]) -> list[str]:
    result = list(names)
    for needed, removed, spoken in _COMPOSED:
        if needed <= set(result):
            first = min(result.index(n) for n in needed)
            result = (
                [n for n in result[:first] if n not in removed]
                + [spoken]
                + [n for n in result[first:] if n not in removed]
            )
    return list(dict.fromkeys(result))


def comment(text: str) -> str:
    """Text of the user's that stays on one comment line: control and line-breaking characters are escaped."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return shown.encode("utf-8", "backslashreplace").decode("utf-8")


class Names:
    """Hands out unique identifiers: `fresh("x")` gives x, x_1, x_2.

    A name used only inside one loop is local: after `end_loop` another loop may take it again, but never the
    code around the loops, where it would become a loop-carried variable.
    """

    def __init__(self) -> None:
        self._kept: set[str] = set(RESERVED)
        self._local: set[str] = set()
        self._once_local: set[str] = set()

    def fresh(self, hint: str, default: str = "value", *, local: bool = False) -> str:
        base = hint if hint.isidentifier() else default
        taken = self._kept | self._local | (set() if local else self._once_local)
        name, count = base, 0
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        (self._local if local else self._kept).add(name)
        return name

    def end_loop(self) -> None:
        self._once_local |= self._local
        self._local.clear()
