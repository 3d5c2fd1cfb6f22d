"""Compiled kernels on disk: content-addressed, verified, private, bounded, safe under many processes.

Enters: a key (what decides the binary) and an entry (JSON and bytes). Leaves: the same entry, or None.

    <cache>/kernels-1/<key>.json      {"body": {"key": ..., "meta": {...}, "blob": "<sha256>"}, "sha256": "..."}
    <cache>/kernels-1/<sha256>.cubin

Nothing read is trusted: the directory and every file must be ours, private and no symbolic link, and every byte must
match its SHA-256. A mismatch is a miss. Any failure of the cache itself turns it off with one CacheWarning.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import secrets
import stat
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusec.config import Config, user_cache_home
from fusec.errors import CacheWarning

try:
    import platformdirs
except ModuleNotFoundError:  # a bare PyTorch installation runs kernels too
    platformdirs = None  # type: ignore[assignment]

FORMAT = "kernels-1"
_SWEEP_EVERY = 64  # stores between two looks at the cache's size
_STALE = 3600.0  # seconds after which a temporary file has no owner any more
_LIMIT = 256 << 20  # bytes of one file; a larger one is not ours
_HEX = frozenset("0123456789abcdef")

Json = dict[str, Any]


class CacheError(Exception):
    """The cache cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is kept for a key: facts, and the binary (empty where nothing is compiled)."""

    meta: Json
    blob: bytes


def cache_directory(config: Config) -> Path:
    """`config.cache_dir` (FUSEC_CACHE_DIR), else fusec's folder in the user's cache directory."""
    if config.cache_dir is not None:
        return config.cache_dir
    if platformdirs is None:
        return user_cache_home() / "fusec"
    return platformdirs.user_cache_path("fusec", appauthor=False)


def digest(value: Any) -> str:
    """SHA-256 of bytes, or of a JSON value in its canonical form."""
    data = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(data).hexdigest()


@dataclass
class Cache:
    """One cache directory. `get` and `put` never raise: a cache that fails is off from then on, with one warning."""

    directory: Path
    limit: int
    enabled: bool = True
    _stores: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def from_config(cls, config: Config) -> Cache:
        return cls(cache_directory(config), config.cache_bytes, config.cache)

    def get(self, key: str) -> Entry | None:
        """The entry of a key if every byte is as it was stored; it counts as used now."""
        if not self.enabled:
            return None
        try:
            with _opened(self.directory, create=False) as folder:
                return None if folder is None else _read_entry(folder, key)
        except (CacheError, OSError) as error:
            self._give_up(error)
            return None

    def put(self, key: str, entry: Entry) -> None:
        """Keep an entry. Several writers of one key may race: each replaces the file whole."""
        if not self.enabled:
            return
        try:
            with _opened(self.directory, create=True) as folder:
                assert folder is not None
                _write_entry(folder, key, entry)
                if self._sweep_is_due():
                    _sweep(folder, self.limit)
        except (CacheError, OSError) as error:
            self._give_up(error)

    def _sweep_is_due(self) -> bool:
        with self._lock:
            self._stores += 1
            return self._stores % _SWEEP_EVERY == 1

    def _give_up(self, error: Exception) -> None:
        self.enabled = False
        warn_once(f"kernel cache {self.directory}: {error}; kernels are compiled in memory")


@functools.cache
def warn_once(message: str) -> None:
    """One CacheWarning per message and process."""
    warnings.warn(CacheWarning(message), stacklevel=2)


def usage(directory: Path) -> tuple[int, int]:
    """(entries, bytes) of a cache directory; CacheError when it is not safe to use."""
    with _opened(directory, create=False) as folder:
        if folder is None:
            return 0, 0
        files = _files(folder)
    return sum(f.name.endswith(".json") for f in files), sum(f.size for f in files)


def clear(directory: Path) -> int:
    """Remove every entry; the number of entries removed."""
    with _opened(directory, create=False) as folder:
        if folder is None:
            return 0
        files = _files(folder)
        for file in files:
            _remove(folder, file.name)
    return sum(f.name.endswith(".json") for f in files)


# entries


def _read_entry(folder: int, key: str) -> Entry | None:
    manifest = _read_file(folder, f"{key}.json", touch=True)
    if manifest is None:
        return None
    try:
        document = json.loads(manifest)
        body = document["body"]
        meta, blob_digest = body["meta"], body["blob"]
        intact = document["sha256"] == digest(body) and body["key"] == key and isinstance(meta, dict)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not intact or not _is_digest(blob_digest):
        return None
    blob = _read_file(folder, f"{blob_digest}.cubin") if blob_digest != digest(b"") else b""
    return Entry(meta, blob) if blob is not None and digest(blob) == blob_digest else None


def _write_entry(folder: int, key: str, entry: Entry) -> None:
    blob_digest = digest(entry.blob)
    if entry.blob:
        _write_file(folder, f"{blob_digest}.cubin", entry.blob)
    body = {"key": key, "meta": entry.meta, "blob": blob_digest}
    document = {"body": body, "sha256": digest(body)}
    _write_file(folder, f"{key}.json", json.dumps(document, indent=1, sort_keys=True).encode())


def _is_digest(value: object) -> bool:
    """A name made of anything else could lead out of the directory."""
    return isinstance(value, str) and len(value) == 64 and set(value) <= _HEX


# files, always relative to the open directory, never through a symbolic link


@contextlib.contextmanager
def _opened(directory: Path, create: bool) -> Iterator[int | None]:
    """A descriptor of the entries' directory; None where it does not exist and is not to be made."""
    if create:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    parent = folder = None
    try:
        parent = _open_directory(str(directory), None)
        if parent is not None:
            _require_private(directory, parent, others_may=0o055)
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(FORMAT, 0o700, dir_fd=parent)
            folder = _open_directory(FORMAT, parent)
            if folder is not None:
                _require_private(directory / FORMAT, folder, others_may=0)
        yield folder
    finally:
        for descriptor in (folder, parent):
            if descriptor is not None:
                os.close(descriptor)


def _open_directory(path: str, parent: int | None) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise CacheError(f"{path} is a symbolic link or no directory; name a directory of your own") from error
        raise


def _require_private(path: Path, descriptor: int, others_may: int) -> None:
    """The directory is ours, and others can at most what `others_may` grants them."""
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid():
        raise CacheError(f"{path} belongs to user {status.st_uid}, not to you")
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077 & ~others_may:
        raise CacheError(f"{path} has mode {mode:04o}, so that others could write or read it; run: chmod 700 {path}")


def _read_file(folder: int, name: str, touch: bool = False) -> bytes | None:
    """All bytes of one of our files; None when it is missing, too large, or not ours and private."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.EISDIR, errno.ENXIO):
            return None
        raise
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
        if not ours or status.st_size > _LIMIT:
            return None
        if touch:
            os.utime(descriptor)
        return file.read()


def _write_file(folder: int, name: str, data: bytes) -> None:
    """Write beside the target, flush to disk, then replace: a reader sees the old file or the new one, whole."""
    temporary = f".tmp-{os.getpid()}-{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        _remove(folder, temporary)
        raise


def _remove(folder: int, name: str) -> None:
    """Another process may have been quicker."""
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        os.unlink(name, dir_fd=folder)


# size


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    size: int
    used: float


def _files(folder: int) -> list[_File]:
    found = []
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            found.append(_File(name, status.st_size, status.st_mtime))
    return found


def _sweep(folder: int, limit: int) -> None:
    """Remove what was used longest ago until the files take at most 3/4 of `limit`, if they take more than it."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return  # another process sweeps, or the file system has no locks
    try:
        files = _files(folder)
        now = time.time()
        for file in files:
            if file.name.startswith(".tmp-") and now - file.used > _STALE:
                _remove(folder, file.name)
        total = sum(f.size for f in files)
        if total <= limit:
            return
        sizes = {f.name: f.size for f in files}
        for file in sorted((f for f in files if f.name.endswith(".json")), key=lambda f: f.used):
            total -= _evict(folder, file.name, sizes)
            if total <= limit * 3 // 4:
                return
    finally:
        fcntl.flock(folder, fcntl.LOCK_UN)


def _evict(folder: int, manifest: str, sizes: dict[str, int]) -> int:
    """Remove a manifest and its binary; the bytes freed."""
    names = [manifest]
    data = _read_file(folder, manifest)
    if data is not None:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            names.append(f"{json.loads(data)['body']['blob']}.cubin")
    freed = 0
    for name in names:
        if name in sizes:
            _remove(folder, name)
            freed += sizes.pop(name)
    return freed
