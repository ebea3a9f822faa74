"""What commands share: how a verb is added, and how tables are printed."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from mope.errors import UserError


def add_verb(
    verbs: Any, name: str, function: Any, text: str, overrides: bool = False
) -> argparse.ArgumentParser:
    """A subcommand; with `overrides`, every setting of the config is a flag as well."""
    verb = verbs.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Any setting of the config can be given as --SECTION.KEY VALUE; see `mope train --settings`."
        if overrides
        else None,
        allow_abbrev=False,
    )
    if name in ("train", "fit"):
        verb.add_argument(
            "--settings", action=_ListSettings, nargs=0, help="list every setting of a config, and exit"
        )
    verb.add_argument("--json", action="store_true", help="print JSON instead of a table")
    if name in ("train", "fit"):
        verb.add_argument("--quiet", action="store_true", help="say nothing but what goes wrong")
    verb.set_defaults(run_verb=function, overrides=overrides)
    return verb


def reporter(options: argparse.Namespace) -> Any:
    """What takes lines that are said: it prints them without breaking a progress bar that is being drawn."""
    stream = sys.stderr if options.json else sys.stdout

    def report(line: str) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode():
            print(line, file=stream, flush=True)

    return (lambda line: None) if options.quiet else report


def add_plugin(verb: argparse.ArgumentParser) -> None:
    """The flag for a user's own methods."""
    verb.add_argument(
        "--plugin", metavar="FILE", action="append", default=[], help="a Python file that registers methods"
    )


def add_table(verb: argparse.ArgumentParser) -> None:
    """The flags for how a table is read."""
    verb.add_argument("--encoding", help="of a CSV or JSONL file; without it, UTF-8, or UTF-16 where it is")
    verb.add_argument(
        "--untrusted",
        action="store_true",
        help="the table is a stranger's: refuse paths that leave its folder, and what a server would refuse",
    )
    add_limits(verb, "of a file; with --untrusted")


LIMITS = ("max_megabytes", "max_pixels", "max_seconds")
"""Options that say how large a stranger's media may be."""


def add_limits(verb: argparse.ArgumentParser, megabytes: str) -> None:
    """The flags for how large a stranger's media may be, in a request or in a table that isn't trusted.

    Args:
        verb: the command.
        megabytes: what so many are the most of.
    """
    for name, default, kind, text in (
        ("megabytes", "32", float, megabytes),
        ("pixels", "64,000,000", int, "of an image, or of a video's frame"),
        ("seconds", "120", float, "of audio or video"),
    ):
        verb.add_argument(f"--max-{name}", type=kind, metavar="N", help=f"{text} ({default})")


def limits_of(options: argparse.Namespace) -> Any:
    """The limits of a table that isn't trusted, as a `MediaLimits`.

    Raises:
        UserError: there are some, and the table is trusted; or one is out of bounds.
    """
    given = {name: value for name in LIMITS if (value := getattr(options, name)) is not None}
    if given and not options.untrusted:
        flag = next(iter(given)).replace("_", "-")
        raise UserError(f"--{flag} is for a stranger's table: add --untrusted, or leave it out.")
    from mope.config import MediaLimits

    return MediaLimits(**{name.removeprefix("max_"): value for name, value in given.items()})


def add_reading(verb: argparse.ArgumentParser) -> None:
    """The flags for how many rows are read and go through the model at once, and where."""
    verb.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="rows that go through the model at once (32)"
    )
    verb.add_argument("--workers", type=int, default=1, metavar="N", help="processes that read rows (1)")
    verb.add_argument("--device", help="cpu, cuda or mps; without it, the best there is")
    add_compile(verb)


def add_compile(verb: argparse.ArgumentParser) -> None:
    """The flag for faster passes."""
    verb.add_argument(
        "--compile",
        default="none",
        choices=("none", "default", "graphs"),
        help="slower first passes and faster later ones: default by torch.compile, graphs by CUDA graphs",
    )


def add_engine(verb: argparse.ArgumentParser) -> None:
    """The flag for what goes through the model."""
    verb.add_argument(
        "--engine",
        default="here",
        choices=("here", "ray"),
        help="ray: --workers is how many load the model, on this machine or on the cluster that RAY_ADDRESS "
        "names",
    )


def add_method(verb: argparse.ArgumentParser) -> None:
    """The flags for a method by name."""
    verb.add_argument(
        "--method", metavar="NAME", help="a method of `mope compare --list`, for the config's own"
    )
    add_plugin(verb)


def load_plugins(options: argparse.Namespace) -> None:
    """Run the plugins that are named."""
    if options.plugin:
        from mope.methods import load_plugin

        for file in options.plugin:
            load_plugin(file)


def whole_numbers(name: str, text: str) -> tuple[int, ...]:
    """What an option lists, by commas.

    Raises:
        UserError: something else than whole numbers.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--{name} is '{text}': give whole numbers, such as 1,2,4.") from None


class _ListSettings(argparse.Action):
    """Print every setting with its doc line and default."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        from pydantic_core import PydanticUndefined

        from mope.config import fields

        method = None
        for setting in fields():
            if setting.method not in (None, method):
                print(f"\nOf fusion.method {setting.method}:")
            elif setting.method is None and method is not None:
                print()
            method = setting.method
            default = setting.default
            value = "required" if default is PydanticUndefined else json.dumps(default)
            print(f"--{setting.key}\n    {setting.text} ({value})")
        parser.exit()


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], last_is_sum: bool = False) -> None:
    """Print a table; numbers stand to the right."""
    from rich.console import Console

    table = make_table(header, rows, last_is_sum)
    Console(highlight=False, markup=False, soft_wrap=not sys.stdout.isatty()).print(table)


def make_table(header: Sequence[str], rows: Sequence[Sequence[str]], last_is_sum: bool = False) -> Any:
    """A table to be printed by rich."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(header):
        numeric = bool(rows) and all(_is_number(row[place]) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for place, row in enumerate(rows):
        if last_is_sum and place == len(rows) - 1:
            table.add_section()
        table.add_row(*row)
    return table


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "").replace("-", "").isdigit()
