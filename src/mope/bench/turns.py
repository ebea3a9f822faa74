"""Times of variants that take turns: machines are noisy, so only ratios within a turn are compared."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from tqdm import tqdm

Variant = TypeVar("Variant")


class Ratio(NamedTuple):
    """Of two variants' times.

    Attributes:
        median: of the turns' ratios.
        interval: of the median, 95 %; None with fewer than six turns.
    """

    median: float
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        between = "" if self.interval is None else " [{:.3f}, {:.3f}]".format(*self.interval)
        return f"{self.median:.3f}{between}"


class Turns:
    """What variants took that took turns.

    What else a machine does lasts longer than a turn and falls on all of it, so a ratio is the median of the
    turns' own: on a busy machine medians of two variants differ by more than the variants do.

    Args:
        times: seconds by variant, turn by turn.

    Attributes:
        medians: seconds by variant.
    """

    def __init__(self, times: Mapping[str, Sequence[float]]):
        self.times = times
        self.medians = {name: statistics.median(values) for name, values in times.items()}

    def ratio(self, over: str, *under: str) -> Ratio:
        """A variant over another, or over the sum of several."""
        parts = zip(*(self.times[name] for name in under), strict=True)
        return ratio_of(one / sum(part) for one, part in zip(self.times[over], parts, strict=True))


def ratio_of(ratios: Iterable[float]) -> Ratio:
    """Their median, and where it lies by their order: the sign test's interval, of any distribution.

    Args:
        ratios: of each turn.
    """
    ordered = sorted(ratios)
    count = len(ordered)
    outside, tail = 0, 2.0**-count
    while 2 * tail <= 0.05:  # so often is the median outside all but `outside` values on either side
        outside += 1
        tail += math.comb(count, outside) * 2.0**-count
    interval = (ordered[outside - 1], ordered[-outside]) if outside else None
    return Ratio(statistics.median(ordered), interval)


def synchronise(device: torch.device) -> None:
    """Wait for a GPU to finish."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def clock_of(device: torch.device) -> str:
    """Which time is taken: "processor" of a CPU's one thread, without waiting for others; else "wall".

    Several threads wait for each other by spinning, which is processor time as well.
    """
    return "processor" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"


def in_turn(variants: Sequence[Variant], turn: int) -> list[Variant]:
    """Variants in the order of a turn: every other one goes backwards, or whatever one leaves behind, such as
    a warm cache, would always fall on the same other."""
    return list(variants) if turn % 2 == 0 else list(reversed(variants))


def take_turns(
    variants: Mapping[str, Callable[[], Any]], repeats: int, what: str, device: torch.device
) -> Turns:
    """Time variants, which take turns after two rounds to warm up; every other turn goes backwards."""
    clock = time.process_time if clock_of(device) == "processor" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in tqdm(range(repeats + 2), desc=what, leave=False, disable=None):
        for name in in_turn(list(variants), turn):
            synchronise(device)
            started = clock()
            variants[name]()
            synchronise(device)
            if turn >= 2:
                times[name].append(clock() - started)
    return Turns(times)
