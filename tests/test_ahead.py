"""Files elsewhere that a stream's rows name, fetched before it is their turn."""

import threading
import time

import pytest
from remote_tester import png
from run_tester import quiet, tiny_run

from mope.config import Config, InputConfig
from mope.data.ahead import ROWS, THREADS, fetched_ahead
from mope.data.readers import ImageReader
from mope.data.stream import Stream
from mope.errors import UserError
from mope.media.cells import BadCell
from mope.media.images import open_image
from mope.predictor import Predictor
from mope.training import train

pytest_plugins = ["remote_fixtures", "serve_fixtures"]

COLUMNS = ["picture"]


@pytest.fixture
def names(web, cache):
    """Names of 96 pictures on the web, and a table of them."""
    found = [f"{number}.png" for number in range(96)]
    web.files |= {f"/{name}": png() for name in found}
    web.files["/a.csv"] = "\n".join(["picture", *found]).encode()
    return found


@pytest.fixture
def readers(weights):
    return [
        ImageReader(
            InputConfig.model_validate(
                {"kind": "image", "column": "picture", "encoder": {"weights": weights["image"]}}
            )
        )
    ]


def rows_of(source, taken=None):
    for number, item in enumerate(Stream(source).items(), 1):
        if taken is not None:
            taken.append(number)
        yield number, item


def threads() -> int:
    return sum(thread.name.startswith("fetching ahead") for thread in threading.enumerate())


def looked_at(row) -> tuple[int, str]:
    """A row's number, and its picture's name, once that is opened."""
    number, item = row
    name = item.read(COLUMNS)["picture"]
    assert open_image(name, item.folder).size == (28, 28)
    return number, name


def test_rows_come_in_their_order_and_each_file_once(names, readers, web):
    found = [looked_at(row) for row in fetched_ahead(rows_of(f"{web.url}/a.csv"), readers, COLUMNS)]
    assert found == [*enumerate(names, 1)]
    assert all(web.asked[f"GET /{name}"] == 1 for name in names)


def test_no_more_rows_are_taken_than_are_sure_to_be_asked_for(names, readers, web):
    """One process of several may want few rows of an endless stream, and look for the next one for ever."""
    taken = []
    ahead = fetched_ahead(rows_of(f"{web.url}/a.csv", taken), readers, COLUMNS, wanted=4)
    assert [looked_at(next(ahead))[0] for _ in range(4)] == [1, 2, 3, 4]
    assert len(taken) == 4
    assert looked_at(next(ahead))[0] == len(taken) == 5  # in the place of one that couldn't be used


def test_few_are_held_and_threads_end_with_the_iterator(names, readers, web):
    taken = []
    ahead = fetched_ahead(rows_of(f"{web.url}/a.csv", taken), readers, COLUMNS)
    assert [looked_at(next(ahead))[0] for _ in range(3)] == [1, 2, 3]
    time.sleep(0.3)
    assert len(taken) == ROWS + 2
    assert 0 < threads() <= THREADS
    web.seconds = 0.2
    next(ahead)
    ahead.close()
    until = time.monotonic() + 5
    while threads() and time.monotonic() < until:
        time.sleep(0.05)
    assert not threads()
    assert sum(web.asked[f"GET /{name}"] for name in names) <= ROWS + 4


def test_of_rows_whose_files_are_here_none_is_held(tables, readers):
    taken = []
    ahead = fetched_ahead(rows_of(tables / "train.csv", taken), readers, COLUMNS)
    for number in range(1, 20):
        assert looked_at(next(ahead))[0] == number
        assert len(taken) == number
    assert not threads()


def test_what_goes_wrong_is_said_at_its_row(names, readers, web):
    # A file that isn't there is its row's fault.
    del web.files["/3.png"]
    rows = fetched_ahead(rows_of(f"{web.url}/a.csv"), readers, COLUMNS)
    found = [next(rows) for _ in range(6)]
    with pytest.raises(BadCell, match=r"there is no file .*/3\.png"):
        looked_at(found[3])
    assert [looked_at(row)[1] for row in found[4:]] == names[4:6]
    # A storage that can't be reached is that of all, once the rows before it were given.
    web.files["/b.jsonl"] = b"".join(
        b'{"picture": "%s"}\n' % name for name in (b"1.png", b"2.png", b"http://127.0.0.1:9/x.png", b"4.png")
    )
    rows = fetched_ahead(rows_of(f"{web.url}/b.jsonl"), readers, COLUMNS)
    assert [looked_at(next(rows))[0] for _ in range(2)] == [1, 2]
    with pytest.raises(UserError, match=r"can't be reached .* check its address and the network"):
        next(rows)
    # So is a line that is broken.
    web.files["/c.jsonl"] = b'{"picture": "1.png"}\n{"picture": "2.png"}\n[1]\n'
    rows = fetched_ahead(rows_of(f"{web.url}/c.jsonl"), readers, COLUMNS)
    assert [looked_at(next(rows))[0] for _ in range(2)] == [1, 2]
    with pytest.raises(UserError, match="line 3: a row must be an object"):
        next(rows)
    assert list(rows) == []


def test_a_run_on_a_stream_elsewhere_is_one_on_it_here(web, cache, weights, tables, tmp_path):
    web.files |= {f"/{file.name}": file.read_bytes() for file in tables.iterdir()}
    found = {}
    for name, base in (("near", tables), ("far", web.url)):
        content = tiny_run(weights, tables, tmp_path / name, epochs=2)
        content["data"] |= {"train": f"{base}/train.csv", "streaming": True, "train_rows": 20}
        content["data"]["labels"] = ["blue", "green", "red"]
        found[name] = [e["train_task_loss"] for e in train(Config.parse(content), report=quiet)["history"]]
    assert found["near"] == found["far"]
    assert not threads()
    predictor = Predictor(tmp_path / "far", device="cpu", batch_size=4)
    expected = predictor.predict(tables / "test.csv")
    assert list(predictor.predict_stream(f"{web.url}/test.csv")) == expected
    some = predictor.predict_stream(f"{web.url}/test.csv")
    next(some)
    some.close()
    until = time.monotonic() + 10
    while threads() and time.monotonic() < until:
        time.sleep(0.01)
    assert not threads()
