"""Training: from a config to a run's folder."""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PrinterCallback,
    TrainingArguments,
    set_seed,
)
from transformers.integrations.integration_utils import TensorBoardCallback

from mope.config import Config
from mope.data.dataset import RowDataset, RowReader, StreamDataset, collate
from mope.data.readers import Reader, TextReader, build_readers
from mope.data.splits import Report, check_split, draw, hold_out, label_names, open_splits, row_check
from mope.data.stream import Stream, open_stream
from mope.data.table import Table
from mope.device import peak_memory, pick_device, reset_peak_memory, use_bf16
from mope.encoders.packages import cache_folder
from mope.errors import UserError
from mope.files import replacing, write_json
from mope.metrics import compute_metrics, deciding_metric
from mope.model import CONFIG, FusionModel, needed_inputs, read_run
from mope.run import METRICS, difference, model_card, read_metrics
from mope.trainer import FusionTrainer, ProgressBar

CHECKPOINTS = "checkpoints"
_STANDARDISED_BY = 2000  # rows of a stream whose labels say what is usual
# What may differ when a run is continued: none of it changes what was learned so far.
_FREE_ON_RESUME = tuple(f"training.{key}" for key in ("epochs", "patience", "precision", "device"))


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
    if (finished := _check_folder(folder, config, resume, report)) is not None:
        return finished
    started = time.monotonic()
    device = pick_device(config.training.device)
    set_seed(config.training.seed)
    model, datasets = _prepare(config, tables, report)
    metric, greater = deciding_metric(model.task, config.training.metric)
    if config.data.cache_features:
        model.keep_features(cache_folder() / "features")
    _say_plan(model, datasets, device, report)
    counts = {f"{split}_rows": len(rows) for split, rows in datasets.items()}
    trainer = FusionTrainer(
        model,
        _arguments(config, folder, len(datasets["train"]), device, metric, greater),
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
    )
    trainer.remove_callback(PrinterCallback)
    with replacing(folder / CONFIG) as draft:
        draft.write_text(config.dump(), encoding="utf-8")
    checkpoint = _last_checkpoint(folder / CHECKPOINTS)
    reset_peak_memory(device)
    trainer.train(resume_from_checkpoint=checkpoint)
    if isinstance(datasets["train"], StreamDataset) and (line := datasets["train"].skipped()):
        report(line)
    result = _result(trainer, model, metric, time.monotonic() - started)
    if trainer.is_world_process_zero():
        _write_run(folder, model, counts, result)
    return result


def _write_run(folder: Path, model: FusionModel, counts: Mapping[str, int], result: dict[str, Any]) -> None:
    """Write what a finished run is, each file whole or not at all."""
    model.save_pretrained(folder, {**counts, "metric": result["metric"]})
    write_json(folder / METRICS, result)
    with replacing(folder / "README.md") as draft:
        draft.write_text(model_card(model, result), encoding="utf-8")


Rows = RowDataset | StreamDataset


def _sources(
    config: Config, tables: Mapping[str, Any] | None, report: Report
) -> tuple[Table | Stream, Table]:
    """Training rows, a table or a stream, and validation rows, unchecked."""
    stream, splits = open_stream(config, tables), open_splits(config, tables)
    if stream is None:
        splits = hold_out(splits, config.data.validation_share, config.training.seed, report)
    train = stream or splits.get("train")
    if train is None:
        raise UserError("There are no train rows: name a table in data.train.")
    if "validation" not in splits:
        hint = "; none are held out of a stream" if stream else ""
        raise UserError(f"There are no validation rows: name a table in data.validation{hint}.")
    return train, splits["validation"]


def _prepare(
    config: Config, tables: Mapping[str, Any] | None, report: Report
) -> tuple[FusionModel, dict[str, Rows]]:
    """The model, and the rows of each split that can be used.

    What is cheap to find wrong is found first: tables and columns before weights, weights before every row.
    """
    needed = needed_inputs(config)
    columns = {settings.column: settings.kind for settings in needed.values()}
    label = config.data.label
    train, validation = _sources(config, tables, report)
    for source in (train, validation):
        source.require(*(s.column for s in needed.values() if s.missing != "learn"), label)
    model = FusionModel.build(config, label_names(config, train))
    task = model.task
    if isinstance(train, Table):
        train = draw(train, config.data.train_rows, config.training.seed)
    deciding_metric(task, config.training.metric)
    if isinstance(train, Table):
        train = check_split(config, train, columns, task.encode, report)
    validation = check_split(config, validation, columns, task.encode, report)
    readers = build_readers(needed)
    rows: Rows
    if isinstance(train, Stream):
        read = RowReader(readers, task, label, train=True, picture=config.picture)
        rows = StreamDataset(train, read, row_check(config, columns, task.encode), config)
        task.fit(_first_labels(rows, report), config.data.class_weights)
    else:
        rows = RowDataset(train, readers, task, label, train=True, picture=config.picture)
        task.fit((task.encode(value) for value in train.column(label)), config.data.class_weights)
        _say_cut_texts(readers, train, report)
    return model, {
        "train": rows,
        "validation": RowDataset(validation, readers, task, label, picture=config.picture),
    }


def _first_labels(rows: StreamDataset, report: Report) -> Iterator[Any]:
    """Labels of a stream's first rows, for a task that asks for them, which is said then."""
    values = list(rows.labels(_STANDARDISED_BY))
    if not values:
        raise UserError(
            f"{rows.stream.name}: none of its first {_STANDARDISED_BY:,} rows has a label that can be used."
        )
    report(f"{rows.stream.name}: labels are standardised by those of the first {len(values):,} rows.")
    yield from values


def _say_cut_texts(readers: Mapping[str, Reader], table: Table, report: Report) -> None:
    """Say how many training texts are longer than what their encoder is given."""
    for name, reader in readers.items():
        if isinstance(reader, TextReader) and reader.column in table.columns:
            texts = [text for text in table.column(reader.column) if isinstance(text, str)]
            if count := reader.count_cut(texts):
                report(
                    f"{table.name}: {count} of {len(texts)} texts of '{name}' are longer than "
                    f"{reader.max_length} tokens and are cut off; set inputs.{name}.max_length to keep more."
                )


def _check_folder(folder: Path, config: Config, resume: bool, report: Report) -> dict[str, Any] | None:
    """Make sure a run may be written; the metrics of a finished one that is to be resumed."""
    if not (folder / CONFIG).is_file():
        return None
    finished = (folder / METRICS).is_file()
    if not resume and os.environ.get("RANK", "0") != "0":
        return None  # another process of this very run may have written it just now
    if not resume:
        raise UserError(
            f"{folder} holds {'a finished' if finished else 'an unfinished'} run: add --resume (in Python "
            f"resume=True) to {'keep' if finished else 'continue'} it, or name another folder as output."
        )
    before = read_run(folder, finished=False)[0]
    if key := difference(before, config, free=_FREE_ON_RESUME):
        raise UserError(
            f"{folder} was trained with another {key}: a run is continued with the settings it began "
            "with; name another folder with --output."
        )
    if finished and before.training.epochs >= config.training.epochs:
        report(f"{folder} is finished; it is left as it is.")
        return read_metrics(folder)
    if not (folder / CHECKPOINTS).is_dir():
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    return None


def _last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint; what a killed run began to write after it is removed.

    A checkpoint's folder appears at once and is filled file by file, `trainer_state.json` last.
    """
    there = {int(path.name.rpartition("-")[2]): path for path in folder.glob("checkpoint-*")}
    for step in sorted(there, reverse=True):
        try:
            json.loads((there[step] / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(there[step], ignore_errors=True)
        else:
            return str(there[step])
    return None


def _arguments(
    config: Config, folder: Path, rows: int, device: torch.device, metric: str, greater: bool
) -> TrainingArguments:
    settings = config.training
    steps = math.ceil(rows / settings.batch_size)
    arguments = TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=2 * settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        lr_scheduler_type=settings.schedule,
        warmup_steps=math.ceil(settings.warmup * settings.epochs * steps),
        max_grad_norm=settings.clip,
        bf16=use_bf16(settings.precision, device),
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        logging_steps=max(1, steps // 20),
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=greater,
        restore_callback_states_from_checkpoint=True,
        seed=settings.seed,
        use_cpu=device.type == "cpu",
        dataloader_num_workers=config.data.workers,
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        report_to="none",
        ddp_find_unused_parameters=False,
    )
    # Several GPUs are used by `torchrun`, one process each; never by threads of this one.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


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


def _result(trainer: FusionTrainer, model: FusionModel, metric: str, seconds: float) -> dict[str, Any]:
    """The content of `metrics.json`."""
    history = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    best = trainer.state.best_global_step
    chosen = next((entry for entry in history if entry["step"] == best), history[-1])
    counts = model.count_parameters()
    return {
        "metric": metric,
        "validation": {name: chosen[f"eval_{name}"] for name in ("loss", *model.task.metrics())},
        "best_epoch": chosen["epoch"],
        "seconds": round(seconds, 1),
        "step_milliseconds": trainer.step_milliseconds,
        "waiting_share": trainer.waiting_share,
        "peak_mebibytes": peak_memory(trainer.args.device),
        "trainable": sum(count["trainable"] for count in counts.values()),
        "frozen": sum(count["frozen"] for count in counts.values()),
        "history": history,
    }
