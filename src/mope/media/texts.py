"""Texts: from a cell to what a tokenizer takes."""

import re
from pathlib import Path
from typing import Any

from mope.media.cells import BadCell, is_missing

# Characters that no text has by intention: C0 and C1 but tab and line ends, and lone halves of pairs.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")


def open_text(cell: Any, folder: Path) -> str:
    """A text cell as it is.

    Raises:
        BadCell: it is empty or no text.
    """
    if is_missing(cell):
        raise BadCell("empty text")
    if not isinstance(cell, str):
        raise BadCell(f"wrong type: {type(cell).__name__} where text is expected")
    if found := _CONTROL.search(cell):
        raise BadCell(f"control character U+{ord(found[0]):04X} at position {found.start() + 1}")
    return cell
