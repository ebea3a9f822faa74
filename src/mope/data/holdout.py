"""Rows held out for validation where no table of them is named."""

import hashlib
import posixpath
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy

from mope.config import Config
from mope.data.table import Table
from mope.errors import UserError
from mope.media.cells import is_missing
from mope.tasks import label_text, split_labels

_MOST_PARTS = 20  # a share is taken as so many twentieths, or fewer parts, where rows belong together
_QUANTILES = 10  # numbers are stratified by tenths


def hold_out(splits: dict[str, Table], config: Config, report: Callable[[str], None]) -> dict[str, Table]:
    """Add a validation split from the training rows where there is none.

    Rows that show the same picture, sound or video, or have the same value in `data.group`, are on one side;
    the labels' shares are those of all rows, as nearly as that allows.

    Raises:
        UserError: there are too few rows, or groups of them.
    """
    share, seed = config.data.validation_share, config.training.seed
    if "validation" in splits or "train" not in splits or not share:
        return splits
    train = splits["train"]
    if not 0 < round(share * len(train)) < len(train):
        raise UserError(
            f"{train.name} has too few rows ({len(train)}) to hold out {share:.0%} for validation."
        )
    groups = groups_of(train, config)
    count, strata = len(set(groups)), _strata(train, config)
    if count == len(train):
        held = _rows(strata, share, seed)
    else:
        held = _whole_groups(train, groups, strata, share, seed)
    together = f"; rows that belong together stay so ({count} groups)" if count < len(train) else ""
    report(
        f"No validation table is named: {len(held)} of {len(train)} training rows are held out, by seed "
        f"{seed}, with the labels' shares{together}."
    )
    chosen = set(held)
    rest = [place for place in range(len(train)) if place not in chosen]
    return {**splits, "train": train.select(rest), "validation": train.select(sorted(held))}


def groups_of(table: Table, config: Config) -> list[int]:
    """Which rows belong together: a number for each row, the same for rows of one group."""
    columns = [entry.column for entry in config.inputs.values() if entry.kind not in ("text", "table")]
    if config.data.group is not None:
        table.require(config.data.group)
        columns.append(config.data.group)
    leaders = list(range(len(table)))  # a forest: each row's way leads to the first row of its group

    def leader(row: int) -> int:
        while leaders[row] != row:
            leaders[row] = leaders[leaders[row]]
            row = leaders[row]
        return row

    for column in dict.fromkeys(columns):
        first: dict[Any, int] = {}
        for row, key in enumerate(_keys(table, column)):
            if key is not None:
                one, other = sorted((leader(first.setdefault(key, row)), leader(row)))
                leaders[other] = one
    return [leader(row) for row in range(len(table))]


def _keys(table: Table, column: str) -> Iterator[Any]:
    """What a column's cells are known by: None for one that is missing."""
    if column not in table.columns:
        return
    for cell in table.values(column):
        value = (cell.get("bytes") or cell.get("path")) if isinstance(cell, dict) else cell
        if is_missing(value):
            yield None
        elif isinstance(value, bytes):
            yield hashlib.blake2b(value, digest_size=20).digest()
        elif isinstance(value, str):
            yield posixpath.normpath(value)
        else:
            yield value if isinstance(value, int | float | bool) else str(value)  # such as a date


def _strata(table: Table, config: Config) -> list[str]:
    """What is to be spread evenly: each row's label or labels, a tenth of the numbers, nothing for masks."""
    data = config.data
    if config.task == "referring-segmentation" or data.label not in table.columns:
        return [""] * len(table)
    values = table.column(data.label)
    if config.task == "multilabel":
        return ["|".join(sorted(split_labels(value, data.separator))) for value in values]
    if config.task == "classification":
        return [label_text(value) for value in values]
    numbers = numpy.array([_number(value) for value in values])
    if numpy.isnan(numbers).all():
        return [""] * len(table)
    bounds = numpy.nanquantile(numbers, numpy.linspace(0, 1, _QUANTILES + 1)[1:-1])
    return [str(place) for place in numpy.searchsorted(bounds, numbers)]


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _rows(strata: Sequence[str], share: float, seed: int) -> list[int]:
    """Places of rows to hold out, each by itself."""
    from sklearn.model_selection import train_test_split

    count = round(share * len(strata))
    merged = _without_rare(strata, 2)
    kinds = len(set(merged))
    stratify = merged if 1 < kinds <= min(count, len(strata) - count) else None
    places = list(range(len(strata)))
    held: Any = train_test_split(places, test_size=count, random_state=seed, stratify=stratify)[1]
    return held


def _whole_groups(
    train: Table, groups: Sequence[int], strata: Sequence[str], share: float, seed: int
) -> list[int]:
    """Places of rows to hold out, whole groups of them."""
    from sklearn.model_selection import StratifiedGroupKFold

    least = Fraction(1, _MOST_PARTS)
    nearest = min(max(Fraction(share).limit_denominator(_MOST_PARTS), least), 1 - least)
    parts = min(nearest.denominator, len(set(groups)))
    if parts < 2:
        raise UserError(
            f"No rows of {train.name} can be held out for validation: all of its rows belong together; name "
            "validation rows in data.validation."
        )
    folds = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
    merged = _without_rare(strata, parts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a rare label isn't in every part
        found = [places for _, places in folds.split(merged, merged, groups)]
    return [int(place) for places in found[: max(1, round(share * parts))] for place in places]


def _without_rare(strata: Sequence[str], least: int) -> list[str]:
    """Strata of at least so many rows: smaller ones are taken together, or with the largest."""
    counts = Counter(strata)
    rare = {name for name, count in counts.items() if count < least}
    largest = max(counts, key=lambda name: counts[name])
    other = "rare" if sum(counts[name] for name in rare) >= least else largest
    return [other if name in rare else name for name in strata]
