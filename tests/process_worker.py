"""Run by torchrun in each of several processes: train configs, and write what came of them."""

import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from mope.config import Config
from mope.training import launch, train
from mope.training.trainer import FusionTrainer

END_AT = os.environ.get("END_AT")
"""The step after which to end; empty for none."""

DOUBLE = os.environ.get("IN_FLOAT64") == "1"
"""Whether to train in float64, which hardly rounds: what is left of a difference is one of mathematics."""


class Watch(TrainerCallback):
    """Takes down each step's learning rate, and the random numbers that would come next."""

    def __init__(self):
        self.rates, self.random = [], []

    def on_step_begin(self, args, state, control, optimizer, **kwargs):
        # One of the processes is told: all end.
        if END_AT and state.global_step == int(END_AT) - 1 and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        self.rates.append(optimizer.param_groups[0]["lr"])
        with torch.random.fork_rng([]):
            self.random.append(float(torch.rand(())))


class WatchedTrainer(FusionTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.watch, self.losses = Watch(), []
        self.add_callback(self.watch)
        seen.append(self)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.losses.append(float(loss))
        return loss


seen: list[WatchedTrainer] = []


def digest(trainer: FusionTrainer) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(trainer.fusion_model.trained_state().items()):
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        found.update(name.encode() + whole.contiguous().numpy().tobytes())
    return found.hexdigest()


def held(trainer: FusionTrainer) -> int:
    """How many numbers this process's optimizer keeps."""
    return sum(
        (value.to_local() if isinstance(value, DTensor) else value).numel()
        for state in trainer.optimizer.state.values()
        for value in state.values()
    )


@contextmanager
def in_float64() -> Iterator[None]:
    """Let the library's models and what they are given be of float64, for which it has no setting.

    It asks for float32 by `float()` wherever autocast might have left less.
    """
    prepare = launch.prepare

    def prepared(*args: Any) -> Any:
        model, datasets = prepare(*args)
        model.double().register_forward_pre_hook(widened, with_kwargs=True)
        return model, datasets

    def widened(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, {name: wide(value) for name, value in kwargs.items()}

    def wide(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: wide(one) for name, one in value.items()}
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    torch.set_default_dtype(torch.float64)
    with mock.patch.object(launch, "prepare", prepared), mock.patch.object(Tensor, "float", Tensor.double):
        yield


def main(jobs: Path) -> None:
    rank = os.environ.get("RANK", "0")
    results = []
    arithmetic = in_float64() if DOUBLE else nullcontext()
    with mock.patch.object(launch, "FusionTrainer", WatchedTrainer), arithmetic:
        for content in json.loads(jobs.read_text()):
            result = train(Config.parse(content), resume=True, report=lambda line: None)
            if not seen:  # a probe, which is fitted without steps
                found = json.dumps(result["validation"])
                results.append({"weights": hashlib.sha256(found.encode()).hexdigest()})
            else:
                trainer = seen.pop()
                results.append(
                    {
                        "losses": trainer.losses,
                        "rates": trainer.watch.rates,
                        "random": trainer.watch.random,
                        "logging": trainer.args.logging_steps,
                        "weights": digest(trainer),
                        "held": held(trainer),
                        "history": result["history"],
                    }
                )
            jobs.with_name(f"rank{rank}.json").write_text(json.dumps(results))
            if distributed.is_initialized():
                distributed.barrier()  # the next run may read what the first process still writes
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
