"""Runs that the first version wrote (1267ccd, one epoch on the tiny table) still load, and answer alike."""

import json
import shutil
from pathlib import Path

import pytest

from mope.data.table import open_table
from mope.predictor import Predictor
from mope.run import read_run
from mope.training import train

KEPT = Path(__file__).with_name("first_version")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The runs, whose configs name files by where they are."""
    folder = tmp_path / "old"
    shutil.copytree(KEPT, folder)
    for file in folder.glob("*/config.yaml"):
        file.write_text(file.read_text().replace("HERE", str(folder)))
    return folder


@pytest.mark.parametrize("name", ["MoPE", "MMBT", "SeqFuse"])
def test_a_run_of_the_first_version_answers_as_it_did(old, tables, name):
    """MMBT's prompts were `[]`, SeqFuse holds a mask token that nothing reads."""
    table = open_table(tables / "test.csv").select(range(4))
    expected = json.loads((old / "expected.json").read_text())[name]
    for found, probabilities in zip(
        Predictor(old / name, device="cpu").predict(table), expected, strict=True
    ):
        assert found.probabilities == pytest.approx(probabilities, abs=1e-5)


def test_a_finished_run_of_the_first_version_is_left_as_it_is(old, tables):
    shutil.copytree(tables, old / "tables")
    config = read_run(old / "MoPE")[0]
    config.output = str(old / "MoPE")
    lines = []
    assert train(config, resume=True, report=lines.append)["best_epoch"] == 1
    assert lines == [f"{old / 'MoPE'} is finished; it is left as it is."]
