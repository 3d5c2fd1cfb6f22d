"""One frozen Config: everything a user can set. The only reader of os.environ in the package.

A field marked `code=True` changes generated code and enters every cache key by construction.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from fusec.errors import ConfigError

MODES = ("default", "reduce-overhead", "max-autotune")
PRECISIONS = ("fast", "eager")
RANDOM = ("philox", "eager")
TARGETS = ("cuda", "cpu", "sm_80", "sm_90", "sm_100")


def _code(default: Any) -> Any:
    return field(default=default, metadata={"code": True})


@dataclass(frozen=True, slots=True)
class Config:
    """What a user can set. Unknown names and values are errors that list the valid ones.

    mode:        "default", "reduce-overhead" (CUDA graphs), "max-autotune" (measure candidates).
    precision:   "fast" computes low-precision chains in float32; "eager" rounds where eager mode rounds.
    target:      None (the device of the inputs), "cuda", "cpu", or an architecture such as "sm_90".
    fullgraph:   a graph break is an error.    dynamic: as torch.compile.
    strict:      a fallback to eager is an error instead of a warning.
    recompile_limit: compiled versions of one function before it runs eagerly; None leaves torch's own.
    cache:       keep compiled kernels on disk.      cache_dir: where; None is the user's cache directory.
    cache_bytes: bound on the cache's size, in bytes.
    workers:     compiler processes; 0 compiles in this process; None chooses from the cores.
    random:      "philox" draws random numbers inside kernels, from a seed that PyTorch's generator gives each call;
                 "eager" calls eager mode's own random ops: its stream of numbers, one library call each.
    fusion:      off makes every nest its own kernel (to look for a fault).
    verify:      check the IR after every pass.
    dump:        a directory for every stage as text and every kernel as a script; None is off.
    """

    mode: str = "default"
    precision: str = _code("fast")
    target: str | None = _code(None)
    fullgraph: bool = False
    dynamic: bool | None = None
    strict: bool = False
    recompile_limit: int | None = None
    cache: bool = True
    cache_dir: Path | None = None
    cache_bytes: int = 2 << 30
    workers: int | None = None
    random: str = _code("philox")
    fusion: bool = _code(True)
    verify: bool = True
    dump: Path | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Config:
        """Defaults, with FUSEC_CACHE_DIR, FUSEC_DUMP, FUSEC_STRICT, FUSEC_WORKERS and FUSEC_TARGET applied."""
        env = os.environ if environ is None else environ
        options: dict[str, Any] = {}
        if env.get("FUSEC_CACHE_DIR"):
            options["cache_dir"] = Path(env["FUSEC_CACHE_DIR"])
        if env.get("FUSEC_DUMP"):
            options["dump"] = Path(env["FUSEC_DUMP"])
        if env.get("FUSEC_STRICT"):
            options["strict"] = _parse_bool("FUSEC_STRICT", env["FUSEC_STRICT"])
        if env.get("FUSEC_WORKERS"):
            options["workers"] = _parse_int("FUSEC_WORKERS", env["FUSEC_WORKERS"])
        if env.get("FUSEC_TARGET"):
            options["target"] = env["FUSEC_TARGET"]
        return cls().updated(options)

    def updated(self, options: Mapping[str, Any]) -> Config:
        """A copy with `options` applied; ConfigError on an unknown name or a value of the wrong kind."""
        names = [f.name for f in fields(self)]
        for name, value in options.items():
            if name not in names:
                raise ConfigError(unknown("option", name, names))
            _check(name, value)
        paths = ("cache_dir", "dump")
        converted: dict[str, Any] = {n: Path(v) if n in paths and v is not None else v for n, v in options.items()}
        return replace(self, **converted)

    def code_key(self) -> tuple[tuple[str, Any], ...]:
        """(name, value) of every field that changes generated code."""
        return tuple((f.name, getattr(self, f.name)) for f in fields(self) if f.metadata.get("code"))


def user_cache_home(environ: Mapping[str, str] | None = None) -> Path:
    """XDG_CACHE_HOME, else ~/.cache."""
    named = (os.environ if environ is None else environ).get("XDG_CACHE_HOME", "")
    return Path(named) if Path(named).is_absolute() else Path.home() / ".cache"


def unknown(kind: str, value: object, valid: Iterable[str]) -> str:
    """'unknown mode "fats"; did you mean "fast"? Valid: "fast", "eager"'."""
    choices = sorted(valid)
    close = difflib.get_close_matches(str(value), choices, n=1)
    hint = f' did you mean "{close[0]}"?' if close else ""
    return f"unknown {kind} {value!r};{hint} valid: {', '.join(repr(c) for c in choices)}"


_CHOICES: dict[str, tuple[str, ...]] = {
    "mode": MODES,
    "precision": PRECISIONS,
    "target": TARGETS,
    "random": RANDOM,
}
_BOOLS = {"fullgraph", "strict", "cache", "fusion", "verify"}
_INTS = {"recompile_limit": 1, "cache_bytes": 0, "workers": 0}


def _check(name: str, value: Any) -> None:
    if name in _CHOICES:
        if value is None and name == "target":
            return
        if value not in _CHOICES[name]:
            raise ConfigError(unknown(name, value, _CHOICES[name]))
    elif name in _BOOLS:
        if not isinstance(value, bool):
            raise ConfigError(f"{name} must be True or False, got {value!r}")
    elif name == "dynamic":
        if value not in (None, True, False):
            raise ConfigError(f"dynamic must be None, True or False, got {value!r}")
    elif name in _INTS:
        if value is None and name != "cache_bytes":
            return
        if not isinstance(value, int) or isinstance(value, bool) or value < _INTS[name]:
            raise ConfigError(f"{name} must be an integer of at least {_INTS[name]}, got {value!r}")
    elif value is not None and not isinstance(value, str | Path):
        raise ConfigError(f"{name} must be a path or None, got {value!r}")


def _parse_bool(name: str, text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ConfigError(f"{name} must be 1 or 0, got {text!r}")


def _parse_int(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name} must be an integer, got {text!r}") from None
