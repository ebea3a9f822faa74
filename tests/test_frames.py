"""Rows in memory: frames, lists, datasets, cells as people hold them; and what is made of predictions."""

import csv
import pickle
from pathlib import Path

import datasets
import numpy
import pandas
import polars
import pytest
import torch
from PIL import Image

from mope import Predictor, UserError, evaluate, train
from mope.data.frames import plain_cell
from mope.data.table import open_table
from mope.media.images import open_image


@pytest.fixture(scope="module")
def rows(tables: Path) -> dict[str, list[dict]]:
    found = {}
    for split in ("train", "validation", "test"):
        with (tables / f"{split}.csv").open() as file:
            found[split] = list(csv.DictReader(file))
    return found


@pytest.fixture
def run(config, tables):
    train(config, report=lambda line: None)
    return Predictor(config.output)


def _sources(rows: list[dict]) -> dict[str, object]:
    return {
        "list": rows,
        "pandas": pandas.DataFrame(rows),
        "polars": polars.DataFrame(rows),
        "arrow": pandas.DataFrame(rows).pipe(datasets.Dataset.from_pandas).data.table,
        "dataset": datasets.Dataset.from_list(rows),
        "columns": {name: [row[name] for row in rows] for name in rows[0]},
    }


def test_every_kind_of_rows_is_the_same_table(rows):
    for name, source in _sources(rows["train"]).items():
        table = open_table(source)
        assert list(table) == rows["train"], name


def test_every_kind_of_rows_trains_and_predicts_the_same(rows, run, config, tables):
    expected = [one.probabilities for one in run.predict(tables / "test.csv")]
    folder = config.model_copy(deep=True)
    folder.data.folder = str(tables)
    for name, source in _sources(rows["test"]).items():
        if name != "columns":
            found = run.predict(source, folder=tables)
            assert [one.probabilities for one in found] == expected, name
    folder.output += "-frames"
    result = train(folder, {split: pandas.DataFrame(rows[split]) for split in rows}, report=lambda line: None)
    assert result["validation"] == train(config, resume=True, report=lambda line: None)["validation"]
    metrics = evaluate(folder.output, pandas.DataFrame(rows["test"]), folder=tables, report=lambda line: None)
    assert metrics == evaluate(config.output, report=lambda line: None)


def test_columns_may_be_called_as_the_inputs(rows, run, tables):
    """The tiny table has its pictures in `picture`; the input is `image`."""
    expected = [one.probabilities for one in run.predict(tables / "test.csv")]
    renamed = [
        {"image": row["picture"], "text": row["question"], "colour": row["colour"]} for row in rows["test"]
    ]
    for name, source in _sources(renamed).items():
        if name != "columns":
            found = run.predict(source, folder=tables)
            assert [one.probabilities for one in found] == expected, name


def test_a_dataset_is_predicted_as_any_other_rows_are(rows, run, tables):
    """What the run's config says of its tables holds: here, that none is trusted."""
    run.settings.data.folder, run.settings.data.trusted = str(tables), False
    there = datasets.Dataset.from_list(rows["test"])
    assert run.predict_dataset(there)["predicted_label"] == run.predict(there).labels
    elsewhere = [{**rows["test"][0], "picture": str(tables / rows["test"][0]["picture"])}]
    assert "leaves the table's folder" in run.predict(elsewhere)[0].error
    outside = datasets.Dataset.from_list([{**rows["test"][0], "picture": "../secret.png"}])
    found = run.predict_dataset(outside)["predicted_error"][0]
    assert found == run.predict(outside)[0].error
    assert found is not None


def test_cells_as_people_hold_them(rows, run, tables):
    row = rows["test"][0]
    path = tables / row["picture"]
    pixels = numpy.asarray(Image.open(path).convert("RGB"))
    expected = run.predict(row, folder=tables)[0].probabilities
    pictures = [
        path,
        path.read_bytes(),
        Image.open(path),
        pixels,
        torch.from_numpy(pixels.copy()),
        torch.from_numpy(pixels.copy()).permute(2, 0, 1),
    ]
    for picture in pictures:
        assert run.predict([{**row, "picture": picture}])[0].probabilities == expected
    by_input = {"image": path, "text": row["question"]}
    assert run.predict(by_input)[0].probabilities == expected
    frame = pandas.DataFrame([{**row, "picture": picture} for picture in pictures])
    assert all(one.probabilities == pytest.approx(expected, abs=1e-5) for one in run.predict(frame))


def test_files_and_their_content_may_stand_in_one_column(tables):
    path = tables / "train_0.png"
    table = open_table([{"x": path.read_bytes()}, {"x": path}, {"x": None}])
    assert open_image(table[0]["x"], Path()).tobytes() == open_image(table[1]["x"], Path()).tobytes()
    assert table[2]["x"] is None


def test_names_of_class_labels_survive(rows, config, tables):
    names = ["red", "green", "blue"]

    def coded(split):
        content = [{**row, "colour": names.index(row["colour"])} for row in rows[split]]
        return datasets.Dataset.from_list(content).cast_column("colour", datasets.ClassLabel(names=names))

    config.data.folder = str(tables)
    train(config, {split: coded(split) for split in ("train", "validation")}, report=lambda line: None)
    predictor = Predictor(config.output)
    assert sorted(predictor.model.task.labels) == sorted(names)
    assert evaluate(config.output, coded("test"), folder=tables, report=lambda line: None)["rows"] == 20


def test_predictions_are_a_frame(run, rows, tables):
    found = run.predict(rows["test"], folder=tables)
    frame = found.to_pandas()
    assert list(frame["label"]) == found.labels
    assert [name for name in frame if name.startswith("probability_")] == [
        f"probability_{name}" for name in run.model.task.classes
    ]
    chances = run.predict_proba(rows["test"], folder=tables)
    assert list(chances.columns) == run.model.task.classes
    assert numpy.allclose(chances.sum(axis=1), 1)
    assert "20 predictions" in repr(found)
    assert "<table" in found._repr_html_()
    assert "classification from image" in repr(run)
    assert "classification from image" in run._repr_html_()
    metrics = evaluate(run.run, report=lambda line: None)
    assert f"<td>{metrics['accuracy']:.4f}</td>" in metrics._repr_html_()


def test_a_predictor_goes_to_another_process(run, rows, tables):
    again = pickle.loads(pickle.dumps(run))
    one, other = (p.predict(rows["test"][:3], folder=tables) for p in (run, again))
    assert [row.probabilities for row in one] == [row.probabilities for row in other]


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        (numpy.float32(1.5), float),
        (numpy.int64(3), int),
        (Path("a"), str),
        (pandas.NA, type(None)),
        (float("nan"), type(None)),
    ],
)
def test_scalars_become_pythons(cell, kind):
    assert type(plain_cell(cell)) is kind


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (5, "int is no table"),
        ([1, 2], "row 1: a int is no row"),
        ([{1: 2}], "named 1"),
        ({"a": [1], "b": [1, 2]}, "different lengths"),
        ([{"a": numpy.zeros((2, 2))}], "array of float64"),
        ([{"a": numpy.zeros((2, 2, 7), numpy.uint8)}], "shape"),
        ([], "no rows"),
        (pandas.DataFrame({0: [1]}), "named 0"),
    ],
)
def test_what_is_no_table_is_said_in_a_sentence(source, words):
    with pytest.raises(UserError, match=words):
        open_table(source)
