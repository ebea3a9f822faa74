"""Whether answers depend on the routing: what the metric loses when all rows get one mixture of experts."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mope.data.table import Table, evenly
from mope.fusion import Fusion
from mope.insight.routing import Floats
from mope.insight.shuffle import Compared, Loss
from mope.tasks.metrics import deciding_metric

if TYPE_CHECKING:
    from mope.predictor import Predictor


ROWS = 200
"""So many rows are enough to see whether answers change: each costs as much as a prediction."""


def mix_alike(
    predictor: "Predictor", table: Table, plain: tuple[Tensor, Tensor], scores: Floats, rows: int = ROWS
) -> Loss | None:
    """What the metric loses when each layer mixes its experts alike for every row, by the rows' mean scores.

    All rows get one dynamic prompt then, the mean of their own.

    Args:
        predictor: the run.
        table: rows with labels, all of which can be used.
        plain: what `Predictor.outcomes` gives of them.
        scores: their routing scores (N, L, k).
        rows: how many rows are asked once more, evenly spread over the table.

    Returns:
        Of no shuffled inputs; None where the routing can't be set: the fusion routes in a way of its own, or
        passes are compiled or recorded, so that they never ask.
    """
    fusion = predictor.model.fusion
    layers = sum(own.router.layers for own in fusion.guided.values() if own.router is not None)
    if layers != scores.shape[1] or predictor.compile != "none":
        return None
    asked = evenly(len(table), rows)
    with _mixed_alike(fusion, torch.from_numpy(scores.mean(axis=0))):
        alike = predictor.outcomes(table.select(asked))
    logits, targets = plain
    metric, _ = deciding_metric(predictor.model.task, predictor.settings.training.metric)
    return Compared(predictor.model.task, metric, (logits[asked], targets[asked]))((), alike)


@contextmanager
def _mixed_alike(fusion: Fusion, scores: Tensor) -> Iterator[None]:
    """Let routers give every row the same scores (L, k), of all routed layers in the fusion's order."""
    handles, begin = [], 0
    try:
        for own in fusion.guided.values():
            if own.router is not None:
                fixed = scores[begin : begin + own.router.layers]
                handles.append(own.router.register_forward_hook(partial(_give, fixed)))
                begin += own.router.layers
        yield
    finally:
        for handle in handles:
            handle.remove()


def _give(scores: Tensor, router: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Instead of a layer's own scores (B, k), these of all layers (L, k)."""
    return scores[args[0]].to(output).expand_as(output)
