"""Which modality mattered: what the metric loses when an input is shuffled among the rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from mope.data.dataset import RowDataset
from mope.data.table import Table
from mope.tasks import Task
from mope.tasks.metrics import compute_metrics, deciding_metric

if TYPE_CHECKING:
    from mope.predictor import Predictor


RESAMPLES = 200
"""How many times rows are drawn for an interval."""


@dataclass(frozen=True)
class Loss:
    """What shuffling some inputs costs.

    Attributes:
        inputs: which were shuffled, together.
        metric: which metric.
        value: its value on the shuffled rows.
        difference: that minus its value on the rows as they are.
        low, high: 95 % interval of the difference, from resampled rows.
    """

    inputs: tuple[str, ...]
    metric: str
    value: float
    difference: float
    low: float
    high: float


class Shuffled(Table):
    """A table whose columns of some inputs come from other rows.

    Args:
        table: the rows.
        columns: of the inputs, which move together.
        seed: of the order.
    """

    def __init__(self, table: Table, columns: Sequence[str], seed: int = 0):
        self.rows, self.folder, self.name, self.numbers = table.rows, table.folder, table.name, table.numbers
        self.table, self.moved = table, tuple(columns)
        order = numpy.random.default_rng(seed).permutation(len(table))
        # Each row gets the next one's in a random circle, so that none keeps its own.
        self.source = numpy.empty(len(table), dtype=int)
        self.source[order] = numpy.roll(order, 1)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, other = self.table[index], self.table[int(self.source[index])]
        return {**row, **{column: other.get(column) for column in self.moved}}

    def rows_at(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]

    @property
    def columns(self) -> list[str]:
        return self.table.columns


def shuffle_inputs(
    predictor: "Predictor", table: Table, plain: tuple[Tensor, Tensor], resamples: int = RESAMPLES
) -> list[Loss]:
    """The metric with each input shuffled, with each pair of them, and with each column of a table input.

    Where labels are masks, another row's picture is seen at the encoder's size, and its answer is compared
    with the row's own mask at that size.

    Args:
        predictor: the run.
        table: rows with labels, all of which can be used; two at least.
        plain: what `Predictor.outcomes` gives of them.
        resamples: how many times rows are drawn for the interval.
    """
    settings, task = predictor.settings, predictor.model.task
    names = list(predictor.readers)
    metric, _ = deciding_metric(task, settings.training.metric)
    chosen: list[tuple[str, ...]] = [(name,) for name in names]
    chosen += combinations(names, 2)
    parts = {inputs: [c for name in inputs for c in predictor.readers[name].columns] for inputs in chosen}
    for name in names:
        if len(columns := predictor.readers[name].columns) > 1:
            parts |= {(f"{name}.{column}",): [column] for column in columns}
    outcomes = _Outcomes(predictor, table, plain)
    compare = Compared(task, metric, plain, resamples)
    return [compare(inputs, outcomes.moved(columns)) for inputs, columns in parts.items()]


class Compared:
    """What a metric of rows becomes with other answers, over the same random draws of the rows each time.

    Args:
        task, metric: what is measured.
        plain: what `Predictor.outcomes` gives of the rows as they are.
        resamples: how many draws, of as many rows each.
    """

    def __init__(self, task: Task, metric: str, plain: tuple[Tensor, Tensor], resamples: int = RESAMPLES):
        self.task, self.metric, self.rows, self.resamples = task, metric, len(plain[0]), resamples
        self.value, self.drawn = self._measure(plain)

    def _measure(self, outcome: tuple[Tensor, Tensor]) -> tuple[float, NDArray[numpy.floating]]:
        """The metric of an outcome, and of each draw."""
        generator, (logits, targets) = numpy.random.default_rng(0), outcome

        def of(rows: Any) -> float:
            return compute_metrics(self.task, logits[rows], targets[rows], self.metric)[self.metric]

        drawn = [of(generator.integers(0, self.rows, self.rows)) for _ in range(self.resamples)]
        return of(slice(None)), numpy.array(drawn)

    def __call__(self, inputs: tuple[str, ...], outcome: tuple[Tensor, Tensor]) -> Loss:
        """What another outcome of the rows costs.

        Args:
            inputs: which were shuffled for it.
            outcome: likewise of `Predictor.outcomes`.
        """
        value, drawn = self._measure(outcome)
        low, high = numpy.percentile(drawn - self.drawn, [2.5, 97.5])
        return Loss(inputs, self.metric, value, value - self.value, float(low), float(high))


class _Outcomes:
    """What a run makes of rows with some columns moved, in as few passes over them as can be.

    To take some columns from the next row of a circle, or all others from the one before: both ask the same
    mixed rows, of which the first belong to the rows that keep the others, the second to those that keep
    the ones. So of two inputs one pass tells what shuffling either costs. With all columns moved, each row
    is another one as it is, which needs no pass.

    Args:
        predictor: the run.
        table: the rows.
        plain: the outcome of the rows as they are.
    """

    def __init__(self, predictor: "Predictor", table: Table, plain: tuple[Tensor, Tensor]):
        self.predictor, self.table, self.plain = predictor, table, plain
        self.all = frozenset(c for reader in predictor.readers.values() for c in reader.columns)
        self.made: dict[frozenset[str], Tensor] = {}

    def moved(self, columns: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The outcome with these columns moved, see `Predictor.outcomes`."""
        if self.predictor.settings.picture is not None:  # pixels are counted for the row's own mask
            return self.predictor.outcomes(_moved(self.predictor, self.table, columns))
        logits, targets = self.plain
        chosen = frozenset(columns)
        rest, source = self.all - chosen, torch.from_numpy(Shuffled(self.table, columns).source)
        if not rest:
            return logits[source], targets
        if rest in self.made:
            found = torch.empty_like(self.made[rest])
            found[source] = self.made[rest]
            return found, targets
        self.made[chosen], _ = self.predictor.outcomes(Shuffled(self.table, columns))
        return self.made[chosen], targets


class _OtherPictures(RowDataset):
    """Rows whose masks stay with them while their pictures are other rows'.

    Args:
        predictor: reads them.
        table: the rows.
        others: as many, whose pictures are taken.
    """

    def __init__(self, predictor: "Predictor", table: Table, others: Table):
        name = predictor.settings.picture
        super().__init__(
            table, predictor.readers, predictor.model.task, predictor.settings.data.label, picture=name
        )
        self.others, self.name = others, str(name)

    def _sample(self, index: int, row: Mapping[str, Any]) -> dict[str, Any]:
        reader = self.readers[self.name]
        picture = reader.sample(reader.cell(self.others[index]), self.others.folder, False)
        return {**super()._sample(index, row), self.name: picture}


def _moved(predictor: "Predictor", table: Table, columns: Sequence[str]) -> Table | RowDataset:
    """Rows whose cells in some columns are other rows'."""
    moved, name = Shuffled(table, columns), predictor.settings.picture
    own = predictor.readers[name].columns if name is not None else []
    if not set(own) & set(columns):
        return moved
    return _OtherPictures(predictor, Shuffled(table, [c for c in columns if c not in own]), moved)
