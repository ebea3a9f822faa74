"""The columns of a file of predictions: what is kept of the table, then what the run says."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Features, List, Value

from mope.data.stream import Stream
from mope.errors import UserError, shown
from mope.predictions import PredictedRows, as_rows, routing_columns

_LABELS: dict[str, Any] = {
    "classification": Value("string"),
    "multilabel": List(Value("string")),
    "regression": Value("float64"),
    "referring-segmentation": {"size": List(Value("int64")), "counts": Value("string")},
}
"""What a predicted label is, by task."""


@dataclass(frozen=True)
class Keep:
    """Which columns of a table are kept.

    Attributes:
        columns: their names.
        all: whether these are all.
    """

    columns: Sequence[str] = ()
    all: bool = False

    @classmethod
    def of(cls, words: Sequence[str], stream: Stream) -> "Keep":
        """What is meant by names with commas between them, or `all`.

        Raises:
            UserError: there is no such column.
        """
        if "all" in words:
            return cls(stream.columns, True)
        names: list[str] = []
        for word in words:
            # A column's name may have a comma.
            names += [word] if word in stream.columns else [part.strip() for part in word.split(",")]
        if names:
            stream.require(*names)
        return cls(list(dict.fromkeys(names)))


class Columns:
    """The columns of an output.

    Args:
        keep: columns that come first.
        stream: where they are from.
        task, classes: the run's.
        experts: how many routing scores there are by layer; None to leave them out.
        out: whose format they are for.

    Attributes:
        features: what each holds, in order; None where only its cells say.
        prefix: what predicted columns' names begin with, where a table's stand beside them.

    Raises:
        UserError: two have the same name, or one can't be written so.
    """

    def __init__(
        self,
        keep: Keep,
        stream: Stream,
        task: str,
        classes: Sequence[str],
        experts: Sequence[int] | None,
        out: Path,
    ):
        self.keep, self.name, self.classes, self.experts = keep, stream.name, classes, experts
        self.kept = {name: _plain(stream.types[name]) for name in keep.columns}
        self.prefix = "predicted_" if self.kept else ""
        scores = [f"probability_{name}" for name in classes]
        if experts is not None:
            scores += routing_columns(experts)
        own = {"label": _LABELS[task], **dict.fromkeys(scores, Value("float64")), "error": Value("string")}
        own = {f"{self.prefix}{name}": feature for name, feature in own.items()}
        for name in self.kept:
            if name in own:
                raise UserError(
                    f"{self.name} has a column '{shown(name)}' already: rename it, or keep others."
                )
            if out.suffix.lower() in (".csv", ".jsonl") and _has_bytes(self.kept[name]):
                raise UserError(
                    f"The column '{shown(name)}' holds bytes, which a {out.suffix} file can't: write a "
                    ".parquet file, or name the columns to keep without it."
                )
        self.features: dict[str, Any] = {**self.kept, **own}

    def rows(self, part: PredictedRows) -> Iterator[dict[str, Any]]:
        """The rows of a batch, by column."""
        said = as_rows(part.predictions, self.classes, self.experts is not None, self.experts)
        for number, cells, row in zip(part.numbers, part.kept, said, strict=True):
            if self.keep.all and (more := next((name for name in cells if name not in self.kept), None)):
                raise UserError(
                    f"{self.name}, row {number}: it has a column '{shown(more)}', which the first hundred "
                    "rows haven't: name the columns to keep, such as "
                    f"--keep {','.join([*self.keep.columns, more][-2:])}."
                )
            kept = {name: cells.get(name) for name in self.kept}
            yield kept | {f"{self.prefix}{name}": cell for name, cell in row.items()}

    @property
    def untyped(self) -> Collection[str]:
        """Columns of which only the cells say what they hold."""
        return [name for name, feature in self.features.items() if feature is None]


def _plain(feature: Any) -> Any:
    """A feature that Arrow has by itself; else None, and its cells are written as JSON at first."""
    kind = None if feature is None else Features({"x": feature}).arrow_schema.field("x").type
    return None if kind is None or _any(kind, pyarrow.ExtensionType) else feature


def _any(kind: pyarrow.DataType, wanted: type) -> bool:
    inner = (kind.field(n).type for n in range(kind.num_fields))
    return isinstance(kind, wanted) or any(_any(one, wanted) for one in inner)


def _has_bytes(feature: Any) -> bool:
    if feature is None:
        return False

    def inside(kind: pyarrow.DataType) -> bool:
        own = pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)
        return own or any(inside(kind.field(n).type) for n in range(kind.num_fields))

    return inside(Features({"x": feature}).arrow_schema.field("x").type)


def as_json(cell: Any) -> str:
    """A cell as JSON; what JSON hasn't, such as a date, as text.

    Raises:
        UserError: it is bytes.
    """
    return json.dumps(cell, ensure_ascii=False, default=_text_of)


def _text_of(value: Any) -> str:
    if isinstance(value, bytes):
        raise UserError("A cell that is kept holds bytes, which is no text: name other columns with --keep.")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def as_text(cell: Any) -> str | None:
    """A cell as the text that a CSV file has of it; None for none."""
    if cell is None or isinstance(cell, str):
        return cell
    return as_json(cell) if isinstance(cell, bool | dict | list) else _text_of(cell)


def label_text(label: Any) -> Any:
    """A predicted label as a CSV file has it: several with bars between them, a mask as JSON."""
    if isinstance(label, Mapping):
        return json.dumps(label)
    return "|".join(label) if isinstance(label, list) else label
