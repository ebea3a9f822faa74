"""`mope compare`, `mope tune`, `mope reproduce` and `mope study theory`."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mope.cli.lists import list_methods, list_rows
from mope.cli.output import add_plugin, add_verb, load_plugins, make_table, print_table, whole_numbers
from mope.errors import UserError


def add(verbs: Any) -> None:
    """Add the commands."""
    verb = add_verb(
        verbs, "compare", compare, "compare fusion methods: same encoders, data, seeds and budget"
    )
    verb.add_argument("study", metavar="STUDY", nargs="?", help="a YAML file")
    verb.add_argument("--list", action="store_true", help="list the methods there are, or a study's rows")
    _add_study_flags(verb)
    _add_reuse(verb)
    add_plugin(verb)

    verb = add_verb(verbs, "tune", tune, "search learning rates for a study's rows, on validation rows")
    verb.add_argument("study", metavar="STUDY", help="a YAML file")
    _add_study_flags(verb)
    verb.add_argument("--row", metavar="NAME", action="append", help="only this row")
    add_plugin(verb)

    verb = add_verb(
        verbs,
        "reproduce",
        reproduce,
        "make a table of the paper, and say which of its text's claims about it hold here",
    )
    verb.add_argument(
        "study", metavar="TABLE", help="such as table1 or fig6, of configs/studies; or a study's YAML file"
    )
    verb.add_argument(
        "--data", metavar="FOLDER", help="the data set's files as published, or the tables made from them"
    )
    _add_study_flags(verb)
    _add_reuse(verb)
    add_plugin(verb)

    noun = verbs.add_parser("study", help="measure what the paper's theorems state")
    studies = noun.add_subparsers(dest="what", required=True, metavar="WHAT")
    verb = add_verb(
        studies,
        "theory",
        theory,
        "measure what one global prompt can't express and k experts can (Appendix C)",
    )
    verb.add_argument("run", metavar="RUN", nargs="?", help="a run with experts, to see the premises on it")
    verb.add_argument("--out", metavar="FOLDER", default="runs/studies/theory", help="where to write")
    verb.add_argument("--data", metavar="FILE", help="the run's rows; without it, its test rows")
    for name, default, text in (
        ("rows", 256, "of the run"),
        ("instances", 48, "of the random layer"),
        ("pairs", 12, "of instances, for Theorem 1"),
        ("steps", 60, "of L-BFGS from each start"),
        ("seed", 0, "of everything that is drawn"),
    ):
        verb.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} ({default})")
    for name, default, text in (("experts", "1,2,3,5,8", "numbers k"), ("dimensions", "1,2,4", "numbers m")):
        verb.add_argument(f"--{name}", default=default, metavar="N,N,...", help=f"{text} ({default})")
    verb.add_argument("--device", help="for the run: cpu, cuda or mps; without it, the best there is")
    add_plugin(verb)


def _add_study_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--quick", action="store_true", help="the study's small size")
    verb.add_argument(
        "--set",
        metavar="NAME",
        dest="data_set",
        help="another of the study's data sets; `all` for its own and every other, one after another",
    )
    verb.add_argument("--base", metavar="CONFIG", help="another config to start from, such as of other data")
    verb.add_argument("--output", metavar="FOLDER", help="another folder for the runs and the table")
    verb.add_argument(
        "--workers", type=int, metavar="N", help="runs at a time; without it, one per GPU, or one per core"
    )
    verb.add_argument(
        "--address",
        help="of a Ray cluster to spread the runs over, `auto` for this machine's; they share folders",
    )


def _add_reuse(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--reuse",
        metavar="FOLDER",
        help="take over runs of other studies with the very same settings from here, such as runs/studies",
    )


def _studies(options: argparse.Namespace) -> list[Any]:
    """The study on the data set that is named, or on each."""
    from mope.studies.study import Study

    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers is {options.workers}: at least one run at a time.")
    if options.data_set != "all":
        places = {"base": options.base, "output": options.output}
        return [Study.load(options.study, options.quick, options.data_set, **places)]
    if options.base or options.output or options.quick:
        raise UserError("--set all is for a study as it is: leave out --base, --output and --quick.")
    own = Study.load(options.study)
    return [own, *(Study.load(options.study, data_set=name) for name in own.sets)]


def compare(options: argparse.Namespace) -> None:
    """`mope compare STUDY`."""
    load_plugins(options)
    if options.list and options.study is None:
        list_methods(options.json)
        return
    if options.study is None:
        raise UserError(
            "Name a study, a YAML file such as configs/studies/table1.yaml; or --list the methods."
        )
    studies = _studies(options)
    if options.list:
        list_rows(studies, options.json)
        return
    tables, failed = [], []
    for study in studies:
        try:
            tables.append(_compare(study, options))
        except UserError as error:
            if len(studies) == 1:
                raise
            failed.append(study.title)
            print(f"{study.title}: {error}", file=sys.stderr)
    if options.json:
        print(json.dumps(tables[0] if len(studies) == 1 else tables, indent=2))
    if failed:
        raise UserError(
            f"{len(failed)} of {len(studies)} data sets have no whole table: {'; '.join(failed)}."
        )


def _compare(study: Any, options: argparse.Namespace) -> Any:
    """Run a study on one data set, and show its table."""
    from mope.studies.compare import compare as run
    from mope.studies.table import cells_of

    report = _to_stderr if options.json else _at_once
    places = {"workers": options.workers, "address": options.address, "plugins": options.plugin}
    with _live(lambda table: cells_of(study, table), options.json) as show:
        table = run(study, **places, reuse=options.reuse, report=report, show=show)
    if not options.json:
        print_table(*cells_of(study, table))
        names = ("table.md", "table.csv", "table.json", "plot.png")
        print(f"Written: {', '.join(str(Path(study.output) / name) for name in names)}")
    return table


@contextmanager
def _live(cells: Callable[[dict[str, Any]], tuple[Any, Any]], quiet: bool) -> Iterator[Any]:
    """What shows a table as it grows: at a terminal alone."""
    if quiet or not sys.stdout.isatty():
        yield None
        return
    from rich.live import Live

    with Live(auto_refresh=False, transient=True) as live:
        yield lambda table: live.update(make_table(*cells(table)), refresh=True)


def _at_once(line: str) -> None:
    print(line, flush=True)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def reproduce(options: argparse.Namespace) -> None:
    """`mope reproduce TABLE --data FOLDER`."""
    load_plugins(options)
    from mope.studies.reproduction import HEADER, cells_of_claims, judge, write_reproduction

    if options.data_set == "all":
        raise UserError("A table is reproduced on one data set at a time: --set NAME.")
    options.study = _study_file(options.study)
    (study,) = _studies(options)
    if options.data is not None:
        _take_data(study, options.data, _to_stderr if options.json else _at_once)
    table = _compare(study, options)
    verdicts = judge(study, table)
    file = write_reproduction(study, table, verdicts)
    if options.json:
        print(json.dumps({"table": table, "claims": verdicts}, indent=2))
        return
    print_table(HEADER, cells_of_claims(verdicts))
    print(f"Written: {file}")


def _study_file(name: str) -> str:
    """The file of a study that is named as the paper's table, or by itself."""
    if name.lower().endswith((".yaml", ".yml")):
        return name
    folder = Path("configs") / "studies"
    file = folder / f"{name}.yaml"
    if not file.is_file():
        files = {*folder.glob("*.yaml")} - {*folder.glob("*_tuned.yaml")}
        there = ", ".join(sorted(entry.stem for entry in files))
        hint = f"there are {there}" if there else "go to a checkout of mope, or name a study's YAML file"
        raise UserError(f"There is no {file}: {hint}.")
    return str(file)


def _take_data(study: Any, source: str, report: Callable[[str], Any]) -> None:
    """Let a study take its tables from a folder; make them first if it holds the published files."""
    from mope.config import Config
    from mope.datasets import PUBLISHED, prepare
    from mope.remote import is_url

    data, folder = Config.load(study.base).data, Path(source)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.")
    if data.train is None or is_url(data.train):
        raise UserError(f"{study.base} names no table in a folder as data.train: leave out --data.")
    dataset = PUBLISHED.get(study.published or "")
    home = Path(data.train).parents[len(Path(dataset.train).parts) - 1 if dataset else 0]
    if (folder / Path(data.train).relative_to(home)).is_file():
        for split in ("train", "validation", "test"):
            if (file := getattr(data, split)) is not None and Path(file).is_relative_to(home):
                study.settings[f"data.{split}"] = str(folder.absolute() / Path(file).relative_to(home))
    elif dataset is None:
        raise UserError(f"{folder} has no {Path(data.train).name}, the table that {study.base} is about.")
    elif home.exists():
        report(f"{home} is there already.")
    else:
        prepare(dataset.name, folder, home, report)
        report(f"{dataset.title}'s tables are in {home}.")


def tune(options: argparse.Namespace) -> None:
    """`mope tune STUDY`."""
    load_plugins(options)
    from mope.studies.tune import RATES
    from mope.studies.tune import tune as run

    if options.data_set == "all":
        raise UserError("Learning rates are searched on one data set at a time: --set NAME.")
    (study,) = _studies(options)
    report = _to_stderr if options.json else _at_once
    places = {"workers": options.workers, "address": options.address, "plugins": options.plugin}
    result = run(study, options.row, **places, report=report)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print_table(
        ["row", "rate", "complementary", "encoder", "trials (factor: validation)"],
        [
            [
                name,
                *(_rate(entry["settings"].get(f"training.{key}")) for key in RATES),
                ", ".join(f"{factor}: {value}" for factor, value in entry["validation"].items()),
            ]
            for name, entry in result["rows"].items()
        ],
    )
    print(f"Written: {study.tuned}")


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def theory(options: argparse.Namespace) -> None:
    """`mope study theory [RUN]`."""
    load_plugins(options)
    from mope.studies.theory import TheorySettings, study_theory

    settings = TheorySettings(
        instances=options.instances,
        experts=whole_numbers("experts", options.experts),
        dimensions=whole_numbers("dimensions", options.dimensions),
        pairs=options.pairs,
        steps=options.steps,
        seed=options.seed,
        rows=options.rows,
        data=options.data,
        device=options.device,
    )
    result = study_theory(settings, options.out, options.run, _to_stderr if options.json else _at_once)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    from mope.studies.theory.tables import tables

    for header, rows in tables(result):
        print_table(header, rows)
        print()
    print(f"Written: {options.out}/theory.json, {options.out}/table.md, {options.out}/theory.png")
