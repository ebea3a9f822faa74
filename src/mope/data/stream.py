"""Training rows as a stream: read one after another, never all held and never checked beforehand."""

import codecs
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import datasets

from mope.config import Config
from mope.data.frames import name_of
from mope.data.shards import find_files, is_shard, read_shard
from mope.data.table import (
    Table,
    csv_frames,
    guess_encoding,
    jsonl_rows,
    no_encoding,
    read_folder,
    require,
)
from mope.errors import UserError
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
            BadCell.
    """

    where: str
    folder: Path
    read: Callable[[Collection[str] | None], dict[str, Any]]


class Stream:
    """Rows that are read one after another, as often as wanted.

    Args:
        source: a file, a folder or a pattern of files (see `find_files`), or a dataset.
        trusted: whether paths in rows may leave their file's folder.
        encoding: of CSV and JSONL files; None for UTF-8, or UTF-16 where a file is.
        folder: what paths in rows are relative to; None for their file's folder.

    Raises:
        UserError: there is no such file, or it is of no kind that is read.
    """

    def __init__(
        self,
        source: str | Path | datasets.Dataset | datasets.IterableDataset,
        trusted: bool = True,
        encoding: str | None = None,
        folder: str | Path | None = None,
    ):
        self.trusted, self.encoding, self.home = trusted, encoding, folder
        self.parts: Sequence[Part]
        if isinstance(source, datasets.IterableDataset):
            rows = source.with_format(None)
            self.parts, self.name = [rows.decode(False) if rows.features else rows], "the stream"
        elif isinstance(source, datasets.Dataset):
            self.parts, self.name = [Table(source)], "the stream"
        else:
            self.parts, self.name = [_open(file) for file in find_files(source)], str(source)

    @property
    def length(self) -> int | None:
        """How many rows it has, where that is known without reading them: of Parquet and of datasets."""
        lengths = [_length(part) for part in self.parts]
        return None if None in lengths else sum(length or 0 for length in lengths)

    @cached_property
    def columns(self) -> list[str]:
        """Names of the columns that the first hundred rows have."""
        found: dict[str, None] = {}
        for item in islice(self.items(), _LOOKED_AT):
            try:
                found.update(dict.fromkeys(item.read(None)))
            except BadCell:
                continue
        return list(found)

    def require(self, *names: str) -> None:
        """Make sure that columns exist; see `Table.require`."""
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
        for number, row in enumerate(self._rows(part), 1):
            yield Item(f"{name}, row {number}", folder, lambda columns, row=row: row)

    def _folder(self, folder: Path) -> Path:
        return home_of(folder if self.home is None else self.home, self.trusted)

    def _rows(self, part: Part) -> Iterator[dict[str, Any]]:
        """The rows of a part that isn't a shard."""
        if isinstance(part, Table):
            for start in range(0, len(part), 256):
                yield from part.rows_at(range(start, min(start + 256, len(part))))
        elif isinstance(part, datasets.IterableDataset):
            # By batches, for a worker would be given only some of the shards else; we share out the rows.
            labels = {n: f for n, f in (part.features or {}).items() if isinstance(f, datasets.ClassLabel)}
            for batch in part.iter(batch_size=32):
                columns = {
                    column: [name_of(labels[column], cell) for cell in cells] if column in labels else cells
                    for column, cells in dict(batch).items()
                }
                yield from (
                    dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)
                )
        elif part.suffix.lower() == ".parquet":
            yield from _parquet_rows(part)
        else:
            with _open_text(part, self.encoding) as text:
                if part.suffix.lower() == ".jsonl":
                    yield from jsonl_rows(part, text)
                else:
                    for frame in csv_frames(part, text, 1000):
                        yield from frame.to_dict("records")  # pyright: ignore[reportReturnType]


def _open(file: Path) -> Part:
    if not file.exists():
        raise UserError(f"There is no table {file}.")
    if file.is_dir():
        return Table(read_folder(file), file)
    if not is_shard(file) and file.suffix.lower() not in (".csv", ".jsonl", ".parquet"):
        raise UserError(f"{file} can't be streamed: name .csv, .jsonl or .parquet files, or .tar shards.")
    return file


def _parquet(file: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{file} isn't a Parquet file: {str(error).splitlines()[0]}") from None


def _parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    with _parquet(file) as parquet:
        for batch in parquet.iter_batches(batch_size=256):
            yield from batch.to_pylist()


def _length(part: Part) -> int | None:
    if isinstance(part, Table):
        return len(part)
    if isinstance(part, Path) and part.suffix.lower() == ".parquet":
        with _parquet(part) as parquet:
            return parquet.metadata.num_rows
    return None


@contextmanager
def _open_text(file: Path, encoding: str | None) -> Iterator[TextIO]:
    if encoding is None:
        with file.open("rb") as content:
            encoding = guess_encoding(content.read(2000)) or "utf-8-sig"
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise no_encoding(encoding) from None
    try:
        with file.open(encoding=encoding, newline="\n") as text:
            yield text
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} isn't in {error.encoding.upper()} ({error.reason}): set data.encoding to what it is in."
        ) from None


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
    stream = Stream(source, data.trusted, data.encoding, data.folder)
    if data.train_rows is None and stream.length is None:
        raise UserError(
            f"{stream.name} doesn't say how many rows it has: set data.train_rows to the rows per epoch."
        )
    return stream
