"""A study's other data sets: what each changes of the study, and what the paper has on it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mope.errors import UserError, shown


def merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A study with changes; settings are merged, all else is replaced.

    On another base the tables aren't made from the same published files.
    """
    found = {**content, **({"published": None} if "base" in changes else {}), **changes}
    for key in ("settings", "tune"):
        if isinstance(content.get(key), dict) and isinstance(changes.get(key), dict):
            found[key] = {**content[key], **changes[key]}
    return found


def of_set(content: Mapping[str, Any], name: str, file: Path) -> dict[str, Any]:
    """The study on another of its data sets.

    Nothing of the paper's, nothing tuned and no small size is taken over from the study's own data set.

    Args:
        content: the study's file.
        name: which of its `sets`.
        file: what messages call it.

    Raises:
        UserError: there is no such data set, or it names a row that there isn't.
    """
    sets = content.get("sets") or {}
    if not isinstance(sets, dict) or not all(isinstance(entry, dict) for entry in sets.values()):
        raise UserError(f"In {file}: 'sets' is a mapping of names to what each data set changes.")
    if name not in sets:
        there = ", ".join(sets) or "none beside its own"
        raise UserError(f"{file} has no data set '{shown(name)}': there are {there}.")
    changes = {"tuned": None, "quick": {}, **sets[name]}
    left_out, paper = changes.pop("leave_out", []), changes.pop("paper", {})
    if "output" not in changes and isinstance(content.get("output"), str):
        changes["output"] = f"{content['output']}_{name.replace('-', '_')}"
    found = merged(content, changes)
    found.pop("sets")
    rows, labels = found.get("rows"), labels_of(found)
    for label in (*left_out, *paper):
        if label not in labels:
            raise UserError(f"In {file}: the data set {name} names no row '{label}': {', '.join(labels)}.")
    found["rows"] = [
        {**row, "paper": paper.get(label, {})} if isinstance(row, dict) else row
        for label, row in zip(labels, rows if labels and rows else [], strict=True)
        if label not in left_out
    ]
    return found


def labels_of(content: Mapping[str, Any]) -> list[str]:
    """What the rows of a study's file are called."""
    rows = content.get("rows")
    return [_label(row) for row in rows] if isinstance(rows, list) else []


def _label(row: Any) -> str:
    """What a row is called, see `RowConfig.label`."""
    return (row.get("name") or row.get("method") or "base") if isinstance(row, dict) else ""
