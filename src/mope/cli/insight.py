"""`mope explain`."""

import argparse
import json
import sys
from typing import Any

from mope.cli.output import add_plugin, add_verb, load_plugins


def add(verbs: Any) -> None:
    """Add the command."""
    verb = add_verb(
        verbs, "explain", explain, "write a page about what a run does: experts, attention, modalities"
    )
    verb.add_argument("run", metavar="RUN", help="a run's folder")
    verb.add_argument("--data", metavar="FILE", help="a table; without it, the test rows of the run's config")
    verb.add_argument("--rows", type=int, default=500, metavar="N", help="look at so many rows (500)")
    verb.add_argument("--beside", metavar="RUN", help="another run, whose attention or masks are shown too")
    verb.add_argument("--out", metavar="FOLDER", help="where to; without it, `explain` in the run's folder")
    add_plugin(verb)
    verb.add_argument("--device", help="cpu, cuda or mps; without it, the best there is")


def explain(options: argparse.Namespace) -> None:
    """`mope explain RUN`."""
    from mope.insight.explain import explain as run

    load_plugins(options)
    result = run(
        options.run,
        options.data,
        out=options.out,
        beside=options.beside,
        rows=options.rows,
        device=options.device,
        report=lambda line: print(line, file=sys.stderr if options.json else sys.stdout),
    )
    if options.json:
        print(json.dumps(result, indent=2))
