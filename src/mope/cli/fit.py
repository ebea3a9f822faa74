"""`mope fit`: a table in, a model out."""

import argparse
import json
from typing import Any

from mope.cli.output import add_plugin, add_verb, load_plugins, print_table, reporter
from mope.errors import UserError


def add(verbs: Any) -> None:
    """Add the command."""
    verb = add_verb(
        verbs, "fit", fit, "train on a table, with everything decided but the label's name", overrides=True
    )
    verb.add_argument("table", metavar="TABLE", help="a .csv, .tsv, .jsonl or .parquet file")
    verb.add_argument("--label", metavar="COLUMN", required=True, help="the label's column")
    verb.add_argument("--plan", action="store_true", help="show what would be done, and stop")
    verb.add_argument("--write", metavar="FILE", help="write the plan's config to a .yaml file, and stop")
    verb.add_argument(
        "--validation", metavar="FILE", help="rows to choose by; without it a tenth is held out"
    )
    verb.add_argument("--minutes", type=float, metavar="N", help="time for everything")
    verb.add_argument("--preset", default="good", help="fast, good (default) or best")
    verb.add_argument("--task", help="classification, multilabel or regression")
    verb.add_argument(
        "--kind",
        metavar="COLUMN=KIND",
        action="append",
        default=[],
        help="what a column holds: image, text, audio, video, number, category, date, or 'left out'",
    )
    verb.add_argument("--main", metavar="INPUT", help="the input that the others guide")
    verb.add_argument(
        "--encoder",
        metavar="COLUMN=WEIGHTS",
        action="append",
        default=[],
        help="weights of a column's encoder",
    )
    verb.add_argument("--folder", help="what paths in the table are relative to; without it, its own folder")
    add_plugin(verb)


def fit(options: argparse.Namespace) -> None:
    """`mope fit TABLE --label COLUMN`."""
    from mope import planning
    from mope.run import read_metrics

    load_plugins(options)
    asked: dict[str, Any] = {
        name: getattr(options, name) for name in ("validation", "minutes", "preset", "task", "main", "folder")
    }
    asked |= {"kinds": _pairs("--kind", options.kind), "encoders": _pairs("--encoder", options.encoder)}
    settings = _typed(options.settings)
    asked |= {"settings": settings, "output": settings.pop("output", None)}
    if options.plan or options.write:
        made = planning.plan(options.table, options.label, **asked, measure=not options.write)
        if options.write:
            made.save(options.write)
        print(json.dumps(made.config.model_dump(mode="json"), indent=2) if options.json else made, flush=True)
        if options.write and not options.json:
            print(f"The config is in {options.write}. Next: mope train {options.write}")
        return
    predictor = planning.fit(options.table, options.label, **asked, report=reporter(options))
    result = read_metrics(predictor.run)
    if options.json:
        print(json.dumps(result, indent=2))
    if options.json or options.quiet:
        return
    print_table(
        ["validation", f"epoch {result['best_epoch']:.3g}"],
        [[name, f"{value:.4f}"] for name, value in result["validation"].items()],
    )
    print(f"The run is in {predictor.run}. Next: mope predict {predictor.run} FILE")


def _pairs(flag: str, words: list[str]) -> dict[str, str]:
    """`COLUMN=VALUE` words by column."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name or not value:
            raise UserError(f"{flag} is COLUMN=VALUE, such as price=number, not '{word}'.")
        found[name] = value
    return found


def _typed(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    from mope.config import typed

    return {key: typed(key, value) for key, value in pairs}
