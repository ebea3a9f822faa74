"""How parts are written, and joined to what was asked for: CSV, JSONL, Parquet, or a dataset's folder."""

import csv
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow
import pyarrow.parquet
from datasets import Dataset, Features
from datasets.features.features import generate_from_arrow_type

from mope.bulk.columns import Columns, as_json, as_text, label_text
from mope.errors import UserError, shown

_UNIT = 100  # rows that are cut and joined together
_GROUP = 10_000  # rows of a Parquet file that are written at once, at most
_GROUP_BYTES = 64 << 20  # and about how much that is
_EXACT = 2**53  # integers up to which a float has


class Format(Protocol):
    """A way to write rows in parts, and to join these to the same file whatever parts they came in."""

    def open(self, file: Path) -> "Writer":
        """Begin a part."""
        ...

    def join(self, parts: Sequence[Path], draft: Path) -> None:
        """Make one of all parts."""
        ...


class Writer(Protocol):
    """A part that is being written."""

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows."""
        ...

    def close(self) -> None:
        """End it, so that it is on the disk."""
        ...


def format_of(out: Path, columns: Columns) -> Format:
    """The format that a file's name asks for."""
    suffix = out.suffix.lower()
    return TextFormat(columns, suffix == ".csv") if suffix in (".csv", ".jsonl") else ArrowFormat(columns)


class TextFormat:
    """Lines of CSV or JSON; parts become one by being put behind each other.

    Args:
        columns: of a row.
        is_csv: else JSON.
    """

    def __init__(self, columns: Columns, is_csv: bool):
        self.columns, self.is_csv = columns, is_csv

    def open(self, file: Path) -> Writer:
        return _TextWriter(file, self.columns, self.is_csv)

    def join(self, parts: Sequence[Path], draft: Path) -> None:
        if self.is_csv:
            with draft.open("w", encoding="utf-8", newline="") as text:
                csv.writer(text).writerow(self.columns.features)
        with draft.open("ab") as whole:
            for part in parts:
                with part.open("rb") as content:
                    shutil.copyfileobj(content, whole, 1 << 20)
            _to_disk(whole)


class _TextWriter:
    def __init__(self, file: Path, columns: Columns, is_csv: bool):
        self.columns, self.is_csv = columns, is_csv
        self.stream = file.open("w", encoding="utf-8", newline="")
        self.csv = csv.DictWriter(self.stream, list(columns.features))

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if not self.is_csv:
            self.stream.writelines(as_json(row) + "\n" for row in rows)
            return
        label = f"{self.columns.prefix}label"
        for row in rows:
            kept = {name: as_text(row[name]) for name in self.columns.kept}
            self.csv.writerow({**row, **kept, label: label_text(row[label])})

    def close(self) -> None:
        _to_disk(self.stream)
        self.stream.close()


def _to_disk(stream: Any) -> None:
    stream.flush()
    os.fsync(stream.fileno())


class ArrowFormat:
    """A Parquet file, or the folder of a dataset.

    Parts are streams of Arrow's. Columns of JSON lines or shards have no type until all rows are seen: their
    cells are JSON in the parts, and get the type that all have when these are joined; numbers and texts mixed
    become text.

    Args:
        columns: of a row.
    """

    def __init__(self, columns: Columns):
        self.columns = columns
        text = {name: pyarrow.field(name, pyarrow.string()) for name in columns.untyped}
        typed = {name: feature for name, feature in columns.features.items() if feature is not None}
        fields = {field.name: field for field in Features(typed).arrow_schema}
        self.schema = pyarrow.schema([{**fields, **text}[name] for name in columns.features])

    def open(self, file: Path) -> Writer:
        return _ArrowWriter(file, self.schema, self.columns)

    def join(self, parts: Sequence[Path], draft: Path) -> None:
        kinds = self._kinds(parts)
        features = Features(
            {
                name: generate_from_arrow_type(kinds[name]) if feature is None else feature
                for name, feature in self.columns.features.items()
            }
        )
        schema = features.arrow_schema  # which says what its columns mean, beside what they hold
        tables = (self._typed(table, kinds, schema) for table in _tables(parts))
        if draft.suffix.lower() == ".parquet":
            with draft.open("wb") as stream:
                with pyarrow.parquet.ParquetWriter(stream, schema) as writer:
                    for table in tables:
                        writer.write_table(table)
                _to_disk(stream)
            return
        whole = draft.with_name("whole.arrow")
        with pyarrow.OSFile(str(whole), "wb") as stream, pyarrow.ipc.new_stream(stream, schema) as writer:
            for table in tables:
                writer.write_table(table)
        Dataset.from_file(str(whole)).save_to_disk(draft)
        whole.unlink()

    def _kinds(self, parts: Sequence[Path]) -> dict[str, pyarrow.DataType]:
        """The types that columns of JSON have in common over all rows."""
        found = {name: _Kind() for name in self.columns.untyped}
        if found:
            for table in _tables(parts):
                for name, kind in found.items():
                    kind.add(_cells(table, name))
        return {name: kind.type for name, kind in found.items()}

    def _typed(
        self, table: pyarrow.Table, kinds: Mapping[str, pyarrow.DataType], schema: pyarrow.Schema
    ) -> pyarrow.Table:
        for name, kind in kinds.items():
            cells = _cells(table, name)
            if pyarrow.types.is_string(kind):
                cells = [as_text(cell) for cell in cells]
            place = table.column_names.index(name)
            table = table.set_column(place, name, pyarrow.array(cells, kind))
        return table.cast(schema)


class _ArrowWriter:
    def __init__(self, file: Path, schema: pyarrow.Schema, columns: Columns):
        self.schema, self.columns = schema, columns
        self.stream = file.open("wb")
        self.writer = pyarrow.ipc.new_stream(self.stream, schema)

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        arrays = []
        for field in self.schema:
            cells = [row[field.name] for row in rows]
            if field.name in self.columns.untyped:
                cells = [None if cell is None else as_json(cell) for cell in cells]
            try:
                arrays.append(pyarrow.array(cells, field.type))
            except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError) as error:
                raise UserError(
                    f"{self.columns.name}: the column '{shown(field.name)}' has a cell unlike the first "
                    f"hundred ({shown(str(error).splitlines()[0], 100)}): keep others, or write a "
                    ".jsonl file."
                ) from None
        self.writer.write_batch(pyarrow.RecordBatch.from_arrays(arrays, schema=self.schema))

    def close(self) -> None:
        self.writer.close()
        _to_disk(self.stream)
        self.stream.close()


class _Kind:
    """The type that cells have in common."""

    def __init__(self) -> None:
        self._found: pyarrow.DataType | None = pyarrow.null()
        self._large = False

    def add(self, cells: Sequence[Any]) -> None:
        """Take more cells into account."""
        if self._found is None:
            return
        self._large = self._large or any(type(cell) is int and abs(cell) > _EXACT for cell in cells)
        try:
            own = [pyarrow.schema([("x", kind)]) for kind in (self._found, pyarrow.array(cells).type)]
            self._found = pyarrow.unify_schemas(own, promote_options="permissive").field("x").type
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError):
            self._found = None  # they have none: each is written as text

    @property
    def type(self) -> pyarrow.DataType:
        found = self._found
        if found is None or pyarrow.types.is_null(found):
            return pyarrow.string()
        return pyarrow.string() if self._large and pyarrow.types.is_floating(found) else found


def _cells(table: pyarrow.Table, name: str) -> list[Any]:
    return [None if cell is None else json.loads(cell) for cell in table.column(name).to_pylist()]


def _tables(parts: Sequence[Path]) -> Iterator[pyarrow.Table]:
    """The rows of all parts, in tables of one size wherever parts begin; large cells make small ones."""
    held: list[pyarrow.Table] = []
    size = 0
    for unit in _units(parts):
        if not size:
            room = _GROUP_BYTES // max(1, len(repr(unit.to_pylist())))
            size = _UNIT * max(1, min(room, _GROUP // _UNIT))
        held.append(unit)
        if len(held) * _UNIT >= size:
            yield pyarrow.concat_tables(held).combine_chunks()
            held = []
    if held:
        yield pyarrow.concat_tables(held).combine_chunks()


def _units(parts: Sequence[Path]) -> Iterator[pyarrow.Table]:
    """The same, by `_UNIT` rows; the last has the rest."""
    rest: pyarrow.Table | None = None
    for batch in _batches(parts):
        table = pyarrow.Table.from_batches([batch])
        table = table if rest is None else pyarrow.concat_tables([rest, table])
        while len(table) >= _UNIT:
            yield table.slice(0, _UNIT)
            table = table.slice(_UNIT)
        rest = table
    if rest is not None and len(rest):
        yield rest


def _batches(parts: Sequence[Path]) -> Iterable[pyarrow.RecordBatch]:
    for part in parts:
        with pyarrow.OSFile(str(part)) as stream, pyarrow.ipc.open_stream(stream) as reader:
            yield from reader
