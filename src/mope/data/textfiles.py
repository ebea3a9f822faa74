"""CSV and JSONL files: what they are written in, what separates their cells, and where they are broken."""

import codecs
import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from mope.errors import UserError, shown
from mope.files import parse_json

SEPARATORS = {".csv": ",", ".tsv": "\t"}
"""What separates cells, by the ending of a file's name."""

_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs"}
_LONGEST = 2**27  # characters of a cell; a quote that is never closed makes a cell of all that follows it
_FOREIGN = {
    b"PK\x03\x04": "a ZIP or Excel file",
    b"\x1f\x8b": "a gzip file",
    b"PAR1": "a Parquet file",
    b"\xd0\xcf\x11\xe0": "an Excel file",
    b"SQLite format 3\0": "an SQLite file",
    b"%PDF-": "a PDF file",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
}
"""Files that are easily named as a table of text, by their first bytes."""


def read_text(file: Path, encoding: str | None = None) -> str:
    """A text file's content, without a byte order mark.

    Args:
        file: which.
        encoding: None for UTF-8, or for UTF-16 where a mark or every other byte being zero says so.

    Raises:
        UserError: it can't be read, or is in another encoding, with the line where that shows.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise _unreadable(file, error) from None
    found = _known(encoding) or _guess(file, content[:2000])
    try:
        return content.decode(found or "utf-8-sig").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        hint = "" if found else "; if it is in another encoding, such as gb18030, set data.encoding"
        raise UserError(
            f"{file}, line {line}: not {error.encoding.upper()} ({error.reason} at byte {error.start}){hint}."
        ) from None
    except UnicodeError as error:
        raise UserError(f"{file} isn't in {encoding} ({shown(str(error))}): set data.encoding.") from None


@contextmanager
def open_text_file(file: Path, encoding: str | None) -> Iterator[TextIO]:
    """A text file to read line by line, with its line ends as they stand; see `read_text`."""
    try:
        if _known(encoding) is None:
            with file.open("rb") as content:
                encoding = _guess(file, content.read(2000))
        with file.open(encoding=encoding or "utf-8-sig", newline="") as text:
            yield text
    except OSError as error:
        raise _unreadable(file, error) from None
    except UnicodeError as error:
        name = error.encoding.upper() if isinstance(error, UnicodeDecodeError) else encoding
        reason = error.reason if isinstance(error, UnicodeDecodeError) else shown(str(error))
        raise UserError(f"{file} isn't in {name} ({reason}): set data.encoding to what it is in.") from None


def _unreadable(file: Path, error: OSError) -> UserError:
    return UserError(f"Can't read {file}: {error.strerror or shown(str(error))}.")


def _known(encoding: str | None) -> str | None:
    """The encoding, once it is known to be one of text.

    Raises:
        UserError: it isn't.
    """
    try:
        b"x".decode(encoding or "utf-8")
    except UnicodeError:
        return encoding
    except (LookupError, ValueError):
        raise UserError(
            f"There is no encoding '{shown(str(encoding))}': set data.encoding to one that Python knows."
        ) from None
    return encoding or None


def _guess(file: Path, head: bytes) -> str | None:
    """UTF-16, where a file's first bytes say so by a mark or by every other one being zero; else None.

    Raises:
        UserError: they say that it is no text at all.
    """
    for start, what in _FOREIGN.items():
        if head.startswith(start):
            raise UserError(f"{file} is {what}, not the text that its name says: rename or convert it.")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    even, odd, some = head[::2].count(0), head[1::2].count(0), len(head) // 4
    if odd > some >= even:
        return "utf-16-le"
    return "utf-16-be" if even > some >= odd else None


class CsvFile:
    """A CSV or TSV file: iterating gives its rows, every cell as text; blank lines are passed over.

    Args:
        file: which; the ending of its name says what separates its cells, unless its first lines clearly say
            something else.
        text: its content, with its line ends as they stand.

    Attributes:
        columns: their names, from the header; one without a name is `Unnamed: 0` by its place.
        note: a sentence on what separates its cells, where its name says something else.

    Raises:
        UserError: it has no header, or one that names a column twice; while iterating: a row isn't whole.
    """

    def __init__(self, file: Path, text: Iterable[str]):
        self.file = file
        csv.field_size_limit(max(csv.field_size_limit(), _LONGEST))  # Python's own bound is 131,072
        lines = _whole_lines(file, text)
        own = SEPARATORS.get(file.suffix.lower(), ",")
        skipped, separator, lines = _said_separator(lines)
        if separator is None:
            first = list(islice(lines, 20))
            separator, lines = _separator(file, first, own), chain(first, lines)
        self.note = None
        if separator != own:
            name = _NAMES.get(separator, f"'{separator}'")
            self.note = f"{file}: its cells are separated by {name}, and are read so."
        self._reader, self._skipped = csv.reader(lines, delimiter=separator, strict=True), skipped
        self._records = self._read()
        line, names = next(self._records, (1, None))
        if names is None:
            raise UserError(f"{file} isn't a CSV file: it is empty, without a header.")
        self.columns = [name if name.strip() else f"Unnamed: {place}" for place, name in enumerate(names)]
        require_distinct(f"{file}, line {line}", self.columns)

    def __iter__(self) -> Iterator[list[str]]:
        count = len(self.columns)
        for line, cells in self._records:
            if len(cells) == count:
                yield cells
            elif len(cells) > count:
                raise UserError(
                    f"{self.file}, line {line}: {len(cells)} cells, more cells than the header has columns "
                    f"({count}); quote cells that hold commas."
                )
            elif len(cells) > 1 or cells[0].strip():
                raise UserError(
                    f"{self.file}, line {line}: {len(cells)} of {count} cells; the row is cut off, or a "
                    "quote before it is missing."
                )

    def _read(self) -> Iterator[tuple[int, list[str]]]:
        """Each record that isn't an empty line, and the line where it begins."""
        while True:
            line = self._skipped + self._reader.line_num + 1
            try:
                cells = next(self._reader, None)
            except csv.Error as error:
                raise UserError(f"{self.file}, line {line}: not CSV; {_why(error)}.") from None
            if cells is None:
                return
            if cells:
                yield line, cells


def _why(error: csv.Error) -> str:
    reason = str(error)
    if "unexpected end" in reason:
        return "a quote is opened here and never closed"
    if "field limit" in reason:
        return "a cell is longer than any text, so a quote may be opened here and never closed"
    if "expected after" in reason:
        return "a quoted cell goes on after its closing quote; a quote inside a cell is written twice"
    return shown(reason)


def _whole_lines(file: Path, lines: Iterable[str]) -> Iterator[str]:
    """Lines as they are.

    Raises:
        UserError: one holds zeros, which no text does.
    """
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise UserError(
                f"{file}, line {number}: there are NUL bytes, so the file is damaged or no text: write it "
                "anew."
            )
        yield line


def _said_separator(lines: Iterator[str]) -> tuple[int, str | None, Iterator[str]]:
    """What a first line `sep=;`, as Excel takes it, says: lines that are skipped, the separator, the rest."""
    first = next(lines, "")
    said = first.rstrip("\r\n")
    if len(said) == 5 and said.lower().startswith("sep=") and not said[4].isalnum() and said[4] != '"':
        return 1, said[4], lines
    return 0, None, chain([first] if first else [], lines)


def _separator(file: Path, lines: Sequence[str], own: str) -> str:
    """What separates cells: what the name says, unless that finds one column, and another finds several in
    the header and as many in the row below it.

    Raises:
        UserError: the header looks so, and the row below it doesn't.
    """
    header = _split(lines, own)
    if not header or len(header[0]) != 1:
        return own
    for other in _NAMES:
        found = _split(lines, other)
        names = [name.strip() for name in found[0]] if found else []
        if len(names) > 1 and all(names) and len(set(names)) == len(names):
            if len(found) == 1 or len(found[1]) == len(names):
                return other
            raise UserError(
                f"{file} has one column, '{shown(header[0][0])}', with {_NAMES[other]} in its name, and "
                f"other rows below it: write {_NAMES[own]} between the cells."
            )
    return own


def _split(lines: Sequence[str], separator: str) -> list[list[str]]:
    """The first two records that aren't empty, however wrong."""
    try:
        return list(islice((cells for cells in csv.reader(lines, delimiter=separator) if cells), 2))
    except csv.Error:
        return []


def require_distinct(where: str, names: Sequence[str]) -> None:
    """Make sure that columns are called differently.

    Raises:
        UserError: two aren't.
    """
    known: set[str] = set()
    for name in names:
        if name in known:
            raise UserError(f"{where}: two columns are named '{shown(name)}': rename one.")
        known.add(name)


def jsonl_rows(file: Path, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file's lines; blank lines are passed over.

    Raises:
        UserError: a line is no object.
    """
    for number, line in enumerate(_whole_lines(file, lines), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise UserError(f"{file}, line {number}: {error}.") from None
        if not isinstance(row, dict):
            raise UserError(f'{file}, line {number}: a row must be an object, such as {{"text": "..."}}.')
        yield row
