"""What a run makes of rows: predictions, and what its metrics are of, in one pass over them."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mope.data.dataset import RowDataset
from mope.data.table import Table
from mope.predictions import Prediction

if TYPE_CHECKING:
    from mope.predictor import Predictor


class Seen(NamedTuple):
    """What a run makes of rows.

    Attributes:
        predictions: of each row; where the row or its label can't be used, why.
        outcome: what `Task.condense` gives of logits and targets of those that can; None without labels.
    """

    predictions: list[Prediction]
    outcome: tuple[Tensor, Tensor] | None


def see(predictor: "Predictor", table: Table, with_labels: bool) -> Seen:
    """Predict rows, with their labels or without.

    Args:
        predictor: the run.
        table: the rows.
        with_labels: whether they have labels to compare with.
    """
    if not with_labels:
        return Seen(list(predictor.predict(table)), None)
    task = predictor.model.task
    reasons = [_why_not(predictor, table, place) for place in range(len(table))]
    predictions = [Prediction(error=reason) for reason in reasons]
    labelled = [place for place, reason in enumerate(reasons) if reason is None]
    rows = _rows(predictor, table.select(labelled))
    parts: list[tuple[Tensor, Tensor]] = []
    for places, batch, errors in predictor.batches(rows):
        for place, reason in errors.items():
            predictions[labelled[place]] = Prediction(error=reason)
        if batch is None:
            continue
        labels = batch.pop("labels").clone()  # a worker's tensor keeps a file open
        logits, scores = predictor.forward_batch(batch)
        found = predictor.decide(logits, scores, predictor.sizes(rows.table, places))
        for place, prediction in zip(places, found, strict=True):
            predictions[labelled[place]] = prediction
        parts.append(task.condense(logits, labels))
    if not parts:
        return Seen(predictions, None)
    logits, targets = (torch.cat(part) for part in zip(*parts, strict=True))
    return Seen(predictions, (logits, targets))


def _rows(predictor: "Predictor", table: Table) -> RowDataset:
    settings = predictor.settings
    return RowDataset(
        table, predictor.readers, predictor.model.task, settings.data.label, picture=settings.picture
    )


def _why_not(predictor: "Predictor", table: Table, place: int) -> str | None:
    """Why a row's label can't be used: of a mask, with the row's picture; None where it can."""
    settings, task = predictor.settings, predictor.model.task
    try:
        if settings.picture is None:
            task.encode(table[place][settings.data.label], table.folder)
        else:
            _rows(predictor, table)[place]
    except ValueError as error:
        return str(error)
    return None
