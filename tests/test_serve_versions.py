"""Runs whose files change while they are served, that can't be loaded for a while, or are dropped."""

import gc
import shutil
import weakref

import pytest
import torch
from serve_tester import predict, talk

from mope.bench.runs import _copies
from mope.encoders.pool import EncoderPool
from mope.errors import UserError
from mope.model import FusionModel
from mope.run import WEIGHTS
from mope.serve.app import build_runs_app
from mope.serve.limits import Refusal
from mope.serve.runs import Runs
from mope.serve.settings import ServeSettings

pytest_plugins = ["runs_fixtures", "serve_fixtures"]


@pytest.fixture
def client(runs):
    app = build_runs_app(runs, ServeSettings(rows=24, queue=24))
    with talk(app) as client:
        yield client
    app.state.engine.close()


def shares(client, rows):
    """What the run says of a row, by label."""
    return predict(client, "mope", rows[:1])[0]["probabilities"]


def test_labels_of_one_version_never_go_with_weights_of_another(client, runs, folder, made, rows, said):
    """Files that are copied one after the other, of runs with the same shapes."""
    before = pytest.approx(shares(client, rows), abs=1e-5)
    model = FusionModel.from_pretrained(made["mope"])
    model.task.labels = model.task.labels[::-1]
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.mul_(2)
    model.save_pretrained(folder.parent / "other")
    shutil.copy(folder.parent / "other" / "config.yaml", folder / "mope" / "config.yaml")
    runs.look()
    assert "isn't what the config.yaml beside it was written with" in said[-1]
    assert shares(client, rows) == before
    shutil.copy(folder.parent / "other" / WEIGHTS, folder / "mope" / WEIGHTS)
    runs.look()
    assert said[-1] == "The run 'mope' was replaced."
    assert shares(client, rows) != before


def test_copies_for_the_benchmark_can_be_loaded(made, tmp_path):
    names = _copies(made["mope"], tmp_path, 2)
    first, second = (FusionModel.from_pretrained(tmp_path / name) for name in names)
    assert not torch.equal(next(first.head.parameters()), next(second.head.parameters()))


def test_what_is_dropped_gives_its_memory_back(folder, made, monkeypatch):
    """Layers that were made steppable refer to themselves: only the collector finds them."""
    monkeypatch.setattr("mope.predictor.SHARED", EncoderPool())  # other tests hold encoders of the usual one

    def layer_of(served):
        return weakref.ref(next(m for m in served.predictor.model.modules() if "forward" in vars(m)))

    runs = Runs({}, [folder], ServeSettings(), device="cpu", most=1)
    gc.collect()
    gc.disable()
    try:
        evicted = layer_of(runs.get("pmf"))
        assert evicted() is not None
        runs.get("words")
        assert evicted() is None
        replaced = layer_of(runs.get("pmf"))
        content = (folder / "pmf" / "config.yaml").read_text()
        (folder / "pmf" / "config.yaml").write_text(content.replace("epochs: 2", "epochs: 3"))
        monkeypatch.setattr("mope.predictor.SHARED", EncoderPool())
        runs.look()
        assert replaced() is None
    finally:
        gc.enable()


def test_what_failed_is_tried_again_after_a_while(made, said, monkeypatch):
    """The hub was down; its run has no files that could change."""
    tries = []

    def find(source):
        tries.append(source)
        if len(tries) == 1:
            raise UserError("the hub is down")
        return made["mope"]

    monkeypatch.setattr("mope.serve.sources.find_run", find)
    runs = Runs({"far": "hub:me/far"}, [], ServeSettings(), device="cpu", report=said.append)
    for _ in range(2):
        with pytest.raises(Refusal) as caught:
            runs.get("far")
        assert (caught.value.status_code, caught.value.headers) == (503, {"Retry-After": "30"})
        assert runs.describe("far")["error"] == "It can't be fetched from the hub: the server's log says why."
    assert len(tries) == 1
    monkeypatch.setattr("mope.serve.failures.RETRY_SECONDS", 0.0)
    assert runs.get("far").predictor.settings.data.test is None  # a stranger's tables may be any file here
    assert runs.describe("far")["labels"] == ["blue", "green", "red"]
    assert len(tries) == 2  # a hub isn't asked twice for what is here
    assert len(said) == 1


def test_a_broken_run_is_said_once_however_often_it_is_tried(runs, folder, said, monkeypatch):
    monkeypatch.setattr("mope.serve.failures.RETRY_SECONDS", 0.0)
    (folder / "concat" / WEIGHTS).write_bytes(b"nothing")
    for _ in range(3):
        with pytest.raises(Refusal, match="can't be loaded"):
            runs.get("concat")
    assert len(said) == 1
