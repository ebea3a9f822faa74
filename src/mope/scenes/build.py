"""Make a set of scenes on disk: pictures, tables and a manifest."""

import csv
import hashlib
import io
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy
from tqdm import tqdm

from mope.errors import UserError
from mope.files import replacing_folder
from mope.media.masks import Mask, save_mask
from mope.scenes import entailment, questions, referring
from mope.scenes.compose import Scene, compose_with_masks
from mope.scenes.facts import draw_facts
from mope.scenes.glyphs import ATTRIBUTION, kinds

Level = Literal["easy", "full"]
SceneTask = Literal["questions", "entailment", "segmentation"]
MANIFEST = "manifest.json"
_VERSION = 2
_HELD_OUT = 10  # one pair of kinds in this many is kept for the test on unseen pairs


@dataclass(frozen=True)
class SceneSettings:
    """What a set of scenes is made from; the same settings give the same bytes.

    Attributes:
        level: "easy" (a dozen kinds, questions by corner) or "full" (hundreds of kinds, all questions).
        task: "questions" (what is where), "entailment" (entailed, neutral, contradicted) or "segmentation"
            (which pixels a phrase means).
        train, validation, test: pictures per split.
        size: side of a picture in pixels.
        seed: of everything.
        kinds: how many of the level's kinds are used, spread evenly over its list; None for all.
        facts: whether rows have a shop, a date and a weight too, and some questions are about these; of level
            "full" and its questions. None for not.
    """

    level: Level = "easy"
    task: SceneTask = "questions"
    train: int = 3000
    validation: int = 300
    test: int = 1000
    size: int = 98
    seed: int = 0
    kinds: int | None = None
    facts: bool | None = None


def build_scenes(folder: str | Path, settings: SceneSettings) -> dict[str, Any]:
    """Write a set of scenes, unless the folder holds the very same one already.

    The folder gets `train.csv`, `validation.csv`, `test.csv`, `images/` and `manifest.json`; at level "full"
    also `test_pairs.csv`, whose pictures show a pair of kinds that no other split shows together. For
    segmentation there are `masks/` too. No picture is in two splits.

    Returns:
        The manifest: settings, row and label counts per split, a hash of each table; for segmentation the
        mean IoU of `constants`, answers that don't read the phrase, among them the `best`.

    Raises:
        UserError: the folder holds something else.
    """
    folder = Path(folder)
    wanted = {key: value for key, value in asdict(settings).items() if value is not None}
    wanted["version"] = _VERSION
    if (folder / MANIFEST).is_file():
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["settings"] == wanted:
            return manifest
        raise UserError(f"{folder} holds scenes made with other settings: name another folder or remove it.")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} isn't empty: name a new folder for the scenes.")
    if min(settings.train, settings.validation, settings.test) < 1 or settings.size < 28:
        raise UserError("Scenes take at least one picture per split, of at least 28 pixels a side.")
    if settings.facts and (settings.level != "full" or settings.task != "questions"):
        raise UserError("Facts are of level full and its questions: add --level full, and no other task.")
    with replacing_folder(folder) as draft:
        return _write(draft, settings, wanted)


def _write(folder: Path, settings: SceneSettings, wanted: dict[str, Any]) -> dict[str, Any]:
    counts = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    if settings.level == "full":
        counts["test_pairs"] = settings.test
    (folder / "images").mkdir()
    if settings.task == "segmentation":
        (folder / "masks").mkdir()
    manifest: dict[str, Any] = {"settings": wanted, "licence": ATTRIBUTION, "splits": {}}
    seen: set[bytes] = set()
    with tqdm(total=sum(counts.values()), desc="scenes", unit="picture", leave=False, disable=None) as bar:
        for split, count in counts.items():
            # One generator per split: a longer training set leaves the test set as it is.
            rng = random.Random(f"{settings.seed} {settings.level} {settings.task} {split}")
            constants: dict[str, list[float]] = {}
            rows = list(_split_rows(folder, settings, split, count, rng, seen, bar, constants))
            text = _csv(rows)
            (folder / f"{split}.csv").write_text(text, encoding="utf-8")
            label = {"questions": "answer", "entailment": "label", "segmentation": "type"}[settings.task]
            manifest["splits"][split] = {
                "pictures": count,
                "rows": len(rows),
                "labels": dict(sorted(Counter(row[label] for row in rows).items())),
                "sha256": hashlib.sha256(text.encode()).hexdigest(),
                **({"constants": _best(constants)} if constants else {}),
            }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def _split_rows(
    folder: Path,
    settings: SceneSettings,
    split: str,
    count: int,
    rng: random.Random,
    seen: set[bytes],
    bar: tqdm,
    constants: dict[str, list[float]],
) -> Iterator[dict[str, str]]:
    """Draw pictures that no split has yet, and the rows about each; take down how constant answers fare."""
    pool = _pool(settings)
    for number in range(count):
        while True:
            scene = _scene(rng, settings, split, pool)
            pixels, masks = compose_with_masks(scene, settings.size, rng)
            digest = hashlib.sha256(pixels.tobytes()).digest()
            if digest not in seen:
                break
        seen.add(digest)
        stem = f"{split}_{number:06d}"
        pixels.save(folder / "images" / f"{stem}.png", compress_level=4)
        if settings.task == "segmentation":
            texts = _referring(rng, settings, folder, stem, scene, masks, constants)
        else:
            texts = _texts(rng, settings, split, scene, pool)
        facts = draw_facts(rng) if settings.facts else None
        known = {} if facts is None else facts.row(rng)
        about = [] if facts is None else map(_row, facts.questions(rng))
        for row in (*texts, *about):
            yield {"image": f"images/{stem}.png", **known, **row}
        bar.update()


def _referring(
    rng: random.Random,
    settings: SceneSettings,
    folder: Path,
    stem: str,
    scene: Scene,
    masks: Sequence[Mask],
    constants: dict[str, list[float]],
) -> Iterator[dict[str, str]]:
    """Phrases about a picture, and the masks of what they mean."""
    answers = {
        f"the thing in row {row + 1}, column {column + 1}": numpy.zeros_like(masks[0])
        for row in range(scene.grid)
        for column in range(scene.grid)
    }
    for thing, mask in zip(scene.things, masks, strict=True):
        answers[f"the thing in row {thing.cell[0] + 1}, column {thing.cell[1] + 1}"] = mask
    answers["the largest thing"] = max(masks, key=lambda mask: mask.sum())
    answers["everything"] = numpy.logical_or.reduce(masks)
    for kind, phrase, thing in referring.referring_phrases(rng, scene, 1 if settings.level == "easy" else 2):
        place = scene.things.index(thing)
        save_mask(masks[place], folder / "masks" / f"{stem}_{place}.png")
        for name, answer in answers.items():
            iou = (answer & masks[place]).sum() / (answer | masks[place]).sum()
            constants.setdefault(name, []).append(float(iou))
        yield {"phrase": phrase, "type": kind, "mask": f"masks/{stem}_{place}.png"}


def _best(constants: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Mean IoU of each constant answer, and of the best one."""
    found = {name: round(sum(values) / len(values), 4) for name, values in constants.items()}
    return {**found, "best": max(found.values())}


def _pool(settings: SceneSettings) -> tuple[str, ...]:
    """The kinds that are used."""
    whole = kinds(settings.level)
    if settings.kinds is None:
        return whole
    if not 12 <= settings.kinds <= len(whole):
        raise UserError(
            f"The level {settings.level} has {len(whole)} kinds: take 12 to {len(whole)} of them."
        )
    return tuple(whole[place * len(whole) // settings.kinds] for place in range(settings.kinds))


def _scene(rng: random.Random, settings: SceneSettings, split: str, pool: Sequence[str]) -> Scene:
    allowed = _allowed(settings, split)
    if settings.task == "entailment":
        return entailment.entailment_scene(rng, pool, allowed)
    if settings.task == "segmentation":
        return referring.referring_scene(rng, pool, allowed, 2 if settings.level == "easy" else 3)
    return (questions.easy_scene if settings.level == "easy" else questions.full_scene)(rng, pool, allowed)


def _texts(
    rng: random.Random, settings: SceneSettings, split: str, scene: Scene, pool: Sequence[str]
) -> Iterator[dict[str, str]]:
    if settings.task == "entailment":
        allowed = _allowed(settings, "train" if split != "test_pairs" else "any")
        for label in rng.sample(entailment.LABELS, 3):
            kind, text = entailment.entailment_sentence(rng, scene, label, pool, allowed)
            yield {"sentence": text, "type": kind, "label": label}
    elif settings.level == "easy":
        yield _row(questions.easy_question(rng, scene))
    else:
        found: dict[str, dict[str, str]] = {}
        for _ in range(4):
            question = questions.full_question(rng, scene)
            found.setdefault(question.text, _row(question))
        yield from found.values()


def _row(question: questions.Question) -> dict[str, str]:
    return {
        "question": question.text,
        "type": question.type,
        "asks": question.asks,
        "answer": question.answer,
    }


def _allowed(settings: SceneSettings, split: str) -> questions.Allowed:
    """Which kinds may come together: with held-out pairs only in `test_pairs`, and there always with one."""
    if settings.level == "easy" or split == "any":
        return lambda names: True
    wanted = split == "test_pairs"
    return lambda names: any(is_held_out(*pair) for pair in combinations(sorted(set(names)), 2)) == wanted


def is_held_out(one: str, other: str) -> bool:
    """Whether a pair of kinds is kept for `test_pairs`, whatever the seed."""
    pair = " & ".join(sorted((one, other)))
    return hashlib.sha256(pair.encode()).digest()[0] % _HELD_OUT == 0


def _csv(rows: Sequence[dict[str, str]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
