"""What is known and said of a training while it runs."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import ProgressCallback, TrainerCallback

from mope.prompts import importance, variation
from mope.training.collapse import Use
from mope.training.steps import mean_of_processes


class RoutingCourse:
    """Importance of the experts over an epoch's batches (Fig. 7), in windows of equally many.

    How many batches come isn't known beforehand: where there are too many windows, each two become one. So
    there are between `MOST` / 2 and `MOST`, after the first few batches.
    """

    MOST = 16

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self._counts: list[int] = []
        self._size = 1

    def add(self, importance: Tensor) -> None:
        """Take a batch's importance (L, k)."""
        if self._counts and self._counts[-1] < self._size:
            self._sums[-1] = self._sums[-1] + importance
            self._counts[-1] += 1
            return
        if len(self._sums) == self.MOST:
            pairs = range(0, self.MOST, 2)
            self._sums = [self._sums[n] + self._sums[n + 1] for n in pairs]
            self._counts = [self._counts[n] + self._counts[n + 1] for n in pairs]
            self._size *= 2
        self._sums.append(importance)
        self._counts.append(1)

    def shares(self) -> dict[str, Any]:
        """`batches` of each window (W,), and `importance` as shares (W, L, k), to four digits."""
        shares = [total / total.sum(dim=1, keepdim=True) for total in self._sums]
        return {
            "batches": list(self._counts),
            "importance": [[[round(x, 4) for x in layer] for layer in one.tolist()] for one in shares],
        }

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        sums = [total.tolist() for total in self._sums]
        return {"sums": sums, "counts": list(self._counts), "size": self._size}

    @classmethod
    def of(cls, state: Mapping[str, Any], device: torch.device) -> "RoutingCourse":
        """What `state` gave, to go on from."""
        found = cls()
        found._sums = [torch.tensor(total, device=device) for total in state["sums"]]
        found._counts, found._size = list(state["counts"]), state["size"]
        return found


class EpochRecord:
    """What is summed up over an epoch's steps.

    Attributes:
        steps: how many batches there were.
    """

    def __init__(self) -> None:
        self.steps, self._started = 0, time.monotonic()
        self._losses: dict[str, Tensor] = {}
        self._rates: dict[str, float] = {}
        self._importance: Tensor | None = None
        self._imbalance: Tensor | None = None
        self._course = RoutingCourse()

    def add(self, losses: Mapping[str, Tensor], scores: Sequence[Tensor], rates: dict[str, float]) -> None:
        """Take a batch's losses, the routing scores of each layer (B, k), and the learning rates."""
        self.steps += 1
        self._rates = rates
        for name, value in losses.items():
            self._losses[name] = self._losses.get(name, 0) + value.detach()
        if scores:
            batch = importance([one.detach() for one in scores])
            uneven = variation(batch)
            self._course.add(batch)
            self._importance = batch if self._importance is None else self._importance + batch
            self._imbalance = uneven if self._imbalance is None else self._imbalance + uneven

    def logs(self) -> dict[str, float]:
        """What is logged at the epoch's end."""
        means = {f"train_{name}_loss": float(total) / self.steps for name, total in self._losses.items()}
        logs = mean_of_processes(means)
        # Those of the last step: the schedule has gone on since, at the end to zero.
        for name, rate in self._rates.items():
            logs[f"{name}_learning_rate"] = rate
        logs["seconds"] = time.monotonic() - self._started
        return logs

    def routing(self) -> dict[str, Any]:
        """How much each expert was used (L, k), how unevenly, and over the epoch; empty without experts."""
        if self._importance is None or self._imbalance is None:
            return {}
        shares = self._importance / self._importance.sum(dim=1, keepdim=True)
        # The imbalance is that of each batch, as the loss takes it (Eq. 6): batches may be uneven where the
        # epoch is not.
        return {
            "importance": shares.cpu().tolist(),
            "imbalance": (self._imbalance / self.steps).tolist(),
            "course": self._course.shares(),
        }

    def state(self) -> dict[str, Any]:
        """All of it, of all processes, for a checkpoint."""
        sums = {"importance": self._importance, "imbalance": self._imbalance}
        return {
            "losses": mean_of_processes({name: float(total) for name, total in self._losses.items()}),
            "steps": self.steps,
            "seconds": time.monotonic() - self._started,
            **{name: None if total is None else total.tolist() for name, total in sums.items()},
            "course": self._course.state(),
        }

    @classmethod
    def of(cls, state: Mapping[str, Any], device: torch.device) -> "EpochRecord":
        """What `state` gave, to go on from."""
        found = cls()
        found._losses = {name: torch.tensor(one, device=device) for name, one in state["losses"].items()}
        found.steps, found._started = state["steps"], time.monotonic() - state["seconds"]
        if state["importance"] is not None:
            found._importance = torch.tensor(state["importance"], device=device)
            found._imbalance = torch.tensor(state["imbalance"], device=device)
        if "course" in state:  # not of an earlier version
            found._course = RoutingCourse.of(state["course"], device)
        return found


class StepTimer(TrainerCallback):
    """Time from the start of each step to its end, and from there to the next step of the same epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.waits: list[float] = []
        self._started = 0.0
        self._ended: float | None = None

    @property
    def step_milliseconds(self) -> float | None:
        """Median time of a training step: forward, backward and optimizer, without reading rows."""
        return round(1000 * statistics.median(self.seconds), 1) if self.seconds else None

    @property
    def waiting_share(self) -> float | None:
        """Share of the training steps' time that is waiting for rows, first steps of epochs left out."""
        waits, seconds = sum(self.waits), sum(self.seconds)
        return round(waits / (waits + seconds), 4) if seconds else None

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


def epoch_line(
    logs: Mapping[str, Any],
    epoch: float | None,
    epochs: float | None,
    metric: str | None,
    use: Use | None = None,
) -> str:
    """What is said of an epoch.

    Args:
        logs: of its evaluation, with `EpochRecord.logs`.
        epoch: which.
        epochs: of how many; None where that isn't known.
        metric: name of the deciding one.
        use: how experts are used; None without any.
    """
    keys = [f"{group}_learning_rate" for group in ("main", "complementary", "encoder")]
    rates = [logs[key] for key in keys if key in logs]
    line = (
        f"epoch {epoch or 0:.3g}{f'/{epochs:.3g}' if epochs else ''}  loss {logs['train_task_loss']:.3f}"
        f"  validation loss {logs['eval_loss']:.3f}  {metric} {logs[f'eval_{metric}']:.3f}"
        f"  learning rate {', '.join(f'{rate:.1e}' for rate in rates)}"
    )
    if use is not None:
        line += f"  {use.in_short()}"
    return f"{line}  {logs['seconds']:.0f} s"
