"""A tiny run, and rows for it of which some can't be used."""

from pathlib import Path

import pytest
from run_tester import quiet, tiny_run

from mope.config import Config
from mope.data.table import open_table
from mope.training import train


@pytest.fixture(scope="session")
def run(weights, tables, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    train(Config.parse(tiny_run(weights, tables, folder, epochs=1)), report=quiet)
    return folder


@pytest.fixture
def table_rows(tables) -> list[dict]:
    """Twenty rows of which three can't be used."""
    rows = [{**row, "picture": str(tables / row["picture"])} for row in open_table(tables / "test.csv")]
    rows[3]["picture"], rows[7]["question"], rows[19]["picture"] = "none.png", " ", ""
    return [{"id": str(n), **row} for n, row in enumerate(rows)]
