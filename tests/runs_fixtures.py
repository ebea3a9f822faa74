"""Several runs in a folder, for the tests of serving them."""

import shutil

import pytest
from many_runs import SERVED, make_run

from mope.serve.runs import Runs
from mope.serve.settings import ServeSettings


@pytest.fixture(scope="session")
def made(weights, tables, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return {name: make_run(name, weights, tables, folder) for name in SERVED}


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made["mope"].parent, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def said():
    return []


@pytest.fixture
def runs(folder, said):
    limits = ServeSettings(page=True, rows=24, queue=24)
    return Runs({}, [folder], limits, device="cpu", report=said.append)
