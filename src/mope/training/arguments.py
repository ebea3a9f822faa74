"""A config's settings as transformers' training arguments."""

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, TensorBoardCallback

from mope.config import Config
from mope.device import require_fp16, use_bf16
from mope.encoders.preparation import first_line
from mope.errors import UserError
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
        per_device_train_batch_size=settings.batch_size,  # of all processes: `StepLoader` shares it out
        per_device_eval_batch_size=2 * settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup,  # a share, since it is below one
        max_grad_norm=settings.clip,
        bf16=use_bf16(settings.precision, device),
        fp16=settings.precision == "fp16" and require_fp16(device).type != "cpu",
        gradient_accumulation_steps=settings.accumulate,
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
    arguments.logging_steps = max(1, rows // (settings.batch_size * settings.accumulate * 20))
    # Several GPUs are used by `torchrun`, one process each; never by threads of this one.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def reporters(names: Sequence[str], folder: Path) -> list[TrainerCallback]:
    """What sends losses and rates on, by name; of several processes the first one does.

    Raises:
        UserError: transformers knows none of that name, or its package isn't installed.
    """
    found: list[TrainerCallback] = []
    first = PartialState().is_main_process
    for name in names:
        if name == "tensorboard":
            if first:
                found.append(TensorBoardCallback(SummaryWriter(str(folder / "tensorboard"))))
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(INTEGRATION_TO_CALLBACK)
            raise UserError(f"training.report_to names '{name}': take of {known}.")
        try:
            made = INTEGRATION_TO_CALLBACK[name]()  # by each process, so that all say what is wrong
        except (ImportError, RuntimeError) as error:
            raise UserError(f"training.report_to: {name} can't be used: {first_line(error)}") from None
        if first:
            found.append(made)
    return found
