"""What is read of a table although its name or its cells say something else, and that it is said."""

import csv
import io
import json
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from run_tester import changed, tiny_run

from mope import train
from mope.cli import build_parser, main
from mope.config import Config, MediaLimits
from mope.data.stream import Stream
from mope.data.table import open_table
from mope.errors import UserError, shown
from mope.hub import forget_tables
from mope.media.cells import home_of
from mope.media.images import open_image
from mope.serve.settings import ServeSettings

ROWS = [
    {"text": "one, two", "label": "a"},
    {"text": 'say "hi"\nthere', "label": ""},
    {"text": "1;5\t", "label": "b"},
]


def written(separator: str, end: str = "\n") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["text", "label"], delimiter=separator, lineterminator=end)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("t.csv", written(","), None),
        ("t.csv", written(",", "\r\n"), None),
        ("t.csv", written(",", "\r"), None),
        ("t.csv", "\ufeff" + written(","), None),
        ("t.csv", "\n" + written(",") + "\n \n", None),
        ("t.CSV", written(";"), "its cells are separated by semicolons"),
        ("t.csv", written("\t"), "its cells are separated by tabs"),
        ("t.csv", "\ufeff" + written(";", "\r\n"), "its cells are separated by semicolons"),
        ("t.csv", "sep=|\r\n" + written("|"), "its cells are separated by '|'"),
        ("t.csv", "sep=,\n" + written(","), None),
        ("t.tsv", written("\t"), None),
        ("t.tsv", written(","), "its cells are separated by commas"),
    ],
)
def test_separators_are_found_and_said(tmp_path, name, content, note):
    file = tmp_path / name
    file.write_text(content, encoding="utf-8", newline="")
    for table in (open_table(file), Stream(file)):
        assert (table.note is None) == (note is None)
        assert note is None or note in table.note
    assert list(open_table(file)) == ROWS
    assert [item.read(None) for item in Stream(file).items()] == ROWS


def test_one_column_is_a_table_whatever_is_in_its_cells(tmp_path):
    (tmp_path / "t.csv").write_text("text\none; two\nthree; four\n")
    assert open_table(tmp_path / "t.csv").column("text") == ["one; two", "three; four"]


def test_long_cells_and_many_rows_are_read_as_they_are(tmp_path):
    long = "x, " * 100_000
    with (tmp_path / "t.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [["text", "", "n"], *([long if n == 7 else "", "a", n] for n in range(45_000))]
        )
    table = open_table(tmp_path / "t.csv")
    assert table.columns == ["text", "Unnamed: 1", "n"]
    assert table[7]["text"] == long
    assert table.column("n") == [str(n) for n in range(45_000)]


def test_numbers_that_no_column_holds_are_text(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"n": 1}\n{"n": 123456789012345678901234567890}\n')
    assert open_table(tmp_path / "t.jsonl").column("n") == ["1", "123456789012345678901234567890"]


def test_the_separator_is_said_by_every_command(tmp_path, tables, weights, capsys):
    rows = (tables / "train.csv").read_text().replace(",", ";")
    (tables / "semicolons.csv").write_text(rows)
    run = tiny_run(weights, tables, tmp_path / "run", epochs=1)
    run["data"]["train"] = run["data"]["test"] = str(tables / "semicolons.csv")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(run))
    file, note = str(tables / "semicolons.csv"), "semicolons.csv: its cells are separated by semicolons"
    assert main(["train", str(tmp_path / "config.yaml")]) == 0
    assert note in capsys.readouterr().out
    for words in (["evaluate", str(tmp_path / "run")], ["predict", str(tmp_path / "run"), file]):
        assert main([*words, "--json"]) == 0
        output = capsys.readouterr()
        assert note in output.err
        assert json.loads(output.out)
    assert main(["data", "check", file, "--image", "picture"]) == 0
    assert note in capsys.readouterr().out
    assert main(["data", "check", file, "--image", "picture", "--json"]) == 0
    assert note in json.loads(capsys.readouterr().out)[0]["note"]


def said_of(labels: list[str], config: Config, tables: Path) -> list[str]:
    """What training says of its labels."""
    rows = [
        {**row, "colour": labels[n % len(labels)]} for n, row in enumerate(open_table(tables / "train.csv"))
    ]
    lines: list[str] = []
    settings = changed(config, training={"epochs": 1}, data={"folder": str(tables)})
    table = Dataset.from_list(rows)
    train(settings, {"train": table, "validation": table}, report=lines.append)
    return [line for line in lines if "label" in line and "blanks" in line]


def test_labels_with_blanks_are_seen(config, tables):
    (line,) = said_of(["cat ", "cat", "dog"], config, tables)
    assert "16 labels have blanks around the name, such as 'cat ', and are taken without" in line


@pytest.mark.parametrize("twin", ["Cat", "c at", "ca\u200bt", "ｃat"])
def test_labels_that_look_the_same_are_seen(config, tables, twin):
    (line,) = said_of([twin, "cat", "dog"], config, tables)
    assert "differ by no more than case, blanks or what isn't seen" in line
    assert "'cat'" in line
    assert line.isprintable()


def test_labels_that_differ_are_left_alone(config, tables):
    assert said_of(["cat", "dog", "a dog"], config, tables) == []


def test_labels_of_a_config_have_no_blanks_around_them(config):
    with pytest.raises(UserError, match=r"data\.labels has 'red ', with blanks around it"):
        train(changed(config, data={"labels": ["red ", "green", "blue"]}), report=lambda line: None)


METRICS = {
    "nothing": "",
    "cut off": '{"metric": "accuracy", "vali',
    "NULs": "\0" * 200,
    "a list": "[]",
    "a key twice": '{"metric": "a", "metric": "b"}',
    "nested deeply": '{"history": ' + "[" * 100_000,
    "a history of numbers": '{"history": [1, 2]}',
    "a metric that is a text": '{"validation": {"accuracy": "high"}}',
    "a metric that is a number": '{"metric": 3}',
    "no UTF-8": "\udcff",
}


@pytest.fixture(scope="module")
def finished(weights, tables, tmp_path_factory) -> Path:
    where = tmp_path_factory.mktemp("metrics")
    run = tiny_run(weights, tables, where / "run", epochs=1)
    (where / "config.yaml").write_text(yaml.safe_dump(run))
    study = {"title": "One", "base": run, "rows": {"MoPE": {}}, "seeds": [0], "output": str(where / "study")}
    (where / "study.yaml").write_text(yaml.safe_dump(study))
    train(Config.parse(run), report=lambda line: None)
    return where


@pytest.mark.parametrize("name", METRICS)
def test_damaged_metrics_are_a_sentence(finished, name, capsys):
    file = finished / "run" / "metrics.json"
    before = file.read_bytes()
    file.write_bytes(METRICS[name].encode(errors="surrogateescape"))
    run = str(finished / "run")
    try:
        for words in (
            ["evaluate", run],
            ["explain", run, "--out", str(finished / "page")],
            ["train", str(finished / "config.yaml"), "--resume"],
        ):
            assert main(words) == 2
            line = capsys.readouterr().err.strip().splitlines()[-1]
            assert f"{file} is damaged (" in line
            assert len(line.replace(str(file), "")) < 250
        assert main(["predict", run, str(finished / "config.yaml")]) == 2  # of the table, not the metrics
        assert "damaged" not in capsys.readouterr().err
    finally:
        file.write_bytes(before)


def test_metrics_that_say_nothing_of_a_training_are_no_finished_runs(finished, capsys):
    file = finished / "run" / "metrics.json"
    before = file.read_bytes()
    file.write_text('{"test": {"accuracy": 0.5}}')
    try:
        assert main(["train", str(finished / "config.yaml"), "--resume"]) == 2
        assert "is damaged (it has no 'metric')" in capsys.readouterr().err
    finally:
        file.write_bytes(before)


def test_tables_and_the_server_have_the_same_limits(tmp_path, capsys):
    limits, served = MediaLimits(), ServeSettings()
    assert served.media == limits
    usual = build_parser().parse_args(["predict", "RUN", "FILE", "--untrusted"])
    assert usual.max_pixels is None
    (tmp_path / "t.csv").write_text("text\nx\n")
    words = ["data", "check", str(tmp_path / "t.csv"), "--text", "text", "--max-pixels", "9"]
    assert main(words) == 2
    assert "--max-pixels is for a stranger's table: add --untrusted" in capsys.readouterr().err
    assert main([*words, "--untrusted"]) == 0
    for wrong in ("0", "-1", "999999999"):
        assert main([*words[:-1], wrong, "--untrusted"]) == 2
        assert "pixels" in capsys.readouterr().err


def test_limits_are_settings_of_a_run(config, tables):
    strange = changed(config, data={"trusted": False, "limits": {"pixels": 100}})
    with pytest.raises(UserError, match="a picture of 28 x 28 pixels: at most 100 are taken"):
        train(strange, report=lambda line: None)
    forget_tables(strange)
    assert strange.data.limits == MediaLimits()  # a run from the hub doesn't say what is safe here
    assert home_of(tables, False).limits == MediaLimits()


def test_no_other_program_is_started_for_a_picture(tmp_path, monkeypatch):
    """Pillow runs Ghostscript for an EPS wherever it finds it, also for whoever is trusted."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(ValueError, match="not an image this library reads"):
        open_image("a.png", tmp_path)
    assert not (tmp_path / "started").exists()


def test_what_others_wrote_is_shown_in_one_short_line():
    assert shown("name") == "name"
    assert shown("a\nb") == r"a\nb"
    assert shown("x" * 500) == "x" * 60 + "..."
    assert shown("名" * 61, 60) == "名" * 60 + "..."
    assert len(shown([["x" * 500] * 500] * 500)) < 70
    assert len(shown(b"x" * 5000)) < 70
