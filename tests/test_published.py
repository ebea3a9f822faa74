"""Published data sets, from miniatures that are true to their authors' files, oddities and all."""

import gzip
import itertools
import json
import pickle
from pathlib import Path

import numpy
import pytest
import yaml
from miniatures import MINIATURES, boxes, food101, picture
from PIL import Image

from mope.cli import main
from mope.config import Config
from mope.data.check import find_problems
from mope.data.table import open_table
from mope.datasets import PUBLISHED, prepare
from mope.datasets.apps import read_programs
from mope.datasets.food import read_titles
from mope.datasets.pickles import read_pickle
from mope.errors import UserError
from mope.media.masks import open_mask


@pytest.fixture
def made(request, tmp_path, monkeypatch):
    """A prepared miniature: its tables as rows, its manifest, its folder."""
    from mope.datasets import food

    monkeypatch.setattr(food, "VALIDATION", 1)
    MINIATURES[request.param](tmp_path / "raw")
    warnings = []
    manifest = prepare(request.param, tmp_path / "raw", tmp_path / "out", warnings.append)
    tables = {split: open_table(tmp_path / "out" / f"{split}.jsonl") for split in manifest["splits"]}
    return tables, manifest, warnings


def test_every_data_set_has_a_miniature():
    assert set(MINIATURES) == set(PUBLISHED)


@pytest.mark.parametrize("made", list(MINIATURES), indirect=True)
def test_tables_can_be_used_and_the_manifest_counts_them(made):
    tables, manifest, warnings = made
    dataset = PUBLISHED[manifest["name"]]
    for split, table in tables.items():
        assert len(table) == manifest["splits"][split]["rows"] > 0
        images = {column: "image" for column in dataset.paths if column == "image"}
        assert not find_problems(table, images)
        assert dataset.label in table.columns
    assert any("as published" in line for line in warnings)
    assert sum(entry["rows"] for entry in manifest["splits"].values()) < 300


@pytest.mark.parametrize("made", list(MINIATURES), indirect=True)
def test_shipped_configs_name_the_tables_that_are_made(made):
    tables, manifest, _ = made
    folder = manifest["name"].replace("-", "_").replace("+", "_plus")
    columns = set(next(iter(tables.values())).columns)
    found = [Config.load(file) for file in Path("configs").glob("*.yaml")]
    found = [config for config in found if config.data.train.startswith(f"data/{folder}/")]
    assert found
    for config in found:
        assert {entry.column for entry in config.inputs.values()} | {config.data.label} <= columns
        for split in ("train", "validation", "test"):
            if (table := getattr(config.data, split)) is not None:
                assert table.removeprefix(f"data/{folder}/").removesuffix(".jsonl") in tables


@pytest.mark.parametrize("made", ["food101"], indirect=True)
def test_food101_titles_keep_their_commas(made):
    tables, manifest, warnings = made
    rows = [row for table in tables.values() for row in table]
    assert {row["text"] for row in rows} == {
        "Apple Pie, the way mother made it, with cream",
        "Pie, quoted",
        '12" sushi roll',
        "Crème brûlée sushi",
        "A pie",
        "Sushi",
    }
    assert {row["label"] for row in rows} == {"apple_pie", "sushi"}
    assert manifest["dropped"] == {"empty title": 1, "missing image": 1}
    assert any("missing image, such as sushi_2.jpg" in line for line in warnings)
    assert [len(tables[split]) for split in ("train", "validation", "test")] in ([3, 1, 2], [4, 0, 2])


@pytest.mark.parametrize("made", ["mm-imdb"], indirect=True)
def test_mm_imdb_leaves_rare_genres_out(made):
    tables, manifest, _ = made
    assert [row["genres"] for row in tables["train"]] == [["Drama"], ["Comedy", "Family"]]
    assert tables["train"][0]["text"] == "A longer plot."
    assert manifest["dropped"] == {"rare genres alone": 1, "no plot": 1, "missing film": 1}


@pytest.mark.parametrize("made", ["snli-ve"], indirect=True)
def test_snli_ve_uses_the_hypothesis_alone(made):
    tables, manifest, _ = made
    assert [row["hypothesis"] for row in tables["validation"]] == [
        "dev entailment",
        "dev neutral",
        "dev contradiction",
    ]
    assert "never used" not in json.dumps(list(tables["train"]))
    assert manifest["dropped"] == {"no gold label": 3}


@pytest.mark.parametrize("made", ["mustard"], indirect=True)
def test_mustard_has_five_folds_with_the_speaker_and_a_split_without(made):
    tables, manifest, warnings = made
    folds = [f"fold{n}" for n in range(5)]
    assert set(tables) == {
        f"{s}/{split}" for s in (*folds, "independent") for split in ("train", "validation", "test")
    }
    everyone = {f"1_{n}" for n in range(1, 20)}
    for fold, first in zip(folds, range(0, 20, 4), strict=True):
        rows = [row for split in ("train", "validation", "test") for row in tables[f"{fold}/{split}"]]
        assert {row["utterance"] for row in rows} == {"SHELDON: Oh, great."}
        assert sorted(row["identifier"] for row in rows) == sorted(everyone)
        tested = {row["identifier"] for row in tables[f"{fold}/test"]}
        assert tested == {f"1_{n}" for n in range(max(first, 1), first + 4)}
        assert len(tables[f"{fold}/validation"]) == 2
    for split in ("train", "validation", "test"):
        rows = list(tables[f"independent/{split}"])
        assert {row["show"] for row in rows} == {"FRIENDS" if split == "test" else "BBT"}
        assert {row["utterance"] for row in rows} == {"Oh, great."}
    assert manifest["dropped"] == {"missing clip": 1}
    assert any("690 rows in all as published; here are 19" in line for line in warnings)
    for table in tables.values():
        assert all((table.folder / row["audio"]).is_file() for row in table)


@pytest.mark.parametrize("made", ["refcoco", "refcoco+"], indirect=True)
def test_refcoco_has_a_row_per_phrase_and_masks(made):
    tables, _, _ = made
    assert {split: len(table) for split, table in tables.items()} == {
        "train": 4,
        "validation": 2,
        "testA": 2,
        "testB": 2,
    }
    row = tables["testA"][0]
    column_major = numpy.zeros(9 * 12, dtype=bool)
    column_major[10:15] = True
    assert numpy.array_equal(open_mask(row["mask"], None), column_major.reshape(12, 9).T)
    assert open_mask(tables["train"][0]["mask"], None).shape == (9, 12)
    assert tables["train"][1]["phrase"] == "the right one"
    assert tables["train"][0]["category"] == "person"


@pytest.mark.parametrize("made", ["vqav2"], indirect=True)
def test_vqa_keeps_frequent_answers(made):
    tables, manifest, _ = made
    assert manifest["splits"]["train"]["labels"] == {"no": 12, "yes": 10}
    assert manifest["dropped"] == {"an answer of fewer than 9 questions": 3}
    assert len(tables["test"]) == 2


@pytest.mark.parametrize("made", ["debian-apps"], indirect=True)
def test_programs_that_have_something_in_common_are_in_one_split(made):
    tables, manifest, _ = made
    assert {split: len(table) for split, table in tables.items()} == {
        "train": 22,
        "validation": 7,
        "test": 12,
    }
    split_of = {}
    for split, table in tables.items():
        for row in table:
            for column in ("package", "image", "summary"):
                value = (column, row[column].lower().replace(",", "").strip("."))
                assert split_of.setdefault(value, split) == split
    assert ("summary", "plays and sings") in split_of
    assert {row["category"] for table in tables.values() for row in table} == {"AudioVideo", "Game", "Office"}
    assert manifest["dropped"] == {
        "several main categories": 1,
        "no main category": 1,
        "no icon": 3,
        "no summary": 1,
    }


PROGRAMS, ICONS = "Components-amd64.yml.gz", "icons-64x64.tar.gz"


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return (
        content[:middle]
        + bytes(255 - byte for byte in content[middle : middle + 40])
        + content[middle + 40 :]
    )


@pytest.mark.parametrize(
    ("file", "said"),
    [(PROGRAMS, "isn't gzipped YAML|lists no program"), (ICONS, "isn't a gzipped tar archive")],
)
@pytest.mark.parametrize("broken", [lambda _: b"", lambda _: b"no archive", lambda all_: all_[:-99], flipped])
def test_a_broken_file_of_debian_s_is_said(tmp_path, file, said, broken):
    MINIATURES["debian-apps"](tmp_path / "raw")
    content = (tmp_path / "raw" / file).read_bytes()
    (tmp_path / "raw" / file).write_bytes(broken(content))
    with pytest.raises(UserError, match=f"{file} ({said})") as found:
        prepare("debian-apps", tmp_path / "raw", tmp_path / "out")
    assert "\n" not in str(found.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "entry",
    [
        {"Icon": ["x"]},
        {"Icon": {"cached": {"a": 1}}},
        {"Name": "plain"},
        {"Categories": 3},
        {"Categories": "Game"},
        {"Package": None},
        {"Package": ["x"]},
    ],
)
def test_a_program_described_otherwise_is_said(tmp_path, entry):
    MINIATURES["debian-apps"](tmp_path)
    with gzip.open(tmp_path / PROGRAMS, "wt", encoding="utf-8") as stream:
        yaml.safe_dump({"Type": "desktop-application", "Package": "gitg", **entry}, stream)
    with pytest.raises(UserError, match="program 1 isn't described as AppStream has it"):
        list(read_programs(tmp_path / PROGRAMS))


@pytest.mark.parametrize("made", ["nlvr"], indirect=True)
def test_nlvr_keeps_all_pictures_of_a_sentence_together(made):
    tables, _, _ = made
    found = {split: {row["sentence"].lower().strip(".") for row in table} for split, table in tables.items()}
    assert not found["train"] & found["validation"]
    assert {split: len(table) for split, table in tables.items()} == {
        "train": 216,
        "validation": 24,
        "test": 18,
    }


@pytest.mark.parametrize("made", ["nlvr"], indirect=True)
def test_each_box_of_nlvr_is_a_picture_of_its_own(made, tmp_path):
    tables, _, _ = made
    table = tables["test"]
    shades = []
    for row in range(6):
        shown = [Image.open(tmp_path / "out" / table.column(box)[row]) for box in ("left", "middle", "right")]
        assert all(box.size == (10, 10) and len(box.getcolors()) == 1 for box in shown)  # no gap in it
        shades.append(tuple(box.getpixel((0, 0))[0] for box in shown))
    assert shades == list(itertools.permutations((10, 60, 200)))


def test_a_picture_of_nlvr_that_has_no_three_boxes_is_left_out_and_counted(tmp_path):
    MINIATURES["nlvr"](tmp_path / "raw")
    folder = tmp_path / "raw" / "dev" / "images" / "0"
    damaged = bytearray((folder / "dev-0-0-2.png").read_bytes())
    damaged[damaged.index(b"IEND") - 12] ^= 255  # within the compressed pixels
    (folder / "dev-0-0-2.png").write_bytes(damaged)
    (folder / "dev-0-0-0.png").write_bytes(b"no picture")
    picture(folder / "dev-0-0-1.png")
    manifest = prepare("nlvr", tmp_path / "raw", tmp_path / "out", lambda line: None)
    assert manifest["splits"]["test"]["rows"] == 15
    assert sum(manifest["dropped"].values()) == 3
    reasons = sorted(manifest["dropped"])
    for reason, said in zip(reasons, ("broken image", "the picture isn't three", "wrong type"), strict=True):
        assert reason.startswith(said)


def test_nlvr_from_parquet_writes_its_pictures(tmp_path):
    from datasets import Dataset

    (tmp_path / "raw").mkdir()
    for split, count in (("train", 20), ("dev", 2)):
        rows = []
        for n in range(count):
            name = f"{n // 2}-{n % 2}"
            for order in range(6):
                boxes(tmp_path / "p.png", order, gap=n % 4)
                image = {"bytes": (tmp_path / "p.png").read_bytes(), "path": "x.png"}
                rows.append({"identifier": name, "sentence": name[0], "label": "true", "image": image})
        Dataset.from_list(rows).to_parquet(str(tmp_path / "raw" / f"{split}.parquet"))
    prepare("nlvr", tmp_path / "raw", tmp_path / "out", lambda line: None)
    table = open_table(tmp_path / "out" / "test.jsonl")
    assert len(table) == 12
    assert not find_problems(table, dict.fromkeys(("image", "left", "middle", "right"), "image"))
    assert len(list((tmp_path / "out" / "images").iterdir())) == 24 + 3  # the same picture or box once
    train, validation = (open_table(tmp_path / "out" / f"{split}.jsonl") for split in ("train", "validation"))
    assert (len(train), len(validation)) == (108, 12)
    assert not set(train.column("sentence")) & set(validation.column("sentence"))


def test_a_pickle_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    file = tmp_path / "refs(unc).p"
    file.write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(UserError, match="which would run code"):
        read_pickle(file)
    assert not (tmp_path / "touched").exists()
    file.write_bytes(b"nothing of a pickle")
    with pytest.raises(UserError, match="can't be read as plain data"):
        read_pickle(file)
    for protocol in range(6):
        content = [{"a": (1, 2.5, None, "é", {3}, b"x")}]
        file.write_bytes(pickle.dumps(content, protocol=protocol))
        assert read_pickle(file) == content


def test_pickled_arrays_of_numbers_are_lists(tmp_path):
    file, numbers = tmp_path / "a.p", numpy.arange(6).reshape(2, 3)
    arrays = [numbers, numbers.T, numbers.astype(">f4"), numbers > 2, numbers[0]]
    for protocol in range(5):
        content = pickle.dumps(arrays, protocol=protocol)
        for name in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
            # In the protocols from 4 on a name has its length before it.
            if protocol < 4 or name in content:
                file.write_bytes(content.replace(b"numpy._core.multiarray", name))
                assert read_pickle(file) == [array.tolist() for array in arrays]

    class OfPython2:
        """An array whose bytes are a text."""

        def __reduce__(self):
            make, arguments, state = numpy.array([1, 200], "u1").__reduce__()
            return make, arguments, (*state[:4], "\x01\xc8")

    file.write_bytes(pickle.dumps(OfPython2(), protocol=2))
    assert read_pickle(file) == [1, 200]


def test_a_pickled_array_has_no_bytes_that_are_addresses(tmp_path):
    class Type:
        """A type of which NumPy itself believes that its bytes are an object's address."""

        def __reduce__(self):
            fields = {"a": (numpy.dtype("O"), 0)}
            return numpy.dtype, ("V8", False, True), (3, "|", None, ("a",), fields, 8, 1, 0)

    class Array:
        def __reduce__(self):
            make, arguments, _ = numpy.zeros(1).__reduce__()
            return make, arguments, (1, (1,), Type(), False, b"AAAAAAAA")

    file = tmp_path / "a.p"
    for content in (Array(), numpy.array([1, "x"], object), numpy.zeros(2, "M8[s]"), numpy.zeros(2, "i4,i4")):
        file.write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(UserError, match=r"it holds an array of '\w+', not of numbers"):
            read_pickle(file)


def test_what_prepare_says_when_it_cannot(tmp_path, capsys):
    food101(tmp_path / "raw")
    (tmp_path / "raw" / "texts" / "test_titles.csv").unlink()
    arguments = [
        "data",
        "prepare",
        "food101",
        "--from",
        str(tmp_path / "raw"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 2
    assert "there is no texts/test_titles.csv" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    for words, reason in (
        (["data", "prepare"], "Name a data set"),
        (["data", "prepare", "nothing", "--from", ".", "--out", "x"], "There is no data set 'nothing'"),
        (["data", "prepare", "nlvr", "--from", "nowhere", "--out", "x"], "There is no folder nowhere"),
        (["data", "prepare", "nlvr"], "Say where its files are"),
        (["data", "prepare", "nlvr", "--from", str(tmp_path), "--out", str(tmp_path)], "is there already"),
    ):
        assert main(words) == 2
        assert reason in capsys.readouterr().err


def test_the_list_says_where_each_is_from(capsys):
    assert main(["data", "prepare", "--list"]) == 0
    said = capsys.readouterr().out
    for dataset in PUBLISHED.values():
        assert dataset.where in said
        assert dataset.licence in said
    assert main(["data", "prepare", "--list", "--json"]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == list(PUBLISHED)


def test_titles_of_every_spelling(tmp_path):
    (tmp_path / "t.csv").write_text('a.jpg,"x, ""y""",c\nb.jpg,plain,c\n\nd.jpg,one, two, three,c\n')
    assert list(read_titles(tmp_path / "t.csv")) == [
        ("a.jpg", 'x, "y"', "c"),
        ("b.jpg", "plain", "c"),
        ("d.jpg", "one, two, three", "c"),
    ]
