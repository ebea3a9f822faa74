"""Run a study: a queue of runs over the machine's devices, each resumable, and skipped when done."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mope.errors import UserError
from mope.lock import writing
from mope.remote import is_url
from mope.run import CONFIG, difference, read_metrics, read_run
from mope.studies.cluster import make_runner
from mope.studies.plot import require_packages
from mope.studies.reuse import take_over
from mope.studies.runs import ERROR, Outcome, Runner
from mope.studies.study import Cell, Study, cells, columns_of, read_tuned, value_of
from mope.studies.table import build_table, write_table
from mope.tasks import any_task
from mope.tasks.metrics import deciding_metric

Report = Callable[[str], Any]


def compare(
    study: Study,
    *,
    workers: int | None = None,
    address: str | None = None,
    plugins: Sequence[str] = (),
    reuse: str | Path | None = None,
    report: Report = print,
    show: Callable[[dict[str, Any]], Any] | None = None,
) -> dict[str, Any]:
    """Run what isn't done yet, then write the table and the picture.

    Args:
        study: what to run.
        workers: runs at a time; None for what the study says, or as many as there is room for, see
            `LocalRunner` and `RayRunner`.
        address: of a Ray cluster that the runs are spread over; None for this machine.
        plugins: Python files that register methods, for every worker to load.
        reuse: a folder of other studies' runs, of which those that this study asks for, too, are copied; None
            to make all of its own.
        report: takes each line that is said.
        show: takes the table as far as it is there, after each run.

    Returns:
        The table, see `build_table`.
    """
    require_packages()
    todo = cells(study)
    _check_metrics(study, todo[0])
    for cell in todo:
        _check_kept(cell)
    with writing(Path(study.output)), make_runner(workers or study.workers, plugins, address) as runner:
        if reuse is not None:
            report(f"{take_over(todo, reuse)} of {len(todo)} runs are taken over from {reuse}.")
        return _run(study, todo, runner, report, show)


def _run(
    study: Study,
    todo: Sequence[Cell],
    runner: Runner,
    report: Report,
    show: Callable[[dict[str, Any]], Any] | None,
) -> dict[str, Any]:
    outcomes = done_runs(study, todo)
    if outcomes:
        report(f"{len(outcomes)} of {len(todo)} runs are done.")
    if untuned := _untuned(study, todo):
        report(f"Not tuned, beside rows that are: {', '.join(untuned)}. `mope tune` tunes them as well.")
    waiting = [place for place in range(len(todo)) if place not in outcomes]
    for place in waiting:
        _check_tables(todo[place])
    jobs = {
        place: partial(runner.run, todo[place].config.model_dump(), todo[place].after) for place in waiting
    }
    for place, outcome in runner.each(jobs):
        outcomes[place] = outcome
        report(_line(study, todo[place], outcome, len(outcomes), len(todo)))
        table = _write(study, todo, outcomes)
        if show is not None:
            show(table)
    table = _write(study, todo, outcomes)
    failed = [todo[place].label for place, outcome in outcomes.items() if outcome.error]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(todo)} runs failed, such as {failed[0]}: see {ERROR} in its folder; the "
            "same command tries them again."
        )
    return table


def done_runs(study: Study, todo: Sequence[Cell]) -> dict[int, Outcome]:
    """Runs of which all is known that the table says, by their place."""
    found = {place: read_metrics(cell.folder, trained=True) for place, cell in enumerate(todo)}
    return {
        place: Outcome(metrics)
        for place, metrics in found.items()
        if metrics and _is_done(study, todo[place], metrics)
    }


def _untuned(study: Study, todo: Sequence[Cell]) -> list[str]:
    """Rows whose rates nobody tuned, though others' were; what L-BFGS fits has none."""
    tuned = read_tuned(study)
    rows = {cell.row.label for cell in todo if cell.config.training.solver == "adamw"}
    return sorted(rows - set(tuned)) if tuned else []


def _is_done(study: Study, cell: Cell, metrics: dict[str, Any]) -> bool:
    """Whether a run is trained, and all is known of it that the table says."""
    try:
        for column in columns_of(study, metrics["metric"]):
            value_of(metrics, column)
    except KeyError:
        return False
    return not cell.after.missing(cell.folder, metrics)


def _check_tables(cell: Cell) -> None:
    """Make sure, before hours of training, that a run's tables are there, those it is measured on too."""
    data = cell.config.data
    own = {"train": data.train, "validation": data.validation, "test": data.test}
    for split, file in (*own.items(), *cell.after.splits.items()):
        is_name = file is not None and not is_url(file) and not set(file) & set("*?[{")
        if file is not None and is_name and not Path(file).exists():
            raise UserError(
                f"There is no {file}, the table that the study names '{split}'; `mope data prepare` makes "
                "those of published data sets."
            )


def _check_metrics(study: Study, cell: Cell) -> None:
    """Find out before the first run whether the task has the metrics that are asked for."""
    task = any_task(cell.config)
    for name in study.metrics or []:
        if name not in task.evaluated:
            deciding_metric(task, name)


def _check_kept(cell: Cell) -> None:
    """Make sure that what is in a run's folder already is this very run."""
    if (cell.folder / CONFIG).is_file():
        before, _ = read_run(cell.folder, finished=False)
        if key := difference(before, cell.config):
            raise UserError(
                f"{cell.folder} holds a run with another {key} than the study's: give another folder with "
                "--output, or move the run away."
            )


def _write(study: Study, todo: Sequence[Cell], outcomes: dict[int, Outcome]) -> dict[str, Any]:
    done = [(todo[place], outcome.metrics) for place, outcome in sorted(outcomes.items())]
    table = build_table(study, [(cell, metrics) for cell, metrics in done if metrics])
    write_table(study, table, [(cell, metrics) for cell, metrics in done if metrics])
    return table


def _line(study: Study, cell: Cell, outcome: Outcome, done: int, count: int) -> str:
    head = f"[{done}/{count}] {cell.label}: "
    if outcome.error:
        return f"{head}failed: {outcome.error}"
    columns = columns_of(study, outcome.metrics["metric"])
    values = ", ".join(f"{column} {value_of(outcome.metrics, column):.4f}" for column in columns)
    return f"{head}{values}  ({outcome.seconds:.0f} s)"
