"""Tables of any size that are a stranger's, elsewhere, or not what their names say: they are streamed too."""

import pickle
import re
from pathlib import Path

import pytest
from bulk_tester import read_back, write_csv

from mope.bulk import Wanted, predict_file
from mope.cli import main
from mope.config import MediaLimits
from mope.errors import UserError
from mope.media.cells import UntrustedFolder, home_of
from mope.predictor import Predictor
from mope.remote import RemotePath

pytest_plugins = ["bulk_fixtures", "remote_fixtures"]


def columns(rows: list[dict]) -> list[dict]:
    return [{name: row[name] for name in ("picture", "question")} for row in rows]


def test_a_strangers_table_is_streamed_within_limits(run, table_rows, tables, tmp_path, capsys):
    beside = [{**row, "picture": "a.png"} for row in columns(table_rows[:2])]
    (tmp_path / "a.png").write_bytes(Path(table_rows[0]["picture"]).read_bytes())
    table = write_csv([*beside, *columns(table_rows[:1])], tmp_path / "t.csv")
    command = ["predict", str(run), str(table), "--device", "cpu", "--workers", "0", "--untrusted"]
    assert main([*command, "--out", str(tmp_path / "all.jsonl")]) == 0
    assert [row["error"] is None for row in read_back(tmp_path / "all.jsonl")] == [True, True, False]
    assert "a path that leaves the table's folder" in read_back(tmp_path / "all.jsonl")[2]["error"]
    out = ["--out", str(tmp_path / "none.jsonl"), "--max-pixels", "100"]
    assert main([*command, *out]) == 0
    assert "at most 100 are taken" in read_back(tmp_path / "none.jsonl")[0]["error"]
    capsys.readouterr()
    assert main([*command[:-1], *out, "--overwrite"]) == 2
    assert "--max-pixels is for a stranger's table" in capsys.readouterr().err


def test_what_separates_cells_is_said_where_rows_are_streamed(run, table_rows, tmp_path, capsys):
    good = [row for n, row in enumerate(table_rows) if n not in (3, 7, 19)]
    lines = [f"{row['picture']};{row['question']};{row['colour']}" for row in good]
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["picture;question;colour", *lines]) + "\n")
    command = ["--device", "cpu", "--workers", "0"]
    assert main(["predict", str(run), str(table), *command, "--out", str(tmp_path / "p.csv")]) == 0
    assert "separated by semicolons" in capsys.readouterr().err
    assert len(read_back(tmp_path / "p.csv")) == 17
    assert main(["evaluate", str(run), "--data", str(table), *command]) == 0
    assert "separated by semicolons" in capsys.readouterr().err
    table.write_text("picture;question\n" + "a.png;b\n" * 150 + 'a.png;"b\n')
    with pytest.raises(UserError, match=r"t\.csv, line 152: not CSV; a quote is opened here"):
        predict_file(run, table, tmp_path / "q.csv", device="cpu", workers=0, batch_size=8)
    tabs = tmp_path / "t.tsv"
    tabs.write_text("picture\tquestion\n" + "".join("\t".join(row.values()) + "\n" for row in columns(good)))
    predict_file(run, tabs, tmp_path / "t.jsonl", Wanted(["question"]), device="cpu", workers=0)
    assert [row["question"] for row in read_back(tmp_path / "t.jsonl")] == [row["question"] for row in good]


def test_a_table_elsewhere_is_streamed_and_its_pictures_fetched_at_once(
    run, table_rows, web, cache, tmp_path
):
    good = columns([row for n, row in enumerate(table_rows) if n not in (3, 7, 19)])
    for n, row in enumerate(good):
        web.files[f"/in/{n}.png"] = Path(row["picture"]).read_bytes()
    table = write_csv([{**row, "picture": f"{n}.png"} for n, row in enumerate(good)], tmp_path / "t.csv")
    web.files["/in/t.csv"] = table.read_bytes()
    url, out = f"{web.url}/in/t.csv", tmp_path / "out.jsonl"
    expected = [prediction.label for prediction in Predictor(run, device="cpu").predict(good)]
    predict_file(run, url, out, device="cpu", workers=0, batch_size=8)
    assert [row["label"] for row in read_back(out)] == expected
    assert web.asked["GET /in/t.csv"] == 1
    assert [p.label for p in Predictor(run, device="cpu").predict_stream(url)] == expected
    before = Wanted().identity(run, url, out)
    assert Wanted().identity(run, url, out) == before
    web.files["/in/t.csv"] += b"0.png,what is left ?\n"
    changed = Wanted().identity(run, url, out)
    assert [name for name in before if before[name] != changed[name]] == ["table, or a changed one"]
    with pytest.raises(UserError, match=re.escape("is elsewhere, but what is said is written to files of")):
        predict_file(run, table, f"{web.url}/out.csv", device="cpu")


def test_a_strangers_folder_elsewhere_has_its_limits_in_every_process():
    limits = MediaLimits(pixels=100)
    for folder in ("s3://bucket/in", "in"):
        found = pickle.loads(pickle.dumps(home_of(folder, False, limits)))
        assert isinstance(found, UntrustedFolder)
        assert found.limits == limits
        assert isinstance(found, RemotePath) == (folder != "in")
        assert str(found) == folder
