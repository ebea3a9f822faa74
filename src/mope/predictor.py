"""Load a run and predict rows: no trainer, and no table needed."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset as HubDataset
from datasets import concatenate_datasets
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mope.data.dataset import RowDataset, collate
from mope.data.frames import by_input, frame_rows
from mope.data.readers import Reader, build_readers
from mope.data.splits import Report, cells_of, check_split, open_splits
from mope.data.table import MemoryTable, Table, open_table
from mope.device import Precision, autocast, frozen_dtype, pick_device
from mope.errors import UserError
from mope.hub import find_run, forget_tables, is_on_hub, push_run
from mope.logs import say
from mope.media.cells import BadCell, home_of, is_missing
from mope.media.images import picture_size
from mope.model import FusionModel
from mope.predictions import Prediction, Predictions, as_dataset
from mope.remote import look_anew
from mope.tasks.metrics import Metrics, compute_metrics

if TYPE_CHECKING:
    import pandas


class _Tolerant(Dataset):
    """Samples, or why a row has none, each with its place in the table."""

    def __init__(self, rows: RowDataset):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> list[tuple[int, Any, str | None]]:
        self.rows.fetched(indices)
        return [self[index] for index in indices]

    def __getitem__(self, index: int) -> tuple[int, Any, str | None]:
        try:
            return index, self.rows[index], None
        except BadCell as error:
            return index, None, str(error)


class Predictor:
    """A trained run, ready to predict.

    Args:
        run: the run's folder, or the hub's repository of one, `hub:OWNER/NAME`.
        device: `cpu`, `cuda` or `mps`; None for the best there is.
        precision: arithmetic, as `training.precision`; None for the run's own.
        batch_size: rows per forward pass.
        workers: processes that read rows, where there are many.

    Raises:
        UserError: the folder holds no finished run, or its encoders can't be loaded.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        device: str | None = None,
        precision: Precision | None = None,
        batch_size: int = 32,
        workers: int = 0,
    ):
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: at least one row is predicted at a time.")
        self.run = find_run(run)
        self.device = pick_device(device)
        model = FusionModel.from_pretrained(self.run).to(self.device)
        self.settings = model.settings
        if is_on_hub(run):
            forget_tables(self.settings)
        self.precision = precision or self.settings.training.precision
        self.model = model.freeze_for_inference(frozen_dtype(self.precision, self.device))
        self.batch_size, self.workers = batch_size, workers
        self.readers: dict[str, Reader] = build_readers(
            {name: self.settings.inputs[name] for name in self.model.fusion.encoders}
        )

    def __repr__(self) -> str:
        settings = self.settings
        inputs = ", ".join(f"{name} ({settings.inputs[name].kind})" for name in self.readers)
        labels = self.model.task.labels
        shown = ", ".join(labels[:5]) + (f", ... ({len(labels)})" if len(labels) > 5 else "")
        return f"<Predictor of {self.run}: {settings.task} from {inputs}; {shown}; on {self.device}>"

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>"

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process reads the run's folder again."""
        options = {"precision": self.precision, "batch_size": self.batch_size, "workers": self.workers}
        return _again, (str(self.run.absolute()), {"device": str(self.device), **options})

    def predict(
        self, rows: Any, folder: str | Path | None = None, *, abstain_below: float | None = None
    ) -> Predictions:
        """Predict rows: one prediction per row, in order; a row that can't be used says why.

        Args:
            rows: a file's name, a pandas or polars frame, a `datasets.Dataset`, a list of mappings, or one
                mapping, which is one row. Cells are by column or by input name. A picture is
                a path, bytes, a PIL image, or an array or tensor of its pixels.
            folder: what paths in the rows are relative to; None for their file's folder; for rows in memory
                that is the run's own `data.folder`, or the current one.
            abstain_below: probability of the likeliest label below which none is named; None for any.

        Raises:
            UserError: it is no table, a column is missing, or the task hasn't one label by name.
        """
        if abstain_below is not None and self.settings.task != "classification":
            raise UserError(
                f"A {self.settings.task} names its label whatever its probability: no abstaining."
            )
        source = self._rows([rows] if isinstance(rows, Mapping) else rows, folder)
        predictions = Predictions((Prediction() for _ in range(len(source))), self.model.task.classes)
        if not predictions:
            return predictions
        for places, batch, errors in self.batches(RowDataset(source, self.readers)):
            for place, error in errors.items():
                predictions[place].error = error
            if batch is not None:
                found = self.predict_batch(batch, self._sizes(source, places))
                for place, prediction in zip(places, found, strict=True):
                    if abstain_below is not None and max(prediction.probabilities.values()) < abstain_below:
                        prediction.label = None
                    predictions[place] = prediction
        return predictions

    def predict_proba(self, rows: Any, folder: str | Path | None = None) -> "pandas.DataFrame":
        """The probability of each label, a column each, in the order of the rows; see `predict`.

        Raises:
            UserError: the task has no labels by name; or see `predict`.
        """
        import pandas

        classes = self.model.task.classes
        if not classes:
            raise UserError(f"A {self.settings.task} has no probabilities: use predict.")
        rows = [rows] if isinstance(rows, Mapping) else rows
        found = [prediction.probabilities for prediction in self.predict(rows, folder)]
        return pandas.DataFrame([[one.get(name) for name in classes] for one in found], columns=classes)

    def _rows(self, rows: Any, folder: str | Path | None) -> Table:
        """Rows of any kind as a table, by column."""
        if isinstance(rows, str | Path | Table):
            return open_table(rows, self.settings.data.trusted, self.settings.data.encoding, folder)
        if isinstance(rows, HubDataset):
            return open_table(rows, self.settings.data.trusted, folder=folder or self.settings.data.folder)
        look_anew()
        found = frame_rows(rows)
        home = home_of(folder or self.settings.data.folder or "", self.settings.data.trusted)
        if isinstance(found, HubDataset):
            return Table(found, home)
        columns = {name: reader.columns for name, reader in self.readers.items()}
        tables = {name for name in columns if self.settings.inputs[name].kind == "table"}
        return MemoryTable([by_input(row, columns, tables) for row in found], home)

    def push_to_hub(self, repository: str, *, private: bool = True) -> str:
        """Upload the run, see `mope.hub.push_run`.

        Returns:
            The repository's address.
        """
        return push_run(self.run, repository, private=private)

    def predict_batch(
        self, batch: Mapping[str, Mapping[str, Tensor]], sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Prediction]:
        """Predict rows that are a batch already, as the readers and `collate` make it.

        Args:
            batch: the encoders' keyword arguments by input name.
            sizes: (height, width) of each row's picture, where masks are wanted.
        """
        logits, scores = self.forward_batch(batch)
        task = self.model.task
        labels, probabilities = task.decide(logits, sizes), task.probabilities(logits).tolist()
        return [
            Prediction(
                label,
                dict(zip(task.classes, probabilities[place], strict=True)),
                [layer[place].tolist() for layer in scores],
            )
            for place, label in enumerate(labels)
        ]

    def table(self, data: Any = None, folder: str | Path | None = None) -> Table:
        """A table as the run's config reads tables.

        Args:
            data: its file, or rows in memory, see `open_table`; None for the test rows of the run's config.
            folder: what paths in it are relative to; None for the file's folder, or the current one.

        Raises:
            UserError: it can't be read, or the config names no test rows.
        """
        if data is not None:
            return open_table(data, self.settings.data.trusted, self.settings.data.encoding, folder)
        splits = open_splits(self.settings)
        if "test" not in splits:
            raise UserError(f"The config of {self.run} names no test rows: say which with --data FILE.")
        return splits["test"]

    def predict_dataset(self, dataset: HubDataset, routing: bool = False) -> HubDataset:
        """A dataset with a column more for each part of its rows' predictions.

        Args:
            dataset: rows with the run's columns.
            routing: whether to add the routing scores of every layer and expert.

        Returns:
            The dataset, and after its own columns those of `predictions.as_rows`, each with `predicted_`
            before its name: `predicted_label`, `predicted_error`, ...

        Raises:
            UserError: a column is missing, or there is one already that would be added.
        """
        table = Table(dataset)
        found = as_dataset(self.predict(table), self.model.task.classes, routing)
        found = found.rename_columns({name: f"predicted_{name}" for name in found.column_names})
        if twice := sorted(set(found.column_names) & set(dataset.column_names)):
            raise UserError(f"The dataset has a column '{twice[0]}' already: rename or remove it first.")
        return concatenate_datasets([dataset, found], axis=1)

    def _sizes(self, rows: Table, places: Sequence[int]) -> list[tuple[int, int]] | None:
        """(height, width) of rows' pictures, where masks are wanted."""
        if self.settings.picture is None:
            return None
        cell = self.readers[self.settings.picture].cell
        return [picture_size(cell(rows[place]), rows.folder) for place in places]

    def outcomes(self, table: Table) -> tuple[Tensor, Tensor]:
        """What `Task.condense` gives of the logits and targets of a table whose rows can all be used."""
        task = self.model.task
        dataset = RowDataset(
            table, self.readers, task, self.settings.data.label, picture=self.settings.picture
        )
        parts, targets = [], []
        for _, batch, errors in self.batches(dataset):
            if errors or batch is None:
                raise UserError(f"{table.name} has rows that can't be used: check it first.")
            labels = batch.pop("labels")
            found, wanted = task.condense(self.forward_batch(batch)[0], labels)
            parts.append(found)
            targets.append(wanted)
        return torch.cat(parts), torch.cat(targets)

    @torch.inference_mode()
    def forward_batch(self, batch: Mapping[str, Mapping[str, Tensor]]) -> tuple[Tensor, list[Tensor]]:
        """Logits of a batch, and the routing scores of each layer (B, k), on the CPU."""
        with autocast(self.precision, self.device):
            output = self.model(**self.to_device(batch))
        return output.logits.cpu(), [scores.cpu() for scores in output.scores]

    def to_device(self, batch: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """A batch on the model's device."""
        return {name: {key: t.to(self.device) for key, t in inputs.items()} for name, inputs in batch.items()}

    def batches(
        self, dataset: RowDataset
    ) -> Iterator[tuple[list[int], dict[str, Any] | None, dict[int, str]]]:
        """Places of the rows that can be used, their batch, and by place why others can't be."""
        loader = DataLoader(
            _Tolerant(dataset),
            self.batch_size,
            num_workers=self.workers if len(dataset) > 200 else 0,
            collate_fn=partial(_collate, readers=self.readers, task=dataset.task),
        )
        quiet = None if len(dataset) > self.batch_size else True
        yield from tqdm(loader, desc=f"predicting {dataset.table.name}", leave=False, disable=quiet)


def _again(run: str, options: dict[str, Any]) -> Predictor:
    return Predictor(run, **options)


def _collate(
    samples: Sequence[tuple[int, Any, str | None]], readers: Mapping[str, Reader], task: Any
) -> tuple[list[int], dict[str, Any] | None, dict[int, str]]:
    """Places of the good rows, their batch, and the errors of the others by place."""
    good = [(place, sample) for place, sample, error in samples if error is None]
    errors = {place: error for place, _, error in samples if error is not None}
    batch = collate([sample for _, sample in good], readers, task) if good else None
    return [place for place, _ in good], batch, errors


def evaluate(
    run: str | Path,
    data: Any = None,
    *,
    folder: str | Path | None = None,
    skip_bad_rows: bool = False,
    by_pattern: bool = False,
    device: str | None = None,
    report: Report = say,
) -> dict[str, Any]:
    """A run's metrics on its test rows, or on another table.

    Args:
        run: the run's folder.
        data: a table's file, or rows in memory; None for the test rows of the run's config.
        folder: what paths in it are relative to; None for the file's folder, or the current one.
        skip_bad_rows: leave out rows that can't be used, and say how many; else they are refused.
        by_pattern: also give the metrics of the rows that have the same inputs, by what these are.
        device: see `Predictor`.
        report: takes each line that is said.

    Returns:
        Metrics by name, and `rows`; with `by_pattern`, the same under `patterns`, by such as `image+text`.
    """
    predictor = Predictor(run, device=device, workers=1)
    settings = predictor.settings.model_copy(deep=True)
    settings.data.bad_rows = "skip" if skip_bad_rows else "refuse"
    columns = cells_of(settings.inputs[name] for name in predictor.readers)
    table = check_split(settings, predictor.table(data, folder), columns, predictor.model.task, report)
    logits, targets = predictor.outcomes(table)
    task = predictor.model.task
    result: dict[str, Any] = Metrics(compute_metrics(task, logits, targets) | {"rows": len(table)})
    if by_pattern:
        places: dict[str, list[int]] = {}
        for place, row in enumerate(table):
            places.setdefault(_pattern(row, predictor.readers), []).append(place)
        result["patterns"] = {
            pattern: {**compute_metrics(task, logits[rows], targets[rows]), "rows": len(rows)}
            for pattern, rows in sorted(places.items())
        }
    return result


def _pattern(row: Mapping[str, Any], readers: Mapping[str, Reader]) -> str:
    """Names of the inputs that a row has, such as `image+text`."""
    there = [name for name, reader in readers.items() if not is_missing(reader.cell(row))]
    return "+".join(there) or "none"
