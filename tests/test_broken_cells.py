"""Cells that can't be used: each says why in a few words, in a check, a prediction and a training; none ends
in a traceback, and none is waited for."""

import json
import pickle
from contextlib import suppress
from pathlib import Path

import pytest
from broken_cells import STRANGE, STRANGERS, all_cells, picture, write_files

from mope import Predictor, train
from mope.cli import main
from mope.config import MediaLimits
from mope.media import OPENERS, PEEKERS
from mope.media.cells import BadCell, home_of
from mope.media.images import open_pixels
from mope.media.masks import mask_size, open_mask

pytestmark = pytest.mark.usefixtures("in_time")

LONGEST = 200
BAD = all_cells()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    where = tmp_path_factory.mktemp("cells") / "table"
    where.mkdir()
    write_files(where)
    return where


def open_cell(kind, cell, folder):
    return {**OPENERS, "mask": open_mask}[kind](cell, folder)


def peek(kind, cell, folder):
    return {**PEEKERS, "mask": mask_size}[kind](cell, folder)


def refused(function, kind, cell, folder, sentence):
    with pytest.raises(BadCell, match=sentence) as caught:
        function(kind, cell, folder)
    words = str(caught.value)
    assert len(words) <= LONGEST, words
    assert words.isprintable(), words


def test_there_are_many_kinds():
    assert len(BAD) + len(STRANGERS) >= 60


@pytest.mark.parametrize("name", BAD)
def test_a_cell(folder, name):
    kind, cell, sentence = BAD[name]
    strange = home_of(folder, False, MediaLimits(megabytes=1))
    for where in (folder, strange):
        refused(open_cell, kind, cell, where, sentence)
        with suppress(BadCell):
            peek(kind, cell, where)  # which may be blind to it
        if kind == "image":
            refused(lambda _, cell, where: open_pixels(cell, where), kind, cell, where, sentence)


@pytest.mark.parametrize("name", STRANGERS)
def test_a_strangers_cell(folder, name):
    kind, cell, sentence = STRANGERS[name]
    strange = home_of(folder, False, MediaLimits(**STRANGE))
    for function in (open_cell, peek):
        refused(function, kind, cell, strange, sentence)
        refused(function, kind, cell, pickle.loads(pickle.dumps(strange)), sentence)


def test_what_is_sound_is_read_from_strangers_too(folder):
    strange = home_of(folder, False, MediaLimits(**STRANGE))
    assert open_cell("image", "good.png", strange).size == (40, 40)
    assert len(open_cell("audio", "good.wav", strange)) == 4000
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        for where in (folder, strange):
            assert open_cell("image", picture(kind), where).size == (40, 40)


def in_a_table(kinds):
    """Cells that JSON has, of these kinds."""
    return {
        name: (kind, cell, sentence)
        for name, (kind, cell, sentence) in BAD.items()
        if kind in kinds and not isinstance(cell, bytes | dict | list) and "\ud83d" not in str(cell)
    }


def write(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_mope_data_check_lists_them_all(folder, capsys):
    good = {"image": "good.png", "audio": "good.wav", "text": "fine"}
    cells = in_a_table(good)
    rows = [good, *({**good, kind: cell} for kind, cell, _ in cells.values()), good]
    file = write(folder / "rows.jsonl", rows)
    words = ["data", "check", str(file), "--json", *(f for kind in good for f in (f"--{kind}", kind))]
    for more in ([], ["--untrusted", "--max-megabytes", "1"]):
        assert main([*words, *more]) == 2
        found = json.loads(capsys.readouterr().out)[0]["problems"]
        assert [problem["row"] for problem in found] == list(range(2, len(rows)))
        assert [problem["column"] for problem in found] == [kind for kind, _, _ in cells.values()]


@pytest.fixture(scope="module")
def run(weights, tables, tmp_path_factory) -> Path:
    from run_tester import tiny_run

    from mope.config import Config

    where = tmp_path_factory.mktemp("cells") / "run"
    train(Config.parse(tiny_run(weights, tables, where, epochs=1)), report=lambda line: None)
    return where


GOOD = {"picture": "good.png", "question": "what is left ?"}


def bad_rows() -> list[dict]:
    columns = {"image": "picture", "text": "question"}
    return [{**GOOD, columns[kind]: cell} for kind, cell, _ in in_a_table(columns).values()]


def test_mope_predict_says_why_in_each_row(folder, run, capsys):
    cells = bad_rows()
    rows = [GOOD, *cells, GOOD]
    file = write(folder / "predicted.jsonl", rows)
    for more in ([], ["--untrusted"]):
        assert main(["predict", str(run), str(file), "--json", *more]) == 0
        output = capsys.readouterr()
        found = json.loads(output.out)
        assert [row["error"] is None for row in found] == [True, *[False] * len(cells), True]
        assert found[0]["probabilities"] == found[-1]["probabilities"]
        assert f"{len(cells)} of {len(rows)} rows can't be used" in output.err
        assert "Traceback" not in output.err


def test_rows_in_memory_say_why_as_well(folder, run):
    rows = [{**GOOD, "picture": cell} for kind, cell, _ in BAD.values() if kind == "image"]
    found = Predictor(run, device="cpu").predict([GOOD, *rows], folder)
    assert [one.error is None for one in found] == [True, *[False] * len(rows)]


@pytest.mark.parametrize("streamed", [False, True])
def test_mope_train_leaves_them_out(folder, weights, tables, tmp_path, streamed):
    """Training reads headers beforehand, a stream nothing: what can't be used is left out and counted."""
    from run_tester import tiny_run

    from mope.config import Config

    rows, colours = bad_rows(), ["red", "green", "blue"]
    bad = [{**row, "colour": colours[place % 3]} for place, row in enumerate(rows)]
    good = [{**GOOD, "colour": colour} for colour in colours * 3]
    settings = tiny_run(weights, tables, tmp_path / "run", epochs=1, begin_from=None)
    settings["data"] |= {
        "train": str(write(folder / "trained.jsonl", [*good, *bad])),
        "bad_rows": "skip",
        "labels": ["red", "green", "blue"],
        "trusted": False,
        "folder": None,
    }
    if streamed:
        settings["data"] |= {"streaming": True, "train_rows": 18}
    said = []
    train(Config.parse(settings), report=said.append)
    assert any("skipped" in line for line in said), said
    assert all(line.isprintable() for line in said if "skipped" in line)
