"""What is decided for a table, and that a model comes out of it."""

import csv
import datetime
import time
from pathlib import Path

import numpy
import pandas
import pytest

import mope
from mope.cli import main
from mope.config import Config
from mope.data.table import open_table
from mope.planning.columns import guess_task, look


def kinds(rows, label="y", **asked) -> dict[str, str]:
    table = open_table([{**row, label: number % 2} for number, row in enumerate(rows)])
    return {column.name: column.kind for column in look(table, label, asked) if column.name != label}


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([f"pictures/{n}.png" for n in range(30)], "image"),
        ([f"{n}.wav" for n in range(30)], "audio"),
        ([b"\x89PNG"] * 30, "image"),
        ([n * 1.5 for n in range(30)], "number"),
        ([str(n * 1.5) for n in range(30)], "number"),
        ([n % 7 for n in range(30)], "number"),
        (list(range(30)), "left out"),
        ([1000 + n for n in range(30)], "left out"),
        ([f"a{n:05d}" for n in range(30)], "left out"),
        ([None] * 30, "left out"),
        (["x"] * 30, "left out"),
        ([["a"], ["b"]] * 15, "left out"),
        (["red", "dark green", "blue"] * 10, "category"),
        ([True, False] * 15, "category"),
        ([datetime.date(2026, 1, 1 + n) for n in range(30)], "date"),
        ([f"2026-01-{1 + n:02d}" for n in range(30)], "date"),
        ([f"what is shown in picture number {n} ?" for n in range(30)], "text"),
        (["what is in the left corner ?", "what is in the right corner ?"] * 15, "text"),
    ],
)
def test_what_a_column_is_taken_for(cells, kind):
    assert kinds([{"x": cell} for cell in cells]) == {"x": kind}


def test_what_is_said_of_a_column_counts():
    rows = [{"zip": 10_000 + 7 * n % 90, "x": n / 2} for n in range(30)]
    assert kinds(rows, zip="category") == {"zip": "category", "x": "number"}
    assert kinds(rows, zip="left out") == {"zip": "left out", "x": "number"}


def test_a_long_table_is_looked_at_from_its_beginning_to_its_end():
    count = 12_000
    rows = pandas.DataFrame(
        {
            "number": range(count),
            "shop": ["old"] * 6000 + ["new"] * 6000,
            "side": ["left", "right"] * 6000,
            "price": [n % 7 / 2 for n in range(9000)] + [None] * 3000,
            "weight": [n % 7 / 2 for n in range(count)],
            "y": [0, 1] * 6000,
        }
    )
    found = {column.name: (column.kind, column.missing) for column in look(open_table(rows), "y")}
    assert found["number"] == ("left out", False)
    assert found["shop"] == found["side"] == ("category", False)
    assert found["price"] == ("number", True)
    assert found["weight"] == ("number", False)
    rows.loc[count - 2, "weight"] = None
    one = {column.name: column.missing for column in look(open_table(rows), "y")}
    assert one["weight"]


@pytest.mark.parametrize(
    ("cells", "task"),
    [
        (["a", "b"] * 20, "classification"),
        ([0, 1] * 20, "classification"),
        (["0", "1"] * 20, "classification"),
        ([True, False] * 20, "classification"),
        ([n * 1.1 for n in range(40)], "regression"),
        (list(range(40)), "regression"),
        ([["a"], ["a", "b"]] * 20, "multilabel"),
        (["a|b", "a", "b|c", "c", "a|c", "a|b|c"] * 5, "multilabel"),
        (["a", None, "b", ""] * 10, "classification"),
    ],
)
def test_the_task_is_seen_in_the_label(cells, task):
    assert guess_task(cells)[0] == task


@pytest.fixture
def frame(tables) -> pandas.DataFrame:
    """A shop's table: a picture, a question, numbers, a category and what is of no use."""
    with (tables / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    rng = numpy.random.default_rng(0)
    price = {"red": 1, "green": 20, "blue": 300}
    return pandas.DataFrame(
        [
            {
                "id": number,
                "photo": row["picture"],
                "words": f"{row['question']} {'left' if number % 2 else 'right'} side",
                "price": price[row["colour"]] * (1 + rng.random() / 5),
                "brand": str(rng.choice(["a", "b"])),
                "shop": "ours",
                "category": row["colour"],
            }
            for number, row in enumerate(rows)
        ]
    )


@pytest.fixture
def tiny(weights, tables, tmp_path) -> dict:
    return {
        "encoders": {"photo": weights["image"], "words": weights["text"]},
        "folder": tables,
        "output": tmp_path / "fitted",
        "settings": {"data.workers": 0, "inputs.words.max_length": 16, "training.precision": "fp32"},
        "report": lambda line: None,
    }


def test_five_lines_from_a_frame_to_a_prediction(frame, tiny, tables):
    said: list[str] = []
    tiny |= {"report": said.append, "preset": "fast"}
    predictor = mope.fit(frame, label="category", **tiny)
    found = predictor.predict(frame.head(5))  # paths are relative to what they were in training
    assert all(one.error is None for one in found)
    assert set(found.to_pandas()["label"]) <= {"red", "green", "blue"}
    plan = said[0]
    assert "classification of 'category': 3 different labels" in plan
    assert "id        left out  an id" in plan
    assert "shop      left out  always 'ours'" in plan
    assert "price     number" in plan
    assert "photo: " in plan
    assert "(main: " in plan
    assert "about" in plan


def test_the_plan_is_a_config_that_trains(frame, tiny, tables, tmp_path, capsys):
    file = tables / "shop.csv"
    frame.to_csv(file, index=False)
    encoders = [f"photo={tiny['encoders']['photo']}", f"words={tiny['encoders']['words']}"]
    flags = ["--label", "category", "--encoder", encoders[0], "--encoder", encoders[1], "--preset", "fast"]
    flags += ["--inputs.words.max_length", "16", "--data.workers", "0", "--output", str(tmp_path / "run")]
    assert main(["fit", str(file), *flags, "--plan"]) == 0
    assert "at most 2 epochs, about" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert main(["fit", str(file), *flags, "--write", str(tmp_path / "plan.yaml")]) == 0
    config = Config.load(tmp_path / "plan.yaml")
    assert list(config.inputs) == ["photo", "words", "table"]
    assert main(["train", str(tmp_path / "plan.yaml")]) == 0
    assert main(["fit", str(file), *flags[:-1], str(tmp_path / "other")]) == 0
    assert "Next: mope predict" in capsys.readouterr().out


def test_rows_without_a_label_are_left_out(frame, tiny):
    frame.loc[3, "category"] = None
    made = mope.plan(frame, "category", measure=False, **{k: v for k, v in tiny.items() if k != "report"})
    assert len(made.tables["train"]) == len(frame) - 1


def test_empty_cells_get_a_stand_in(frame, tiny):
    frame.loc[3, "words"] = None
    made = mope.plan(frame, "category", measure=False, **{k: v for k, v in tiny.items() if k != "report"})
    assert made.config.inputs["words"].missing == "learn"
    assert made.config.inputs["photo"].missing == "refuse"


def test_numbers_alone_and_a_number_as_label(frame, tiny):
    only = frame[["price", "brand", "category"]]
    rest = {key: value for key, value in tiny.items() if key not in ("encoders", "settings", "folder")}
    settings = {"data.workers": 0, "training.learning_rate": 3e-3}
    assert mope.fit(only, "category", settings=settings, preset="best", **rest).predict(only.head(1))[0].label
    rest["output"] = Path(str(rest["output"]) + "2")
    predictor = mope.fit(frame[["brand", "category", "price"]], "price", settings=settings, **rest)
    assert predictor.settings.task == "regression"


def test_minutes_are_kept_to(frame, tiny, tables):
    before = time.monotonic()
    predictor = mope.fit(frame, "category", minutes=0.25, **tiny)
    taken = time.monotonic() - before
    assert taken < 18  # a quarter of a minute, and reading the run again
    assert predictor.predict(frame.head(1), folder=tables)[0].label is not None
    from mope.run import read_metrics

    assert len(read_metrics(predictor.run)["history"]) > 3


@pytest.mark.parametrize("columns", [["words"], ["photo"], ["words", "price"], ["photo", "words"]])
def test_any_part_of_the_table_is_enough(frame, tiny, columns):
    own = {name: weights for name, weights in tiny["encoders"].items() if name in columns}
    settings = {
        key: value for key, value in tiny["settings"].items() if "words" in columns or "words" not in key
    }
    asked = {**tiny, "encoders": own, "settings": {**settings, "training.epochs": 1}}
    predictor = mope.fit(frame[[*columns, "category"]], "category", **asked)
    assert predictor.predict(frame.head(3)).labels[0] in {"red", "green", "blue"}
    assert predictor.settings.fusion.main == columns[0]


def test_several_labels(frame, tiny):
    frame["tags"] = [
        f"{colour}|new" if number % 2 else colour for number, colour in enumerate(frame["category"])
    ]
    asked = {**tiny, "settings": {**tiny["settings"], "training.epochs": 1}}
    predictor = mope.fit(frame.drop(columns="category"), "tags", **asked)
    assert predictor.settings.task == "multilabel"
    assert isinstance(predictor.predict(frame.head(1))[0].label, list)
