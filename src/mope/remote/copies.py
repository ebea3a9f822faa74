"""Copies of files elsewhere, in the cache: one for each version of a file, the longest unasked leaving first.

A copy's name is its file's version, its time when that was last compared with the source.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from mope.errors import UserError
from mope.files import cache_folder, replacing, replacing_folder

_GB = 2**30
_fetched = float("inf")  # bytes since the copies were last counted


def kept(name: str, since: float) -> Path | None:
    """A file's copy, if it was compared with its source since then.

    Args:
        name: the file's URL.
        since: seconds since 1970.
    """
    try:
        copies = [entry for entry in os.scandir(_folder(name)) if not entry.name.startswith(".")]
        newest = max(copies, key=lambda entry: entry.stat().st_mtime, default=None)
        return Path(newest.path) if newest is not None and newest.stat().st_mtime >= since else None
    except OSError:  # none, or one that another process is removing
        return None


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Let no other process or thread fetch the same file meanwhile."""
    folder = _root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / _digest(name)[:2]):
        yield


def keep(name: str, version: str, suffix: str, size: int, write: Callable[[Path], None]) -> Path:
    """The copy of a file's version, written if there is none.

    Args:
        name: the file's URL.
        version: what changes when the file does.
        suffix: the ending of its name.
        size: bytes that it takes.
        write: writes it where it is told.
    """
    return _copied(_folder(name) / f"{_digest(version)}{suffix}", size, write, replacing)


def keep_folder(name: str, version: str, size: int, write: Callable[[Path], None]) -> Path:
    """The copy of a folder, as `keep`."""
    return _copied(_folder(name) / _digest(version), size, write, replacing_folder)


def _copied(copy: Path, size: int, write: Callable[[Path], None], replace: Any) -> Path:
    """A copy, written if it isn't there, which `replace` lets appear whole."""
    now = time.time()
    if not copy.exists():
        _make_room(size)
        with replace(copy) as draft:
            write(draft)
    os.utime(copy, (now, now))
    return copy


def _make_room(size: int) -> None:
    """Remove the copies that were longest not asked for, where all take more than they may."""
    global _fetched
    most = most_bytes()
    _fetched += size
    if _fetched <= most / 20:
        return
    _fetched = size
    copies = []
    for copy in _root().glob("??/*/[!.]*"):
        try:
            files = [file.stat() for file in ([copy, *copy.rglob("*")] if copy.is_dir() else [copy])]
        except OSError:  # another process removes it
            continue
        copies.append((files[0].st_mtime, sum(file.st_size for file in files), copy))
    excess = sum(taken for _, taken, _ in copies) + size - most
    for _, taken, copy in sorted(copies):
        if excess <= 0:
            break
        shutil.rmtree(copy, ignore_errors=True) if copy.is_dir() else copy.unlink(missing_ok=True)
        excess -= taken


def most_bytes() -> float:
    """Bytes that all copies may take.

    Raises:
        UserError: MOPE_REMOTE_GB is no such number.
    """
    text = os.environ.get("MOPE_REMOTE_GB", "50")
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not found > 0:
        raise UserError(f"MOPE_REMOTE_GB is '{text}': give the gigabytes that copies may take, such as 50.")
    return found * _GB


def _root() -> Path:
    return cache_folder() / "remote"


def _folder(name: str) -> Path:
    digest = _digest(name)
    return _root() / digest[:2] / digest


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()
