"""Rows of all requests in common batches, run by the one thread that owns the model."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from mope.serve.limits import busy

Sample = TypeVar("Sample")
Answer = TypeVar("Answer")


class Batcher(Generic[Sample, Answer]):
    """A queue of samples, and a thread that runs them in batches.

    A sample waits for others only while there are others to wait for: rows that were announced and aren't
    read yet. Then it waits 10 ms at most. Alone it runs at once.

    Args:
        run: makes answers of samples, one each, in order; called in one thread only.
        size: most samples per batch.
        queue: most samples that are announced or wait.
        wait: longest time in seconds that a batch waits for announced samples.
        thread: whether to start a thread for it; else the caller's `work` is the one.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Sample]], Sequence[Answer]],
        size: int,
        queue: int,
        wait: float = 0.01,
        thread: bool = True,
    ):
        self._run, self._size, self._queue, self._wait = run, size, queue, wait
        self._ready = threading.Condition()
        self._waiting: deque[tuple[Sample, Future[Answer]]] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._coming = 0  # requests and rows that were announced and aren't read
        self._reserved = 0  # rows among them
        self._closed = False
        self._thread = threading.Thread(target=self.work, name="mope-model", daemon=True) if thread else None
        if self._thread is not None:
            self._thread.start()

    def __len__(self) -> int:
        """Samples that are announced or wait."""
        return self._reserved + len(self._waiting)

    def announce(self, requests: int) -> None:
        """Say that so many requests are about to be read; with a negative number, that they were."""
        with self._ready:
            self._coming += requests
            if requests < 0:
                self._ready.notify()

    def reserve(self, rows: int) -> None:
        """Take places in the queue, each of which is used by `put` or given back by `release`.

        Raises:
            Refusal: 503, there aren't as many.
        """
        with self._ready:
            if self._closed:
                raise busy("The server is closing.")
            if len(self) + rows > self._queue:
                raise busy(f"The queue is full ({self._queue} rows): try again in a second.")
            self._coming += rows
            self._reserved += rows

    def put(self, sample: Sample, future: "Future[Answer]") -> None:
        """Use a place; the future gets the answer."""
        with self._ready:
            self._coming -= 1
            self._reserved -= 1
            if self._closed:
                future.set_exception(busy("The server is closing."))
                return
            self._waiting.append((sample, future))
            self._ready.notify()

    def release(self) -> None:
        """Give a place back."""
        with self._ready:
            self._coming -= 1
            self._reserved -= 1
            self._ready.notify()

    def call(self, function: Callable[[], Any]) -> "Future[Any]":
        """Call a function in the model's thread, between batches.

        Raises:
            Refusal: 503, too many wait.
        """
        future = new_future()
        with self._ready:
            if self._closed or len(self._calls) >= self._queue:
                raise busy("The server is closing or full: try again in a second.")
            self._calls.append((function, future))
            self._ready.notify()
        return future

    def close(self) -> None:
        """Finish the batch that runs, refuse the rest, and end the thread."""
        with self._ready:
            self._closed = True
            left = [future for _, future in (*self._waiting, *self._calls)]
            self._waiting.clear()
            self._calls.clear()
            self._ready.notify()
        for future in left:
            future.set_exception(busy("The server is closing."))
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join(timeout=30)

    def work(self) -> None:
        """Run batches until `close`."""
        while (work := self._next()) is not None:
            calls, batch = work
            for function, future in calls:
                _settle(future, function)
            if batch:
                self._answer(batch)

    def _next(self) -> tuple[list[Any], list[Any]] | None:
        """Calls and a batch to run, as soon as there is one; None at the end."""
        with self._ready:
            while not (self._waiting or self._calls or self._closed):
                self._ready.wait()
            if self._closed:
                return None
            end = time.monotonic() + self._wait
            while self._waiting and len(self._waiting) < self._size and self._coming > 0:
                left = end - time.monotonic()
                if left <= 0 or self._closed:
                    break
                self._ready.wait(left)
            calls = list(self._calls)
            self._calls.clear()
            batch = [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]
            return calls, batch

    def _answer(self, batch: list[Any]) -> None:
        try:
            answers = self._run([sample for sample, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            # One row must not cost the others theirs, whatever is wrong with it.
            for entry in batch:
                self._answer([entry])
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            future.set_result(answer)


def new_future() -> "Future[Any]":
    """A future that can't be cancelled: whoever waits for it may go away, its thread sets it all the same."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


def _settle(future: "Future[Any]", function: Callable[[], Any]) -> None:
    try:
        result = function()
    except Exception as error:
        future.set_exception(error)
    else:
        future.set_result(result)
