"""The rows of a training: opened, checked, drawn, and the model that their labels ask for."""

import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

import torch

from mope.config import Config, InputConfig
from mope.data.dataset import RowDataset, RowReader, StreamDataset, collate
from mope.data.fields import find_fields
from mope.data.holdout import hold_out
from mope.data.readers import Reader, TextReader, build_readers
from mope.data.splits import Report, cells_of, check_split, draw, label_names, open_splits, row_check
from mope.data.stream import Stream, open_stream
from mope.data.table import Table
from mope.errors import UserError
from mope.media.texts import has_controls
from mope.model import FusionModel, needed_inputs
from mope.tasks import Task
from mope.tasks.metrics import deciding_metric
from mope.training.doubts import doubts

_STANDARDISED_BY = 2000  # rows of a stream whose labels say what is usual

Rows = RowDataset | StreamDataset
"""What a loader reads."""


def _sources(
    config: Config, tables: Mapping[str, Any] | None, report: Report
) -> tuple[Table | Stream, Table, Table | Stream]:
    """Training rows, a table or a stream, and validation rows, unchecked; and the rows that name the labels.

    Of these are also what is held out of the training rows, or a rare label among them would be unknown.
    """
    stream, splits = open_stream(config, tables), open_splits(config, tables)
    for source in (stream, splits.get("train"), splits.get("validation")):
        if source is not None and source.note is not None:
            report(source.note)
    whole = stream or splits.get("train")
    if stream is None:
        splits = hold_out(splits, config, report)
    train = stream or splits.get("train")
    if train is None or whole is None:
        raise UserError("There are no train rows: name a table in data.train.")
    if "validation" not in splits:
        hint = "; none are held out of a stream" if stream else ""
        raise UserError(f"There are no validation rows: name a table in data.validation{hint}.")
    return train, splits["validation"], whole


def prepare(
    config: Config, tables: Mapping[str, Any] | None, report: Report
) -> tuple[FusionModel, dict[str, Rows]]:
    """The model, and the rows of each split that can be used.

    What is cheap to find wrong is found first: tables and columns before weights, weights before every row.
    """
    needed = needed_inputs(config)
    label = config.data.label
    train, validation, whole = _sources(config, tables, report)
    for source in (train, validation):
        source.require(*_required(needed.values()), label)
    config = find_fields(config, train)
    needed = needed_inputs(config)
    columns = cells_of(needed.values())
    model = FusionModel.build(config, label_names(config, whole))
    task = model.task
    if isinstance(train, Table):
        train = draw(train, config.data.train_rows, config.training.seed)
    deciding_metric(task, config.training.metric)
    skip = config.data.bad_rows == "skip"
    if isinstance(train, Table):
        train = check_split(config, train, columns, task, report, thorough=False)
    # Where bad rows are left out, the same ones must be in each evaluation; so they are found beforehand.
    validation = check_split(config, validation, columns, task, report, thorough=skip)
    readers = build_readers(needed)
    rows: Rows
    check = row_check(config, columns, task)
    common = {"picture": config.picture, "check": check, "workers": config.data.workers}
    if isinstance(train, Stream):
        read = RowReader(readers, task, label, train=True, picture=config.picture)
        rows = StreamDataset(train, read, check, config)
        task.fit(_first_labels(rows, report), config.data.class_weights)
    else:
        seed = config.training.seed
        rows = RowDataset(train, readers, task, label, train=True, skip=skip, seed=seed, **common)
        task.fit((task.encode(value) for value in train.column(label)), config.data.class_weights)
        _say_changed_texts(readers, train, report)
    for doubt in doubts(config, model, train):
        report(doubt)
    return model, {
        "train": rows,
        "validation": RowDataset(validation, readers, task, label, **common),
    }


def _required(inputs: Iterable[InputConfig]) -> Iterator[str]:
    """Columns that training rows must have."""
    for entry in inputs:
        if entry.missing != "learn" or entry.kind == "table":
            yield from entry.cells


def drawn(rows: int, count: int, seed: int) -> list[int]:
    """Places of so many rows, by seed: other ones than those that the first steps take."""
    own = random.Random(f"what begins, {seed}").getrandbits(63)
    return torch.randperm(rows, generator=torch.Generator().manual_seed(own))[:count].tolist()


def first_batches(rows: Rows, count: int, size: int, seed: int, task: Task) -> Iterator[dict[str, Any]]:
    """Batches of so many training rows: of a table drawn by seed, of a stream its first."""
    rows = rows.apart()
    if isinstance(rows, RowDataset):
        places = drawn(len(rows), count, seed)
        for start in range(0, len(places), size):
            yield collate(rows.__getitems__(places[start : start + size]), rows.readers, task)
        return
    samples = islice(chain.from_iterable(part.samples for part in rows), count)
    while chunk := list(islice(samples, size)):
        yield collate(chunk, rows.readers, task)


def _first_labels(rows: StreamDataset, report: Report) -> Iterator[Any]:
    """Labels of a stream's first rows, for a task that asks for them, which is said then."""
    values = list(rows.labels(_STANDARDISED_BY))
    if not values:
        raise UserError(
            f"{rows.stream.name}: none of its first {_STANDARDISED_BY:,} rows has a label that can be used."
        )
    report(f"{rows.stream.name}: labels are standardised by those of the first {len(values):,} rows.")
    yield from values


def _say_changed_texts(readers: Mapping[str, Reader], table: Table, report: Report) -> None:
    """Say of how many training texts control characters are taken out, or the end."""
    for name, reader in readers.items():
        if isinstance(reader, TextReader) and (column := reader.columns[0]) in table.columns:
            texts = [text for text in table.column(column) if isinstance(text, str)]
            if count := sum(map(has_controls, texts)):
                report(
                    f"{table.name}: {count} of {len(texts)} texts of '{name}' have control characters, which "
                    "are left out; where there are many, look at data.encoding."
                )
            if count := reader.count_cut(texts):
                report(
                    f"{table.name}: {count} of {len(texts)} texts of '{name}' are longer than "
                    f"{reader.max_length} tokens and are cut off; set inputs.{name}.max_length to keep more."
                )
