"""What a second reading found, so that it stays mended."""

import datetime
from decimal import Decimal
from pathlib import Path

import numpy
import pandas
import pytest
import torch
from run_tester import quiet

import mope
from mope.config import Config
from mope.data.frames import by_input, plain_cell
from mope.data.table import open_table
from mope.errors import UserError
from mope.media.cells import BadCell
from mope.media.values import open_category, open_date
from mope.planning.columns import guess_task, look
from mope.tasks import Classification, MultiLabel
from mope.training.probe import start_head


class _Model:
    """A task and a linear head."""

    def __init__(self, task, width):
        self.task = task
        self.head = torch.nn.Module()
        self.head.linear = torch.nn.Linear(width, task.outputs)


def test_a_class_that_the_first_rows_lack_is_not_impossible():
    torch.manual_seed(0)
    model = _Model(Classification(list("abcde")), 8)
    targets = torch.randint(4, (300,))
    start_head(model, torch.randn(300, 8) + 3, targets)
    logits = model.head.linear(torch.randn(50, 8) + 3)
    assert logits.softmax(-1)[:, 4].min() > 0.02
    several = _Model(MultiLabel(list("abc")), 8)
    labels = torch.zeros(300, 3)
    labels[:150, 0] = 1
    start_head(several, torch.randn(300, 8), labels)
    assert several.head.linear(torch.randn(50, 8))[:, 2].min() > -8


def test_odd_cells_are_read_or_refused_but_never_crash():
    assert open_category(Decimal("12.50")) == "12.50"
    assert open_category(datetime.time(9, 30)) == "09:30:00"
    assert open_category("1" * 5000 + ".0") == "1" * 5000
    assert open_category("-0.0") == "0"
    assert open_category("-012.00") == "-12"
    with pytest.raises(BadCell, match="UTC"):
        open_date("0001-01-01T00:00:00+01:00")
    rows = [
        {"price": n * Decimal("1.5"), "at": datetime.time(n % 24), "z": {1, 2}, "y": n % 2} for n in range(30)
    ]
    found = {
        column.name: column.kind
        for column in look(open_table([{k: v for k, v in r.items() if k != "z"} for r in rows]), "y")
    }
    assert found["price"] == "number"
    assert plain_cell(numpy.datetime64("2024-01-01", "ns")) == datetime.datetime(2024, 1, 1)
    assert plain_cell(numpy.float32("nan")) is None


def test_two_columns_of_one_name_are_refused():
    frame = pandas.DataFrame([[1, 2]], columns=["a", "a"])
    with pytest.raises(UserError, match="Two columns are named 'a'"):
        open_table(frame)


def test_the_task_is_told_by_what_training_will_see():
    assert guess_task(["0", "1", "NA"] * 5)[1].startswith("3 different")


def test_a_table_by_its_input_s_name():
    columns = {"facts": ["price"], "text": ["title"]}
    row = {"facts": {"price": 3}, "text": "x"}
    assert by_input(row, columns, {"facts"}) == {"price": 3, "title": "x"}
    for wrong in ({"cost": 3}, 3):
        with pytest.raises(UserError, match="a mapping with some of price"):
            by_input({"facts": wrong}, columns, {"facts"})


@pytest.mark.parametrize("name", ["type", "items", "values", "self", "2nd", "a b"])
def test_a_column_may_be_called_anything(name, weights, tables, tmp_path):
    rows = [{name: f"what is on the left side number {n} ?", "y": n % 2} for n in range(24)]
    settings = {"data.workers": 0, "training.epochs": 1}
    predictor = mope.fit(
        rows,
        "y",
        encoders={name: weights["text"]},
        settings=settings | _short(name),
        output=tmp_path / "run",
        report=quiet,
    )
    assert predictor.predict(rows[:1])[0].label in {"0", "1"}


def _short(name: str) -> dict:
    known = {"type", "items", "values", "self", "2nd"}
    called = f"input_{name}" if name in known else name.replace(" ", "_")
    return {f"inputs.{called}.max_length": 16}


def test_a_renamed_column_of_a_table_is_missed(tmp_path):
    rows = [{"price": n * 1.5, "brand": "ab"[n % 2], "y": n % 2} for n in range(40)]
    predictor = mope.fit(
        rows, "y", settings={"data.workers": 0, "training.epochs": 1}, output=tmp_path / "run", report=quiet
    )
    with pytest.raises(UserError, match="no column 'price'"):
        predictor.predict([{"Price": 3.0, "brand": "a"}])


def test_params_and_probe_know_tables(weights, tables, tmp_path, config, capsys):
    from mope.cli import main
    from mope.methods import find_method

    content = config.model_dump()
    content["inputs"]["facts"] = {"kind": "table", "columns": ["number"]}
    made = Config.parse(content)
    (tmp_path / "config.yaml").write_text(made.dump())
    assert main(["params", str(tmp_path / "config.yaml")]) == 0
    assert "facts encoder" in capsys.readouterr().out
    with pytest.raises(UserError, match="the table 'facts' has nothing to begin with"):
        mope.train(find_method("Probe").apply(made), report=quiet)
    with pytest.raises(UserError, match="isn't known"):
        mope.FusionModel.build(made, ["a", "b"])


def test_a_plan_s_paths_are_absolute(weights, tables, tmp_path, monkeypatch):
    monkeypatch.chdir(tables)
    rows = pandas.read_csv("train.csv")
    rows.to_csv(tmp_path / "rows.csv", index=False)
    encoders = {"picture": weights["image"], "question": weights["text"]}
    made = mope.plan(
        tmp_path / "rows.csv",
        "colour",
        encoders=encoders,
        folder=".",
        measure=False,
        kinds={"colours": "left out"},
    )
    made.save(tmp_path / "plan.yaml")
    assert Config.load(tmp_path / "plan.yaml").data.folder is not None
    assert Path(Config.load(tmp_path / "plan.yaml").data.folder or "").resolve() == tables.resolve()


def test_fit_is_for_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process"):
        mope.fit([{"x": 1, "y": 2}], "y")


def test_going_on_from_other_values_is_refused(tmp_path):
    rows = [{"brand": "ab"[n % 2], "price": n * 1.5, "y": n % 2} for n in range(40)]
    settings = {"data.workers": 0, "training.epochs": 1}
    mope.fit(rows, "y", settings=settings, output=tmp_path / "one", report=quiet)
    others = [{**row, "brand": {"a": "b", "b": "c"}[row["brand"]]} for row in rows]
    with pytest.raises(UserError, match="hold other values"):
        mope.fit(
            others,
            "y",
            settings={**settings, "training.begin_from": str(tmp_path / "one")},
            output=tmp_path / "two",
            report=quiet,
        )
