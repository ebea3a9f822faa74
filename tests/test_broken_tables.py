"""Tables that are broken as a whole: each is told in one short sentence, as a table, as a stream and by the
command line; none ends in a traceback, and none is waited for."""

from pathlib import Path

import pytest
import yaml
from broken_tables import AS_TABLES, FILES, PLACES
from run_tester import tiny_run

from mope.cli import main
from mope.data.stream import Stream
from mope.data.table import open_table
from mope.errors import UserError
from mope.media.cells import BadCell

COLUMNS = ("text", "label")
pytestmark = pytest.mark.usefixtures("in_time")

LONGEST = 300


@pytest.fixture
def broken(tmp_path, request) -> tuple[Path, str]:
    """A broken table, and what is said of it."""
    kind, name = request.param
    if kind == "places":
        make, sentence = PLACES[name]
        return make(tmp_path), sentence
    file, content, sentence = (FILES | AS_TABLES)[name]
    (tmp_path / file).write_bytes(content)
    return tmp_path / file, sentence


def cases(**kinds):
    both = [(kind, name) for kind, names in kinds.items() for name in names]
    return pytest.mark.parametrize("broken", both, indirect=True, ids=[name for _, name in both])


def is_short(sentence: str, file: Path) -> bool:
    """Whether it is one line, and short beside the file's name, which may be any."""
    words = sentence.replace(str(file), "FILE").replace(str(file.parent), "FOLDER")
    return len(words) <= LONGEST and words.isprintable()


def test_there_are_many_kinds():
    assert len(FILES | AS_TABLES) + len(PLACES) >= 60


@cases(files=FILES, tables=AS_TABLES, places=PLACES)
def test_a_table(broken):
    file, sentence = broken
    with pytest.raises(UserError, match=sentence) as caught:
        open_table(file).require(*COLUMNS)
    assert is_short(str(caught.value), file), caught.value


def read_as_training_does(file: Path) -> None:
    stream = Stream(file)
    if sum(1 for item in stream.items() if item.read(None)) == 0:
        raise UserError(f"{file} has no rows.")
    stream.require(*COLUMNS)


@cases(files=FILES, places=PLACES)
def test_a_stream(broken):
    file, sentence = broken
    with pytest.raises((UserError, BadCell), match=sentence) as caught:
        read_as_training_does(file)
    assert is_short(str(caught.value), file), caught.value


def is_told(words: list[str], file: Path, capsys) -> bool:
    """Whether a command ends with code 2 and one sentence."""
    assert main(words) == 2, words
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    line = output.err.strip().splitlines()[-1]
    return line.startswith("mope: ") and is_short(line, file)


@cases(files=FILES, tables=AS_TABLES, places=PLACES)
def test_by_mope_data_check(broken, capsys):
    file, _ = broken
    words = ["data", "check", str(file), "--text", "text", "--label", "label"]
    assert is_told(words, file, capsys)
    assert is_told([*words, "--untrusted", "--max-pixels", "1000"], file, capsys)


@pytest.mark.slow
@cases(files=FILES, tables=AS_TABLES, places=PLACES)
def test_by_mope_train_and_predict(broken, tmp_path, capsys, weights, tables):
    file, _ = broken
    run = tiny_run(weights, tables, tmp_path / "run")
    run["data"] |= {"train": str(file), "label": "label"}
    run["inputs"] = {"text": {**run["inputs"]["text"], "column": "text"}}
    run["fusion"] = {"method": "unimodal", "main": "text"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(run))
    train = ["train", str(tmp_path / "config.yaml")]
    streamed = ["--data.streaming", "true", "--data.train_rows", "4", "--data.labels", "[a, b]"]
    for words in (train, [*train, *streamed], ["predict", str(tmp_path / "run"), str(file)]):
        assert is_told(words, file, capsys)
