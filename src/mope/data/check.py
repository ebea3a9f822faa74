"""Which rows of a table can't be used, and why."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mope.data.shards import KEY
from mope.data.table import Table
from mope.errors import UserError, shown
from mope.media import OPENERS, PEEKERS
from mope.media.cells import BadCell, fetch, is_missing
from mope.media.masks import require_size

SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    "audio": (".wav", ".flac", ".ogg", ".mp3"),
    "video": (".mp4", ".mkv", ".mov", ".avi", ".webm"),
}
"""Endings of file names, by the kind of input they hold."""


@dataclass(frozen=True)
class Problem:
    """Why a row can't be used.

    Attributes:
        row: its number in its file, from 1.
        column: where.
        reason: what is wrong.
        missing: whether the cell is empty, and its row may be dropped for that.
    """

    row: int
    column: str
    reason: str
    missing: bool = False

    def __str__(self) -> str:
        return f"row {self.row}, column '{shown(self.column)}': {self.reason}"


@dataclass(frozen=True)
class RowCheck:
    """Finds what is wrong with a row.

    Attributes:
        columns: kind of each input's column.
        label: the label's column, if labels are to be checked.
        encode: raises ValueError for a label that can't be used, see `Task.encode`.
        missing: what to do with empty cells, by column: "refuse" (default), "drop" or "learn".
        picture: column of the pictures that the labels are masks of, if they are.
        thorough: whether cells are decoded; else their headers are read, and what `encode` gives of a mask
            is its size.
    """

    columns: Mapping[str, str]
    label: str | None = None
    encode: Callable[[Any, Path], Any] | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    picture: str | None = None
    thorough: bool = True

    def __call__(self, row: Mapping[str, Any], folder: Path, number: int) -> list[Problem]:
        """The problems of a row, whose paths are relative to the folder, in order of the columns."""
        found, size = [], None
        for column, kind in self.columns.items():
            policy, empty = self.missing.get(column, "refuse"), is_missing(row.get(column))
            if empty and policy == "learn":
                continue
            try:
                opened = (OPENERS if self.thorough else PEEKERS)[kind](row.get(column), folder)
                if column == self.picture:
                    size = opened.size[::-1] if self.thorough else opened
            except BadCell as error:
                found.append(Problem(number, column, str(error), empty and policy == "drop"))
        if self.label is not None and self.encode is not None:
            try:
                target = self.encode(row.get(self.label), folder)
                if size is not None:
                    require_size(target.shape if self.thorough else target, size)
            except ValueError as error:
                found.append(Problem(number, self.label, str(error)))
        return found


class _Rows(Dataset):
    """The problems of each row."""

    def __init__(self, table: Table, check: RowCheck):
        self.table, self.check = table, check

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> list[Problem]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[list[Problem]]:
        """The problems of a batch's rows, whose files are fetched at once where they are elsewhere."""
        table, check = self.table, self.check
        rows = table.rows_at(indices)
        media = [column for column, kind in check.columns.items() if kind in SUFFIXES]
        media += [check.label] if check.picture is not None and check.label is not None else []
        fetch((row.get(column) for row in rows for column in media), table.folder)
        return [check(row, table.folder, table.numbers[i]) for i, row in zip(indices, rows, strict=True)]


def find_problems(
    table: Table,
    columns: Mapping[str, str],
    label: str | None = None,
    encode: Callable[[Any, Path], Any] | None = None,
    workers: int = 0,
    missing: Mapping[str, str] | None = None,
    picture: str | None = None,
) -> list[Problem]:
    """What is wrong with a table's rows: see `check_rows`, and `RowCheck` for what is asked of them."""
    return check_rows(table, RowCheck(columns, label, encode, missing or {}, picture), workers)


def check_rows(table: Table, check: RowCheck, workers: int = 0) -> list[Problem]:
    """Read every row, with a progress bar, and list what is wrong, in order.

    Args:
        table: the rows.
        check: what is asked of them.
        workers: processes that read, where there are many rows.

    Raises:
        UserError: a column is missing.
    """
    needed = [column for column in check.columns if check.missing.get(column) != "learn"]
    table.require(*needed, *([check.label] if check.label else []))
    loader = DataLoader(
        _Rows(table, check),
        batch_size=64,
        num_workers=workers if len(table) >= 1000 else 0,
        collate_fn=_flatten,
    )
    problems = []
    with tqdm(total=len(table), desc=f"checking {table.name}", unit="row", leave=False, disable=None) as bar:
        for count, found in loader:
            problems += found
            bar.update(count)
    return problems


def _flatten(rows: Sequence[list[Problem]]) -> tuple[int, list[Problem]]:
    return len(rows), [problem for row in rows for problem in row]


def usable(table: Table, problems: Sequence[Problem], policy: str) -> Table:
    """The table without its bad rows.

    Raises:
        UserError: there are bad rows and the policy is "refuse", or none are left.
    """
    if not problems:
        return table
    dropped = {problem.row for problem in problems if problem.missing}
    refused = [problem for problem in problems if problem.row not in dropped]
    if policy == "refuse" and refused:
        raise UserError(
            f"{table.name}: {len({p.row for p in refused})} of {len(table)} rows can't be used, such as "
            f"{refused[0]}; list them all with `mope data check`, mend them, set data.bad_rows to skip, or "
            "`missing` of an input whose cells may be empty."
        )
    bad = {problem.row for problem in problems}
    kept = [index for index, number in enumerate(table.numbers) if number not in bad]
    if not kept:
        raise UserError(
            f"{table.name}: none of its {len(table)} rows can be used; the first is {problems[0]}."
        )
    return table.select(kept)


def guess_columns(table: Table) -> dict[str, str]:
    """The kind of each column that looks like an input: media by type or file name, other text as text.

    Bytes are pictures, unless their column is named as a shard's members of another kind are, such as `wav`.
    """
    kinds = {}
    for column in table.columns:
        if column == KEY:
            continue
        values = [
            value
            for value in table.rows.select(range(min(len(table), 100)))[column]
            if value not in (None, "")
        ]
        if values and all(isinstance(value, bytes | dict) for value in values):
            kinds[column] = next(
                (kind for kind, ends in SUFFIXES.items() if f".{column}".endswith(ends)), "image"
            )
        elif values and all(isinstance(value, str) for value in values):
            paths = {
                kind: sum(value.lower().endswith(ends) for value in values) for kind, ends in SUFFIXES.items()
            }
            kinds[column] = next((kind for kind, n in paths.items() if 2 * n > len(values)), "text")
    return kinds
