"""Runs of one study that another one asks for are taken over, not trained anew."""

import json
from pathlib import Path

import pytest
import yaml
from study_fixtures import change

from mope.cli import main
from mope.errors import UserError
from mope.studies.compare import compare
from mope.studies.reuse import take_over
from mope.studies.study import Cell, Study, cells
from mope.versions import installed

pytest_plugins = ["study_fixtures"]

VALUES = {"accuracy": 0.75, "f1_macro": 0.5}


def finish(cell: Cell, version: str | None = None) -> Path:
    """What a finished run leaves, without the training."""
    cell.folder.mkdir(parents=True)
    run = {"run": {"labels": ["a", "b"], "versions": {"mope": version or installed()}}}
    settings = {**yaml.safe_load(cell.config.dump()), **run}
    (cell.folder / "config.yaml").write_text(yaml.safe_dump(settings))
    metrics = {"metric": "accuracy", "validation": VALUES, "best_epoch": 1.0, "trainable": 7, "frozen": 9}
    (cell.folder / "metrics.json").write_text(json.dumps({**metrics, "history": [], "test": VALUES}))
    (cell.folder / "model.safetensors").write_bytes(b"weights")
    (cell.folder / "checkpoints" / "step-1").mkdir(parents=True)
    (cell.folder / ".lock").touch()
    return cell.folder


def test_the_very_same_run_is_taken_and_no_other(study):
    made = cells(Study.load(study))
    first = finish(made[0])  # MoPE, seed 0
    finish(made[3])  # P-SeqFuse, seed 1
    # Another study of the same base and settings, but that P-SeqFuse trains as long as MoPE.
    rows = [{"name": "ours", "method": "MoPE"}, {"method": "P-SeqFuse"}]
    change(study, rows=rows, output="other", reference="ours")
    todo = cells(Study.load(study))
    assert take_over(todo, study.parent / "study") == 1
    assert [cell.label for cell in todo if cell.folder.exists()] == ["ours, seed 0"]
    taken = todo[0].folder
    assert (taken / "model.safetensors").read_bytes() == b"weights"
    assert (taken / "metrics.json").read_bytes() == (first / "metrics.json").read_bytes()
    assert {entry.name for entry in taken.iterdir()} == {"config.yaml", "metrics.json", "model.safetensors"}
    # What is there stays: nothing is copied twice.
    (taken / "model.safetensors").write_bytes(b"its own")
    assert take_over(todo, study.parent / "study") == 0
    assert (taken / "model.safetensors").read_bytes() == b"its own"


def test_a_run_of_another_version_or_without_an_end_is_left(study):
    made = cells(Study.load(study))
    finish(made[0], version="0.0.1")
    (finish(made[2]) / "metrics.json").unlink()
    change(study, output="other")
    assert take_over(cells(Study.load(study)), study.parent / "study") == 0


def test_a_table_of_runs_that_are_all_there_trains_nothing(study, capsys):
    for cell in cells(Study.load(study)):
        finish(cell)
    change(study, output="other")
    lines: list[str] = []
    table = compare(Study.load(study), reuse=study.parent, report=lines.append)
    assert lines[:2] == [f"4 of 4 runs are taken over from {study.parent}.", "4 of 4 runs are done."]
    assert [row["values"]["accuracy"]["mean"] for row in table["rows"]] == [0.75, 0.75]
    assert main(["compare", str(study), "--list", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["done"], row["runs"]) for row in listed["rows"]] == [
        ("MoPE", 2, 2),
        ("P-SeqFuse", 2, 2),
    ]
    assert main(["compare", str(study), "--reuse", str(study.parent / "none")]) == 2
    assert "There is no folder" in capsys.readouterr().err


def test_a_damaged_run_is_said(study):
    made = cells(Study.load(study))
    (finish(made[0]) / "metrics.json").write_text("{")
    change(study, output="other")
    with pytest.raises(UserError, match=r"metrics\.json is damaged"):
        take_over(cells(Study.load(study)), study.parent / "study")
