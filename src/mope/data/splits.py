"""From a config to the tables of its splits, checked and with their labels known."""

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from datasets import IterableDataset

from mope.config import Config, InputConfig
from mope.data.check import RowCheck, check_rows, usable
from mope.data.stream import Stream
from mope.data.table import SPLITS, Table, open_table
from mope.errors import UserError, shown
from mope.media.cells import is_missing
from mope.tasks import Task, label_text, sorted_labels, split_labels

Report = Callable[[str], None]


def open_splits(
    config: Config, tables: Mapping[str, Any] | None = None, streamed: bool = False
) -> dict[str, Table]:
    """The tables of a config, by split, unchecked.

    Args:
        config: names the tables.
        tables: `datasets.Dataset`s or files by split, instead of those the config names.
        streamed: whether to open training rows that training reads as a stream, too.

    Raises:
        UserError: a table or column is missing.
    """
    data = config.data

    def opened(split: str, source: Any) -> bool:
        is_stream = data.streaming or isinstance(source, IterableDataset)
        return streamed or split != "train" or not is_stream

    if tables is not None:
        unknown = sorted(set(tables) - set(SPLITS))
        if unknown:
            raise UserError(f"There is no split '{unknown[0]}': name {', '.join(SPLITS)}.")
        named = tables
    else:
        named = {split: getattr(data, split) for split in SPLITS if getattr(data, split) is not None}
    if tables is not None or data.split_column is None:
        return {
            split: open_table(source, data.trusted, data.encoding, data.folder, data.limits)
            for split, source in named.items()
            if opened(split, source)
        }
    if set(named) != {"train"}:
        raise UserError("With data.split_column all rows come from data.train: name no other table.")
    table = open_table(named["train"], data.trusted, data.encoding, data.folder, data.limits)
    return table.split(data.split_column)


def draw(table: Table, count: int | None, seed: int) -> Table:
    """So many rows of a table, by seed: fewer are some of more.

    Raises:
        UserError: it has fewer.
    """
    if count is None or count == len(table):
        return table
    if count > len(table):
        raise UserError(f"{table.name} has {len(table)} rows; data.train_rows asks for {count}.")
    order = list(range(len(table)))
    random.Random(seed).shuffle(order)
    return table.select(sorted(order[:count]))


def label_names(config: Config, train: Table | Stream) -> list[str]:
    """The labels of a config in order: as it says, else those of the training rows.

    Raises:
        UserError: there are fewer than two, or they are those of a stream.
    """
    data = config.data
    if not config.has_classes:
        return [data.label]
    if data.labels is not None:
        found = list(dict.fromkeys(data.labels))
        if (blank := next((name for name in found if name != label_text(name)), None)) is not None:
            raise UserError(
                f"data.labels has '{shown(blank)}', with blanks around it: rows' labels are taken without."
            )
    elif isinstance(train, Stream):
        raise UserError(f"The labels of {train.name} aren't known beforehand: list them in data.labels.")
    else:
        values = [value for value in train.column(data.label) if not is_missing(value)]
        if config.task == "classification" and any(isinstance(value, list | tuple) for value in values):
            raise UserError(
                f"{train.name}: the column '{data.label}' holds lists: set task to multilabel, or give one "
                "label."
            )
        if config.task == "multilabel":
            cells = [split_labels(value, data.separator) for value in values]
        else:
            cells = [[text] for value in values if (text := label_text(value))]
        found = sorted_labels({text for cell in cells for text in cell})
    if len(found) < 2:
        raise UserError(
            f"{train.name}: the column '{data.label}' has {len(found)} labels; two are the least."
        )
    return found


def picture_column(config: Config) -> str | None:
    """Column of the pictures that the labels are masks of, if they are."""
    return None if config.picture is None else config.inputs[config.picture].column


def cells_of(inputs: Iterable[InputConfig]) -> dict[str, str]:
    """What the columns of inputs hold, by name."""
    return {column: kind for entry in inputs for column, kind in entry.cells.items()}


def row_check(config: Config, columns: Mapping[str, str], task: Task, thorough: bool = True) -> RowCheck:
    """What a config asks of a row.

    Args:
        config: says which cells may be missing, and which column is the label's.
        columns: what each input's columns hold.
        task: knows the labels.
        thorough: whether cells are decoded, or their headers read.
    """
    missing = {
        column: "learn" if entry.kind == "table" else entry.missing
        for entry in config.inputs.values()
        for column in entry.cells
    }
    encode = task.encode if thorough else task.peek
    return RowCheck(columns, config.data.label, encode, missing, picture_column(config), thorough)


def check_split(
    config: Config,
    table: Table,
    columns: Mapping[str, str],
    task: Task,
    report: Report,
    thorough: bool = True,
) -> Table:
    """The rows of a table that can be used, as `data.bad_rows` says; see `row_check`."""
    problems = check_rows(table, row_check(config, columns, task, thorough), config.data.workers)
    kept = usable(table, problems, config.data.bad_rows)
    if len(kept) < len(table):
        report(f"{table.name}: skipped {len(table) - len(kept)} of {len(table)} rows; first {problems[0]}.")
    return kept
