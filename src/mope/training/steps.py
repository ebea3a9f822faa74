"""The rows of each step, shared out among processes so that any number of them trains as one."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mope.data.dataset import Chunk, RowDataset, StreamDataset, chunk
from mope.training.rows import Rows
from mope.training.stopping import leave_signals

STAND_IN = "stand_in"
"""In a batch whose one row stands in for none."""


class StepBatches(Sampler[list[int]]):
    """This process's rows of each step: a batch is drawn for all processes, and each takes its part.

    No row is left out or taken twice to make the parts alike; of a last, small batch a process may have none.

    Args:
        rows: how many the table has.
        size: of a batch, over all processes.
        rank: which process this is.
        processes: how many there are.
        seed: of the order, another one in each epoch; None for the table's own.

    Attributes:
        epoch: from 0.
    """

    def __init__(self, rows: int, size: int, rank: int = 0, processes: int = 1, seed: int | None = None):
        self.rows, self.size, self.rank, self.processes, self.seed = rows, size, rank, processes, seed
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(self.rows / self.size)

    def __iter__(self) -> Iterator[list[int]]:
        order: Sequence[int] = range(self.rows)
        if self.seed is not None:
            generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
            order = torch.randperm(self.rows, generator=generator).tolist()
        for start in range(0, self.rows, self.size):
            count = min(self.size, self.rows - start)
            yield [order[start + place] for place in chunk(count, self.rank, self.processes)]


class _Chunks(Dataset):
    """A table's rows as chunks of batches."""

    def __init__(self, rows: RowDataset):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]

    def __getitems__(self, indices: list[int]) -> Chunk:
        return Chunk(self.rows.__getitems__(indices or [0]), empty=not indices)


class StepLoader(DataLoader):
    """This process's part of each batch of an epoch.

    Args:
        rows: a table's or a stream's.
        size: of a batch, over all processes.
        collate: makes samples a batch.
        seed: of the order of a table's rows; None for their own.
        options: `DataLoader`'s own.
    """

    def __init__(
        self,
        rows: Rows,
        size: int,
        collate: Callable[[list[Any]], dict[str, Any]],
        seed: int | None = None,
        **options: Any,
    ):
        state = PartialState()
        self._steps = math.ceil(len(rows) / size)
        self._batches: StepBatches | None = None
        common = {"collate_fn": partial(_collate, collate), "worker_init_fn": leave_signals, **options}
        if isinstance(rows, StreamDataset):
            rows.share(state.process_index, state.num_processes)
            super().__init__(rows, batch_size=None, **common)
        else:
            self._batches = StepBatches(len(rows), size, state.process_index, state.num_processes, seed)
            super().__init__(_Chunks(rows), batch_sampler=self._batches, **common)
        self._source = rows

    def __len__(self) -> int:
        return self._steps

    def begin_epoch(self, epoch: int) -> None:
        """Read this epoch's rows next, from 0."""
        self._source.set_epoch(epoch)
        if self._batches is not None:
            self._batches.epoch = epoch


def _collate(collate: Callable[[list[Any]], dict[str, Any]], part: Chunk) -> dict[str, Any]:
    batch = collate(part.samples)
    return {**batch, STAND_IN: True} if part.empty else batch


class Share:
    """What this process has of a step, and what all have.

    Args:
        rows: how many rows are its own.
        weight: what the mean of its loss is over, see `Task.weight_of`; 0 for no rows.

    Attributes:
        places: of its rows among those of all processes.
        count: of these.
        factor: what its mean loss is to be multiplied by, so that the mean over processes, which their
            gradients become, is the mean over all rows.
    """

    def __init__(self, rows: int, weight: Tensor):
        state = PartialState()
        if state.num_processes == 1:
            self.places, self.count, self.factor = range(rows), rows, 1.0
            return
        own = torch.tensor([[rows, float(weight)]], dtype=torch.float64, device=state.device)
        every: Tensor = gather(own)  # type: ignore[assignment]
        counts = [int(count) for count in every[:, 0].tolist()]
        first = sum(counts[: state.process_index])
        self.places, self.count = range(first, first + rows), sum(counts)
        total = float(every[:, 1].sum())
        self.factor = float(weight) * state.num_processes / total if total else 0.0


def mean_of_processes(values: dict[str, float]) -> dict[str, float]:
    """The mean over processes of each of some numbers."""
    state = PartialState()
    if state.num_processes == 1 or not values:
        return values
    own = torch.tensor([list(values.values())], dtype=torch.float64, device=state.device)
    every: Tensor = gather(own)  # type: ignore[assignment]
    return dict(zip(values, every.mean(dim=0).tolist(), strict=True))
