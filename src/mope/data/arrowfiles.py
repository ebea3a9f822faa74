"""Parquet files and saved datasets: read whole, or told in a sentence why they can't be."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, load_from_disk

from mope.data.frames import label_of, name_of
from mope.data.textfiles import require_distinct
from mope.errors import UserError, shown
from mope.files import parse_json, require_table_file

UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    NotImplementedError,
    RecursionError,
    OverflowError,
)
"""What Arrow and `datasets` raise of broken files and of types that they don't know, beside Arrow's own."""


def read_parquet(file: Path) -> Dataset:
    """A Parquet file's rows.

    Raises:
        UserError: it isn't whole, or holds what no table can.
    """
    import pyarrow.parquet

    with _told(file), pyarrow.parquet.ParquetFile(file, memory_map=True) as parquet:
        require_distinct(str(file), parquet.schema_arrow.names)
        found = parquet.read()
        found.validate(full=True)  # else text that isn't UTF-8 is found when its row is read
        return Dataset(found)


def parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The same, some rows at a time; labels are the names that they stand for."""
    with _told(file), _streamed(file) as parquet:
        require_distinct(str(file), parquet.schema_arrow.names)
        labels = {n: inner for n, f in _features(parquet).items() if (inner := label_of(f)) is not None}
        for batch in parquet.iter_batches(batch_size=256):
            batch.validate(full=True)
            for row in batch.to_pylist():
                yield row | {name: name_of(label, row[name]) for name, label in labels.items()}


def parquet_length(file: Path) -> int:
    """How many rows a Parquet file says that it has; raises as `read_parquet`."""
    with _told(file), _streamed(file) as parquet:
        return parquet.metadata.num_rows


def parquet_features(file: Path) -> Features:
    """What the columns of a Parquet file hold; nothing is known where datasets haven't what one does."""
    with _told(file), _streamed(file) as parquet:
        return _features(parquet)


def _streamed(file: Path) -> Any:
    import pyarrow.parquet

    # Without a buffer a column of a whole row group, which may be the whole file, is read at once.
    return pyarrow.parquet.ParquetFile(file, buffer_size=1 << 20)


def _features(parquet: Any) -> Features:
    try:
        return Features.from_arrow_schema(parquet.schema_arrow)
    except (NotImplementedError, ValueError, TypeError):
        return Features()


@contextmanager
def _told(file: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, *UNREADABLE) as error:
        raise UserError(f"{file} isn't a Parquet file that can be read: {_first_line(error)}.") from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return shown(lines[0], 100).rstrip(".")


def read_folder(folder: Path) -> Dataset:
    """A dataset that `Dataset.save_to_disk` wrote.

    Raises:
        UserError: the folder holds none, several, or a broken one.
    """
    import pyarrow

    try:
        own = Path(os.fspath(folder))  # of a folder elsewhere the copy
        _require_own_files(own)
        rows = load_from_disk(str(own))
        if isinstance(rows, Dataset):
            _require_whole(rows)
    except FileNotFoundError:
        raise UserError(
            f"{folder} is a folder but holds no saved dataset and no .tar shards; name a table file in it."
        ) from None
    except (pyarrow.ArrowException, *UNREADABLE) as error:
        raise UserError(f"{folder} holds a dataset that can't be read: {_first_line(error)}.") from None
    if not isinstance(rows, Dataset):
        names = shown(", ".join(map(str, rows)), 100)
        raise UserError(f"{folder} holds several datasets ({names}): name the folder of one.")
    return rows


def _require_own_files(folder: Path) -> None:
    """Make sure that a saved dataset is of files, no pipe that would be waited for, and of its own ones."""
    for file in folder.iterdir():
        require_table_file(file)
    state = folder / "state.json"
    if state.is_file():
        for entry in parse_json(state.read_text(encoding="utf-8"))["_data_files"]:
            if Path(entry["filename"]).name != entry["filename"]:
                raise ValueError(f"it names a file elsewhere, {shown(entry['filename'])}")


def _require_whole(rows: Dataset) -> None:
    """Make sure that a mapped file's cells are where it says that they are: else the process may be ended by
    the system when one is read."""
    rows.data.table.validate(full=True)
    order = rows._indices
    if order is not None and len(order):
        order.table.validate(full=True)
        places = order.column(0).to_numpy()
        if places.min() < 0 or places.max() >= rows.data.num_rows:
            raise ValueError("its order names rows that aren't there")
