"""The rows of a stream: in which order, by which process and worker, of which kinds of files."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, IterableDataset, List
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_tester import write_tar

from mope.config import Config
from mope.data.check import RowCheck
from mope.data.dataset import RowReader, StreamDataset
from mope.data.stream import Stream, open_stream
from mope.errors import UserError
from mope.media.cells import BadCell
from mope.training.steps import StepBatches, StepLoader

pytest_plugins = ["shard_fixtures"]


def changed(config: Config, **settings) -> Config:
    """The config with other settings; `data__labels` stands for `data.labels`."""
    return config.with_settings({key.replace("__", "."): value for key, value in settings.items()})


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


def test_labels_of_a_dataset_are_names_alone_and_in_lists():
    label = ClassLabel(names=["cat", "dog"])
    rows = {"one": [1, -1, 0], "many": [[0, 1], [], [1]]}
    whole = Dataset.from_dict(rows, Features({"one": label, "many": List(label)}))
    streams = [Stream(source) for source in (whole, whole.to_iterable_dataset(num_shards=2))]
    for stream in streams:
        found = [item.read(None) for item in stream.items()]
        assert [row["one"] for row in found] == ["dog", None, "cat"]
        assert [row["many"] for row in found] == [["cat", "dog"], [], ["dog"]]
        assert stream.types == streams[0].types


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
