"""The command line: one function per verb, which imports what it needs when it is run."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from mope.cli import bench, data, encoders, export, fit, init, insight, predict, runs, serve, studies
from mope.errors import Interrupted, UserError
from mope.versions import installed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, or 2 for what a user can mend, which is said in one sentence."""
    verb = ""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        parser = build_parser()
        if not arguments:
            parser.print_help()
            return 0
        options, rest = parser.parse_known_args(arguments)
        verb = options.verb
        if rest and not options.overrides:
            raise UserError(
                f"'{options.verb}' knows no option '{rest[0]}': see `mope {options.verb} --help`."
            )
        _quieten()
        if options.overrides:
            options.settings = _overrides(rest)
        options.run_verb(options)
    except UserError as error:
        print(f"mope: {error}", file=sys.stderr)
        return error.code if isinstance(error, Interrupted) else 2
    except KeyboardInterrupt:
        hint = _RESUMED.get(verb, "")
        print(f"mope: interrupted.{hint}", file=sys.stderr)
        return 130
    return 0


_RESUMED = {"predict": " What goes to --out goes on with --resume."}


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one sentence, as all others are."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[0].upper()}{message[1:]}; see `{self.prog} --help`.")


class _Version(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        print(f"mope {installed()}")
        parser.exit()


class _Completion(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        import shtab

        if values not in shtab.SUPPORTED_SHELLS:
            raise UserError(
                f"There is no completion for '{values}': take {', '.join(shtab.SUPPORTED_SHELLS)}."
            )
        print(shtab.complete(parser, values))
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(
        prog="mope",
        description="Fuse separately pre-trained encoders into one model, training about 1 % of it.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parser.add_argument(
        "--print-completion",
        action=_Completion,
        metavar="SHELL",
        help="print a script that completes commands in bash, zsh or tcsh, and exit",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    for group in (fit, init, runs, predict, serve, export, studies, insight, data, encoders, bench):
        group.add(verbs)
    return parser


def _overrides(rest: Sequence[str]) -> list[tuple[str, str]]:
    """`--key value` and `--key=value` pairs."""
    pairs, words = [], list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UserError(f"What is '{word}' for? A setting is given as --SECTION.KEY VALUE.")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not words:
                raise UserError(f"--{key} needs a value.")
            value = words.pop(0)
        pairs.append((key, value))
    return pairs


def _quieten() -> None:
    """Keep other libraries' notes and progress bars off the terminal: ours say what there is to say."""
    import logging
    import os
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # a traceback for each failed try
    warnings.filterwarnings("ignore", module=r"(torch|transformers|huggingface_hub|torchmetrics)")
