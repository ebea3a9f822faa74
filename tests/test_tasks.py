"""Labels, losses and metrics."""

import math

import pytest
import torch
from torch.nn import functional
from torchmetrics.classification import MulticlassCalibrationError

from mope.errors import UserError
from mope.tasks import Classification, MultiLabel, ReferringSegmentation, Regression, label_text
from mope.tasks.base import sorted_labels
from mope.tasks.measures import calibration_error
from mope.tasks.metrics import compute_metrics, deciding_metric


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), (3.0, "3"), ("3", "3"), (" a ", "a"), (True, "true"), (2.5, "2.5")]
)
def test_a_label_is_the_same_text_in_every_format(value, text):
    assert label_text(value) == text


def test_classification():
    task = Classification(["no", "yes"])
    assert [task.encode(value) for value in ("yes", " no ")] == [1, 0]
    for value, reason in (
        ("maybe", r"unknown label 'maybe' \(known: no, yes\)"),
        (None, "empty"),
        ("", "empty"),
    ):
        with pytest.raises(ValueError, match=reason):
            task.encode(value)
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    targets = task.targets([0, 1, 1])
    assert task.decide(logits) == ["no", "yes", "no"]
    assert task.loss(logits, targets) == functional.cross_entropy(logits, targets)
    assert compute_metrics(task, logits, targets)["accuracy"] == pytest.approx(2 / 3)
    assert len(Classification([str(i) for i in range(20)]).labels) == 20


def test_class_weights():
    task = Classification(["a", "b", "c"])
    task.fit([0, 0, 0, 1], "balanced")
    torch.testing.assert_close(task.weight, torch.tensor([4 / (2 * 3), 4 / 2, 0.0]))
    task.fit([], {"b": 3})
    assert task.weight.tolist() == [1, 3, 1]
    with pytest.raises(UserError, match="names 'd', which is no label: a, b, c"):
        task.fit([], {"d": 1})
    many = MultiLabel(["a", "b", "c"])
    many.fit([[0], [0, 1], [0], [0]], "balanced")
    torch.testing.assert_close(many.weight, torch.tensor([0.0, 3.0, 1.0]))


def test_multilabel():
    task = MultiLabel(["a", "b", "c"], ";")
    assert task.encode("c; a") == [0, 2]
    assert task.encode(["b"]) == [1]
    assert task.encode("") == task.encode(None) == []
    with pytest.raises(ValueError, match="unknown label 'd'"):
        task.encode("a;d")
    targets = task.targets([[0, 2], []])
    assert targets.tolist() == [[1, 0, 1], [0, 0, 0]]
    logits = torch.tensor([[0.4, -1.0, 0.9], [-0.2, 0.3, -1.0]])
    assert task.decide(logits) == [["a", "c"], ["b"]]
    assert task.loss(logits, targets) == functional.binary_cross_entropy_with_logits(logits, targets)
    # Logits within 0..1 must not be taken for probabilities: 0.4 is above the threshold, not below it.
    assert compute_metrics(task, logits, targets)["f1_micro"] == pytest.approx(2 * 2 / (2 * 2 + 1))


def test_what_isn_t_there_is_no_label():
    nan = float("nan")
    many = MultiLabel(["a", "b"], ";")
    for cell in (nan, [], [""], [None, nan], " "):
        assert many.encode(cell) == [], cell
    assert many.encode(["a", None, "", "b"]) == [0, 1]
    with pytest.raises(ValueError, match="the label is empty"):
        Classification(["a", "nan"]).encode(nan)


def test_labels_are_in_one_order_whatever_order_a_set_has():
    """Of equal numbers as well: each process's set has another."""
    assert sorted_labels(dict.fromkeys(["1.0", "10", "2", "1", "01"])) == ["01", "1", "1.0", "2", "10"]
    assert sorted_labels(dict.fromkeys(["1", "01", "10", "2", "1.0"])) == ["01", "1", "1.0", "2", "10"]
    assert sorted_labels({"10", "nan", "2"}) == ["10", "2", "nan"]
    assert sorted_labels({"b", "10", "2"}) == ["10", "2", "b"]


def test_regression_learns_in_standard_units_and_speaks_in_its_own():
    task = Regression(["price"])
    task.fit([10.0, 30.0], "none")
    logits = torch.tensor([[0.0], [1.0]])
    assert task.decide(logits) == [20.0, 30.0]
    targets = task.targets([task.encode("20"), task.encode(32)])
    assert float(task.loss(logits, targets)) == pytest.approx((0 + 0.2**2) / 2)
    metrics = compute_metrics(task, logits, targets)
    assert metrics["rmse"] == pytest.approx(math.sqrt(2))
    assert metrics["mae"] == pytest.approx(1)
    assert metrics["r2"] == pytest.approx(1 - 4 / 72)
    for value, reason in (
        ("x", "no number"),
        (None, "no number"),
        ("nan", "not finite"),
        ("inf", "not finite"),
    ):
        with pytest.raises(ValueError, match=reason):
            task.encode(value)
    constant = Regression(["price"])
    constant.fit([5.0, 5.0], "none")
    assert constant.scale == 1
    with pytest.raises(UserError, match="means nothing for a regression"):
        task.fit([1.0], "balanced")


def test_the_deciding_metric():
    assert deciding_metric(Classification(["a", "b"]), None) == ("accuracy", True)
    assert deciding_metric(MultiLabel(["a", "b"]), "f1_micro") == ("f1_micro", True)
    assert deciding_metric(Regression(["x"]), None) == ("rmse", False)
    with pytest.raises(UserError, match=r"no metric .bleu.: set one of accuracy, calibration_error"):
        deciding_metric(Classification(["a", "b"]), "bleu")


MEASURED = {
    "classification": (
        Classification(["a", "b", "c"]),
        lambda n: (torch.randn(n, 3), torch.randint(3, (n,))),
    ),
    "multilabel": (
        MultiLabel(["a", "b", "c"]),
        lambda n: (torch.randn(n, 3), torch.randint(2, (n, 3)).float()),
    ),
    "regression": (Regression(["n"]), lambda n: (torch.randn(n, 1), 1000 + torch.randn(n))),
    "masks": (
        ReferringSegmentation(["m"]),
        lambda n: (torch.randint(50, (n, 4)), torch.randint(50, 99, (n, 2))),
    ),
}


@pytest.mark.parametrize("name", MEASURED)
def test_a_meter_of_batches_has_the_metrics_of_all_rows_and_holds_none(name):
    """Counts are the same, sums but for roundings in float64; torchmetrics' own are those of float32."""
    torch.manual_seed(0)
    task, draw = MEASURED[name]
    logits, targets = draw(3001)
    meter = task.meter()
    for start in range(0, 3001, 64):
        meter.add(logits[start : start + 64], targets[start : start + 64])
    assert meter.rows == 3001
    found, whole = meter.compute(), task.measure(logits, targets)
    exact = name == "multilabel"
    assert found == (whole if exact else pytest.approx(whole, rel=1e-12))
    assert name != "classification" or found["f1_macro"] == whole["f1_macro"]
    for metrics in meter._metrics.values():
        for metric in metrics.values():
            assert all(state.numel() <= 16 for state in metric.metric_state.values())
    assert name != "masks" or "miou_original" in found


def test_the_calibration_error_is_torchmetrics_own():
    torch.manual_seed(0)
    logits = torch.cat([3 * torch.randn(5000, 4), 99 * torch.eye(4)])  # some are sure of themselves
    probabilities, targets = logits.softmax(dim=1), torch.randint(4, (5004,))
    expected = MulticlassCalibrationError(4, n_bins=15)(probabilities, targets)
    assert calibration_error(probabilities, targets) == pytest.approx(float(expected), abs=1e-6)


def test_a_regression_is_measured_in_float64():
    """In float32 a sum of squares of about 1e8 loses their differences, and the r2 is any number."""
    task, numbers = Regression(["n"]), 1e4 + torch.arange(20_000.0) % 7
    meter = task.meter()
    for part in numbers.split(32):
        meter.add((part + (part % 2) - 0.5)[:, None], part)
    expected = 1 - 0.25 / float((numbers.double() - numbers.double().mean()).square().mean())
    assert meter.compute()["r2"] == pytest.approx(expected, abs=1e-6)
    assert meter.compute()["rmse"] == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("first", [0.0, 0.6, 1.0])
def test_masks_of_a_first_batch_that_are_alike_say_nothing_of_the_next(first):
    """Metrics whose sums are equal after it must not be taken for one metric from then on."""
    task = ReferringSegmentation(["mask"])
    union = torch.full((40,), 100.0)
    both = torch.cat([torch.full((8,), 100 * first), torch.arange(32.0) * 3])
    outcome = torch.stack([both, union], dim=1), union  # inside = union = target
    meter = task.meter()
    for rows in (slice(0, 8), slice(8, 20), slice(20, 40)):
        meter.add(outcome[0][rows], outcome[1][rows])
    found, shares = meter.compute(), both / (2 * union - both)
    for percent in (50, 70, 90):
        assert found[f"precision_{percent}"] == pytest.approx((shares > percent / 100).float().mean().item())
    assert found["miou"] == pytest.approx(shares.mean().item())
    assert found["overall_iou"] == pytest.approx((both.sum() / (2 * union - both).sum()).item())


def test_a_regression_speaks_on_the_device_that_it_is_asked_on():
    task = Regression(["n"])
    task.fit([1.0, 3.0], "none")
    logits = torch.zeros(2, 1)
    assert task.to("meta").predictions(logits.to("meta")).device.type == "meta"
    task = Regression(["n"])
    task.mean, task.scale = torch.tensor(2.0), torch.tensor(1.0)
    assert task.predictions(logits.to("meta")).device.type == "meta"
