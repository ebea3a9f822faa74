"""A config's settings as transformers' training arguments."""

from pathlib import Path

import torch
from transformers import TrainingArguments

from mope.config import Config
from mope.device import use_bf16
from mope.run import CHECKPOINTS


def training_arguments(
    config: Config, folder: Path, rows: int, device: torch.device, metric: str, greater: bool
) -> TrainingArguments:
    """What the trainer is told of a config whose training has so many rows.

    The warm-up is a share of the steps, and a log line a twentieth of an epoch, for any number of processes.
    """
    settings = config.training
    arguments = TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=2 * settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup,  # a share, since it is below one
        max_grad_norm=settings.clip,
        bf16=use_bf16(settings.precision, device),
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=greater,
        restore_callback_states_from_checkpoint=True,
        seed=settings.seed,
        data_seed=settings.seed,  # of the rows' order, which all processes share
        use_cpu=device.type == "cpu",
        dataloader_num_workers=config.data.workers,
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        report_to="none",
        ddp_find_unused_parameters=False,
    )
    arguments.logging_steps = max(1, rows // (settings.batch_size * arguments.world_size * 20))
    # Several GPUs are used by `torchrun`, one process each; never by threads of this one.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
