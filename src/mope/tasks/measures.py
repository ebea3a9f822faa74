"""What tasks are measured by, on torchmetrics.

Apart from the tasks, which import it when they measure: it takes a quarter of the time to a first prediction.
"""

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassPrecision,
    MultilabelAccuracy,
    MultilabelF1Score,
)
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, R2Score

_BINS = 15


def of_classes(classes: int) -> MetricCollection:
    """Metrics of one label of several."""
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(classes, average="micro"),
            "f1_macro": MulticlassF1Score(classes, average="macro"),
            "precision_macro": MulticlassPrecision(classes, average="macro"),
            # As MUStARD's authors report it (Castro et al. 2019): classes count by their rows.
            "precision_weighted": MulticlassPrecision(classes, average="weighted"),
            "calibration_error": CalibrationError(),
        }
    )


def calibration_error(probabilities: Tensor, targets: Tensor) -> float:
    """Expected calibration error of probabilities (B, C) against classes (B,)."""
    return float(CalibrationError()(probabilities, targets))


def of_labels(labels: int) -> MetricCollection:
    """Metrics of any number of labels of several."""
    return MetricCollection(
        {
            "f1_macro": MultilabelF1Score(labels, average="macro"),
            "f1_micro": MultilabelF1Score(labels, average="micro"),
            "accuracy": MultilabelAccuracy(labels, average="micro"),
        }
    )


def of_numbers() -> MetricCollection:
    """Metrics of a number."""
    found = MetricCollection(
        {"rmse": MeanSquaredError(squared=False), "mae": MeanAbsoluteError(), "r2": _R2()}
    )
    return found.set_dtype(torch.float64)  # a sum of a million numbers isn't one in float32


def of_masks() -> MetricCollection:
    """Metrics of masks, of what `ReferringSegmentation.condense` gives."""
    return MetricCollection(
        {
            "miou": MeanIoU(),
            "overall_iou": OverallIoU(),
            **{f"precision_{percent}": PrecisionAt(percent / 100) for percent in (50, 70, 90)},
        },
        # Else those whose sums are alike after the first batch would share them for good.
        compute_groups=False,
    )


class _R2(R2Score):
    """Of a single sample, undefined instead of an error."""

    def compute(self) -> Tensor:
        return super().compute() if self.total > 1 else torch.tensor(float("nan"))


class CalibrationError(Metric):
    """Expected calibration error over 15 equal bins of the most probable class's probability.

    As torchmetrics' `MulticlassCalibrationError`, which keeps two numbers of each row until the end.
    """

    higher_is_better = False
    full_state_update = False
    rows: Tensor
    right: Tensor
    confidence: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("rows", "right", "confidence"):  # a probability of 1 has a bin of its own
            self.add_state(name, torch.zeros(_BINS + 1, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take probabilities (B, C) and classes (B,)."""
        confidence, chosen = predictions.float().max(dim=1)
        edges = torch.linspace(0, 1, _BINS + 1, device=confidence.device)
        place = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, _BINS)
        self.rows.index_add_(0, place, torch.ones_like(confidence).double())
        self.right.index_add_(0, place, (chosen == targets).double())
        self.confidence.index_add_(0, place, confidence.double())

    def compute(self) -> Tensor:
        return (self.right - self.confidence).abs().sum() / self.rows.sum()


class _OverRows(Metric):
    """A sum over rows of numbers of pixels, and what it is divided by."""

    higher_is_better = True
    full_state_update = False
    above: Tensor
    below: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("above", "below"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        return self.above / self.below


class MeanIoU(_OverRows):
    """Mean over rows of intersection over union (the paper's mIoU)."""

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take what `ReferringSegmentation.condense` gave."""
        self.above += _iou(predictions, targets).sum()
        self.below += len(targets)


class PrecisionAt(_OverRows):
    """Share of rows whose intersection over union is above a threshold."""

    def __init__(self, threshold: float):
        super().__init__()
        self.threshold = threshold

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take what `ReferringSegmentation.condense` gave."""
        self.above += (_iou(predictions, targets) > self.threshold).sum()
        self.below += len(targets)


class OverallIoU(_OverRows):
    """Intersections of all rows over their unions, which large things dominate."""

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take what `ReferringSegmentation.condense` gave."""
        both, inside = predictions.double().unbind(dim=1)
        self.above += both.sum()
        self.below += (inside + targets - both).sum()


def _iou(predictions: Tensor, targets: Tensor) -> Tensor:
    """Intersection over union of each row (B,); 1 where both masks are empty, which resizing can do."""
    both, inside = predictions.double().unbind(dim=1)
    union = inside + targets - both
    return torch.where(union > 0, both / union.clamp(min=1), 1.0)
