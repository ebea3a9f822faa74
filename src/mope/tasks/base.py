"""What every task is: how a label is read, what the loss is, and what a prediction says."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mope.media.cells import is_missing
from mope.media.values import value_text

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


def label_text(value: Any) -> str:
    """A label as text, the same for 3, 3.0 and "3", for True and "true"."""
    return value_text(value)


def sorted_labels(labels: set[str]) -> list[str]:
    """Labels in order: by number if all are numbers, else by text. Equal numbers are in their texts' order,
    which a set has another of in each process."""
    try:
        numbers = {label: float(label) for label in labels}
    except ValueError:
        return sorted(labels)
    if any(map(math.isnan, numbers.values())):
        return sorted(labels)
    return sorted(labels, key=lambda label: (numbers[label], label))


def split_labels(value: Any, separator: str) -> list[str]:
    """The labels of a multi-label cell: a list, or text with separators; empty for none."""
    if is_missing(value):
        return []
    if isinstance(value, list | tuple):
        return [text for part in value if not is_missing(part) and (text := label_text(part))]
    return [text for part in str(value).split(separator) if (text := label_text(part))]


class Task(nn.Module, ABC):
    """What a model is trained for. It owns the label names and what the loss needs.

    Attributes:
        labels: names of the outputs, in order.
        metric: the metric that decides, unless the config names another.
        lower_is_better: metrics for which less is better.
        evaluated: metrics that an evaluation has beside `metrics`, and training hasn't.
        dense: whether it decides for every pixel of the main input's picture; then logits are (B, H, W).
    """

    metric: str
    lower_is_better: frozenset[str] = frozenset()
    evaluated: tuple[str, ...] = ()
    dense: bool = False

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
    def encode(self, value: Any, folder: Path = Path()) -> Any:
        """A table's label as a target.

        Args:
            value: the cell.
            folder: what a relative path is relative to, where labels are files.

        Raises:
            ValueError: saying what is wrong with it.
        """

    def peek(self, value: Any, folder: Path = Path()) -> Any:
        """What is fast to find wrong with a label, as `encode`; the (height, width) of a mask."""
        return self.encode(value, folder)

    @abstractmethod
    def targets(self, values: Sequence[Any]) -> Tensor:
        """Encoded labels of a batch as one tensor."""

    def fit(self, values: Iterable[Any], weights: str | Mapping[str, float]) -> None:
        """Learn what the loss needs from the encoded labels of the training rows."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of logits (B, C) against what `targets` returned."""

    def weight_of(self, targets: Tensor) -> Tensor:
        """What the mean of `loss` is over, which several batches' means are to be weighted by: the number of
        rows, or the sum of their weights."""
        return torch.tensor(float(len(targets)), device=targets.device)

    def calibrate(self, logits: Tensor, targets: Tensor) -> dict[str, Any]:
        """Let probabilities and decisions fit what was right of rows that nothing was trained on.

        Args:
            logits, targets: what `condense` gave of validation rows, on the CPU.

        Returns:
            What was found, by name, for `metrics.json`; nothing for a task without probabilities.
        """
        return {}

    @abstractmethod
    def metrics(self) -> "MetricCollection":
        """Metrics over what `predictions` and `targets` return."""

    def condense(
        self, logits: Tensor, targets: Tensor, originals: Sequence[Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """What metrics need of a batch, so that nothing larger is kept: here everything.

        Args:
            logits, targets: see `loss`.
            originals: of a dense task, the encoded labels as they were before they were resized with their
                pictures; None where they aren't known.
        """
        return logits, targets

    def compared(self, logits: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """What `metrics` compares of what `condense` gave, by the ending of the metrics' names."""
        return {"": (self.predictions(logits.float()), targets)}

    def meter(self) -> "Meter":
        """Takes what `condense` gives, batch by batch, and then has the metrics."""
        return Meter(self)

    def measure(self, logits: Tensor, targets: Tensor, only: str | None = None) -> dict[str, float]:
        """Metrics by name of what `condense` gave of any number of rows; `only` one, or all."""
        meter = Meter(self, only)
        meter.add(logits, targets)
        return meter.compute()

    def predictions(self, logits: Tensor) -> Tensor:
        """What metrics compare with the targets: probabilities (B, C), or numbers (B,) of a regression."""
        return self.probabilities(logits)

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Probability of each class, (B, C); (B, 0) where there are no classes."""

    @abstractmethod
    def decide(self, logits: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> list[Any]:
        """The predicted label of each row of logits (B, C).

        Args:
            logits: (B, C), or (B, H, W) of a dense task.
            sizes: of a dense task, the (height, width) that each row is to have.
        """


class Meter:
    """Metrics of rows that are added batch by batch, of which only counts and sums are kept.

    They are those of all rows at once: of counts exactly, of sums, which are taken in float64, but for
    roundings.

    Args:
        task: says which metrics, and what they compare.
        only: the one that is wanted; None for all.

    Attributes:
        rows: how many were added.
    """

    def __init__(self, task: Task, only: str | None = None):
        self.task, self.only, self.rows = task, only, 0
        self._metrics: dict[str, MetricCollection] = {}

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Take what `Task.condense` gave of some rows, on the CPU."""
        self.rows += len(targets)
        for ending, (predictions, wanted) in self.task.compared(logits, targets).items():
            if ending not in self._metrics:
                self._metrics[ending] = self._chosen(ending)
            if len(self._metrics[ending]):
                self._metrics[ending].update(predictions, wanted)

    def _chosen(self, ending: str) -> "MetricCollection":
        """The metrics whose names end so, or the one of them that is wanted."""
        every = self.task.metrics()
        if self.only is None:
            return every
        return type(every)({name: one for name, one in every.items() if name + ending == self.only})

    def compute(self) -> dict[str, float]:
        """Metrics by name of all rows that were added."""
        return {
            name + ending: float(value)
            for ending, metrics in self._metrics.items()
            for name, value in metrics.compute().items()
            if not ending or name + ending in self.task.evaluated
        }
