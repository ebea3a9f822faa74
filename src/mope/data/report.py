"""What `mope data check` says of a table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mope.config import Config, MediaLimits
from mope.data.check import Problem, check_rows, find_problems, guess_columns
from mope.data.fields import find_fields
from mope.data.splits import cells_of, label_names, open_splits, row_check
from mope.data.table import open_table
from mope.errors import UserError
from mope.tasks import Classification, build_task


@dataclass(frozen=True)
class TableReport:
    """What was found in a table.

    Attributes:
        table: its name.
        rows: how many it has.
        columns: kind of each column that was read.
        problems: what can't be used, in order.
        note: how it was read, where that isn't as its name says.
    """

    table: str
    rows: int
    columns: dict[str, str]
    problems: list[Problem]
    note: str | None = None

    @property
    def bad_rows(self) -> set[int]:
        return {problem.row for problem in self.problems}

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {**asdict(self), "bad_rows": len(self.bad_rows)}


class _AnyLabel(Classification):
    """Accepts every label that isn't empty."""

    def _class(self, text: str) -> int:
        return 0


def check_table(
    file: str | Path,
    columns: Mapping[str, str],
    label: str | None = None,
    labels: Sequence[str] | None = None,
    *,
    trusted: bool = True,
    encoding: str | None = None,
    limits: MediaLimits | None = None,
) -> TableReport:
    """Read every row of a table.

    Args:
        file: the table.
        columns: kind of each input's column; empty to recognise them by their first rows.
        label: the label's column, if it is to be checked.
        labels: the labels that are known; None for any.
        trusted, encoding, limits: see `open_table`.
    """
    table = open_table(file, trusted, encoding, limits=limits)
    if labels is not None and label is None:
        raise UserError("--labels needs --label COLUMN, the column that holds them.")
    kinds = dict(columns) or {name: kind for name, kind in guess_columns(table).items() if name != label}
    if not kinds:
        raise UserError(f"{file}: no column looks like images or texts; name one with --image or --text.")
    encode = None if label is None else (Classification(labels) if labels else _AnyLabel([])).encode
    problems = find_problems(table, kinds, label, encode, workers=1)
    read = {**kinds, **({label: "label"} if label else {})}
    return TableReport(table.name, len(table), read, problems, table.note)


def check_config(file: str | Path) -> list[TableReport]:
    """Read every row of all tables of a config."""
    config = Config.load(file)
    splits = open_splits(config, streamed=True)
    if not splits:
        raise UserError(f"{file} names no table: set data.train.")
    known = label_names(config, splits["train"]) if "train" in splits or config.data.labels else None
    if known is None:
        raise UserError(f"{file} names no training rows and no data.labels, so no label is known.")
    if "train" in splits:
        config = find_fields(config, splits["train"])
    task = build_task(config, known)
    columns = cells_of(config.inputs.values())
    reports = []
    for table in splits.values():
        problems = check_rows(table, row_check(config, columns, task), config.data.workers)
        read = {**columns, config.data.label: "label"}
        reports.append(TableReport(table.name, len(table), read, problems, table.note))
    return reports
