"""Rows of all requests in common batches, run by the threads of the model."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, NamedTuple, TypeVar

from mope.serve.limits import busy, closing
from mope.serve.queue import ONLY, FairQueue, Lane

Sample = TypeVar("Sample")
Answer = TypeVar("Answer")


_FULL = 8
"""So many full queues may be held at once, since rows that wait are in memory."""


class _Work(NamedTuple):
    """What a thread is to do: calls, or a batch.

    Attributes:
        calls: functions, with a future each.
        batch: samples, with a future each.
        alone: whether nothing else runs or waits.
        serial: whether the batch is of serial lanes.
    """

    calls: list[Any]
    batch: list[Any]
    alone: bool = False
    serial: bool = False


class Batcher(Generic[Sample, Answer]):
    """A queue of samples, and threads that run them in batches, each of one group's lanes.

    A sample waits for others only while there are others to wait for: rows that were announced and aren't
    read yet. Then it waits 10 ms at most. Alone it runs at once.

    The first thread takes what comes; only while it is busy the others take what waits, each its share. Of
    serial lanes one batch runs at a time, as large as it goes; meanwhile the others' lanes have their turns.

    Args:
        run: makes answers of samples, one each, in order; it is also told whether nothing else runs or waits.
        size: most samples per batch.
        queue: most samples of a lane's owner that are announced or wait.
        wait: longest time in seconds that a batch waits for announced samples.
        threads: in which `run` is called, at the same time.
        own: whether to start the first thread as well; else the caller's `work` is the first.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Sample], bool], Sequence[Answer]],
        size: int,
        queue: int,
        wait: float = 0.01,
        threads: int = 1,
        own: bool = True,
    ):
        self._run, self._size, self._queue, self._wait = run, size, queue, wait
        self._ready = threading.Condition()
        self._waiting: FairQueue[tuple[Sample, Future[Answer]]] = FairQueue()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._coming = 0  # requests and rows that were announced and aren't read
        self._reserved: Counter[tuple[str, str | None]] = Counter()  # rows among them, by owner
        self._closed = False
        self._running, self._first_runs, self._calling, self._serial_runs = 0, False, False, False
        self._threads = threads
        self._own = [
            threading.Thread(target=self.work, args=(place == 0,), name=f"mope-model-{place}", daemon=True)
            for place in range(0 if own else 1, threads)
        ]
        for thread in self._own:
            thread.start()

    def __len__(self) -> int:
        """Samples that are announced or wait."""
        with self._ready:
            return self._reserved.total() + len(self._waiting)

    def announce(self, requests: int) -> None:
        """Say that so many requests are about to be read; with a negative number, that they were."""
        with self._ready:
            self._coming += requests
            if requests < 0:
                self._ready.notify_all()

    def reserve(self, rows: int, lane: Lane = ONLY) -> None:
        """Take places in a lane's owner's queue, each of which is used by `put` or given back by `release`.

        Raises:
            Refusal: 503, there aren't as many.
        """
        with self._ready:
            if self._closed:
                raise closing()
            own = self._reserved[lane.owner] + self._waiting.count(lane)
            if own + rows > self._queue:
                raise busy(f"The queue is full ({self._queue} rows): try again in a second.")
            if len(self) + rows > (most := _FULL * self._queue):
                raise busy(f"The queues of all are full ({most} rows together): try again in a second.")
            self._coming += rows
            self._reserved[lane.owner] += rows

    def put(self, sample: Sample, future: "Future[Answer]", lane: Lane = ONLY) -> None:
        """Use a place; the future gets the answer."""
        with self._ready:
            self._give_back(lane)
            if self._closed:
                future.set_exception(closing())
                return
            self._waiting.append(lane, (sample, future))
            self._ready.notify_all()

    def release(self, lane: Lane = ONLY) -> None:
        """Give a place back."""
        with self._ready:
            self._give_back(lane)
            self._ready.notify_all()

    def _give_back(self, lane: Lane) -> None:
        self._coming -= 1
        self._reserved[lane.owner] -= 1
        if not self._reserved[lane.owner]:
            del self._reserved[lane.owner]  # runs come and go

    def call(self, function: Callable[[], Any]) -> "Future[Any]":
        """Call a function in the first thread, while no batch runs.

        Raises:
            Refusal: 503, too many wait.
        """
        future = new_future()
        with self._ready:
            if self._closed or len(self._calls) >= self._queue:
                raise busy("The server is closing or full: try again in a second.")
            self._calls.append((function, future))
            self._ready.notify_all()
        return future

    def close(self) -> None:
        """Finish the batches that run, refuse the rest, and end the threads."""
        with self._ready:
            self._closed = True
            left = [future for _, future in (*self._waiting.clear(), *self._calls)]
            self._calls.clear()
            self._ready.notify_all()
        for future in left:
            future.set_exception(closing())
        for thread in self._own:
            if threading.current_thread() is not thread:
                thread.join(timeout=30)

    def work(self, first: bool = True) -> None:
        """Run batches until `close`.

        Args:
            first: whether this is the first thread.
        """
        while (work := self._next(first)) is not None:
            try:
                for function, future in work.calls:
                    settle(future, function)
                if work.batch:
                    self._answer(work.batch, work.alone)
            finally:
                self._done(first, work.serial)

    def _next(self, first: bool) -> _Work | None:
        """What to do, as soon as there is anything; None at the end."""
        with self._ready:
            while not self._closed:
                if first and self._calls and not self._running:
                    calls = list(self._calls)
                    self._calls.clear()
                    self._running, self._first_runs, self._calling = 1, True, True
                    return _Work(calls, [])
                if not self._may_run(first):
                    self._ready.wait()
                    continue
                self._gather()
                if not self._closed and self._may_run(first):
                    return self._take(first)
            return None

    def _may_run(self, first: bool) -> bool:
        is_turn = (first or self._first_runs) and not (self._calls or self._calling)
        return is_turn and self._waiting.next(not self._serial_runs) is not None

    def _gather(self) -> None:
        """Wait for samples that are coming, for a while."""
        end = time.monotonic() + self._wait
        while 0 < len(self._waiting) < self._size and self._coming > 0 and not self._closed:
            left = end - time.monotonic()
            if left <= 0:
                return
            self._ready.wait(left)

    def _take(self, first: bool) -> _Work:
        """A batch: of what may run an equal share for each free thread, of serial lanes a whole batch."""
        may = not self._serial_runs
        lane = self._waiting.next(may)
        serial = lane is not None and lane.serial
        share = -(-self._waiting.ready(may) // (self._threads - self._running))
        batch = self._waiting.take(self._size if serial else min(self._size, share), may)
        alone = not (self._running or self._waiting or self._coming)
        self._running += 1
        self._first_runs = self._first_runs or first
        self._serial_runs = self._serial_runs or serial
        self._ready.notify_all()
        return _Work([], batch, alone, serial)

    def _done(self, first: bool, serial: bool) -> None:
        with self._ready:
            self._running -= 1
            self._calling = False
            if first:
                self._first_runs = False
            if serial:
                self._serial_runs = False
            self._ready.notify_all()

    def _answer(self, batch: list[Any], alone: bool) -> None:
        try:
            answers = self._run([sample for sample, _ in batch], alone)
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            # One row must not cost the others theirs, whatever is wrong with it. By halves it is found in few
            # passes, and most of the others go on together.
            middle = len(batch) // 2
            self._answer(batch[:middle], alone)
            self._answer(batch[middle:], alone)
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            future.set_result(answer)


def new_future() -> "Future[Any]":
    """A future that can't be cancelled: whoever waits for it may go away, its thread sets it all the same."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


def settle(future: "Future[Any]", function: Callable[[], Any]) -> None:
    """Give a future what a function returns or raises."""
    try:
        result = function()
    except Exception as error:
        future.set_exception(error)
    else:
        future.set_result(result)
