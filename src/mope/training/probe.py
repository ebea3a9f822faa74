"""A linear probe: a linear head on frozen features, trained to its end in seconds.

What any method that trains more has to beat: for classes it is logistic regression.
"""

import copy
import math
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mope.data.dataset import RowDataset
from mope.errors import UserError
from mope.heads import LinearHead
from mope.model import FusionModel
from mope.tasks import Classification, MultiLabel, Task
from mope.tasks.metrics import compute_metrics

STRENGTHS = (1.0, 3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
"""Weights of the squared norm, of which the one with the best validation metric is taken; strongest first:
each fit goes on from the one before."""


_START = 0.1
"""The weight for a head through which others learn afterwards: one that knows its rows by heart would leave
them nothing to learn from."""


def require_linear(model: FusionModel, train: Any) -> None:
    """Make sure that there is a linear head, and rows to fit it to.

    Raises:
        UserError: there isn't.
    """
    if not isinstance(model.head, LinearHead):
        raise UserError("The task's head isn't linear: take another method than Probe.")
    if not isinstance(train, RowDataset):
        raise UserError("A probe needs all rows at once: set data.streaming to false.")


def require_probe(model: FusionModel) -> None:
    """Make sure that a head is all that learns.

    Raises:
        UserError: it isn't.
    """
    # What stands in for inputs that aren't there stays zero, as it begins.
    learning = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and not name.startswith("head.") and not name.endswith(".stand_in")
    ]
    tables = [name for name in learning if "tables" in type(_encoder_of(model, name)).__module__]
    if tables:
        raise UserError(
            f"Probe trains a linear head alone, but the encoder of the table '{tables[0].split('.')[2]}' has "
            "nothing to begin with: leave this input out of the config."
        )
    if learning:
        raise UserError(
            f"training.solver: lbfgs trains a linear head alone, but {learning[0]} would learn, too: set "
            "training.solver to adamw, or take --method Probe."
        )


def _encoder_of(model: FusionModel, parameter: str) -> Any:
    """The encoder that a parameter is of; None for another's."""
    path = parameter.split(".")
    return model.fusion.encoder(path[2]).encoder if path[:2] == ["fusion", "encoders"] else None


def start_head(model: FusionModel, features: Tensor, targets: Tensor) -> None:
    """Let a linear head begin where it is best for the features (N, D) that the model begins with."""
    mean, deviation = _spread(features)
    head = _fit(model.task, (features - mean) / deviation, targets, _START, None)
    _leave_open(model.task, head, targets)
    _take_over(model, head, mean, deviation)


@torch.no_grad()
def _leave_open(task: Task, head: nn.Linear, targets: Tensor) -> None:
    """Let classes that the rows don't have begin as the rarest that they have, instead of as impossible."""
    if isinstance(task, Classification):
        absent = torch.bincount(targets, minlength=task.outputs) == 0
        head.weight[absent] = 0.0
        head.bias[absent] = head.bias[~absent].min()
    elif isinstance(task, MultiLabel):
        counts = targets.sum(dim=0)
        head.weight[(counts == 0) | (counts == len(targets))] = 0.0
        limit = math.log(2 * len(targets) + 1)
        head.bias.clamp_(-limit, limit)


def _spread(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature."""
    variance, mean = torch.var_mean(features, dim=0, correction=0)
    return mean, variance.sqrt().clamp(min=1e-6)


@torch.no_grad()
def _take_over(model: FusionModel, head: nn.Linear, mean: Tensor, deviation: Tensor) -> None:
    """Let the model's head do for features as they are what another does for standardised ones."""
    weight = head.weight / deviation
    model.head.linear.weight.copy_(weight)  # type: ignore[union-attr]
    model.head.linear.bias.copy_(head.bias - weight @ mean)  # type: ignore[union-attr]


def fit_probe(
    model: FusionModel,
    features: Tensor,
    targets: Tensor,
    unseen: Tensor,
    expected: Tensor,
    metric: str,
    greater: bool,
) -> list[dict[str, Any]]:
    """Fit the model's head to the features of all training rows, by L-BFGS.

    Features are standardised, so that the penalty means the same for each; the head takes that in.

    Args:
        model: what `require_probe` found fit.
        features, targets: of training rows, (N, D) and (N, ...).
        unseen, expected: of validation rows, likewise.
        metric: validation metric by which the penalty's strength is chosen.
        greater: whether more of it is better.

    Returns:
        For each strength its validation metrics, named as the trainer names them; the best one's `step` is 1,
        the others' is 0.
    """
    mean, deviation = _spread(features)
    features, unseen = (features - mean) / deviation, (unseen - mean) / deviation
    heads: list[nn.Linear] = []
    history = []
    for strength in STRENGTHS:
        heads.append(_fit(model.task, features, targets, strength, heads[-1] if heads else None))
        logits = heads[-1](unseen).detach()
        found = {"loss": float(model.task.loss(logits, expected))}
        found |= compute_metrics(model.task, *model.task.condense(logits.cpu(), expected.cpu()))
        values = {f"eval_{name}": value for name, value in found.items()}
        history.append({"epoch": 1.0, "step": 0, "penalty": strength, **values})
    best = (max if greater else min)(range(len(history)), key=lambda i: history[i][f"eval_{metric}"])
    history[best]["step"] = 1
    _take_over(model, heads[best], mean, deviation)
    return history


def _fit(
    task: Task, features: Tensor, targets: Tensor, strength: float, before: nn.Linear | None
) -> nn.Linear:
    """The head (D -> outputs) with the least loss and penalty over all rows; biases aren't penalised."""
    if before is None:
        head = nn.Linear(features.shape[1], task.outputs, device=features.device)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    else:
        head = copy.deepcopy(before)
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=100, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = task.loss(head(features), targets) + strength / 2 * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(step)  # type: ignore[arg-type]
    return head


@torch.no_grad()
def features_of(
    model: FusionModel, rows: Dataset, collate: Any, size: int, device: torch.device, workers: int
) -> tuple[Tensor, Tensor]:
    """Fused features (N, D) of all rows in float32, and their targets (N, ...).

    Args:
        model: the model.
        rows: what is read.
        collate: makes samples a batch.
        size: rows per batch.
        device: where the model is.
        workers: processes that read.
    """
    model.eval()
    features, targets = [], []
    for found in DataLoader(rows, size, collate_fn=collate, num_workers=workers):
        batch: Any = send_to_device(found, device)
        targets.append(batch.pop("labels"))
        features.append(model.features(batch).float())
    return torch.cat(features), torch.cat(targets)
