"""Tables of rows: CSV, JSONL, Parquet, WebDataset shards, or a saved `datasets.Dataset`."""

import difflib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from datasets.features import Audio, Image, Video

from mope.config import MediaLimits
from mope.data.arrowfiles import UNREADABLE, read_folder, read_parquet
from mope.data.frames import frame_rows, label_columns
from mope.data.shards import find_files, is_shard, read_shard
from mope.data.textfiles import SEPARATORS, CsvFile, jsonl_rows, read_text
from mope.errors import UserError, shown
from mope.files import require_table_file
from mope.media.cells import BadCell, home_of
from mope.remote import look_anew, path_of

SPLITS = ("train", "validation", "test")
READ = (*SEPARATORS, ".jsonl", ".parquet")
"""Endings of files that are tables; shards are beside them."""

_TOGETHER = 20_000  # rows of a CSV file that are held as text before they are packed
_AT_ONCE = 100  # cells of a column; by the row it takes ten times as long, and many pictures take memory
_MOST_NAMED = 12  # columns that a message names


class Table:
    """Rows by column name, and the folder that paths in them are relative to.

    Row numbers count from 1 and leave out a CSV file's header.

    Args:
        rows: the rows; features of media are read undecoded, so that a broken one is found where it is used.
        folder: what relative paths in the rows are relative to.
        name: how messages call the table.
        numbers: each row's number in the file it came from; by default 1, 2, ...

    Attributes:
        note: a sentence on how its file was read, where that isn't as its name says.
    """

    note: str | None = None

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
        self.numbers: Sequence[int] = list(numbers) if numbers is not None else range(1, len(rows) + 1)

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
        cells = self.rows[name]
        for start in range(0, len(self), _AT_ONCE):
            yield from cells[start : start + _AT_ONCE]

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
                    f"{self.name}, row {number}: the column '{column}' says '{shown(value)}', "
                    f"not one of {', '.join(SPLITS)}."
                )
        found = {split: [i for i, value in enumerate(values) if value == split] for split in SPLITS}
        return {split: self.select(indices) for split, indices in found.items() if indices}


def require(table: str, columns: Sequence[str], names: Iterable[str]) -> None:
    """Make sure that names are among a table's columns; see `Table.require`."""
    for name in names:
        if name not in columns:
            near = difflib.get_close_matches(name, columns, n=1)
            some = ", ".join(shown(column, 20) for column in columns[:_MOST_NAMED])
            more = ", ..." if len(columns) > _MOST_NAMED else ""
            hint = f"did you mean '{shown(near[0])}'?" if near else f"it has {some}{more}."
            table = table.replace("the ", "The ", 1) if table.startswith("the ") else table
            raise UserError(f"{table} has no column '{shown(name)}': {hint}")


def open_table(
    source: Any,
    trusted: bool = True,
    encoding: str | None = None,
    folder: str | Path | None = None,
    limits: MediaLimits | None = None,
) -> Table:
    """Read a table: a .csv, .tsv, .jsonl or .parquet file, .tar shards, a folder of `Dataset.save_to_disk`;
    or rows in memory: a `Dataset`, a pandas or polars frame, a list of mappings.

    Every cell of a CSV file is text. Paths in a file are relative to it, of rows in memory to the current
    folder.

    Args:
        source: which.
        trusted: whether paths may leave the table's folder, and media be of any size and format.
        encoding: of a CSV or JSONL file; None for UTF-8, or UTF-16 where a file is.
        folder: what paths in the rows are relative to, instead.
        limits: of the media of a table that isn't trusted; None for the usual ones.

    Raises:
        UserError: it can't be read as what its name says, or has no rows.
    """
    if isinstance(source, Table):
        return source
    if isinstance(source, IterableDataset):
        raise UserError("Only training rows can be a stream: give a datasets.Dataset for the others.")
    note = None
    if not isinstance(source, str | Path):
        look_anew()
        found = source if isinstance(source, Dataset) else frame_rows(source)
        rows, name = found if isinstance(found, Dataset) else dataset_of(found), "the table"
        if len(rows) == 0:
            raise UserError("The table has no rows.")
        own = Path()
    else:
        rows, own, name, note = _read(source, encoding)
    table = Table(rows, home_of(own if folder is None else folder, trusted, limits), name)
    table.note = note
    return table


def _read(source: str | Path, encoding: str | None) -> tuple[Dataset, Path, str, str | None]:
    """A file's rows, its folder, what messages call it, and a note on how it was read."""
    files = find_files(source)
    for file in files:
        require_table_file(file)
    file, note = files[0], None
    suffix = file.suffix.lower()
    if all(map(is_shard, files)):
        rows, own, file = _read_shards(files), file.parent, path_of(source)
    elif len(files) > 1:
        raise UserError(f"{source} names several files, which are a table only if they are .tar shards.")
    elif file.is_dir():
        rows, own = read_folder(file), file
    elif suffix in SEPARATORS:
        found = CsvFile(file, io.StringIO(read_text(file, encoding), newline=""))
        rows, own, note = _packed(found), file.parent, found.note
    elif suffix == ".jsonl":
        lines = io.StringIO(read_text(file, encoding), newline="")
        rows, own = dataset_of(list(jsonl_rows(file, lines)), str(file)), file.parent
    elif suffix == ".parquet":
        rows, own = read_parquet(file), file.parent
    else:
        raise no_table(file)
    if len(rows) == 0:
        raise UserError(f"{file} has no rows.")
    return rows, own, str(file), note


def no_table(file: Path) -> UserError:
    """What is said of a file that is of no kind that is read."""
    return UserError(
        f"{file} is no table this library reads: name a .csv, .tsv, .jsonl or .parquet file, or .tar shards."
    )


def _packed(file: CsvFile) -> Dataset:
    import pyarrow

    schema = pyarrow.schema([(name, pyarrow.string()) for name in file.columns])
    rows, parts = iter(file), []
    while some := list(islice(rows, _TOGETHER)):
        cells = [pyarrow.array(column, pyarrow.string()) for column in zip(*some, strict=True)]
        parts.append(pyarrow.Table.from_arrays(cells, schema=schema))
    return Dataset(pyarrow.concat_tables(parts) if parts else schema.empty_table())


def _read_shards(files: Sequence[Path]) -> Dataset:
    rows = []
    for file in files:
        for sample in read_shard(file):
            try:
                rows.append(sample.read())
            except BadCell as error:
                raise UserError(f"{file}: {error}.") from None
    return dataset_of(rows, str(files[0].parent))


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
            columns[key] = _column(values, key, name)
        except UnicodeEncodeError:
            raise _halved(values, key, name) from None
    try:
        return Dataset(pyarrow.table(columns))
    except (pyarrow.ArrowException, *UNREADABLE) as error:
        raise UserError(f"{name}: cells hold what no table can: {shown(str(error), 100)}.") from None


def _column(values: list[Any], key: str, name: str) -> Any:
    import pyarrow

    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError):
        return _mixed(values, key, name)


def _halved(values: list[Any], key: str, name: str) -> UserError:
    """What is said of a text with half of a pair of surrogates, which no encoding has."""

    def whole(value: Any) -> bool:
        text = json.dumps(value, ensure_ascii=False, default=str)
        return text.encode(errors="replace").decode() == text

    number, value = next((place, one) for place, one in enumerate(values, 1) if not whole(one))
    return UserError(
        f"{name}, row {number}: '{shown(key)}' has half a character, '{shown(value)}': write the whole one."
    )


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
                f"{name}, row {number}: '{shown(key)}' is a {type(value).__name__}, unlike other rows; "
                "a column needs values of one type."
            )
    return pyarrow.array(
        [None if v is None else json.dumps(v) if isinstance(v, bool) else str(v) for v in values]
    )


def evenly(rows: int, count: int) -> list[int]:
    """Places of so many rows, or of all if there are fewer, evenly spread."""
    count = min(count, rows)
    return [place * rows // count for place in range(count)]
