"""Learning rates by search on validation rows, with the same small budget for every row of a study."""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from mope.config import Config
from mope.errors import UserError
from mope.files import replacing
from mope.lock import writing
from mope.run import difference
from mope.studies.cluster import make_runner
from mope.studies.compare import Report
from mope.studies.runs import After, Runner
from mope.studies.study import RowConfig, Study, row_config, slug
from mope.tasks import any_task
from mope.tasks.metrics import deciding_metric

RATES = ("learning_rate", "complementary_learning_rate", "encoder_learning_rate")


def tune(
    study: Study,
    rows: list[str] | None = None,
    *,
    workers: int | None = None,
    address: str | None = None,
    plugins: Sequence[str] = (),
    report: Report = print,
) -> dict[str, Any]:
    """Search each row's learning rates, and write the study's file of tuned settings.

    The rates move together, by one factor. The search is optuna's; its first trials are the method's own
    rates, and larger and smaller ones. Trials are kept, so a killed search goes on where it was. Test rows
    are never read.

    Args:
        study: its `tune` says how much is tried, its `tuned` where to write.
        rows: only these; None for all.
        workers: rows at a time; None for what the study says, or as many as there is room for.
        address: of a Ray cluster that the trials are spread over; None for this machine.
        plugins: Python files that register methods, for every worker to load.
        report: takes each line that is said.

    Returns:
        The content of the file.

    Raises:
        UserError: the study names no file, or there is no such row, or a trial fails.
    """
    try:
        import optuna
    except ImportError:
        raise UserError("Tuning takes the package optuna: pip install 'mope-fusion[studies]'.") from None
    if study.tuned is None:
        raise UserError("The study names no file for what is tuned: give it a `tuned`.")
    labels = [row.label for row in study.rows]
    for row in rows or []:
        if row not in labels:
            raise UserError(f"There is no row '{row}': there are {', '.join(labels)}.")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file, folder = Path(study.tuned), Path(study.output) / "tuning"
    folder.mkdir(parents=True, exist_ok=True)
    # One process at a time makes the tables of trials.
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'trials.sqlite'}")
    known = _known(file)
    with make_runner(workers or study.workers, plugins, address) as runner:
        searches = {
            row.label: partial(_tune_alone, study, row, storage, folder, runner, report)
            for row in study.rows
            # What L-BFGS fits has no learning rate.
            if (rows is None or row.label in rows) and row_config(study, row).training.solver == "adamw"
        }
        for label, found in runner.each(searches):
            # Read anew: another process may tune other rows, and another study may have rows in the file.
            known = {**_known(file), label: found}
            known = {name: known[name] for name in [*labels, *known] if name in known}
            content = {"trials": study.tune.trials, "rows": known}
            with replacing(file) as draft:
                draft.write_text("# Written by `mope tune`.\n" + yaml.safe_dump(content, sort_keys=False))
    return {"rows": known}


def _known(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else {}


def _tune_alone(
    study: Study, row: RowConfig, storage: Any, folder: Path, runner: Runner, report: Report
) -> dict[str, Any]:
    """Tune a row that no other process tunes: a trial that runs would be taken for a killed one's."""
    with writing(folder / slug(row.label)):
        return _tune_row(study, row, storage, folder, runner, report)


def _tune_row(
    study: Study, row: RowConfig, storage: Any, folder: Path, runner: Runner, report: Report
) -> dict[str, Any]:
    import optuna

    base = row_config(study, row).with_settings(study.tune.settings, "the study's tune.settings")
    _, greater = deciding_metric(any_task(base), base.training.metric)
    search = optuna.create_study(
        study_name=slug(row.label),
        storage=storage,
        sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=min(4, study.tune.trials)),
        direction="maximize" if greater else "minimize",
        load_if_exists=True,
    )
    if (kept := search.user_attrs.get("config")) and (key := difference(Config.parse(kept), base)):
        raise UserError(
            f"The trials in {folder} had another {key} than {row.label} has now: move the folder away, and "
            "tune anew."
        )
    search.set_user_attr("config", base.model_dump(mode="json"))
    if not search.trials:
        step = study.tune.factor**0.5
        for factor in (1.0, step, 1 / step):
            search.enqueue_trial({"factor": factor})
    for trial in search.trials:
        if trial.state.name == "RUNNING":  # a killed search's: it is tried again
            search.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            search.enqueue_trial(trial.params)

    def objective(trial: Any) -> float:
        factor = trial.suggest_float("factor", 1 / study.tune.factor, study.tune.factor, log=True)
        target = folder / slug(row.label) / f"trial{trial.number}"
        shutil.rmtree(target, ignore_errors=True)
        config = base.with_settings({**_rates(base, factor), "output": str(target)})
        outcome = runner.run(config.model_dump(), After())
        if outcome.error:
            search.enqueue_trial(trial.params)  # for the next call
            raise UserError(f"{row.label}, trial {trial.number + 1} failed: {outcome.error} (in {target}).")
        result = outcome.metrics
        value = result["validation"][result["metric"]]
        (target / "model.safetensors").unlink(missing_ok=True)
        report(f"{row.label}, trial {trial.number + 1}: rates x {factor:.2f}, {result['metric']} {value:.4f}")
        return value

    done = sum(trial.state.name == "COMPLETE" for trial in search.trials)
    search.optimize(objective, n_trials=max(0, study.tune.trials - done))
    trials = {
        f"{trial.params['factor']:.3g}": round(float(trial.value or 0), 4)
        for trial in search.trials
        if trial.state.name == "COMPLETE"
    }
    return {"settings": _rates(base, search.best_params["factor"]), "validation": trials}


def _rates(config: Config, factor: float) -> dict[str, float]:
    rates = config.training.model_dump()
    return {f"training.{key}": float(f"{rates[key] * factor:.3g}") for key in RATES}
