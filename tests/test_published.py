"""Published data sets, from miniatures that are true to their authors' files, oddities and all."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from PIL import Image

from mope.cli import main
from mope.config import Config
from mope.data.check import find_problems
from mope.data.table import open_table
from mope.datasets import PUBLISHED, prepare
from mope.datasets.food import read_titles
from mope.datasets.pickles import read_pickle
from mope.errors import UserError
from mope.media.masks import open_mask


def picture(file: Path, shade: int = 90) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 9), (shade, 40, 40)).save(file)


def write(file: Path, content) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def food101(root: Path) -> None:
    lines = {
        "train": [
            "apple_pie_0.jpg,Apple Pie, the way mother made it, with cream,apple_pie",
            'apple_pie_1.jpg,"Pie, quoted",apple_pie',
            'sushi_0.jpg,12" sushi roll,sushi',
            "sushi_1.jpg,,sushi",
            "sushi_2.jpg,no picture of it,sushi",
            "sushi_3.jpg,Crème brûlée sushi,sushi",
        ],
        "test": ["apple_pie_9.jpg,A pie,apple_pie", "sushi_9.jpg,Sushi,sushi"],
    }
    for split, rows in lines.items():
        write(root / "texts" / f"{split}_titles.csv", "\r\n".join(rows) + "\r\n")
        for row in rows:
            name = row.partition(",")[0]
            if name != "sushi_2.jpg":
                picture(root / "images" / split / row.rpartition(",")[2] / name)


def mm_imdb(root: Path) -> None:
    films = {
        "0000001": {"plot": ["A man.", "A longer plot."], "genres": ["Drama", "News"]},
        "0000002": {"plot": ["A dog."], "genres": ["Comedy", "Family"]},
        "0000003": {"plot": ["A show."], "genres": ["Talk-Show"]},
        "0000004": {"plot": [], "genres": ["Drama"]},
        "0000005": {"plot": ["A cat."], "genres": ["Comedy"]},
        "0000006": {"plot": ["A film."], "genres": ["Drama"]},
    }
    for name, film in films.items():
        write(root / "dataset" / f"{name}.json", {"title": "x", **film})
        picture(root / "dataset" / f"{name}.jpeg")
    split = {
        "train": ["0000001", "0000002", "0000003", "0000004"],
        "dev": ["0000005"],
        "test": ["0000006", "0000009"],
    }
    write(root / "split.json", split)


def snli_ve(root: Path) -> None:
    for split in ("train", "dev", "test"):
        rows = [
            {
                "Flickr30K_ID": "1234",
                "gold_label": label,
                "sentence1": "never used",
                "sentence2": f"{split} {label}",
                "pairID": f"1234.jpg#{n}",
            }
            for n, label in enumerate(("entailment", "neutral", "contradiction", "-"))
        ]
        write(root / f"snli_ve_{split}.jsonl", "\n".join(map(json.dumps, rows)) + "\n")
    picture(root / "flickr30k-images" / "1234.jpg")


def mustard(root: Path) -> None:
    clips = {
        f"1_{n}": {
            "utterance": "Oh, great.",
            "speaker": "SHELDON",
            "context": ["..."],
            "context_speakers": ["AMY"],
            "show": "BBT",
            "sarcasm": bool(n % 2),
        }
        for n in range(20)
    }
    write(root / "data" / "sarcasm_data.json", clips)
    folds = [([*range(5, 20)], [*range(5)])] * 5
    (root / "data" / "split_indices.p").write_bytes(pickle.dumps(folds, protocol=2))
    for name in list(clips)[1:]:
        write(root / "utterances_final" / f"{name}.mp4", "a clip")


def refcoco(name: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        refs, annotations, images = [], [], []
        for n, split in enumerate(("train", "train", "val", "testA", "testB")):
            sentences = [
                {"sent": f"the {side} one", "raw": "x", "sent_id": n, "tokens": []}
                for side in ("left", "right")
            ]
            refs.append(
                {
                    "ref_id": n,
                    "ann_id": 100 + n,
                    "image_id": 7 + n,
                    "category_id": 1,
                    "split": split,
                    "sentences": sentences,
                    "sent_ids": [n],
                    "file_name": "unused.jpg",
                }
            )
            polygons = [[1.0, 1.0, 5.0, 1.0, 5.0, 5.0]]
            runs = {"counts": [10, 5, 93], "size": [9, 12]}
            # A split has both, as RefCOCO's has.
            annotations.append(
                {"id": 100 + n, "image_id": 7 + n, "segmentation": runs if n in (1, 3) else polygons}
            )
            file = f"COCO_train2014_{7 + n:012d}.jpg"
            images.append({"id": 7 + n, "file_name": file, "height": 9, "width": 12})
            picture(root / "train2014" / file)
        categories = [{"id": 1, "name": "person"}]
        write(
            root / name / "instances.json",
            {"annotations": annotations, "images": images, "categories": categories},
        )
        (root / name / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=0))

    return make


def vqav2(root: Path) -> None:
    for part, count in (("train2014", 24), ("val2014", 3)):
        questions = [{"question_id": n, "image_id": 5, "question": "what is it?"} for n in range(count)]
        answers = ["yes"] * 10 + ["no"] * 12 + ["a rare answer"] * 2 if count == 24 else ["yes", "no", "odd"]
        annotations = [
            {"question_id": n, "image_id": 5, "multiple_choice_answer": answer, "answers": []}
            for n, answer in enumerate(answers)
        ]
        write(root / f"v2_OpenEnded_mscoco_{part}_questions.json", {"questions": questions})
        write(root / f"v2_mscoco_{part}_annotations.json", {"annotations": annotations})
        picture(root / part / f"COCO_{part}_000000000005.jpg")


def nlvr(root: Path) -> None:
    for split, count in (("train", 20), ("dev", 3)):
        lines = []
        for n in range(count):
            label = "true" if n % 2 else "false"
            identifier = f"{n}-0"
            lines.append(
                {"sentence": "There is a box.", "label": label, "identifier": identifier, "directory": n % 3}
            )
            for order in range(6):
                picture(root / split / "images" / str(n % 3) / f"{split}-{identifier}-{order}.png")
        write(root / split / f"{split}.json", "\n".join(map(json.dumps, lines)))


MINIATURES = {
    "food101": food101,
    "mm-imdb": mm_imdb,
    "snli-ve": snli_ve,
    "mustard": mustard,
    "refcoco": refcoco("refcoco"),
    "refcoco+": refcoco("refcoco+"),
    "vqav2": vqav2,
    "nlvr": nlvr,
}


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
    assert sum(entry["rows"] for entry in manifest["splits"].values()) < 200


@pytest.mark.parametrize("made", ["snli-ve", "mustard", "refcoco", "nlvr"], indirect=True)
def test_shipped_configs_name_the_tables_that_are_made(made):
    tables, manifest, _ = made
    folder = manifest["name"].replace("-", "_")
    files = list(Path("configs").glob(f"{folder}*.yaml"))
    assert files
    for config in map(Config.load, files):
        for split in ("train", "validation", "test"):
            table = Path(getattr(config.data, split))
            assert (table.parent.name, table.suffix) == (folder, ".jsonl")
            assert table.stem in tables


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
    assert tables["train"][0]["text"] == "A man."
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
def test_mustard_puts_the_speaker_first(made):
    tables, manifest, _ = made
    rows = [row for table in tables.values() for row in table]
    assert {row["utterance"] for row in rows} == {"SHELDON: Oh, great."}
    assert {row["identifier"] for row in tables["test"]} == {f"1_{n}" for n in range(1, 5)}
    assert len(tables["validation"]) == 2
    assert manifest["dropped"] == {"missing clip": 1}
    folder = tables["test"].folder
    assert all((folder / row["audio"]).is_file() for row in rows)


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


@pytest.mark.parametrize("made", ["nlvr"], indirect=True)
def test_nlvr_keeps_the_box_orders_of_an_example_together(made):
    tables, _, _ = made
    names = {split: {row["identifier"] for row in table} for split, table in tables.items()}
    assert not names["train"] & names["validation"]
    assert {split: len(table) for split, table in tables.items()} == {
        "train": 108,
        "validation": 12,
        "test": 18,
    }


def test_nlvr_from_parquet_writes_its_pictures(tmp_path):
    from datasets import Dataset

    (tmp_path / "raw").mkdir()
    for split, count in (("train", 20), ("dev", 2)):
        rows = []
        for n in range(count):
            for order in range(6):
                picture(tmp_path / "p.png", 10 * (n % 4) + order)
                image = {"bytes": (tmp_path / "p.png").read_bytes(), "path": "x.png"}
                rows.append({"identifier": f"{split}{n}", "sentence": "s", "label": "true", "image": image})
        Dataset.from_list(rows).to_parquet(str(tmp_path / "raw" / f"{split}.parquet"))
    prepare("nlvr", tmp_path / "raw", tmp_path / "out", lambda line: None)
    table = open_table(tmp_path / "out" / "test.jsonl")
    assert len(table) == 12
    assert not find_problems(table, {"image": "image"})
    assert len(list((tmp_path / "out" / "images").iterdir())) == 24  # the same picture once


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
    assert len(json.loads(capsys.readouterr().out)) == 8


def test_titles_of_every_spelling(tmp_path):
    (tmp_path / "t.csv").write_text('a.jpg,"x, ""y""",c\nb.jpg,plain,c\n\nd.jpg,one, two, three,c\n')
    assert list(read_titles(tmp_path / "t.csv")) == [
        ("a.jpg", 'x, "y"', "c"),
        ("b.jpg", "plain", "c"),
        ("d.jpg", "one, two, three", "c"),
    ]
