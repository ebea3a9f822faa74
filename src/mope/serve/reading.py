"""Threads that read rows, or load runs, whose jobs take turns by run and caller."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from mope.serve.batching import new_future, settle
from mope.serve.limits import closing
from mope.serve.queue import FairQueue, Lane


class TurnPool:
    """A pool of threads, each of which takes a job of the lane whose turn it is.

    In one queue for all a request with many large pictures would keep everybody's rows waiting.

    Args:
        threads: how many there are; each works with one of PyTorch's.
        name: what they are called.
    """

    def __init__(self, threads: int, name: str):
        self.threads, self._pool = threads, _settled(threads, name)
        self._lock, self._closed = threading.Lock(), False
        self._jobs: FairQueue[tuple[Callable[[], Any], Future[Any]]] = FairQueue()

    def submit(self, lane: Lane, function: Callable[[], Any]) -> "Future[Any]":
        """Call a function in one of the threads.

        Returns:
            Its result; a Refusal if its turn didn't come before `close`.
        """
        future = new_future()
        with self._lock:
            if not self._closed:
                self._jobs.append(lane, (function, future))
                self._pool.submit(self._work)  # whichever job's turn it is by then
                return future
        future.set_exception(closing())
        return future

    def _work(self) -> None:
        with self._lock:
            jobs = self._jobs.take(1)  # none after `close`
        for function, future in jobs:
            settle(future, function)

    def close(self) -> None:
        """Refuse what waits; what has begun is ended."""
        with self._lock:
            self._closed = True
            left = self._jobs.clear()
        for _, future in left:
            future.set_exception(closing())
        self._pool.shutdown(wait=False)


def _settled(count: int, name: str) -> ThreadPoolExecutor:
    """Threads that work each by itself.

    A thread that runs a parallel region of OpenMP gets helpers of its own, which then spin for some 20 ms and
    take the processor from the model. PyTorch's setting is of the thread that makes it, and of later ones.
    """
    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
    threads, all_there = torch.get_num_threads(), threading.Barrier(count)

    def use_one() -> None:
        all_there.wait()
        torch.set_num_threads(1)

    for future in [pool.submit(use_one) for _ in range(count)]:
        future.result()
    torch.set_num_threads(threads)
    return pool
