"""From a table's rows to batches."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from mope.data.readers import ImageReader, Reader
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
        picture: name of the input whose picture the label is a mask of, so that both are turned alike; None
            for a label that is none.
    """

    def __init__(
        self,
        table: Table,
        readers: Mapping[str, Reader],
        task: Task | None = None,
        label: str | None = None,
        train: bool = False,
        picture: str | None = None,
    ):
        # A column of which every cell may be missing may be missing itself.
        table.require(*(reader.column for reader in readers.values() if not reader.learns))
        if task is not None and label is not None:
            table.require(label)
        self.table, self.readers, self.task, self.label, self.train = table, readers, task, label, train
        self.picture = picture

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._sample(self.table[index])

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """The samples of a batch, whose rows are read at once."""
        return [self._sample(row) for row in self.table.rows_at(indices)]

    def _sample(self, row: dict[str, Any]) -> dict[str, Any]:
        folder = self.table.folder
        sample: dict[str, Any] = {}
        target: Any = None
        if self.task is not None and self.label is not None:
            target = sample["labels"] = self.task.encode(row[self.label], folder)
        for name, reader in self.readers.items():
            cell = row.get(reader.column)
            if name == self.picture and target is not None:
                assert isinstance(reader, ImageReader)
                sample[name], sample["labels"] = reader.read_pair(cell, target, folder, self.train)
            else:
                sample[name] = reader.sample(cell, folder, self.train)
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
