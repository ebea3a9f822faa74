"""The rows of a training: which are used, and what is said of the others."""

import csv
import re
import shutil
from pathlib import Path

import numpy
import pandas
import pytest
from datasets import Dataset
from PIL import Image
from run_tester import SPLITS, changed, losses, quiet

from mope.bulk import evaluate
from mope.data.table import open_table
from mope.errors import UserError
from mope.training import train
from mope.training.rows import prepare


def test_bad_rows_are_refused_or_skipped_and_counted(config, tables, tmp_path):
    text = (tables / "train.csv").read_text().splitlines()
    bad = [*text[:5], "none.png,what is left ?,red,red,0", *text[5:], "train_0.png,,red,red,0"]
    file = tables / f"bad_{tmp_path.name}.csv"
    file.write_text("\n".join(bad))
    config = changed(config, data={"train": str(file), "labels": ["blue", "green", "red"]})
    with pytest.raises(
        UserError, match=r"2 of 50 rows can't be used, such as row 5, column 'picture': missing file"
    ):
        train(config, report=quiet)
    assert not Path(config.output).exists()
    lines = []
    train(changed(config, data={"bad_rows": "skip"}), report=lines.append)
    assert "skipped 2 of 50 rows" in lines[0]
    assert "48 training rows" in lines[1]


def test_datasets_in_memory_and_rows_held_out(config, tables):
    rows = [{**row, "picture": str(tables / row["picture"])} for row in open_table(tables / "train.csv")]
    config = changed(config, data={"train": None, "validation": None, "test": None})
    lines = []
    result = train(config, {"train": Dataset.from_list(rows)}, report=lines.append)
    assert "5 of 48 training rows are held out" in lines[0]
    assert result["validation"]["accuracy"] >= 0
    with pytest.raises(UserError, match="names no test rows"):
        evaluate(config.output, report=quiet)


def test_labels_that_are_rare_may_be_held_out(config, tables):
    """A label whose only row is held out is known, in every draw; rows without a label name none."""
    rows = [{**row, "picture": str(tables / row["picture"])} for row in open_table(tables / "train.csv")]
    for number in range(10):
        rows[number]["colour"] = f"rare {number}"
    config = changed(config, data={"train": None, "validation": None, "test": None, "bad_rows": "skip"})
    for seed in range(5):
        config.training.seed = seed
        model, _ = prepare(config, {"train": Dataset.from_list(rows)}, quiet)
        assert len(model.task.labels) == 13
    frame = pandas.DataFrame(rows).astype({"colour": object})
    frame.loc[0, "colour"] = float("nan")
    model, _ = prepare(config, {"train": Dataset.from_list([*rows[1:], {**rows[0], "colour": None}])}, quiet)
    assert len(model.task.labels) == 12
    assert len(prepare(config, {"train": frame}, quiet)[0].task.labels) == 12


def test_training_reads_headers_and_finds_broken_pixels_on_the_way(config, tables, tmp_path, monkeypatch):
    """A picture that is whole up to its header is found broken when it is read, and then as its row says."""
    folder = tmp_path / "broken"
    shutil.copytree(tables, folder)
    noise = numpy.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=numpy.uint8)
    Image.fromarray(noise).save(folder / "train_7.png")
    whole = (folder / "train_7.png").read_bytes()
    (folder / "train_7.png").write_bytes(whole[: len(whole) // 2])
    config = changed(config, data={split: str(folder / f"{split}.csv") for split in SPLITS})
    with pytest.raises(
        UserError, match=r"can't be used: .*train\.csv, row 8, column 'picture': broken image"
    ):
        train(config, report=quiet)
    for workers in (0, 1):
        lines = []
        skipping = changed(
            config, data={"bad_rows": "skip", "workers": workers}, output=str(tmp_path / f"run{workers}")
        )
        train(skipping, report=lines.append)
        assert "48 training rows" in lines[0]
        assert re.search(r"train\.csv: 2 rows were skipped, over all epochs; the first is row 8", lines[-1])
    # Validation rows are the same in every evaluation.
    shutil.copy(folder / "train_7.png", folder / "validation_3.png")
    lines = []
    train(changed(skipping, output=str(tmp_path / "third")), report=lines.append)
    assert "validation.csv: skipped 1 of 16 rows" in lines[0]


def test_no_picture_is_decoded_before_the_first_step(config, monkeypatch):
    decoded = []
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda image: decoded.append(1) or load(image))
    datasets = prepare(config, None, quiet)[1]
    assert len(datasets["train"]) == 48
    assert not decoded
    assert datasets["train"][0]
    assert decoded


def test_control_characters_are_left_out_of_texts_and_counted(config, tables, tmp_path):
    """As a file in Windows-1252 has them that was read as Latin-1."""
    rows = list(csv.DictReader((tables / "train.csv").open(newline="")))
    for row in rows[:5]:
        row["question"] = row["question"].replace("what", "\x93what\x94")
    results = []
    for number, texts in enumerate((rows, list(csv.DictReader((tables / "train.csv").open(newline=""))))):
        folder = tmp_path / str(number)
        shutil.copytree(tables, folder)
        write_table(folder / "train.csv", texts)
        lines = []
        own = changed(
            config, data={"train": str(folder / "train.csv")}, output=str(tmp_path / f"run{number}")
        )
        results.append(losses(train(own, report=lines.append)))
        said = [line for line in lines if "control characters" in line]
        assert len(said) == (1 if texts is rows else 0)
        assert not said or "train.csv: 5 of 48 texts of 'text' have control characters" in said[0]
    assert results[0] == results[1]


def write_table(file: Path, rows: list[dict]) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("change", "labels", "words"),
    [
        ({"inputs__image": {"size": 30}}, None, "patches of 7 pixels don't divide: 2 pixels"),
        ({}, ['["red"]', '["blue"]'], "look like JSON"),
        ({}, [f"{n}.5" for n in range(30)], "set task to regression"),
        ({}, None, None),
    ],
)
def test_what_is_surely_not_meant_is_said(config, tables, tmp_path, change, labels, words):
    rows = {split: list(open_table(tables / f"{split}.csv")) for split in ("train", "validation")}
    if labels is not None:
        for split in rows.values():
            for number, row in enumerate(split):
                row["colour"] = labels[number % len(labels)]
    config = changed(config, data={"folder": str(tables)}, **change)
    lines = []
    train(config, rows, report=lines.append)
    said = [
        line for line in lines if "pixels don't" in line or ("labels" in line and "training rows" not in line)
    ]
    assert len(said) == (words is not None)
    assert words is None or words in said[0]


def test_lists_are_no_single_labels(config, tables):
    rows = [{**row, "colour": ["red", "blue"]} for row in open_table(tables / "train.csv")]
    with pytest.raises(UserError, match="holds lists: set task to multilabel"):
        train(
            changed(config, data={"folder": str(tables)}), {"train": rows, "validation": rows}, report=quiet
        )
