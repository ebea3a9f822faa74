"""A study's runs, each in a process of its own, on a device that it takes from a queue and gives back."""

import os
import shutil
import signal
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

from mope.config import Config
from mope.device import pick_device
from mope.errors import Interrupted, UserError
from mope.methods import load_plugin
from mope.run import CHECKPOINTS, add_metrics, read_metrics

Key = TypeVar("Key")
Result = TypeVar("Result")

TEST = "test"
SPLITS = "splits"
ERROR = "error.txt"
PAGE = "explain/report.html"
AGAIN = 2  # times that a run is done again whose process died
# Bytes that a run of a small model may take while it trains; with more runs than fit, the machine would swap.
_RUN_MEMORY = 4 * 2**30


@dataclass(frozen=True)
class After:
    """What is done with a run once it is trained.

    Attributes:
        test: whether it is measured on its config's test rows.
        splits: further tables that it is measured on, by name; None for its config's test rows.
        page: rows that a page on it looks at, see `mope explain`; None for no page.
    """

    test: bool = False
    splits: Mapping[str, str | None] = field(default_factory=dict)
    page: int | None = None

    def missing(self, folder: Path, metrics: Mapping[str, Any]) -> bool:
        """Whether some of it isn't done yet, as the run's files say."""
        if (self.test and TEST not in metrics) or self.splits.keys() - metrics.get(SPLITS, {}).keys():
            return True
        return self.page is not None and not (folder / PAGE).is_file()


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


class Runner(ABC):
    """Runs configs, as many at a time as it has workers; its `run` is called from that many threads.

    Attributes:
        workers: runs at a time.
        ending: whether no run is to be done again.
    """

    workers: int

    def __init__(self) -> None:
        self.ending = threading.Event()

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Give back what the runs were run on."""
        return

    def each(self, jobs: Mapping[Key, Callable[[], Result]]) -> Iterator[tuple[Key, Result]]:
        """Call each job in a thread, as many at a time as there are workers; keys and results as they end.

        Whatever a job raises is raised here, and jobs that haven't begun aren't begun then.
        """
        with ThreadPoolExecutor(self.workers) as pool:
            futures = {pool.submit(job): key for key, job in jobs.items()}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException:
                self.ending.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    @abstractmethod
    def run(self, settings: dict[str, Any], after: After) -> Outcome:
        """Run a config in a process of its own and wait for it; even one that is killed has an outcome.

        One whose process dies is done again, from its last checkpoint, twice at most.

        Args:
            settings: the config, as `Config.parse` takes it; its `output` is the run's folder.
            after: what is done with it then.
        """


class LocalRunner(Runner):
    """Runs configs in processes of this machine.

    Args:
        workers: runs at a time; None for one per GPU, or on a CPU one per core as far as memory goes (two
            runs of one thread each get further than one of two threads).
        plugins: Python files that register methods, for every process to load.
    """

    def __init__(self, workers: int | None = None, plugins: Sequence[str] = ()):
        super().__init__()
        gpus = torch.cuda.device_count()
        self.workers = workers or gpus or (_cpu_workers() if pick_device().type == "cpu" else 1)
        # PyTorch's own number is at most OMP_NUM_THREADS: more threads than are free wait for one another.
        self._threads = max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // self.workers))
        self._plugins = tuple(plugins)
        # Each run takes a device and gives it back, so that no GPU waits while another has two runs.
        self._devices: SimpleQueue[str | None] = SimpleQueue()
        for place in range(self.workers):
            self._devices.put(_gpu_name(place % gpus) if gpus > 1 else None)

    def run(self, settings: dict[str, Any], after: After) -> Outcome:
        """See `Runner.run`."""
        started, code = time.monotonic(), None
        gpu = self._devices.get()
        for _ in range(1 + AGAIN):
            job = (settings, gpu, self._threads, self._plugins, after, os.getpid())
            process = get_context("spawn").Process(target=run_config, args=job)
            process.start()
            process.join()
            code = process.exitcode
            if code in (0, 128 + signal.SIGINT) or self.ending.is_set():
                break  # an interrupt ends the study, and reaches its runs, too
        self._devices.put(gpu)
        seconds = time.monotonic() - started
        return outcome_of(Path(settings["output"]), after, seconds, f"its process ended with code {code}")


def outcome_of(folder: Path, after: After, seconds: float, died: str) -> Outcome:
    """How the run in a folder ended, as its files say.

    Args:
        folder: the run's.
        after: what was to be done with it.
        seconds: how long it took.
        died: why it failed, where nothing says so.
    """
    error, metrics = folder / ERROR, read_metrics(folder)
    if error.is_file():
        return Outcome({}, error.read_text(encoding="utf-8").strip().splitlines()[-1], seconds)
    if not metrics or after.missing(folder, metrics):
        return Outcome({}, died, seconds)
    return Outcome(metrics, None, seconds)


def run_config(
    settings: dict[str, Any],
    gpu: str | None,
    threads: int,
    plugins: Sequence[str],
    after: After,
    parent: int | None,
) -> None:
    """Train one run, and do what is to be done then.

    What it says goes into its `log.txt`, why it fails into `error.txt`.

    Args:
        settings: the config's.
        gpu: what CUDA calls the one that it is to have; None for what this process has.
        threads: of PyTorch's.
        plugins: Python files that register methods.
        after: what is done with it then.
        parent: process with which this one is to end; None for none.
    """
    if parent is not None:
        _end_with(parent)
    if gpu is not None:
        # Of several GPUs transformers takes the first that it sees: it is to see this run's alone.
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    from mope.training import train

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
                train(config, resume=(folder / "config.yaml").is_file(), report=say)
                _finish(config, after, say)
        except Interrupted as error:
            raise SystemExit(error.code) from None  # by whoever ends processes: it goes on, here or elsewhere
        except UserError as error:
            (folder / ERROR).write_text(f"{error}\n", encoding="utf-8")
            return
        except Exception:
            (folder / ERROR).write_text(traceback.format_exc(), encoding="utf-8")
            return
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _finish(config: Config, after: After, say: Callable[[str], Any]) -> None:
    """Measure a trained run, and write the page on it."""
    from mope.bulk import evaluate
    from mope.insight.explain import explain

    folder, device = Path(config.output), config.training.device
    if after.test:
        add_metrics(folder, TEST, evaluate(folder, report=say, device=device))
    if after.splits:
        found = {
            split: dict(evaluate(folder, file, folder=config.data.folder, report=say, device=device))
            for split, file in after.splits.items()
        }
        add_metrics(folder, SPLITS, found)
    if after.page is not None:
        explain(folder, rows=after.page, report=say, device=device)


def _cpu_workers() -> int:
    cores = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return max(1, min(cores, memory // _RUN_MEMORY))


def _gpu_name(place: int) -> str:
    """What CUDA_VISIBLE_DEVICES calls a GPU that this process knows by its place."""
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible[place] if visible else str(place)


def _end_with(parent: int) -> None:
    """End this worker when the process that queues its runs is gone, even if it was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
