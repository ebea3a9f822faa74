"""Tasks whose label is a cell's text or number: one label, any number of labels, a number."""

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassPrecision,
    MultilabelAccuracy,
    MultilabelF1Score,
)
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, R2Score

from mope.errors import UserError
from mope.tasks.base import Task, label_text, split_labels


class _Weighted(Task):
    """A task over classes, each with a weight in the loss."""

    weight: Tensor

    def __init__(self, labels: Sequence[str]):
        super().__init__(labels)
        self.index = {label: i for i, label in enumerate(self.labels)}
        self.register_buffer("weight", torch.ones(len(self.labels)), persistent=False)

    def _class(self, text: str) -> int:
        if text not in self.index:
            known = ", ".join(self.labels[:8]) + (", ..." if len(self.labels) > 8 else "")
            raise ValueError(f"unknown label '{text}' (known: {known})")
        return self.index[text]

    def fit(self, values: Iterable[Any], weights: str | Mapping[str, float]) -> None:
        if isinstance(weights, Mapping):
            unknown = sorted(set(weights) - set(self.labels))
            if unknown:
                raise UserError(
                    f"data.class_weights names '{unknown[0]}', which is no label: {', '.join(self.labels)}."
                )
            self.weight = torch.tensor([float(weights.get(label, 1.0)) for label in self.labels])
        elif weights == "balanced":
            self.weight = self._balanced(list(values))

    @abstractmethod
    def _balanced(self, values: Sequence[Any]) -> Tensor:
        """Weights that make each class count alike."""


class Classification(_Weighted):
    """One of C labels per row: cross-entropy; accuracy."""

    metric = "accuracy"

    def encode(self, value: Any, folder: Path = Path()) -> int:
        if value is None or not (text := label_text(value)):
            raise ValueError("the label is empty")
        return self._class(text)

    def targets(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values)

    def _balanced(self, values: Sequence[int]) -> Tensor:
        counts = Counter(values)
        return torch.tensor(
            [len(values) / (len(counts) * counts[i]) if counts[i] else 0.0 for i in range(self.outputs)]
        )

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(logits, targets, weight=self.weight)

    def metrics(self) -> MetricCollection:
        classes = self.outputs
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(classes, average="micro"),
                "f1_macro": MulticlassF1Score(classes, average="macro"),
                "precision_macro": MulticlassPrecision(classes, average="macro"),
            }
        )

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=-1)

    def decide(self, logits: Tensor, sizes: Any = None) -> list[str]:
        return [self.labels[i] for i in logits.argmax(dim=-1).tolist()]


class MultiLabel(_Weighted):
    """Any of C labels per row: binary cross-entropy; F1."""

    metric = "f1_macro"

    def __init__(self, labels: Sequence[str], separator: str = "|"):
        super().__init__(labels)
        self.separator = separator

    def encode(self, value: Any, folder: Path = Path()) -> list[int]:
        return sorted(self._class(text) for text in split_labels(value, self.separator))

    def targets(self, values: Sequence[list[int]]) -> Tensor:
        targets = torch.zeros(len(values), self.outputs)
        for row, classes in enumerate(values):
            targets[row, classes] = 1.0
        return targets

    def _balanced(self, values: Sequence[list[int]]) -> Tensor:
        positives = self.targets(values).sum(dim=0)
        return torch.where(positives > 0, (len(values) - positives) / positives.clamp(min=1), 1.0)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=self.weight)

    def metrics(self) -> MetricCollection:
        classes = self.outputs
        return MetricCollection(
            {
                "f1_macro": MultilabelF1Score(classes, average="macro"),
                "f1_micro": MultilabelF1Score(classes, average="micro"),
                "accuracy": MultilabelAccuracy(classes, average="micro"),
            }
        )

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def decide(self, logits: Tensor, sizes: Any = None) -> list[list[str]]:
        return [[self.labels[i] for i in row.nonzero().flatten().tolist()] for row in logits > 0]


class _R2(R2Score):
    """Of a single sample, undefined instead of an error."""

    def compute(self) -> Tensor:
        return super().compute() if self.total > 1 else torch.tensor(float("nan"))


class Regression(Task):
    """A number per row: squared error on the standardised label; metrics in the label's own units."""

    metric = "rmse"
    lower_is_better = frozenset({"mae", "rmse"})
    mean: Tensor
    scale: Tensor

    def __init__(self, labels: Sequence[str]):
        super().__init__(labels)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    @property
    def classes(self) -> list[str]:
        return []

    def encode(self, value: Any, folder: Path = Path()) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"the label {value!r} is no number") from None
        if not math.isfinite(number):
            raise ValueError(f"the label {number} is not finite")
        return number

    def targets(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32)

    def fit(self, values: Iterable[Any], weights: str | Mapping[str, float]) -> None:
        if weights != "none":
            raise UserError("data.class_weights means nothing for a regression: leave it out.")
        numbers = torch.tensor(list(values), dtype=torch.float64)
        spread = numbers.std(correction=0)
        self.mean = numbers.mean().float()
        self.scale = (spread if spread > 0 else torch.ones_like(spread)).float()

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.mse_loss(logits[:, 0], (targets - self.mean) / self.scale)

    def metrics(self) -> MetricCollection:
        return MetricCollection(
            {"rmse": MeanSquaredError(squared=False), "mae": MeanAbsoluteError(), "r2": _R2()}
        )

    def predictions(self, logits: Tensor) -> Tensor:
        return logits[:, 0] * self.scale + self.mean

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.new_zeros(len(logits), 0)

    def decide(self, logits: Tensor, sizes: Any = None) -> list[float]:
        return self.predictions(logits).tolist()
