"""Metrics of a task, as plain numbers."""

from html import escape
from typing import Any

from torch import Tensor

from mope.errors import UserError
from mope.tasks import Task


class Metrics(dict[str, Any]):
    """Metrics by name, which a notebook shows as a table."""

    def _repr_html_(self) -> str:
        shown = {name: f"{value:.4f}" if isinstance(value, float) else value for name, value in self.items()}
        rows = "".join(
            f"<tr><th>{name}</th><td>{escape(str(value))}</td></tr>" for name, value in shown.items()
        )
        return f"<table>{rows}</table>"


def compute_metrics(task: Task, logits: Tensor, targets: Tensor, only: str | None = None) -> dict[str, float]:
    """A task's metrics by name.

    Args:
        task: says which, on torchmetrics.
        logits, targets: what `Task.condense` gave of logits and targets, joined over batches, on the CPU.
        only: the one that is wanted; None for all.
    """
    return task.measure(logits, targets, only)


def deciding_metric(task: Task, named: str | None) -> tuple[str, bool]:
    """The metric that decides which epoch is best, and whether more of it is better.

    Raises:
        UserError: the task has no metric of that name.
    """
    names = [str(name) for name in task.metrics()]
    name = named or task.metric
    if name not in names:
        raise UserError(f"This task has no metric '{name}': set one of {', '.join(names)}.")
    return name, name not in task.lower_is_better
