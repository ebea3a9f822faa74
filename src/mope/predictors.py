"""Several runs over the same frozen encoders, and rows of all of them in common passes."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mope.data.dataset import RowDataset
from mope.data.feed import Tolerant, as_table, collate_tolerant
from mope.device import Precision, autocast
from mope.errors import UserError
from mope.fusion.base import taking_turns
from mope.fusion.together import fuse_together
from mope.graphs import Compile
from mope.predictions import Prediction, Predictions
from mope.predictor import Predictor

Sizes = Sequence[tuple[int, int]] | None


class Share(NamedTuple):
    """One run's part of a batch.

    Attributes:
        predictor: the run.
        batch: its rows, as the readers and `collate` make them.
        sizes: (height, width) of each row's picture, where masks are wanted.
    """

    predictor: Predictor
    batch: Mapping[str, Mapping[str, Tensor]]
    sizes: Sizes = None


@torch.inference_mode()
def predict_together(shares: Sequence[Share]) -> list[list[Prediction]]:
    """Predict rows of several runs; those over the same encoders go through them in common passes.

    A row's prediction is that of its run alone, to rounding.

    Args:
        shares: each run's rows, at least one.

    Returns:
        A prediction for each row of each share.
    """
    found: dict[int, list[Prediction]] = {}
    places: dict[tuple[Any, Any], list[int]] = {}
    for place, share in enumerate(shares):
        places.setdefault((share.predictor.device, share.predictor.arithmetic), []).append(place)
    for (device, _), some in places.items():
        if len(some) == 1:
            share = shares[some[0]]
            found[some[0]] = share.predictor.predict_batch(share.batch, share.sizes)
            continue
        models = [shares[place].predictor.model for place in some]
        fusions = [model.fusion for model in models]
        with taking_turns(*fusions), autocast(shares[some[0]].predictor.precision, device):
            batches = [shares[place].predictor.to_device(shares[place].batch) for place in some]
            normed = [model.normed(batch) for model, batch in zip(models, batches, strict=True)]
            outputs = fuse_together(fusions, normed)
            logits = [
                model.decode(output, batch)
                for model, output, batch in zip(models, outputs, normed, strict=True)
            ]
        for place, output, one in zip(some, outputs, logits, strict=True):
            scores = [layer.cpu() for layer in output.scores]
            found[place] = shares[place].predictor.decide(one.cpu(), scores, shares[place].sizes)
    return [found[place] for place in range(len(shares))]


class Predictors:
    """Trained runs, ready to predict, that hold one copy of the encoders they have in common.

    Args:
        runs: their folders, which are named by their last part; or folders by name.
        device, precision, batch_size, workers: see `Predictor`; a batch has rows of several runs.
        compile: see `Predictor`; of batches with rows of one run alone.

    Attributes:
        runs: predictors by name.

    Raises:
        UserError: there is no run, two have the same name, or one can't be loaded.
    """

    def __init__(
        self,
        runs: Sequence[str | Path] | Mapping[str, str | Path],
        *,
        device: str | None = None,
        precision: Precision | None = None,
        batch_size: int = 32,
        workers: int = 0,
        compile: Compile = "none",
    ):
        options: dict[str, Any] = {
            "device": device,
            "precision": precision,
            "batch_size": batch_size,
            "compile": compile,
        }
        self.batch_size, self.workers = batch_size, workers
        self.runs = {
            name: Predictor(run, workers=workers, **options) for name, run in named_runs(runs).items()
        }

    def __getitem__(self, name: str) -> Predictor:
        return self.runs[name]

    def predict(
        self, rows: Mapping[str, Any], folder: str | Path | None = None, *, abstain_below: float | None = None
    ) -> dict[str, Predictions]:
        """Predict rows of several runs.

        Args:
            rows: by the run's name, as `Predictor.predict` takes them.
            folder, abstain_below: see there.

        Returns:
            Predictions by the run's name, one per row, in order.

        Raises:
            UserError: there is no such run; or see `Predictor.predict`.
        """
        found, sources = {}, {}
        for name, some in rows.items():
            if name not in self.runs:
                raise UserError(f"There is no run '{name}': there are {', '.join(self.runs)}.")
            predictor = self.runs[name]
            predictor.require_abstaining(abstain_below)
            some = [some] if isinstance(some, Mapping) else some
            table = as_table(some, predictor.settings, predictor.readers, folder)
            found[name] = Predictions((Prediction() for _ in range(len(table))), predictor.model.task.classes)
            if len(table):
                sources[name] = RowDataset(table, predictor.readers)
        for parts in self._batches(sources):
            shares = []
            for name, (places, batch, errors) in parts.items():
                for place, error in errors.items():
                    found[name][place].error = error
                if batch is not None:
                    sizes = self.runs[name].sizes(sources[name].table, places)
                    shares.append((name, places, Share(self.runs[name], batch, sizes)))
            made = predict_together([share for *_, share in shares])
            for (name, places, _), predictions in zip(shares, made, strict=True):
                for place, prediction in zip(places, predictions, strict=True):
                    found[name][place] = prediction.abstained(abstain_below)
        return found

    def _batches(self, sources: Mapping[str, RowDataset]) -> Iterator[dict[str, Any]]:
        """What `collate_tolerant` gives of each run's rows in a batch, by its name."""
        rows = _Rows(sources)
        if len(rows):
            yield from DataLoader(
                rows,
                self.batch_size,
                num_workers=self.workers if len(rows) > 200 else 0,
                collate_fn=partial(_collate, sources=sources),
            )


def named_runs(runs: Sequence[str | Path] | Mapping[str, str | Path]) -> dict[str, str | Path]:
    """Runs by name.

    Raises:
        UserError: there is none, or two have the same name.
    """
    if isinstance(runs, str | Path):
        runs = [runs]
    found = dict(runs) if isinstance(runs, Mapping) else {}
    for run in [] if isinstance(runs, Mapping) else runs:
        name = str(run).rstrip("/").rpartition("/")[2]
        name = name if name not in ("", ".", "..") else Path(run).absolute().resolve().name
        if name in found:
            raise UserError(f"Two runs are called '{name}', {found[name]} and {run}: give them other names.")
        found[name] = run
    if not found:
        raise UserError("There is no run: name a folder of one.")
    return found


class _Rows(Dataset):
    """The rows of several runs behind one another."""

    def __init__(self, sources: Mapping[str, RowDataset]):
        self.sources = {name: Tolerant(rows) for name, rows in sources.items()}
        self.places = [(name, place) for name, rows in sources.items() for place in range(len(rows))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitems__(self, indices: list[int]) -> list[tuple[str, list[Any]]]:
        wanted = groupby((self.places[index] for index in indices), key=lambda entry: entry[0])
        return [
            (name, self.sources[name].__getitems__([place for _, place in some])) for name, some in wanted
        ]


def _collate(parts: Sequence[tuple[str, list[Any]]], sources: Mapping[str, RowDataset]) -> dict[str, Any]:
    return {name: collate_tolerant(samples, sources[name].readers, None) for name, samples in parts}
