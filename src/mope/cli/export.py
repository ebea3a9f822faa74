"""`mope export`."""

import argparse
import json
from typing import Any

from mope.cli.output import add_plugin, add_verb, load_plugins


def add(verbs: Any) -> None:
    """Add the command."""
    verb = add_verb(verbs, "export", export, "write a run as one file that runs without this library")
    verb.add_argument("run", metavar="RUN", help="a run's folder")
    verb.add_argument(
        "--to", choices=("onnx", "torch"), required=True, help="for ONNX Runtime, or for torch.export.load"
    )
    verb.add_argument(
        "--out", metavar="FILE", help="a .onnx or .pt2 file; without it, one in the run's folder"
    )
    verb.add_argument(
        "--data", metavar="FILE", help="a table to compare on; without it, the test rows of the run's config"
    )
    verb.add_argument("--rows", type=int, default=100, metavar="N", help="compare on N rows (100)")
    add_plugin(verb)


def export(options: argparse.Namespace) -> None:
    """`mope export RUN`."""
    from mope.export import TOLERANCE, export_run

    load_plugins(options)
    report = export_run(options.run, options.to, options.out, data=options.data, rows=options.rows)
    if options.json:
        print(json.dumps(report, indent=2))
        return
    for part in ("inputs", "outputs"):
        for name, shape in report[part].items():
            print(f"{part[:-1]:6}  {name} ({', '.join(str(size) for size in shape)})")
    print(
        f"{report['file']}: {report['bytes'] / 1e6:.1f} MB; its outputs differ by {report['difference']:.1e} "
        f"at most from the run's in float32, on {report['rows']} rows in batches of "
        f"{_sizes(report['batches'])} ({TOLERANCE:.0e} is allowed)."
    )


def _sizes(batches: list[int]) -> str:
    return ", ".join(str(size) for size in sorted(set(batches)))
