"""What the columns of a table input hold: found in the training rows, and kept in the config."""

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy
import torch
from numpy.typing import NDArray

from mope.config import Config, FieldConfig
from mope.data.stream import Stream
from mope.data.table import Table
from mope.errors import UserError
from mope.media.cells import BadCell
from mope.media.values import is_nothing, open_category, open_date, open_number

MOST_VALUES = 200
"""Values of a category that are known at most, the most frequent ones."""

_BINS = 16
_LIMIT = 1_000_000  # edges and bounds don't matter beyond this many scales


def kind_of(cells: Sequence[Any]) -> str | None:
    """What a column holds, by its cells: number, date or category; None where all are empty.

    Texts are numbers or dates where every one of them reads as such; true and false are categories.
    """
    values = [cell for cell in cells if not is_nothing(cell)]
    if not values:
        return None
    if all(isinstance(value, bool) for value in values):
        return "category"
    for kind, opened in (("number", open_number), ("date", open_date)):
        if all(_opens(opened, value) for value in values):
            return kind
    return "category"


def _opens(opened: Any, value: Any) -> bool:
    try:
        opened(value)
    except BadCell:
        return False
    return True


def find_fields(config: Config, table: Table | Stream) -> Config:
    """The config with what its table inputs' columns hold, as the training rows say.

    Args:
        config: what it says of a column already stays.
        table: training rows.

    Raises:
        UserError: a column is missing, empty or constant, or holds something else than is said; or the rows
            are a stream's, which aren't known beforehand.
    """
    found = {}
    for name, entry in config.inputs.items():
        for column, field in entry.columns.items():
            if _is_found(field):
                continue
            if isinstance(table, Stream):
                raise UserError(
                    f"What the column '{column}' of {table.name} holds isn't known beforehand: train on a "
                    "table of some of its rows, and take `columns` from that run's config.yaml."
                )
            if "." in column:
                raise UserError(f"inputs.{name}: the column '{column}' has a dot in its name: rename it.")
            found[f"inputs.{name}.columns.{column}"] = _field(table, column, field).model_dump()
    return config.with_settings(found, f"inputs of kind table, from {table.name}") if found else config


def with_fields_of(config: Config, before: Config) -> Config:
    """The config with what another found its table inputs' columns to hold: the same rows may say otherwise
    by now."""
    found = {
        f"inputs.{name}.columns.{column}": field.model_dump()
        for name, entry in before.inputs.items()
        for column, field in entry.columns.items()
        if name in config.inputs and column in config.inputs[name].columns and _is_found(field)
    }
    return config.with_settings(found)


def _is_found(field: FieldConfig) -> bool:
    if field.kind == "category":
        return field.values is not None
    return (
        field.kind is not None and field.centre is not None and field.scale is not None and bool(field.edges)
    )


def _field(table: Table, column: str, field: FieldConfig) -> FieldConfig:
    cells = table.column(column)
    kind = field.kind or kind_of(cells)
    if kind is None:
        raise UserError(f"{table.name}: the column '{column}' is empty: leave it out.")
    if kind == "category":
        return FieldConfig(kind="category", values=_values(table, column, cells))
    opened = open_number if kind == "number" else open_date
    values = numpy.array([value for value in _read(table, column, cells, opened) if value is not None])
    return _scaled(kind, values, f"{table.name}: the column '{column}'")


def _read(table: Table, column: str, cells: Sequence[Any], opened: Any) -> list[Any]:
    found = []
    for number, cell in zip(table.numbers, cells, strict=True):
        try:
            found.append(opened(cell))
        except BadCell as error:
            raise UserError(
                f"{table.name}, row {number}, column '{column}': {error}; mend it, or say "
                f"`{column}: category` in the input's columns."
            ) from None
    return found


def _values(table: Table, column: str, cells: Sequence[Any]) -> list[str]:
    """The values of a category that occur more than once, the most frequent first: others are as unseen."""
    counts = Counter(value for value in _read(table, column, cells, open_category) if value is not None)
    if len(counts) < 2:
        raise UserError(f"{table.name}: the column '{column}' has one value: leave it out.")
    kept = [value for value, count in counts.most_common(MOST_VALUES) if count > 1]
    return kept or [value for value, _ in counts.most_common(MOST_VALUES)]


def _scaled(kind: Any, values: NDArray[numpy.float64], name: str) -> FieldConfig:
    """Centre and scale that outliers don't move, and edges of bins with equally many values each."""
    from rtdl_num_embeddings import compute_bins

    if len(values) < 2 or (values == values[0]).all():
        raise UserError(f"{name} has one value: leave it out.")
    low, centre, high = numpy.quantile(values, [0.1, 0.5, 0.9])
    # Of a normal distribution these are 2.56 standard deviations apart.
    scale = (high - low) / 2.5631 or values.std()
    standardised = numpy.clip((values - centre) / scale, -_LIMIT, _LIMIT)
    bins = max(2, min(_BINS, len(set(standardised)), len(values) - 1))
    if len(values) <= bins:
        edges = sorted(set(standardised.tolist()))
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            edges = compute_bins(torch.tensor(standardised)[:, None], bins)[0].tolist()
    if len(edges) < 2:
        edges = [float(standardised.min()), float(standardised.max())]
    return FieldConfig(kind=kind, centre=float(centre), scale=float(scale), edges=edges)
