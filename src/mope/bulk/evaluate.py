"""Evaluate a run on a table of any size."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mope.bulk.cluster import MeasureJob, count_rows, spread
from mope.bulk.run import require_engine
from mope.data.feed import numbered
from mope.data.splits import Report
from mope.evaluation import Summary, collect
from mope.graphs import Compile
from mope.hub import find_run
from mope.logs import say
from mope.predictor import Predictor
from mope.tasks.metrics import Metrics


def evaluate(
    run: str | Path,
    data: Any = None,
    *,
    folder: str | Path | None = None,
    skip_bad_rows: bool = False,
    by_pattern: bool = False,
    device: str | None = None,
    batch_size: int = 32,
    workers: int = 1,
    compile: Compile = "none",
    engine: str = "here",
    plugins: Sequence[str] = (),
    report: Report = say,
) -> dict[str, Any]:
    """A run's metrics on its test rows, or on another table, with no more memory for many rows than for few.

    Args:
        run: the run's folder.
        data: a table's file, or rows in memory; None for the test rows of the run's config.
        folder: what paths in it are relative to; None for the file's folder, or the current one.
        skip_bad_rows: leave out rows that can't be used, and say how many; else they are refused.
        by_pattern: also give the metrics of the rows that have the same inputs, by what these are.
        device, batch_size, workers, compile: see `Predictor`.
        engine: `here`, or `ray`: then `workers` are so many that load the model, see `mope.bulk.cluster`.
        plugins: files that register methods, which Ray's workers load.
        report: takes each line that is said.

    Returns:
        Metrics by name, and `rows`; with `by_pattern`, the same under `patterns`, by such as `image+text`.

    Raises:
        UserError: rows can't be read or used, or the engine fails or takes no rows in memory.
    """
    require_engine(engine)
    options: dict[str, Any] = {"device": device, "batch_size": batch_size, "workers": workers}
    options["compile"] = compile
    predictor = Predictor(run, **options)
    stream = predictor.stream(data, folder)
    if stream.note is not None:
        report(stream.note)
    if engine == "ray":
        job = MeasureJob(
            find_run(run), count_rows(stream), options, plugins, data=data, folder=folder, skip=skip_bad_rows
        )
        batches = spread(job, 0, batch_size, max(1, workers))
    else:
        rows = tqdm(numbered(stream), f"evaluating {stream.name}", stream.length, False, disable=None)
        batches = predictor.measure(stream, rows, skip_bad_rows)
    summary = Summary(predictor.model.task, by_pattern)
    collect(batches, summary, stream.name, skip_bad_rows, report)
    return Metrics(summary.metrics())
