"""Paths of files elsewhere, through fsspec's file systems."""

import errno
import os
import posixpath
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from mope.errors import UserError
from mope.remote.copies import alone, keep, keep_folder, kept
from mope.remote.failures import NotThere, retried, told
from mope.remote.sizes import Bound, download, refused_once, tightest

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_LOCAL = ("file", "local")
_WEB = ("http", "https")
_ARCHIVES = ("zip", "tar", "libarchive")
_AT_ONCE = 8  # files that a process fetches
_VALIDATORS = (
    *("etag", "lastmodified", "modified", "modify", "mtime", "updated", "created", "generation", "versionid"),
    *("contentmd5", "md5hash", "digest", "crc32c", "crc", "chksum", "blobid", "xethash", "sha"),
)
"""What file systems say of a file that changes when it does, without capitals and marks."""

_unknown = secrets.token_hex(8)  # the version of a file whose source says none: good for this process
_asked = time.time()  # when sources were last to be asked anew
_fetchers: tuple[int, ThreadPoolExecutor] | None = None  # and whose they are
_listed: dict[int, float] = {}  # when a file system's lists were last forgotten


def is_url(name: str | Path) -> bool:
    """Whether a name is that of a file elsewhere, or in an archive."""
    return isinstance(name, RemotePath) or _URL.match(str(name)) is not None


def path_of(name: str | Path) -> Path:
    """The path that a name names, which may be a URL."""
    if isinstance(name, Path) or not is_url(name):
        return name if isinstance(name, Path) else Path(name)
    scheme, _, path = name.partition("://")
    return Path(path) if scheme.lower() in _LOCAL else RemotePath(name)


def rebased(name: str, change: Callable[[str], str]) -> str:
    """A path, changed; of a URL only the local archive that it is in, if it is in one."""
    head, chained, rest = name.partition("::")
    if not is_url(name):
        return change(name)
    return f"{head}::{rebased(rest, change)}" if chained else name


def look_anew() -> None:
    """Have copies compared with their sources from now on: whoever opens a table wants it as it is now."""
    global _asked
    _asked = time.time()


class RemotePath(type(Path())):
    """A path whose file is elsewhere: a program that opens it opens a copy on this machine.

    The copy is made when it is first needed. It is of the version that there was when this path was first
    looked at; a later one is another path's.

    Args:
        url: of a file or a folder, such as `s3://bucket/folder` or `zip://a.csv::https://host/rows.zip`.
        below: a path in that folder, whatever signs it has.

    Attributes:
        bound: how large its file may be; None for as large as all copies together.
    """

    url: str
    below: str
    bound: Bound | None
    _found: Mapping[str, Any] | None
    _copy: Path | None

    def __new__(cls, url: str, below: str = "") -> Self:
        self = super().__new__(cls, url, below)
        self.url, self.below = url, below
        self.bound = self._found = self._copy = None
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url, self.below), (None, {"bound": self.bound})

    def __str__(self) -> str:
        if not self.below:
            return self.url
        head, chained, rest = self.url.partition("::")
        return f"{_slashed(head)}{self.below}{chained}{rest}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __lt__(self, other: Any) -> bool:
        return str(self) < str(other)

    def __truediv__(self, name: Any) -> Path:
        name = os.fspath(name) if not isinstance(name, RemotePath) else str(name)
        if is_url(name) or name.startswith("/"):
            return path_of(name)
        home, below = self.url, posixpath.normpath(posixpath.join(self.below, name))
        while below == ".." or below.startswith("../"):
            home, below = _above(home), below[3:]
        return type(self)(home, "" if below == "." else below)

    def __fspath__(self) -> str:
        return str(self.local(folders=True))

    @property
    def name(self) -> str:
        """The last part of its path."""
        return posixpath.basename(self.below or _inner(self.url))

    @property
    def suffix(self) -> str:
        """The ending of its name, with the dot."""
        return posixpath.splitext(self.name)[1]

    @property
    def parent(self) -> "RemotePath":
        """The folder it is in."""
        if self.below:
            return type(self)(self.url, posixpath.dirname(self.below))
        return type(self)(_above(self.url))

    def absolute(self) -> "RemotePath":
        return self

    def resolve(self, strict: bool = False) -> "RemotePath":
        return self

    def exists(self, **options: Any) -> bool:
        """Whether there is such a file or folder.

        Raises:
            UserError: that can't be found out.
        """
        try:
            return bool(self.facts())
        except NotThere:
            return False

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """What it is and how large, as its file system says without the file being fetched; no times.

        Raises:
            FileNotFoundError: there is no such file or folder.
            UserError: that can't be found out.
        """
        try:
            facts = self.facts()
        except NotThere:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self)) from None
        kind = stat.S_IFDIR if facts.get("type") == "directory" else stat.S_IFREG
        return os.stat_result((kind, 0, 0, 1, 0, 0, facts.get("size") or 0, 0, 0, 0))

    def is_file(self) -> bool:
        return self.exists() and not self.is_dir()

    def is_dir(self) -> bool:
        return self.exists() and self.facts().get("type") == "directory"

    def glob(self, pattern: str) -> Any:
        """The files in this folder that are like a pattern."""
        return iter(matching(str(self / pattern)))

    def facts(self) -> Mapping[str, Any]:
        """What its file system says of it, asked once.

        Raises:
            UserError: it can't be reached; a NotThere if it isn't there.
        """
        if self._found is None:
            with told(str(self)):
                system, path = self._where()
                self._found = retried(system, lambda: system.info(path))
        assert self._found is not None
        return self._found

    def local(self, folders: bool = False) -> Path:
        """Its copy on this machine, fetched if there is none of its version.

        Args:
            folders: whether it may be a folder, of which all is fetched.

        Raises:
            UserError: it can't be had; a NotThere if it isn't there.
        """
        if self._copy is None or not self._copy.exists():
            copy = kept(str(self), _asked) if self._copy is None and self._found is None else None
            copy = copy or self._fetched(folders)
            if self._copy not in (None, copy):
                raise UserError(f"{self} was changed while it was being read: run again.")
            self._copy = copy
        if not folders and self._copy.is_dir():
            raise NotThere(f"{self} is a folder, not a file.")
        return self._copy

    def _fetched(self, folders: bool) -> Path:
        name = str(self)
        with told(name):
            system, path = self._where()
        with told(name), alone(name):
            if self._found is None and (copy := kept(name, _asked)) is not None:
                return copy  # another process was faster
            bound = tightest(self.bound)
            with refused_once(name, _asked, bound):
                return self._fetched_within(bound, system, path, folders)

    def _fetched_within(self, bound: Bound, system: Any, path: str, folders: bool) -> Path:
        name, facts = str(self), self.facts()
        if facts.get("type") == "directory":
            if not folders:
                raise NotThere(f"{name} is a folder, not a file.")
            return _fetched_folder(name, system, path)
        size = facts.get("size")
        bound.check(name, size)
        return keep(
            name,
            _version(facts),
            self.suffix,
            size or 0,
            lambda draft: retried(system, lambda: download(system, path, draft, name, size, bound)),
        )

    def _where(self) -> tuple[Any, str]:
        """Its file system, and its path there."""
        system, path = _system(self.url)
        if not self.below:
            return system, path
        below = self.below
        if _scheme(self.url) in _WEB:
            path, below = path.partition("?")[0], quote(below)
        return system, _slashed(path) + below if path else below


def fetch_all(files: Iterable[RemotePath]) -> None:
    """Make the copies that are still to be made, several at a time.

    Raises:
        UserError: a storage can't be reached; what isn't there shows when it is opened.
    """
    global _fetchers
    missing = [file for file in dict.fromkeys(files) if kept(str(file), _asked) is None]
    if len(missing) < 2:
        return
    if _fetchers is None or _fetchers[0] != os.getpid():  # a forked process has none of the threads
        _fetchers = os.getpid(), ThreadPoolExecutor(_AT_ONCE, "fetching")
    fetching = [_fetchers[1].submit(fetch_one, file) for file in missing]
    try:
        for one in fetching:
            one.result()
    finally:
        for one in fetching:
            one.cancel()


def fetch_one(file: RemotePath) -> None:
    """Make a copy if there is none; nothing of a file that isn't there, which shows when it is opened.

    Raises:
        UserError: its storage can't be reached.
    """
    with suppress(NotThere):
        file.local()


def matching(pattern: str) -> list[RemotePath]:
    """The files that a URL with a shell's `*`, `?` or `[...]` is like, in order; of the web `*` and `[...]`.

    Raises:
        UserError: they can't be listed.
    """
    head, chained, rest = pattern.partition("::")
    with told(pattern):
        system, path = _system(pattern)
        names = sorted(retried(system, lambda: system.glob(path)))
    if _scheme(pattern) in _WEB:
        return [RemotePath(name) for name in names]
    fixed = re.split(r"[*?\[]", path)[0].rpartition("/")[0]
    folder = f"{head[: head.index(fixed) + len(fixed)] if fixed else _scheme(head) + '://'}{chained}{rest}"
    return [RemotePath(folder, name[len(fixed) :].lstrip("/")) for name in names]


def _system(url: str) -> tuple[Any, str]:
    """A URL's file system, and the path there. Made anew in a process that was forked, so it isn't kept."""
    import fsspec
    import fsspec.config

    head, chained, rest = url.partition("::")
    scheme = _scheme(url)
    if (scheme in _ARCHIVES) != bool(chained):
        raise UserError(
            f"{url} isn't a file in an archive: write zip://FILE::ARCHIVE, such as "
            "zip://rows.csv::s3://bucket/rows.zip (or tar://, libarchive://)."
        )
    if chained:
        archive = Path(os.fspath(path_of(rest)))
        system = fsspec.filesystem(scheme, fo=str(archive), version=archive.stat().st_mtime_ns)
        return system, system._strip_protocol(head)
    options: dict[str, Any] = {}
    if scheme in _WEB:
        import aiohttp

        # fsspec's own limit is five minutes for a whole file.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=60)
        own = fsspec.config.conf.get(scheme, {}).get("client_kwargs", {})
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True, **own}
    system, path = fsspec.url_to_fs(scheme + head[len(scheme) :], **options)
    if _listed.get(hash(system)) != _asked:
        system.invalidate_cache()
        _listed[hash(system)] = _asked
    return system, path


def _fetched_folder(name: str, system: Any, path: str) -> Path:
    """The copy of a folder, with all that is in it."""
    files = retried(system, lambda: system.find(path, detail=True))
    version = "\n".join(f"{file} {_version(info)}" for file, info in sorted(files.items()))
    size, bound = sum(info.get("size") or 0 for info in files.values()), tightest(None)
    bound.check(name, size)

    def write(draft: Path) -> None:
        for file, info in files.items():
            own = draft / posixpath.relpath(file, path.rstrip("/"))
            if not own.resolve().is_relative_to(draft.resolve()):
                raise UserError(f"{name} has a file whose name leads out of it: {file}.")
            own.parent.mkdir(parents=True, exist_ok=True)
            retried(system, lambda: download(system, file, own, file, info.get("size"), bound))  # noqa: B023

    return keep_folder(name, version, size, write)


def _version(info: Mapping[str, Any]) -> str:
    """What changes when a file does; of a source that doesn't say, it is this process's."""
    said = {re.sub(r"[^a-z0-9]", "", key.lower()): value for key, value in info.items()}
    known = [f"{key}={said[key]}" for key in _VALIDATORS if said.get(key) is not None]
    return f"{' '.join(known) or _unknown} {info.get('size')}"


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower()


def _inner(url: str) -> str:
    """The path of a URL, in the archive if it is of one."""
    path = url.partition("::")[0].partition("://")[2]
    return re.split(r"[?#]", path)[0] if _scheme(url) in _WEB else path


def _above(url: str) -> str:
    """The folder that a URL is in; of a bucket, a host or an archive itself."""
    head, chained, rest = url.partition("::")
    start, path = f"{head.partition('://')[0]}://", _inner(url).rstrip("/")
    folder, slash, _ = path.rpartition("/")
    return f"{start}{folder if slash or chained else path}{chained}{rest}"


def _slashed(folder: str) -> str:
    return folder if folder.endswith("/") else f"{folder}/"
