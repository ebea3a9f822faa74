"""Predict and measure by Ray Data: workers on one machine or many, each of which loads the model once."""

import logging
import math
import os
import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from mope.config import MediaLimits
from mope.data.feed import Numbered, numbered
from mope.data.stream import Stream
from mope.errors import UserError
from mope.evaluation import Measured
from mope.predictions import PredictedRows
from mope.predictor import Predictor
from mope.remote import rebased

_MOST_BLOCKS = 10_000  # that Ray is given, of several batches each
_LEAST = 4  # batches of a block

Content = TypeVar("Content")
"""What is wanted of a batch."""


@dataclass(frozen=True)
class Job(ABC, Generic[Content]):
    """What a worker needs to know.

    Attributes:
        run: the run's folder, which every machine sees, as it does the table.
        stop: place behind the last row.
        options: the `Predictor`'s.
        plugins: files that register methods.
    """

    run: Path
    stop: int
    options: dict[str, Any]
    plugins: Sequence[str]

    @abstractmethod
    def open(self, predictor: Predictor) -> Stream:
        """The rows."""

    @abstractmethod
    def work(self, predictor: Predictor, stream: Stream, rows: list[Numbered]) -> list[Content]:
        """What is wanted of some of them."""

    def absolute(self) -> Self:
        """The same for a process in another folder."""
        return replace(self, run=self.run.absolute())


@dataclass(frozen=True)
class PredictJob(Job[PredictedRows]):
    """Predict rows.

    Attributes:
        table, folder, trusted, encoding, limits: how the rows are read, see `Stream`.
        keep, keep_all, abstain_below: see `Predictor.predict_parts`.
    """

    table: str
    folder: str | Path | None
    trusted: bool
    encoding: str | None
    limits: MediaLimits | None
    keep: Sequence[str]
    keep_all: bool
    abstain_below: float | None

    def open(self, predictor: Predictor) -> Stream:
        """See `Job`."""
        return Stream(self.table, self.trusted, self.encoding, self.folder, self.limits)

    def work(self, predictor: Predictor, stream: Stream, rows: list[Numbered]) -> list[PredictedRows]:
        """See `Job`."""
        return list(predictor.predict_parts(rows, self.keep, self.keep_all, self.abstain_below))

    def absolute(self) -> Self:
        """See `Job`."""
        return replace(super().absolute(), table=_absolute(self.table), folder=_absolute(self.folder))


@dataclass(frozen=True)
class MeasureJob(Job[Measured]):
    """Measure rows with labels.

    Attributes:
        data, folder: which rows, see `Predictor.stream`.
        skip: see `Predictor.measure`.
    """

    data: Any
    folder: str | Path | None
    skip: bool

    def open(self, predictor: Predictor) -> Stream:
        """See `Job`."""
        return predictor.stream(self.data, self.folder)

    def work(self, predictor: Predictor, stream: Stream, rows: list[Numbered]) -> list[Measured]:
        """See `Job`."""
        # A home that several machines share is no place for a store.
        predictor.settings.data.cache_features = False
        return list(predictor.measure(stream, rows, self.skip))

    def absolute(self) -> Self:
        """See `Job`.

        Raises:
            UserError: the rows are no file's.
        """
        if self.data is not None and not isinstance(self.data, str | Path):
            raise UserError("--engine ray reads rows from a file that every machine sees: name one.")
        return replace(super().absolute(), data=_absolute(self.data), folder=_absolute(self.folder))


def _absolute(path: str | Path | None) -> str | None:
    return None if path is None else rebased(str(path), lambda path: str(Path(path).absolute()))


def count_rows(stream: Stream, most: int | None = None) -> int:
    """How many rows there are, read where need be, as they are shared out by their places."""
    rows = stream.length
    if rows is None:
        rows = sum(1 for _ in numbered(stream, 0, most))
    return rows if most is None else min(rows, most)


class _Worker:
    """Works on batches, which are named by the places of their first rows.

    It goes through the table and passes over what other workers do; places mostly rise.
    """

    def __init__(self, job: Job):
        from mope.methods import load_plugin

        for file in job.plugins:
            load_plugin(file)
        self.job = job
        self.predictor = Predictor(job.run, **{**job.options, "workers": 0})
        self.stream = job.open(self.predictor)
        self.rows: Iterator[Numbered] = iter(())
        self.place = math.inf

    def __call__(self, batch: Any) -> Any:
        """A table with the place of a batch, as one with what is wanted of it."""
        import pyarrow

        try:
            content: Any = self._work(batch.column("place")[0].as_py())
        except UserError as error:
            content = error
        return pyarrow.table({"content": pyarrow.array([pickle.dumps(content)], pyarrow.binary())})

    def _work(self, place: int) -> list[Any]:
        if place < self.place:
            self.rows, self.place = numbered(self.stream, place, self.job.stop), place
        passed = place - int(self.place)
        size = self.predictor.batch_size
        rows = list(islice(self.rows, passed, passed + size))
        self.place = place + size
        return self.job.work(self.predictor, self.stream, rows)


def spread(job: Job[Content], start: int, batch_size: int, workers: int) -> Iterator[Content]:
    """Work on the rows of a table from one on, in order, a batch at a time.

    Args:
        job: which table, and what is wanted.
        start: place of the first row.
        batch_size: rows of a batch.
        workers: how many load the model.

    Raises:
        UserError: Ray isn't installed or fails, or a worker says what is wrong.
    """
    import pyarrow

    ray = _find_ray()
    job = job.absolute()
    places = range(start, job.stop, batch_size)
    size = max(_LEAST, math.ceil(len(places) / _MOST_BLOCKS))
    with _started(ray, workers):
        blocks = [
            pyarrow.table({"place": pyarrow.array(places[n : n + size], pyarrow.int64())})
            for n in range(0, len(places), size)
        ]
        if not blocks:
            return
        gpu = ray.cluster_resources().get("GPU", 0) > 0 and job.options.get("device") != "cpu"
        found = ray.data.from_blocks(blocks).map_batches(
            _Worker,
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(blocks))),
            fn_constructor_args=(job,),
            **({"num_gpus": 1} if gpu else {"num_cpus": 1}),
        )
        # Ray ends the whole process when a thread still asks for blocks behind `ray.shutdown`. So its threads
        # are ended first, which closing does, but for the one that prefetches: that has nothing to ask for.
        batches = iter(found.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        try:
            with closing(batches):
                for batch in batches:
                    for content in batch.column("content").to_pylist():
                        yield from _taken(pickle.loads(content))  # which our own workers wrote
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"A worker of Ray failed ({reason}); what was written is kept, and --resume goes on with it."
            ) from None


def _taken(content: Any) -> list[Any]:
    if isinstance(content, UserError):
        raise content
    return content


def _find_ray() -> Any:
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError:
        raise UserError("--engine ray takes Ray: pip install 'mope-fusion[ray]'.") from None
    return ray


@contextmanager
def _started(ray: Any, workers: int) -> Iterator[None]:
    """A cluster: the one that runs already or that RAY_ADDRESS names, else this machine alone."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    own = not ray.is_initialized()
    if own:
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
        try:
            if os.environ.get("RAY_ADDRESS"):
                ray.init(**quiet)
            else:
                ray.init("local", num_cpus=workers, include_dashboard=False, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"Ray can't be started: {str(error).strip().splitlines()[0]}") from None
    context = ray.data.DataContext.get_current()
    ordered, bars = context.execution_options.preserve_order, context.enable_progress_bars
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        context.execution_options.preserve_order, context.enable_progress_bars = ordered, bars
        if own:
            ray.shutdown()
