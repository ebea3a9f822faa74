"""From rows to predictions: threads that read rows, and threads that run the model."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from mope.data.dataset import collate
from mope.errors import UserError
from mope.insight.attention import attention_of
from mope.media.cells import BadCell
from mope.predictions import Prediction
from mope.predictors import Share, predict_together
from mope.serve.batching import Batcher, new_future
from mope.serve.limits import Turns
from mope.serve.metrics import Metrics
from mope.serve.queue import Lane
from mope.serve.reading import TurnPool
from mope.serve.rows import Row
from mope.serve.served import Sample, Served
from mope.serve.settings import ServeSettings

_MODELS = 4
"""Batches that run at the same time at most. Measured on two cores only; Python's lock sets some bound."""

_LOADS = 4
"""Runs that are fetched at the same time at most: they are loaded one by one, but a hub may take its time."""


class Engine:
    """Models behind a queue.

    Args:
        settings: the limits.
        metrics: counts rows and batches.
        cpu: whether models run on the processor.
        thread: whether the models have a thread of their own; else the caller's `work` is the one.

    Attributes:
        pool: reads rows.
        loads: loads runs, so that nobody waits for who waits for one.
        files: the thread that looks at runs' files.
    """

    def __init__(self, settings: ServeSettings, metrics: Metrics, cpu: bool = True, thread: bool = True):
        self.settings, self.metrics = settings, metrics
        self.turns = Turns(settings.queue)
        self._is_open, self._own = False, thread
        self._threads = torch.get_num_threads()
        # On a CPU several batches, which share the threads, get further than one of all threads.
        self._models = min(self._threads, _MODELS) if cpu else 1
        self.open()
        metrics.follow_queue(lambda: len(self.batcher))

    def open(self) -> None:
        """Start the threads, unless they run: an app may be started again after it was shut down."""
        if self._is_open:
            return
        settings = self.settings
        self.pool = TurnPool(max(2, min(4, os.cpu_count() or 1)), "mope-read")
        self.loads = TurnPool(_LOADS, "mope-load")
        self.files = ThreadPoolExecutor(1, thread_name_prefix="mope-list")
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
        self.pool.close()
        self.loads.close()
        self.files.shutdown(wait=False, cancel_futures=True)

    def ask(
        self, served: Served, parse: Callable[[], list[Row]], caller: str | None = None
    ) -> "Future[list[Future[Prediction]]]":
        """`submit`, once it is the turn of the run and the caller: parsing takes a while, too."""
        return self.pool.submit(served.lane_of(caller), partial(self.submit, served, parse, caller))

    def load(self, get: Callable[[], Served], caller: str | None = None) -> "Future[Served]":
        """A run that isn't in memory, once it is the caller's turn."""
        return self.loads.submit(Lane(caller=caller), get)

    def submit(
        self, served: Served, parse: Callable[[], list[Row]], caller: str | None = None
    ) -> "list[Future[Prediction]]":
        """Read a run's rows, here and in the pool, and let the model run them; see `ask`.

        Args:
            served: the run.
            parse: gives the rows.
            caller: whose they are, where each has a share of the queue.

        Returns:
            A future for each row, which may fail with a Refusal.

        Raises:
            Refusal: what `parse` raises; or the queue is full.
        """
        lane = served.lane_of(caller)
        self.batcher.announce(1)
        try:
            rows = parse()
            with self.turns.taken(caller, len(rows)):
                self.batcher.reserve(len(rows), lane)
        finally:
            self.batcher.announce(-1)
        futures: list[Future[Prediction]] = [new_future() for _ in rows]
        if caller is not None:
            for future in futures:
                future.add_done_callback(partial(self._give_turn, caller))
        for place in range(1, len(rows)):
            read = partial(self._read, served, lane, rows[place], futures[place], f"Row {place + 1}, ")
            self.pool.submit(lane, read).add_done_callback(partial(self._drop, lane, futures[place]))
        if rows:
            # The first one here: a row that comes alone needn't change threads.
            self._read(served, lane, rows[0], futures[0], "Row 1, " if len(rows) > 1 else "")
        return futures

    def _drop(self, lane: Lane, future: "Future[Prediction]", job: "Future[None]") -> None:
        """Refuse a row that isn't read any more."""
        if (refusal := job.exception()) is not None:
            self.batcher.release(lane)
            future.set_exception(refusal)

    def _give_turn(self, caller: str, _: "Future[Prediction]") -> None:
        self.turns.give(caller, 1)

    def _read(self, served: Served, lane: Lane, row: Row, future: "Future[Prediction]", name: str) -> None:
        try:
            sample = served.sample(row, name)
        except BadCell as error:
            self.batcher.release(lane)
            self.metrics.rows.labels("unusable").inc()
            future.set_result(Prediction(error=str(error)))
        except Exception as error:
            self.batcher.release(lane)
            future.set_exception(error)
        else:
            self.batcher.put(sample, future, lane)

    def _run(self, samples: Sequence[Sample], alone: bool) -> list[Prediction]:
        """Predictions of rows, whichever of the group's runs they are for."""
        started = time.perf_counter()
        if self._models > 1:
            one_of_several = not (alone or samples[0].served.lane.serial)
            threads = self._threads // self._models if one_of_several else self._threads
            torch.set_num_threads(threads)  # of this thread
        places: dict[int, list[int]] = {}
        for place, sample in enumerate(samples):
            places.setdefault(id(sample.served), []).append(place)
        shares = [_share([samples[place] for place in some]) for some in places.values()]
        try:
            found = predict_together(shares)
        except Exception:
            self.metrics.errors.labels("forward").inc()
            raise
        self.metrics.forward.observe(time.perf_counter() - started)
        self.metrics.batches.observe(len(samples))
        predictions: dict[int, Prediction] = {}
        for some, one in zip(places.values(), found, strict=True):
            predictions.update(zip(some, one, strict=True))
        failed = sum(prediction.error is not None for prediction in predictions.values())
        for outcome, count in (("predicted", len(samples) - failed), ("unusable", failed)):
            self.metrics.rows.labels(outcome).inc(count)
        return [predictions[place] for place in range(len(samples))]

    def attention(self, served: Served, row: Row) -> Any:
        """Attention over a usable row's main picture, (rows, columns); None where it can't be had."""
        cells = served.cells(row)
        try:
            return self.batcher.call(lambda: attention_of(served.predictor, [cells])).result()[0]
        except UserError:
            return None


def _share(samples: Sequence[Sample]) -> Share:
    """Rows of one run as a batch."""
    predictor = samples[0].served.predictor
    batch = collate([sample.inputs for sample in samples], predictor.readers, None)
    sizes = [sample.size for sample in samples if sample.size is not None]
    return Share(predictor, batch, sizes or None)
