"""Whether answers depend on the routing: what the metric loses when all rows get one mixture of experts."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor, nn

from mope.data.table import Table
from mope.fusion import Fusion
from mope.insight.routing import Floats
from mope.insight.shuffle import Loss
from mope.tasks.metrics import compute_metrics, deciding_metric

if TYPE_CHECKING:
    from mope.predictor import Predictor


def mix_alike(
    predictor: "Predictor", table: Table, plain: tuple[Tensor, Tensor], scores: Floats, resamples: int = 200
) -> Loss | None:
    """What the metric loses when each layer mixes its experts alike for every row, by the rows' mean scores.

    All rows get one dynamic prompt then, the mean of their own. It takes another pass over the rows.

    Args:
        predictor: the run.
        table: rows with labels, all of which can be used.
        plain: what `Predictor.outcomes` gives of them.
        scores: their routing scores (N, L, k).
        resamples: how many times rows are drawn for the interval.

    Returns:
        Of no shuffled inputs; None where the routing can't be set: the fusion routes in a way of its own, or
        passes are compiled or recorded, so that they never ask.
    """
    fusion = predictor.model.fusion
    layers = sum(own.router.layers for own in fusion.guided.values() if own.router is not None)
    if layers != scores.shape[1] or predictor.compile != "none":
        return None
    with _mixed_alike(fusion, torch.from_numpy(scores.mean(axis=0))):
        alike, _ = predictor.outcomes(table)
    logits, targets = plain
    task = predictor.model.task
    metric, _ = deciding_metric(task, predictor.settings.training.metric)

    def measure(rows: Any) -> tuple[float, float]:
        values = (compute_metrics(task, made[rows], targets[rows])[metric] for made in (alike, logits))
        value, before = values
        return value, value - before

    value, difference = measure(slice(None))
    generator, size = numpy.random.default_rng(0), len(targets)
    drawn = [measure(generator.integers(0, size, size))[1] for _ in range(resamples)]
    low, high = numpy.percentile(drawn, [2.5, 97.5])
    return Loss((), metric, value, difference, float(low), float(high))


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
