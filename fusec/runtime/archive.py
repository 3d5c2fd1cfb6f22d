"""Compiled kernels as a folder that is carried to another machine.

Enters: Executables compiled ahead of time. Leaves: a folder; and from a folder, entries of this machine's kernel cache.

    out/manifest.json                   what each kernel was compiled from, and the SHA-256 of its cubin
    out/fused_gelu_sm_90.cubin  out/fused_gelu.py

JSON and machine code only. Loading computes each kernel's cache key anew: what decided the binary is in the manifest,
the versions are this machine's, so a later compilation of the same text finds the binary.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from fusec.config import Config
from fusec.errors import BuildError, CacheWarning
from fusec.ir.kernels import KernelSource, Tile
from fusec.runtime.build import cache_key, compile_request, helpers_digest
from fusec.runtime.cache import Cache, Entry, digest
from fusec.runtime.compiler import Artifact, CompileRequest
from fusec.runtime.launch import Kernel

__all__ = ["Archive", "load_archive", "save_archive"]

FORMAT = "precompiled-1"


@dataclass(frozen=True)
class Archive:
    """A folder of kernels. kernels: (name, architecture) of each that this machine's cache now holds."""

    path: Path
    kernels: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        targets = ", ".join(dict.fromkeys(arch for _, arch in self.kernels)) or "no target"
        return f"{len(self.kernels)} kernels for {targets} in {self.path}"


def save_archive(path: str | Path, kernels: Iterable[Kernel]) -> Archive:
    """Write every distinct compiled kernel; the folder is made, files of the same name are replaced."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, Any]] = {}
    for kernel in chain.from_iterable(k.variants() for k in kernels):
        for arch, artifact in kernel.artifacts.items():
            request = compile_request(kernel.source, kernel.source.tile, arch)
            row = _row(kernel.source, request, artifact)
            key = digest(row)
            if key not in rows:
                stem = _stem(kernel.source.name, rows)
                row["file"] = f"{stem}_sm_{arch}.cubin"
                (folder / f"{stem}.py").write_text(kernel.source.text, encoding="utf-8")
                (folder / row["file"]).write_bytes(artifact.cubin)
                rows[key] = row
    body = {"format": FORMAT, "helpers": helpers_digest(), "kernels": list(rows.values())}
    text = json.dumps({"body": body, "sha256": digest(body)}, indent=1)
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    return Archive(folder, tuple((r["request"]["name"], f"sm_{r['request']['arch']}") for r in rows.values()))


def load_archive(path: str | Path, config: Config) -> Archive:
    """Put the kernels of a folder into the kernel cache.

    FileNotFoundError where there is no manifest, BuildError where it or a kernel is damaged. Kernels of another
    version of fusec cannot be used: they are left out, with one CacheWarning.
    """
    folder = Path(path)
    body = _read_manifest(folder)
    if body["helpers"] != helpers_digest():
        message = f"{folder} was written by another version of fusec; its kernels will be compiled anew"
        warnings.warn(CacheWarning(message), stacklevel=2)
        return Archive(folder, ())
    cache = Cache.from_config(config)
    loaded = []
    for row in body["kernels"]:
        cubin = _read_cubin(folder, row)
        request = CompileRequest.from_json(json.loads(json.dumps(row["request"])))
        cache.put(cache_key(_source(row), request), Entry(row["artifact"], cubin))
        loaded.append((request.name, f"sm_{request.arch}"))
    return Archive(folder, tuple(loaded))


def _row(source: KernelSource, request: CompileRequest, artifact: Artifact) -> dict[str, Any]:
    facts = {"source_key": source.cache_key, "request": request.to_json(), "artifact": artifact.to_json()}
    row: dict[str, Any] = json.loads(json.dumps(facts))  # tuples are lists from here on
    row["sha256"] = digest(artifact.cubin)
    return row


def _stem(name: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    taken = sum(row["request"]["name"] == name for row in rows.values())
    return f"{name}_{taken}" if taken else name


def _source(row: Mapping[str, Any]) -> KernelSource:
    request, nothing = row["request"], Tile(())
    return KernelSource(request["name"], request["text"], (), (), nothing, nothing, row["source_key"])


def _read_manifest(folder: Path) -> dict[str, Any]:
    text = (folder / "manifest.json").read_text(encoding="utf-8")
    try:
        document = json.loads(text)
        body: dict[str, Any] = document["body"]
        intact = document["sha256"] == digest(body) and body["format"] == FORMAT
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise BuildError(f"{folder / 'manifest.json'} is damaged, or not a manifest of {FORMAT}")
    return body


def _read_cubin(folder: Path, row: Mapping[str, Any]) -> bytes:
    name = str(row["file"])
    if Path(name).name != name:
        raise BuildError(f"{folder}: the manifest names a file outside the folder: {name!r}")
    cubin = (folder / name).read_bytes()
    if digest(cubin) != row["sha256"]:
        raise BuildError(f"{folder / name} is damaged: its SHA-256 is not the manifest's")
    return cubin
