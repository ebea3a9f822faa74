"""What each column of a table is for, by its cells, and why."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean
from typing import Any

from mope.data.check import SUFFIXES
from mope.data.fields import MOST_VALUES, kind_of
from mope.data.table import Table
from mope.errors import UserError
from mope.media.cells import BadCell, is_missing
from mope.media.values import is_nothing, open_category, open_number
from mope.tasks import label_text

KINDS = ("image", "text", "audio", "video", "number", "category", "date")
"""What a column may hold."""

OUT = "left out"
"""Kind of a column that isn't used; `kinds={"name": "left out"}` asks for it."""

_LOOKED_AT = 5000
_WORDS = 3  # a category's names have so few words in the mean
_REPEATS = 3  # and each is there so often in the mean
_CLASSES = 20  # whole numbers of so few different values are classes


@dataclass(frozen=True)
class Column:
    """What a column is taken for.

    Attributes:
        name: its name.
        kind: one of `KINDS`, "label" or "left out".
        why: in a few words.
        missing: whether some of its cells are empty; not looked for in a column that is left out.
    """

    name: str
    kind: str
    why: str
    missing: bool = False


def look(table: Table, label: str, kinds: Mapping[str, str] | None = None) -> list[Column]:
    """What each column is for, in order; the label's is among them.

    Args:
        table: training rows.
        label: the label's column.
        kinds: by column, where the caller knows better.

    Raises:
        UserError: there is no such column, or no such kind.
    """
    kinds = dict(kinds or {})
    table.require(label, *kinds)
    for name, kind in kinds.items():
        if kind not in (*KINDS, OUT):
            raise UserError(f"'{name}' can't be '{kind}': take one of {', '.join(KINDS)}, or '{OUT}'.")
    if label in kinds:
        raise UserError(f"'{label}' is the label, which has no kind: leave it out of kinds.")
    sample = table.select(_spread(len(table)))
    found = []
    for name in table.columns:
        if name == label:
            found.append(Column(name, "label", ""))
            continue
        kind, why = _look(name, sample.column(name), len(table) / len(sample))
        if name in kinds:
            kind, why = kinds[name], "as you say"
        missing = kind != OUT and any(map(is_missing, table.values(name)))
        found.append(Column(name, kind, why, missing))
    return found


def _spread(rows: int) -> list[int]:
    """The places that are looked at: one of each of as many stretches, drawn, for every n-th may be alike."""
    count, draw = min(rows, _LOOKED_AT), random.Random(0)
    edges = [place * rows // count for place in range(count + 1)]
    return [draw.randrange(start, end) for start, end in pairwise(edges)]


def _look(name: str, cells: Sequence[Any], each: float) -> tuple[str, str]:
    """What a column is for, and why.

    Args:
        name: the column's.
        cells: of the rows that are looked at.
        each: how many rows one of these stands for.
    """
    values = [cell for cell in cells if not is_missing(cell)]
    if not values:
        return OUT, "all cells are empty"
    if all(isinstance(value, bytes | dict) for value in values):
        kind = next((k for k, ends in SUFFIXES.items() if f".{name}".endswith(ends)), "image")
        return kind, "content of files"
    if any(isinstance(value, list | dict | bytes) for value in values):
        return OUT, "cells are lists or mappings"
    texts = [str(value) for value in values]
    for kind, ends in SUFFIXES.items():
        named = sum(text.lower().endswith(ends) for text in texts)
        if 2 * named > len(texts):
            return kind, f"names of {ends[0]} files and the like" if kind != "image" else "names of pictures"
    known = [value for value in values if not is_nothing(value)]
    try:
        different = len({open_category(value) for value in known})
    except BadCell:
        return OUT, f"cells of a type that isn't read, {type(known[0]).__name__}"
    if different <= 1:
        return OUT, f"always {texts[0][:30]!r}" if known else "all cells are empty"
    return _plain(name, known, different, each)


def _plain(name: str, values: Sequence[Any], different: int, each: float) -> tuple[str, str]:
    """What a column of numbers, dates or texts is for."""
    kind = kind_of(values)
    if kind == "number":
        numbers = [open_number(value) for value in values]
        whole = all(number is not None and number.is_integer() for number in numbers)
        if whole and different == len(values) and len(values) > 10 and _is_index(name, numbers, each):
            return OUT, "an id: another whole number in each row"
        return "number", f"numbers, {different:,} different"
    if kind == "date":
        return "date", "dates"
    if all(isinstance(value, bool) for value in values):
        return "category", "true or false"
    words = mean(len(str(value).split()) for value in values)
    if words <= _WORDS and different <= MOST_VALUES and len(values) >= _REPEATS * different:
        return "category", f"{different} different names"
    if words == 1 and different > 0.95 * len(values) and len(values) > 10:
        return OUT, "an id: another word in each row"
    return "text", f"texts of {words:.0f} words in the mean"


def _is_index(name: str, numbers: Sequence[float | None], each: float) -> bool:
    """Whether whole numbers, each there once in so many rows, only number the rows, or are called so."""
    found = sorted(number for number in numbers if number is not None)
    dense = found[-1] - found[0] < 2 * len(found) * each
    words = name.lower().replace("-", "_").split("_")
    return dense or "id" in words or "index" in words or name.lower().startswith("unnamed")


def guess_task(cells: Sequence[Any]) -> tuple[str, str]:
    """The task by the label's cells, and why.

    Raises:
        UserError: all are empty, or they are what no label is.
    """
    values = [cell for cell in cells if not is_missing(cell)]
    if not values:
        raise UserError("The label's cells are all empty: name another column.")
    if all(isinstance(value, list | tuple) for value in values):
        return "multilabel", "lists of labels"
    if any(isinstance(value, list | tuple | dict | bytes) for value in values):
        raise UserError("The label's cells are no labels: they are texts, numbers or lists of texts.")
    if kind_of(values) == "number" and not all(isinstance(value, bool) for value in values):
        numbers = [open_number(value) for value in values]
        different = len(set(numbers))
        whole = all(number is None or number.is_integer() for number in numbers)
        if not whole or different > _CLASSES:
            return "regression", f"numbers, {different:,} different"
        return "classification", f"{different} different whole numbers"
    names = Counter(label_text(value) for value in values)
    parts = Counter(part.strip() for value in values for part in str(value).split("|"))
    if sum("|" in name for name in names) > len(names) / 10 and len(parts) < len(names):
        return "multilabel", f"{len(parts)} labels, separated by |"
    if len(names) > len(values) / 2 and len(names) > _CLASSES:
        raise UserError(
            f"The label has {len(names):,} different values in {len(values):,} rows, which are no classes: "
            "name another column."
        )
    return "classification", f"{len(names)} different labels"
