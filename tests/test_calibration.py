"""Probabilities that can be trusted: the temperature, thresholds for F1, abstaining."""

from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_tester import changed, quiet
from sklearn.metrics import f1_score

from mope import FusionModel, Predictor, UserError, train
from mope.cli import main
from mope.run import read_metrics
from mope.tasks import build_task
from mope.tasks.labels import _best_threshold
from mope.tasks.metrics import compute_metrics


def task(kind: str, count: int = 3):
    content = SimpleNamespace(task=kind, data=SimpleNamespace(class_weights="none", separator="|"))
    return build_task(content, [f"l{n}" for n in range(count)])  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_what_makes_logits_too_large(factor):
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(4000, 3, generator=generator)
    targets = torch.distributions.Categorical(logits=true).sample()
    made = task("classification")
    found = made.calibrate(factor * true, targets)
    assert found["temperature"] == pytest.approx(factor, rel=0.1)
    assert found["error_after"] < 0.03
    assert made.decide(factor * true) == task("classification").decide(true)
    several = task("multilabel")
    assert several.calibrate(
        factor * true, (torch.rand(4000, 3, generator=generator) < true.sigmoid()).float()
    )["temperature"] == pytest.approx(factor, rel=0.15)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 99), st.booleans()), min_size=1, max_size=25))
def test_the_threshold_is_the_one_of_the_best_f1(rows):
    probabilities = torch.tensor([place / 100 for place, _ in rows])
    targets = torch.tensor([float(there) for _, there in rows])
    chosen = _best_threshold(probabilities, targets)

    def score(threshold):
        return f1_score(targets, probabilities > threshold, zero_division=0.0)

    if targets.any():
        assert score(chosen) == pytest.approx(max(score(t) for t in numpy.arange(0, 1, 0.005)))
    else:
        assert chosen == 0.5


def test_metrics_and_decisions_use_the_same_thresholds():
    made = task("multilabel", 2)
    logits = torch.tensor([[-1.0, 2.0], [-2.0, 1.0], [-3.0, 0.5], [-4.0, -1.0]])
    targets = torch.tensor([[1.0, 1], [1, 0], [0, 0], [0, 0]])
    before = compute_metrics(made, logits, targets)["f1_macro"]
    made.calibrate(logits, targets)
    assert compute_metrics(made, logits, targets)["f1_macro"] == 1 > before
    assert made.decide(logits) == [["l0", "l1"], ["l0"], [], []]


def test_it_is_kept_with_the_run(config, tables, capsys):
    train(config, report=quiet)
    found = read_metrics(Path(config.output))["calibration"]
    assert found["error_after"] >= 0
    model = FusionModel.from_pretrained(config.output)
    assert float(model.task.temperature) == pytest.approx(found["temperature"])
    # A run of an earlier version has none, and says what it said.
    state = {name: tensor for name, tensor in model.trained_state().items() if name != "task.temperature"}
    model.load_trained_state(state)


def test_none_is_named_below_a_probability(config, tables, tmp_path):
    train(config, report=quiet)
    predictor = Predictor(config.output)
    plain = predictor.predict(tables / "test.csv")
    chances = sorted(max(one.probabilities.values()) for one in plain)
    limit = chances[len(chances) // 2]
    some = predictor.predict(tables / "test.csv", abstain_below=limit)
    for one, other in zip(plain, some, strict=True):
        sure = max(one.probabilities.values()) >= limit
        assert other.label == (one.label if sure else None)
        assert other.error is None
    file = tmp_path / "found.csv"
    arguments = ["predict", config.output, str(tables / "test.csv"), "--abstain-below", "1.1"]
    assert main([*arguments, "--out", str(file)]) == 0
    assert all(line.startswith(",") for line in file.read_text().splitlines()[1:])


def test_a_number_has_no_probability_to_abstain_by(config, tables):
    config = changed(config, data={"label": "number"})
    config = config.with_settings({"task": "regression"})
    train(config, report=quiet)
    with pytest.raises(UserError, match="no abstaining"):
        Predictor(config.output).predict(tables / "test.csv", abstain_below=0.5)
