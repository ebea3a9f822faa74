"""Rows that are in memory already: frames, lists, mappings; and cells as people hold them."""

import io
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
from datasets import ClassLabel, Dataset, List, Value
from PIL import Image

from mope.errors import UserError, shown
from mope.media.cells import BadCell
from mope.media.safety import reason_of


def plain_cell(cell: Any) -> Any:
    """A cell as a table holds it: a path as text, a picture as the bytes of a PNG, a scalar as Python's.

    Args:
        cell: besides what a table holds a Path, a PIL image, or a NumPy array or torch tensor: a scalar, or a
            picture's bytes, (height, width, 3), (3, height, width) or (height, width).

    Raises:
        BadCell: it is an array that is no picture.
    """
    if isinstance(cell, Path):
        return str(cell)
    if isinstance(cell, Image.Image):
        return _png(cell)
    if hasattr(cell, "detach"):  # a tensor, without asking for torch
        cell = cell.detach().cpu().numpy()
    if isinstance(cell, numpy.ndarray) and cell.ndim:
        return _png(picture_of(cell)) if cell.ndim > 1 else cell.tolist()
    if isinstance(cell, numpy.generic | numpy.ndarray):
        cell = cell.astype("datetime64[us]").item() if cell.dtype.kind == "M" else cell.item()
    # In a pandas column of texts an empty cell is the number NaN.
    missing = type(cell).__name__ in ("NAType", "NaTType") or (isinstance(cell, float) and math.isnan(cell))
    return None if missing else cell


def picture_of(pixels: numpy.ndarray) -> Image.Image:
    """The picture of an array, uint8 (height, width, 3), (3, height, width) or (height, width).

    Raises:
        BadCell: it is something else.
    """
    if pixels.dtype != numpy.uint8:
        raise BadCell(f"an array of {pixels.dtype} where a picture's uint8 is expected")
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4) and pixels.shape[2] not in (1, 3, 4):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)) or not pixels.size:
        raise BadCell(f"an array of shape {pixels.shape} where a picture is expected")
    return Image.fromarray(numpy.ascontiguousarray(pixels))


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    try:
        image.load()
    except Exception as error:  # Pillow's readers raise whatever they stumble over
        raise BadCell(f"broken image: {reason_of(error)}") from None
    image = image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else image.convert("RGB")
    image.save(content, "PNG", compress_level=1)
    return content.getvalue()


def frame_rows(source: Any, name: str = "the rows") -> Dataset | Sequence[Mapping[str, Any]]:
    """Rows in memory, as a dataset where a frame is one already, else as plain mappings.

    Args:
        source: a pandas or polars frame, an Arrow table, a sequence of mappings, or one mapping of columns.
        name: how messages call it.

    Raises:
        UserError: it is none of these, a column's name isn't text, or a cell holds what no table can.
    """
    home = type(source).__module__.partition(".")[0]
    if home == "pandas" and hasattr(source, "columns"):
        _require_names(source.columns)
        if not any(str(kind) in ("object", "category") for kind in source.dtypes):
            return Dataset.from_pandas(source.reset_index(drop=True), preserve_index=False)
        columns = {column: source[column].tolist() for column in source.columns}
    elif home == "polars" and hasattr(source, "columns"):
        if not any(str(kind) == "Object" for kind in source.dtypes):
            return Dataset(source.to_arrow())
        columns = {column: source[column].to_list() for column in source.columns}
    elif home == "pyarrow" and hasattr(source, "column_names"):
        return Dataset(source)
    elif isinstance(source, Mapping):
        columns = {column: list(cells) for column, cells in source.items()}
        if len({len(cells) for cells in columns.values()}) > 1:
            raise UserError(f"{name}: its columns have different lengths.")
    elif isinstance(source, Sequence) and not isinstance(source, str | bytes):
        return _plain_rows(source, name)
    else:
        raise UserError(
            f"A {type(source).__name__} is no table: give a file's name, a pandas or polars frame, a "
            "datasets.Dataset, or a list of mappings."
        )
    _require_names(columns)
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    return _plain_rows(rows, name)


def _require_names(columns: Any) -> None:
    names = list(columns)
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"Two columns are named {shown(repr(twice[0]))}: rename one.")
    for column in names:
        if not isinstance(column, str):
            raise UserError(f"A column is named {shown(column)}, which is no text: give every column a name.")


def _plain_rows(rows: Sequence[Any], name: str) -> list[dict[str, Any]]:
    found = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise UserError(
                f"{name}, row {number}: a {type(row).__name__} is no row, which maps columns to cells."
            )
        _require_names(row)
        plain = {}
        for column, cell in row.items():
            try:
                plain[column] = plain_cell(cell)
            except BadCell as error:
                raise UserError(f"{name}, row {number}, column '{shown(column)}': {error}.") from None
        found.append(plain)
    return found


def label_columns(rows: Dataset) -> Dataset:
    """A dataset whose `ClassLabel`s are the names that they stand for; -1, which stands for none, is null."""
    for column, feature in rows.features.items():
        if (label := label_of(feature)) is None:
            continue
        named = [name_of(label, value) for value in rows[column]]
        order, kind = rows.column_names, named_feature(feature)
        rows = rows.remove_columns(column).add_column(column, named, feature=kind)  # type: ignore[call-arg]
        rows = rows.select_columns(order)
    return rows


def label_of(feature: Any) -> ClassLabel | None:
    """The `ClassLabel` that a column has, or a list of each of its cells; None for none, or without names."""
    inner = getattr(feature, "feature", feature)
    return inner if isinstance(inner, ClassLabel) and inner.names is not None else None


def named_feature(feature: Any) -> Any:
    """What a column holds once its labels are the names that they stand for."""
    if label_of(feature) is None:
        return feature
    return List(Value("string")) if hasattr(feature, "feature") else Value("string")


def name_of(label: ClassLabel, value: Any) -> Any:
    """The name that a label, or each of a list, stands for; None for -1 and null."""
    if isinstance(value, list):
        return [name_of(label, one) for one in value]
    return None if value is None or value < 0 else label.int2str(value)


def by_input(
    row: Mapping[str, Any], columns: Mapping[str, Sequence[str]], tables: Collection[str] = ()
) -> dict[str, Any]:
    """A row whose cells may be by input name as well: then they are put where the input's columns are.

    Args:
        row: cells by name.
        columns: of each input, by its name.
        tables: inputs of several columns, whose cell is a mapping of these.

    Raises:
        UserError: a table's cell is no mapping of its columns.
    """
    found = dict(row)
    for name, own in columns.items():
        if name in own or name not in row or any(column in row for column in own):
            continue
        cell = found.pop(name)
        if name not in tables:
            found[own[0]] = cell
        elif isinstance(cell, Mapping) and cell.keys() <= set(own):
            found |= {column: cell.get(column) for column in own}
        else:
            raise UserError(f"'{name}' is a mapping with some of {', '.join(own)}, not {cell!r:.60}.")
    return found
