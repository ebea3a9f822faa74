"""What is allowed but surely not meant: said before training, not refused."""

import math
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from mope.config import Config
from mope.data.stream import Stream
from mope.data.table import Table
from mope.errors import shown
from mope.media.cells import is_missing
from mope.media.values import open_number
from mope.model import FusionModel
from mope.tasks import label_text

_LOOKED_AT = 1000
_CLASSES = 20


def doubts(config: Config, model: FusionModel, table: Table | Stream) -> Iterator[str]:
    """Sentences about a config and its training rows.

    Args:
        config: the settings.
        model: built from it.
        table: training rows; of a stream none is looked at.
    """
    if isinstance(table, Table):
        yield from _of_labels(config, table)
    if config.has_classes:
        yield from _of_names(table.name, model.task.labels)
    for name, entry in config.inputs.items():
        if name not in model.fusion.encoders or entry.size is None:
            continue
        patch = math.isqrt(model.fusion.encoder(name).encoder.patch_area)
        sides = (entry.size, entry.size) if isinstance(entry.size, int) else entry.size
        left = max(side % patch for side in sides)
        if left and patch > 1:
            yield (
                f"inputs.{name}.size is {entry.size}, which patches of {patch} pixels don't divide: {left} "
                f"pixels at an edge aren't seen; take a multiple of {patch}."
            )


def _of_labels(config: Config, table: Table) -> Iterator[str]:
    label, task = config.data.label, config.task
    if not config.has_classes or label not in table.columns:
        return
    if task == "classification":
        yield from _of_blanks(table.name, table.values(label))
    cells = table.select(range(min(len(table), _LOOKED_AT))).column(label)
    texts = [label_text(cell) for cell in cells if not is_missing(cell) and not isinstance(cell, list)]
    if texts and sum(text.startswith(("[", "{")) for text in texts) > len(texts) / 2:
        yield (
            f"{table.name}: the labels look like JSON, such as '{shown(texts[0], 40)}', and are taken as "
            f"they are; of several labels give lists, or texts with '{config.data.separator}' between them."
        )
    if task == "classification" and len(set(texts)) > _CLASSES and all(map(_is_fraction, set(texts))):
        yield (
            f"{table.name}: the {len(set(texts))} labels are numbers with fractions, each one a class; "
            "for a number set task to regression."
        )


def _of_blanks(table: str, cells: Iterator[Any]) -> Iterator[str]:
    """What is said of labels with blanks around them, which are taken without."""
    found = [cell for cell in cells if isinstance(cell, str) and cell.strip() != cell and cell.strip()]
    if found:
        have = "label has" if len(found) == 1 else "labels have"
        yield (
            f"{table}: {len(found):,} {have} blanks around the name, such as '{shown(found[0])}', and are "
            "taken without."
        )


def _of_names(table: str, labels: Sequence[str]) -> Iterator[str]:
    """What is said of classes whose names look the same: differing by case, blanks, or what isn't seen."""
    alike: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        alike[_plainly(label)].append(label)
    groups = [names for names in alike.values() if len(names) > 1]
    if groups:
        names = " and ".join(f"'{shown(name, 30)}'" for name in groups[0][:3])
        more = f" ({len(groups) - 1} more like this)" if len(groups) > 1 else ""
        yield (
            f"{table}: the labels {names} differ by no more than case, blanks or what isn't seen, and each "
            f"is a class{more}; if they are one, write them alike."
        )


def _plainly(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in plain if not c.isspace() and unicodedata.category(c) != "Cf")


def _is_fraction(text: str) -> bool:
    try:
        number = open_number(text)
    except ValueError:
        return False
    return number is not None and not number.is_integer()
