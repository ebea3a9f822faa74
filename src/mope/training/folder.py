"""The folder that a training writes: whether it may, where it goes on, and what it leaves."""

import json
import os
import shutil
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from torch import Tensor

from mope.config import Config
from mope.data.splits import Report
from mope.device import describe_machine, peak_memory
from mope.errors import UserError
from mope.files import replacing, write_json
from mope.model import FusionModel
from mope.run import CHECKPOINTS, CONFIG, METRICS, difference, model_card, read_metrics, read_run
from mope.training.checkpoints import STATE, explained, last_checkpoint

# What may differ when a run is continued: none of it changes what was learned so far.
_FREE_ON_RESUME = tuple(f"training.{key}" for key in ("epochs", "minutes", "patience", "precision", "device"))


class Learned(NamedTuple):
    """What came out of a training.

    Attributes:
        history: evaluations on validation rows.
        best: the step of the one that was kept.
        times: of steps, by name.
        calibration: see `Task.calibrate`.
    """

    history: list[dict[str, Any]]
    best: int | None
    times: dict[str, float | None]
    calibration: dict[str, Any]


def check_folder(folder: Path, config: Config, resume: bool, report: Report) -> dict[str, Any] | None:
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
    if finished and not _wants_more(folder, before, config):
        report(f"{folder} is finished; it is left as it is.")
        return read_metrics(folder, trained=True)
    if before.training.epochs != config.training.epochs:
        _require_same_rates(folder, before, config)
    if not (folder / CHECKPOINTS).is_dir():
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    return None


def _wants_more(folder: Path, before: Config, config: Config) -> bool:
    """Whether a finished run would go on: for more epochs, or more patience where it stopped early."""
    if config.training.epochs > before.training.epochs:
        return True
    history = read_metrics(folder).get("history") or [{}]
    stopped_early = history[-1].get("epoch", before.training.epochs) < before.training.epochs
    return stopped_early and config.training.patience > before.training.patience


def _require_same_rates(folder: Path, before: Config, config: Config) -> None:
    """Make sure that another number of epochs leaves the learning rates of those to come as they were.

    Raises:
        UserError: it doesn't.
    """
    old, new = before.training, config.training
    if old.schedule == "constant_with_warmup" and _epochs_done(folder) >= new.epochs * new.warmup:
        return
    rates = "falls over them" if old.schedule != "constant_with_warmup" else "rises longer over more"
    raise UserError(
        f"{folder} was begun for {old.epochs:g} epochs, not {new.epochs:g}, and its learning rate {rates} "
        f"({old.schedule}): resume it with --training.epochs {old.epochs:g}, or name another folder with "
        "--output to train anew."
    )


def _epochs_done(folder: Path) -> float:
    checkpoint = last_checkpoint(folder / CHECKPOINTS)
    if checkpoint is None:
        return 0.0
    return json.loads((Path(checkpoint) / STATE).read_text(encoding="utf-8"))["epoch"]


def result_of(
    model: FusionModel, learned: Learned, metric: str, seconds: float, device: torch.device
) -> dict[str, Any]:
    """The content of `metrics.json`.

    Args:
        model: as trained.
        learned: what came of it.
        metric: the deciding one.
        seconds: that all of it took.
        device: of the training.
    """
    history = learned.history
    chosen = next((entry for entry in history if entry["step"] == learned.best), history[-1])
    counts = model.count_parameters()
    # A run that an earlier version began may lack a metric.
    names = [name for name in ("loss", *model.task.metrics()) if f"eval_{name}" in chosen]
    return {
        "metric": metric,
        "validation": {name: chosen[f"eval_{name}"] for name in names},
        "best_epoch": chosen["epoch"],
        "date": date.today().isoformat(),
        "machine": describe_machine(device, PartialState().num_processes),
        "seconds": round(seconds, 1),
        **learned.times,
        "peak_mebibytes": peak_memory(device),
        "trainable": sum(count["trainable"] for count in counts.values()),
        "frozen": sum(count["frozen"] for count in counts.values()),
        "calibration": learned.calibration,
        "history": list(history),
    }


def write_run(
    folder: Path,
    model: FusionModel,
    state: Mapping[str, Tensor],
    counts: Mapping[str, int],
    result: dict[str, Any],
) -> None:
    """Write what a finished run is, each file whole or not at all.

    Args:
        folder: the run's.
        model: as trained.
        state: what was trained of it.
        counts: rows by split.
        result: the content of `metrics.json`.

    Raises:
        UserError: it can't be written.
    """
    with explained(folder, "The run"):
        model.save_pretrained(folder, {**counts, "metric": result["metric"]}, state)
        write_json(folder / METRICS, result)
        with replacing(folder / "README.md") as draft:
            draft.write_text(model_card(model, result), encoding="utf-8")
