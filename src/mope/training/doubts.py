"""What is allowed but surely not meant: said before training, not refused."""

import math
from collections.abc import Iterator

from mope.config import Config
from mope.data.table import Table
from mope.media.cells import is_missing
from mope.media.values import open_number
from mope.model import FusionModel
from mope.tasks import label_text

_LOOKED_AT = 1000
_CLASSES = 20


def doubts(config: Config, model: FusionModel, table: Table) -> Iterator[str]:
    """Sentences about a config and its training rows.

    Args:
        config: the settings.
        model: built from it.
        table: training rows.
    """
    yield from _of_labels(config, table)
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
    cells = table.select(range(min(len(table), _LOOKED_AT))).column(label)
    texts = [label_text(cell) for cell in cells if not is_missing(cell) and not isinstance(cell, list)]
    if texts and sum(text.startswith(("[", "{")) for text in texts) > len(texts) / 2:
        yield (
            f"{table.name}: the labels look like JSON, such as {texts[0][:40]!r}, and are taken as they are; "
            f"of several labels give lists, or texts with '{config.data.separator}' between them."
        )
    if task == "classification" and len(set(texts)) > _CLASSES and all(map(_is_fraction, set(texts))):
        yield (
            f"{table.name}: the {len(set(texts))} labels are numbers with fractions, each one a class; "
            "for a number set task to regression."
        )


def _is_fraction(text: str) -> bool:
    try:
        number = open_number(text)
    except ValueError:
        return False
    return number is not None and not number.is_integer()
