"""Tasks whose label is a cell's text or number: one label, any number of labels, a number."""

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from mope.errors import UserError, shown
from mope.media.cells import is_missing
from mope.tasks.base import Task, label_text, split_labels

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


class _Weighted(Task):
    """A task over classes, each with a weight in the loss.

    Probabilities are those of logits divided by a temperature, which is fitted to the validation rows after
    the training (Guo et al. 2017, arXiv 1706.04599); it changes no decision of one label.
    """

    weight: Tensor
    temperature: Tensor
    ignores: bool = False
    """Whether a class has no weight."""

    def __init__(self, labels: Sequence[str]):
        super().__init__(labels)
        self.index = {label: i for i, label in enumerate(self.labels)}
        self.register_buffer("weight", torch.ones(len(self.labels)), persistent=False)
        self.register_buffer("temperature", torch.ones(()))

    def _class(self, text: str) -> int:
        if text not in self.index:
            known = ", ".join(shown(name, 20) for name in self.labels[:5])
            more = ", ..." if len(self.labels) > 5 else ""
            raise ValueError(f"unknown label '{shown(text)}' (known: {known}{more})")
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
        self.ignores = bool((self.weight <= 0).any())

    @abstractmethod
    def _balanced(self, values: Sequence[Any]) -> Tensor:
        """Weights that make each class count alike."""

    def _scaled(self, logits: Tensor) -> Tensor:
        return logits / self.temperature.to(logits.device)

    def _fit_temperature(self, loss: Callable[[Tensor], Tensor]) -> None:
        """The temperature of the least loss; rows that are all right would have one of zero."""
        logarithm = torch.zeros((), requires_grad=True)
        optimizer = torch.optim.LBFGS([logarithm], max_iter=50, line_search_fn="strong_wolfe")

        def step() -> Tensor:
            optimizer.zero_grad()
            value = loss(logarithm.clamp(-_FAR, _FAR).exp())
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(step)  # type: ignore[arg-type]
        self.temperature.copy_(logarithm.detach().clamp(-_FAR, _FAR).exp())


_FAR = math.log(10)


class Classification(_Weighted):
    """One of C labels per row: cross-entropy; accuracy."""

    metric = "accuracy"
    lower_is_better = frozenset({"calibration_error"})

    def encode(self, value: Any, folder: Path = Path()) -> int:
        if is_missing(value) or not (text := label_text(value)):
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
        if not self.ignores:
            return functional.cross_entropy(logits, targets, weight=self.weight)
        # Of rows that don't count at all the mean is none, and so would its gradient be.
        total = functional.cross_entropy(logits, targets, weight=self.weight, reduction="sum")
        return total / self.weight_of(targets).clamp(min=torch.finfo(torch.float32).tiny)

    def weight_of(self, targets: Tensor) -> Tensor:
        return self.weight.to(targets.device)[targets].sum()

    def calibrate(self, logits: Tensor, targets: Tensor) -> dict[str, Any]:
        from mope.tasks.measures import calibration_error

        logits, before = logits.float(), calibration_error(self.probabilities(logits), targets)
        self._fit_temperature(lambda temperature: functional.cross_entropy(logits / temperature, targets))
        after = calibration_error(self.probabilities(logits), targets)
        return {"temperature": float(self.temperature), "error_before": before, "error_after": after}

    def metrics(self) -> "MetricCollection":
        from mope.tasks import measures

        return measures.of_classes(self.outputs)

    def probabilities(self, logits: Tensor) -> Tensor:
        return self._scaled(logits).softmax(dim=-1)

    def decide(self, logits: Tensor, sizes: Any = None) -> list[str]:
        return [self.labels[i] for i in logits.argmax(dim=-1).tolist()]


class MultiLabel(_Weighted):
    """Any of C labels per row: binary cross-entropy; F1.

    A label is decided for above a probability of its own, chosen for F1 on the validation rows.
    """

    metric = "f1_macro"
    threshold: Tensor

    def __init__(self, labels: Sequence[str], separator: str = "|"):
        super().__init__(labels)
        self.separator = separator
        self.register_buffer("threshold", torch.full((len(self.labels),), 0.5))

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

    def metrics(self) -> "MetricCollection":
        from mope.tasks import measures

        return measures.of_labels(self.outputs)

    def probabilities(self, logits: Tensor) -> Tensor:
        return self._scaled(logits).sigmoid()

    def predictions(self, logits: Tensor) -> Tensor:
        return self._decided(logits).float()

    def _decided(self, logits: Tensor) -> Tensor:
        return self.probabilities(logits) > self.threshold.to(logits.device)

    def decide(self, logits: Tensor, sizes: Any = None) -> list[list[str]]:
        return [[self.labels[i] for i in row.nonzero().flatten().tolist()] for row in self._decided(logits)]

    def calibrate(self, logits: Tensor, targets: Tensor) -> dict[str, Any]:
        logits = logits.float()
        right = functional.binary_cross_entropy_with_logits
        self._fit_temperature(lambda temperature: right(logits / temperature, targets))
        for place, column in enumerate(self.probabilities(logits).T):
            self.threshold[place] = _best_threshold(column, targets[:, place])
        thresholds = dict(zip(self.labels, self.threshold.tolist(), strict=True))
        return {"temperature": float(self.temperature), "thresholds": thresholds}


def _best_threshold(probabilities: Tensor, targets: Tensor) -> float:
    """The probability above which a label is decided for with the best F1; a half where none is there.

    It lies between two rows' probabilities; of several as good ones it is the nearest to a half.
    """
    if not targets.any():
        return 0.5
    found, order = probabilities.sort(descending=True)
    hits = targets[order].cumsum(0)
    scores = 2 * hits / (torch.arange(1, len(found) + 1) + targets.sum())
    # Rows of one probability are decided alike.
    whole = torch.cat([found[:-1] > found[1:], torch.ones(1, dtype=torch.bool)])
    below = torch.cat([found[1:], torch.zeros(1)])
    between = (found + below) / 2
    best = scores[whole].max()
    chosen = between[whole & (scores >= best - 1e-6)]
    return float(chosen[(chosen - 0.5).abs().argmin()])


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
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"the label {shown(repr(value))} is no number") from None
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

    def metrics(self) -> "MetricCollection":
        from mope.tasks import measures

        return measures.of_numbers()

    def predictions(self, logits: Tensor) -> Tensor:
        return logits[:, 0] * self.scale.to(logits.device) + self.mean.to(logits.device)

    def compared(self, logits: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        return {"": (self.predictions(logits.float()).double(), targets.double())}

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.new_zeros(len(logits), 0)

    def decide(self, logits: Tensor, sizes: Any = None) -> list[float]:
        return self.predictions(logits).tolist()
