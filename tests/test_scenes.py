"""The demo set: deterministic, balanced, and true to its pictures."""

import csv
import hashlib
import re
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import pytest
from PIL import Image

from mope.errors import UserError
from mope.scenes import entailment, questions
from mope.scenes.build import SceneSettings, build_scenes, is_held_out
from mope.scenes.compose import Scene, Thing
from mope.scenes.glyphs import glyph, kinds

TINY = {"train": 30, "validation": 6, "test": 8, "size": 56}


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.mark.parametrize(
    ("level", "task"), [("easy", "questions"), ("full", "questions"), ("full", "entailment")]
)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path, level, task):
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        build_scenes(tmp_path / name, SceneSettings(level, task, seed=seed, **TINY))
    assert digests(tmp_path / "one") == digests(tmp_path / "same")
    assert digests(tmp_path / "one") != digests(tmp_path / "other")


def test_no_picture_is_in_two_splits_and_every_one_has_its_size(tmp_path):
    build_scenes(tmp_path / "scenes", SceneSettings("full", "questions", **TINY))
    images = list((tmp_path / "scenes" / "images").iterdir())
    assert len(images) == 30 + 6 + 8 + 8
    assert len({hashlib.sha256(Image.open(file).tobytes()).digest() for file in images}) == len(images)
    assert {Image.open(file).size for file in images} == {(56, 56)}
    named = {split: {row["image"] for row in rows(tmp_path / "scenes" / f"{split}.csv")} for split in
             ("train", "validation", "test", "test_pairs")}  # fmt: skip
    assert all(not one & other for one, other in combinations(named.values(), 2))


def test_a_longer_training_set_leaves_the_test_set_as_it_is(tmp_path):
    build_scenes(tmp_path / "short", SceneSettings(**TINY))
    build_scenes(tmp_path / "long", SceneSettings(**{**TINY, "train": 60}))
    short, long = (rows(tmp_path / name / "test.csv") for name in ("short", "long"))
    assert short == long


def test_scenes_are_made_once_and_nothing_is_overwritten(tmp_path):
    settings = SceneSettings(**TINY)
    first = build_scenes(tmp_path / "scenes", settings)
    before = (tmp_path / "scenes" / "train.csv").stat().st_mtime_ns
    assert build_scenes(tmp_path / "scenes", settings) == first
    assert (tmp_path / "scenes" / "train.csv").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="other settings"):
        build_scenes(tmp_path / "scenes", SceneSettings(**{**TINY, "seed": 1}))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="isn't empty"):
        build_scenes(tmp_path / "mine", settings)
    with pytest.raises(UserError, match="at least one picture"):
        build_scenes(tmp_path / "new", SceneSettings(**{**TINY, "size": 5}))
    assert not (tmp_path / "new").exists()


def test_every_kind_has_a_glyph():
    assert len(kinds("easy")) == 12
    assert len(set(kinds("full"))) == len(kinds("full")) > 200
    assert all(glyph(kind).getbbox() is not None for kind in (*kinds("easy"), *kinds("full")))


def drawn(maker, count, *args):
    import random

    rng = random.Random(0)
    pool = kinds("full")
    for _ in range(count):
        yield rng, maker(rng, pool, lambda names: True)


def test_easy_questions_are_answered_by_the_corner():
    asked = Counter()
    for rng, scene in drawn(questions.easy_scene, 2000):
        text, _, _, answer = questions.easy_question(rng, scene)
        row = 0 if "upper" in text or "top" in text else 1
        column = 0 if "left" in text else 1
        assert scene.at((row, column)).kind == answer
        assert len({thing.kind for thing in scene.things}) == 4
        asked[row, column] += 1
    assert min(asked.values()) > 400


def test_full_questions_are_answered_by_the_scene():
    types = Counter()
    sides = {
        "right": (0, 1),
        "left": (0, -1),
        "below": (1, 0),
        "under": (1, 0),
        "above": (-1, 0),
        "over": (-1, 0),
    }
    for rng, scene in drawn(questions.full_scene, 2000):
        text, kind, _, answer = questions.full_question(rng, scene)
        types[kind] += 1
        named = max(
            (thing for thing in scene.things if re.search(rf"\b{thing.kind}\b", text)),
            key=lambda thing: len(thing.kind),
            default=None,
        )
        if kind == "count":
            assert ["one", "two", "three", "four"][
                sum(t.kind == named.kind for t in scene.things) - 1
            ] == answer
        elif kind == "colour":
            assert named.colour == answer
        elif kind == "size":
            assert answer == ("big" if named.big else "small")
        elif kind == "neighbour":
            step = next(step for word, step in sides.items() if word in text.rpartition(named.kind)[0])
            assert scene.at(questions.moved(named.cell, step)).kind == answer
        else:
            row = 0 if "upper" in text or "top" in text else 2 if "lower" in text or "bottom" in text else 1
            column = 0 if "left" in text else 2 if "right" in text else 1
            assert scene.at((row, column)).kind == answer
    assert set(types) == {"position", "neighbour", "count", "colour", "size"}
    assert min(types.values()) > 100


def truth(scene: Scene, text: str) -> str:
    """What a sentence is of a scene, worked out from its words alone."""
    negated = " no " in f" {text}" or "can't" in text
    covered = scene.covered[0]
    if "next to the" in text or "beside the" in text:
        where = (
            text.partition("next to the ")[2].partition(" there")[0] or text.partition("beside the ")[2][:-1]
        )
        anchor = next(thing for thing in scene.things if thing.kind == where)
        cells = [(anchor.cell[0], 1 - anchor.cell[1])]
        rest = text.replace(f"the {where}", "")
    else:
        said = set(re.findall(r"\w+", text))
        top, bottom = bool({"top", "upper"} & said), bool({"bottom", "lower"} & said)
        left, right = "left" in said, "right" in said
        cells = [
            (row, column)
            for row in range(2)
            for column in range(2)
            if (not top or row == 0) and (not bottom or row == 1)
            and (not left or column == 0) and (not right or column == 1)
        ]  # fmt: skip
        rest = text
    words = rest.replace(".", " ").split()
    named = [kind for kind in kinds("full") if f" {kind} " in f" {' '.join(words)} "]
    kind = max(named, key=len)
    there = [scene.at(cell) for cell in cells]
    if any(thing is not None and thing.kind == kind for thing in there):
        return "contradicted" if negated else "entailed"
    if covered in cells:
        return "neutral"
    return "entailed" if negated else "contradicted"


def test_sentences_are_what_their_label_says():
    for rng, scene in drawn(entailment.entailment_scene, 1500):
        for label in entailment.LABELS:
            _, text = entailment.entailment_sentence(rng, scene, label, kinds("full"), lambda names: True)
            assert truth(scene, text) == label, (scene, text)


def test_neither_the_words_of_a_sentence_nor_a_picture_tell_its_label(tmp_path):
    """Each word, and each type of sentence, comes with the three labels alike, up to chance."""
    build_scenes(
        tmp_path / "scenes", SceneSettings("full", "entailment", train=1500, validation=1, test=1, size=28)
    )
    table = rows(tmp_path / "scenes" / "train.csv")
    by_word: dict[str, Counter] = defaultdict(Counter)
    for row in table:
        for word in {*row["sentence"].replace(".", "").split(), row["type"]}:
            by_word[word][row["label"]] += 1
    common = {word: counts for word, counts in by_word.items() if counts.total() > 200}
    assert {"no", "there", "left", "upper", "beside", "can't"} <= set(common)
    for word, counts in common.items():
        expected = counts.total() / 3
        chi_squared = sum((counts[label] - expected) ** 2 / expected for label in entailment.LABELS)
        assert chi_squared < 20, (word, counts)  # 2 degrees of freedom: p < 5e-5 by chance
    labels_of: dict[str, list[str]] = defaultdict(list)
    for row in table:
        labels_of[row["image"]].append(row["label"])
    assert all(sorted(labels) == sorted(entailment.LABELS) for labels in labels_of.values())


def test_held_out_pairs_are_seen_together_in_their_test_only():
    import random

    from mope.scenes.build import _allowed, _scene

    settings = SceneSettings("full", "questions")
    for split, expected in (("train", False), ("test", False), ("test_pairs", True)):
        rng = random.Random(0)
        for _ in range(300):
            scene = _scene(rng, settings, split, kinds("full"))
            names = sorted({thing.kind for thing in scene.things})
            assert any(is_held_out(*pair) for pair in combinations(names, 2)) == expected
    assert _allowed(SceneSettings("easy"), "train")(["apple", "cat"])


def test_a_scene_knows_what_is_where():
    scene = Scene(2, (Thing("cat", (0, 1)),))
    assert scene.at((0, 1)).kind == "cat"
    assert scene.at((1, 1)) is None


def test_fewer_kinds_are_some_of_all(tmp_path):
    build_scenes(tmp_path / "few", SceneSettings("full", kinds=12, **TINY))
    shown = {row["answer"] for row in rows(tmp_path / "few" / "train.csv") if row["type"] == "position"}
    assert 4 < len(shown) <= 12
    assert shown < set(kinds("full"))
    with pytest.raises(UserError, match="take 12 to"):
        build_scenes(tmp_path / "none", SceneSettings("full", kinds=3, **TINY))


def test_what_a_question_asks_stands_beside_it_however_it_is_put(tmp_path):
    """`asks` is the place, by one name for it, or the direction, or as the type."""
    build_scenes(tmp_path / "easy", SceneSettings(**{**TINY, "train": 60}))
    for row in rows(tmp_path / "easy" / "train.csv"):
        place = row["asks"].replace("top", "(top|upper)").replace("bottom", "(bottom|lower)")
        assert re.search(place, row["question"])
    build_scenes(tmp_path / "full", SceneSettings(level="full", **{**TINY, "train": 40}))
    asked = {(row["type"], row["asks"]) for row in rows(tmp_path / "full" / "train.csv")}
    assert {"left", "right", "above", "below"} == {asks for kind, asks in asked if kind == "neighbour"}
    assert len([asks for kind, asks in asked if kind == "position"]) == 9
    assert {asks for kind, asks in asked if kind not in ("neighbour", "position")} == {
        "count",
        "colour",
        "size",
    }


def test_facts_are_what_their_questions_ask_for(tmp_path):
    from mope.scenes.facts import SEASONS, SHOPS

    settings = SceneSettings("full", train=40, validation=2, test=2, size=28, kinds=12, facts=True)
    build_scenes(tmp_path / "facts", settings)
    rows = list(csv.DictReader((tmp_path / "facts" / "train.csv").open()))
    assert {"season", "heavy", "position"} <= {row["type"] for row in rows}
    for row in rows:
        if row["type"] == "season" and row["taken"]:
            month = int(row["taken"][5:7])
            assert row["answer"] == SEASONS[month % 12 // 3]
        if row["type"] == "heavy" and row["shop"] and row["weight"]:
            assert row["answer"] == ("yes" if float(row["weight"]) > SHOPS[row["shop"]] else "no")
    empty = sum(not row[name] for row in rows for name in ("shop", "taken", "weight"))
    assert 0 < empty < 0.1 * 3 * len(rows)
    with pytest.raises(UserError, match="level full"):
        build_scenes(tmp_path / "easy", SceneSettings("easy", train=1, validation=1, test=1, facts=True))


def test_a_shop_s_departments_follow_from_photo_title_price_and_brand(tmp_path):
    from mope.scenes.shop import DEPARTMENTS, GALLERY, build_shop

    assert build_shop(tmp_path / "shop", train=60, test=5) == {"train": 60, "test": 5}
    rows = list(csv.DictReader((tmp_path / "shop" / "train.csv").open()))
    assert {row["department"] for row in rows} <= {GALLERY, *DEPARTMENTS.values()}
    for row in rows:
        assert (tmp_path / "shop" / row["photo"]).is_file()
        printed = "print" in row["title"] or "poster" in row["title"]
        artist = row["brand"] in ("Atelier Bleu", "Studio Otto")
        if row["price"] and artist and float(row["price"]) > 80.01:
            assert row["department"] == GALLERY
        elif row["price"]:
            assert row["department"] != GALLERY
            forms = {form for (_, form), name in DEPARTMENTS.items() if name == row["department"]}
            assert forms == {"poster" if printed else "plush"}
    with pytest.raises(UserError, match="isn't empty"):
        build_shop(tmp_path / "shop")
