"""`mope train | evaluate | push | params`."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from mope.cli.output import (
    add_engine,
    add_method,
    add_plugin,
    add_reading,
    add_verb,
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
    add_reading(verb)
    add_engine(verb)

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
    from mope.bulk import evaluate as run
    from mope.hub import is_on_hub
    from mope.run import add_metrics, read_metrics

    load_plugins(options)
    name = "test" if options.data is None else str(options.data)
    if options.data is not None and name.isidentifier():  # a folder's; bare words are what training wrote
        name = f"./{name}"
    if not is_on_hub(options.run):
        read_metrics(Path(options.run))  # to which is added: whether it is whole is known at once
    result = run(
        options.run,
        options.data,
        folder=options.folder,
        skip_bad_rows=options.skip_bad_rows,
        by_pattern=options.by_pattern,
        device=options.device,
        batch_size=options.batch_size,
        workers=options.workers,
        compile=options.compile,
        engine=options.engine,
        plugins=options.plugin,
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
