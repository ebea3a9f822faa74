"""Calls that are wrong, from Python and the command line: each is told in one sentence, and none ends in a
traceback or in a result."""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
import torch

import mope
from mope import Config, InputConfig, Predictor, UserError, evaluate, train
from mope.cli import main

FRAME = pandas.DataFrame({"text": [f"one two three four {n}" for n in range(40)], "y": ["a", "b"] * 20})


@pytest.fixture(scope="module")
def finished(weights, tables, tmp_path_factory) -> Path:
    from run_tester import tiny_run

    folder = tmp_path_factory.mktemp("wrong") / "run"
    train(Config.parse(tiny_run(weights, tables, folder, epochs=1)), report=lambda line: None)
    return folder


def fit(data: Any = FRAME, label: Any = "y", **asked: Any) -> Any:
    return mope.fit(data, label, report=lambda line: None, **asked)


FITS: dict[str, tuple[Callable[[], Any], str]] = {
    "no such label": (lambda: fit(label="z"), "no column 'z'"),
    "a label that is nearly one": (
        lambda: fit(FRAME.rename(columns={"y": "label"}), "labl"),
        "did you mean 'label'",
    ),
    "a label that is no name": (lambda: fit(label=None), "name of a column"),
    "no such file": (lambda: fit("nothing.csv"), "There is no table nothing.csv"),
    "a file of another kind": (lambda: fit(__file__), "no table this library reads"),
    "no rows": (lambda: fit(FRAME.head(0)), "no rows"),
    "a number for a table": (lambda: fit(3), "int is no table"),
    "rows that are no mappings": (lambda: fit([1, 2]), "is no row"),
    "a column without a name": (lambda: fit(FRAME.rename(columns={"text": 0})), "named 0"),
    "one label": (lambda: fit(FRAME.assign(y="a"), encoders={"text": "./nowhere"}), "two are the least"),
    "labels that are all empty": (lambda: fit(FRAME.assign(y=None)), "all empty"),
    "a label different in each row": (
        lambda: fit(FRAME.assign(y=[f"l{n}" for n in range(40)])),
        "no classes",
    ),
    "nothing but the label": (lambda: fit(FRAME[["y"]]), "No column is left"),
    "no such kind": (lambda: fit(kinds={"text": "txt"}), "can't be 'txt'"),
    "a kind for no column": (lambda: fit(kinds={"tex": "text"}), "did you mean 'text'"),
    "a kind for the label": (lambda: fit(kinds={"y": "text"}), "is the label"),
    "no such preset": (lambda: fit(preset="quick"), "no preset 'quick'"),
    "no such main": (lambda: fit(main="image"), "the inputs are text"),
    "no such task": (lambda: fit(task="ranking"), "'task' is 'ranking'"),
    "less than no time": (lambda: fit(minutes=-1), "more than none"),
    "an encoder of no column": (lambda: fit(encoders={"image": "x/y"}), "encoders names 'image'"),
    "no such setting": (lambda: fit(settings={"training.epoch": 3}), "did you mean 'epochs'"),
    "an encoder that isn't there": (lambda: fit(encoders={"text": "./nowhere"}), "nowhere"),
    "a picture of floats": (lambda: fit([{"x": numpy.zeros((4, 4)), "y": 1}]), "array of float64"),
    "a tensor of floats": (lambda: fit([{"x": torch.zeros(3, 4, 4), "y": 1}]), "array of float32"),
    "columns of different lengths": (lambda: fit({"text": ["a"], "y": [1, 2]}), "different lengths"),
}


@pytest.mark.parametrize("name", FITS)
def test_fits(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    call, words = FITS[name]
    with pytest.raises(UserError) as refused:
        call()
    said = str(refused.value)
    assert words in said
    assert "\n" not in said
    assert not (tmp_path / "runs").exists()


PREDICTIONS: dict[str, tuple[Any, str]] = {
    "a number": (3, "int is no table"),
    "a list of texts": (["what is left ?"], "a str is no row"),
    "no such file": ("nothing.csv", "no table nothing.csv"),
    "a column that isn't there": ([{"question": "what ?"}], "no column 'picture'"),
    "a nearly right column": ([{"pictur": "a.png", "question": "?"}], "did you mean 'pictur'"),
    "none": (None, "NoneType is no table"),
    "an array": (numpy.zeros(3), "ndarray is no table"),
}


@pytest.mark.parametrize("name", PREDICTIONS)
def test_predictions(name, finished):
    rows, words = PREDICTIONS[name]
    with pytest.raises(UserError, match=words):
        Predictor(finished, device="cpu").predict(rows)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (3, "wrong type: int"),
        (datetime.date(2026, 1, 1), "wrong type: date"),
        ("nothing.png", "missing file nothing.png"),
        ("", "empty"),
        (b"nothing", "not an image"),
    ],
)
def test_a_wrong_cell_is_its_rows_error(cell, words, finished):
    (found,) = Predictor(finished, device="cpu").predict({"picture": cell, "question": "what is left ?"})
    assert found.label is None
    assert words in str(found.error)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda run: Predictor("nowhere"), "holds no finished run"),
        (lambda run: Predictor(run, device="quantum"), "quantum"),
        (lambda run: evaluate(run, "nothing.csv"), "no table nothing.csv"),
        (lambda run: evaluate(run, [{"picture": "a.png", "question": "?"}]), "no column 'colour'"),
        (lambda run: Predictor(run, device="cpu", batch_size=0), "batch_size"),
    ],
)
def test_runs(call, words, finished):
    with pytest.raises(UserError, match=words):
        call(finished)


def test_a_config_built_in_python_is_refused_in_a_sentence():
    with pytest.raises(UserError, match=r"'kind'.*image"):
        InputConfig(kind="picture", column="x", encoder=mope.EncoderConfig())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="did you mean 'column'"):
        InputConfig(kind="text", colum="x", encoder=mope.EncoderConfig())  # type: ignore[call-arg]
    config = mope.TrainingConfig()
    with pytest.raises(UserError, match="epochs"):
        config.epochs = -1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit"], "required: TABLE, --label"),
        (["fit", "nothing.csv", "--label", "y"], "no table nothing.csv"),
        (["fit", "TABLE", "--label", "colou"], "did you mean 'colour'"),
        (["fit", "TABLE", "--label", "colour", "--kind", "picture"], "COLUMN=VALUE"),
        (["fit", "TABLE", "--label", "colour", "--preset", "slow"], "no preset 'slow'"),
        (["fit", "TABLE", "--label", "colour", "--minutes", "soon"], "invalid float value"),
        (["fit", "TABLE", "--label", "colour", "--epochs", "3"], "did you mean 'training.epochs'"),
        (["train", "TABLE"], "is empty or no mapping"),
        (["predict", "nowhere", "TABLE"], "holds no finished run"),
        (["encoders", "fetch", "bert"], "no package:bert"),
        (["--print-completion", "cmd"], "no completion for 'cmd'"),
        (["fitt", "TABLE"], "invalid choice: 'fitt'"),
    ],
)
def test_commands(arguments, words, tables, capsys):
    assert main([str(tables / "train.csv") if word == "TABLE" else word for word in arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert "\n" not in said
    assert "Traceback" not in said
