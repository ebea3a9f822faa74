"""`mope train | evaluate | predict | push | params`."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from mope.cli.output import (
    add_method,
    add_plugin,
    add_table,
    add_verb,
    limits_of,
    load_plugins,
    print_table,
    reporter,
)
from mope.errors import UserError


def add(verbs: Any) -> None:
    """Add the commands."""
    verb = add_verb(verbs, "train", train, "train a model from a config", overrides=True)
    verb.add_argument("config", metavar="CONFIG", help="a YAML file")
    verb.add_argument("--resume", action="store_true", help="continue the run in the output folder")
    add_method(verb)
    verb.add_argument(
        "--drop-modality",
        metavar="NAME=SHARE",
        action="append",
        default=[],
        help="take an input from this share of the training rows, and learn a stand-in for it",
    )

    verb = add_verb(verbs, "evaluate", evaluate, "measure a run on its test rows, or on a table")
    verb.add_argument("run", metavar="RUN", help="a run's folder")
    verb.add_argument("--data", metavar="FILE", help="a table; without it, the test rows of the run's config")
    verb.add_argument("--folder", help="what paths in the table are relative to; without it, its own folder")
    add_plugin(verb)
    verb.add_argument("--by-pattern", action="store_true", help="also by which inputs rows have")
    verb.add_argument("--skip-bad-rows", action="store_true", help="leave out rows that can't be used")
    verb.add_argument("--device", help="cpu, cuda or mps; without it, the best there is")

    verb = add_verb(verbs, "predict", predict, "predict a table's rows, in order")
    verb.add_argument("run", metavar="RUN", help="a run's folder")
    verb.add_argument("file", metavar="FILE", help="a table with the run's input columns")
    verb.add_argument(
        "--out",
        metavar="FILE",
        help="a .csv, .jsonl or .parquet file, or a new folder without an ending for a datasets.Dataset; "
        "without it, a table is printed",
    )
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
    verb.add_argument("--device", help="cpu, cuda or mps; without it, the best there is")

    verb = add_verb(verbs, "push", push, "upload a run to the Hugging Face hub, privately at first")
    verb.add_argument("run", metavar="RUN", help="a run's folder")
    verb.add_argument("repository", metavar="OWNER/NAME", help="a repository, which is made if need be")
    verb.add_argument("--public", action="store_true", help="let a new repository be seen by all")

    verb = add_verb(verbs, "params", params, "count a config's trained and frozen parameters", overrides=True)
    verb.add_argument("config", metavar="CONFIG", help="a YAML file")
    add_method(verb)


def _config(options: argparse.Namespace) -> Any:
    """The config that is named, with the method that is, and with what is typed over both."""
    from mope.config import Config

    load_plugins(options)
    if options.method is None:
        return Config.load(options.config, options.settings)
    from mope.methods import find_method

    chosen = find_method(options.method).apply(Config.load(options.config))
    return chosen.with_typed(options.settings)


def train(options: argparse.Namespace) -> None:
    """`mope train CONFIG`."""
    from mope.training import train as run

    config = _drop(_config(options), options.drop_modality)
    first = os.environ.get("RANK", "0") == "0"  # of several processes under torchrun, one speaks
    result = run(config, resume=options.resume, report=reporter(options) if first else _say_nothing)
    if first and options.json:
        print(json.dumps(result, indent=2))
    if not first or options.json or options.quiet:
        return
    print_table(
        ["validation", f"epoch {result['best_epoch']:.3g}"],
        [[name, f"{value:.4f}"] for name, value in result["validation"].items()],
    )
    print(f"The run is in {config.output}. Next: mope evaluate {config.output}")


def _drop(config: Any, words: list[str]) -> Any:
    """The config with `--drop-modality NAME=SHARE`."""
    for word in words:
        name, equals, share = word.partition("=")
        if not equals or name not in config.inputs:
            raise UserError(
                f"--drop-modality is NAME=SHARE, such as {next(iter(config.inputs))}=0.3, not '{word}'."
            )
        pairs = [(f"inputs.{name}.missing", "learn"), (f"inputs.{name}.drop", share)]
        config = config.with_typed(pairs)
    return config


def _say_nothing(line: str) -> None:
    """Take a line and keep it."""


def evaluate(options: argparse.Namespace) -> None:
    """`mope evaluate RUN`."""
    from mope.hub import is_on_hub
    from mope.predictor import evaluate as run
    from mope.run import add_metrics, read_metrics

    load_plugins(options)
    name = "test" if options.data is None else str(options.data)
    if not is_on_hub(options.run):
        read_metrics(Path(options.run))  # to which is added: whether it is whole is known at once
    result = run(
        options.run,
        options.data,
        folder=options.folder,
        skip_bad_rows=options.skip_bad_rows,
        by_pattern=options.by_pattern,
        device=options.device,
        report=lambda line: print(line, file=sys.stderr),
    )
    if not is_on_hub(options.run):
        add_metrics(Path(options.run), name, result)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        patterns = result.pop("patterns", {})
        columns = {name: result, **patterns}
        print_table(
            ["", *columns],
            [[key, *(_number(column[key]) for column in columns.values())] for key in result],
        )


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{value}"


def predict(options: argparse.Namespace) -> None:
    """`mope predict RUN FILE`."""
    from mope.data.table import open_table
    from mope.predictions import require_writable, write_masks, write_overlays, write_predictions
    from mope.predictor import Predictor

    load_plugins(options)
    out = Path(options.out) if options.out else None
    if out is not None:
        require_writable(out)
    trusted, limits = not options.untrusted, limits_of(options)
    table = open_table(options.file, trusted, options.encoding, options.folder, limits)
    if table.note is not None:
        print(table.note, file=sys.stderr)
    if options.rows is not None:
        if options.rows < 1:
            raise UserError(f"--rows is {options.rows}: at least one row is predicted.")
        table = table.select(range(min(options.rows, len(table))))
    predictor = Predictor(options.run, device=options.device, workers=1)
    settings = predictor.settings
    if (options.masks or options.overlays) and settings.picture is None:
        raise UserError("--masks and --overlays are for a run of referring-segmentation, which this isn't.")
    if options.beside and not options.overlays:
        raise UserError("--beside is for the page that --overlays FOLDER writes.")
    predictions = predictor.predict(table, abstain_below=options.abstain_below)
    bad = [(number, p.error) for number, p in zip(table.numbers, predictions, strict=True) if p.error]
    if out is not None:
        write_predictions(predictions, out, predictor.model.task.classes, options.routing)
    if options.masks:
        write_masks(predictions, table.numbers, Path(options.masks))
    if options.overlays and settings.picture is not None:
        runs = {Path(options.run).name: predictions}
        for other in options.beside:
            runs[Path(other).name] = Predictor(other, device=options.device, workers=1).predict(table)
        texts = [entry.column for entry in settings.inputs.values() if entry.kind == "text"]
        picture, label = settings.inputs[settings.picture].column, settings.data.label
        truth = label if label in table.columns else None
        write_overlays(runs, table, picture, texts, Path(options.overlays), truth)
    if options.json:
        print(json.dumps([_as_json(p, options.routing) for p in predictions], indent=2, ensure_ascii=False))
    elif out is not None:
        print(f"{len(predictions)} rows are in {out}.")
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
    if bad:
        print(
            f"{len(bad)} of {len(predictions)} rows can't be used, such as row {bad[0][0]}: {bad[0][1]}.",
            file=sys.stderr,
        )


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


def push(options: argparse.Namespace) -> None:
    """`mope push RUN OWNER/NAME`."""
    from mope.hub import push_run

    address = push_run(options.run, options.repository, private=not options.public)
    print(json.dumps({"address": address}) if options.json else f"The run is at {address}.")


def params(options: argparse.Namespace) -> None:
    """`mope params CONFIG`."""
    from mope.data.fields import find_fields
    from mope.data.splits import label_names, open_splits
    from mope.model import empty_model

    config = _config(options)
    if config.data.train and any(entry.kind == "table" for entry in config.inputs.values()):
        config = find_fields(config, open_splits(config, streamed=True)["train"])
    labels = config.data.labels or (None if config.has_classes else [config.data.label])
    if labels is None:
        labels = (
            label_names(config, open_splits(config, streamed=True)["train"]) if config.data.train else None
        )
    if labels is None:
        raise UserError("The head's size depends on the labels: give data.labels or data.train.")
    parts = empty_model(config, labels).count_parameters()
    total = {kind: sum(part[kind] for part in parts.values()) for kind in ("trainable", "frozen")}
    share = total["trainable"] / sum(total.values())
    if options.json:
        print(json.dumps({**total, "share": share, "parts": parts}, indent=2))
        return
    rows = [[name, f"{part['trainable']:,}", f"{part['frozen']:,}"] for name, part in parts.items()]
    rows.append(["all", f"{total['trainable']:,}", f"{total['frozen']:,}"])
    print_table(["part", "trained", "frozen"], rows, last_is_sum=True)
    print(f"{share:.2%} of all parameters are trained.")
