"""`mope predict`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mope.cli.output import (
    add_engine,
    add_plugin,
    add_reading,
    add_table,
    add_verb,
    limits_of,
    load_plugins,
    print_table,
)
from mope.errors import UserError


def add(verbs: Any) -> None:
    """Add the command."""
    verb = add_verb(verbs, "predict", predict, "predict a table's rows, in order")
    verb.add_argument("run", metavar="RUN", help="a run's folder")
    verb.add_argument("file", metavar="FILE", help="a table with the run's input columns")
    verb.add_argument(
        "--out",
        metavar="FILE",
        help="a .csv, .jsonl or .parquet file, or a new folder without an ending for a datasets.Dataset: "
        "written row by row, for tables of any size; without it, a table is printed",
    )
    verb.add_argument(
        "--keep",
        metavar="COLUMNS",
        action="append",
        default=[],
        help="columns of the table that are copied to --out, such as id,title, or all; the predicted ones "
        "are named predicted_label, ... then",
    )
    verb.add_argument("--resume", action="store_true", help="go on where the same command was interrupted")
    verb.add_argument("--overwrite", action="store_true", help="replace --out if it is there already")
    add_engine(verb)
    verb.add_argument(
        "--routing", action="store_true", help="add the routing scores of every layer and expert"
    )
    verb.add_argument("--rows", type=int, metavar="N", help="only the first N rows")
    verb.add_argument(
        "--abstain-below", type=float, metavar="P", help="name no label whose probability is below this"
    )
    verb.add_argument("--folder", help="what paths in the table are relative to; without it, its own folder")
    verb.add_argument("--masks", metavar="FOLDER", help="write each predicted mask as a PNG")
    verb.add_argument(
        "--overlays", metavar="FOLDER", help="write each picture with its mask, and a page of them"
    )
    verb.add_argument(
        "--beside", metavar="RUN", action="append", default=[], help="show this run's masks on the page too"
    )
    add_table(verb)
    add_plugin(verb)
    add_reading(verb)


def predict(options: argparse.Namespace) -> None:
    """`mope predict RUN FILE`."""
    load_plugins(options)
    if options.out is None:
        if named := [name for name in ("keep", "resume", "overwrite") if getattr(options, name)]:
            raise UserError(f"--{named[0]} is for the file that --out names.")
        if options.engine != "here":
            raise UserError("--engine is for the file that --out names.")
        _print(options)
    else:
        _write(options)


def _write(options: argparse.Namespace) -> None:
    """Predict into a file."""
    from mope.bulk import Wanted, predict_file
    from mope.predictions import PredictedRows, Predictions, write_masks

    if options.resume and (options.json or options.overlays):
        raise UserError("--resume is for rows that only go to --out: leave --json and --overlays out.")
    if options.masks or options.overlays or options.beside:
        _require_masks(options)
    held = Predictions()

    def also(part: PredictedRows) -> None:
        if options.masks:
            write_masks(part.predictions, part.numbers, Path(options.masks))
        if options.json or options.overlays:
            held.extend(part.predictions)

    written = predict_file(
        options.run,
        options.file,
        options.out,
        Wanted(
            options.keep,
            options.rows,
            options.routing,
            options.abstain_below,
            options.folder,
            not options.untrusted,
            options.encoding,
            limits_of(options),
        ),
        resume=options.resume,
        overwrite=options.overwrite,
        engine=options.engine,
        plugins=options.plugin,
        also=also,
        report=lambda line: print(line, file=sys.stderr),
        **_loading(options),
    )
    if options.overlays:
        _overlay(options, _table(options), held)
    if options.json:
        _print_json(held, options.routing)
    else:
        print(f"{written.rows} rows are in {options.out}.")
    _say_bad(written.bad, written.rows, written.first)


def _print(options: argparse.Namespace) -> None:
    """Predict, and print what is predicted."""
    from mope.predictions import write_masks
    from mope.predictor import Predictor

    table = _table(options)
    predictor = Predictor(options.run, **_loading(options))
    if options.masks or options.overlays or options.beside:
        _require_masks(options)
    predictions = predictor.predict(table, abstain_below=options.abstain_below)
    if options.masks:
        write_masks(predictions, table.numbers, Path(options.masks))
    if options.overlays:
        _overlay(options, table, predictions)
    if options.json:
        _print_json(predictions, options.routing)
    else:
        print_table(
            ["row", "label", "probability"],
            [
                [
                    str(n),
                    _shown(p.label),
                    f"{max(p.probabilities.values()):.3f}" if p.probabilities else p.error or "",
                ]
                for n, p in zip(table.numbers, predictions, strict=True)
            ],
        )
    bad = [f"row {n}: {p.error}" for n, p in zip(table.numbers, predictions, strict=True) if p.error]
    _say_bad(len(bad), len(predictions), bad[0] if bad else None)


def _loading(options: argparse.Namespace) -> dict[str, Any]:
    """The predictor's options."""
    return {name: getattr(options, name) for name in ("device", "batch_size", "workers", "compile")}


def _table(options: argparse.Namespace) -> Any:
    """The rows that are named, held."""
    from mope.bulk.run import Wanted, as_the_run
    from mope.data.table import open_table

    said = Wanted(trusted=not options.untrusted, encoding=options.encoding, limits=limits_of(options))
    how = as_the_run(said, options.run)
    table = open_table(options.file, how.trusted, how.encoding, options.folder, how.limits)
    if table.note is not None and options.out is None:  # of a table that is predicted into a file it was said
        print(table.note, file=sys.stderr)
    if options.rows is None:
        return table
    if options.rows < 1:
        raise UserError(f"--rows is {options.rows}: at least one row is predicted.")
    return table.select(range(min(options.rows, len(table))))


def _require_masks(options: argparse.Namespace) -> None:
    """Make sure that there are masks to show."""
    from mope.hub import find_run
    from mope.run import read_run

    if (options.masks or options.overlays) and read_run(find_run(options.run))[0].picture is None:
        raise UserError("--masks and --overlays are for a run of referring-segmentation, which this isn't.")
    if options.beside and not options.overlays:
        raise UserError("--beside is for the page that --overlays FOLDER writes.")


def _overlay(options: argparse.Namespace, table: Any, predictions: Any) -> None:
    """Write the page that `--overlays` names."""
    from mope.hub import find_run
    from mope.predictions import write_overlays
    from mope.predictor import Predictor
    from mope.run import read_run

    runs = {Path(options.run).name: predictions}
    for other in options.beside:
        runs[Path(other).name] = Predictor(other, **_loading(options)).predict(table)
    settings = read_run(find_run(options.run))[0]
    assert settings.picture is not None
    texts = [entry.column for entry in settings.inputs.values() if entry.kind == "text"]
    picture, label = settings.inputs[settings.picture].column, settings.data.label
    truth = label if label in table.columns else None
    write_overlays(runs, table, picture, texts, Path(options.overlays), truth)


def _say_bad(bad: int, rows: int, first: str | None) -> None:
    if bad:
        print(f"{bad} of {rows} rows can't be used, such as {first}.", file=sys.stderr)


def _print_json(predictions: Any, routing: bool) -> None:
    content = [_as_json(prediction, routing) for prediction in predictions]
    print(json.dumps(content, indent=2, ensure_ascii=False))


def _as_json(prediction: Any, routing: bool) -> dict[str, Any]:
    from dataclasses import asdict

    content = asdict(prediction)
    if not routing:
        content.pop("routing")
    return content


def _shown(label: Any) -> str:
    if label is None:
        return "-"
    if isinstance(label, dict):
        return f"a mask of {label['size'][1]} x {label['size'][0]} pixels"
    return (
        ", ".join(label)
        if isinstance(label, list)
        else f"{label:.4g}"
        if isinstance(label, float)
        else str(label)
    )
