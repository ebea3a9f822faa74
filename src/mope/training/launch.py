"""Training: from a config to a run's folder."""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import send_to_device, set_seed
from torch import Tensor
from torch.utils.data import Subset
from transformers import EarlyStoppingCallback, EvalPrediction, PrinterCallback, TrainerCallback

from mope.config import Config
from mope.data.dataset import StreamDataset, collate
from mope.data.fields import with_fields_of
from mope.data.splits import Report
from mope.device import arithmetic_name, autocast, frozen_dtype, pick_device, reset_peak_memory
from mope.files import cache_folder, replacing
from mope.heads import LinearHead
from mope.lock import writing
from mope.logs import say
from mope.model import FusionModel
from mope.run import CHECKPOINTS, CONFIG, read_run
from mope.tasks import Task
from mope.tasks.metrics import compute_metrics, deciding_metric
from mope.training.arguments import reporters, training_arguments
from mope.training.budget import Budget
from mope.training.checkpoints import explained, last_checkpoint
from mope.training.collapse import collapse
from mope.training.folder import Learned, check_folder, result_of, write_run
from mope.training.probe import features_of, fit_probe, require_linear, require_probe, start_head
from mope.training.progress import ProgressBar
from mope.training.rows import Rows, drawn, first_batches, prepare
from mope.training.sharding import check_sharding, whole_state
from mope.training.stopping import Saver
from mope.training.trainer import FusionTrainer

BEGINS_FROM = 512
"""Rows that a model which begins from rows is shown."""

HEAD_BEGINS_FROM = 1024
"""Rows that a head which begins as a probe is fitted to."""


def train(
    config: Config,
    tables: Mapping[str, Any] | None = None,
    *,
    resume: bool = False,
    report: Report = say,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Train a model and write its run's folder.

    Args:
        config: the settings.
        tables: by split, instead of the config's: whatever `open_table` takes, to train on also an
            `IterableDataset`.
        resume: continue an unfinished run in the folder; a finished one is left as it is.
        report: takes each line that is said; by default the logger "mope" does.
        callbacks: transformers' callbacks of its `Trainer`, beside the library's own.

    Returns:
        The content of `metrics.json`: the validation metrics of the best epoch, and the history.

    Raises:
        UserError: the config, the data or the folder is wrong.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    first = os.environ.get("RANK", "0") == "0"  # of several processes one writes
    with writing(Path(config.output)) if first else nullcontext():
        return _train(config, tables, resume, report, callbacks)


def _train(
    config: Config,
    tables: Mapping[str, Any] | None,
    resume: bool,
    report: Report,
    callbacks: Sequence[TrainerCallback],
) -> dict[str, Any]:
    folder = Path(config.output)
    check_sharding(config)
    if (finished := check_folder(folder, config, resume, report)) is not None:
        return finished
    if resume and (folder / CONFIG).is_file():
        config = with_fields_of(config, read_run(folder, finished=False)[0])
    started = time.monotonic()
    device = pick_device(config.training.device)
    set_seed(config.training.seed)
    model, datasets = prepare(config, tables, report)
    config = model.settings
    if config.data.cache_features:
        model.keep_features(cache_folder() / "features")
    model.freeze(frozen_dtype(config.training.precision, device))
    _say_plan(model, datasets, device, report)
    counts = {f"{split}_rows": len(rows) for split, rows in datasets.items()}
    job = _Job(config, model, datasets, device, report, started, callbacks)
    learned = job.probe() if config.training.solver == "lbfgs" else job.descend()
    if (skipped := datasets["train"].skipped()) is not None:
        report(skipped)
    metric = deciding_metric(model.task, config.training.metric)[0]
    result = result_of(model, learned, metric, time.monotonic() - started, device)
    state = whole_state(model)  # of all processes
    if PartialState().is_main_process:
        write_run(folder, model, state, counts, result)
    return result


@dataclass(frozen=True)
class _Job:
    """A training that begins.

    Attributes:
        config: the settings.
        model: untrained.
        datasets: rows by split.
        device: where it runs.
        report: takes each line that is said.
        started: when, on the monotonic clock.
        callbacks: of the caller's.
    """

    config: Config
    model: FusionModel
    datasets: Mapping[str, Rows]
    device: torch.device
    report: Report
    started: float
    callbacks: Sequence[TrainerCallback] = ()

    def descend(self) -> Learned:
        """Train by gradient steps, with checkpoints."""
        settings = self.config.training
        checkpoint = last_checkpoint(Path(self.config.output) / CHECKPOINTS, self.report)
        if checkpoint is None and settings.begin_from is not None:
            self.model.begin_from(settings.begin_from)
        elif checkpoint is None and self.model.begins_from_rows:
            self._begin()
        if checkpoint is None and settings.begin_from is None and settings.head_start == "probe":
            self._start_head()
        task = self.model.task
        judge = _Judge(task, *deciding_metric(task, settings.metric))
        saver = Saver(settings.save_minutes, self.config.output, self.report)
        trainer = self._trainer(judge, saver)
        judge.steps = lambda: trainer.state.global_step
        self._write_config()
        reset_peak_memory(self.device)
        if settings.gradient_checkpointing:
            for name in self.model.fusion.encoders:
                self.model.fusion.encoder(name).encoder.gradient_checkpointing()
        if settings.compile:
            self.model.compile()
        # Each process draws dropout of its own; weights, order, routing noise and augmentation are shared.
        set_seed(settings.seed, device_specific=True)
        with explained(Path(self.config.output), "The run"), saver.listening():
            trainer.train(resume_from_checkpoint=checkpoint)
        history = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
        timer = trainer.timer
        times = {"step_milliseconds": timer.step_milliseconds, "waiting_share": timer.waiting_share}
        best = trainer.state.best_global_step
        if (collapsed := collapse(history, best, self.config)) is not None:
            self.report(collapsed)
        if judge.step != best:  # it was before this process began
            found = trainer.predict(self.datasets["validation"])  # type: ignore[arg-type]
            judge.kept = torch.as_tensor(found.predictions), torch.as_tensor(found.label_ids)
        assert judge.kept is not None
        return Learned(history, best, times, task.calibrate(*judge.kept))

    def probe(self) -> Learned:
        """Fit a linear head to frozen features, see `fit_probe`."""
        require_probe(self.model)
        require_linear(self.model, self.datasets["train"])
        self._write_config()
        reset_peak_memory(self.device)
        metric, greater = deciding_metric(self.model.task, self.config.training.metric)
        features = {split: self._features(rows) for split, rows in self.datasets.items()}
        history = fit_probe(self.model, *features["train"], *features["validation"], metric, greater)
        best = next(entry for entry in history if entry["step"])
        value = best[f"eval_{metric}"]
        self.report(f"linear probe  penalty {best['penalty']:g}  validation {metric} {value:.3f}")
        unseen, expected = features["validation"]
        with torch.no_grad():
            logits = self.model.head(unseen)
        outcome = self.model.task.condense(logits.cpu(), expected.cpu())
        times: dict[str, float | None] = {"step_milliseconds": None, "waiting_share": None}
        return Learned(history, best["step"], times, self.model.task.calibrate(*outcome))

    def _begin(self) -> None:
        """Let the model start from some training rows, the same in every process."""
        settings = self.config.training
        rows, size = self.datasets["train"], 2 * settings.batch_size

        def batches() -> Iterator[Any]:
            for batch in first_batches(rows, BEGINS_FROM, size, settings.seed, self.model.task):
                yield send_to_device(batch, self.device)

        self.model.to(self.device)
        with autocast(settings.precision, self.device):
            self.model.begin(batches)

    def _start_head(self) -> None:
        """Fit a linear head to what some training rows' features say, before anything else learns."""
        rows = self.datasets["train"]
        if not isinstance(self.model.head, LinearHead) or isinstance(rows, StreamDataset):
            return
        chosen = drawn(len(rows), HEAD_BEGINS_FROM, self.config.training.seed)
        # What is skipped here is met again, and counted then.
        start_head(self.model, *self._features(Subset(rows.apart(), chosen)))

    def _features(self, rows: Any) -> tuple[Tensor, Tensor]:
        """Features that the model has now, and targets."""
        together = partial(collate, readers=self.datasets["train"].readers, task=self.model.task)
        size, workers = 2 * self.config.training.batch_size, self.config.data.workers
        self.model.to(self.device)
        with autocast(self.config.training.precision, self.device):
            return features_of(self.model, rows, together, size, self.device, workers)

    def _write_config(self) -> None:
        folder = Path(self.config.output)
        with explained(folder, "The run"), replacing(folder / CONFIG) as draft:
            draft.write_text(self.config.dump(), encoding="utf-8")

    def _budget(self) -> Budget | None:
        settings = self.config.training
        if settings.minutes is None:
            return None
        steps = math.ceil(len(self.datasets["validation"]) / (2 * settings.batch_size))
        return Budget(60 * settings.minutes, self.started, settings.warmup, settings.schedule, 2 * steps)

    def _trainer(self, judge: "_Judge", saver: Saver) -> FusionTrainer:
        config, model, datasets = self.config, self.model, self.datasets
        folder = Path(config.output)
        rows = len(datasets["train"])
        trainer = FusionTrainer(
            model,
            training_arguments(config, folder, rows, self.device, judge.metric, judge.greater),
            data_collator=partial(collate, readers=datasets["train"].readers, task=model.task),
            train_dataset=datasets["train"],
            eval_dataset=datasets["validation"],
            compute_metrics=judge,
            callbacks=[
                EarlyStoppingCallback(config.training.patience),
                saver,
                *reporters(config.training.report_to, folder),
                *([ProgressBar()] if sys.stderr.isatty() or "ipykernel" in sys.modules else []),
                *self.callbacks,
            ],
            report=self.report,
            budget=self._budget(),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


class _Judge:
    """Makes an evaluation's metrics, and keeps what the best one was made of.

    Args:
        task: says which.
        metric: the deciding one.
        greater: whether more of it is better.

    Attributes:
        steps: says how many steps there were.
        step: how many before the best evaluation.
        kept: what that one was made of, see `compute_metrics`.
    """

    def __init__(self, task: Task, metric: str, greater: bool):
        self.task, self.metric, self.greater = task, metric, greater
        self.steps: Callable[[], int] = lambda: 0
        self.step: int | None = None
        self.best: float | None = None
        self.kept: tuple[Tensor, Tensor] | None = None

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        outcome = torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids)
        found = compute_metrics(self.task, *outcome)
        value = found[self.metric] if self.greater else -found[self.metric]
        if self.best is None or value > self.best:
            self.best, self.kept, self.step = value, outcome, self.steps()
        return found


def _say_plan(model: FusionModel, datasets: Mapping[str, Rows], device: torch.device, report: Report) -> None:
    counts = model.count_parameters().values()
    trainable = sum(count["trainable"] for count in counts)
    share = trainable / sum(count["trainable"] + count["frozen"] for count in counts)
    precision = model.settings.training.precision
    arithmetic = arithmetic_name(precision, device)
    rows = "rows per epoch of a stream" if isinstance(datasets["train"], StreamDataset) else "training rows"
    report(
        f"{len(datasets['train'])} {rows}, {len(datasets['validation'])} validation rows, "
        f"{len(model.task.labels)} {'label' if len(model.task.labels) == 1 else 'labels'}; "
        f"{trainable:,} parameters are trained ({share:.2%}); {device.type}, {arithmetic}"
    )
