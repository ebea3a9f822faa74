"""What many runs behind one server cost, beside one of them."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from mope.bench.serve import all_at_once, bodies_of, wait_for
from mope.bench.turns import in_turn, ratio_of
from mope.files import read_yaml
from mope.hub import find_run
from mope.predictor import Predictor
from mope.run import CONFIG, DIGEST, WEIGHTS
from mope.weights import read_weights, write_weights

_NOISE = 0.01
"""By which the copies' weights differ, as a share of each: other runs, as far as a server knows."""


def bench_runs(
    run: str | Path,
    count: int,
    *,
    clients: int = 64,
    rows: int = 256,
    rounds: int = 5,
    plugins: Sequence[str] = (),
    device: str | None = None,
) -> dict[str, Any]:
    """Measure a server of many runs beside one of a single run.

    The runs are copies of one, each with other weights of its own; their frozen encoders are the same. Rounds
    take turns: all rows for one of the runs, and rows spread over all of them. Rows are of the run's test
    table, one a request.

    Args:
        run: the run's folder.
        count: how many runs.
        clients, rows, rounds, plugins, device: see `bench_serve`.

    Returns:
        `memory`: resident bytes of a server of `one` run and of `all`, once each run was asked, and `ratio`;
        `rows_per_second`: medians for `one` and for `all`, and `ratio`, the median of the rounds', with its
        `interval`, see `Ratio`; `runs`,
        `threads` and `load` as of `bench_serve`.

    Raises:
        UserError: the run has no test table, or a server doesn't start.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    predictor = Predictor(run, device=device)
    bodies = bodies_of(predictor, rows)
    options = [word for file in plugins for word in ("--plugin", file)]
    options += ["--device", device] if device else []
    with tempfile.TemporaryDirectory(prefix="mope-bench-") as folder:
        names = _copies(find_run(run), Path(folder) / "runs", count)
        one = [(f"/v1/runs/{names[0]}/predict", body) for body in bodies]
        every = [(f"/v1/runs/{names[n % count]}/predict", body) for n, body in enumerate(bodies)]
        each = [(f"/v1/runs/{name}/predict", bodies[n % rows]) for n, name in enumerate(names)]
        with _Server([str(Path(folder) / "runs" / names[0])], options) as server:
            all_at_once(one, server.port, clients)
            alone = server.memory()
        with _Server([str(Path(folder) / "runs")], options) as server:
            all_at_once(each, server.port, clients)
            all_at_once(one, server.port, clients)
            together = server.memory()
            speed = _speed(one, every, server.port, clients, rounds)
    return {
        "runs": count,
        "memory": {"one": alone, "all": together, "ratio": together / alone},
        "rows_per_second": speed,
        "threads": torch.get_num_threads(),
        "load": load,
    }


def _speed(one: Any, every: Any, port: int, clients: int, rounds: int) -> dict[str, Any]:
    found: dict[str, list[float]] = {"one": [], "all": []}
    variants = [("one", one), ("all", every)]
    for turn in range(-1, rounds):  # the first warms up
        for name, requests in in_turn(variants, turn):
            started = time.perf_counter()
            all_at_once(requests, port, clients)
            if turn >= 0:
                found[name].append(len(requests) / (time.perf_counter() - started))
    ratio = ratio_of(b / a for a, b in zip(found["one"], found["all"], strict=True))
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    return {**medians, "ratio": ratio.median, "interval": ratio.interval}


def _copies(run: Path, folder: Path, count: int) -> list[str]:
    """Runs that differ in what they learned."""
    weights, settings = read_weights(run / WEIGHTS), read_yaml(run / CONFIG, "config", "a run's settings")
    names = []
    for number in range(count):
        names.append(f"run{number:03d}")
        copy = folder / names[-1]
        copy.mkdir(parents=True)
        torch.manual_seed(number)
        changed = {  # a factor, so that a variance stays above zero
            name: tensor * (1 + _NOISE * torch.randn_like(tensor)) if tensor.is_floating_point() else tensor
            for name, tensor in weights.items()
        }
        settings["run"][DIGEST] = write_weights(copy / WEIGHTS, changed)
        content = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        (copy / CONFIG).write_text(content, encoding="utf-8")
    return names


class _Server:
    """`mope serve` of some runs, in a process of its own.

    Args:
        runs: what it is to serve.
        options: further words of its command line.
    """

    def __init__(self, runs: list[str], options: list[str]):
        command = [
            sys.executable,
            "-m",
            "mope",
            "serve",
            *runs,
            "--port",
            "0",
            "--no-page",
            "--json",
            *options,
        ]
        environment = {name: value for name, value in os.environ.items() if name != "MOPE_TOKEN"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    def __enter__(self) -> "_Server":
        try:
            self.port = wait_for(self.process)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def memory(self) -> int:
        """Resident bytes."""
        import psutil

        return psutil.Process(self.process.pid).memory_info().rss
