"""Generated text as a Python module.

Enters: a kernel's text and name. Leaves: the object its `def <name>` made (Triton's JITFunction, or its interpreted
twin where TRITON_INTERPRET is set), with its lines registered so that tracebacks and Triton's front end find them.

    load_kernel("fused_add", text).fn.__code__.co_filename == "<fusec fused_add 3f2a90c1>"
"""

from __future__ import annotations

import hashlib
import linecache
from typing import Any

from fusec.errors import BuildError


def load_namespace(name: str, text: str) -> dict[str, Any]:
    """Execute generated text once and return its globals."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    filename = f"<fusec {name} {digest}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {"__name__": f"fusec_generated.{name}", "__file__": filename}
    try:
        exec(compile(text, filename, "exec"), namespace)
    except Exception as error:
        raise BuildError(f"{name}: the generated text does not load: {type(error).__name__}: {error}") from error
    return namespace


def load_kernel(name: str, text: str) -> Any:
    """The kernel object `name` that `text` defines."""
    namespace = load_namespace(name, text)
    if name not in namespace:
        raise BuildError(f"{name}: the generated text defines no function of that name")
    return namespace[name]
