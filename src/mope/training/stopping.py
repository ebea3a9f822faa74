"""Training that is stopped from outside: it saves what there is and says how it goes on."""

import atexit
import multiprocessing.util  # whose own waiting comes behind ours, as it was registered before
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from torch import distributed
from transformers import TrainerCallback

from mope.data.splits import Report
from mope.errors import Interrupted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Saver(TrainerCallback):
    """Asks for a checkpoint every so many minutes, and for a last one when the process is to end.

    Of several processes the first one's clock counts, and whichever is told to end.

    Args:
        minutes: between checkpoints; None for those at the ends of epochs alone.
        folder: the run's, for what is said.
        report: takes each line that is said.
    """

    def __init__(self, minutes: float | None, folder: str, report: Report):
        self.minutes, self.folder, self.report = minutes, folder, report
        self.received: signal.Signals | None = None
        self._saved = time.monotonic()
        self._stopping = False

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = self.minutes is not None and time.monotonic() - self._saved >= 60 * self.minutes
        stop = 0 if self.received is None else int(self.received)
        processes = PartialState()
        if processes.num_processes > 1:
            told = torch.tensor([due and processes.is_main_process, stop], device=processes.device)
            distributed.all_reduce(told, distributed.ReduceOp.MAX)
            due, stop = told.tolist()
            self.received = signal.Signals(stop) if stop else None
        self._stopping = bool(stop)
        # After an epoch's last step its evaluation comes first, and is saved with it: what went on from a
        # checkpoint before it would never make it.
        ends = float(state.epoch).is_integer() or state.global_step >= state.max_steps
        if (due or self._stopping) and not ends:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._saved = time.monotonic()
        if self._stopping:
            assert self.received is not None
            raise Interrupted(
                f"stopped by {self.received.name} after step {state.global_step:,} of {state.max_steps:,}, "
                f"saved in {self.folder}: with --resume (in Python resume=True) it goes on from there.",
                self.received,
            )

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let SIGTERM and the first Ctrl-C wait for the step that is under way; the second one doesn't."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may
            return
        before = {one: signal.signal(one, self._receive) for one in _SIGNALS}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def _receive(self, number: int, frame: Any) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        self.report(f"{self.received.name}: the step under way is finished and saved, then training stops.")


def leave_signals(worker: int) -> None:
    """Let a process that reads rows go on until the training ends it, whoever else is told to end."""
    for one in _SIGNALS:
        signal.signal(one, signal.SIG_IGN)


def _end_readers() -> None:
    """End the processes that still read rows when this one ends, as after an error: Python would ask them by
    a signal that they don't hear, and wait."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


atexit.register(_end_readers)
