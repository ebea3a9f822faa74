"""What every cell is, whatever it holds: missing, a file, bytes; or why it can't be used."""

import io
import math
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mope.config import MediaLimits
from mope.errors import shown
from mope.files import FILE, what_is
from mope.remote import Bound, NotThere, RemotePath, fetch_all, is_url, path_of


class BadCell(ValueError):
    """A cell that can't be used; the message says why."""


class Cells(dict[str, Any]):
    """The cells of a row that are one input, by column."""


class UntrustedFolder(type(Path())):
    """The folder of a table from somebody else, whose paths may name nothing outside it.

    Attributes:
        limits: how large its media may be.
    """

    limits = MediaLimits()

    def __reduce__(self) -> tuple[Any, ...]:
        return home_of, (Path(self), False, self.limits)


class UntrustedRemoteFolder(RemotePath, UntrustedFolder):
    """The same of one that is elsewhere."""

    def __reduce__(self) -> tuple[Any, ...]:
        return home_of, (RemotePath(self.url, self.below), False, self.limits)


def home_of(folder: str | Path, trusted: bool = True, limits: MediaLimits | None = None) -> Path:
    """What paths in a table are relative to.

    Args:
        folder: a folder, which may be a URL's.
        trusted: whether they may leave it, and media be of any size and format.
        limits: of the media of a table that isn't trusted; None for the usual ones.
    """
    home = path_of(folder)
    if trusted:
        return home
    if isinstance(home, RemotePath):
        found: UntrustedFolder = UntrustedRemoteFolder(home.url, home.below)
    else:
        found = UntrustedFolder(home)
    if limits is not None:
        found.limits = limits
    return found


def is_missing(cell: Any) -> bool:
    """Whether a cell holds nothing: null, NaN, an empty or blank text, no bytes and no path."""
    if isinstance(cell, Cells):
        return all(map(is_missing, cell.values()))
    if isinstance(cell, dict):
        return not (cell.get("bytes") or cell.get("path"))
    if isinstance(cell, float):
        return math.isnan(cell)
    return cell is None or (isinstance(cell, str | bytes) and not cell.strip())


def source_of(cell: Any, folder: Path, kind: str) -> Path | io.BytesIO:
    """The file or the bytes that a cell names or holds.

    Raises:
        BadCell: it does neither, or there is no such file.
    """
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if is_missing(cell):
        raise BadCell(f"no {kind}: the cell is empty")
    if isinstance(cell, Path):
        cell = str(cell)
    if isinstance(cell, bytes):
        return io.BytesIO(cell)
    if not isinstance(cell, str):
        raise BadCell(f"wrong type: {type(cell).__name__} where {_an(kind)} is expected")
    file = file_of(cell, folder)
    try:
        file = file.local() if isinstance(file, RemotePath) else file
    except NotThere as error:
        raise BadCell(shown(str(error).rstrip(".").replace("There is", "there is"), 200)) from None
    try:
        found = what_is(file)
        empty = found == FILE and file.stat().st_size == 0
    except OSError:  # a name that no file can have, or a folder that may not be looked into
        found, empty = None, False
    if found is None:
        raise BadCell(f"missing file {shown(cell)}")
    if found != FILE:
        raise BadCell(f"{found}, not a file: {shown(cell)}")
    if empty:
        raise BadCell(f"broken {kind}: the file is empty")
    return file


def fetch(cells: Iterable[Any], folder: Path) -> None:
    """Fetch the files elsewhere that cells name, several at a time; cells that can't be used are passed over.

    Raises:
        UserError: a storage can't be reached.
    """
    fetch_all(files_elsewhere(cells, folder))


def files_elsewhere(cells: Iterable[Any], folder: Path) -> list[RemotePath]:
    """The files elsewhere that cells name; cells that can't be used are passed over."""
    files = []
    for cell in cells:
        name = (None if cell.get("bytes") else cell.get("path")) if isinstance(cell, dict) else cell
        if isinstance(name, str) and (isinstance(folder, RemotePath) or is_url(name)):
            with suppress(BadCell):
                files.append(file_of(name, folder))
    return [file for file in files if isinstance(file, RemotePath)]


def file_of(cell: str, folder: Path) -> Path:
    """The file that a cell names, which may be elsewhere.

    Raises:
        BadCell: its table is somebody else's, and it is outside the folder.
    """
    if isinstance(folder, UntrustedFolder):
        return _inside(cell, folder)
    return path_of(cell) if is_url(cell) else folder / cell


def _inside(cell: str, folder: UntrustedFolder) -> Path:
    """The file that an untrusted cell names.

    Raises:
        BadCell: it is outside the folder, also by way of a link.
    """
    if "\0" in cell or is_url(cell) or Path(cell).is_absolute() or ".." in Path(cell).parts:
        raise BadCell(f"a path that leaves the table's folder: {shown(cell)}")
    if isinstance(folder, RemotePath):
        found = folder / cell
        if isinstance(found, RemotePath):
            found.bound = Bound(folder.limits.bytes, "--max-megabytes (data.limits.megabytes)")
        return found
    file = Path(folder) / cell
    try:
        inside = file.resolve().is_relative_to(Path(folder).resolve())
    except (OSError, RuntimeError, ValueError):  # links that lead to each other, or a name that none can have
        raise BadCell(f"missing file {shown(cell)}") from None
    if not inside:
        raise BadCell(f"a path that leaves the table's folder: {shown(cell)}")
    return file


def _an(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
