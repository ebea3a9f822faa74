"""Training by minutes: the learning rate falls with the time that is left, and the evaluation fits in."""

import math
import time
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast
from transformers import TrainerCallback

_RESERVED = 0.5
"""Time of a validation step over that of a training step, until one has been measured."""

_AFTER = 2.0  # seconds to write the run


class Budget(TrainerCallback):
    """Ends a training in time, and says which share of it is over.

    The size of the machine isn't known beforehand and others may work on it, too: so the schedule follows the
    clock, not a number of steps that was reckoned at the start.

    Args:
        seconds: from `started` until the run is written.
        started: on the monotonic clock.
        warmup: share of the training in which learning rates rise.
        schedule: how they fall then, as `training.schedule`.
        evaluation: steps of an evaluation, of validation rows.
    """

    def __init__(self, seconds: float, started: float, warmup: float, schedule: str, evaluation: int):
        self.end, self.warmup, self.schedule, self.evaluation = (
            started + seconds,
            warmup,
            schedule,
            evaluation,
        )
        self._begun = time.monotonic()
        self._step = 0.0
        self._stepped = self._epoch_ended = self._begun
        self._evaluated: float | None = None
        self.over = 0.0
        """Share of the training that is over, the same in every process."""

    def factor(self, step: int) -> float:
        """What the learning rates are multiplied by now."""
        if self.over < self.warmup:
            return max(self.over / self.warmup, 1e-3)
        left = (1 - self.over) / (1 - self.warmup)
        if self.schedule == "cosine":
            return (1 - math.cos(math.pi * left)) / 2
        return left if self.schedule == "linear" else 1.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._begun = self._stepped = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.monotonic()
        # The slowest of late is what the last steps may take.
        self._step = max(now - self._stepped, 0.9 * self._step)
        self._stepped = now
        reserved = (
            self._evaluated if self._evaluated is not None else _RESERVED * self._step * self.evaluation
        )
        last = self.end - reserved - _AFTER - self._step
        self.over = _of_first(min(1.0, (now - self._begun) / max(last - self._begun, 1e-3)))
        if self.over >= 1:
            control.should_training_stop = True

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self._epoch_ended = time.monotonic()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stepped = time.monotonic()
        self._evaluated = 1.1 * (self._stepped - self._epoch_ended)
        left = _of_first(self.end - self._stepped - self._step - self._evaluated - _AFTER)
        if left < 0:
            control.should_training_stop = True  # another step and its evaluation wouldn't fit in


def _of_first(value: float) -> float:
    """What the first process has of a number: all decide by its clock."""
    state = PartialState()
    if state.num_processes == 1:
        return value
    return float(broadcast(torch.tensor(value, device=state.device)))  # type: ignore[arg-type]
