"""A tiny run behind HTTP, made once for all tests of serving."""

import base64
from pathlib import Path

import pytest
from run_tester import tiny_run
from serve_tester import talk

from mope.config import Config
from mope.data.table import open_table
from mope.predictor import Predictor
from mope.serve.app import build_app
from mope.serve.settings import ServeSettings
from mope.training import train


@pytest.fixture(scope="session")
def served_run(weights, tables, tmp_path_factory) -> Path:
    """A finished run whose text may be missing."""
    folder = tmp_path_factory.mktemp("served") / "run"
    config = tiny_run(weights, tables, folder, epochs=6, learning_rate=5e-3)
    config["inputs"]["text"]["missing"] = "learn"
    train(Config.parse(config), report=lambda line: None)
    return folder


@pytest.fixture(scope="session")
def predictor(served_run) -> Predictor:
    return Predictor(served_run, device="cpu")


@pytest.fixture(scope="session")
def app(predictor):
    limits = ServeSettings(page=False, megabytes=1, pixels=40_000, seconds=2, characters=500, rows=24)
    app = build_app(predictor, limits)
    yield app
    app.state.engine.close()


@pytest.fixture
def client(app):
    with talk(app) as client:
        yield client


@pytest.fixture(scope="session")
def rows(tables) -> list[dict]:
    """The test rows as requests hold them."""
    found = []
    for row in open_table(tables / "test.csv"):
        content = (tables / row["picture"]).read_bytes()
        found.append({"image": base64.b64encode(content).decode(), "text": row["question"]})
    return found


@pytest.fixture(scope="session")
def right(predictor, tables) -> list:
    """What the run says of them."""
    return predictor.predict(open_table(tables / "test.csv"))
