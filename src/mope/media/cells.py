"""What every cell is, whatever it holds: missing, a file, bytes; or why it can't be used."""

import io
import math
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mope.remote import NotThere, RemotePath, fetch_all, is_url, path_of


class BadCell(ValueError):
    """A cell that can't be used; the message says why."""


class Cells(dict[str, Any]):
    """The cells of a row that are one input, by column."""


class UntrustedFolder(type(Path())):
    """The folder of a table from somebody else, whose paths may name nothing outside it."""


class UntrustedRemoteFolder(RemotePath, UntrustedFolder):
    """The same of one that is elsewhere."""


def home_of(folder: str | Path, trusted: bool = True) -> Path:
    """What paths in a table are relative to.

    Args:
        folder: a folder, which may be a URL's.
        trusted: whether they may leave it.
    """
    home = path_of(folder)
    if trusted:
        return home
    return (
        UntrustedRemoteFolder(home.url, home.below) if isinstance(home, RemotePath) else UntrustedFolder(home)
    )


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
        raise BadCell(str(error).rstrip(".").replace("There is", "there is")) from None
    try:
        there = file.is_file()
    except (OSError, ValueError):  # a name that no file can have
        there = False
    if not there:
        raise BadCell(f"missing file {cell!r}" if not cell.isprintable() else f"missing file {cell}")
    if file.stat().st_size == 0:
        raise BadCell(f"broken {kind}: the file is empty")
    return file


def fetch(cells: Iterable[Any], folder: Path) -> None:
    """Fetch the files elsewhere that cells name, several at a time; cells that can't be used are passed over.

    Raises:
        UserError: a storage can't be reached.
    """
    files = []
    for cell in cells:
        name = (None if cell.get("bytes") else cell.get("path")) if isinstance(cell, dict) else cell
        if isinstance(name, str) and (isinstance(folder, RemotePath) or is_url(name)):
            with suppress(BadCell):
                files.append(file_of(name, folder))
    fetch_all(file for file in files if isinstance(file, RemotePath))


def file_of(cell: str, folder: Path) -> Path:
    """The file that a cell names, which may be elsewhere.

    Raises:
        BadCell: its table is somebody else's, and it is outside the folder.
    """
    if isinstance(folder, UntrustedFolder):
        return _inside(cell, folder)
    return path_of(cell) if is_url(cell) else folder / cell


def _inside(cell: str, folder: Path) -> Path:
    """The file that an untrusted cell names.

    Raises:
        BadCell: it is outside the folder, also by way of a link.
    """
    if "\0" in cell or is_url(cell) or Path(cell).is_absolute() or ".." in Path(cell).parts:
        raise BadCell(f"a path that leaves the table's folder: {cell!r}")
    if isinstance(folder, RemotePath):
        return folder / cell
    file = Path(folder) / cell
    if not file.resolve().is_relative_to(Path(folder).resolve()):
        raise BadCell(f"a path that leaves the table's folder: {cell!r}")
    return file


def _an(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
