"""Files: written whole or not at all, YAML that is read or explained, caches that processes share."""

import errno
import hashlib
import json
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from mope.errors import UserError, shown


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


_NO_SPACE = ("No space left", "os error 28", "file write failed")
_ENVIRONMENT = {
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.EFBIG,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
}
"""Numbers of errors that are a disk's or a folder's, not a program's."""


def cause_of(error: BaseException, folder: Path) -> str | None:
    """Why the environment let a file not be written, in a few words; None where it isn't to blame.

    Libraries that write files have errors of their own kinds, which don't always say.

    Args:
        error: what was raised.
        folder: that was written into.
    """
    while error is not None:
        number, text = getattr(error, "errno", None), str(error)
        if number == errno.ENOSPC or any(words in text for words in _NO_SPACE):
            free = f" ({shutil.disk_usage(folder).free / 2**20:.0f} MiB are free)" if folder.is_dir() else ""
            return f"the disk is full{free}"
        if isinstance(error, OSError) and number in _ENVIRONMENT:
            return str(error.strerror).lower()
        behind = None if error.__suppress_context__ else error.__context__
        error = error.__cause__ or behind  # type: ignore[assignment]
    return None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(file: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    with replacing(file) as draft:
        draft.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


_DEEP = 100
"""Lists in lists, or objects in objects, beyond which JSON is refused: what is made of it goes into each."""

FILE, FOLDER = "a file", "a folder"
_KINDS = {
    stat.S_IFREG: FILE,
    stat.S_IFDIR: FOLDER,
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def what_is(path: Path) -> str | None:
    """What a path names: `FILE`, `FOLDER`, a named pipe, a socket or a device, all of these without opening
    it; None for nothing.

    Raises:
        OSError: it can't be looked at.
    """
    try:
        return _KINDS.get(stat.S_IFMT(path.stat().st_mode), "no file")
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def require_table_file(path: Path) -> None:
    """Make sure that a path names a file or a folder: a pipe or a device would be read without end.

    Raises:
        UserError: it names something else, or nothing, or can't be looked at.
    """
    try:
        found = what_is(path)
    except OSError as error:
        raise UserError(f"Can't read {shown(str(path), 200)}: {error.strerror}.") from None
    if found is None:
        raise UserError(f"There is no table {shown(str(path), 200)}.")
    if found not in (FILE, FOLDER):
        raise UserError(f"{path} is {found}, not a table: write its rows into a file, and name that.")


def parse_json(text: str) -> Any:
    """What JSON says.

    Raises:
        ValueError: it isn't JSON, an object names a key twice, or it is nested too deeply; the message is a
            few words for the end of a sentence.
    """
    try:
        found = _JSON.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except _TwiceNamed:
        raise
    except ValueError:  # Python's own bound on a number's digits
        raise ValueError("a number of too many digits") from None
    if text.count("[") + text.count("{") > _DEEP and _is_deep(found):
        raise ValueError("nested too deeply")
    return found


class _TwiceNamed(ValueError):
    """An object that has a key twice."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        known: set[str] = set()
        for name, _ in pairs:
            if name in known:
                raise _TwiceNamed(f"two values of '{shown(name)}' in one object")
            known.add(name)
    return found


_JSON = json.JSONDecoder(object_pairs_hook=_distinct)


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEP):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True


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


def can_cache() -> bool:
    """Whether anything can be kept in `cache_folder`."""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(cache_folder(), os.W_OK)
