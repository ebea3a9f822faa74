"""Tables of rows: CSV, JSONL, Parquet, WebDataset shards, or a saved `datasets.Dataset`."""

import codecs
import difflib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from datasets import Dataset, IterableDataset, load_from_disk
from datasets.features import Audio, Image, Video

from mope.data.frames import frame_rows, label_columns
from mope.data.shards import find_files, is_shard, read_shard
from mope.errors import UserError
from mope.media.cells import BadCell, home_of
from mope.remote import look_anew, path_of

if TYPE_CHECKING:
    import pandas

SPLITS = ("train", "validation", "test")


class Table:
    """Rows by column name, and the folder that paths in them are relative to.

    Row numbers count from 1 and leave out a CSV file's header.

    Args:
        rows: the rows; features of media are read undecoded, so that a broken one is found where it is used.
        folder: what relative paths in the rows are relative to.
        name: how messages call the table.
        numbers: each row's number in the file it came from; by default 1, 2, ...
    """

    def __init__(
        self,
        rows: Dataset,
        folder: Path = Path(),
        name: str = "the table",
        numbers: Sequence[int] | None = None,
    ):
        rows = label_columns(rows.with_format(None))
        for column, feature in rows.features.items():
            if isinstance(feature, Image | Audio | Video):
                rows = rows.cast_column(column, type(feature)(decode=False))
        self.rows, self.folder, self.name = rows, folder, name
        self.numbers = list(numbers) if numbers is not None else list(range(1, len(rows) + 1))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def rows_at(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Rows at these positions, read at once."""
        columns = self.rows[list(indices)]
        return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in order."""
        return list(self.rows.column_names)

    def column(self, name: str) -> list[Any]:
        """All values of a column.

        Raises:
            UserError: there is no such column.
        """
        return list(self.values(name))

    def values(self, name: str) -> Iterator[Any]:
        """A column's values one after another, as `column`."""
        self.require(name)
        yield from self.rows[name]

    def require(self, *names: str) -> None:
        """Make sure that columns exist.

        Raises:
            UserError: naming the first that doesn't, and those that do.
        """
        require(self.name, self.columns, names)

    def select(self, indices: Sequence[int]) -> "Table":
        """The rows at these positions, which keep their numbers."""
        return Table(self.rows.select(indices), self.folder, self.name, [self.numbers[i] for i in indices])

    def split(self, column: str) -> dict[str, "Table"]:
        """Tables by the value of a column that says train, validation or test.

        Raises:
            UserError: the column is missing or says something else.
        """
        values = self.column(column)
        for number, value in zip(self.numbers, values, strict=True):
            if value not in SPLITS:
                raise UserError(
                    f"{self.name}, row {number}: the column '{column}' says {value!r}, "
                    f"not one of {', '.join(SPLITS)}."
                )
        found = {split: [i for i, value in enumerate(values) if value == split] for split in SPLITS}
        return {split: self.select(indices) for split, indices in found.items() if indices}


def require(table: str, columns: Sequence[str], names: Iterable[str]) -> None:
    """Make sure that names are among a table's columns; see `Table.require`."""
    for name in names:
        if name not in columns:
            near = difflib.get_close_matches(name, columns, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(columns)}."
            table = table.replace("the ", "The ", 1) if table.startswith("the ") else table
            raise UserError(f"{table} has no column '{name}': {hint}")


def open_table(
    source: Any, trusted: bool = True, encoding: str | None = None, folder: str | Path | None = None
) -> Table:
    """Read a table: a .csv, .jsonl or .parquet file, .tar shards, a folder of `Dataset.save_to_disk`; or rows
    in memory: a `Dataset`, a pandas or polars frame, a list of mappings.

    Every cell of a CSV file is text. Paths in a file are relative to it, of rows in memory to the current
    folder.

    Args:
        source: which.
        trusted: whether paths may leave the table's folder.
        encoding: of a CSV or JSONL file; None for UTF-8, or UTF-16 where a file is.
        folder: what paths in the rows are relative to, instead.

    Raises:
        UserError: it can't be read as what its name says, or has no rows.
    """
    if isinstance(source, Table):
        return source
    if isinstance(source, IterableDataset):
        raise UserError("Only training rows can be a stream: give a datasets.Dataset for the others.")
    if not isinstance(source, str | Path):
        look_anew()
        found = source if isinstance(source, Dataset) else frame_rows(source)
        rows = found if isinstance(found, Dataset) else dataset_of(found)
        if len(rows) == 0:
            raise UserError("The table has no rows.")
        return Table(rows, home_of(folder or "", trusted))
    files = find_files(source)
    for file in files:
        if not file.exists():
            raise UserError(f"There is no table {file}.")
    file = files[0]
    texts = {".csv": _read_csv, ".jsonl": _read_jsonl}
    suffix = file.suffix.lower()
    if all(map(is_shard, files)):
        rows, own, file = _read_shards(files), file.parent, path_of(source)
    elif len(files) > 1:
        raise UserError(f"{source} names several files, which are a table only if they are .tar shards.")
    elif file.is_dir():
        rows, own = read_folder(file), file
    elif suffix in texts:
        rows, own = texts[suffix](file, read_text(file, encoding)), file.parent
    elif suffix == ".parquet":
        rows, own = _read_parquet(file), file.parent
    else:
        raise UserError(
            f"{file} is no table this library reads: name a .csv, .jsonl or .parquet file, or .tar shards."
        )
    if len(rows) == 0:
        raise UserError(f"{file} has no rows.")
    return Table(rows, home_of(own if folder is None else folder, trusted), str(file))


def read_text(file: Path, encoding: str | None = None) -> str:
    """A text file's content, without a byte order mark.

    Args:
        file: which.
        encoding: None for UTF-8, or for UTF-16 where a mark or every other byte being zero says so.

    Raises:
        UserError: it is in another encoding, with the line where that shows.
    """
    content = file.read_bytes()
    if encoding is None:
        encoding = guess_encoding(content[:2000])
    try:
        return content.decode(encoding or "utf-8-sig").removeprefix("\ufeff")
    except LookupError:
        raise no_encoding(encoding) from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        hint = "" if encoding else "; if it is in another encoding, such as gb18030, set data.encoding"
        raise UserError(
            f"{file}, line {line}: not {error.encoding.upper()} ({error.reason} at byte {error.start}){hint}."
        ) from None


def guess_encoding(head: bytes) -> str | None:
    """UTF-16, where a file's first bytes say so by a mark or by every other one being zero; else None."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if head[1::2].count(0) > len(head) // 4:
        return "utf-16-le"
    return "utf-16-be" if head[::2].count(0) > len(head) // 4 else None


def no_encoding(encoding: str | None) -> UserError:
    """What is said of an encoding that Python doesn't know."""
    return UserError(f"There is no encoding '{encoding}': set data.encoding to one that Python knows.")


def _read_csv(file: Path, text: str) -> Dataset:
    return Dataset.from_pandas(next(csv_frames(file, io.StringIO(text))), preserve_index=False)


def csv_frames(file: Path, text: TextIO, size: int | None = None) -> "Iterator[pandas.DataFrame]":
    """A CSV file's rows, so many at a time or all at once, every cell as text.

    Raises:
        UserError: it isn't CSV, or its header has too few columns.
    """
    import pandas

    try:
        found = pandas.read_csv(text, dtype=str, keep_default_na=False, chunksize=size)
        for frame in [found] if isinstance(found, pandas.DataFrame) else found:
            if not isinstance(frame.index, pandas.RangeIndex):
                raise UserError(
                    f"{file}: rows have more cells than the header has columns; quote cells that hold commas."
                )
            yield frame
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError) as error:
        raise UserError(f"{file} isn't a CSV file: {' '.join(str(error).split())}.") from None


def _read_jsonl(file: Path, text: str) -> Dataset:
    return dataset_of(list(jsonl_rows(file, text.split("\n"))), str(file))


def jsonl_rows(file: Path, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file's lines; blank lines are passed over.

    Raises:
        UserError: a line is no object.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{file}, line {number}: not JSON ({error.msg}).") from None
        if not isinstance(row, dict):
            raise UserError(f'{file}, line {number}: a row must be an object, such as {{"text": "..."}}.')
        yield row


def _read_shards(files: Sequence[Path]) -> Dataset:
    rows = []
    for file in files:
        for sample in read_shard(file):
            try:
                rows.append(sample.read())
            except BadCell as error:
                raise UserError(f"{file}: {error}.") from None
    return dataset_of(rows, str(files[0].parent))


def _read_parquet(file: Path) -> Dataset:
    import pyarrow
    import pyarrow.parquet

    try:
        return Dataset(pyarrow.parquet.read_table(file, memory_map=True))
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{file} isn't a Parquet file: {str(error).splitlines()[0]}") from None


def read_folder(folder: Path) -> Dataset:
    """A dataset that `Dataset.save_to_disk` wrote.

    Raises:
        UserError: the folder holds none, or several.
    """
    try:
        rows = load_from_disk(os.fspath(folder))
    except FileNotFoundError:
        raise UserError(
            f"{folder} is a folder but holds no saved dataset and no .tar shards; name a table file in it."
        ) from None
    if not isinstance(rows, Dataset):
        raise UserError(
            f"{folder} holds several datasets ({', '.join(map(str, rows))}): name the folder of one."
        )
    return rows


class MemoryTable(Table):
    """Rows in memory, as they are: what a request holds needn't become a dataset.

    Args:
        rows: mappings; an image may be a path, bytes or a PIL image.
        folder: what relative paths in the rows are relative to.
        numbers: each row's number in the file it came from; by default 1, 2, ...
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        folder: Path = Path(),
        numbers: Sequence[int] | None = None,
    ):
        self.rows, self.folder, self.name = rows, folder, "the table"  # type: ignore[assignment]
        self.numbers = list(numbers) if numbers is not None else list(range(1, len(rows) + 1))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.rows[index])

    def rows_at(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]

    def select(self, indices: Sequence[int]) -> "MemoryTable":
        return MemoryTable([self.rows[i] for i in indices], self.folder, [self.numbers[i] for i in indices])

    @property
    def columns(self) -> list[str]:
        return [name for name in self.rows[0] if all(name in row for row in self.rows)]

    def values(self, name: str) -> Iterator[Any]:
        self.require(name)
        return (row[name] for row in self.rows)


def dataset_of(rows: Sequence[Mapping[str, Any]], name: str = "the rows") -> Dataset:
    """A dataset from rows as mappings; a key that a row lacks is null there.

    Raises:
        UserError: a column's values are of several types.
    """
    import pyarrow

    names = list(dict.fromkeys(key for row in rows for key in row))
    columns = {}
    for key in names:
        values = _alike([row.get(key) for row in rows])
        try:
            columns[key] = pyarrow.array(values)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
            columns[key] = _mixed(values, key, name)
    return Dataset(pyarrow.table(columns))


def _alike(values: list[Any]) -> list[Any]:
    """Cells of which some name a file and some hold its content, which Arrow would take for one."""
    kinds = {type(value) for value in values}
    if not {str, bytes} <= kinds:
        return values
    return [
        {
            "path": value if isinstance(value, str) else None,
            "bytes": value if isinstance(value, bytes) else None,
        }
        if isinstance(value, str | bytes)
        else value
        for value in values
    ]


def _mixed(values: list[Any], key: str, name: str) -> Any:
    """A column of mixed numbers and texts as text, which is what a CSV file would hold."""
    import pyarrow

    for number, value in enumerate(values, 1):
        if not isinstance(value, str | int | float | bool | None):
            raise UserError(
                f"{name}, row {number}: '{key}' is a {type(value).__name__}, unlike other rows; "
                "a column needs values of one type."
            )
    return pyarrow.array(
        [None if v is None else json.dumps(v) if isinstance(v, bool) else str(v) for v in values]
    )
