"""From a table's rows to batches."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from mope.data.readers import Reader
from mope.data.table import Table
from mope.tasks import Task


class RowDataset(Dataset):
    """A table as samples for a data loader.

    A sample is a mapping of input names to what the readers made of the cells, and `labels`, the encoded
    label, if there is one.

    Args:
        table: the rows.
        readers: by input name.
        task: encodes labels; None to leave them out.
        label: the label's column.
        train: whether to augment.
    """

    def __init__(
        self,
        table: Table,
        readers: Mapping[str, Reader],
        task: Task | None = None,
        label: str | None = None,
        train: bool = False,
    ):
        # A column of which every cell may be missing may be missing itself.
        table.require(*(reader.column for reader in readers.values() if not reader.learns))
        if task is not None and label is not None:
            table.require(label)
        self.table, self.readers, self.task, self.label, self.train = table, readers, task, label, train

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._sample(self.table[index])

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """The samples of a batch, whose rows are read at once."""
        return [self._sample(row) for row in self.table.rows_at(indices)]

    def _sample(self, row: dict[str, Any]) -> dict[str, Any]:
        sample = {
            name: reader.sample(row.get(reader.column), self.table.folder, self.train)
            for name, reader in self.readers.items()
        }
        if self.task is not None and self.label is not None:
            sample["labels"] = self.task.encode(row[self.label])
        return sample


def collate(
    samples: Sequence[Mapping[str, Any]], readers: Mapping[str, Reader], task: Task | None
) -> dict[str, Any]:
    """Samples as a batch: `{"image": {...}, "text": {...}, "labels": ...}`."""
    batch: dict[str, Any] = {
        name: reader.batch([sample[name] for sample in samples]) for name, reader in readers.items()
    }
    if task is not None and "labels" in samples[0]:
        batch["labels"] = task.targets([sample["labels"] for sample in samples])
    return batch
