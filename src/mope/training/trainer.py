"""A thin `transformers.Trainer`: two learning rates, checkpoints of what was trained, a line per epoch."""

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, ProgressCallback, Trainer, TrainerCallback

from mope.data.dataset import StreamDataset, StreamLoader
from mope.data.splits import Report
from mope.model import FusionModel
from mope.prompts import importance, variation
from mope.run import WEIGHTS
from mope.training.budget import Budget


class FusionTrainer(Trainer):
    """A `Trainer` whose optimizer has the three learning rates of the config, and whose checkpoints
    hold only what was trained."""

    def __init__(
        self,
        model: FusionModel,
        *args: Any,
        report: Report = print,
        budget: Budget | None = None,
        **kwargs: Any,
    ):
        super().__init__(model, *args, **kwargs)
        self.budget = budget
        if budget is not None:
            self.add_callback(budget)
        self.model_accepts_loss_kwargs = False
        self.report = report
        self._timer = _StepTimer()
        self.add_callback(self._timer)
        self._start_epoch()

    @property
    def fusion_model(self) -> FusionModel:
        """The model, out of whatever accelerate wrapped it in."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def step_milliseconds(self) -> float | None:
        """Median time of a training step: forward, backward and optimizer, without reading rows."""
        seconds = self._timer.seconds
        return round(1000 * statistics.median(seconds), 1) if seconds else None

    @property
    def waiting_share(self) -> float | None:
        """Share of the training steps' time that is waiting for rows, first steps of epochs left out."""
        waits, seconds = sum(self._timer.waits), sum(self._timer.seconds)
        return round(waits / (waits + seconds), 4) if seconds else None

    def collapse(self) -> str | None:
        """A sentence, if fewer than half of the experts were used at the end; None else.

        So few are hardly more than one prompt, whatever the metric says.
        """
        history: list[dict[str, Any]] = self.state.log_history
        entry = next((one for one in reversed(history) if "importance" in one), None)
        if entry is None:
            return None
        shares = torch.tensor(entry["importance"])
        used, count = effective_experts(shares), shares.shape[1]
        if used.mean() >= count / 2:
            return None
        few, uneven = int((used < count / 2).sum()), max(entry["imbalance"])
        return (
            f"The experts have collapsed: {float(used.mean()):.1f} of {count} are used, in {few} of "
            f"{len(used)} layers fewer than half (imbalance up to {uneven:.1f}). Try "
            "--method MoPE-clusters, a higher fusion.temperature, a larger fusion.importance_weight or fewer "
            "fusion.experts, and compare with --method P-SeqFuse, which has none."
        )

    def _start_epoch(self) -> None:
        self._losses: dict[str, Tensor] = {}
        self._rates: dict[str, float] = {}
        self._importance: Tensor | None = None
        self._imbalance: Tensor | None = None
        self._steps, self._started = 0, time.monotonic()

    def get_train_dataloader(self) -> DataLoader:
        """Batches of the training rows; a stream shares its rows out itself."""
        rows = self.train_dataset
        if not isinstance(rows, StreamDataset):
            return super().get_train_dataloader()
        rows.share(self.args.process_index, self.args.world_size)
        return StreamLoader(
            rows,
            self._train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with two groups for each learning rate: with weight decay, and without."""
        if self.optimizer is None:
            settings = self.fusion_model.settings.training
            rates = {
                "main": settings.learning_rate,
                "complementary": settings.complementary_learning_rate,
                "encoder": settings.encoder_learning_rate,
                "head": settings.learning_rate * settings.head_factor,
                "router": settings.learning_rate * settings.router_factor,
            }
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

    def _param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups if self.optimizer is not None else []

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The schedule over the steps, or over the time that there is."""
        if self.budget is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        found: Any = optimizer or self.optimizer
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(found, self.budget.factor)
        return self.lr_scheduler

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
            self._rates = {group["name"]: group["lr"] for group in self._param_groups()}
            for name, value in output.losses.items():
                self._losses[name] = self._losses.get(name, 0) + value.detach()
            if output.scores:
                batch = importance([scores.detach() for scores in output.scores])
                uneven = variation(batch)
                self._importance = batch if self._importance is None else self._importance + batch
                self._imbalance = uneven if self._imbalance is None else self._imbalance + uneven
        return (output.loss, output) if return_outputs else output.loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, and what metrics need of a batch's logits and targets."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, output = self.compute_loss(model, inputs, return_outputs=True)
        return loss.detach(), *self.fusion_model.task.condense(output.logits.detach(), inputs["labels"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as usual; with an evaluation, add what the epoch was like and say it in a line."""
        if "eval_loss" in logs and self._steps:
            logs = {**logs, **self._epoch_logs()}
            self.report(
                _epoch_line(
                    logs,
                    self.state.epoch,
                    None if self.budget is not None else self.args.num_train_epochs,
                    self.args.metric_for_best_model,
                )
            )
        super().log(logs, start_time)
        if "eval_loss" in logs and self._importance is not None and self._imbalance is not None:
            shares = self._importance / self._importance.sum(dim=1, keepdim=True)
            entry: dict[str, Any] = self.state.log_history[-1]
            entry["importance"] = shares.cpu().tolist()
            # Of each batch, as the loss takes it (Eq. 6): batches may be uneven where the epoch is not.
            entry["imbalance"] = (self._imbalance / self._steps).tolist()
        if "eval_loss" in logs:
            self._start_epoch()

    def _epoch_logs(self) -> dict[str, float]:
        logs = {f"train_{name}_loss": float(total) / self._steps for name, total in self._losses.items()}
        # Those of the last step: the schedule has gone on since, at the end to zero.
        for name, rate in self._rates.items():
            logs[f"{name}_learning_rate"] = rate
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

    def _load_callback_state(self) -> None:
        """As usual, but for the patience, which may be another when a run is resumed."""
        super()._load_callback_state()
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):
                callback.early_stopping_patience = self.fusion_model.settings.training.patience

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


class _StepTimer(TrainerCallback):
    """Time from the start of each step to its end, and from there to the next step of the same epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.waits: list[float] = []
        self._started = 0.0
        self._ended: float | None = None

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self._ended = None

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._started = time.perf_counter()
        if self._ended is not None:
            self.waits.append(self._started - self._ended)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._ended = time.perf_counter()
        self.seconds.append(self._ended - self._started)


class ProgressBar(ProgressCallback):
    """The progress bar alone: losses beside it, no log lines across it."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}")


def _epoch_line(
    logs: Mapping[str, Any], epoch: float | None, epochs: float | None, metric: str | None
) -> str:
    keys = [f"{group}_learning_rate" for group in ("main", "complementary", "encoder")]
    rates = [logs[key] for key in keys if key in logs]
    line = (
        f"epoch {epoch or 0:.3g}{f'/{epochs:.3g}' if epochs else ''}  loss {logs['train_task_loss']:.3f}"
        f"  validation loss {logs['eval_loss']:.3f}  {metric} {logs[f'eval_{metric}']:.3f}"
        f"  learning rate {', '.join(f'{rate:.1e}' for rate in rates)}"
    )
    if "experts_used" in logs:
        few = " (few)" if logs["experts_used"] < logs["experts"] / 2 else ""
        line += f"  experts used {logs['experts_used']:.2f} of {logs['experts']}{few}"
    return f"{line}  {logs['seconds']:.0f} s"
