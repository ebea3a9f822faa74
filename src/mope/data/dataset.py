"""From the rows of a table, or of a stream, to batches."""

import copy
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import fsspec.asyn
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from mope.config import Config
from mope.data.ahead import fetched_ahead
from mope.data.check import RowCheck
from mope.data.readers import ImageReader, Reader
from mope.data.skipped import SkippedRows
from mope.data.stream import Item, Stream
from mope.data.table import Table
from mope.errors import UserError
from mope.media.cells import BadCell, fetch
from mope.tasks import Task

_MOST_BAD_ON_END = 10_000  # after so many bad rows of a stream none is expected to be good


@dataclass(frozen=True)
class RowReader:
    """Makes a row a sample: a mapping of input names to what the readers made of the cells, and `labels`, the
    encoded label, if there is one.

    Attributes:
        readers: by input name.
        task: encodes labels; None to leave them out.
        label: the label's column.
        train: whether to augment.
        picture: name of the input whose picture the label is a mask of, so that both are turned alike; None
            for a label that is none.
    """

    readers: Mapping[str, Reader]
    task: Task | None = None
    label: str | None = None
    train: bool = False
    picture: str | None = None

    @property
    def columns(self) -> list[str]:
        """Columns that are needed: all but those of which every cell may be missing."""
        label = [self.label] if self.task is not None and self.label is not None else []
        return [*(column for reader in self.readers.values() for column in reader.required), *label]

    def __call__(self, row: Mapping[str, Any], folder: Path, draw: str = "") -> dict[str, Any]:
        """The sample of a row whose paths are relative to the folder.

        Args:
            row: its cells by column.
            folder: what its paths are relative to.
            draw: what the random numbers of augmentation are drawn by; empty for PyTorch's own.

        Raises:
            ValueError: a cell can't be used; a BadCell, unless it is the label.
        """
        if not (draw and self.train and any(reader.draws for reader in self.readers.values())):
            return self._read(row, folder)
        with _drawn_by(draw):
            return self._read(row, folder)

    def _read(self, row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        sample: dict[str, Any] = {}
        target: Any = None
        if self.task is not None and self.label is not None:
            target = sample["labels"] = self.task.encode(row.get(self.label), folder)
        for name, reader in self.readers.items():
            cell = reader.cell(row)
            if name == self.picture and target is not None:
                assert isinstance(reader, ImageReader)
                sample[name], sample["labels"] = reader.read_pair(cell, target, folder, self.train)
            else:
                sample[name] = reader.sample(cell, folder, self.train)
        return sample


@contextmanager
def _drawn_by(key: str) -> Iterator[None]:
    """Let random numbers depend on a key alone: not on who draws them, nor on what was drawn before."""
    with torch.random.fork_rng([]):
        torch.manual_seed(random.Random(key).getrandbits(63))
        yield


def _refusal(reason: str) -> UserError:
    return UserError(
        f"A row can't be used: {reason}; mend it, set data.bad_rows to skip, or `missing` of an input whose "
        "cells may be empty."
    )


class RowDataset(Dataset):
    """A table as samples for a data loader.

    Args:
        table: the rows.
        readers, task, label, train, picture: see `RowReader`.
        check: says what is wrong with a row of which only the headers were looked at; None where a row that
            can't be read is an error of the caller's.
        skip: whether the next row is taken in the place of such a row, which is counted; else it is refused.
        workers: of the loader.
        seed: of augmentation, which is drawn anew for each row in each epoch; None for PyTorch's own numbers.

    Raises:
        UserError: while reading, with a check: a row can't be used and isn't skipped, or none can.
    """

    def __init__(
        self,
        table: Table,
        readers: Mapping[str, Reader],
        task: Task | None = None,
        label: str | None = None,
        train: bool = False,
        picture: str | None = None,
        check: RowCheck | None = None,
        skip: bool = False,
        workers: int = 0,
        seed: int | None = None,
    ):
        self.table, self.readers, self.task = table, readers, task
        self.check, self.seed, self.epoch = check, seed, 0
        # Memory that processes share isn't had for nothing, and a server makes a dataset per request.
        self._skipped = SkippedRows(workers) if skip else None
        self.read = RowReader(readers, task, label, train, picture)
        table.require(*self.read.columns)

    def __len__(self) -> int:
        return len(self.table)

    def set_epoch(self, epoch: int) -> None:
        """Draw this epoch's augmentation next, from 0."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._sample(index, self.table[index])

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """The samples of a batch, whose rows are read at once."""
        rows = self.fetched(indices)
        return [self._sample(index, row) for index, row in zip(indices, rows, strict=True)]

    def fetched(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Rows, after the files were fetched that they name elsewhere, several at once."""
        rows = self.table.rows_at(indices)
        media = [reader for reader in self.readers.values() if reader.names_files]
        fetch((reader.cell(row) for row in rows for reader in media), self.table.folder)
        return rows

    def _sample(self, index: int, row: Mapping[str, Any]) -> dict[str, Any]:
        reason = ""
        draw = f"{self.seed} {self.epoch} {index}" if self.seed is not None else ""
        for _ in range(len(self)):
            try:
                return self.read(row, self.table.folder, draw)
            except ValueError:
                if self.check is None:
                    raise
                problems = self.check(row, self.table.folder, self.table.numbers[index])
                if not problems:
                    raise
            reason = f"{self.table.name}, {problems[0]}"
            if self._skipped is None:
                raise _refusal(reason)
            self._skipped.add(str(problems[0]))
            index = (index + 1) % len(self)
            row = self.table[index]
        raise UserError(f"{self.table.name}: none of its {len(self)} rows can be used; the last is {reason}.")

    def apart(self) -> "RowDataset":
        """The same rows, of which those that are left out are counted apart."""
        twin = copy.copy(self)
        twin._skipped = None if self._skipped is None else self._skipped.apart()
        return twin

    def skipped(self) -> str | None:
        """A sentence on the rows that were left out while reading; None where none were."""
        return None if self._skipped is None else self._skipped.sentence(self.table.name)


class Chunk(NamedTuple):
    """What one process has of a training step's rows.

    Attributes:
        samples: of these rows; of a stand-in where it has none, so that a batch can be made at all.
        empty: whether it has none.
    """

    samples: list[Any]
    empty: bool = False


def chunk(rows: int, rank: int, processes: int) -> range:
    """Places of a process among a batch's rows, as many as others have, or one more or less."""
    return range(rows * rank // processes, rows * (rank + 1) // processes)


class StreamDataset(IterableDataset):
    """A stream as chunks of batches for a data loader, an epoch at a time.

    The stream is read again and again, each time in another order by seed; epoch e is the e-th `rows` rows of
    that. So where an epoch has as many rows as the stream, it has each once. Each process and each of its
    workers goes through the whole stream and reads of it the rows that are its own; a step has the same rows
    for any number of them. Rows that can't be used are left out, and others taken instead, or refused.

    Args:
        stream: the rows.
        read: makes a row a sample.
        check: says what is wrong with one that can't be made one.
        config: rows per epoch, seed, and the like.

    Raises:
        UserError: while iterating: a row can't be used and `data.bad_rows` is "refuse", or no row can.
    """

    def __init__(self, stream: Stream, read: RowReader, check: RowCheck, config: Config):
        self.stream, self.read, self.check = stream, read, check
        data = config.data
        self.rows = data.train_rows or stream.length or 0
        self.batch, self.seed = config.training.batch_size, config.training.seed
        self.held, self.skip = data.shuffle_buffer, data.bad_rows == "skip"
        self.rank, self.processes, self.epoch = 0, 1, 0
        every = (column for reader in read.readers.values() for column in reader.columns)
        self._columns = {*read.columns, *every}
        # Shared with the loader's workers, which find these out.
        self._length = torch.tensor(stream.length or 0).share_memory_()
        self._skipped = SkippedRows(data.workers)

    @property
    def readers(self) -> Mapping[str, Reader]:
        """Readers by input name."""
        return self.read.readers

    @property
    def _batches(self) -> int:
        """Per epoch."""
        return math.ceil(self.rows / self.batch)

    def __len__(self) -> int:
        """Rows per epoch, of all processes together."""
        return self.rows

    def share(self, rank: int, processes: int) -> None:
        """Take this process's part of the rows."""
        self.rank, self.processes = rank, processes

    def set_epoch(self, epoch: int) -> None:
        """Read this epoch's rows next, from 0."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Chunk]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        if info is not None:
            fsspec.asyn.reset_lock()  # a forked process can't use its parent's connections
        rows = self._rows_of(worker, workers)
        numbers = range(worker, self._batches, workers)
        wanted = sum(len(self._places(number)) for number in numbers)
        with closing(fetched_ahead(rows, list(self.readers.values()), self._columns, wanted)) as ready:
            yield from self._chunks(self._good(ready), numbers)

    def _chunks(self, good: Iterator[Any], numbers: range) -> Iterator[Chunk]:
        """The epoch's batches of these numbers."""
        stand_in = None
        for number in numbers:
            samples = list(islice(good, len(self._places(number))))
            if samples:
                stand_in = samples[-1]
                yield Chunk(samples)
                continue
            if stand_in is None:
                stand_in = next(self._good(enumerate(self._all(0))))
            yield Chunk([stand_in], empty=True)

    def _good(self, rows: Iterator[tuple[int, Item]]) -> Iterator[Any]:
        """Samples of the rows that have one; the others are counted."""
        bad = 0
        for place, item in rows:
            sample, reason = self._sample(item, place)
            if reason is None:
                bad = 0
                yield sample
                continue
            self._skipped.add(reason)
            bad += 1
            if bad >= max(_MOST_BAD_ON_END, self.rows):
                raise UserError(
                    f"{self.stream.name}: {bad:,} rows on end can't be used, the last is {reason}."
                )

    def _places(self, number: int) -> range:
        """Places of this process in the epoch's batch of this number; past the epoch, where what takes the
        place of bad rows is found, batches are full."""
        left = self.rows - number * self.batch
        return chunk(min(self.batch, left) if left > 0 else self.batch, self.rank, self.processes)

    def _rows_of(self, worker: int, workers: int) -> Iterator[tuple[int, Item]]:
        """This worker's rows from the epoch's first on, without end: of every so many batches, one; each with
        its place among all rows of the training."""
        first = self.epoch * self.rows
        last = self._batches
        for place, item in enumerate(self._all(first)):
            number, within = divmod(place, self.batch)
            if place >= self.rows:
                number, within = divmod(place - self.rows, self.batch)
                number += last
            if number % workers == worker and within in self._places(number):
                yield first + place, item

    def _all(self, start: int) -> Iterator[Item]:
        """The stream's rows over and over, from this place on."""
        known = int(self._length)
        first, ahead = divmod(start, known) if known else (0, start)
        for number in count(first):
            found = 0
            for found, item in enumerate(self._pass(number), 1):
                if found > ahead:
                    yield item
            if not found:
                raise UserError(f"{self.stream.name} has no rows.")
            self._length.fill_(found)
            ahead = max(0, ahead - found)

    def _pass(self, number: int) -> Iterator[Item]:
        """The stream's rows once, in the order of that time."""
        order = random.Random(f"{self.seed} {number}") if self.held > 1 else None
        return self.stream.items(order, self.held)

    def _sample(self, item: Item, place: int) -> tuple[Any, str | None]:
        """A row's sample, or why it has none and is left out."""
        row = None
        try:
            row = item.read(self._columns)
            return self.read(row, item.folder, f"{self.seed} {place}"), None
        except ValueError as error:
            problems = self.check(row, item.folder, 0) if row is not None else []
            if not problems and not isinstance(error, BadCell):
                raise
            reason = f"{item.where}: {error}"
        if problems:
            reason = f"{item.where}, column '{problems[0].column}': {problems[0].reason}"
        if not self.skip and not any(problem.missing for problem in problems):
            raise _refusal(reason)
        return None, reason

    def apart(self) -> "StreamDataset":
        """The same rows, of which those that are left out are counted apart."""
        twin = copy.copy(self)
        twin._skipped = self._skipped.apart()
        return twin

    def skipped(self) -> str | None:
        """A sentence on the rows that were left out so far; None where none were."""
        return self._skipped.sentence(self.stream.name)

    def labels(self, most: int) -> Iterable[Any]:
        """Encoded labels of so many of the first rows that are trained on; those that can't be used are left
        out."""
        task, label = self.read.task, self.read.label
        assert task is not None
        assert label is not None
        for item in islice(self._pass(0), most):
            try:
                yield task.encode(item.read([label]).get(label), item.folder)
            except ValueError:
                continue


def collate(
    samples: Sequence[Mapping[str, Any]], readers: Mapping[str, Reader], task: Task | None
) -> dict[str, Any]:
    """Samples as a batch: `{"image": {...}, "text": {...}, "labels": ...}`."""
    batch: dict[str, Any] = {
        name: reader.batch([sample[name] for sample in samples]) for name, reader in readers.items()
    }
    if task is not None and "labels" in samples[0]:
        batch["labels"] = task.targets([sample["labels"] for sample in samples])
    return batch
