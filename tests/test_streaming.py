"""Training on streams and shards, and predictions as a dataset."""

import json
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset, load_from_disk
from safetensors.torch import load_file
from shard_tester import write_tar

from mope.bulk import evaluate
from mope.cli import main
from mope.config import Config
from mope.data.report import check_config
from mope.data.shards import KEY, read_shard
from mope.data.table import open_table
from mope.errors import UserError
from mope.predictor import Predictor
from mope.training import train

pytest_plugins = ["shard_fixtures"]

COLOURS = ["blue", "green", "red"]


def changed(config: Config, **settings) -> Config:
    """The config with other settings; `data__labels` stands for `data.labels`."""
    return config.with_settings({key.replace("__", "."): value for key, value in settings.items()})


def quiet(line: str) -> None:
    """Say nothing."""


def losses(result: dict) -> list[float]:
    return [entry["train_task_loss"] for entry in result["history"]]


def streamed(config: Config, **settings) -> Config:
    own = {"data__streaming": True, "data__labels": COLOURS, "data__train_rows": 48}
    return changed(config, **{**own, **settings})


def over_shards(config: Config, shards: Path, **settings) -> Config:
    return streamed(
        config,
        inputs__image__column="png",
        inputs__text__column="txt",
        data__train=str(shards / "train-{000..002}.tar"),
        data__validation=str(shards / "validation-*.tar"),
        data__test=str(shards / "test-000.tar"),
        **settings,
    )


def test_a_run_on_a_stream_learns_as_one_on_the_table_does(config, shards):
    config = over_shards(
        config,
        shards,
        data__workers=1,
        training__epochs=12,
        training__learning_rate=5e-3,
        training__complementary_learning_rate=5e-3,
        training__patience=20,
    )
    lines = []
    result = train(config, report=lines.append)
    assert losses(result)[-1] < 0.85 * losses(result)[0]
    assert [entry["epoch"] for entry in result["history"]] == list(range(1, 13))
    assert "48 rows per epoch of a stream, 16 validation rows, 3 labels" in lines[0]
    assert not any("skipped" in line for line in lines)
    assert evaluate(config.output, device="cpu", report=quiet)["rows"] == 20
    file = Path(config.output).with_suffix(".yaml")
    file.write_text(config.dump())
    assert [report.rows for report in check_config(file)] == [48, 16, 20]
    assert main(["data", "describe", str(file)]) == 0


def test_workers_and_the_kind_of_source_change_nothing_of_what_is_learned(config, tables, tmp_path):
    weights = {}
    rows = [{**row, "picture": str(tables / row["picture"])} for row in open_table(tables / "train.csv")]
    given = {
        "train": Dataset.from_list(rows).to_iterable_dataset(),
        "validation": str(tables / "validation.csv"),
    }
    for name, workers, source in (("csv", 0, None), ("two", 2, None), ("hub", 2, given)):
        run = streamed(config, output=str(tmp_path / name), data__workers=workers)
        train(run, source, report=quiet)
        weights[name] = load_file(tmp_path / name / "model.safetensors")
    assert all(torch.equal(weights["csv"][name], value) for name, value in weights["two"].items())
    assert weights["hub"].keys() == weights["csv"].keys()


def test_a_resumed_stream_ends_where_an_unbroken_one_does(config, shards, tmp_path):
    steady = {"training__schedule": "constant_with_warmup", "training__warmup": 0.0, "training__patience": 9}
    config = over_shards(config, shards, data__train_rows=20, **steady)
    full = train(changed(config, output=str(tmp_path / "whole"), training__epochs=4), report=quiet)
    broken = changed(config, output=str(tmp_path / "broken"), training__epochs=2)
    train(broken, report=quiet)
    (tmp_path / "broken" / "metrics.json").unlink()  # as if it had been killed
    continued = train(changed(broken, training__epochs=4), resume=True, report=quiet)
    assert losses(continued) == pytest.approx(losses(full), rel=1e-6)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_bad_rows_and_gaps_of_shards_follow_the_configs_policies(config, shards, tmp_path):
    rows = [sample.read() for sample in read_shard(shards / "train-000.tar")]
    members = {f"{row[KEY]}.json": json.dumps({"colour": row["colour"]}) for row in rows}
    for row in rows:
        members[f"{row[KEY]}.png"] = row["png"]
        if row[KEY] != "0009":
            members[f"{row[KEY]}.txt"] = row["txt"]
    file = write_tar(tmp_path / "gaps.tar", dict(sorted(members.items())))
    config = changed(over_shards(config, shards, data__train_rows=16), data__train=str(file))
    config = changed(config, training__epochs=1, data__workers=1)
    gap = r"sample 0009, column 'txt': empty text"
    with pytest.raises(UserError, match=rf"A row can't be used: .*gaps\.tar, {gap}; mend it"):
        train(config, report=quiet)
    lines = []
    for name, settings_, said in (
        ("skip", {"data__bad_rows": "skip"}, True),
        ("drop", {"inputs__text__missing": "drop"}, True),
        ("learn", {"inputs__text__missing": "learn"}, False),
    ):
        train(changed(config, output=str(tmp_path / name), **settings_), report=lines.append)
        assert bool(re.search(f"1 row was skipped, over all epochs; the first is .*{gap}", lines[-1])) == said
    members["0006.png"] = members["0006.png"][:50]
    write_tar(file, dict(sorted(members.items())))
    broken = {"inputs__text__missing": "drop", "output": str(tmp_path / "broken")}
    with pytest.raises(UserError, match=r"sample 0006, column 'png': broken image"):
        train(changed(config, **broken), report=quiet)


def test_a_regression_is_standardised_by_the_streams_first_rows(config, tables):
    config = changed(
        config, task="regression", data__label="number", data__streaming=True, data__train_rows=48
    )
    lines = []
    train(config, report=lines.append)
    assert "train.csv: labels are standardised by those of the first 48 rows." in lines[0]
    task = Predictor(config.output, device="cpu").model.task
    assert float(task.mean) == pytest.approx(47 / 4)


def test_what_a_stream_lacks_is_said(config, tables):
    cases = [
        (
            {"data__labels": None},
            r"labels of .*train\.csv aren't known beforehand: list them in data\.labels",
        ),
        ({"data__validation": None}, "no validation rows: .*none are held out of a stream"),
        ({"data__train_rows": None}, r"doesn't say how many rows it has: set data\.train_rows"),
        ({"data__class_weights": "balanced"}, r"class_weights can't be balanced: give each label's weight"),
        ({"data__split_column": "split"}, "A stream isn't split by"),
        ({"data__label": "x"}, r"train\.csv has no column 'x'"),
    ]
    for settings_, sentence in cases:
        with pytest.raises(UserError, match=sentence):
            train(streamed(config, **settings_), report=quiet)
    rows = Dataset.from_csv(str(tables / "test.csv")).to_iterable_dataset()
    with pytest.raises(UserError, match="Only training rows can be a stream"):
        train(config, {"train": str(tables / "train.csv"), "validation": rows}, report=quiet)


# Predictions as a dataset


def test_predictions_become_a_dataset_and_come_back(config, tables, shards, tmp_path, capsys):
    config = changed(over_shards(config, shards), training__epochs=1)
    train(config, report=quiet)
    capsys.readouterr()
    file, out = str(shards / "test-000.tar"), str(tmp_path / "found")
    assert main(["predict", config.output, file, "--out", out, "--device", "cpu", "--routing"]) == 0
    assert f"20 rows are in {out}." in capsys.readouterr().out
    found = load_from_disk(out)
    assert found.column_names[:4] == ["label", "probability_blue", "probability_green", "probability_red"]
    assert "routing_layer1_expert1" in found.column_names
    assert open_table(out).column("label") == found["label"][:]
    assert main(["predict", config.output, file, "--out", out]) == 2
    assert "it is there already; name a new folder" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []

    rows = open_table(file).rows
    predictor = Predictor(config.output, device="cpu")
    more = predictor.predict_dataset(rows)
    assert more.column_names[:5] == rows.column_names
    assert more["predicted_label"][:] == found["label"][:]
    assert more[KEY][:] == rows[KEY][:]
    assert more["predicted_error"][0] is None
    picked = predictor.predict_dataset(rows.select([7, 2]))
    assert picked["predicted_label"][:] == [found["label"][7], found["label"][2]]
    assert picked[KEY][:] == [rows[KEY][7], rows[KEY][2]]
    with pytest.raises(UserError, match="has a column 'predicted_error' already"):
        predictor.predict_dataset(more)
