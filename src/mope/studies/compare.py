"""Run a study: a queue of runs over the machine's devices, each resumable, and skipped when done."""

import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from mope.errors import UserError
from mope.methods import load_plugin
from mope.metrics import deciding_metric
from mope.run import add_metrics, read_metrics
from mope.studies.study import Cell, Study, cells
from mope.studies.table import build_table, write_table
from mope.tasks import any_task
from mope.training import CHECKPOINTS

TEST = "test"
ERROR = "error.txt"
Report = Callable[[str], Any]


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


def compare(
    study: Study, *, workers: int | None = None, plugins: Sequence[str] = (), report: Report = print
) -> dict[str, Any]:
    """Run what isn't done yet, then write the table and the picture.

    Args:
        study: what to run.
        workers: runs at a time; None for one per GPU, or one on a CPU, whose cores a run uses all.
        plugins: Python files that register methods, for every worker to load.
        report: takes each line that is said.

    Returns:
        The table, see `build_table`.
    """
    todo = cells(study)
    _check_metrics(study, todo[0])
    outcomes: dict[int, Outcome] = {}
    for place, cell in enumerate(todo):
        if (metrics := read_metrics(cell.folder)) and TEST in metrics:
            outcomes[place] = Outcome(metrics)
    if outcomes:
        report(f"{len(outcomes)} of {len(todo)} runs are done.")
    waiting = [place for place in range(len(todo)) if place not in outcomes]
    for place, outcome in _run(todo, waiting, workers, plugins):
        outcomes[place] = outcome
        report(_line(study, todo[place], outcome, len(outcomes), len(todo)))
        _write(study, todo, outcomes)
    table = _write(study, todo, outcomes)
    failed = [todo[place].label for place, outcome in outcomes.items() if outcome.error]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(todo)} runs failed, such as {failed[0]}: see {ERROR} in its folder; the "
            "same command tries them again."
        )
    return table


def _check_metrics(study: Study, cell: Cell) -> None:
    """Find out before the first run whether the task has the metrics that are asked for."""
    task = any_task(cell.config)
    for name in study.metrics or []:
        deciding_metric(task, name)


def _write(study: Study, todo: Sequence[Cell], outcomes: dict[int, Outcome]) -> dict[str, Any]:
    done = [(todo[place], outcome.metrics) for place, outcome in sorted(outcomes.items())]
    table = build_table(study, [(cell, metrics) for cell, metrics in done if metrics])
    write_table(study, table, [(cell, metrics) for cell, metrics in done if metrics])
    return table


def _run(todo: Sequence[Cell], waiting: Sequence[int], workers: int | None, plugins: Sequence[str]) -> Any:
    """Outcomes of runs, as they end; each run has a process of its own."""
    gpus = torch.cuda.device_count()
    workers = workers or max(1, gpus)
    threads = max(1, (os.cpu_count() or 1) // workers)
    # Each run takes a device and gives it back, so that no GPU waits while another has two runs.
    devices: SimpleQueue[str | None] = SimpleQueue()
    for place in range(workers):
        devices.put(f"cuda:{place % gpus}" if gpus > 1 else None)
    with ThreadPoolExecutor(workers) as pool:
        futures = {
            pool.submit(_in_process, todo[place], devices, threads, tuple(plugins)): place
            for place in waiting
        }
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _in_process(
    cell: Cell, devices: "SimpleQueue[str | None]", threads: int, plugins: tuple[str, ...]
) -> Outcome:
    """Run a cell in a process of its own and wait for it; even one that is killed has an outcome."""
    started, device = time.monotonic(), devices.get()
    job = (cell.config.model_dump(), device, threads, plugins, os.getpid())
    process = get_context("spawn").Process(target=run_cell, args=job)
    process.start()
    process.join()
    devices.put(device)
    seconds, error = time.monotonic() - started, cell.folder / ERROR
    if error.is_file():
        return Outcome({}, error.read_text(encoding="utf-8").strip().splitlines()[-1], seconds)
    metrics = read_metrics(cell.folder)
    if process.exitcode != 0 or TEST not in metrics:
        return Outcome({}, f"its process ended with code {process.exitcode}", seconds)
    return Outcome(metrics, None, seconds)


def run_cell(
    settings: dict[str, Any], device: str | None, threads: int, plugins: Sequence[str], parent: int
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
                result = evaluate(folder, report=say, device=config.training.device)
        except UserError as error:
            (folder / ERROR).write_text(f"{error}\n", encoding="utf-8")
            return
        except Exception:
            (folder / ERROR).write_text(traceback.format_exc(), encoding="utf-8")
            return
    add_metrics(folder, TEST, result)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _end_with(parent: int) -> None:
    """End this worker when the process that queues its runs is gone, even if it was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    if os.getppid() == parent:
        threading.Thread(target=watch, daemon=True).start()


def _line(study: Study, cell: Cell, outcome: Outcome, done: int, count: int) -> str:
    head = f"[{done}/{count}] {cell.label}: "
    if outcome.error:
        return f"{head}failed: {outcome.error}"
    names = study.metrics or [outcome.metrics["metric"]]
    values = ", ".join(f"{name} {outcome.metrics[TEST][name]:.4f}" for name in names)
    return f"{head}{values}  ({outcome.seconds:.0f} s)"
