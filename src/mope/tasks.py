"""Tasks: how a label is read, what the loss is, and what a prediction says."""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
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


def label_text(value: Any) -> str:
    """A label as text, the same for 3, 3.0 and "3", for True and "true"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def sorted_labels(labels: set[str]) -> list[str]:
    """Labels in order: by number if all are numbers, else by text."""
    try:
        return sorted(labels, key=float)
    except ValueError:
        return sorted(labels)


class Task(nn.Module, ABC):
    """What a model is trained for. It owns the label names and what the loss needs.

    Attributes:
        labels: names of the outputs, in order.
        metric: the metric that decides, unless the config names another.
        lower_is_better: metrics for which less is better.
    """

    metric: str
    lower_is_better: frozenset[str] = frozenset()

    def __init__(self, labels: Sequence[str]):
        super().__init__()
        self.labels = list(labels)

    @property
    def outputs(self) -> int:
        """How many numbers the head gives."""
        return len(self.labels)

    @property
    def classes(self) -> list[str]:
        """Labels that have a probability, in order; none for a regression."""
        return self.labels

    @abstractmethod
    def encode(self, value: Any) -> Any:
        """A table's label as a target.

        Raises:
            ValueError: saying what is wrong with it.
        """

    @abstractmethod
    def targets(self, values: Sequence[Any]) -> Tensor:
        """Encoded labels of a batch as one tensor."""

    def fit(self, values: Sequence[Any], weights: str | Mapping[str, float]) -> None:
        """Learn what the loss needs from the encoded labels of the training rows."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of logits (B, C) against what `targets` returned."""

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """Metrics over what `predictions` and `targets` return."""

    def predictions(self, logits: Tensor) -> Tensor:
        """What metrics compare with the targets: probabilities (B, C), or numbers (B,) of a regression."""
        return self.probabilities(logits)

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Probability of each class, (B, C); (B, 0) where there are no classes."""

    @abstractmethod
    def decide(self, logits: Tensor) -> list[Any]:
        """The predicted label of each row of logits (B, C)."""


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

    def fit(self, values: Sequence[Any], weights: str | Mapping[str, float]) -> None:
        if isinstance(weights, Mapping):
            unknown = sorted(set(weights) - set(self.labels))
            if unknown:
                raise UserError(
                    f"data.class_weights names '{unknown[0]}', which is no label: {', '.join(self.labels)}."
                )
            self.weight = torch.tensor([float(weights.get(label, 1.0)) for label in self.labels])
        elif weights == "balanced":
            self.weight = self._balanced(values)

    @abstractmethod
    def _balanced(self, values: Sequence[Any]) -> Tensor:
        """Weights that make each class count alike."""


class Classification(_Weighted):
    """One of C labels per row: cross-entropy; accuracy."""

    metric = "accuracy"

    def encode(self, value: Any) -> int:
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

    def decide(self, logits: Tensor) -> list[str]:
        return [self.labels[i] for i in logits.argmax(dim=-1).tolist()]


class MultiLabel(_Weighted):
    """Any of C labels per row: binary cross-entropy; F1."""

    metric = "f1_macro"

    def __init__(self, labels: Sequence[str], separator: str = "|"):
        super().__init__(labels)
        self.separator = separator

    def encode(self, value: Any) -> list[int]:
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

    def decide(self, logits: Tensor) -> list[list[str]]:
        return [[self.labels[i] for i in row.nonzero().flatten().tolist()] for row in logits > 0]


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

    def encode(self, value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"the label {value!r} is no number") from None
        if not math.isfinite(number):
            raise ValueError(f"the label {number} is not finite")
        return number

    def targets(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32)

    def fit(self, values: Sequence[float], weights: str | Mapping[str, float]) -> None:
        if weights != "none":
            raise UserError("data.class_weights means nothing for a regression: leave it out.")
        numbers = torch.tensor(values, dtype=torch.float64)
        spread = numbers.std(correction=0)
        self.mean = numbers.mean().float()
        self.scale = (spread if spread > 0 else torch.ones_like(spread)).float()

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.mse_loss(logits[:, 0], (targets - self.mean) / self.scale)

    def metrics(self) -> MetricCollection:
        return MetricCollection(
            {"rmse": MeanSquaredError(squared=False), "mae": MeanAbsoluteError(), "r2": R2Score()}
        )

    def predictions(self, logits: Tensor) -> Tensor:
        return logits[:, 0] * self.scale + self.mean

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.new_zeros(len(logits), 0)

    def decide(self, logits: Tensor) -> list[float]:
        return self.predictions(logits).tolist()


def split_labels(value: Any, separator: str) -> list[str]:
    """The labels of a multi-label cell: a list, or text with separators; empty for none."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [label_text(v) for v in value]
    return [text for part in str(value).split(separator) if (text := label_text(part))]


def build_task(name: str, labels: Sequence[str], separator: str = "|") -> Task:
    """The task of that name over the given labels (a regression has one: its column)."""
    if name == "multilabel":
        return MultiLabel(labels, separator)
    return {"classification": Classification, "regression": Regression}[name](labels)


def any_task(name: str) -> Task:
    """A task of that name over made-up labels, to ask it for its metrics before labels are known."""
    return build_task(name, ["a"] if name == "regression" else ["a", "b"])
