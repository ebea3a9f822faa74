"""A thin `transformers.Trainer`: rates by group, checkpoints of what was trained, a line per epoch."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from mope.data.splits import Report
from mope.model import FusionModel
from mope.prompts.noise import StepNoise, routers
from mope.prompts.parallel import let_rows_count
from mope.run import WEIGHTS
from mope.training.budget import Budget
from mope.training.checkpoints import STATE, begin_draft, explained, finish_draft
from mope.training.collapse import Use
from mope.training.progress import EpochRecord, StepTimer, epoch_line
from mope.training.sharding import keep_whole, shard, share_out, whole_state
from mope.training.steps import STAND_IN, Share, StepLoader
from mope.weights import read_weights, write_weights

_EPOCH = "epoch.json"


class FusionTrainer(Trainer):
    """A `Trainer` whose optimizer has the learning rates of the config, and whose checkpoints hold only what
    was trained."""

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
        self.timer, self._record = StepTimer(), EpochRecord()
        self._importance: Tensor | None = None  # of the last evaluation, without noise and dropped experts
        self._writing: Path | None = None
        self._batch, self._loader = 0, None
        for callback in (self.timer, _Follower(self)):
            self.add_callback(callback)
        self._noises = [(router, StepNoise(self.args.seed)) for router in routers(model)]
        for router, noise in self._noises:
            router.noise = noise

    @property
    def fusion_model(self) -> FusionModel:
        """The model, out of whatever accelerate wrapped it in."""
        return self.accelerator.unwrap_model(self.model)

    def get_train_dataloader(self) -> DataLoader:
        """This process's part of each step's rows, see `StepLoader`."""
        size = self.fusion_model.settings.training.batch_size
        self._loader = self._rows(self.train_dataset, size, self.args.seed)
        return self._loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """This process's part of the validation rows."""
        size = 2 * self.fusion_model.settings.training.batch_size
        return self._rows(self.eval_dataset if eval_dataset is None else eval_dataset, size, None)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """This process's part of other rows."""
        return self.get_eval_dataloader(test_dataset)

    def _rows(self, rows: Any, size: int, seed: int | None) -> StepLoader:
        return StepLoader(
            rows,
            size,
            self.data_collator,
            seed,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def begin_epoch(self, epoch: int) -> None:
        """Read this epoch's rows next, from 0."""
        if self._loader is not None:
            self._loader.begin_epoch(epoch)

    def begin_step(self) -> None:
        """Count this step's batches, from 0."""
        self._batch = 0

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: Any
    ) -> tuple[nn.Module, DataLoader]:
        if self.fusion_model.settings.training.fsdp:
            shard(
                self.fusion_model, self.args.device
            )  # behind the weights of a checkpoint, and before the optimizer
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

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
            if settings.fsdp:
                keep_whole(self.optimizer)
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
        """The model's own loss of a training batch, of which this process has a share; its parts and the
        experts' importance are summed up."""
        own, empty = self.fusion_model, inputs.pop(STAND_IN, False)
        labels = inputs["labels"]
        share = Share(0, torch.zeros(())) if empty else Share(len(labels), own.task.weight_of(labels))
        let_rows_count(not empty)
        for place, (router, noise) in enumerate(self._noises):
            key = f"{self.state.global_step} {self._batch}{f' {place}' if place else ''}"
            noise.draw(router, key, share.places, share.count)
        self._batch += 1
        output = model(**inputs)
        losses = {**output.losses, "task": output.losses["task"] * share.factor}
        rates = {group["name"]: group["lr"] for group in self._param_groups()}
        self._record.add(losses, output.scores, rates)
        loss = own.total(losses)
        return (loss, output) if return_outputs else loss

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Mean loss and metrics over all rows, each once, in their order, in however many processes."""
        bare: Any = self.model
        model: Any = self._wrap_model(bare, training=False)
        model.eval()
        task, found, used = self.fusion_model.task, [], []
        for inputs in dataloader:
            inputs = self._prepare_inputs(inputs)
            labels, empty = inputs["labels"], inputs.pop(STAND_IN, False)
            with torch.no_grad(), self.compute_loss_context_manager():
                output = model(**inputs)
            if output.scores and not empty:
                used.append(torch.stack([layer.float().sum(dim=0) for layer in output.scores]).cpu())
            weight = (task.weight_of(labels) * (not empty)).cpu().double()
            condensed = task.condense(output.logits.detach(), labels)
            outcome = tuple(part[:0].cpu() if empty else part.cpu() for part in condensed)
            found.append((outcome, output.losses["task"].detach().cpu().double() * weight, weight))
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        # By batch, and within it by process: as the rows stand in the table.
        every = list(chain(*zip(*gather_object([found]), strict=True)))
        sums = gather_object(used)
        self._importance = torch.stack(sums).sum(dim=0) if sums else None
        predictions, targets = (torch.cat([outcome[place] for outcome, _, _ in every]) for place in (0, 1))
        loss = sum(value for _, value, _ in every) / sum(weight for _, _, weight in every)
        metrics: dict[str, Any] = {"loss": float(loss)}
        if self.compute_metrics is not None:
            metrics |= self.compute_metrics(EvalPrediction(predictions, targets))  # type: ignore[arg-type]
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions, targets, named, len(targets))  # type: ignore[arg-type]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as usual; with an evaluation, add what the epoch was like and say it in a line."""
        ended = "eval_loss" in logs
        use = None
        if ended and self._importance is not None:
            use = Use.of(self._importance, self.fusion_model.settings)
        if ended and self._record.steps:
            logs = {**logs, **self._record.logs()}
            if use is not None:
                logs |= {"experts": use.experts, "experts_used": use.mean}
            epochs = None if self.budget is not None else self.args.num_train_epochs
            self.report(epoch_line(logs, self.state.epoch, epochs, self.args.metric_for_best_model, use))
        super().log(logs, start_time)
        if ended:
            entry: dict[str, Any] = self.state.log_history[-1]
            entry.update(self._record.routing())
            if use is not None:
                entry.update(use.logged())
            self._record = EpochRecord()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write what was trained, and nothing that a hub or a package holds already."""
        state = whole_state(self.fusion_model)  # of all processes
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            write_weights(folder / WEIGHTS, state)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.fusion_model.settings.training.fsdp and not self.args.should_save:
            self.optimizer.state_dict()  # type: ignore[union-attr]  # the first process waits for its parts

    def _get_output_dir(self, trial: Any = None) -> str:
        return super()._get_output_dir(trial) if self._writing is None else str(self._writing)

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """Write a checkpoint beside the others, and let it become one when it is whole."""
        folder, step = Path(str(self.args.output_dir)), self.state.global_step
        name = f"checkpoint-{step}"
        epoch = self._record.state()
        with explained(folder, f"The checkpoint of step {step:,}"):
            if self.args.should_save:
                begin_draft(folder)
            self.accelerator.wait_for_everyone()
            self._writing = folder / ".draft"
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._writing = None
            self.accelerator.wait_for_everyone()
            if self.state.best_global_step:
                self.state.best_model_checkpoint = str(self._best_checkpoint())
            if self.args.should_save:
                draft = folder / ".draft" / name
                self.state.save_to_json(str(draft / STATE))
                (draft / _EPOCH).write_text(json.dumps(epoch), encoding="utf-8")
                finish_draft(folder, name, self.state.best_model_checkpoint)
            self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        self.fusion_model.load_trained_state(read_weights(folder / WEIGHTS))
        if (folder / _EPOCH).is_file():  # not of an earlier version, which saved at the ends of epochs alone
            epoch = json.loads((folder / _EPOCH).read_text(encoding="utf-8"))
            self._record = EpochRecord.of(epoch, self.args.device)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: Any,
        trial: Any,
    ) -> tuple[int, int]:
        """As usual, but behind the last epoch where a resumed run had ended: it was killed while it was saved
        or later, and another step would be one too many."""
        begun = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if self.state.global_step == 0 or not self._is_over(max_steps):
            return begun
        # The path that is kept with it may be where the run was before.
        self.state.best_model_checkpoint = str(self._best_checkpoint())
        return num_train_epochs, 0

    def _is_over(self, max_steps: int) -> bool:
        """Whether all steps are done, or the patience is at its end."""
        return self.state.global_step >= max_steps or any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )

    def _best_checkpoint(self) -> Path:
        return Path(str(self.args.output_dir)) / f"checkpoint-{self.state.best_global_step}"

    def _load_callback_state(self) -> None:
        """As usual, but for the patience, which may be another when a run is resumed."""
        super()._load_callback_state()
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):
                callback.early_stopping_patience = self.fusion_model.settings.training.patience

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            # By its step: the path that is kept with it may be where the run was before.
            state = read_weights(self._best_checkpoint() / WEIGHTS)
            self.fusion_model.load_trained_state(share_out(state, self.fusion_model))


class _Follower(TrainerCallback):
    """Tells a trainer where it is."""

    def __init__(self, trainer: FusionTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_epoch(int(state.epoch or 0))

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.begin_step()
