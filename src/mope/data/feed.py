"""Batches of rows in their order, read by processes that read ahead no further than a few batches."""

from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from torch.utils.data import DataLoader, Dataset

from mope.config import Config
from mope.data.ahead import fetched_ahead
from mope.data.check import Problem, RowCheck
from mope.data.dataset import RowDataset, RowReader, collate
from mope.data.frames import by_input, frame_rows
from mope.data.readers import Reader
from mope.data.shards import KEY
from mope.data.stream import Item, Stream
from mope.data.table import MemoryTable, Table, open_table
from mope.logs import say
from mope.media.cells import BadCell, fetch, home_of, is_missing
from mope.media.images import picture_size
from mope.remote import look_anew
from mope.tasks import Task

_FEW = 200  # rows for which no process is started


class Numbered(NamedTuple):
    """A row to be read, and its number in messages."""

    number: int
    item: Item


class Row(NamedTuple):
    """A row that was read.

    Attributes:
        sample: what the readers made of it; None where it can't be used.
        error: why, if so.
        extra: what else is wanted of it.
    """

    sample: dict[str, Any] | None
    error: Any
    extra: Any


@dataclass(frozen=True)
class Batch:
    """Rows that follow on each other.

    Attributes:
        numbers: of all its rows.
        good: places in the batch of the rows that can be used.
        inputs: the samples of these as a batch; None where there are none.
        errors: by place, why others can't be used.
        extras: what else is wanted of each row.
    """

    numbers: list[int]
    good: list[int]
    inputs: dict[str, Any] | None
    errors: dict[int, Any]
    extras: list[Any]


def numbered(stream: Stream, start: int = 0, stop: int | None = None) -> Iterator[Numbered]:
    """The rows of a stream from one place to another."""
    for place, item in enumerate(islice(stream.items(), start, stop), start + 1):
        yield Numbered(place if item.number is None else item.number, item)


def as_table(
    rows: Any, config: Config, readers: Mapping[str, Reader], folder: str | Path | None = None
) -> Table:
    """Rows of any kind as a table, by column, as they are now, also those of files elsewhere.

    It is said if a file is read otherwise than its name says.

    Args:
        rows: a file's name, or rows in memory, whose cells may be by input name.
        config: of the run that they are for.
        readers: of its inputs.
        folder: what paths in them are relative to; None for their file's folder, for rows in memory the
            config's.
    """
    look_anew()
    return _as_table(rows, config, readers, folder)


def _as_table(rows: Any, config: Config, readers: Mapping[str, Reader], folder: str | Path | None) -> Table:
    data = config.data
    if isinstance(rows, str | Path | Table):
        table = open_table(rows, data.trusted, data.encoding, folder, data.limits)
        if table.note is not None and table is not rows:
            say(table.note)
        return table
    columns = {name: reader.columns for name, reader in readers.items()}
    tables = {name for name in columns if config.inputs[name].kind == "table"}
    if isinstance(rows, datasets.Dataset):
        rows = _renamed(rows, columns, tables)
        return open_table(rows, data.trusted, folder=folder or data.folder, limits=data.limits)
    found = frame_rows(rows)
    home = home_of(folder or data.folder or "", data.trusted, data.limits)
    if isinstance(found, datasets.Dataset):
        return Table(_renamed(found, columns, tables), home)
    return MemoryTable([by_input(row, columns, tables) for row in found], home)


def _renamed(
    rows: datasets.Dataset, columns: Mapping[str, Sequence[str]], tables: Collection[str]
) -> datasets.Dataset:
    """Rows whose columns are called as the inputs, by the inputs' columns."""
    there = rows.column_names
    names = {
        name: own[0]
        for name, own in columns.items()
        if name not in tables and name in there and own[0] not in there
    }
    return rows.rename_columns(names) if names else rows


def one_after_another(
    rows: Any,
    config: Config,
    readers: Mapping[str, Reader],
    folder: str | Path | None = None,
    held: int = 32,
) -> Iterator[Numbered]:
    """Rows of any kind, which are never all held: besides `as_table`'s an iterator of mappings, or a stream.

    Args:
        rows, config, readers, folder: see `as_table`.
        held: how many of an iterator's are taken at a time.

    Raises:
        UserError: a column is missing. Of an iterator's rows the cell is then empty, each time.
    """
    if isinstance(rows, Iterator):
        return _iterated(rows, config, readers, folder, held)
    if isinstance(rows, str | Path | datasets.IterableDataset):
        data = config.data
        stream = Stream(rows, data.trusted, data.encoding, folder, data.limits)
        if (note := stream.note) is not None:
            say(note)
    else:
        table = as_table(rows, config, readers, folder)
        if not len(table):
            return iter(())
        stream = Stream(table)
    stream.require(*RowReader(readers).columns)
    return numbered(stream)


def _iterated(
    rows: Iterator[Any], config: Config, readers: Mapping[str, Reader], folder: str | Path | None, held: int
) -> Iterator[Numbered]:
    look_anew()
    number = 0
    while chunk := list(islice(rows, held)):
        for item in Stream(_as_table(chunk, config, readers, folder)).items():
            number += 1
            yield Numbered(number, item)


def read_batches(
    rows: Iterable[Numbered],
    read: "ToPredict | ToMeasure",
    readers: Mapping[str, Reader],
    task: Task | None,
    size: int,
    workers: int = 0,
) -> Iterator[Batch]:
    """Rows in batches of a size, in order.

    Args:
        rows: all of them; they are taken a few batches ahead.
        read: makes one a sample, in a worker.
        readers: make samples a batch.
        task: makes labels one, if there are any.
        size: rows per batch; the last has the rest.
        workers: processes that read, where there are many rows.
    """
    rows = iter(rows)
    head = list(islice(rows, _FEW))
    processes, every = workers if len(head) == _FEW else 0, chain(head, rows)
    # Processes read batches ahead, and fetch the files of each at once.
    ready = _given(every) if processes else fetched_ahead(every, list(readers.values()), read.columns)
    with closing(ready):
        yield from DataLoader(
            _Rows(read, readers),
            batch_sampler=_chunks(ready, size),  # pyright: ignore[reportArgumentType] - any keys do
            num_workers=processes,
            collate_fn=partial(_batch, readers=readers, task=task),
        )


def _given(rows: Iterable[Numbered]) -> Generator[tuple[int, Item]]:
    yield from rows


def _chunks(rows: Iterator[tuple[int, Item]], size: int) -> Iterator[list[Numbered]]:
    while chunk := [Numbered(*row) for row in islice(rows, size)]:
        yield chunk


class _Rows(Dataset):
    """Rows whose keys are the rows themselves: so one process goes through the stream, and many read."""

    def __init__(self, read: "ToPredict | ToMeasure", readers: Mapping[str, Reader]):
        self.read = read
        self.media = [reader for reader in readers.values() if reader.names_files]

    def __getitems__(self, rows: list[Numbered]) -> list[tuple[int, Row]]:
        """A batch's rows, after the files were fetched that they name elsewhere, several at once."""
        opened = [Numbered(number, item.opened(self.read.columns)) for number, item in rows]
        for folder, some in groupby(opened, lambda row: row.item.folder):
            fetch(self._cells(some), folder)
        return [(row.number, self.read(row)) for row in opened]

    def _cells(self, rows: Iterable[Numbered]) -> Iterator[Any]:
        for row in rows:
            with suppress(BadCell):
                found = row.item.read(self.read.columns)
                yield from (reader.cell(found) for reader in self.media)


def _batch(rows: Sequence[tuple[int, Row]], readers: Mapping[str, Reader], task: Task | None) -> Batch:
    good = [place for place, (_, row) in enumerate(rows) if row.sample is not None]
    samples = [row.sample for _, row in rows if row.sample is not None]
    return Batch(
        [number for number, _ in rows],
        good,
        collate(samples, readers, task) if samples else None,
        {place: row.error for place, (_, row) in enumerate(rows) if row.sample is None},
        [row.extra for _, row in rows],
    )


class Asked(NamedTuple):
    """What is kept of a row beside its prediction.

    Attributes:
        cells: by column.
        size: (height, width) of its picture, where a mask is wanted.
    """

    cells: dict[str, Any]
    size: tuple[int, int] | None


@dataclass(frozen=True)
class ToPredict:
    """Reads a row of which nothing is known but its inputs.

    Attributes:
        read: makes it a sample.
        keep: columns whose cells are kept.
        all: whether those are that the row has beside, too.
        picture: the input whose size a mask has.
    """

    read: RowReader
    keep: Sequence[str] = ()
    all: bool = False
    picture: str | None = None

    @property
    def columns(self) -> set[str] | None:
        """What is read of a row; None for all."""
        return None if self.all else {*_columns(self.read.readers), *self.keep}

    def __call__(self, row: Numbered) -> Row:
        item, cells, size = row.item, {}, None
        try:
            found = item.read(self.columns)
            cells = self._kept(found)
            sample = self.read(found, item.folder)
            if self.picture is not None:
                size = picture_size(self.read.readers[self.picture].cell(found), item.folder)
        except BadCell as error:
            return Row(None, str(error), Asked(cells or self._left(item), None))
        return Row(sample, None, Asked(cells, size))

    def _kept(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return dict(row) if self.all else {name: row.get(name) for name in self.keep}

    def _left(self, item: Item) -> dict[str, Any]:
        """What is kept of a row of which some member can't be read."""
        if not self.keep:
            return {}
        try:
            return self._kept(item.read(self.keep))
        except BadCell:
            return {}


class Measured(NamedTuple):
    """What is kept of a row that is measured.

    Attributes:
        pattern: names of the inputs that it has, such as `image+text`.
        original: its mask before it is resized with its picture; None for a label that is none.
    """

    pattern: str
    original: Any = None


@dataclass(frozen=True)
class ToMeasure:
    """Reads a row with its label, and looks at it as closely as a check does.

    Attributes:
        read: makes it a sample.
        check: says what is wrong with it.
    """

    read: RowReader
    check: RowCheck

    @property
    def columns(self) -> set[str]:
        """What is read of a row."""
        return {*self.read.columns, *_columns(self.read.readers)}

    def __call__(self, row: Numbered) -> Row:
        number, item = row
        try:
            found = item.read(self.columns)
        except BadCell as error:
            return Row(None, Problem(number, KEY, str(error)), None)
        if problems := self.check(found, item.folder, number):
            # A row with an empty cell that is to be dropped is dropped, whatever else is wrong with it.
            return Row(None, next((p for p in problems if p.missing), problems[0]), None)
        there = [name for name, reader in self.read.readers.items() if not is_missing(reader.cell(found))]
        mask = None
        if self.read.picture is not None and self.read.task is not None and self.read.label is not None:
            mask = self.read.task.encode(found.get(self.read.label), item.folder)
        return Row(self.read(found, item.folder), None, Measured("+".join(there) or "none", mask))


def _columns(readers: Mapping[str, Reader]) -> Iterator[str]:
    return (column for reader in readers.values() for column in reader.columns)


class Tolerant(Dataset):
    """Samples of a table, or why a row has none, each with its place."""

    def __init__(self, rows: RowDataset):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> list[tuple[int, Any, str | None]]:
        self.rows.fetched(indices)
        return [self[index] for index in indices]

    def __getitem__(self, index: int) -> tuple[int, Any, str | None]:
        try:
            return index, self.rows[index], None
        except BadCell as error:
            return index, None, str(error)


def collate_tolerant(
    samples: Sequence[tuple[int, Any, str | None]], readers: Mapping[str, Reader], task: Any
) -> tuple[list[int], dict[str, Any] | None, dict[int, str]]:
    """Places of the good rows, their batch, and the errors of the others by place."""
    good = [(place, sample) for place, sample, error in samples if error is None]
    errors = {place: error for place, _, error in samples if error is not None}
    batch = collate([sample for _, sample in good], readers, task) if good else None
    return [place for place, _ in good], batch, errors
