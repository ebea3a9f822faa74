"""Times of variants that take turns: machines are noisy, so ratios of one run's medians are compared."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from tqdm import tqdm


def synchronise(device: torch.device) -> None:
    """Wait for a GPU to finish."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def take_turns(
    variants: Mapping[str, Callable[[], Any]], repeats: int, what: str, device: torch.device
) -> dict[str, float]:
    """Median seconds of each variant, which take turns after two rounds to warm up."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in tqdm(range(repeats + 2), desc=what, leave=False, disable=None):
        for name, run in variants.items():
            synchronise(device)
            started = time.perf_counter()
            run()
            synchronise(device)
            if turn >= 2:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}
