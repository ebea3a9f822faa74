"""Predict by Ray Data: workers on one machine or many, each of which loads the model once."""

import logging
import math
import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from mope.config import MediaLimits
from mope.data.feed import Numbered, numbered
from mope.data.stream import Stream
from mope.errors import UserError
from mope.predictions import PredictedRows
from mope.predictor import Predictor
from mope.remote import rebased

_MOST_BLOCKS = 10_000  # that Ray is given, of several batches each
_LEAST = 4  # batches of a block

Batches = Iterator[PredictedRows]


@dataclass(frozen=True)
class Job:
    """What a worker needs to know.

    Attributes:
        run: the run's folder, which every machine sees, as it does the table.
        table, folder, trusted, encoding, limits: how the rows are read, see `Stream`.
        keep, keep_all, abstain_below: see `Predictor.predict_parts`.
        stop: place behind the last row.
        options: the `Predictor`'s.
        plugins: files that register methods.
    """

    run: Path
    table: str
    folder: str | Path | None
    trusted: bool
    encoding: str | None
    limits: MediaLimits | None
    keep: Sequence[str]
    keep_all: bool
    abstain_below: float | None
    stop: int
    options: dict[str, Any]
    plugins: Sequence[str] = field(default=())

    def absolute(self) -> "Job":
        """The same for a process in another folder."""

        def absolute(path: str) -> str:
            return rebased(path, lambda path: str(Path(path).absolute()))

        folder = None if self.folder is None else absolute(str(self.folder))
        return replace(self, run=self.run.absolute(), table=absolute(self.table), folder=folder)


class _Worker:
    """Predicts batches, which are named by the places of their first rows.

    It goes through the table and passes over what other workers predict; places mostly rise.
    """

    def __init__(self, job: Job):
        from mope.methods import load_plugin

        for file in job.plugins:
            load_plugin(file)
        self.job = job
        self.predictor = Predictor(job.run, **{**job.options, "workers": 0})
        self.stream = Stream(job.table, job.trusted, job.encoding, job.folder, job.limits)
        self.rows: Iterator[Numbered] = iter(())
        self.place = math.inf

    def __call__(self, batch: Any) -> Any:
        """A table with the place of a batch, as one with its predictions."""
        import pyarrow

        try:
            content: Any = self._predict(batch.column("place")[0].as_py())
        except UserError as error:
            content = error
        return pyarrow.table({"content": pyarrow.array([pickle.dumps(content)], pyarrow.binary())})

    def _predict(self, place: int) -> list[PredictedRows]:
        if place < self.place:
            self.rows, self.place = numbered(self.stream, place, self.job.stop), place
        passed = place - int(self.place)
        size = self.predictor.batch_size
        rows = list(islice(self.rows, passed, passed + size))
        self.place = place + size
        job = self.job
        return list(self.predictor.predict_parts(iter(rows), job.keep, job.keep_all, job.abstain_below))


def predict_parts(job: Job, start: int, batch_size: int, workers: int) -> Batches:
    """Predict the rows of a table from one on, in order, a batch at a time.

    Args:
        job: which table, and how.
        start: place of the first row.
        batch_size: rows of a batch.
        workers: how many load the model.

    Raises:
        UserError: Ray isn't installed or fails, or a worker says what is wrong.
    """
    import pyarrow

    ray = _find_ray()
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
            fn_constructor_args=(job.absolute(),),
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


def _taken(content: Any) -> list[PredictedRows]:
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
