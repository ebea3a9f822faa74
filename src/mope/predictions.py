"""What a run says of rows, and files of it: tables, masks, pictures with masks laid over them."""

import csv
import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Value

from mope.data.table import Table, dataset_of
from mope.errors import UserError
from mope.files import replacing
from mope.media.images import open_image
from mope.media.masks import open_mask, overlay, save_mask

if TYPE_CHECKING:
    import pandas

FORMATS = (".csv", ".jsonl", ".parquet")


@dataclass
class Prediction:
    """What a run says of one row.

    Attributes:
        label: the predicted label: a text, a list of texts (multi-label), a number (regression), or a mask as
            COCO's run lengths, `{"size": [height, width], "counts": "..."}` (referring segmentation); None
            with an error, and where the caller wanted none below some probability.
        probabilities: by label; empty where there are no labels by name.
        routing: scores of each layer's experts, (L, k); empty for a method without a router.
        error: why the row can't be used; then the rest is empty.
    """

    label: Any = None
    probabilities: dict[str, float] = field(default_factory=dict)
    routing: list[list[float]] = field(default_factory=list)
    error: str | None = None

    def abstained(self, below: float | None) -> "Prediction":
        """The same; without a label if its probability is below this, None for any."""
        unsure = below is not None and max(self.probabilities.values(), default=0) < below
        return replace(self, label=None) if unsure else self


@dataclass(frozen=True)
class PredictedRows:
    """Rows that follow on each other, and what a run says of them.

    Attributes:
        numbers: the rows' own, for messages.
        predictions: one per row.
        kept: cells of each row that are kept beside its prediction, by column.
    """

    numbers: Sequence[int]
    predictions: Sequence[Prediction]
    kept: Sequence[Mapping[str, Any]]


class Predictions(list[Prediction]):
    """Predictions in the order of their rows.

    Args:
        predictions: one per row.
        classes: the task's labels in order; none where it has none by name.
    """

    def __init__(self, predictions: Iterable[Prediction] = (), classes: Sequence[str] = ()):
        super().__init__(predictions)
        self.classes = list(classes)

    @property
    def labels(self) -> list[Any]:
        """The predicted labels; None of a row that can't be used."""
        return [prediction.label for prediction in self]

    def to_pandas(self, routing: bool = False) -> "pandas.DataFrame":
        """A frame with the columns of `as_rows`: `label`, `probability_LABEL`, ..., `error`."""
        import pandas

        return pandas.DataFrame(as_rows(self, self.classes, routing))

    def __repr__(self) -> str:
        failed = sum(prediction.error is not None for prediction in self)
        few = ", ".join(str(label) for label in self.labels[:5])
        more = ", ..." if len(self) > 5 else ""
        bad = f"; {failed} can't be used" if failed else ""
        return f"<{len(self)} predictions: {few}{more}{bad}>"

    def _repr_html_(self) -> str:
        return self.to_pandas().head(20).to_html(max_cols=12)


def require_writable(out: Path) -> None:
    """Make sure that predictions can be written there: a file by its format, or a new folder.

    Raises:
        UserError: the name ends in something else or is a URL, or the folder isn't new.
    """
    require_format(out)
    if not out.suffix and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"Can't write {out}: it is there already; name a new folder.")


def require_format(out: Path) -> None:
    """Make sure that a name's ending says how predictions are written, or that it is a folder's.

    Raises:
        UserError: it ends in something else, or is a URL.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(out)):  # of a URL's two slashes a path keeps one
        raise UserError(f"{out} is elsewhere, but what is said is written to files of this machine.")
    if out.suffix and out.suffix.lower() not in FORMATS:
        raise UserError(
            f"Can't write {out}: name a {', '.join(FORMATS)} file, or a folder, whose name has no dot."
        )


def routing_columns(experts: Sequence[int]) -> list[str]:
    """Names of the columns of routing scores.

    Args:
        experts: how many each layer has.
    """
    return [f"routing_layer{i}_expert{j}" for i, count in enumerate(experts, 1) for j in range(1, count + 1)]


def as_rows(
    predictions: Sequence[Prediction],
    classes: Sequence[str],
    routing: bool = False,
    experts: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """A row per prediction, in order.

    Columns: `label`; `probability_LABEL` for each class; with `routing`, `routing_layerI_expertJ`; `error`.

    Args:
        predictions: of one run.
        classes: its task's labels.
        routing: whether to give scores.
        experts: how many each layer has; None for as many as the first prediction with scores says.
    """
    if experts is None:
        experts = [len(layer) for layer in next((p.routing for p in predictions if p.routing), [])]
    names = routing_columns(experts) if routing else []
    rows = []
    for prediction in predictions:
        scores = [score for layer in prediction.routing for score in layer] if routing else []
        rows.append(
            {
                "label": prediction.label,
                **{f"probability_{name}": prediction.probabilities.get(name) for name in classes},
                **dict(zip(names, scores or [None] * len(names), strict=True)),
                "error": prediction.error,
            }
        )
    return rows


def as_dataset(predictions: Sequence[Prediction], classes: Sequence[str], routing: bool = False) -> Dataset:
    """The same as a dataset."""
    rows = as_rows(predictions, classes, routing)
    found = dataset_of(rows) if rows else Dataset.from_dict({"label": [], "error": []})
    # Where no row is bad the column would have no type, and not go together with another that has.
    return found.cast_column("error", Value("string"))


def write_predictions(
    predictions: Sequence[Prediction], out: Path, classes: Sequence[str], routing: bool = False
) -> None:
    """Write predictions, one row each, in order: see `as_rows`.

    They become CSV, JSONL or Parquet by the file's name; without an ending, a folder that
    `datasets.load_from_disk` opens.

    Raises:
        UserError: see `require_writable`.
    """
    require_writable(out)
    if not out.suffix:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as draft:
            as_dataset(predictions, classes, routing).save_to_disk(Path(draft) / out.name)
            (Path(draft) / out.name).replace(out)
        return
    with replacing(out) as draft:
        if out.suffix.lower() == ".parquet":
            as_dataset(predictions, classes, routing).to_parquet(str(draft))
        else:
            _write_text(as_rows(predictions, classes, routing), draft)


def _write_text(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    if file.suffix.lower() == ".jsonl":
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]) if rows else ["label", "error"])
        writer.writeheader()
        writer.writerows({**row, "label": _cell(row["label"])} for row in rows)


def _cell(label: Any) -> Any:
    if isinstance(label, dict):
        return json.dumps(label)
    return "|".join(label) if isinstance(label, list) else label


def write_masks(predictions: Sequence[Prediction], numbers: Sequence[int], folder: Path) -> None:
    """Write each predicted mask as `rowN.png`, one bit per pixel, at its picture's own size.

    Args:
        predictions: of a referring segmentation; rows without a mask are left out.
        numbers: rows' numbers in their table.
        folder: made if it isn't there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, prediction in zip(numbers, predictions, strict=True):
        if isinstance(prediction.label, dict):
            mask = open_mask(prediction.label, folder, empty=True)
            save_mask(mask, folder / f"row{number:06d}.png")


def write_overlays(
    runs: Mapping[str, Sequence[Prediction]],
    table: Table,
    picture: str,
    texts: Sequence[str],
    folder: Path,
    truth: str | None = None,
) -> None:
    """Write pictures with masks laid over them, and a page of them all: `index.html`.

    Args:
        runs: predictions, one per row of the table, by what each run is called.
        table: the rows.
        picture: the pictures' column.
        texts: columns that are shown beside a picture.
        folder: made if it isn't there.
        truth: column of the right masks, if they are to be seen too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for place, (row, number) in enumerate(zip(table, table.numbers, strict=True)):
        masks = {name: found[place].label for name, found in runs.items()}
        if not all(isinstance(mask, dict) for mask in masks.values()):
            continue
        image = open_image(row[picture], table.folder)
        if truth is not None:
            masks = {"right": row[truth], **masks}
        cells = []
        for column, (name, mask) in enumerate(masks.items()):
            file = f"row{number:06d}_{column}.jpg"
            shown = overlay(image, open_mask(mask, table.folder, empty=True))
            shown.save(folder / file, quality=90)
            cells.append(f'<td><img src="{file}" alt="{escape(name)}"></td>')
        words = " - ".join(str(row[text]) for text in texts)
        lines.append(f"<tr><td>{number}</td><td>{escape(words)}</td>{''.join(cells)}</tr>")
    names = [*(["right"] if truth is not None else []), *runs]
    heads = "".join(f"<th>{escape(name)}</th>" for name in ("row", "text", *names))
    (folder / "index.html").write_text(
        "<!doctype html><meta charset=utf-8><title>Masks</title><style>body{font:15px sans-serif;margin:2em}"
        "img{width:180px}td,th{padding:.3em .6em;text-align:left}</style><h1>Masks</h1>"
        f"<table><tr>{heads}</tr>{''.join(lines)}</table>\n",
        encoding="utf-8",
    )
