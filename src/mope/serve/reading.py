"""Threads that read rows, or load runs, whose jobs take turns by run and caller."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import torch

from mope.serve.batching import new_future, settle
from mope.serve.limits import closing
from mope.serve.queue import FairQueue, Lane


class TurnPool:
    """Threads, each of which takes a job of the lane whose turn it is.

    In one queue for all a request with many large pictures would keep everybody's rows waiting. The threads
    end with the process, whatever they are at: a run that is being loaded keeps no server alive.

    Args:
        threads: how many there are; each works with one of PyTorch's.
        name: what they are called.
    """

    def __init__(self, threads: int, name: str):
        self.threads = threads
        self._ready, self._closed = threading.Condition(), False
        self._jobs: FairQueue[tuple[Callable[[], Any], Future[Any]]] = FairQueue()
        setting, all_there = torch.get_num_threads(), threading.Barrier(threads + 1)
        for number in range(threads):
            work = partial(self._work, all_there)
            threading.Thread(target=work, name=f"{name}-{number}", daemon=True).start()
        all_there.wait()
        torch.set_num_threads(setting)  # a thread's setting is also that of later ones

    def submit(self, lane: Lane, function: Callable[[], Any]) -> "Future[Any]":
        """Call a function in one of the threads.

        Returns:
            Its result; a Refusal if its turn didn't come before `close`.
        """
        future = new_future()
        with self._ready:
            if not self._closed:
                self._jobs.append(lane, (function, future))
                self._ready.notify()
                return future
        future.set_exception(closing())
        return future

    def _work(self, all_there: threading.Barrier) -> None:
        # A thread that runs a parallel region of OpenMP gets helpers of its own, which then spin for some
        # 20 ms and take the processor from the model.
        torch.set_num_threads(1)
        all_there.wait()
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._closed or len(self._jobs))
                if self._closed:
                    return
                ((function, future),) = self._jobs.take(1)
            try:
                settle(future, function)
            except BaseException as error:  # such as a tokenizer's panic: the thread goes on
                future.set_exception(error)
            del function, future  # what they hold isn't to wait for the next job

    def close(self) -> None:
        """Refuse what waits; what has begun is ended."""
        with self._ready:
            self._closed = True
            left = self._jobs.clear()
            self._ready.notify_all()
        for _, future in left:
            future.set_exception(closing())
