"""The linear probe: what it fits, what it refuses, and that its run is a run like any other."""

from functools import partial
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from run_tester import changed, quiet, tiny_run
from sklearn.linear_model import LogisticRegression, Ridge

import mope
from mope import Predictor
from mope.config import Config
from mope.data.dataset import RowDataset, collate
from mope.data.table import open_table
from mope.errors import UserError
from mope.heads import LinearHead
from mope.methods import find_method
from mope.tasks import build_task
from mope.training import train
from mope.training.probe import STRENGTHS, features_of, fit_probe


def fitted(labels, targets, task="classification", metric="accuracy", greater=True):
    """A probe of features whose scales differ; its history, head, and the features."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.01, 1.0, 100.0, 1.0])
    features = torch.randn(60, 4, generator=generator) * scales + scales
    content = SimpleNamespace(task=task, data=SimpleNamespace(class_weights="none", separator="|"))
    made = build_task(content, labels)  # type: ignore[arg-type]
    made.fit(targets, "none")
    model = SimpleNamespace(task=made, head=LinearHead(4, made.outputs))
    encoded = made.targets(targets)
    history = fit_probe(model, features, encoded, features[:20], encoded[:20], metric, greater)
    best = next(entry for entry in history if entry["step"])
    return best, model.head, features


def test_for_classes_it_is_logistic_regression():
    targets = [index % 3 for index in range(60)]
    best, head, features = fitted(["a", "b", "c"], targets)
    scaled = ((features - features.mean(0)) / features.std(0, correction=0)).numpy()
    reference = LogisticRegression(C=1 / (best["penalty"] * 60), max_iter=5000, tol=1e-8)
    reference.fit(scaled, np.array(targets))
    found = head(features).softmax(dim=1).detach().numpy()
    np.testing.assert_allclose(found, reference.predict_proba(scaled), atol=2e-3)


def test_for_numbers_it_is_ridge_regression():
    targets = [float(index) ** 1.5 for index in range(60)]
    best, head, features = fitted(["number"], targets, "regression", "rmse", False)
    scaled = ((features - features.mean(0)) / features.std(0, correction=0)).numpy()
    numbers = (np.array(targets) - np.mean(targets)) / np.std(targets)
    reference = Ridge(alpha=best["penalty"] * 60 / 2).fit(scaled, numbers)
    np.testing.assert_allclose(head(features)[:, 0].detach().numpy(), reference.predict(scaled), atol=2e-3)


@pytest.fixture
def config(weights, tables, tmp_path):
    return find_method("Probe").apply(Config.parse(tiny_run(weights, tables, tmp_path / "run"), "a test"))


def test_a_probe_s_run_is_a_run(config):
    lines = []
    result = train(config, report=lines.append)
    assert any(line.startswith("linear probe  penalty") for line in lines)
    assert [entry["penalty"] for entry in result["history"]] == list(STRENGTHS)
    best = max(entry["eval_accuracy"] for entry in result["history"])
    assert result["validation"]["accuracy"] == best
    assert result["trainable"] == 2 * 32 * 3 + 3
    assert result["step_milliseconds"] is None
    predicted = Predictor(config.output, device="cpu").predict(open_table(config.data.test))
    assert {p.label for p in predicted} <= {"blue", "green", "red"}
    assert train(config, resume=True, report=quiet)["validation"] == result["validation"]


def test_what_else_would_learn_is_refused(config):
    prompted = changed(config, inputs__text__encoder={"tuning": "prompt"})
    with pytest.raises(UserError, match=r"a linear head alone, but fusion\.encoders\.text.* would learn"):
        train(prompted, report=quiet)


def test_a_head_may_begin_as_a_probe_of_all_features(weights, tables, tmp_path):
    """At a rate of next to nothing the run ends as it began: as scikit-learn's regression on its features."""
    content = tiny_run(weights, tables, tmp_path / "run", epochs=1, learning_rate=1e-9, head_start="probe")
    content["training"]["complementary_learning_rate"] = 1e-9
    content["fusion"] |= {"head_sees": "all", "start": "quiet"}
    result = train(Config.parse(content, "a test"), report=quiet)
    predictor = Predictor(tmp_path / "run", device="cpu")
    model = predictor.model
    assert model.head.linear.in_features == model.fusion.feature_dim == 2 * 32
    table = open_table(tables / "train.csv")
    rows = RowDataset(table, predictor.readers, model.task, "colour")
    together = partial(collate, readers=predictor.readers, task=model.task)
    features, targets = features_of(model, rows, together, 16, torch.device("cpu"), 0)
    features = (features - features.mean(0)) / features.std(0, correction=0)
    model.task.temperature.fill_(1.0)  # fitted since
    reference = LogisticRegression(C=1 / (0.1 * len(rows)), max_iter=1000, tol=1e-8).fit(features, targets)
    found = [[p.probabilities[name] for name in model.task.classes] for p in predictor.predict(table)]
    assert np.allclose(reference.predict_proba(features), found, atol=2e-3)
    content["output"], content["training"]["head_start"] = str(tmp_path / "random"), "random"
    random = train(Config.parse(content, "a test"), report=quiet)
    assert random["validation"]["loss"] > result["validation"]["loss"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("method", ["Probe", "MoPE-clusters"])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_gpu_trains_and_predicts(weights, tables, tmp_path, method, task):
    config = find_method(method).apply(Config.parse(tiny_run(weights, tables, tmp_path / "run")))
    config = config.with_settings({"training.device": "cuda", "training.epochs": 1, "task": task})
    if task == "regression":
        rows = [{**row, "colour": float(place)} for place, row in enumerate(open_table(config.data.train))]
        table = open_table(rows, folder=tables)
        given = {"train": table, "validation": table}
    else:
        given = None
    assert train(config, given)["validation"]["loss"] > 0
    found = Predictor(tmp_path / "run", device="cuda").predict(open_table(config.data.test))
    assert all(one.error is None for one in found)


def test_what_is_not_installed_costs_no_run(weights, tables, tmp_path, monkeypatch):
    """A library imported from its sources has no version, which is asked for when all is trained."""

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("mope.versions.version", missing)
    config = find_method("Probe").apply(Config.parse(tiny_run(weights, tables, tmp_path / "probe")))
    train(config)
    assert (tmp_path / "probe" / "model.safetensors").is_file()
    assert mope.__version__ == "unknown"
