"""Training: a thin `transformers.Trainer`, and a run's folder around it."""

import math
import os
import shutil
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer_utils import get_last_checkpoint

from mope.config import Config
from mope.data.dataset import RowDataset, collate
from mope.data.readers import build_readers
from mope.data.splits import Report, check_split, hold_out, label_names, open_splits
from mope.device import pick_device, use_bf16
from mope.errors import UserError
from mope.files import replacing, write_json
from mope.fusion import FUSIONS
from mope.metrics import compute_metrics, deciding_metric
from mope.model import CONFIG, WEIGHTS, FusionModel, read_run
from mope.run import METRICS, model_card, read_metrics

CHECKPOINTS = "checkpoints"
# What may differ when a run is continued: none of it changes what was learned so far.
_FREE_ON_RESUME = ("epochs", "patience", "precision", "device")


class FusionTrainer(Trainer):
    """A `Trainer` whose optimizer has a learning rate for the complementary encoders, and whose checkpoints
    hold only what was trained."""

    def __init__(self, model: FusionModel, *args: Any, report: Report = print, **kwargs: Any):
        super().__init__(model, *args, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.report = report
        self._start_epoch()

    @property
    def fusion_model(self) -> FusionModel:
        """The model, out of whatever accelerate wrapped it in."""
        return self.accelerator.unwrap_model(self.model)

    def _start_epoch(self) -> None:
        self._losses: dict[str, Tensor] = {}
        self._importance: Tensor | None = None
        self._steps, self._started = 0, time.monotonic()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with four groups: main and complementary, each with and without weight decay."""
        if self.optimizer is None:
            settings = self.fusion_model.settings.training
            rates = {"main": settings.learning_rate, "complementary": settings.complementary_learning_rate}
            groups = []
            for group, parameters in self.fusion_model.parameter_groups().items():
                for decay in (True, False):
                    chosen = [
                        p for name, p in parameters if (name.endswith("weight") and p.ndim > 1) == decay
                    ]
                    groups.append(
                        {
                            "params": chosen,
                            "lr": rates[group],
                            "weight_decay": settings.weight_decay if decay else 0.0,
                            "name": group,
                        }
                    )
            cls, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = cls([group for group in groups if group["params"]], **options)
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The model's own loss; while training, its parts and the experts' importance are summed up."""
        output = model(**inputs)
        if model.training:
            self._steps += 1
            for name, value in output.losses.items():
                self._losses[name] = self._losses.get(name, 0) + value.detach()
            if output.scores:
                importance = torch.stack([scores.detach().sum(dim=0) for scores in output.scores])
                self._importance = importance if self._importance is None else self._importance + importance
        return (output.loss, output) if return_outputs else output.loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, logits (B, C) and targets of a batch."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, output = self.compute_loss(model, inputs, return_outputs=True)
        return loss.detach(), output.logits.detach(), inputs["labels"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as usual; with an evaluation, add what the epoch was like and say it in a line."""
        if "eval_loss" in logs and self._steps:
            logs = {**logs, **self._epoch_logs()}
            self.report(
                _epoch_line(
                    logs, self.state.epoch, self.args.num_train_epochs, self.args.metric_for_best_model
                )
            )
        super().log(logs, start_time)
        if "eval_loss" in logs and self._importance is not None:
            importance = self._importance / self._importance.sum(dim=1, keepdim=True)
            entry: dict[str, Any] = self.state.log_history[-1]
            entry["importance"] = importance.cpu().tolist()
        if "eval_loss" in logs:
            self._start_epoch()

    def _epoch_logs(self) -> dict[str, float]:
        logs = {f"train_{name}_loss": float(total) / self._steps for name, total in self._losses.items()}
        for group in self.optimizer.param_groups:
            logs[f"{group['name']}_learning_rate"] = group["lr"]
        logs["seconds"] = time.monotonic() - self._started
        if self._importance is not None:
            logs["experts"] = self._importance.shape[1]
            logs["experts_used"] = float(effective_experts(self._importance).mean())
        return logs

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write what was trained, and nothing that a hub or a package holds already."""
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            state = state_dict or self.fusion_model.state_dict()
            trained = {
                name: state[name].detach().clone().contiguous() for name in self.fusion_model.trained_state()
            }
            save_file(trained, folder / WEIGHTS, metadata={"format": "pt"})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.fusion_model.load_trained_state(load_file(Path(resume_from_checkpoint) / WEIGHTS))

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self.fusion_model.load_trained_state(
                load_file(Path(self.state.best_model_checkpoint or "") / WEIGHTS)
            )


def effective_experts(importance: Tensor) -> Tensor:
    """How many experts each layer uses: the exponential of the entropy of its importance, (L, k) -> (L,).

    It is k where all are used alike, and 1 where one takes everything.
    """
    shares = importance / importance.sum(dim=1, keepdim=True)
    return torch.special.entr(shares).sum(dim=1).exp()


class _Progress(ProgressCallback):
    """The progress bar alone: losses beside it, no log lines across it."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}")


def _epoch_line(logs: Mapping[str, Any], epoch: float | None, epochs: float, metric: str | None) -> str:
    rates = [logs[key] for key in ("main_learning_rate", "complementary_learning_rate") if key in logs]
    line = (
        f"epoch {epoch or 0:.3g}/{epochs:.3g}  loss {logs['train_task_loss']:.4f}"
        f"  validation loss {logs['eval_loss']:.4f}  {metric} {logs[f'eval_{metric}']:.4f}"
        f"  learning rate {', '.join(f'{rate:.1e}' for rate in rates)}"
    )
    if "experts_used" in logs:
        line += f"  experts used {logs['experts_used']:.2f} of {logs['experts']}"
    return f"{line}  {logs['seconds']:.0f} s"


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
        tables: `datasets.Dataset`s or files by split, instead of those the config names.
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
    method = FUSIONS.get(config.fusion.method)
    needed = {name: config.inputs[name] for name in (method.needs(config) if method else config.inputs)}
    splits = hold_out(open_splits(config, tables), config.data.validation_share, config.training.seed, report)
    for split in ("train", "validation"):
        if split not in splits:
            raise UserError(f"There are no {split} rows: name a table in data.{split}.")
    columns = {settings.column: settings.kind for settings in needed.values()}
    for split in ("train", "validation"):
        splits[split].require(*columns, config.data.label)
    labels = label_names(config, splits["train"])
    model = FusionModel.build(config, labels)
    metric, greater = deciding_metric(model.task, config.training.metric)
    checked = {
        split: check_split(config, splits[split], columns, model.task.encode, report)
        for split in ("train", "validation")
    }
    values = [model.task.encode(value) for value in checked["train"].column(config.data.label)]
    model.task.fit(values, config.data.class_weights)
    readers = build_readers(needed)
    datasets = {
        split: RowDataset(table, readers, model.task, config.data.label, train=split == "train")
        for split, table in checked.items()
    }
    _say_plan(model, checked, device, config, report)
    trainer = FusionTrainer(
        model,
        _arguments(config, folder, len(datasets["train"]), device, metric, greater),
        data_collator=partial(collate, readers=readers, task=model.task),
        train_dataset=datasets["train"],
        eval_dataset=datasets["validation"],
        compute_metrics=partial(_metrics, model.task),
        callbacks=[
            EarlyStoppingCallback(config.training.patience),
            TensorBoardCallback(SummaryWriter(str(folder / "tensorboard"))),
            *([_Progress()] if sys.stderr.isatty() else []),
        ],
        report=report,
    )
    trainer.remove_callback(PrinterCallback)
    with replacing(folder / CONFIG) as draft:
        draft.write_text(config.dump(), encoding="utf-8")
    checkpoint = get_last_checkpoint(str(folder / CHECKPOINTS)) if (folder / CHECKPOINTS).is_dir() else None
    trainer.train(resume_from_checkpoint=checkpoint)
    result = _result(trainer, model, metric, time.monotonic() - started)
    counts = {f"{split}_rows": len(table) for split, table in checked.items()}
    if trainer.is_world_process_zero():
        model.save_pretrained(folder, {**counts, "metric": metric})
        write_json(folder / METRICS, result)
        with replacing(folder / "README.md") as draft:
            draft.write_text(model_card(model, result), encoding="utf-8")
    return result


def _check_folder(folder: Path, config: Config, resume: bool, report: Report) -> dict[str, Any] | None:
    """Make sure a run may be written; the metrics of a finished one that is to be resumed."""
    if not (folder / CONFIG).is_file():
        return None
    finished = (folder / METRICS).is_file()
    if not resume:
        raise UserError(
            f"{folder} holds {'a finished' if finished else 'an unfinished'} run: add --resume to "
            f"{'keep' if finished else 'continue'} it, or name another folder with --output."
        )
    before = read_run(folder, finished=False)[0]
    if difference := _first_difference(_comparable(before), _comparable(config)):
        raise UserError(
            f"{folder} was trained with another {difference}: a run is continued with the settings it began "
            "with; name another folder with --output."
        )
    if finished and before.training.epochs >= config.training.epochs:
        report(f"{folder} is finished; it is left as it is.")
        return read_metrics(folder)
    if not (folder / CHECKPOINTS).is_dir():
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    return None


def _comparable(config: Config) -> dict[str, Any]:
    settings = config.model_dump(
        exclude={"output": True, "training": set(_FREE_ON_RESUME), "data": {"workers"}}
    )
    for split in ("train", "validation", "test"):
        if settings["data"][split] is not None:
            settings["data"][split] = str(Path(settings["data"][split]).absolute())
    for values in settings["inputs"].values():
        values["encoder"].pop("revision")
    return settings


def _first_difference(one: Any, other: Any, key: str = "") -> str | None:
    """Dotted key of the first setting that differs."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in [*one, *(name for name in other if name not in one)]:
            if found := _first_difference(one.get(name), other.get(name), f"{key}.{name}" if key else name):
                return found
        return None
    return None if one == other else key


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
    )
    # Several GPUs are used by `torchrun`, one process each; never by threads of this one.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _metrics(task: Any, prediction: EvalPrediction) -> dict[str, float]:
    return compute_metrics(
        task, torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids)
    )


def _say_plan(
    model: FusionModel, tables: Mapping[str, Any], device: torch.device, config: Config, report: Report
) -> None:
    counts = model.count_parameters().values()
    trainable = sum(count["trainable"] for count in counts)
    share = trainable / sum(count["trainable"] + count["frozen"] for count in counts)
    arithmetic = "bf16" if use_bf16(config.training.precision, device) else "fp32"
    report(
        f"{len(tables['train'])} training rows, {len(tables['validation'])} validation rows, "
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
        "trainable": sum(count["trainable"] for count in counts.values()),
        "frozen": sum(count["frozen"] for count in counts.values()),
        "history": history,
    }
