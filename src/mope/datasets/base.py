"""What preparing a published data set has in common: splits, tables, a manifest."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mope.errors import UserError

MANIFEST = "manifest.json"
Rows = Iterator[dict[str, Any]]


@dataclass
class Dropped:
    """Rows that are left out, and why.

    Attributes:
        counts: by reason.
        examples: the first few of each reason.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, row: str) -> None:
        """Note a row that is left out."""
        self.counts[reason] += 1
        if len(shown := self.examples.setdefault(reason, [])) < 5:
            shown.append(row)


class Published(ABC):
    """A published data set.

    Attributes:
        name: what `mope data prepare` calls it.
        title: what its authors call it.
        task: the task that it is for.
        where: where to get it.
        licence: what its authors allow.
        files: what is expected in the folder, with what it is.
        counts: rows by split as published; "all" for their sum, of the first fold's where there are folds.
        label: the label's column.
        train: the split that configs name as training rows, of the first fold where there are folds.
    """

    name: str
    title: str
    task: str = "classification"
    where: str
    licence: str
    files: Mapping[str, str]
    counts: Mapping[str, int]
    label: str = "label"
    train: str = "train"

    @abstractmethod
    def splits(self, folder: Path, dropped: Dropped) -> dict[str, Rows]:
        """Rows by split; a path in a row is absolute, under a key of `paths`.

        Where the same rows are split in several ways, a split's name is `FOLD/SPLIT`, and its table is in a
        folder of that name.

        Args:
            folder: where the published files are.
            dropped: takes every row that is left out.

        Raises:
            UserError: a file is missing, or isn't what it should be.
        """

    paths: tuple[str, ...] = ("image",)

    def need(self, folder: Path, *names: str) -> Path:
        """The first of these that is there.

        Raises:
            UserError: none is.
        """
        for name in names:
            if (folder / name).exists():
                return folder / name
        raise UserError(
            f"{self.title}: there is no {' or '.join(names)} in {folder}; get it from {self.where}."
        )

    def image(self, file: Path, row: str, dropped: Dropped) -> str | None:
        """A picture's path, or None if it isn't there, which is noted."""
        if file.is_file():
            return str(file)
        dropped.add("missing image", f"{row} ({file.name})")
        return None


PUBLISHED: dict[str, Published] = {}
"""By name."""


def prepare(
    name: str, source: str | Path, out: str | Path, report: Callable[[str], Any] = print
) -> dict[str, Any]:
    """Write a table per split and a manifest.

    Args:
        name: which data set.
        source: folder of its files, as published.
        out: a new folder; paths in the tables are relative to it.
        report: takes each line that is said, such as counts that differ from the published ones.

    Returns:
        The manifest.

    Raises:
        UserError: there is no such data set, a file is missing or broken, or the folder is taken.
    """
    if name not in PUBLISHED:
        raise UserError(f"There is no data set '{name}': there are {', '.join(PUBLISHED)}.")
    dataset, source, out = PUBLISHED[name], Path(source), Path(out)
    if not source.is_dir():
        raise UserError(f"There is no folder {source}.")
    if out.exists():
        raise UserError(f"{out} is there already: name a new folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=out.parent))
    try:
        manifest = _write(dataset, source.absolute(), draft, out.absolute())
        draft.chmod(0o755)
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    for line in manifest["warnings"]:
        report(line)
    return manifest


def _write(dataset: Published, source: Path, draft: Path, out: Path) -> dict[str, Any]:
    dropped, splits = Dropped(), {}
    for split, rows in dataset.splits(source, dropped).items():
        file, labels, count = draft / f"{split}.jsonl", Counter[str](), 0
        file.parent.mkdir(exist_ok=True)
        digest = hashlib.sha256()
        with file.open("w", encoding="utf-8") as stream:
            for row in tqdm(rows, desc=f"{dataset.name} {split}", unit="row", leave=False, disable=None):
                for key in dataset.paths:
                    row[key] = _relative(row.get(key), draft, out, (out / split).parent)
                line = json.dumps(row, ensure_ascii=False) + "\n"
                stream.write(line)
                digest.update(line.encode())
                count += 1
                value = row.get(dataset.label)
                labels.update(value if isinstance(value, list) else [str(value)] if value is not None else [])
        splits[split] = {
            "rows": count,
            "labels": dict(labels.most_common()) if len(labels) <= 500 else {"different": len(labels)},
            "sha256": digest.hexdigest(),
        }
    manifest = {
        "name": dataset.name,
        "title": dataset.title,
        "licence": dataset.licence,
        "where": dataset.where,
        "label": dataset.label,
        "splits": splits,
        "dropped": dict(dropped.counts),
        "dropped_examples": dropped.examples,
        "warnings": list(_warnings(dataset, splits, dropped)),
    }
    (draft / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def _relative(value: Any, draft: Path, out: Path, home: Path) -> str | None:
    """A path relative to a table's folder, `home`; a picture that is there as bytes is written beside it."""
    if value is None:
        return None
    if isinstance(value, bytes):
        file = Path("images") / f"{hashlib.sha256(value).hexdigest()[:24]}.png"
        if not (draft / file).is_file():
            (draft / "images").mkdir(exist_ok=True)
            (draft / file).write_bytes(value)
        value = out / file
    return Path(os.path.relpath(value, home)).as_posix()


def _warnings(dataset: Published, splits: dict[str, Any], dropped: Dropped) -> Iterator[str]:
    found = {split: entry["rows"] for split, entry in splits.items()}
    first = Path(next(iter(found))).parent
    found["all"] = sum(count for split, count in found.items() if Path(split).parent == first)
    for split, count in dataset.counts.items():
        if found.get(split, 0) != count:
            what = "in all" if split == "all" else f"in {split}"
            yield f"{dataset.title} has {count:,} rows {what} as published; here are {found.get(split, 0):,}."
    for reason, count in dropped.counts.items():
        yield f"{count:,} rows are left out: {reason}, such as {dropped.examples[reason][0]}."
    for split, entry in splits.items():
        if not entry["rows"]:
            raise UserError(
                f"{dataset.title}: no row of {split} is left; are the pictures where they belong?"
            )


def read_json(file: Path) -> Any:
    """A JSON file's content.

    Raises:
        UserError: it isn't one.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{file} isn't a JSON file: {error}") from None


def read_jsonl(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file.

    Raises:
        UserError: a line isn't one.
    """
    with file.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            try:
                if line.strip():
                    yield json.loads(line)
            except ValueError as error:
                raise UserError(f"{file}, line {number}: not JSON ({error}).") from None


def words_of(sentence: str) -> str:
    """A sentence without its case and punctuation, to tell whether two are the same."""
    return " ".join(re.findall(r"\w+", sentence.casefold()))


def held_out(keys: Sequence[str], count: int) -> set[str]:
    """So many of these keys, the same on every machine: those whose hashes come first."""
    return set(sorted(keys, key=lambda key: hashlib.sha256(key.encode()).digest())[:count])
