"""Training on streams and shards, and predictions as a dataset."""

import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset, load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from shard_tester import write_tar

from mope.bulk import evaluate
from mope.cli import main
from mope.config import Config
from mope.data.check import RowCheck
from mope.data.dataset import RowReader, StreamDataset
from mope.data.report import check_config
from mope.data.shards import KEY, read_shard
from mope.data.stream import Stream, open_stream
from mope.data.table import open_table
from mope.errors import UserError
from mope.media.cells import BadCell
from mope.predictor import Predictor
from mope.training import train
from mope.training.steps import StepBatches, StepLoader

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


# The rows of an epoch


class Numbers(RowReader):
    """A sample is the row's number; a row whose number is no number is bad."""

    def __call__(self, row, folder, draw=""):
        if not isinstance(row["n"], int):
            raise BadCell("no number")
        return row["n"]


def numbers(tmp_path: Path, values: list, **settings) -> StreamDataset:
    file = tmp_path / "numbers.jsonl"
    file.write_text("".join(json.dumps({"n": value}) + "\n" for value in values))
    config = Config.parse(
        {
            "inputs": {"text": {"kind": "text", "column": "n", "encoder": {}}},
            "fusion": {"main": "text"},
            "data": {"train": str(file), "streaming": True, "workers": 2, "shuffle_buffer": 7},
            "training": {"batch_size": 4},
        }
    )
    config = changed(config, **{"data__train_rows": len(values), **settings})
    stream = open_stream(config)
    assert stream is not None
    return StreamDataset(stream, Numbers({}), RowCheck({"n": "text"}), config)


def batches(dataset: StreamDataset, epoch: int = 0, workers: int = 0) -> list[list[int]]:
    loader = StepLoader(dataset, dataset.batch, list, num_workers=workers)
    loader.begin_epoch(epoch)
    found = list(loader)
    assert len(found) == len(loader)
    return found


def flat(parts: list[list[int]]) -> list[int]:
    return [value for part in parts for value in part]


def test_each_row_is_seen_once_per_epoch_in_another_order_and_alike_by_any_number_of_workers(tmp_path):
    rows = numbers(tmp_path, list(range(50)))
    epochs = [batches(rows, epoch) for epoch in range(3)]
    assert all(sorted(flat(epoch)) == list(range(50)) for epoch in epochs)
    assert len({tuple(flat(epoch)) for epoch in epochs}) == 3
    for workers in (1, 2):
        assert [batches(rows, epoch, workers) for epoch in range(3)] == epochs
    assert batches(numbers(tmp_path, list(range(50))), 2) == epochs[2]
    assert batches(numbers(tmp_path, list(range(50)), training__seed=1), 2) != epochs[2]
    plain = numbers(tmp_path, list(range(50)), data__shuffle_buffer=1)
    assert flat(batches(plain, 1, 2)) == list(range(50))


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 40),
    wanted=st.integers(1, 50),
    processes=st.integers(1, 4),
    workers=st.integers(1, 3),
    batch=st.integers(1, 5),
    held=st.integers(1, 12),
)
def test_what_processes_and_workers_read_is_the_stream_cut_into_epochs(
    tmp_path_factory, count, wanted, processes, workers, batch, held
):
    """Together they read the endless stream, one epoch after another: nothing twice, nothing left out; and a
    step has the rows that it has in one process."""
    rows = numbers(
        tmp_path_factory.mktemp("numbers"),
        list(range(count)),
        data__train_rows=wanted,
        training__batch_size=batch,
        data__shuffle_buffer=held,
    )
    seen = []
    for epoch in range(3):
        rows.set_epoch(epoch)
        rows.share(0, 1)
        alone = [part.samples for part in rows]
        assert [len(part) for part in alone[:-1]] == [batch] * (len(alone) - 1)
        steps = [[] for _ in alone]
        for rank in range(processes):
            rows.share(rank, processes)
            for worker in range(workers):
                own = rows._rows_of(worker, workers)
                for number in range(worker, len(alone), workers):
                    part = islice(own, len(rows._places(number)))
                    steps[number] += [item.read(None)["n"] for _, item in part]
        assert steps == alone
        seen += flat(steps)
        assert len(seen) == (epoch + 1) * wanted
    whole, rest = divmod(len(seen), count)
    times = Counter(seen)
    assert set(times.values()) <= {whole, whole + 1}
    assert sum(times[n] == whole + 1 for n in range(count)) == rest


@given(
    rows=st.integers(1, 40),
    size=st.integers(1, 9),
    processes=st.integers(1, 5),
    seed=st.none() | st.integers(0, 3),
)
def test_a_tables_steps_are_shared_out_without_a_row_twice_or_missing(rows, size, processes, seed):
    for epoch in range(2):
        parts = []
        for rank in range(processes):
            batches = StepBatches(rows, size, rank, processes, seed)
            batches.epoch = epoch
            parts.append(list(batches))
        alone = StepBatches(rows, size, seed=seed)
        alone.epoch = epoch
        assert [flat(step) for step in zip(*parts, strict=True)] == list(alone)
        assert sorted(flat(alone)) == list(range(rows))
        lengths = [{len(part) for part in step} for step in zip(*parts, strict=True)]
        assert all(max(found) - min(found) <= 1 for found in lengths)


def test_an_epoch_shorter_than_the_stream_begins_where_the_last_ended(tmp_path):
    rows = numbers(tmp_path, list(range(30)), data__train_rows=12, data__shuffle_buffer=1)
    assert flat(batches(rows, 0, 2)) == list(range(12))
    assert flat(batches(rows, 1)) == list(range(12, 24))
    assert flat(batches(rows, 2)) == [*range(24, 30), *range(6)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_row_is_left_out_and_counted_or_stops(tmp_path, workers):
    values = [[n] if n in (3, 20) else n for n in range(40)]
    rows = numbers(tmp_path, values, data__bad_rows="skip", data__shuffle_buffer=1)
    assert len(set(flat(batches(rows, 0, workers)))) == 38
    said = rows.skipped() or ""
    assert "rows were skipped, over all epochs; the first is" in said
    assert "numbers.jsonl, row 4, column 'n': wrong type: list where text is expected." in said
    rows = numbers(tmp_path, values, data__shuffle_buffer=1)
    with pytest.raises(UserError) as error:
        batches(rows, 0, workers)
    assert str(error.value).startswith("A row can't be used: ")
    assert "row 4, column 'n': wrong type: list where text is expected; mend it" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_stream_without_a_good_row_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("mope.data.dataset._MOST_BAD_ON_END", 20)
    with pytest.raises(UserError, match="20 rows on end can't be used, the last is"):
        batches(numbers(tmp_path, [None] * 9, data__bad_rows="skip"))
    with pytest.raises(UserError, match="has no rows"):
        batches(numbers(tmp_path, [], data__train_rows=2))


def test_every_kind_of_source_gives_the_same_rows(tmp_path):
    rows = [{"text": f"row {n}", "label": str(n)} for n in range(600)]
    whole = Dataset.from_list(rows)
    whole.to_parquet(tmp_path / "t.parquet")
    whole.to_csv(tmp_path / "t.csv")
    whole.to_json(tmp_path / "t.jsonl")
    whole.save_to_disk(tmp_path / "saved")
    (tmp_path / "utf16.csv").write_text((tmp_path / "t.csv").read_text(), encoding="utf-16")
    for half in range(2):
        write_tar(
            tmp_path / f"t{half}.tar",
            {f"{n}.json": json.dumps(rows[n]) for n in range(half * 300, half * 300 + 300)},
        )
        whole.select(range(half * 300, half * 300 + 300)).to_parquet(tmp_path / f"part{half}.parquet")
    sources = {
        whole: 600,
        whole.to_iterable_dataset(num_shards=3): None,
        IterableDataset.from_generator(lambda: iter(rows)): None,
        **{tmp_path / name: None for name in ("t.csv", "t.jsonl", "utf16.csv", "t{0..1}.tar")},
        **{tmp_path / name: 600 for name in ("t.parquet", "saved", "part*.parquet")},
    }
    for source, length in sources.items():
        stream = Stream(source)
        assert stream.length == length
        found = [item.read(None) for item in stream.items()]
        assert [{key: row[key] for key in ("text", "label")} for row in found] == rows, source
        assert {"text", "label"} <= set(stream.columns)
        with pytest.raises(UserError, match=r"has no column 'x': it has .*text"):
            stream.require("x")


def test_what_is_wrong_with_a_file_is_said_where_it_is_met(tmp_path):
    contents = {
        "a.jsonl": ('{"text": "a"}\n[1]\n', "line 2: a row must be an object"),
        "a.csv": ("text\na,b,c\n", "quote cells that hold commas"),
        "b.csv": ("", "isn't a CSV file"),
        "a.parquet": ("x", "isn't a Parquet file"),
    }
    for name, (content, sentence) in contents.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=sentence):
            list(Stream(tmp_path / name).items())
    (tmp_path / "gb.csv").write_bytes("text\n名前\n".encode("gb18030"))
    with pytest.raises(UserError, match=r"isn't in UTF-8 .*: set data\.encoding"):
        list(Stream(tmp_path / "gb.csv").items())
    assert next(Stream(tmp_path / "gb.csv", encoding="gb18030").items()).read(None) == {"text": "名前"}
    with pytest.raises(UserError, match="There is no encoding 'klingon'"):
        list(Stream(tmp_path / "gb.csv", encoding="klingon").items())
    with pytest.raises(UserError, match=r"is no table this library reads: name a \.csv"):
        Stream(Path(__file__))
    with pytest.raises(UserError, match="There is no table"):
        Stream(tmp_path / "none.csv")


# Whole runs


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
