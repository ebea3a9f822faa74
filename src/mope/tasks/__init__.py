"""Tasks: how a label is read, what the loss is, and what a prediction says."""

from collections.abc import Callable, Sequence

from mope.config import Config
from mope.tasks.base import Meter, Task, label_text, sorted_labels, split_labels
from mope.tasks.labels import Classification, MultiLabel, Regression
from mope.tasks.segmentation import ReferringSegmentation

__all__ = [
    "Classification",
    "Meter",
    "MultiLabel",
    "ReferringSegmentation",
    "Regression",
    "Task",
    "any_task",
    "build_task",
    "label_text",
    "sorted_labels",
    "split_labels",
]

_TASKS: dict[str, Callable[[Sequence[str], Config], Task]] = {
    "classification": lambda labels, config: Classification(labels),
    "multilabel": lambda labels, config: MultiLabel(labels, config.data.separator),
    "regression": lambda labels, config: Regression(labels),
    "referring-segmentation": lambda labels, config: ReferringSegmentation(labels, config.segmentation.loss),
}


def build_task(config: Config, labels: Sequence[str]) -> Task:
    """The config's task over the given labels (a regression and a segmentation have one: their column)."""
    return _TASKS[config.task](labels, config)


def any_task(config: Config) -> Task:
    """The config's task over made-up labels, to ask it for its metrics before labels are known."""
    return build_task(config, ["a", "b"])
