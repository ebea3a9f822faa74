"""A study's runs, each in a process of its own, on a device that it takes from a queue and gives back."""

import os
import shutil
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from mope.errors import UserError
from mope.methods import load_plugin
from mope.run import add_metrics, read_metrics
from mope.training import CHECKPOINTS

TEST = "test"
ERROR = "error.txt"
# Bytes that a run of a small model may take while it trains; with more runs than fit, the machine would swap.
_RUN_MEMORY = 4 * 2**30


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        metrics: the content of its `metrics.json`; empty if it failed.
        error: why it failed; None if it didn't.
        seconds: how long it took here; 0 for one that was done already.
    """

    metrics: dict[str, Any]
    error: str | None = None
    seconds: float = 0.0


class Runner:
    """Runs configs, as many at a time as it has workers; its `run` is called from that many threads.

    Args:
        workers: runs at a time; None for one per GPU, or on a CPU one per core as far as memory goes (two
            runs of one thread each get further than one of two threads).
        plugins: Python files that register methods, for every process to load.
    """

    def __init__(self, workers: int | None = None, plugins: Sequence[str] = ()):
        gpus = torch.cuda.device_count()
        self.workers = workers or gpus or _cpu_workers()
        self._threads = max(1, (os.cpu_count() or 1) // self.workers)
        self._plugins = tuple(plugins)
        # Each run takes a device and gives it back, so that no GPU waits while another has two runs.
        self._devices: SimpleQueue[str | None] = SimpleQueue()
        for place in range(self.workers):
            self._devices.put(f"cuda:{place % gpus}" if gpus > 1 else None)

    def run(self, settings: dict[str, Any], *, test: bool) -> Outcome:
        """Run a config in a process of its own and wait for it; even one that is killed has an outcome.

        Args:
            settings: the config, as `Config.parse` takes it; its `output` is the run's folder.
            test: whether to evaluate the run on its test rows too.
        """
        started, folder = time.monotonic(), Path(settings["output"])
        device = self._devices.get()
        job = (settings, device, self._threads, self._plugins, test, os.getpid())
        process = get_context("spawn").Process(target=run_config, args=job)
        process.start()
        process.join()
        self._devices.put(device)
        seconds, error = time.monotonic() - started, folder / ERROR
        if error.is_file():
            return Outcome({}, error.read_text(encoding="utf-8").strip().splitlines()[-1], seconds)
        metrics = read_metrics(folder)
        if process.exitcode != 0 or not metrics or (test and TEST not in metrics):
            return Outcome({}, f"its process ended with code {process.exitcode}", seconds)
        return Outcome(metrics, None, seconds)


def run_config(
    settings: dict[str, Any],
    device: str | None,
    threads: int,
    plugins: Sequence[str],
    test: bool,
    parent: int,
) -> None:
    """Train and evaluate one run; what it says goes into its `log.txt`, why it fails into `error.txt`."""
    from mope.config import Config
    from mope.predictor import evaluate
    from mope.training import train

    _end_with(parent)
    torch.set_num_threads(threads)
    folder = Path(settings["output"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR).unlink(missing_ok=True)
    with (folder / "log.txt").open("a", encoding="utf-8", buffering=1) as log:

        def say(line: str) -> None:
            log.write(f"{line}\n")

        try:
            with redirect_stdout(log), redirect_stderr(log):
                for plugin in plugins:
                    load_plugin(plugin)
                config = Config.parse(settings)
                if device is not None:
                    config.training.device = device
                train(config, resume=(folder / "config.yaml").is_file(), report=say)
                if test:
                    result = evaluate(folder, report=say, device=config.training.device)
                    add_metrics(folder, TEST, result)
        except UserError as error:
            (folder / ERROR).write_text(f"{error}\n", encoding="utf-8")
            return
        except Exception:
            (folder / ERROR).write_text(traceback.format_exc(), encoding="utf-8")
            return
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _cpu_workers() -> int:
    cores = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return max(1, min(cores, memory // _RUN_MEMORY))


def _end_with(parent: int) -> None:
    """End this worker when the process that queues its runs is gone, even if it was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    if os.getppid() == parent:
        threading.Thread(target=watch, daemon=True).start()
