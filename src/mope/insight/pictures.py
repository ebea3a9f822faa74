"""A report's rows as its galleries show them."""

from collections.abc import Mapping
from typing import Any

from mope.data.table import Table
from mope.insight.report import Page, Sample, thumbnail
from mope.media.cells import BadCell
from mope.media.images import open_image
from mope.predictor import Predictor


class Pictures:
    """The rows as a gallery shows them; each picture is read once, and is in the page once."""

    def __init__(self, page: Page, predictor: Predictor, table: Table):
        settings = predictor.settings
        self.page, self.table, self.settings = page, table, settings
        used = {name: settings.inputs[name] for name in predictor.readers}
        images = [name for name, entry in used.items() if entry.kind == "image"]
        chosen = settings.fusion.main if settings.fusion.main in images else next(iter(images), None)
        self.entry = used[chosen] if chosen is not None else None
        self.image = self.entry.column if self.entry is not None else None
        self.texts = [entry.column for entry in used.values() if entry.kind == "text"]
        self.label = (
            settings.data.label if settings.data.label in table.columns and settings.picture is None else None
        )
        self._known: dict[int, Sample] = {}

    def text(self, place: int) -> str:
        """A row's texts."""
        return self.text_of(self.table[place])

    def text_of(self, row: Mapping[str, Any]) -> str:
        """The texts of a row that isn't the table's own."""
        return " | ".join(str(row[name]) for name in self.texts if row.get(name))

    def picture(self, place: int) -> Any:
        """A row's picture, or None."""
        try:
            return open_image(self.table[place][self.image], self.table.folder) if self.image else None
        except (BadCell, KeyError):
            return None

    def sample(self, place: int) -> Sample:
        """A row."""
        if place not in self._known:
            picture = self.picture(place)
            label = "" if self.label is None else _text_of(self.table[place][self.label])
            shown = None if picture is None else self.page.picture(f"row{place}", thumbnail(picture))
            self._known[place] = Sample(shown, self.text(place), label)
        return self._known[place]


def _text_of(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
