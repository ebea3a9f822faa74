"""Files: written whole or not at all, YAML that is read or explained, caches that processes share."""

import errno
import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from mope.errors import UserError


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A temporary path that takes the file's place once the block ends without an error."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=file.suffix)
    os.close(handle)
    draft = Path(name)
    try:
        yield draft
        draft.chmod(0o666 & ~_umask())
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of an empty one, or of none, once the block ends without an
    error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield draft
        if folder.exists():
            folder.rmdir()
        draft.chmod(0o777 & ~_umask())
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def digest(file: Path) -> str:
    """SHA-256 of a file's content."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def cause_of(error: BaseException, folder: Path) -> str | None:
    """Why the environment let a file not be written, in a few words; None where it isn't to blame.

    Libraries that write files have errors of their own kinds, which don't always say.

    Args:
        error: what was raised.
        folder: that was written into.
    """
    full = "the disk is full"
    if folder.is_dir():
        full = f"the disk is full ({shutil.disk_usage(folder).free / 2**20:.0f} MiB are free)"
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return full if error.errno == errno.ENOSPC else str(error.strerror).lower()
        text = str(error)
        if "No space left" in text or "os error 28" in text or "file write failed" in text:
            return full
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(file: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    with replacing(file) as draft:
        draft.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_yaml(file: Path, what: str, needs: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        file: which.
        what: what messages call it.
        needs: what it must have, for the message if it has nothing.

    Raises:
        UserError: it can't be read, isn't YAML, or holds no mapping.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Can't read the {what} {file}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"The {what} {file} isn't YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"The {what} {file} is empty or no mapping; it needs {needs}.")
    return content


def open_store(file: Path, schema: str) -> sqlite3.Connection:
    """An SQLite file for a cache that several processes share; a killed one leaves it whole.

    Args:
        file: made if it isn't there.
        schema: name and columns of its one table, such as `pictures (key BLOB PRIMARY KEY, pixels BLOB)`.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    store = sqlite3.connect(file, timeout=60, check_same_thread=False)
    store.execute("PRAGMA journal_mode=WAL")
    store.execute("PRAGMA synchronous=NORMAL")
    store.execute(f"CREATE TABLE IF NOT EXISTS {schema}")
    return store


def cache_folder() -> Path:
    """Where what can be made anew is kept: `$MOPE_CACHE`, or `~/.cache/mope`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MOPE_CACHE") or Path(base) / "mope")
