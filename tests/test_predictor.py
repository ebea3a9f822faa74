"""Predictions: in order, the same however they are asked for, and none lost."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from PIL import Image
from run_tester import tiny_run

from mope.bulk import evaluate
from mope.cli import main
from mope.config import Config
from mope.data.table import open_table
from mope.errors import UserError
from mope.model import FusionModel
from mope.predictions import Prediction, write_predictions
from mope.predictor import Predictor
from mope.run import CONFIG, DIGEST
from mope.tasks import ReferringSegmentation, Regression
from mope.training import train


@pytest.fixture(scope="module")
def run(weights, tables, tmp_path_factory) -> Path:
    """A finished run, shared by the tests of this file, none of which changes it."""
    folder = tmp_path_factory.mktemp("run") / "run"
    config = Config.parse(tiny_run(weights, tables, folder, epochs=12, learning_rate=5e-3))
    train(config, report=lambda line: None)
    return folder


@pytest.fixture
def predictor(run) -> Predictor:
    return Predictor(run, device="cpu")


def close(one: Prediction, other: Prediction) -> bool:
    return one.label == other.label and one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_a_row_s_prediction_does_not_depend_on_its_batch_or_padding(predictor, tables):
    table = open_table(tables / "test.csv")
    together = predictor.predict(table)
    assert len({p.label for p in together}) > 1
    for index in range(len(table)):
        (alone,) = predictor.predict(table.select([index]))
        assert close(alone, together[index])
        for one, other in zip(alone.routing, together[index].routing, strict=True):
            # Standardising blows rounding up by a feature's inverse deviation.
            assert one == pytest.approx(other, abs=1e-4)


def test_two_predictions_are_equal_and_so_are_those_of_a_reloaded_run(predictor, run, tables):
    table = open_table(tables / "test.csv")
    first = predictor.predict(table)
    assert first == predictor.predict(table)
    assert first == Predictor(run, device="cpu").predict(table)


def test_save_load_predict_gives_the_same_numbers(predictor, run, tables, tmp_path):
    FusionModel.from_pretrained(run).save_pretrained(tmp_path / "copy")
    again = FusionModel.from_pretrained(tmp_path / "copy")
    state, other = predictor.model.state_dict(), again.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)
    table = open_table(tables / "test.csv")
    assert Predictor(tmp_path / "copy", device="cpu").predict(table) == predictor.predict(table)


def test_weights_of_another_run_are_refused(run, tmp_path):
    """Two runs of the same shapes, whose files are replaced one after the other."""
    one, other = tmp_path / "one", tmp_path / "other"
    model = FusionModel.from_pretrained(run)
    model.save_pretrained(one)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(1)
    model.save_pretrained(other)
    assert FusionModel.from_pretrained(other)
    shutil.copy(one / CONFIG, other / CONFIG)
    with pytest.raises(UserError, match=r"isn't what the config\.yaml beside it was written with"):
        FusionModel.from_pretrained(other)
    with pytest.raises(UserError, match=r"isn't what the config\.yaml beside it was written with"):
        model.begin_from(other)
    # A run of an earlier version doesn't say.
    lines = (other / CONFIG).read_text().splitlines(keepends=True)
    (other / CONFIG).write_text("".join(line for line in lines if DIGEST not in line))
    assert FusionModel.from_pretrained(other)


def test_a_row_whose_numbers_are_not_finite_has_an_error(predictor, monkeypatch):
    nan, inf = float("nan"), float("inf")
    scores = [torch.tensor([[0.5, 0.5], [0.5, 0.5], [nan, 0.5], [1.0, 0.0]])]
    logits = torch.tensor([[1.0, 2.0, 0.0], [nan, 0.0, 0.0], [0.0, 0.0, 0.0], [3.0, 0.0, 1.0]])
    found = predictor.decide(logits, scores)
    assert [row.label for row in found] == [predictor.model.task.labels[1], None, None, "blue"]
    assert "no finite number" in found[1].error
    assert found[1].probabilities == {}
    assert found[1].routing == []
    assert found[3].routing == [[1.0, 0.0]]
    assert predictor.decide(logits[1:2], [])[0].error == found[1].error
    number = predictor.model.task = Regression(["number"])
    number.scale.fill_(1e38)
    found = predictor.decide(torch.tensor([[0.5], [inf], [9.0], [nan]]), [])
    assert [row.error is None for row in found] == [True, False, False, False]
    assert found[0].label == pytest.approx(5e37)


def test_a_mask_of_numbers_that_are_not_finite_has_an_error(predictor):
    pytest.importorskip("pycocotools")
    predictor.model.task = ReferringSegmentation(["mask"], "bce")
    logits = torch.ones(3, 4, 4)
    logits[1, 2, 3] = float("nan")
    found = predictor.decide(logits, [], [(4, 4), (5, 5), (6, 7)])
    assert [row.error is None for row in found] == [True, False, True]
    assert found[2].label["size"] == [6, 7]


def test_json_has_no_bare_nan(run, tables, monkeypatch, capsys):
    forward = Predictor.forward_batch

    def broken(self, batch):
        logits, scores = forward(self, batch)
        return torch.cat([torch.full_like(logits[:1], float("nan")), logits[1:]]), scores

    monkeypatch.setattr(Predictor, "forward_batch", broken)
    words = ["predict", str(run), str(tables / "test.csv"), "--json", "--routing", "--device", "cpu"]
    assert main(words) == 0
    said = capsys.readouterr()
    found = json.loads(said.out, parse_constant=lambda name: pytest.fail(f"{name} isn't JSON"))
    assert "no finite number" in found[0]["error"]
    assert found[1]["error"] is None
    assert "1 of 20 rows can't be used" in said.err


def test_probabilities_and_routing_are_distributions(predictor, tables):
    for prediction in predictor.predict(open_table(tables / "test.csv")):
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert prediction.label == max(
            prediction.probabilities, key=lambda name: prediction.probabilities[name]
        )
        assert len(prediction.routing) == 2
        assert all(sum(layer) == pytest.approx(1, abs=1e-5) for layer in prediction.routing)


def test_rows_may_be_mappings_with_paths_bytes_or_pictures(predictor, tables):
    file = tables / "test_0.png"
    question = open_table(tables / "test.csv")[0]["question"]
    cells = [str(file), file.read_bytes(), Image.open(file), {"bytes": file.read_bytes(), "path": None}]
    predictions = predictor.predict([{"picture": cell, "question": question} for cell in cells])
    assert all(close(p, predictions[0]) for p in predictions)
    assert predictor.predict([]) == []
    with pytest.raises(UserError, match="The table has no column 'question': it has picture"):
        predictor.predict([{"picture": str(file)}])


def test_bad_rows_are_marked_and_keep_their_place(predictor, tables):
    table = open_table(tables / "test.csv")
    rows = [{**row, "picture": str(tables / row["picture"])} for row in table]
    rows[3]["picture"], rows[7]["question"], rows[19]["picture"] = "none.png", " ", None
    predictions = predictor.predict(rows)
    good = predictor.predict(table)
    assert {i: p.error for i, p in enumerate(predictions) if p.error} == {
        3: "missing file none.png",
        7: "empty text",
        19: "no image: the cell is empty",
    }
    assert all(close(p, good[i]) for i, p in enumerate(predictions) if not p.error)
    assert all(p.label is None for p in predictions if p.error)
    assert [p.error for p in predictor.predict(rows[3:4])] == ["missing file none.png"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_predictions_are_written_row_by_row(predictor, tables, tmp_path, suffix):
    rows = [{**row, "picture": str(tables / row["picture"])} for row in open_table(tables / "test.csv")]
    rows[2]["question"] = ""
    predictions = predictor.predict(rows)
    file = tmp_path / "deep" / f"out{suffix}"
    write_predictions(predictions, file, predictor.model.task.labels, routing=True)
    back = list(open_table(file))
    assert len(back) == len(rows)
    names = ["label", "probability_blue", "probability_green", "probability_red"]
    names += [f"routing_layer{i}_expert{j}" for i in (1, 2) for j in (1, 2, 3)]
    assert list(back[0]) == [*names, "error"]
    for prediction, row in zip(predictions, back, strict=True):
        if prediction.error:
            assert row["error"] == "empty text"
            assert not row["label"]
            continue
        assert row["label"] == prediction.label
        assert float(row["probability_red"]) == pytest.approx(prediction.probabilities["red"])
        assert float(row["routing_layer2_expert3"]) == pytest.approx(prediction.routing[1][2])
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_predictions_of_other_tasks_are_written(tmp_path):
    many = [
        Prediction(["a", "b"], {"a": 0.9, "b": 0.8, "c": 0.1}),
        Prediction([], {"a": 0.1, "b": 0.2, "c": 0.1}),
    ]
    write_predictions(many, tmp_path / "many.csv", ["a", "b", "c"])
    with (tmp_path / "many.csv").open() as stream:
        assert [row["label"] for row in csv.DictReader(stream)] == ["a|b", ""]
    write_predictions(many, tmp_path / "many.jsonl", ["a", "b", "c"])
    assert json.loads((tmp_path / "many.jsonl").read_text().splitlines()[0])["label"] == ["a", "b"]
    numbers = [Prediction(1.5), Prediction(error="empty text")]
    write_predictions(numbers, tmp_path / "numbers.csv", [])
    with (tmp_path / "numbers.csv").open() as stream:
        assert list(csv.DictReader(stream)) == [
            {"label": "1.5", "error": ""},
            {"label": "", "error": "empty text"},
        ]
    write_predictions([Prediction(error="x")], tmp_path / "bad.csv", ["a", "b"])
    with (tmp_path / "bad.csv").open() as stream:
        assert list(next(csv.reader(stream))) == ["label", "probability_a", "probability_b", "error"]
    with pytest.raises(UserError, match=r"name a \.csv, \.jsonl, \.parquet file"):
        write_predictions(numbers, tmp_path / "x.txt", [])


def test_evaluate_agrees_with_the_predictions(run, predictor, tables):
    table = open_table(tables / "test.csv")
    right = [p.label == row["colour"] for p, row in zip(predictor.predict(table), table, strict=True)]
    result = evaluate(run, device="cpu", report=lambda line: None)
    assert result["accuracy"] == pytest.approx(sum(right) / len(right))
    assert result["rows"] == 20


def test_evaluate_refuses_or_skips_bad_rows(run, tables, tmp_path):
    rows = [{**row, "picture": str(tables / row["picture"])} for row in open_table(tables / "test.csv")]
    rows[1]["colour"] = "mauve"
    Dataset.from_list(rows).to_parquet(str(tmp_path / "bad.parquet"))
    with pytest.raises(
        UserError, match="1 of 20 rows can't be used, such as row 2, column 'colour': unknown label"
    ):
        evaluate(run, tmp_path / "bad.parquet", device="cpu")
    lines = []
    result = evaluate(run, tmp_path / "bad.parquet", skip_bad_rows=True, device="cpu", report=lines.append)
    assert result["rows"] == 19
    assert "skipped 1 of 20 rows" in lines[0]
