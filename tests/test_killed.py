"""Predictions that are killed and gone on with: no row lost or there twice; on one machine and by Ray."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from bulk_tester import OUTPUTS, read_back, write_csv

from mope.bulk import Wanted, parts, predict_file
from mope.bulk import run as bulk
from mope.errors import UserError

pytest_plugins = ["bulk_fixtures"]


def killed(action) -> bool:
    """Whether a process that does this was killed."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def content(out: Path) -> bytes | list[dict]:
    return out.read_bytes() if out.suffix else read_back(out)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_process_killed_anywhere_is_gone_on_with(run, table_rows, tmp_path, kind, monkeypatch):
    """Killed while a part is written, behind it, while parts are joined, and behind that."""
    monkeypatch.setattr(bulk, "_PART_ROWS", 8)
    table_rows = [
        {**row, "n": [n, None, n + 0.5, str(n)][n % 4 if n > 12 else 0]} for n, row in enumerate(table_rows)
    ]
    table = tmp_path / "t.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in table_rows))

    def predict(out: Path, **options) -> None:
        predict_file(
            run, table, out, Wanted(["all"], routing=True), device="cpu", batch_size=4, workers=0, **options
        )

    whole, out = tmp_path / f"whole{kind}", tmp_path / f"out{kind}"
    predict(whole)
    written = []

    def die_in_a_part(part) -> None:
        written.append(part)
        if len(written) == 4:
            die()

    assert killed(lambda: predict(out, also=die_in_a_part))
    assert not out.exists()
    for place in ("add", "draft", "finish"):
        with monkeypatch.context() as patch:
            patch.setattr(parts.Parts, place, die)
            assert killed(lambda: predict(out, resume=True))
        assert not out.exists()
        with pytest.raises(UserError, match="go on with --resume, or begin anew with --overwrite"):
            predict(out)
    for owner, name in ((parts.Parts, "remove"), (parts.shutil, "rmtree")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, die)
            assert killed(lambda: predict(out, resume=True))
        assert content(out) == content(whole)
    lines = []
    predict(out, resume=True, report=lines.append)
    assert "was finished before" in lines[0]
    assert content(out) == content(whole)
    assert [row["id"] for row in read_back(out)] == [str(n) for n in range(20)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["t.jsonl", whole.name, out.name])


def test_kills_at_random_moments_lose_and_double_nothing(run, table_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(bulk, "_PART_ROWS", 32)
    table = write_csv([{**table_rows[n % 20], "id": n} for n in range(1200)], tmp_path / "t.csv")
    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"

    def predict(file: Path, resume: bool = False) -> None:
        wanted = Wanted(["id", "question"])
        predict_file(run, table, file, wanted, resume=resume, device="cpu", batch_size=16, workers=0)

    begun = time.monotonic()
    predict(whole)
    seconds, chance, kills = time.monotonic() - begun, random.Random(0), 0
    for _ in range(40):
        child = os.fork()
        if child == 0:
            predict(out, resume=True)
            os._exit(0)
        time.sleep(chance.uniform(0.05, 0.4) * seconds)
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        if out.exists():
            break
    assert kills >= 3
    if not out.exists() or (tmp_path / ".out.csv.parts" / "state.json").exists():
        predict(out, resume=True)
    assert out.read_bytes() == whole.read_bytes()


def test_parts_of_something_else_are_refused(run, table_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(bulk, "_PART_ROWS", 8)
    table, out = write_csv(table_rows, tmp_path / "t.csv"), tmp_path / "out.csv"

    def interrupt(part) -> None:
        if part.numbers[0] > 8:
            raise KeyboardInterrupt

    def predict(wanted: Wanted | None = None, file=table, **options) -> None:
        predict_file(run, file, out, wanted or Wanted(), device="cpu", batch_size=4, workers=0, **options)

    with pytest.raises(KeyboardInterrupt):
        predict(also=interrupt)
    for name, wanted in {
        "--rows": Wanted(rows=12),
        "--keep": Wanted(["id"]),
        "--abstain-below": Wanted(abstain_below=0.5),
    }.items():
        with pytest.raises(UserError, match=f"were predicted with another {name}: go on with the same"):
            predict(wanted, resume=True)
    with pytest.raises(UserError, match="were predicted with another table, or a changed one"):
        predict(file=write_csv(table_rows, tmp_path / "other.csv"), resume=True)
    with pytest.raises(UserError, match=r"Rows for .*out\.csv were begun"):
        predict()
    state = tmp_path / ".out.csv.parts" / "state.json"
    assert json.loads(state.read_text())["rows"] == 8
    held = parts.FileLock(state.parent / "lock")
    with held, pytest.raises(UserError, match="Another process is writing"):
        predict(resume=True)
    state.write_text(state.read_text()[:40])
    with pytest.raises(UserError, match="is damaged: begin anew with --overwrite"):
        predict(resume=True)
    predict(Wanted(["id"]), overwrite=True)
    assert len(read_back(out)) == 20
    assert not state.parent.exists()
