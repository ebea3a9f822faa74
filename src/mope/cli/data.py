"""`mope data check | scenes`."""

import argparse
import json
from pathlib import Path
from typing import Any

from mope.cli.output import add_verb, print_table
from mope.errors import UserError

KINDS = ("image", "text", "audio", "video")


def add(verbs: Any) -> None:
    """Add the commands."""
    data = verbs.add_parser("data", help="check tables, make the demo set").add_subparsers(
        dest="noun", required=True, metavar="WHAT"
    )
    verb = add_verb(data, "check", data_check, "read every row of a table, and list what can't be used")
    verb.add_argument("file", metavar="FILE", help="a table, or a config, all of whose tables are checked")
    for kind in KINDS:
        verb.add_argument(f"--{kind}", metavar="COLUMN", action="append", help=f"a column of {kind}")
    verb.add_argument("--label", metavar="COLUMN", help="the label's column")
    verb.add_argument("--labels", metavar="A,B,...", help="the labels that are known")

    verb = add_verb(
        data, "scenes", data_scenes, "make the offline demo set: pictures of OpenMoji glyphs, and texts"
    )
    verb.add_argument("out", metavar="FOLDER", help="a new folder, or one that holds the same scenes already")
    verb.add_argument("--level", choices=("easy", "full"), default="easy", help="a dozen kinds, or hundreds")
    verb.add_argument(
        "--task",
        choices=("questions", "entailment"),
        default="questions",
        help="questions about a picture, or sentences that it entails, contradicts or leaves open",
    )
    for split, count in (("train", 3000), ("validation", 300), ("test", 1000)):
        verb.add_argument(
            f"--{split}", type=int, default=count, metavar="N", help=f"{split} pictures ({count})"
        )
    verb.add_argument("--size", type=int, default=98, help="side of a picture in pixels (98)")
    verb.add_argument("--kinds", type=int, metavar="N", help="only so many of the level's kinds of things")
    verb.add_argument("--seed", type=int, default=0, help="of everything (0)")


def data_check(options: argparse.Namespace) -> None:
    """`mope data check FILE`: exit code 2 if a row can't be used."""
    from mope.data.report import check_config, check_table

    if Path(options.file).suffix.lower() in (".yaml", ".yml"):
        given = [flag for flag in (*KINDS, "label", "labels") if getattr(options, flag)]
        if given:
            raise UserError(f"A config says which columns there are: leave out --{given[0]}.")
        reports = check_config(options.file)
    else:
        kinds = {column: kind for kind in KINDS for column in getattr(options, kind) or []}
        known = options.labels.split(",") if options.labels else None
        reports = [check_table(options.file, kinds, options.label, known)]
    bad = sum(len(report.bad_rows) for report in reports)
    if options.json:
        print(json.dumps([report.as_json() for report in reports], indent=2, ensure_ascii=False))
    else:
        for report in reports:
            columns = ", ".join(f"{column} ({kind})" for column, kind in report.columns.items())
            print(f"{report.table}: {report.rows} rows; read {columns}")
            if report.problems:
                print_table(
                    ["row", "column", "problem"], [[str(p.row), p.column, p.reason] for p in report.problems]
                )
    if bad:
        raise UserError(f"{bad} of {sum(report.rows for report in reports)} rows can't be used.")
    if not options.json:
        print("Every row can be used.")


def data_scenes(options: argparse.Namespace) -> None:
    """`mope data scenes FOLDER`."""
    from mope.data.scenes import build_scenes
    from mope.data.scenes.build import SceneSettings

    settings = SceneSettings(
        options.level,
        options.task,
        options.train,
        options.validation,
        options.test,
        options.size,
        options.seed,
        options.kinds,
    )
    manifest = build_scenes(options.out, settings)
    if options.json:
        print(json.dumps(manifest, indent=2))
        return
    rows = [
        [split, str(entry["pictures"]), str(entry["rows"]), str(len(entry["labels"]))]
        for split, entry in manifest["splits"].items()
    ]
    print_table(["split", "pictures", "rows", "labels"], rows)
    print(f"The scenes are in {options.out}. {manifest['licence']}")
