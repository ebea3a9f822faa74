"""`mope data check | describe | prepare | shop | spoken | scenes`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mope.cli.output import LIMITS, add_table, add_verb, limits_of, print_table
from mope.errors import UserError

KINDS = ("image", "text", "audio", "video")


def add(verbs: Any) -> None:
    """Add the commands."""
    data = verbs.add_parser(
        "data", help="check, describe and prepare tables, make the demo set"
    ).add_subparsers(dest="noun", required=True, metavar="WHAT")
    verb = add_verb(data, "check", data_check, "read every row of a table, and list what can't be used")
    verb.add_argument("file", metavar="FILE", help="a table, or a config, all of whose tables are checked")
    _add_columns(verb)
    verb.add_argument("--labels", metavar="A,B,...", help="the labels that are known")

    verb = add_verb(data, "describe", data_describe, "look at tables: balance, lengths, gaps, duplicates")
    verb.add_argument("file", metavar="FILE", help="a config, or a table")
    _add_columns(verb)
    verb.add_argument("--out", metavar="FILE", help="also write a page with samples, an .html file")

    verb = add_verb(data, "prepare", data_prepare, "turn a published data set's files into a table per split")
    verb.add_argument("name", metavar="NAME", nargs="?", help="which; see --list")
    verb.add_argument("--from", dest="source", metavar="FOLDER", help="its files, as published")
    verb.add_argument("--out", metavar="FOLDER", help="a new folder")
    verb.add_argument("--list", action="store_true", help="the data sets, and where to get them")
    _add_made(data)


def _add_made(data: Any) -> None:
    """The commands that make sets of the library's own."""
    verb = add_verb(data, "shop", data_shop, "make a shop's table: photos, titles, prices, brands, dates")
    verb.add_argument("out", metavar="FOLDER", help="a new folder")
    for table, count in (("train", 1200), ("test", 400)):
        verb.add_argument(f"--{table}", type=int, default=count, metavar="N", help=f"{table} rows ({count})")
    verb.add_argument("--seed", type=int, default=0, help="of everything (0)")

    verb = add_verb(data, "spoken", data_spoken, "make a set of pictures, spoken words and questions")
    verb.add_argument("out", metavar="FOLDER", help="a new folder, or one that holds the same set already")
    for split, count in (("train", 1500), ("validation", 150), ("test", 400)):
        verb.add_argument(
            f"--{split}", type=int, default=count, metavar="N", help=f"{split} pictures ({count})"
        )
    verb.add_argument("--kinds", type=int, default=6, metavar="N", help="kinds of things (6)")
    verb.add_argument("--size", type=int, default=56, help="side of a picture in pixels (56)")
    verb.add_argument("--seed", type=int, default=0, help="of everything (0)")

    verb = add_verb(
        data, "scenes", data_scenes, "make the offline demo set: pictures of OpenMoji glyphs, and texts"
    )
    verb.add_argument("out", metavar="FOLDER", help="a new folder, or one that holds the same scenes already")
    verb.add_argument("--level", choices=("easy", "full"), default="easy", help="a dozen kinds, or hundreds")
    verb.add_argument(
        "--task",
        choices=("questions", "entailment", "segmentation"),
        default="questions",
        help="questions about a picture, sentences that it entails, contradicts or leaves open, or phrases "
        "and the masks of what they mean",
    )
    for split, count in (("train", 3000), ("validation", 300), ("test", 1000)):
        verb.add_argument(
            f"--{split}", type=int, default=count, metavar="N", help=f"{split} pictures ({count})"
        )
    verb.add_argument("--size", type=int, default=98, help="side of a picture in pixels (98)")
    verb.add_argument("--kinds", type=int, metavar="N", help="only so many of the level's kinds of things")
    verb.add_argument("--seed", type=int, default=0, help="of everything (0)")
    verb.add_argument(
        "--facts",
        action="store_true",
        help="a shop, a date and a weight in each row, and questions about them",
    )


def data_spoken(options: argparse.Namespace) -> None:
    """`mope data spoken FOLDER`."""
    from mope.scenes.spoken import SpokenSettings, build_spoken

    names = ("train", "validation", "test", "kinds", "size", "seed")
    settings = SpokenSettings(**{name: getattr(options, name) for name in names})
    manifest = build_spoken(options.out, settings)
    if options.json:
        print(json.dumps(manifest, indent=2))
        return
    splits = manifest["splits"].items()
    rows = [[split, str(entry["rows"]), str(len(entry["labels"]))] for split, entry in splits]
    print_table(["split", "rows", "labels"], rows)
    hidden = manifest["splits"]["test"]["without"]
    said = ", ".join(f"{share:.3f} without the {name}" for name, share in hidden.items())
    print(f"At most {said} is right on test. The set is in {options.out}. {manifest['licence']}")


def data_shop(options: argparse.Namespace) -> None:
    """`mope data shop FOLDER`."""
    from mope.scenes.glyphs import ATTRIBUTION
    from mope.scenes.shop import build_shop

    counts = build_shop(options.out, options.train, options.test, options.seed)
    if options.json:
        print(json.dumps(counts))
        return
    print_table(["table", "rows"], [[f"{options.out}/{name}.csv", str(n)] for name, n in counts.items()])
    print(f"{ATTRIBUTION} Next: mope fit {options.out}/train.csv --label department")


def _add_columns(verb: argparse.ArgumentParser) -> None:
    """The flags for what a table's columns hold, and how it is read."""
    for kind in KINDS:
        verb.add_argument(f"--{kind}", metavar="COLUMN", action="append", help=f"a column of {kind}")
    verb.add_argument("--label", metavar="COLUMN", help="the label's column")
    add_table(verb)


def _is_config(options: argparse.Namespace) -> bool:
    """Whether the file is a config, which says itself what these flags would."""
    if Path(options.file).suffix.lower() not in (".yaml", ".yml"):
        return False
    flags = (*KINDS, "label", "labels", "encoding", "untrusted", *LIMITS)
    if given := [flag for flag in flags if getattr(options, flag, None)]:
        flag = given[0].replace("_", "-")
        raise UserError(f"A config says which columns there are, and how: leave out --{flag}.")
    return True


def data_describe(options: argparse.Namespace) -> None:
    """`mope data describe FILE`."""
    from mope.data.check import guess_columns
    from mope.data.describe import as_rows, describe, write_report
    from mope.data.splits import cells_of, open_splits
    from mope.data.table import open_table

    if options.out and not options.out.endswith(".html"):
        raise UserError(f"Can't write {options.out}: name an .html file.")
    columns = {column: kind for kind in KINDS for column in getattr(options, kind) or []}
    label, separator = options.label, None
    if _is_config(options):
        from mope.config import Config

        config = Config.load(options.file)
        separator = config.data.separator if config.task == "multilabel" else None
        tables = open_splits(config, streamed=True)
        if not tables:
            raise UserError(f"The config {options.file} names no tables.")
        columns = cells_of(config.inputs.values())
        label = config.data.label if config.has_classes else None
    else:
        limits = limits_of(options)
        table = open_table(options.file, not options.untrusted, options.encoding, limits=limits)
        if table.note is not None:
            print(table.note, file=sys.stderr)
        guessed = {name: kind for name, kind in guess_columns(table).items() if name != label}
        tables, columns = {Path(options.file).stem: table}, columns or guessed
    for table in tables.values():
        table.require(*columns, *([label] if label else []))
    content = describe(tables, columns, label, separator=separator)
    if options.out:
        write_report(content, tables, columns, label, Path(options.out))
    if options.json:
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return
    header = ["split", "column", "kind", "missing", "broken", "different", "sizes (least, median, most)"]
    print_table(header, as_rows(content))
    for split, entry in content["splits"].items():
        if entry["labels"]:
            total = sum(entry["labels"].values())
            shown = [f"{name} {count / total:.1%}" for name, count in list(entry["labels"].items())[:8]]
            print(f"{split}: {entry['rows']:,} rows, {len(entry['labels'])} labels: {', '.join(shown)}")
    for found in content["duplicates"]:
        print(f"{' and '.join(found['splits'])} share {found['shared']:,} of '{found['column']}'.")
    if options.out:
        print(f"Written: {options.out}")


def data_prepare(options: argparse.Namespace) -> None:
    """`mope data prepare NAME --from FOLDER --out FOLDER`."""
    from mope.datasets import PUBLISHED, prepare
    from mope.datasets.base import MANIFEST

    if options.list or options.name is None:
        if not options.list:
            raise UserError("Name a data set, or --list those there are.")
        if options.json:
            print(json.dumps([_about(dataset) for dataset in PUBLISHED.values()], indent=2))
            return
        for dataset in PUBLISHED.values():
            print(f"{dataset.name}: {dataset.title}, {dataset.task}")
            print(f"  from     {dataset.where}")
            print(f"  licence  {dataset.licence}")
            print(f"  rows     {', '.join(f'{count:,} {split}' for split, count in dataset.counts.items())}")
            for file, what in dataset.files.items():
                print(f"  expects  {file}: {what}")
        return
    if options.source is None or options.out is None:
        raise UserError("Say where its files are with --from FOLDER, and where to write with --out FOLDER.")
    say = (lambda line: print(line, file=sys.stderr)) if options.json else print
    manifest = prepare(options.name, options.source, options.out, say)
    if options.json:
        print(json.dumps(manifest, indent=2, ensure_ascii=False))
        return
    rows = [[split, str(entry["rows"]), entry["sha256"][:12]] for split, entry in manifest["splits"].items()]
    print_table(["split", "rows", "SHA-256"], rows)
    print(f"The tables are in {options.out}, beside {MANIFEST}. Licence: {manifest['licence']}.")


def _about(dataset: Any) -> dict[str, Any]:
    names = ("name", "title", "task", "where", "licence", "files", "counts")
    return {name: getattr(dataset, name) for name in names}


def data_check(options: argparse.Namespace) -> None:
    """`mope data check FILE`: exit code 2 if a row can't be used."""
    from mope.data.report import check_config, check_table

    if _is_config(options):
        reports = check_config(options.file)
    else:
        kinds = {column: kind for kind in KINDS for column in getattr(options, kind) or []}
        known = options.labels.split(",") if options.labels else None
        reports = [
            check_table(
                options.file,
                kinds,
                options.label,
                known,
                trusted=not options.untrusted,
                encoding=options.encoding,
                limits=limits_of(options),
            )
        ]
    bad = sum(len(report.bad_rows) for report in reports)
    if options.json:
        print(json.dumps([report.as_json() for report in reports], indent=2, ensure_ascii=False))
    else:
        for report in reports:
            columns = ", ".join(f"{column} ({kind})" for column, kind in report.columns.items())
            if report.note is not None:
                print(report.note)
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
    from mope.scenes import build_scenes
    from mope.scenes.build import SceneSettings

    settings = SceneSettings(
        options.level,
        options.task,
        options.train,
        options.validation,
        options.test,
        options.size,
        options.seed,
        options.kinds,
        options.facts or None,
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
    if (constants := manifest["splits"]["test"].get("constants")) is not None:
        best = max(constants, key=lambda name: (constants[name], name != "best"))
        print(
            f"The best answer that doesn't read the phrase, {best}, has mIoU {constants[best]:.3f} on test."
        )
    print(f"The scenes are in {options.out}. {manifest['licence']}")
