"""What every cell is, whatever it holds: missing, a file, bytes; or why it can't be used."""

import io
import math
from pathlib import Path
from typing import Any


class BadCell(ValueError):
    """A cell that can't be used; the message says why."""


class Cells(dict[str, Any]):
    """The cells of a row that are one input, by column."""


class UntrustedFolder(type(Path())):
    """The folder of a table from somebody else, whose paths may name nothing outside it."""


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
    file = _inside(cell, folder) if isinstance(folder, UntrustedFolder) else folder / cell
    try:
        there = file.is_file()
    except (OSError, ValueError):  # a name that no file can have
        there = False
    if not there:
        raise BadCell(f"missing file {cell!r}" if not cell.isprintable() else f"missing file {cell}")
    if file.stat().st_size == 0:
        raise BadCell(f"broken {kind}: the file is empty")
    return file


def _inside(cell: str, folder: Path) -> Path:
    """The file that an untrusted cell names.

    Raises:
        BadCell: it is outside the folder, also by way of a link.
    """
    if "\0" in cell or Path(cell).is_absolute() or ".." in Path(cell).parts:
        raise BadCell(f"a path that leaves the table's folder: {cell!r}")
    file = Path(folder) / cell
    if not file.resolve().is_relative_to(Path(folder).resolve()):
        raise BadCell(f"a path that leaves the table's folder: {cell!r}")
    return file


def _an(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
