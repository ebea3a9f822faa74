"""What serving costs: a row over HTTP beside the bare model, and many clients beside `Predictor.predict`."""

import base64
import http.client
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mope.bench.turns import Turns, in_turn, ratio_of
from mope.data.check import SUFFIXES
from mope.data.dataset import collate
from mope.data.splits import cells_of
from mope.errors import UserError
from mope.media.cells import is_missing, source_of
from mope.predictor import Predictor

_START_SECONDS = 300
_REST = 0.05


def bench_serve(
    run: str | Path,
    *,
    repeats: int = 200,
    clients: int = 64,
    rows: int = 256,
    rounds: int = 5,
    plugins: Sequence[str] = (),
    device: str | None = None,
) -> dict[str, Any]:
    """Measure a run behind a server, in a process of its own, beside the same run in this one.

    Both have as many threads as PyTorch takes. Where other programs want the processors too, a process's
    first threads spin while they wait for each other, which makes the run itself many times slower than the
    server: set OMP_NUM_THREADS=1 there, which holds for both.

    The two take turns, every other one backwards, so that what else the machine does falls on both: first
    single rows, each with the bare model's forward pass of the same row; then rounds of many clients, each
    with `Predictor.predict` of the same rows. Rows are of the run's test table, repeated if there are fewer.

    Args:
        run: the run's folder.
        repeats: single rows.
        clients: that ask at the same time, one row a request, each again as soon as it is answered.
        rows: per round.
        rounds: of many clients.
        plugins: files to run first, in the server too.
        device: see `Predictor`.

    Returns:
        `single`: medians in milliseconds of `bare` and `served`; `parallel`: medians in rows per second of
        `offline` and `served`; in both `ratio`, the median over rows and over rounds, and its `interval`, see
        `Ratio`; `threads`: PyTorch's; `load`: the machine's at the start, over a minute, where that is known.

    Raises:
        UserError: the run has no test table, or the server doesn't start.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    predictor = Predictor(run, device=device)
    cells = rows_of(predictor, rows)
    bodies = [_body(predictor, row) for row in cells]
    command = [sys.executable, "-m", "mope", "serve", str(run), "--port", "0", "--no-page", "--json"]
    command += [word for file in plugins for word in ("--plugin", file)]
    command += ["--device", device] if device else []
    environment = {name: value for name, value in os.environ.items() if name != "MOPE_TOKEN"}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        port = wait_for(server)
        return {
            "single": _single(predictor, cells, bodies, port, repeats),
            "parallel": _parallel(predictor, cells, bodies, port, clients, rounds),
            "threads": torch.get_num_threads(),
            "load": load,
        }
    finally:
        server.terminate()
        server.wait(timeout=60)
        if server.stdout is not None:
            server.stdout.close()


def rows_of(predictor: Predictor, count: int) -> list[dict[str, Any]]:
    """Rows of the test table with the content of their files, which is what a request holds."""
    table = predictor.table()
    entries = [predictor.settings.inputs[name] for name in predictor.readers]
    found = []
    for place in range(min(count, len(table))):
        row = table[place]
        cells: dict[str, Any] = {}
        for column, kind in cells_of(entries).items():
            cell = row.get(column)
            if kind in SUFFIXES and not is_missing(cell):
                source = source_of(cell, table.folder, kind)
                cell = source.read_bytes() if isinstance(source, Path) else source.getvalue()
            cells[column] = cell
        found.append(cells)
    return [found[place % len(found)] for place in range(count)]


def bodies_of(predictor: Predictor, count: int) -> list[bytes]:
    """As many rows of the run's test table as requests hold them, one each."""
    return [_body(predictor, row) for row in rows_of(predictor, count)]


def _body(predictor: Predictor, row: dict[str, Any]) -> bytes:
    cells = {}
    for name, reader in predictor.readers.items():
        cell = reader.cell(row)
        cells[name] = base64.b64encode(cell).decode() if isinstance(cell, bytes) else cell
    return json.dumps({"row": cells}).encode()


def wait_for(server: Any) -> int:
    """The port of a server, once it answers."""
    port, end = None, time.monotonic() + _START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        if port is None:
            line = server.stdout.readline()  # it ends with the server, if that fails
            if line.startswith("{"):
                port = int(json.loads(line)["address"].rpartition(":")[2])
            continue
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/healthz")
            if connection.getresponse().status == 200:
                return port
        except OSError:
            time.sleep(0.2)
    raise UserError("The server didn't start: see what it says above.")


def _ask(connection: http.client.HTTPConnection, body: bytes, path: str = "/v1/predict") -> None:
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = json.loads(answer.read())
    if answer.status != 200 or content["predictions"][0]["error"]:
        raise UserError(f"The server answered {answer.status}: {content}.")


def _single(
    predictor: Predictor, cells: list[dict[str, Any]], bodies: list[bytes], port: int, repeats: int
) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    seconds: dict[str, list[float]] = {"bare": [], "served": []}
    for turn in range(-5, repeats):  # the first few warm both up
        place = turn % len(cells)
        sample = {name: r.sample(r.cell(cells[place]), Path()) for name, r in predictor.readers.items()}
        batch = collate([sample], predictor.readers, None)
        steps = [
            ("bare", lambda batch=batch: predictor.forward_batch(batch)),
            ("served", lambda body=bodies[place]: _ask(connection, body)),
        ]
        for name, step in in_turn(steps, turn):
            time.sleep(_REST)  # until the threads of the other process sleep, which spin for a while
            started = time.perf_counter()
            step()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - started)
    connection.close()
    medians = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
    ratio = Turns(seconds).ratio("served", "bare")
    return {**medians, "ratio": ratio.median, "interval": ratio.interval}


def _parallel(
    predictor: Predictor,
    cells: list[dict[str, Any]],
    bodies: list[bytes],
    port: int,
    clients: int,
    rounds: int,
) -> dict[str, Any]:
    requests = [("/v1/predict", body) for body in bodies]
    rates: dict[str, list[float]] = {"offline": [], "served": []}
    steps = [
        ("offline", lambda: predictor.predict(cells)),
        ("served", lambda: all_at_once(requests, port, clients)),
    ]
    for turn in range(-1, rounds):
        for name, step in in_turn(steps, turn):
            started = time.perf_counter()
            step()
            if turn >= 0:
                rates[name].append(len(cells) / (time.perf_counter() - started))
    ratio = ratio_of(one / other for one, other in zip(rates["served"], rates["offline"], strict=True))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {**medians, "ratio": ratio.median, "interval": ratio.interval}


def all_at_once(requests: Sequence[tuple[str, bytes]], port: int, clients: int) -> None:
    """Send bodies to their paths from so many threads, each with a connection of its own."""
    failures: list[BaseException] = []

    def client(own: Sequence[tuple[str, bytes]]) -> None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
            for path, body in own:
                _ask(connection, body, path)
            connection.close()
        except (OSError, UserError, http.client.HTTPException) as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(requests[n::clients],)) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise UserError(f"{len(failures)} of {clients} clients failed, such as: {failures[0]}.")
