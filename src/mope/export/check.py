"""A file beside the model it was made of, on rows of a table."""

from collections.abc import Iterator, Mapping
from itertools import cycle, islice
from typing import Any

import numpy
import torch
from torch import Tensor

from mope.data.dataset import RowDataset, collate
from mope.data.table import Table
from mope.errors import UserError
from mope.export.formats import Runner
from mope.export.graph import Batch, Graph
from mope.media.cells import BadCell
from mope.predictor import Predictor
from mope.tasks import Regression

_BATCHES = (1, 3, 8, 5)


class Samples:
    """Rows of a table that can be read, up to a number of them."""

    def __init__(self, predictor: Predictor, table: Table, count: int):
        self.readers, self.count = predictor.readers, count
        self.dataset = RowDataset(table, predictor.readers)

    def rows(self) -> Iterator[dict[str, Any]]:
        for place in range(len(self.dataset)):
            try:
                yield self.dataset[place]
            except BadCell:
                continue

    def batches(self, sizes: tuple[int, ...]) -> Iterator[Batch]:
        """The rows in batches of these sizes, over and over.

        Raises:
            UserError: there are none.
        """
        rows = islice(self.rows(), self.count)
        found = False
        for size in cycle(sizes):
            part = list(islice(rows, size))
            if not part:
                break
            found = True
            yield collate(part, self.readers, None)
        if not found:
            raise UserError(
                f"{self.dataset.table.name} has no row to compare the file on: name another with --data FILE."
            )


def compare(graph: Graph, call: Runner, samples: Samples) -> tuple[float, list[int]]:
    """The largest difference of the file's outputs from the model's, and the sizes of the batches."""
    largest, sizes = 0.0, []
    for batch in samples.batches(_BATCHES):
        tensors = graph.flat(batch)
        sizes.append(next(iter(tensors.values())).shape[0])
        largest = _worse(largest, _difference(graph, call, tensors))
        if len(sizes) <= len(_BATCHES):
            # Texts may all be of one length: this one is shorter.
            cut = {name: _shorter(tensor, graph.axes[name]) for name, tensor in tensors.items()}
            largest = _worse(largest, _difference(graph, call, cut))
    return largest, sizes


def _difference(graph: Graph, call: Runner, tensors: Mapping[str, Tensor]) -> float:
    """The largest absolute difference of a batch's outputs; a regression's values count in deviations."""
    with torch.inference_mode():
        expected = graph.run(tensors)
    found, task = call(tensors), graph.model.task
    largest = 0.0
    for name, tensor in expected.items():
        if found[name].shape != tuple(tensor.shape):
            return float("inf")
        scale = float(task.scale) if isinstance(task, Regression) and name == "values" else 1.0
        largest = _worse(largest, float(numpy.abs(found[name] - tensor.numpy()).max()) / scale)
    return largest


def _worse(one: float, other: float) -> float:
    """The larger difference; NaN is the largest."""
    return float(numpy.maximum(one, other))


def _shorter(tensor: Tensor, axes: Mapping[int, str]) -> Tensor:
    """A tensor whose length is free without its last quarter, or its last token."""
    if 1 not in axes or tensor.shape[1] < 3:
        return tensor
    return tensor[:, : min(tensor.shape[1] - 1, 3 * tensor.shape[1] // 4 + 1)].contiguous()
