"""The kernel cache under attack, under many processes, and under a size limit."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from fusec.config import Config
from fusec.errors import CacheWarning
from fusec.runtime import cache as cache_module
from fusec.runtime.cache import FORMAT, Cache, Entry, cache_directory, clear, digest, usage

KEY = digest(b"key")
ENTRY = Entry({"name": "k", "registers": 24}, b"\x7fELF" + bytes(range(256)) * 8)


@pytest.fixture(autouse=True)
def fresh_warnings() -> None:
    cache_module.warn_once.cache_clear()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 1 << 20)


def files(cache: Cache, suffix: str) -> list[Path]:
    return sorted((cache.directory / FORMAT).glob(f"*{suffix}"))


def the_file(cache: Cache, suffix: str) -> Path:
    (found,) = files(cache, suffix)
    return found


def test_round_trip(cache: Cache) -> None:
    assert cache.get(KEY) is None
    cache.put(KEY, ENTRY)
    assert cache.get(KEY) == ENTRY
    assert Cache(cache.directory, 1 << 20).get(KEY) == ENTRY
    assert cache.get(digest(b"other")) is None


def test_an_entry_without_binary(cache: Cache) -> None:
    cache.put(KEY, Entry({"a": 1}, b""))
    assert cache.get(KEY) == Entry({"a": 1}, b"")
    assert not files(cache, ".cubin")


def test_everything_is_private(cache: Cache) -> None:
    old = os.umask(0)
    try:
        cache.put(KEY, ENTRY)
    finally:
        os.umask(old)
    folder = cache.directory / FORMAT
    assert [stat.S_IMODE(p.stat().st_mode) for p in (cache.directory, folder)] == [0o700, 0o700]
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {0o600}
    assert {p.suffix for p in folder.iterdir()} == {".json", ".cubin"}


@pytest.mark.parametrize("suffix", [".json", ".cubin"])
def test_every_flipped_bit_is_a_miss(cache: Cache, suffix: str) -> None:
    cache.put(KEY, ENTRY)
    path = the_file(cache, suffix)
    data = path.read_bytes()
    for position in range(0, len(data), max(1, len(data) // 97)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        found = cache.get(KEY)
        # White space between JSON values carries nothing: what is read must then be what was written.
        assert found is None or (suffix == ".json" and found == ENTRY and json.loads(damaged) == json.loads(data))
    path.write_bytes(data)
    assert cache.get(KEY) == ENTRY
    assert cache.enabled


@pytest.mark.parametrize("suffix", [".json", ".cubin"])
@pytest.mark.parametrize("length", [0, 1, 100])
def test_truncation_is_a_miss_and_is_repaired(cache: Cache, suffix: str, length: int) -> None:
    cache.put(KEY, ENTRY)
    path = the_file(cache, suffix)
    path.write_bytes(path.read_bytes()[:length])
    assert cache.get(KEY) is None
    cache.put(KEY, ENTRY)
    assert cache.get(KEY) == ENTRY


@pytest.mark.parametrize("text", ["null", "[]", "{}", '{"body": 1, "sha256": 2}', "[" * 100_000, "\xff\xfe"])
def test_nonsense_json_is_a_miss(cache: Cache, text: str) -> None:
    cache.put(KEY, ENTRY)
    the_file(cache, ".json").write_text(text, encoding="latin-1")
    assert cache.get(KEY) is None


def test_an_entry_moved_to_another_key_is_a_miss(cache: Cache) -> None:
    cache.put(KEY, ENTRY)
    other = digest(b"other")
    the_file(cache, ".json").rename(cache.directory / FORMAT / f"{other}.json")
    assert cache.get(other) is None


def test_a_manifest_cannot_name_a_file_elsewhere(cache: Cache, tmp_path: Path) -> None:
    cache.put(KEY, ENTRY)
    outside = tmp_path / "outside.cubin"
    outside.write_bytes(ENTRY.blob)
    body = {"key": KEY, "meta": {}, "blob": "../../outside"}
    the_file(cache, ".json").write_text(json.dumps({"body": body, "sha256": digest(body)}))
    assert cache.get(KEY) is None


@pytest.mark.parametrize("suffix", [".json", ".cubin"])
def test_a_symbolic_link_in_place_of_a_file_is_a_miss(cache: Cache, tmp_path: Path, suffix: str) -> None:
    cache.put(KEY, ENTRY)
    path = the_file(cache, suffix)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert cache.get(KEY) is None


@pytest.mark.parametrize("suffix", [".json", ".cubin"])
def test_a_pipe_in_place_of_a_file_is_a_miss(cache: Cache, suffix: str) -> None:
    cache.put(KEY, ENTRY)
    path = the_file(cache, suffix)
    path.unlink()
    os.mkfifo(path, 0o600)
    assert cache.get(KEY) is None


def test_a_file_others_can_write_is_a_miss(cache: Cache) -> None:
    cache.put(KEY, ENTRY)
    the_file(cache, ".cubin").chmod(0o666)
    assert cache.get(KEY) is None


def assert_gives_up(cache: Cache, match: str) -> None:
    with pytest.warns(CacheWarning, match=match) as caught:
        cache.put(KEY, ENTRY)
        assert cache.get(KEY) is None
    assert len(caught) == 1
    assert not cache.enabled


@pytest.mark.parametrize("which", ["cache", f"cache/{FORMAT}"])
def test_a_directory_that_is_a_symbolic_link_is_refused(cache: Cache, tmp_path: Path, which: str) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    link = tmp_path / which
    link.parent.mkdir(mode=0o700, exist_ok=True)
    link.symlink_to(target)
    assert_gives_up(cache, "symbolic link")
    assert not list(target.iterdir())


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o720, 0o702])
def test_a_directory_others_can_write_is_refused(cache: Cache, mode: int) -> None:
    cache.directory.mkdir()
    cache.directory.chmod(mode)
    assert_gives_up(cache, f"mode {mode:04o}.*chmod 700")


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o740])
def test_entries_others_can_read_are_refused(cache: Cache, mode: int) -> None:
    cache.put(KEY, ENTRY)
    (cache.directory / FORMAT).chmod(mode)
    assert_gives_up(cache, "chmod 700")


def test_a_directory_of_another_user_is_refused(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.put(KEY, ENTRY)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert_gives_up(cache, "belongs to user")


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_gives_up(Cache(tmp_path / "file" / "cache", 1 << 20), "compiled in memory")


def test_a_full_disk_is_one_warning(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert_gives_up(cache, "No space left")
    assert not list((cache.directory / FORMAT).iterdir())


def test_one_warning_for_many_caches(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            Cache(tmp_path / "file", 1).put(KEY, ENTRY)
    assert len(caught) == 1


def test_off_writes_nothing(tmp_path: Path) -> None:
    cache = Cache.from_config(Config(cache=False, cache_dir=tmp_path / "cache"))
    cache.put(KEY, ENTRY)
    assert cache.get(KEY) is None
    assert not (tmp_path / "cache").exists()


def test_the_directory_comes_from_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_directory(Config(cache_dir=tmp_path)) == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory(Config()) == tmp_path / "fusec"


def test_the_least_recently_used_leave_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_SWEEP_EVERY", 1)
    monkeypatch.setattr(Cache, "_sweep_is_due", lambda self: True)
    cache = Cache(tmp_path / "cache", 50_000)
    keys = [digest([i]) for i in range(12)]
    for age, key in enumerate(keys):
        cache.put(key, Entry({}, bytes([age]) * 8000))
        if age >= 2:
            assert cache.get(keys[0]) is not None  # used all the time
        for i, earlier in enumerate(keys[1 : age + 1]):
            path = cache.directory / FORMAT / f"{earlier}.json"
            if path.exists():
                os.utime(path, (1000 + i, 1000 + i))
    assert usage(cache.directory)[1] <= 50_000
    assert cache.get(keys[0]) is not None
    assert cache.get(keys[-1]) is not None
    assert cache.get(keys[1]) is None


def test_abandoned_temporary_files_leave(cache: Cache) -> None:
    cache.put(KEY, ENTRY)
    old, new = (cache.directory / FORMAT / name for name in (".tmp-1-old", ".tmp-1-new"))
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (1, 1))
    Cache(cache.directory, 1 << 20).put(KEY, ENTRY)
    assert new.exists()
    assert not old.exists()


def test_usage_and_clear(cache: Cache) -> None:
    assert usage(cache.directory) == (0, 0)
    for i in range(3):
        cache.put(digest([i]), Entry({}, bytes([i]) * 10))
    entries, size = usage(cache.directory)
    assert entries == 3
    assert size > 30
    assert clear(cache.directory) == 3
    assert usage(cache.directory) == (0, 0)


WRITER = """
import sys
from pathlib import Path
from fusec.runtime.cache import Cache, Entry, digest
cache = Cache(Path(sys.argv[1]), 40_000)
cache._sweep_is_due = lambda: True
for turn in range(40):
    number = turn % 8
    entry = Entry({"number": number}, bytes([number]) * 4000)
    found = cache.get(digest([number]))
    assert found is None or found == entry, found
    cache.put(digest([number]), entry)
assert cache.enabled
"""


def test_eight_processes_share_a_small_cache(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", WRITER, str(tmp_path / "cache")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(8)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    survivors = [Cache(tmp_path / "cache", 40_000).get(digest([n])) for n in range(8)]
    assert any(survivors)
    assert all(s is None or s == Entry({"number": n}, bytes([n]) * 4000) for n, s in enumerate(survivors))
    assert not list((tmp_path / "cache" / FORMAT).glob(".tmp-*"))
