"""Predict a table of any size into a file."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mope.bulk.cluster import PredictJob, count_rows, spread
from mope.bulk.columns import Columns, Keep
from mope.bulk.formats import Format, format_of
from mope.bulk.parts import Parts, require_free
from mope.config import MediaLimits
from mope.data.dataset import RowReader
from mope.data.feed import numbered
from mope.data.shards import find_files
from mope.data.splits import Report
from mope.data.stream import Stream
from mope.errors import UserError
from mope.files import digest
from mope.hub import find_run
from mope.logs import say
from mope.predictions import PredictedRows
from mope.predictor import Predictor
from mope.remote import RemotePath, rebased
from mope.run import CONFIG, WEIGHTS, read_run
from mope.versions import installed

_PART_ROWS = 10_000
"""Rows of a part; it ends with a whole batch, so that a prediction is made in the same batch as without a
break, and its last digits are the same."""

_PART_SECONDS = 30.0
"""Or what can be lost of a slow model's work."""

ENGINES = ("here", "ray")

Also = Callable[[PredictedRows], None]
"""Takes each batch before it is written."""


@dataclass(frozen=True)
class Wanted:
    """What is to be predicted, and what is to be in the file.

    Attributes:
        keep: columns of the table that are copied, `["all"]` for all; then the predicted ones are named
            `predicted_label` and so on.
        rows: only so many of the first; None for all.
        routing: whether to add the routing scores.
        abstain_below: see `Predictor.predict`.
        folder, trusted, encoding, limits: how the table is read, see `Stream`.
    """

    keep: Sequence[str] = ()
    rows: int | None = None
    routing: bool = False
    abstain_below: float | None = None
    folder: str | Path | None = None
    trusted: bool = True
    encoding: str | None = None
    limits: MediaLimits | None = None

    def identity(self, run: Path, table: str | Path, out: Path) -> dict[str, str]:
        """What the file's rows depend on, by what messages call it.

        A table may be large: its files are known by their names, sizes and times.
        """
        own = hashlib.sha256()
        for name in (CONFIG, WEIGHTS):
            if (run / name).is_file():
                own.update(digest(run / name).encode())
        files = []
        for file in find_files(table):
            if isinstance(file, RemotePath):
                files.append(f"{file} {file.local(folders=True)}")  # which is another one for another version
                continue
            for one in sorted(file.rglob("*")) if file.is_dir() else [file]:
                known = one.stat()
                files.append(f"{one.resolve()} {known.st_size} {known.st_mtime_ns}")
        return {
            "version of mope": installed(),
            "run": own.hexdigest(),
            "table, or a changed one": hashlib.sha256("\n".join(files).encode()).hexdigest(),
            "format": out.suffix.lower(),
            "--keep": repr(list(self.keep)),
            "--rows": repr(self.rows),
            "--routing": repr(self.routing),
            "--abstain-below": repr(self.abstain_below),
            "--folder": repr(None if self.folder is None else rebased(str(self.folder), _resolved)),
            "--untrusted": repr(not self.trusted),
            "limit of media": "" if self.trusted else repr(self.limits or MediaLimits()),
            "--encoding": repr(self.encoding),
        }


def as_the_run(wanted: Wanted, run: str | Path) -> Wanted:
    """What is wanted, with the table read as the run's own are where nothing else is said.

    A run whose tables aren't trusted trusts no other, within its own limits.

    Raises:
        UserError: there is no such run.
    """
    own = read_run(find_run(run))[0].data
    limits = own.limits if wanted.trusted and not own.trusted else wanted.limits
    return replace(
        wanted,
        trusted=wanted.trusted and own.trusted,
        encoding=wanted.encoding or own.encoding,
        limits=limits,
    )


def _resolved(path: str) -> str:
    return str(Path(path).resolve())


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        rows: how many rows.
        bad: how many of them can't be used.
        first: the first of these, and why.
    """

    rows: int
    bad: int
    first: str | None


def predict_file(
    run: str | Path,
    table: str | Path,
    out: str | Path,
    wanted: Wanted = Wanted(),
    *,
    resume: bool = False,
    overwrite: bool = False,
    engine: str = "here",
    plugins: Sequence[str] = (),
    also: Also | None = None,
    report: Report = say,
    **options: Any,
) -> Written:
    """Predict a table's rows into a file, in order, with no more memory for many rows than for few.

    Rows are written in parts, in a hidden folder beside the file, which takes its place at the end. A row
    that can't be used keeps its place, and says why in the column `error`.

    Args:
        run: a run's folder, or the hub's repository of one.
        table: a CSV, JSONL or Parquet file, a saved dataset, shards, or a pattern of files.
        out: a `.csv`, `.jsonl` or `.parquet` file, or a new folder for `datasets.load_from_disk`.
        wanted: which rows and columns.
        resume: go on where the same call was interrupted; the rest is as if it hadn't been.
        overwrite: replace the file if it is there.
        engine: `here`, or `ray`: then `workers` are so many that load the model, see `mope.bulk.cluster`.
        plugins: files that register methods, which Ray's workers load.
        also: takes each batch before it is written; of a resumed call only those that weren't.
        report: takes what is said.
        options: the `Predictor`'s.

    Raises:
        UserError: something can't be read or written, or a file is there already.
    """
    out = Path(out)
    require_engine(engine)
    require_free(out, overwrite or resume)
    wanted = as_the_run(wanted, run)
    stream = _open(table, out, wanted, report)
    keep = Keep.of(wanted.keep, stream)
    with _explained(out), Parts(out, wanted.identity(find_run(run), table, out), resume, overwrite) as parts:
        if parts.finished:
            report(f"{out} was finished before.")
            return _written(parts)
        predictor = Predictor(run, **options)
        columns, begun = _columns(predictor, wanted, keep, stream, out), parts.state.rows
        layout = format_of(out, columns)
        if begun:
            report(f"{out}: goes on behind row {begun:,}.")
        if engine == "ray":
            job = _job(find_run(run), table, wanted, keep, stream, options, plugins)
            found = spread(job, begun, predictor.batch_size, max(1, predictor.workers))
        else:
            rows = numbered(stream, begun, wanted.rows)
            found = predictor.predict_parts(rows, keep.columns, keep.all, wanted.abstain_below)
        write_parts(_shown(found, stream, begun, wanted.rows), columns, layout, parts, also)
        layout.join(parts.files(), parts.draft())
        parts.finish()
        return _written(parts)


def require_engine(engine: str) -> None:
    """Make sure that there is such an engine.

    Raises:
        UserError: there is none.
    """
    if engine not in ENGINES:
        raise UserError(f"There is no engine '{engine}': name {' or '.join(ENGINES)}.")


def _columns(predictor: Predictor, wanted: Wanted, keep: Keep, stream: Stream, out: Path) -> Columns:
    """The output's columns, once it is sure that the run can predict the table."""
    predictor.require_abstaining(wanted.abstain_below)
    stream.require(*RowReader(predictor.readers).columns)
    experts = predictor.experts() if wanted.routing else None
    return Columns(keep, stream, predictor.settings.task, predictor.model.task.classes, experts, out)


def _job(
    run: Path,
    table: str | Path,
    wanted: Wanted,
    keep: Keep,
    stream: Stream,
    options: dict[str, Any],
    plugins: Sequence[str],
) -> PredictJob:
    """What Ray's workers need to know."""
    return PredictJob(
        run,
        count_rows(stream, wanted.rows),
        options,
        plugins,
        str(table),
        wanted.folder,
        wanted.trusted,
        wanted.encoding,
        wanted.limits,
        keep.columns,
        keep.all,
        wanted.abstain_below,
    )


def _shown(
    found: Iterable[PredictedRows], stream: Stream, begun: int, most: int | None
) -> Iterator[PredictedRows]:
    """The same, with a bar of how many rows are done."""
    total = most if stream.length is None else min(stream.length, most or stream.length)
    name = f"predicting {stream.name}"
    with tqdm(desc=name, total=total, leave=False, initial=begun, disable=None, unit="row") as bar:
        for part in found:
            yield part
            bar.update(len(part.numbers))


def _open(table: str | Path, out: Path, wanted: Wanted, report: Report) -> Stream:
    """The table's rows; it is said if they are read otherwise than its name says."""
    if wanted.rows is not None and wanted.rows < 1:
        raise UserError(f"--rows is {wanted.rows}: at least one row is predicted.")
    stream = Stream(table, wanted.trusted, wanted.encoding, wanted.folder, wanted.limits)
    if any(out.exists() and file.exists() and file.samefile(out) for file in find_files(table)):
        raise UserError(f"{out} is the table itself: name another file.")
    stream.require()
    if (note := stream.note) is not None:
        report(note)
    return stream


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    """Say what is wrong with the disk in a sentence."""
    try:
        yield
    except OSError as error:
        where = Path(str(error.filename or out))
        if error.filename is not None and out.parent not in where.parents and where != out.parent:
            raise
        raise UserError(
            f"Can't write {where}: {error.strerror or error}; what was written before is kept, and --resume "
            "goes on with it."
        ) from None


def write_parts(
    found: Iterable[PredictedRows], columns: Columns, layout: Format, parts: Parts, also: Also | None
) -> None:
    """Write predictions, part by part."""
    batches = iter(found)
    while (first := next(batches, None)) is not None:
        writer = layout.open(parts.next())
        begun, count, bad, example = time.monotonic(), 0, 0, None
        batch: PredictedRows | None = first
        try:
            while batch is not None:
                if also is not None:
                    also(batch)
                writer.write(list(columns.rows(batch)))
                count += len(batch.numbers)
                for number, prediction in zip(batch.numbers, batch.predictions, strict=True):
                    if prediction.error is not None:
                        bad, example = bad + 1, example or f"row {number}: {prediction.error}"
                done = count >= _PART_ROWS or time.monotonic() - begun > _PART_SECONDS
                batch = None if done else next(batches, None)
        finally:
            writer.close()
        parts.add(count, bad, example)


def _written(parts: Parts) -> Written:
    return Written(parts.state.rows, parts.state.bad, parts.state.first)
