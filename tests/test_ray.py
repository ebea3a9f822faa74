"""Predictions and metrics by Ray's workers on this machine."""

import json
import os
import sys

import pandas
import pytest
from bulk_tester import write_csv

from mope.bulk import Wanted, evaluate, predict_file
from mope.bulk import run as bulk
from mope.cli import main
from mope.errors import UserError

pytest_plugins = ["bulk_fixtures"]


@pytest.fixture
def ray(monkeypatch):
    """The package, whose workers import what the tests do."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    return pytest.importorskip("ray")


@pytest.mark.slow
def test_ray_s_workers_predict_what_one_process_does(run, table_rows, tmp_path, monkeypatch, capsys, ray):
    monkeypatch.setattr(bulk, "_PART_ROWS", 64)
    table = write_csv([{**table_rows[n % 20], "id": n} for n in range(400)], tmp_path / "t.csv")
    whole, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    options = ["--keep", "id", "--routing", "--device", "cpu", "--batch-size", "8"]
    command = ["predict", str(run), str(table), *options]
    assert main([*command, "--out", str(whole)]) == 0

    def interrupt(part) -> None:
        if part.numbers[0] > 150:
            raise KeyboardInterrupt

    wanted, on_ray = Wanted(["id"], routing=True), {"engine": "ray", "workers": 2}
    with pytest.raises(KeyboardInterrupt):
        predict_file(run, table, out, wanted, **on_ray, device="cpu", batch_size=8, also=interrupt)
    capsys.readouterr()
    assert main([*command, "--out", str(out), "--engine", "ray", "--workers", "2", "--resume"]) == 0
    said = capsys.readouterr()
    assert "400 rows are in" in said.out
    assert "goes on behind row 128" in said.err
    assert "60 of 400 rows can't be used, such as row 4" in said.err
    found, expected = pandas.read_parquet(out), pandas.read_parquet(whole)
    numbers = list(expected.select_dtypes("float").columns)
    assert numbers
    pandas.testing.assert_frame_equal(found.drop(columns=numbers), expected.drop(columns=numbers))
    # Its workers have other numbers of threads, by which sums are rounded.
    pandas.testing.assert_frame_equal(found[numbers], expected[numbers], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_ray_s_workers_measure_what_one_process_does(run, table_rows, tmp_path, capsys, ray):
    table = write_csv([{**table_rows[n % 20], "id": n} for n in range(200)], tmp_path / "t.csv")
    command = ["evaluate", str(run), "--data", str(table), "--device", "cpu", "--batch-size", "16", "--json"]
    command += ["--skip-bad-rows", "--by-pattern"]
    assert main(command) == 0
    here = capsys.readouterr()
    assert main([*command, "--engine", "ray", "--workers", "2"]) == 0
    there = capsys.readouterr()
    said = "skipped 30 of 200 rows; first row 4"
    assert said in here.err
    assert said in there.err
    one, other = json.loads(here.out), json.loads(there.out)
    assert one["rows"] == 170
    assert pytest.approx(one.pop("patterns")["image+text"], abs=1e-6) == other.pop("patterns")["image+text"]
    assert pytest.approx(one, abs=1e-6) == other
    refused = r"30 of 200 rows can't be used, such as row 4"
    with pytest.raises(UserError, match=refused):
        evaluate(run, table, device="cpu", engine="ray", workers=2)


def test_rows_in_memory_are_not_for_other_machines(run, table_rows):
    pytest.importorskip("ray")
    with pytest.raises(UserError, match="--engine ray reads rows from a file that every machine sees"):
        evaluate(run, table_rows[:2], device="cpu", engine="ray")
    with pytest.raises(UserError, match="There is no engine 'spark': name here or ray"):
        evaluate(run, table_rows[:2], device="cpu", engine="spark")


def test_what_the_engine_takes_is_said(run, table_rows, tmp_path, monkeypatch, capsys):
    table = write_csv(table_rows, tmp_path / "t.csv")
    command = ["predict", str(run), str(table), "--device", "cpu", "--engine"]
    assert main([*command, "ray"]) == 2
    assert "--engine is for the file that --out names" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*command, "ray", "--out", str(tmp_path / "a.csv")]) == 2
    assert "--engine ray takes Ray: pip install 'mope-fusion[ray]'" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv"]
    assert main([*command, "spark", "--out", str(tmp_path / "a.csv")]) == 2
    assert "invalid choice: 'spark'" in capsys.readouterr().err
