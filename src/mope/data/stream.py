"""Rows as a stream: read one after another, never all held and never checked beforehand."""

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import datasets
from datasets import Value

from mope.config import Config, MediaLimits
from mope.data.arrowfiles import parquet_features, parquet_length, parquet_rows, read_folder
from mope.data.frames import label_of, name_of, named_feature
from mope.data.shards import find_files, is_shard, read_shard
from mope.data.table import READ, Table, no_table, require
from mope.data.textfiles import SEPARATORS, CsvFile, jsonl_rows, open_text_file
from mope.errors import UserError
from mope.files import require_table_file
from mope.media.cells import BadCell, home_of

_LOOKED_AT = 100  # rows that say which columns there are

Part = Path | Table | datasets.IterableDataset


@dataclass(frozen=True)
class Item:
    """A row of a stream that is still to be read.

    Attributes:
        where: what messages call it.
        folder: what relative paths in it are relative to.
        read: gives the row's cells by column, of the named columns at least, or of all for None, or raises a
            BadCell. Another process can call it.
        number: the row's in the file it came from, where that isn't its place in the stream.
    """

    where: str
    folder: Path
    read: Callable[[Collection[str] | None], dict[str, Any]]
    number: int | None = None

    def opened(self, columns: Collection[str] | None) -> "Item":
        """The same with its cells already read; as it is, where they can't be."""
        try:
            row = self.read(columns)
        except BadCell:
            return self
        return replace(self, read=partial(_given, row))


class Stream:
    """Rows that are read one after another, as often as wanted.

    Args:
        source: a file, a folder or a pattern of files (see `find_files`), a dataset, or a table.
        trusted: whether paths in rows may leave their file's folder, and media be of any size and format.
        encoding: of CSV and JSONL files; None for UTF-8, or UTF-16 where a file is.
        folder: what paths in rows are relative to; None for their file's folder.
        limits: of the media of rows that aren't trusted; None for the usual ones.

    Raises:
        UserError: there is no such file, or it is of no kind that is read.
    """

    def __init__(
        self,
        source: str | Path | Table | datasets.Dataset | datasets.IterableDataset,
        trusted: bool = True,
        encoding: str | None = None,
        folder: str | Path | None = None,
        limits: MediaLimits | None = None,
    ):
        self.trusted, self.encoding, self.home, self.limits = trusted, encoding, folder, limits
        self.parts: Sequence[Part]
        if isinstance(source, datasets.IterableDataset):
            rows = source.with_format(None)
            self.parts, self.name = [rows.decode(False) if rows.features else rows], "the stream"
        elif isinstance(source, datasets.Dataset):
            self.parts, self.name = [Table(source)], "the stream"
        elif isinstance(source, Table):
            self.parts, self.name = [source], source.name
        else:
            self.parts, self.name = [_open(file) for file in find_files(source)], str(source)

    @property
    def length(self) -> int | None:
        """How many rows it has, where that is known without reading them: of Parquet and of datasets."""
        lengths = [_length(part) for part in self.parts]
        return None if None in lengths else sum(length or 0 for length in lengths)

    @property
    def note(self) -> str | None:
        """A sentence on how its first file is read, where that isn't as its name says; see `Table.note`."""
        first = self.parts[0]
        if isinstance(first, Table):
            return first.note
        if not isinstance(first, Path) or first.suffix.lower() not in SEPARATORS:
            return None
        with open_text_file(first, self.encoding) as text:
            return CsvFile(first, text).note

    @property
    def columns(self) -> list[str]:
        """Names of the columns that the first hundred rows have."""
        return list(self._seen)

    @cached_property
    def _seen(self) -> dict[str, bool]:
        """The columns of the first hundred rows, and whether one of their cells is bytes."""
        found: dict[str, bool] = {}
        for item in islice(self.items(), _LOOKED_AT):
            try:
                row = item.read(None)
            except BadCell:
                continue
            found |= {name: isinstance(cell, bytes) or found.get(name, False) for name, cell in row.items()}
        return found

    @cached_property
    def types(self) -> dict[str, Any]:
        """What each column holds, as a feature of a dataset; None where only its cells say, as in JSONL."""
        found = [_types(part, self._seen) for part in self.parts]
        types = {name: found[0].get(name) for name in self.columns}
        return {n: kind if all(one.get(n) == kind for one in found) else None for n, kind in types.items()}

    def require(self, *names: str) -> None:
        """Make sure that there are rows, and columns; see `Table.require`."""
        if next(self.items(), None) is None:
            raise UserError(f"{self.name} has no rows.")
        require(self.name, self.columns, names)

    def items(self, order: random.Random | None = None, held: int = 1) -> Iterator[Item]:
        """All rows once.

        Args:
            order: shuffles the files, and the rows among those that are held; None for their own order.
            held: how many rows are.
        """
        if order is None:
            for part in self.parts:
                yield from self._items(part)
            return
        parts = list(self.parts)
        order.shuffle(parts)
        buffer: list[Item] = []
        for part in parts:
            if isinstance(part, datasets.IterableDataset):
                part = part.shuffle(seed=order.randrange(2**32), buffer_size=1)  # of its shards alone
            for item in self._items(part):
                if len(buffer) < held:
                    buffer.append(item)
                else:
                    place = order.randrange(held)
                    yield buffer[place]
                    buffer[place] = item
        order.shuffle(buffer)
        yield from buffer

    def _items(self, part: Part) -> Iterator[Item]:
        if isinstance(part, Path) and is_shard(part):
            folder = self._folder(part.parent)
            for sample in read_shard(part):
                yield Item(str(sample), folder, sample.read)
            return
        if isinstance(part, Path):
            name, folder = str(part), self._folder(part.parent)
        else:
            name, folder = self.name, self._folder(part.folder if isinstance(part, Table) else Path())
        numbers = part.numbers if isinstance(part, Table) else count(1)
        for number, row in zip(numbers, self._rows(part), strict=False):
            own = number if isinstance(part, Table) else None
            yield Item(f"{name}, row {number}", folder, partial(_given, row), own)

    def _folder(self, folder: Path) -> Path:
        return home_of(folder if self.home is None else self.home, self.trusted, self.limits)

    def _rows(self, part: Part) -> Iterator[dict[str, Any]]:
        """The rows of a part that isn't a shard."""
        if isinstance(part, Table):
            for start in range(0, len(part), 256):
                yield from part.rows_at(range(start, min(start + 256, len(part))))
        elif isinstance(part, datasets.IterableDataset):
            # By batches, for a worker would be given only some of the shards else; we share out the rows.
            features = (part.features or {}).items()
            labels = {name: inner for name, f in features if (inner := label_of(f)) is not None}
            for batch in part.iter(batch_size=32):
                columns = {
                    column: [name_of(labels[column], cell) for cell in cells] if column in labels else cells
                    for column, cells in dict(batch).items()
                }
                yield from (
                    dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)
                )
        elif part.suffix.lower() == ".parquet":
            yield from parquet_rows(part)
        else:
            with open_text_file(part, self.encoding) as text:
                if part.suffix.lower() == ".jsonl":
                    yield from jsonl_rows(part, text)
                else:
                    found = CsvFile(part, text)
                    yield from (dict(zip(found.columns, cells, strict=True)) for cells in found)


def _given(row: dict[str, Any], columns: Collection[str] | None) -> dict[str, Any]:
    """A row that is read already; a function of the module, which workers can be sent."""
    return row


def _open(file: Path) -> Part:
    require_table_file(file)
    if file.is_dir():
        return Table(read_folder(file), file)
    if not is_shard(file) and file.suffix.lower() not in READ:
        raise no_table(file)
    return file


def _types(part: Part, seen: Mapping[str, bool]) -> dict[str, Any]:
    """The features of a part's columns, as far as they are known.

    Args:
        part: of a stream.
        seen: the stream's columns, and whether they have bytes.
    """
    if isinstance(part, datasets.IterableDataset):
        found = part.features or {}
    elif isinstance(part, Table):
        found = part.rows.features if isinstance(part.rows, datasets.Dataset) else {}
    elif is_shard(part):
        return {name: Value("binary") for name, has_bytes in seen.items() if has_bytes}
    elif part.suffix.lower() in SEPARATORS:
        return dict.fromkeys(seen, Value("string"))
    elif part.suffix.lower() == ".parquet":
        found = parquet_features(part)
    else:
        return {}
    return {name: named_feature(feature) for name, feature in found.items()}


def _length(part: Part) -> int | None:
    if isinstance(part, Table):
        return len(part)
    if isinstance(part, Path) and part.suffix.lower() == ".parquet":
        return parquet_length(part)
    return None


def open_stream(config: Config, tables: Mapping[str, Any] | None = None) -> Stream | None:
    """The training rows of a config as a stream; None where they are a table.

    Args:
        config: says whether, by `data.streaming`.
        tables: rows by split instead of those the config names; an `IterableDataset` is always a stream.

    Raises:
        UserError: a file is missing, or the config wants what a stream can't do.
    """
    data = config.data
    source = data.train if tables is None else tables.get("train")
    if source is None or not (data.streaming or isinstance(source, datasets.IterableDataset)):
        return None
    if data.split_column is not None and tables is None:
        raise UserError("A stream isn't split by data.split_column: name a table of each split.")
    if data.class_weights == "balanced":
        raise UserError(
            "A stream's labels aren't counted beforehand, so data.class_weights can't be balanced: give each "
            "label's weight."
        )
    stream = Stream(source, data.trusted, data.encoding, data.folder, data.limits)
    if data.train_rows is None and stream.length is None:
        raise UserError(
            f"{stream.name} doesn't say how many rows it has: set data.train_rows to the rows per epoch."
        )
    return stream
