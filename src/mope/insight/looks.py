"""Where a run looks: attention over a picture for several texts (Fig. 4), and its masks (Fig. 9, 10)."""

from collections.abc import Mapping, Sequence

import numpy
from PIL import Image

from mope.data.table import MemoryTable, Table
from mope.errors import UserError
from mope.insight import figures
from mope.insight.attention import attention_of
from mope.insight.explanation import Explanation
from mope.insight.pictures import Pictures
from mope.insight.report import Page
from mope.insight.routing import Floats
from mope.media.images import open_image
from mope.media.masks import open_mask, overlay
from mope.predictor import Predictor

_Panel = tuple[Image.Image, str]
"""A picture and its caption."""


def add_looks(
    page: Page, predictor: Predictor, other: Predictor | None, found: Explanation, pictures: Pictures
) -> None:
    """Attention over pictures for several texts of each, or masks."""
    runs = {predictor.run.name: predictor}
    if other is not None:
        name, beside = (run.run.resolve().name for run in (predictor, other))
        if name == beside:  # of a study, such as mope/seed0 and p-seqfuse/seed0
            name, beside = ("/".join(run.run.resolve().parts[-2:]) for run in (predictor, other))
        runs = {name: predictor, beside if beside != name else f"{beside} (beside)": other}
    if predictor.settings.picture is not None:
        _masks(page, runs, found, pictures)
    page.heading("Where it looks")
    if found.attention is None:
        page.note(f"This can't be shown: {found.no_attention}")
    elif not pictures.texts:
        page.note("This run has no texts to compare.")
    else:
        _attention(page, runs, found, pictures)


def _attention(page: Page, runs: Mapping[str, Predictor], found: Explanation, pictures: Pictures) -> None:
    makes_masks = next(iter(runs.values())).settings.picture is not None
    whose = "that of the patches inside the predicted mask, " if makes_masks else ""
    page.note(
        f"The last layer's attention over the picture, {whose}for the same one with three texts: its own and "
        "two of other rows. Bright is where it looks; brightness is relative within a picture. A run that "
        "follows its texts looks elsewhere when they ask for something else."
    )
    strips, numbers, failed = [], [], set()
    for place in _spread(len(found.table), 4):
        picture, rows = pictures.picture(place), _with_texts(found.table, pictures, place)
        if picture is None:
            continue
        panels = [] if makes_masks else [(picture, "the picture")]
        for name, run in runs.items():
            if name in failed:
                continue
            try:
                looked = _Looked(run, rows, picture)
            except UserError as error:
                page.note(f"{name}: {error}")
                failed.add(name)
                continue
            own = looked.panels(pictures, f"{name}: " if len(runs) > 1 else "")
            if makes_masks:  # a mask beside each: a run has a line of its own
                strips.append(_strip([_right(run, picture, found.table, place, pictures), *own]))
            panels += own
            for row, attention in zip(rows, looked.maps, strict=True):
                text, number = pictures.text_of(row), found.table.numbers[place]
                numbers.append({"run": name, "row": number, "text": text, "map": attention.tolist()})
        if not makes_masks:
            strips.append(_strip(panels))
    if strips:
        caption = "Where it looks in a picture, by text."
        page.figure("attention", (figures.stack(strips), numbers), caption)


class _Looked:
    """What a run makes of one picture with several texts.

    Args:
        run: which.
        rows: the picture's, a text each.
        picture: the picture.

    Attributes:
        maps: attention, (N, rows, columns).

    Raises:
        UserError: its attention can't be had.
    """

    def __init__(self, run: Predictor, rows: MemoryTable, picture: Image.Image):
        self.run, self.rows, self.picture = run, rows, picture
        self.maps: Floats = attention_of(run, rows)

    def panels(self, pictures: Pictures, before: str) -> list[_Panel]:
        """For each text the picture as it is looked at, after the mask that the text gets, if any.

        Args:
            pictures: knows a row's texts.
            before: what captions begin with.
        """
        settings, found = self.run.settings, []
        seen = figures.seen_part(self.picture, settings.inputs[settings.fusion.main])
        predictions = self.run.predict(self.rows) if settings.picture is not None else [None] * len(self.rows)
        for row, attention, prediction in zip(self.rows, self.maps, predictions, strict=True):
            caption = f"{before}{pictures.text_of(row)}"
            if prediction is not None:
                mask = open_mask(prediction.label, self.rows.folder, empty=True)
                found.append((overlay(self.picture, mask), caption))
                caption = "its attention" if mask.any() else "nothing inside: all patches' attention"
            found.append((figures.glow(seen, attention), caption))
        return found


def _right(run: Predictor, picture: Image.Image, table: Table, place: int, pictures: Pictures) -> _Panel:
    """A picture with its right mask, or without one where the table has none."""
    label = run.settings.data.label
    if label not in table.columns:
        return picture, "the picture"
    mask = open_mask(table[place][label], table.folder)
    return overlay(picture, mask), f"right: {pictures.text(place)}"


def _strip(panels: Sequence[_Panel]) -> Image.Image:
    return figures.strip([picture for picture, _ in panels], [caption for _, caption in panels])


def _with_texts(table: Table, pictures: Pictures, place: int) -> MemoryTable:
    """A row with its own texts, and with those of two other rows, which differ; of the same picture first."""
    rows = [dict(table[place])]
    order = [(place + step) % len(table) for step in range(1, len(table))]
    cells = table.column(str(pictures.image))
    if isinstance(cells[place], str):
        order.sort(key=lambda other: cells[other] != cells[place])
    for other in map(table.__getitem__, order):
        texts = {column: other.get(column) for column in pictures.texts}
        if all(any(row.get(column) != texts[column] for column in texts) for row in rows):
            rows.append({**rows[0], **texts})
        if len(rows) == 3:
            break
    return MemoryTable(rows, table.folder)


def _masks(page: Page, runs: Mapping[str, Predictor], found: Explanation, pictures: Pictures) -> None:
    page.heading("Its masks")
    chosen = found.table.select(_spread(len(found.table), 12))
    answers = {name: run.predict(chosen) for name, run in runs.items()}
    label = next(iter(runs.values())).settings.data.label
    strips, numbers = [], []
    for place, row in enumerate(chosen):
        picture = open_image(row[str(pictures.image)], chosen.folder)
        shown, captions = [], []
        if label in chosen.columns:
            shown.append(overlay(picture, open_mask(row[label], chosen.folder)))
            captions.append("right: " + " | ".join(str(row[text]) for text in pictures.texts))
        for name, predictions in answers.items():
            mask = predictions[place].label
            if isinstance(mask, dict):
                shown.append(overlay(picture, open_mask(mask, chosen.folder, empty=True)))
                captions.append(name)
                numbers.append({"run": name, "row": chosen.numbers[place], "mask": mask})
        strips.append(figures.strip(shown, captions))
    page.figure("masks", (figures.stack(strips), numbers), "Right masks, and what the runs take for them.")


def _spread(size: int, count: int) -> Sequence[int]:
    """So many places, evenly spread."""
    return sorted({int(place) for place in numpy.linspace(0, size - 1, min(count, size))})
