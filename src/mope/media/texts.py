"""Texts: from a cell to what a tokenizer takes."""

import re
from pathlib import Path
from typing import Any

from mope.media.cells import BadCell, is_missing
from mope.media.values import value_text

# No text has them by intention, and no tokenizer needs them: C0 but tab and line ends, C1 but next line (what
# Windows-1252 holds when it is read as Latin-1), and lone halves of pairs, which can't be encoded.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")


def open_text(cell: Any, folder: Path) -> str:
    """A text cell without control characters.

    Raises:
        BadCell: it is no text, or nothing is left of it.
    """
    if is_missing(cell):
        raise BadCell("empty text")
    if isinstance(cell, int | float):
        cell = value_text(cell)  # as a CSV file would have it
    if not isinstance(cell, str):
        raise BadCell(f"wrong type: {type(cell).__name__} where text is expected")
    text = _CONTROL.sub("", cell)
    if not text.strip():
        raise BadCell("empty text: it has nothing but control characters")
    return text


def has_controls(text: str) -> bool:
    """Whether `open_text` takes characters out of a text."""
    return _CONTROL.search(text) is not None
