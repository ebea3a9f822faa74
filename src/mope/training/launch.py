"""Training: from a config to a run's folder."""

import math
import os
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import send_to_device, set_seed
from torch.utils.data import Subset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PrinterCallback,
)
from transformers.integrations.integration_utils import TensorBoardCallback

from mope.config import Config
from mope.data.dataset import StreamDataset, collate
from mope.data.splits import Report
from mope.device import frozen_dtype, pick_device, reset_peak_memory, use_bf16
from mope.files import cache_folder, replacing
from mope.model import FusionModel
from mope.run import CHECKPOINTS, CONFIG
from mope.tasks.metrics import compute_metrics, deciding_metric
from mope.training.arguments import training_arguments
from mope.training.budget import Budget
from mope.training.folder import check_folder, last_checkpoint, result_of, write_run
from mope.training.probe import features_of, fit_probe, require_linear, require_probe, start_head
from mope.training.rows import Rows, drawn, first_batches, prepare
from mope.training.trainer import FusionTrainer, ProgressBar

Learned = tuple[list[dict[str, Any]], int | None, dict[str, float | None]]
"""Evaluations on validation rows, the step of the one that was kept, and times of steps."""

_BEGINS_FROM = 512
"""Rows that a model which begins from rows is shown."""

_HEAD_BEGINS_FROM = 1024
"""Rows that a head which begins as a probe is fitted to."""


def train(
    config: Config,
    tables: Mapping[str, Any] | None = None,
    *,
    resume: bool = False,
    report: Report = tqdm.write,
) -> dict[str, Any]:
    """Train a model and write its run's folder.

    Args:
        config: the settings.
        tables: by split, instead of the config's: files, `Dataset`s, to train on also an `IterableDataset`.
        resume: continue an unfinished run in the folder; a finished one is left as it is.
        report: takes each line that is said.

    Returns:
        The content of `metrics.json`: the validation metrics of the best epoch, and the history.

    Raises:
        UserError: the config, the data or the folder is wrong.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    folder = Path(config.output)
    if (finished := check_folder(folder, config, resume, report)) is not None:
        return finished
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
    learn = _probe if config.training.solver == "lbfgs" else _descend
    history, best, times = learn(config, model, datasets, device, report, started)
    if (skipped := datasets["train"].skipped()) is not None:
        report(skipped)
    metric = deciding_metric(model.task, config.training.metric)[0]
    result = result_of(model, history, best, metric, time.monotonic() - started, device, times)
    if PartialState().is_main_process:
        write_run(folder, model, counts, result)
    return result


def _descend(
    config: Config,
    model: FusionModel,
    datasets: Mapping[str, Rows],
    device: torch.device,
    report: Report,
    started: float,
) -> Learned:
    """Train by gradient steps, with checkpoints."""
    folder = Path(config.output)
    checkpoint = last_checkpoint(folder / CHECKPOINTS)
    if checkpoint is None and config.training.begin_from is not None:
        model.begin_from(config.training.begin_from)
    elif checkpoint is None and model.begins_from_rows:
        _begin(config, model, datasets["train"], device)
    if checkpoint is None and config.training.head_start == "probe":
        _start_head(config, model, datasets["train"], device)
    trainer = _trainer(config, model, datasets, device, report, started)
    _write_config(config)
    reset_peak_memory(device)
    # Each process draws dropout, routing noise and augmentation of its own; weights and order are shared.
    set_seed(config.training.seed, device_specific=True)
    trainer.train(resume_from_checkpoint=checkpoint)
    if (collapse := trainer.collapse()) is not None:
        report(collapse)
    history = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    times = {"step_milliseconds": trainer.step_milliseconds, "waiting_share": trainer.waiting_share}
    return history, trainer.state.best_global_step, times


def _probe(
    config: Config,
    model: FusionModel,
    datasets: Mapping[str, Rows],
    device: torch.device,
    report: Report,
    started: float,
) -> Learned:
    """Fit a linear head to frozen features."""
    require_probe(model)
    require_linear(model, datasets["train"])
    _write_config(config)
    reset_peak_memory(device)
    history = _fit_head(config, model, datasets, device, report)
    best = next(entry for entry in history if entry["step"])
    return history, best["step"], {"step_milliseconds": None, "waiting_share": None}


def _start_head(config: Config, model: FusionModel, rows: Rows, device: torch.device) -> None:
    """Fit the linear head to what some training rows' features say, before anything else learns."""
    require_linear(model, rows)
    model.to(device)
    chosen = drawn(len(rows), _HEAD_BEGINS_FROM, config.training.seed)
    with torch.autocast(device.type, torch.bfloat16, use_bf16(config.training.precision, device)):
        together = partial(collate, readers=rows.readers, task=model.task)
        size = 2 * config.training.batch_size
        found = features_of(model, Subset(rows, chosen), together, size, device, config.data.workers)
    start_head(model, *found)


def _fit_head(
    config: Config, model: FusionModel, datasets: Mapping[str, Rows], device: torch.device, report: Report
) -> list[dict[str, Any]]:
    """Fit the linear head to the features that the model has now, see `fit_probe`."""
    metric, greater = deciding_metric(model.task, config.training.metric)
    model.to(device)
    together = partial(collate, readers=datasets["train"].readers, task=model.task)
    size, workers = 2 * config.training.batch_size, config.data.workers
    with torch.autocast(device.type, torch.bfloat16, use_bf16(config.training.precision, device)):
        features = {
            split: features_of(model, rows, together, size, device, workers)
            for split, rows in datasets.items()
        }
    history = fit_probe(model, *features["train"], *features["validation"], metric, greater)
    best = next(entry for entry in history if entry["step"])
    report(f"linear probe  penalty {best['penalty']:g}  validation {metric} {best[f'eval_{metric}']:.3f}")
    return history


def _write_config(config: Config) -> None:
    with replacing(Path(config.output) / CONFIG) as draft:
        draft.write_text(config.dump(), encoding="utf-8")


def _begin(config: Config, model: FusionModel, rows: Rows, device: torch.device) -> None:
    """Let the model start from some training rows, the same in every process."""
    batches = first_batches(
        rows, _BEGINS_FROM, 2 * config.training.batch_size, config.training.seed, model.task
    )
    model.to(device)
    with torch.autocast(device.type, torch.bfloat16, use_bf16(config.training.precision, device)):
        model.begin(send_to_device(batch, device) for batch in batches)


def _trainer(
    config: Config,
    model: FusionModel,
    datasets: Mapping[str, Rows],
    device: torch.device,
    report: Report,
    started: float,
) -> FusionTrainer:
    folder, settings = Path(config.output), config.training
    budget = None
    if settings.minutes is not None:
        steps = math.ceil(len(datasets["validation"]) / (2 * settings.batch_size))
        budget = Budget(60 * settings.minutes, started, settings.warmup, settings.schedule, 2 * steps)
    metric, greater = deciding_metric(model.task, config.training.metric)
    trainer = FusionTrainer(
        model,
        training_arguments(config, folder, len(datasets["train"]), device, metric, greater),
        data_collator=partial(collate, readers=datasets["train"].readers, task=model.task),
        train_dataset=datasets["train"],
        eval_dataset=datasets["validation"],
        compute_metrics=partial(_metrics, model.task),
        callbacks=[
            EarlyStoppingCallback(config.training.patience),
            TensorBoardCallback(SummaryWriter(str(folder / "tensorboard"))),
            *([ProgressBar()] if sys.stderr.isatty() else []),
        ],
        report=report,
        budget=budget,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _metrics(task: Any, prediction: EvalPrediction) -> dict[str, float]:
    return compute_metrics(
        task, torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids)
    )


def _say_plan(model: FusionModel, datasets: Mapping[str, Rows], device: torch.device, report: Report) -> None:
    counts = model.count_parameters().values()
    trainable = sum(count["trainable"] for count in counts)
    share = trainable / sum(count["trainable"] + count["frozen"] for count in counts)
    arithmetic = "bf16" if use_bf16(model.settings.training.precision, device) else "fp32"
    rows = "rows per epoch of a stream" if isinstance(datasets["train"], StreamDataset) else "training rows"
    report(
        f"{len(datasets['train'])} {rows}, {len(datasets['validation'])} validation rows, "
        f"{len(model.task.labels)} {'label' if len(model.task.labels) == 1 else 'labels'}; "
        f"{trainable:,} parameters are trained ({share:.2%}); {device.type}, {arithmetic}"
    )
