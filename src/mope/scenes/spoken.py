"""Scenes with a voice: a picture of four things, a spoken word for one of them, and a question about it.

It takes all three to answer: the word says which corner, the question what is asked of it, the picture the
answer. A stand-in, offline, for a set with sound, pictures and text (Tab. IV).
"""

import csv
import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mope.errors import UserError
from mope.files import replacing_folder
from mope.scenes.compose import COLOURS, TEXTURES, Cell, Scene, Thing, compose
from mope.scenes.glyphs import ATTRIBUTION, kinds
from mope.scenes.voice import VOWELS, save_wave, speak
from mope.scenes.words import place_name

WORDS: dict[str, Cell] = dict(
    zip(VOWELS, [(row, column) for row in range(2) for column in range(2)], strict=True)
)
"""The corner that each spoken word means."""

QUESTIONS = {
    "thing": (
        "which thing is meant?",
        "what is there?",
        "name the thing that the voice means.",
        "what do you see there?",
    ),
    "colour": (
        "what is the colour of its tile?",
        "which colour is behind it?",
        "on what colour does it stand?",
        "name the colour there.",
    ),
}
"""What is asked, in several ways."""

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class SpokenSettings:
    """What a set is made from; the same settings give the same bytes.

    Attributes:
        train, validation, test: pictures per split; each has a row for each question.
        kinds: how many kinds of things there are, 4 to 12.
        size: side of a picture in pixels.
        seed: of everything.
    """

    train: int = 1500
    validation: int = 150
    test: int = 400
    kinds: int = 6
    size: int = 56
    seed: int = 0


def build_spoken(folder: str | Path, settings: SpokenSettings) -> dict[str, Any]:
    """Write a set, unless the folder holds the very same one already.

    The folder gets `train.csv`, `validation.csv`, `test.csv` with the columns `image`, `sound`, `question`,
    `asks`, `place` and `answer`, the files they name, and `manifest.json`.

    Returns:
        The manifest: settings; by split its rows, labels, a hash of the table, and `without`: the accuracy
        that no answer goes beyond from which one input is hidden.

    Raises:
        UserError: the folder holds something else, or a number is out of bounds.
    """
    folder = Path(folder)
    if (folder / MANIFEST).is_file():
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["settings"] == asdict(settings):
            return manifest
        raise UserError(f"{folder} holds a set made with other settings: name another folder or remove it.")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} isn't empty: name a new folder for the set.")
    if min(settings.train, settings.validation, settings.test) < 1 or settings.size < 28:
        raise UserError("Spoken scenes take at least one picture per split, of at least 28 pixels a side.")
    if not 4 <= settings.kinds <= 12:
        raise UserError(f"--kinds is {settings.kinds}: spoken scenes take 4 to 12 kinds of things.")
    manifest = {"settings": asdict(settings), "licence": ATTRIBUTION, "splits": {}}
    counts = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    with replacing_folder(folder) as draft:
        for part in ("images", "sounds"):
            (draft / part).mkdir()
        for split, count in counts.items():
            # One generator per split: a longer training set leaves the test set as it is.
            rng = random.Random(f"{settings.seed} spoken {split}")
            rows = []
            for number in tqdm(range(count), split, leave=False, disable=None):
                rows += _rows(draft, f"{split}_{number:06d}", settings, rng)
            with (draft / f"{split}.csv").open("w", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            manifest["splits"][split] = {
                "rows": len(rows),
                "labels": dict(sorted(Counter(row["answer"] for row in rows).items())),
                "sha256": hashlib.sha256((draft / f"{split}.csv").read_bytes()).hexdigest(),
                "without": bounds(rows),
            }
        text = json.dumps(manifest, indent=2) + "\n"
        (draft / MANIFEST).write_text(text, encoding="utf-8")
    return manifest


def _rows(folder: Path, stem: str, settings: SpokenSettings, rng: random.Random) -> Iterator[dict[str, Any]]:
    """A picture, and a row for each question, of a corner and by a speaker of its own."""
    pool = kinds("easy")[: settings.kinds]
    colours = list(COLOURS)
    cells = list(WORDS.values())
    chosen, tiles = rng.sample(pool, 4), rng.sample(colours, 4)
    things = tuple(Thing(kind, cell, colour) for kind, cell, colour in zip(chosen, cells, tiles, strict=True))
    scene = Scene(2, things, texture=rng.choice(TEXTURES))
    compose(scene, settings.size, rng).save(folder / "images" / f"{stem}.png", compress_level=4)
    for asks, texts in QUESTIONS.items():
        word, cell = rng.choice(list(WORDS.items()))
        sound = f"sounds/{stem}_{asks}.wav"
        save_wave(speak(word, rng), folder / sound)
        thing = things[cells.index(cell)]
        yield {
            "image": f"images/{stem}.png",
            "sound": sound,
            "question": rng.choice(texts),
            "asks": asks,
            "place": place_name(cell, 2),
            "answer": thing.kind if asks == "thing" else str(thing.colour),
            "shown": " ".join(f"{one.kind}/{one.colour}" for one in things),
        }


def bounds(rows: Sequence[dict[str, str]]) -> dict[str, float]:
    """The accuracy that no answer goes beyond from which the sound, the question or the picture is hidden.

    Of what is left the answers that fit are counted, as often as the set draws them: a corner in four, a
    question in two; without the picture what the rows themselves have is the most frequent.
    """
    hidden: dict[str, float] = {"sound": 0.0, "question": 0.5}
    places = [place_name(cell, 2) for cell in WORDS.values()]
    by_rest: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in rows:
        shown = [tuple(one.rsplit("/", 1)) for one in row["shown"].split(" ")]
        fits = Counter(kind if row["asks"] == "thing" else colour for kind, colour in shown)
        hidden["sound"] += max(fits.values()) / len(places)
        by_rest[row["asks"], row["place"]][row["answer"]] += 1
    hidden["sound"] /= len(rows)
    hidden["picture"] = sum(max(counts.values()) for counts in by_rest.values()) / len(rows)
    return {name: round(value, 4) for name, value in hidden.items()}
