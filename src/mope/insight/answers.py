"""How a run's answers compare with the labels: plain arrays and numbers."""

from collections.abc import Sequence

import numpy
from numpy.typing import NDArray


def confusion_counts(
    targets: Sequence[str], answers: Sequence[str], labels: Sequence[str]
) -> NDArray[numpy.integer]:
    """How often each label (rows) got each answer (columns): (C, C), in the labels' order."""
    index = {label: place for place, label in enumerate(labels)}
    counts = numpy.zeros((len(labels), len(labels)), dtype=int)
    for target, answer in zip(targets, answers, strict=True):
        counts[index[target], index[answer]] += 1
    return counts


def label_scores(
    targets: Sequence[Sequence[str]], answers: Sequence[Sequence[str]], labels: Sequence[str]
) -> dict[str, float]:
    """F1 of each label over samples that may have several; 0 for one that is neither there nor answered."""
    found = {}
    for label in labels:
        pairs = [(label in target, label in answer) for target, answer in zip(targets, answers, strict=True)]
        twice = 2 * pairs.count((True, True))
        either = twice + pairs.count((True, False)) + pairs.count((False, True))
        found[label] = twice / either if either else 0.0
    return found
