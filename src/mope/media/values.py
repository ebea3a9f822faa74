"""Numbers, categories and dates: from a cell to what a table's encoder is made of.

Cells of CSV files are text, those of other tables have types; both give the same.
"""

import math
import re
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy

from mope.media.cells import BadCell

_NOTHING = frozenset({"na", "n/a", "nan", "nat", "none", "null", "<na>", "#n/a"})
"""Words for a number, a date or a category that isn't there."""

_WHOLE = re.compile(r"[+-]?\d+\.0+")
_EPOCH = datetime(1970, 1, 1)


def is_nothing(cell: Any) -> bool:
    """Whether a cell says that there is no value: empty, or a word for that."""
    if isinstance(cell, str):
        return not cell.strip() or cell.strip().lower() in _NOTHING
    return cell is None or (isinstance(cell, float | datetime | numpy.generic) and cell != cell)


def value_text(value: Any) -> str:
    """A value as text, the same for 3, 3.0 and "3", for True and "true"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def open_category(cell: Any, folder: Path | None = None) -> str | None:
    """A category's name; None for a missing one. CSV's `True` and `3.0` are true and 3.

    Raises:
        BadCell: it is no single value.
    """
    if is_nothing(cell):
        return None
    if hasattr(cell, "item") and getattr(cell, "ndim", None) == 0:  # a scalar of NumPy's or torch's
        cell = cell.item()
    if not isinstance(cell, str | int | float | date | clock | timedelta | Decimal):
        raise BadCell(f"wrong type: {type(cell).__name__} where a category is expected")
    text = value_text(cell)
    if text in ("True", "False"):
        return text.lower()
    if not _WHOLE.fullmatch(text):
        return text
    digits = text.partition(".")[0].lstrip("+-").lstrip("0") or "0"
    return f"-{digits}" if text.startswith("-") and digits != "0" else digits


def open_number(cell: Any, folder: Path | None = None) -> float | None:
    """A number; None for a missing one.

    Raises:
        BadCell: it is none, or isn't finite.
    """
    if is_nothing(cell):
        return None
    try:
        number = float(cell)
    except (TypeError, ValueError, OverflowError):
        shown = repr(cell) if len(repr(cell)) <= 50 else f"{repr(cell)[:50]}..."
        raise BadCell(f"no number: {shown}") from None
    if not math.isfinite(number):
        raise BadCell(f"not finite: {number}")
    return number


def open_date(cell: Any, folder: Path | None = None) -> float | None:
    """A date or time, in days since 1970; None for a missing one. One without a zone is taken as UTC.

    Raises:
        BadCell: it is none.
    """
    if is_nothing(cell):
        return None
    if hasattr(cell, "astype"):  # NumPy's
        cell = cell.astype("datetime64[us]").item()
    if isinstance(cell, str):
        try:
            cell = datetime.fromisoformat(cell.strip().replace("/", "-"))
        except ValueError:
            shown = cell if len(cell) <= 50 else f"{cell[:50]}..."
            raise BadCell(f"no date as 2026-11-26 or 2026-11-26T12:30: {shown!r}") from None
    if isinstance(cell, datetime):
        try:
            moment = cell.astimezone(UTC).replace(tzinfo=None) if cell.tzinfo is not None else cell
        except (OverflowError, ValueError):
            raise BadCell(f"no date that can be told in UTC: {cell}") from None
    elif isinstance(cell, date):
        moment = datetime(cell.year, cell.month, cell.day)
    else:
        raise BadCell(f"wrong type: {type(cell).__name__} where a date is expected")
    return (moment - _EPOCH).total_seconds() / 86400


def open_value(cell: Any, folder: Path | None = None) -> Any:
    """A cell of a column whose kind isn't known yet."""
    return None if is_nothing(cell) else cell


VALUES = {"number": open_number, "category": open_category, "date": open_date, "value": open_value}
"""What opens a cell of a table input, by what its column holds."""
