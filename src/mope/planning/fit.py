"""`fit`: a table in, a predictor out."""

import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from transformers import TrainerCallback

from mope.config import Config, MediaLimits
from mope.data.dataset import collate
from mope.data.splits import Report
from mope.data.table import Table, open_table
from mope.device import autocast, frozen_dtype, pick_device
from mope.errors import UserError
from mope.heads import LinearHead
from mope.logs import say
from mope.media.cells import is_missing
from mope.planning.columns import look
from mope.planning.plan import Plan, make_config, rows_per_batch
from mope.predictor import Predictor
from mope.training import train
from mope.training.launch import BEGINS_FROM, HEAD_BEGINS_FROM
from mope.training.rows import prepare

_STEPS = 4  # measured, after one that isn't


def fit(
    data: Any,
    label: str,
    *,
    validation: Any = None,
    kinds: Mapping[str, str] | None = None,
    task: str | None = None,
    main: str | None = None,
    encoders: Mapping[str, str] | None = None,
    preset: str = "good",
    minutes: float | None = None,
    settings: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    folder: str | Path | None = None,
    report: Report = say,
    callbacks: Sequence[TrainerCallback] = (),
) -> Predictor:
    """Train a model on a table, with everything decided that isn't said.

    The plan is said first; `plan` gives it alone.

    Args:
        data: a table's file, or rows in memory: a pandas or polars frame, a `datasets.Dataset`, a list of
            mappings.
        label: the label's column.
        validation: rows to choose the best epoch by; None to hold out a tenth of `data`.
        kinds: by column what it holds, see `mope.planning.columns.KINDS`, or "left out".
        task: "classification", "multilabel" or "regression"; None for what the labels look like.
        main: name of the main input; None for the first of images, texts, videos and sounds.
        encoders: weights by column, as `encoder.weights` of a config.
        preset: "fast", "good" or "best".
        minutes: time for everything; the best model until then is what there is at the end.
        settings: any other settings, by dotted key.
        output: the run's folder; None for a new one in `runs/`.
        folder: what paths in the rows are relative to; None for their file's folder, or the current one.
        report: takes each line that is said; by default the logger "mope" does.
        callbacks: transformers' callbacks of its `Trainer`.

    Raises:
        UserError: nothing can be learned from the table, or something in it or in what is said is wrong.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "fit is for one process: write its plan with --write, and mope train that with torchrun."
        )
    started = time.monotonic()
    asked: dict[str, Any] = {"validation": validation, "kinds": kinds, "task": task, "main": main}
    asked |= {"encoders": encoders, "preset": preset, "minutes": minutes, "settings": settings}
    made = plan(data, label, **asked, output=output, folder=folder, measure=minutes is None)
    report(str(made))
    config = made.config
    if config.training.minutes is not None:
        left = config.training.minutes - (time.monotonic() - started) / 60
        config = config.with_settings({"training.minutes": max(left, 0.1)})
    train(config, made.tables or None, report=report, callbacks=callbacks)
    return Predictor(config.output)


def plan(
    data: Any,
    label: str,
    *,
    validation: Any = None,
    kinds: Mapping[str, str] | None = None,
    task: str | None = None,
    main: str | None = None,
    encoders: Mapping[str, str] | None = None,
    preset: str = "good",
    minutes: float | None = None,
    settings: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    folder: str | Path | None = None,
    measure: bool = True,
) -> Plan:
    """What `fit` would do, without doing it; see there.

    Args:
        data, label, validation, kinds, task, main, encoders, preset, minutes, settings, output, folder: as
            `fit`.
        measure: whether a few steps are run to tell how long it takes.

    Raises:
        UserError: see `fit`.
    """
    if not isinstance(label, str):
        raise UserError(f"label is the name of a column, not {label!r}.")
    if minutes is not None and minutes <= 0:
        raise UserError(f"minutes is {minutes:g}: give more than none.")
    config_folder = {} if folder is None else {"data.folder": str(folder)}
    said = dict(settings or {})
    own = {key.rpartition(".")[2]: value for key, value in said.items() if key.startswith("data.limits.")}
    trusted, encoding = said.get("data.trusted", True), said.get("data.encoding")
    table = open_table(data, trusted, encoding, folder, MediaLimits(**own))
    table.require(label)
    columns = look(table, label, kinds)
    config, reason = make_config(
        table, columns, label, task=task, main=main, encoders=encoders, preset=preset
    )
    batch = rows_per_batch(pick_device(), config.training.batch_size)
    own: dict[str, Any] = {"training.batch_size": batch, **config_folder}
    if minutes is not None:
        own |= {"training.minutes": minutes, "training.epochs": 1000, "training.patience": 1000}
    own["output"] = str(output) if output is not None else _new_folder(label)
    tables = {"train": data, "validation": validation}
    if all(source is None or isinstance(source, str | Path) for source in tables.values()):
        own |= {f"data.{split}": str(source) for split, source in tables.items() if source is not None}
        tables = {}
    config = config.with_settings({**own, **said})
    tables = {split: source for split, source in tables.items() if source is not None}
    labelled = _with_labels(table, label, config.task)
    if tables:
        tables["train"] = labelled
    without = len(table) - len(labelled)
    made = Plan(columns, config, len(table), reason, without=without, tables=tables)
    if measure and minutes is None:
        made.estimate = estimate(config, made.tables or None)
    return made


def _with_labels(table: Table, label: str, task: str) -> Table:
    """The rows that have a label; of several labels an empty text is none of them."""
    none = (lambda cell: cell is None) if task == "multilabel" else is_missing
    kept = [place for place, cell in enumerate(table.values(label)) if not none(cell)]
    return table if len(kept) == len(table) else table.select(kept)


def _new_folder(label: str) -> str:
    """A folder in `runs/` that isn't there."""
    stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in label)
    names = (f"runs/{stem}" if number == 1 else f"runs/{stem}-{number}" for number in range(1, 10_000))
    return next(name for name in names if not Path(name).exists())


def estimate(config: Config, tables: Mapping[str, Any] | None = None) -> float:
    """Seconds that a training takes at most, by a few steps on real rows.

    Raises:
        UserError: what the training would say of the config or the rows.
    """
    started = time.monotonic()
    model, rows = prepare(config, tables, lambda line: None)
    device = pick_device(config.training.device)
    model.freeze(frozen_dtype(config.training.precision, device))
    model.to(device).train()
    before = time.monotonic() - started
    size = config.training.batch_size
    samples = iter(
        torch.utils.data.DataLoader(
            rows["train"], size, collate_fn=partial(collate, readers=rows["train"].readers, task=model.task)
        )
    )
    seconds = []
    for batch in islice(samples, 1 + _STEPS):
        started = time.monotonic()
        with autocast(config.training.precision, device):
            loss = model(**send_to_device(batch, device)).loss
        loss.backward()
        model.zero_grad()
        loss.detach().item()
        seconds.append(time.monotonic() - started)
    step = statistics.median(seconds[1:] or seconds)
    # An evaluation's step is a forward pass alone, which is about a third, of twice as many rows.
    steps = math.ceil(len(rows["train"]) / size)
    evaluation = math.ceil(len(rows["validation"]) / (2 * size)) * 2 / 3
    count = len(rows["train"])
    begin = min(count, BEGINS_FROM) / size / 3 if model.begins_from_rows else 0.0
    if config.training.head_start == "probe" and isinstance(model.head, LinearHead):
        begin += min(count, HEAD_BEGINS_FROM) / size / 3
    return 2 * before + step * (begin + config.training.epochs * (steps + evaluation))
