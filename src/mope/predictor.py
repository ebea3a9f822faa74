"""Load a run and predict rows: no trainer, and no table needed."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset as HubDataset
from datasets import IterableDataset, concatenate_datasets
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from mope.data.dataset import RowDataset, RowReader, collate
from mope.data.feed import (
    Numbered,
    Tolerant,
    ToMeasure,
    ToPredict,
    as_table,
    collate_tolerant,
    one_after_another,
    read_batches,
)
from mope.data.readers import Reader, build_readers
from mope.data.splits import cells_of, open_splits, row_check
from mope.data.stream import Stream
from mope.data.table import Table, open_table
from mope.device import Precision, arithmetic, autocast, frozen_dtype, pick_device
from mope.encoders.pool import SHARED
from mope.errors import UserError
from mope.evaluation import Measured, measure
from mope.files import cache_folder, can_cache
from mope.fusion.base import taking_turns
from mope.graphs import Batch, Compile, faster, require_compile
from mope.hub import find_run, forget_tables, is_on_hub, push_run
from mope.media.images import picture_size
from mope.model import FusionModel
from mope.predictions import PredictedRows, Prediction, Predictions, as_dataset
from mope.run import read_run

if TYPE_CHECKING:
    import pandas


_NO_NUMBER = "what the model makes of it is no finite number"


class Predictor:
    """A trained run, ready to predict.

    Frozen encoders are shared by all predictors of a process whose runs have the same ones: leave them as
    they are.

    Args:
        run: the run's folder, or the hub's repository of one, `hub:OWNER/NAME`.
        device: `cpu`, `cuda` or `mps`; None for the best there is.
        precision: arithmetic, as `training.precision`; None for the run's own.
        batch_size: rows per forward pass.
        workers: processes that read rows, where there are many.
        compile: how passes are made faster once a few have been slow: "default" by `torch.compile`, "graphs"
            by CUDA graphs, "none" not at all.

    Raises:
        UserError: the folder holds no finished run, its encoders can't be loaded, or the device has no such
            passes.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        device: str | None = None,
        precision: Precision | None = None,
        batch_size: int = 32,
        workers: int = 0,
        compile: Compile = "none",
    ):
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: at least one row is predicted at a time.")
        if workers < 0:
            raise UserError(f"workers is {workers}: none, 0, is the least.")
        self.run = find_run(run)
        self.device, self.compile = pick_device(device), compile
        require_compile(compile, self.device)
        self.precision: Precision = precision or read_run(self.run)[0].training.precision
        self.arithmetic = arithmetic(self.precision, self.device)
        dtype = frozen_dtype(self.precision, self.device)
        model = FusionModel.from_pretrained(self.run, lambda entry: SHARED.get(entry, self.device, dtype))
        self.settings = model.settings
        if is_on_hub(run):
            forget_tables(self.settings)
        self.model = model.to(self.device).freeze_for_inference(dtype)
        with autocast(self.precision, self.device):
            self.model.settle_prompts()
        self.batch_size, self.workers = batch_size, workers
        self.readers: dict[str, Reader] = build_readers(
            {name: self.settings.inputs[name] for name in self.model.fusion.encoders}
        )
        longest = {name: getattr(reader, "max_length", 0) for name, reader in self.readers.items()}
        self._pass = faster(partial(_forward, self.model), compile, self.device, longest)

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
        names = ("precision", "batch_size", "workers", "compile")
        options = {"device": str(self.device), **{name: getattr(self, name) for name in names}}
        return _again, (str(self.run.absolute()), options)

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
        self.require_abstaining(abstain_below)
        source = as_table([rows] if isinstance(rows, Mapping) else rows, self.settings, self.readers, folder)
        predictions = Predictions((Prediction() for _ in range(len(source))), self.model.task.classes)
        if not predictions:
            return predictions
        for places, batch, errors in self.batches(RowDataset(source, self.readers)):
            for place, error in errors.items():
                predictions[place].error = error
            if batch is not None:
                found = self.predict_batch(batch, self.sizes(source, places))
                for place, prediction in zip(places, found, strict=True):
                    predictions[place] = prediction.abstained(abstain_below)
        return predictions

    def predict_stream(
        self, rows: Any, folder: str | Path | None = None, *, abstain_below: float | None = None
    ) -> Iterator[Prediction]:
        """Predict any number of rows, which are never all held: one prediction after another, in order.

        Args:
            rows: as for `predict`, which files are read row after row; also a pattern of files, an
                `IterableDataset`, or an iterator of mappings.
            folder, abstain_below: see `predict`.

        Raises:
            UserError: see `predict`; while iterating, a file can't be read on.
        """
        self.require_abstaining(abstain_below)
        rows = [rows] if isinstance(rows, Mapping) else rows
        source = one_after_another(rows, self.settings, self.readers, folder, self.batch_size)
        for part in self.predict_parts(source, abstain_below=abstain_below):
            yield from part.predictions

    def predict_parts(
        self,
        rows: Iterable[Numbered],
        keep: Sequence[str] = (),
        keep_all: bool = False,
        abstain_below: float | None = None,
    ) -> Iterator[PredictedRows]:
        """Predict rows that come one after another, a batch at a time.

        Args:
            rows: see `numbered`.
            keep: columns whose cells are wanted beside the predictions.
            keep_all: whether those are that a row has beside them, too.
            abstain_below: see `predict`.
        """
        read = ToPredict(RowReader(self.readers), keep, keep_all, self.settings.picture)
        for batch in read_batches(rows, read, self.readers, None, self.batch_size, self.workers):
            predictions = [Prediction(error=batch.errors.get(n)) for n in range(len(batch.numbers))]
            if batch.inputs is not None:
                sizes = [batch.extras[place].size for place in batch.good]
                found = self.predict_batch(batch.inputs, None if self.settings.picture is None else sizes)
                for place, prediction in zip(batch.good, found, strict=True):
                    predictions[place] = prediction.abstained(abstain_below)
            yield PredictedRows(batch.numbers, predictions, [extra.cells for extra in batch.extras])

    def stream(self, data: Any = None, folder: str | Path | None = None) -> Stream:
        """Rows with labels, one after another: as `table`, but files are never held."""
        own = self.settings.data
        if data is None and own.test is not None and own.split_column is None:
            data, folder = own.test, folder or own.folder
        if not isinstance(data, str | Path | IterableDataset):
            return Stream(self.table(data, folder))
        return Stream(data, own.trusted, own.encoding, folder, own.limits)

    def measure(self, stream: Stream, rows: Iterable[Numbered], skip_bad_rows: bool) -> Iterator[Measured]:
        """What `Task.condense` gives of rows' logits and targets, see `mope.evaluation.measure`.

        Args:
            stream: which the rows are of.
            rows: some of its rows.
            skip_bad_rows: whether those that can't be used are left out.
        """
        settings, task = self.settings, self.model.task
        columns = cells_of(settings.inputs[name] for name in self.readers)
        read = RowReader(self.readers, task, settings.data.label, picture=settings.picture)
        stream.require(*read.columns)
        wanted = ToMeasure(read, row_check(settings, columns, task))
        batches = read_batches(rows, wanted, self.readers, task, self.batch_size, self.workers)
        # Other seeds and methods are measured on the same rows. A recorded pass can't read files.
        kept = settings.data.cache_features and self.compile == "none" and can_cache()
        self.model.keep_features(cache_folder() / "features" if kept else None)
        try:
            yield from measure(batches, lambda inputs: self.forward_batch(inputs)[0], task, skip_bad_rows)
        finally:
            self.model.keep_features(None)

    def require_abstaining(self, abstain_below: float | None) -> None:
        """Make sure that the task can name no label.

        Raises:
            UserError: it can't.
        """
        if abstain_below is not None and self.settings.task != "classification":
            raise UserError(
                f"A {self.settings.task} names its label whatever its probability: no abstaining."
            )

    def experts(self) -> list[int]:
        """How many routing scores a prediction has of each layer, as a row of blanks shows."""
        blank = {name: reader.blank() for name, reader in self.readers.items()}
        return [layer.shape[1] for layer in self.forward_batch(collate([blank], self.readers, None))[1]]

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
        return self.decide(*self.forward_batch(batch), sizes)

    def decide(
        self, logits: Tensor, scores: Sequence[Tensor], sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Prediction]:
        """Predictions of logits and of each layer's routing scores (B, k); `sizes` as for `predict_batch`.

        A row whose numbers aren't all finite has an error instead.
        """
        task = self.model.task
        probabilities = task.probabilities(logits)
        finite = torch.stack([one.isfinite().flatten(1).all(1) for one in (logits, probabilities, *scores)])
        good = finite.all(0).nonzero().flatten().tolist()
        labels = task.decide(logits[good], None if sizes is None else [sizes[place] for place in good])
        found = [Prediction(error=_NO_NUMBER) for _ in range(len(logits))]
        for place, label in zip(good, labels, strict=True):
            if isinstance(label, float) and not math.isfinite(label):  # in its own units
                continue
            found[place] = Prediction(
                label,
                dict(zip(task.classes, probabilities[place].tolist(), strict=True)),
                [layer[place].tolist() for layer in scores],
            )
        return found

    def table(self, data: Any = None, folder: str | Path | None = None) -> Table:
        """A table as the run's config reads tables.

        Args:
            data: its file, or rows in memory, see `open_table`; None for the test rows of the run's config.
            folder: what paths in it are relative to; None for the file's folder, or the current one.

        Raises:
            UserError: it can't be read, or the config names no test rows.
        """
        if data is not None:
            own = self.settings.data
            return open_table(data, own.trusted, own.encoding, folder, own.limits)
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
        table = as_table(dataset, self.settings, self.readers)
        found = as_dataset(self.predict(table), self.model.task.classes, routing)
        found = found.rename_columns({name: f"predicted_{name}" for name in found.column_names})
        if twice := sorted(set(found.column_names) & set(dataset.column_names)):
            raise UserError(f"The dataset has a column '{twice[0]}' already: rename or remove it first.")
        return concatenate_datasets([dataset, found], axis=1)

    def sizes(self, rows: Table, places: Sequence[int]) -> list[tuple[int, int]] | None:
        """(height, width) of rows' pictures, where masks are wanted."""
        if self.settings.picture is None:
            return None
        cell = self.readers[self.settings.picture].cell
        return [picture_size(cell(rows[place]), rows.folder) for place in places]

    def outcomes(self, rows: Table | RowDataset) -> tuple[Tensor, Tensor]:
        """What `Task.condense` gives of the logits and targets of rows that can all be used."""
        task = self.model.task
        if isinstance(rows, RowDataset):
            dataset = rows
        else:
            label, picture = self.settings.data.label, self.settings.picture
            dataset = RowDataset(rows, self.readers, task, label, picture=picture)
        parts, targets = [], []
        for _, batch, errors in self.batches(dataset):
            if errors or batch is None:
                raise UserError(f"{dataset.table.name} has rows that can't be used: check it first.")
            labels = batch.pop("labels")
            found, wanted = task.condense(self.forward_batch(batch)[0], labels)
            parts.append(found)
            targets.append(wanted.clone())  # a worker's tensor keeps a file open
        return torch.cat(parts), torch.cat(targets)

    @torch.inference_mode()
    def forward_batch(self, batch: Mapping[str, Mapping[str, Tensor]]) -> tuple[Tensor, list[Tensor]]:
        """Logits of a batch, and the routing scores of each layer (B, k), on the CPU."""
        with taking_turns(self.model.fusion), autocast(self.precision, self.device):
            logits, *scores = self._pass(self.model.normed(self.to_device(batch)))
        return logits.cpu(), [layer.cpu() for layer in scores]

    def to_device(self, batch: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """A batch on the model's device."""
        return {name: {key: t.to(self.device) for key, t in inputs.items()} for name, inputs in batch.items()}

    def batches(
        self, dataset: RowDataset
    ) -> Iterator[tuple[list[int], dict[str, Any] | None, dict[int, str]]]:
        """Places of the rows that can be used, their batch, and by place why others can't be."""
        loader = DataLoader(
            Tolerant(dataset),
            self.batch_size,
            num_workers=self.workers if len(dataset) > 200 else 0,
            collate_fn=partial(collate_tolerant, readers=self.readers, task=dataset.task),
        )
        quiet = None if len(dataset) > self.batch_size else True
        yield from tqdm(loader, desc=f"predicting {dataset.table.name}", leave=False, disable=quiet)


def _forward(model: FusionModel, batch: Batch) -> list[Tensor]:
    """Logits of a batch, and the routing scores of each layer."""
    output = model(**batch)
    return [output.logits, *output.scores]


def _again(run: str, options: dict[str, Any]) -> Predictor:
    return Predictor(run, **options)
