"""An exploratory report on tables: balance, lengths, sizes, gaps, duplicates across splits, samples."""

import base64
import hashlib
import html
import io
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mope.data.table import Table
from mope.files import replacing
from mope.media.audio import open_audio
from mope.media.cells import BadCell, is_missing
from mope.media.images import open_image
from mope.media.texts import open_text
from mope.media.values import VALUES, is_nothing
from mope.media.video import open_video
from mope.tasks import label_text, split_labels

SAMPLES = 24
_SHEET = (6, 112)  # samples per line, side in pixels


class _Rows(Dataset):
    """What is noted of each row, by column."""

    def __init__(self, table: Table, columns: Mapping[str, str]):
        self.table, self.columns = table, columns

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.table[index]
        return {
            column: _note(row.get(column), kind, self.table.folder) for column, kind in self.columns.items()
        }


def _note(cell: Any, kind: str, folder: Path) -> dict[str, Any]:
    """Sizes of a cell and a hash of what it shows; or that it is missing or broken."""
    if is_missing(cell) or (kind in VALUES and is_nothing(cell)):
        return {"state": "missing"}
    try:
        if kind == "image":
            image = open_image(cell, folder)
            content, sizes = image.tobytes(), {"width": image.width, "height": image.height}
        elif kind == "audio":
            samples = open_audio(cell, folder, 16000)
            content, sizes = samples.tobytes(), {"seconds": len(samples) / 16000}
        elif kind == "video":
            frames = open_video(cell, folder)
            content = b"".join(frame.tobytes() for frame in frames)
            sizes = {"width": frames[0].width, "height": frames[0].height}
        elif kind in VALUES:
            value = VALUES[kind](cell, folder)
            content, sizes = str(value).encode(), {kind: value} if isinstance(value, float) else {}
        else:
            text = open_text(cell, folder)
            content, sizes = (
                " ".join(text.lower().split()).encode(),
                {
                    "characters": len(text),
                    "words": len(text.split()),
                },
            )
    except BadCell as error:
        return {"state": "broken", "reason": str(error)}
    return {"state": "good", "hash": hashlib.blake2b(content, digest_size=12).digest(), "sizes": sizes}


def describe(
    tables: Mapping[str, Table],
    columns: Mapping[str, str],
    label: str | None = None,
    workers: int = 1,
    separator: str | None = None,
) -> dict[str, Any]:
    """Look at every row of tables.

    Args:
        tables: by split.
        columns: kind of each input's column.
        label: the label's column.
        workers: processes that read.
        separator: what separates the labels of a cell of text; None where it is one label.

    Returns:
        `splits`, by name: `rows`, `labels` (counts, most frequent first), `columns` (kind, missing and broken
        cells, and `least`, `median`, `most` of each size); and `duplicates`: cells, and whole rows, that are
        in two splits, by column and pair of splits.
    """
    splits, hashes = {}, {}
    for split, table in tables.items():
        notes = _read(table, columns, workers)
        splits[split] = {
            "rows": len(table),
            "labels": _labels(table, label, separator),
            "columns": {
                column: _summary([note[column] for note in notes], kind) for column, kind in columns.items()
            },
        }
        hashes[split] = _hashes(notes, columns)
    return {"splits": splits, "duplicates": _duplicates(hashes)}


def _read(table: Table, columns: Mapping[str, str], workers: int) -> list[dict[str, Any]]:
    loader = DataLoader(
        _Rows(table, columns), batch_size=64, num_workers=workers if len(table) >= 500 else 0, collate_fn=list
    )
    notes: list[dict[str, Any]] = []
    with tqdm(total=len(table), desc=f"reading {table.name}", unit="row", leave=False, disable=None) as bar:
        for batch in loader:
            notes += batch
            bar.update(len(batch))
    return notes


def _labels(table: Table, label: str | None, separator: str | None) -> dict[str, int]:
    if label is None:
        return {}
    counts: Counter[str] = Counter()
    for value in table.column(label):
        several = separator is not None or isinstance(value, list)
        counts.update(split_labels(value, separator or "") if several else [label_text(value)])
    return dict(counts.most_common())


def _summary(notes: Sequence[Mapping[str, Any]], kind: str) -> dict[str, Any]:
    states = Counter(note["state"] for note in notes)
    sizes: dict[str, list[float]] = defaultdict(list)
    for note in notes:
        for name, value in note.get("sizes", {}).items():
            sizes[name].append(value)
    return {
        "kind": kind,
        "missing": states["missing"],
        "broken": states["broken"],
        "different": len({note["hash"] for note in notes if "hash" in note}),
        "sizes": {
            name: {"least": min(values), "median": statistics.median(values), "most": max(values)}
            for name, values in sizes.items()
        },
    }


def _hashes(notes: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> dict[str, set[bytes]]:
    """Hashes of the good cells of each column, and of the rows all of whose cells are good."""
    found = {column: {note[column]["hash"] for note in notes if "hash" in note[column]} for column in columns}
    whole = [note for note in notes if all("hash" in note[column] for column in columns)]
    found["whole row"] = {b"".join(note[column]["hash"] for column in columns) for note in whole}
    return found


def _duplicates(hashes: Mapping[str, Mapping[str, set[bytes]]]) -> list[dict[str, Any]]:
    names, found = list(hashes), []
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            for column in hashes[one]:
                if shared := hashes[one][column] & hashes[other][column]:
                    found.append({"splits": [one, other], "column": column, "shared": len(shared)})
    return found


def contact_sheet(
    table: Table, column: str, kind: str, count: int = SAMPLES
) -> tuple[Image.Image, list[int]]:
    """A picture of evenly spaced samples of an image or video column, and their places in the table."""
    per_line, side = _SHEET
    pictures, places = [], []
    for turn in range(min(count, len(table))):
        place = turn * len(table) // min(count, len(table))
        try:
            cell = table[place].get(column)
            picture = open_video(cell, table.folder)[3] if kind == "video" else open_image(cell, table.folder)
        except BadCell:
            continue
        picture.thumbnail((side, side))
        pictures.append(picture)
        places.append(place)
    lines = max(1, -(-len(pictures) // per_line))
    sheet = Image.new("RGB", (per_line * (side + 4), lines * (side + 4)), "white")
    for number, picture in enumerate(pictures):
        corner = (number % per_line * (side + 4) + 2, number // per_line * (side + 4) + 2)
        sheet.paste(picture, corner)
    return sheet, places


def write_report(
    content: Mapping[str, Any],
    tables: Mapping[str, Table],
    columns: Mapping[str, str],
    label: str | None,
    file: Path,
) -> None:
    """Write the report as one HTML file, with a contact sheet per column of pictures."""
    parts = ["<!doctype html><meta charset=utf-8><title>Tables</title>", _STYLE]
    for split, entry in content["splits"].items():
        parts.append(f"<h2>{_e(split)}: {entry['rows']:,} rows</h2>")
        header = ["column", "kind", "missing", "broken", "different", "sizes (least, median, most)"]
        rows = [
            [column, c["kind"], c["missing"], c["broken"], c["different"], _sizes(c["sizes"])]
            for column, c in entry["columns"].items()
        ]
        parts.append(_html_table(header, rows))
        if entry["labels"]:
            total, most = sum(entry["labels"].values()), max(entry["labels"].values())
            bars = [
                f"<tr><td>{_e(name)}<td>{count:,}<td>{count / total:.1%}"
                f"<td><i style='width:{200 * count // most}px'></i>"
                for name, count in list(entry["labels"].items())[:60]
            ]
            more = len(entry["labels"]) - 60
            note = f"<p>and {more} more labels" if more > 0 else ""
            parts.append(f"<table class=bars>{''.join(bars)}</table>{note}")
        for column, kind in columns.items():
            if kind in ("image", "video"):
                parts.append(_html_sheet(tables[split], column, kind, columns, label))
    shared = [[" and ".join(d["splits"]), d["column"], f"{d['shared']:,}"] for d in content["duplicates"]]
    parts.append("<h2>The same in two splits</h2>")
    parts.append(_html_table(["splits", "column", "shared"], shared) if shared else "<p>Nothing.")
    with replacing(file) as draft:
        draft.write_text("\n".join(parts), encoding="utf-8")


_STYLE = """<style>
body { font: 15px sans-serif; max-width: 860px; margin: 2em auto; color: #222 }
td, th { padding: 2px 10px; text-align: left; vertical-align: top }
.bars i { display: inline-block; height: 10px; background: #30638e }
</style>"""


def _e(value: Any) -> str:
    return html.escape(str(value))


def _html_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{_e(name)}" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{_e(cell)}" for cell in row) for row in rows)
    return f"<table><tr>{head}{body}</table>"


def _html_sheet(table: Table, column: str, kind: str, columns: Mapping[str, str], label: str | None) -> str:
    sheet, places = contact_sheet(table, column, kind)
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    texts = [name for name, its_kind in columns.items() if its_kind == "text"]
    lines = [
        [
            table.numbers[place],
            *(table[place].get(name) for name in texts),
            table[place].get(label) if label else "",
        ]
        for place in places[:8]
    ]
    return f"<h3>{_e(column)}</h3><img alt='samples' src='data:image/jpeg;base64,{data}'>" + _html_table(
        ["row", *texts, label or ""], lines
    )


def _sizes(sizes: Mapping[str, Mapping[str, float]]) -> str:
    return "; ".join(
        f"{name} {value['least']:.4g}, {value['median']:.4g}, {value['most']:.4g}"
        for name, value in sizes.items()
    )


def as_rows(content: Mapping[str, Any]) -> list[list[str]]:
    """The report's columns as lines of a table: split, column, kind, missing, broken, different, sizes."""
    return [
        [
            split,
            column,
            entry["kind"],
            *(str(entry[key]) for key in ("missing", "broken", "different")),
            _sizes(entry["sizes"]),
        ]
        for split, found in content["splits"].items()
        for column, entry in found["columns"].items()
    ]
