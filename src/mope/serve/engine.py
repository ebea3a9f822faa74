"""From rows to predictions: threads that read rows, and threads that run the model."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mope.data.dataset import collate
from mope.data.readers import ImageReader
from mope.errors import UserError
from mope.insight.attention import attention_of
from mope.media.cells import BadCell
from mope.media.images import picture_size
from mope.predictions import Prediction
from mope.predictor import Predictor
from mope.serve.batching import Batcher, new_future
from mope.serve.limits import Refusal
from mope.serve.media import check_media, decode_base64, require_packages
from mope.serve.metrics import Metrics
from mope.serve.rows import Row
from mope.serve.settings import ServeSettings

_NOWHERE = Path()
_MODELS = 4
"""Batches that run at the same time at most. Measured on two cores only; Python's lock sets some bound."""


@dataclass(frozen=True)
class Sample:
    """A row that was read.

    Attributes:
        inputs: by name, as the readers gave them.
        size: (height, width) of its picture, where a mask is wanted.
    """

    inputs: dict[str, Any]
    size: tuple[int, int] | None


class Engine:
    """A predictor behind a queue.

    Args:
        predictor: the run; from now on it keeps no pictures on disk.
        settings: the limits.
        metrics: counts rows and batches.
        thread: whether the model has a thread of its own; else the caller's `work` is the one.

    Raises:
        UserError: a package that reads the run's inputs isn't installed.
    """

    def __init__(self, predictor: Predictor, settings: ServeSettings, metrics: Metrics, thread: bool = True):
        self.predictor, self.settings, self.metrics = predictor, settings, metrics
        self.kinds = {name: predictor.settings.inputs[name].kind for name in predictor.readers}
        require_packages(self.kinds.values())
        for reader in predictor.readers.values():
            if isinstance(reader, ImageReader):
                reader.cache = None  # strangers' pictures aren't kept, and it is for one thread
        self._is_open, self._own = False, thread
        self._threads = torch.get_num_threads()
        # On a CPU several batches of one thread each get further than one of all threads.
        fusion = predictor.model.fusion
        may = fusion.reentrant and all(fusion.encoder(name).encoder.reentrant for name in fusion.encoders)
        self._models = min(self._threads, _MODELS) if may and predictor.device.type == "cpu" else 1
        self.open()
        metrics.follow_queue(lambda: len(self.batcher))

    def open(self) -> None:
        """Start the threads, unless they run: an app may be started again after it was shut down."""
        if self._is_open:
            return
        settings = self.settings
        self.pool = _readers(max(2, min(4, os.cpu_count() or 1)))
        self.batcher: Batcher[Sample, Prediction] = Batcher(
            self._run, settings.batch, settings.queue, threads=self._models, own=self._own
        )
        self._is_open = True

    def work(self) -> None:
        """Run the model in this thread until `close`."""
        self.batcher.work()

    def close(self) -> None:
        """End the threads; what still waits is refused."""
        self._is_open = False
        self.batcher.close()
        self.pool.shutdown(wait=False)  # rows that are being read still have their futures to settle

    def submit(self, parse: Callable[[], list[Row]]) -> "list[Future[Prediction]]":
        """Read rows, here and in the pool, and let the model run them.

        Args:
            parse: gives the rows.

        Returns:
            A future for each row, which may fail with a Refusal.

        Raises:
            Refusal: what `parse` raises; or the queue is full.
        """
        self.batcher.announce(1)
        try:
            rows = parse()
            self.batcher.reserve(len(rows))
        finally:
            self.batcher.announce(-1)
        futures: list[Future[Prediction]] = [new_future() for _ in rows]
        for place in range(1, len(rows)):
            self.pool.submit(self._read, rows[place], futures[place], f"Row {place + 1}, ")
        if rows:
            # The first one here: a row that comes alone needn't change threads.
            self._read(rows[0], futures[0], "Row 1, " if len(rows) > 1 else "")
        return futures

    def _read(self, row: Row, future: "Future[Prediction]", name: str) -> None:
        try:
            sample = self._sample(row, name)
        except BadCell as error:
            self.batcher.release()
            self.metrics.rows.labels("unusable").inc()
            future.set_result(Prediction(error=str(error)))
        except Exception as error:
            self.batcher.release()
            future.set_exception(error)
        else:
            self.batcher.put(sample, future)

    def _sample(self, row: Row, place: str) -> Sample:
        """A row as the readers make it.

        Raises:
            BadCell: it can't be used.
            Refusal: something in it is larger than the limits.
        """
        inputs, size = {}, None
        for name, reader in self.predictor.readers.items():
            try:
                cell = self._cell(name, row.get(name))
                inputs[name] = reader.sample(cell, _NOWHERE)
                if name == self.predictor.settings.picture:
                    size = picture_size(cell, _NOWHERE)
            except BadCell as error:
                raise BadCell(f"{name}: {error}") from None
            except Refusal as refusal:
                raise Refusal(
                    refusal.status_code, refusal.reason, f"{place}{name}: {refusal.detail}"
                ) from None
        return Sample(inputs, size)

    def _cell(self, name: str, value: Any) -> Any:
        """What a reader is given: never a text for media, which it would take for a path."""
        kind = self.kinds[name]
        if kind == "table":
            return self.predictor.readers[name].cell(value or {})
        if value is None:
            return value
        if kind == "text":
            # The API's schema says so as well; what the page sends comes here unchecked.
            if len(value) > (limit := self.settings.characters):
                raise Refusal(422, "shape", f"longer than {limit:,} characters.")
            return value
        content = decode_base64(value) if isinstance(value, str) else value
        check_media(kind, content, self.settings)
        return content

    def _run(self, samples: Sequence[Sample], alone: bool) -> list[Prediction]:
        started = time.perf_counter()
        if self._models > 1:
            torch.set_num_threads(self._threads if alone else 1)  # of this thread
        batch = collate([sample.inputs for sample in samples], self.predictor.readers, None)
        sizes = [sample.size for sample in samples if sample.size is not None]
        try:
            predictions = self.predictor.predict_batch(batch, sizes or None)
        except Exception:
            self.metrics.errors.labels("forward").inc()
            raise
        self.metrics.forward.observe(time.perf_counter() - started)
        self.metrics.batches.observe(len(samples))
        self.metrics.rows.labels("predicted").inc(len(samples))
        return predictions

    def attention(self, row: Row) -> Any:
        """Attention over a usable row's main picture, (rows, columns); None where it can't be had."""
        cells: dict[str, Any] = {}
        for name, kind in self.kinds.items():
            cell = self._cell(name, row.get(name))
            cells |= cell if kind == "table" else {self.predictor.readers[name].columns[0]: cell}
        try:
            return self.batcher.call(lambda: attention_of(self.predictor, [cells])).result()[0]
        except UserError:
            return None


def _readers(count: int) -> ThreadPoolExecutor:
    """Threads that read rows, each by itself.

    A thread that runs a parallel region of OpenMP gets helpers of its own, which then spin for some 20 ms and
    take the processor from the model. PyTorch's setting is of the thread that makes it, and of later ones.
    """
    pool = ThreadPoolExecutor(count, thread_name_prefix="mope-read")
    threads, all_there = torch.get_num_threads(), threading.Barrier(count)

    def settle() -> None:
        all_there.wait()
        torch.set_num_threads(1)

    for future in [pool.submit(settle) for _ in range(count)]:
        future.result()
    torch.set_num_threads(threads)
    return pool
