"""The command line: one function per verb, which imports what it needs when it is run."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mope.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, or 2 for what a user can mend, which is said in one sentence."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    try:
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
        return 2
    except KeyboardInterrupt:
        print("mope: interrupted.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mope",
        description="Fuse separately pre-trained encoders into one model, training under 1 % of it.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    verb = _verb(verbs, "train", train, "train a model from a config", overrides=True)
    verb.add_argument("config", metavar="CONFIG", help="a YAML file")
    verb.add_argument("--resume", action="store_true", help="continue the run in the output folder")

    verb = _verb(verbs, "evaluate", evaluate, "measure a run on its test rows, or on a table")
    verb.add_argument("run", metavar="RUN", help="a run's folder")
    verb.add_argument("--data", metavar="FILE", help="a table; without it, the test rows of the run's config")
    verb.add_argument("--skip-bad-rows", action="store_true", help="leave out rows that can't be used")
    verb.add_argument("--device", help="cpu, cuda or mps; without it, the best there is")

    verb = _verb(verbs, "predict", predict, "predict a table's rows, in order")
    verb.add_argument("run", metavar="RUN", help="a run's folder")
    verb.add_argument("file", metavar="FILE", help="a table with the run's input columns")
    verb.add_argument(
        "--out", metavar="FILE", help="a .csv, .jsonl or .parquet file; without it, a table is printed"
    )
    verb.add_argument(
        "--routing", action="store_true", help="add the routing scores of every layer and expert"
    )
    verb.add_argument("--rows", type=int, metavar="N", help="only the first N rows")
    verb.add_argument("--device", help="cpu, cuda or mps; without it, the best there is")

    verb = _verb(verbs, "params", params, "count a config's trained and frozen parameters", overrides=True)
    verb.add_argument("config", metavar="CONFIG", help="a YAML file")

    data = verbs.add_parser("data", help="check tables, make the demo set").add_subparsers(
        dest="noun", required=True, metavar="WHAT"
    )
    verb = _verb(data, "check", data_check, "read every row of a table, and list what can't be used")
    verb.add_argument("file", metavar="FILE", help="a table, or a config, all of whose tables are checked")
    verb.add_argument("--image", metavar="COLUMN", action="append", help="a column of images")
    verb.add_argument("--text", metavar="COLUMN", action="append", help="a column of texts")
    verb.add_argument("--label", metavar="COLUMN", help="the label's column")
    verb.add_argument("--labels", metavar="A,B,...", help="the labels that are known")

    verb = _verb(
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
    verb.add_argument("--seed", type=int, default=0, help="of everything (0)")

    encoders = verbs.add_parser(
        "encoders", help="list the encoders that take prompts, check one"
    ).add_subparsers(dest="noun", required=True, metavar="WHAT")
    _verb(encoders, "list", encoders_list, "list the families of encoders, and what each supports")
    verb = _verb(encoders, "check", encoders_check, "load an encoder and check that it takes prompts exactly")
    verb.add_argument("weights", metavar="ID", help="a hub id, a folder (./folder) or package:NAME")
    verb.add_argument("--revision", help="commit, tag or branch of a hub id")
    verb.add_argument(
        "--kind", choices=("image", "text", "audio"), help="which part, of a model that has several"
    )

    bench = verbs.add_parser("bench", help="measure what things cost").add_subparsers(
        dest="what", required=True, metavar="WHAT"
    )
    verb = _verb(
        bench, "prompts", bench_prompts, "measure prompts beside the bare model and full fine-tuning"
    )
    verb.add_argument(
        "--model", choices=("swin-b", "vit-b", "tiny"), default="swin-b", help="with random weights"
    )
    verb.add_argument("--batch", type=int, default=8, metavar="N", help="images per pass (8)")
    verb.add_argument("--experts", type=int, default=4, metavar="K", help="experts per layer (4)")
    verb.add_argument("--repeats", type=int, default=15, metavar="N", help="turns of each variant (15)")
    verb.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="arithmetic")
    verb.add_argument("--no-training", action="store_true", help="inference and routing only")
    verb.add_argument("--device", help="cpu, cuda or mps; without it, the best there is")
    return parser


def _verb(
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
    if name == "train":
        verb.add_argument(
            "--settings", action=_ListSettings, nargs=0, help="list every setting of a config, and exit"
        )
    verb.add_argument("--json", action="store_true", help="print JSON instead of a table")
    verb.set_defaults(run_verb=function, overrides=overrides)
    return verb


class _ListSettings(argparse.Action):
    """Print every setting with its doc line and default."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        from pydantic_core import PydanticUndefined

        from mope.config import fields

        for key, text, default in fields():
            value = "required" if default is PydanticUndefined else json.dumps(default)
            print(f"--{key}\n    {text} ({value})")
        parser.exit()


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
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|huggingface_hub|torchmetrics)")


def train(options: argparse.Namespace) -> None:
    """`mope train CONFIG`."""
    import functools

    from mope.config import Config
    from mope.training import train as run

    config = Config.load(options.config, options.settings)
    first = os.environ.get("RANK", "0") == "0"  # of several processes under torchrun, one speaks
    say = functools.partial(print, file=sys.stderr if options.json else sys.stdout, flush=True)
    result = run(config, resume=options.resume, report=_tqdm_write(say) if first else _say_nothing)
    if not first:
        return
    if options.json:
        print(json.dumps(result, indent=2))
        return
    _table(
        ["validation", f"epoch {result['best_epoch']:.3g}"],
        [[name, f"{value:.4f}"] for name, value in result["validation"].items()],
    )
    print(f"The run is in {config.output}. Next: mope evaluate {config.output}")


def _say_nothing(line: str) -> None:
    """Take a line and keep it."""


def _tqdm_write(say: Any) -> Any:
    """Print a line without breaking a progress bar that is being drawn."""

    def report(line: str) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode():
            say(line)

    return report


def evaluate(options: argparse.Namespace) -> None:
    """`mope evaluate RUN`."""
    from mope.predictor import evaluate as run
    from mope.run import add_metrics

    name = "test" if options.data is None else str(options.data)
    result = run(
        options.run,
        options.data,
        skip_bad_rows=options.skip_bad_rows,
        device=options.device,
        report=lambda line: print(line, file=sys.stderr),
    )
    add_metrics(Path(options.run), name, result)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        _table(
            [name, ""],
            [
                [key, f"{value:.4f}" if isinstance(value, float) else f"{value}"]
                for key, value in result.items()
            ],
        )


def predict(options: argparse.Namespace) -> None:
    """`mope predict RUN FILE`."""
    from mope.data.table import open_table
    from mope.predictor import FORMATS, Predictor, write_predictions

    out = Path(options.out) if options.out else None
    if out is not None and out.suffix.lower() not in FORMATS:
        raise UserError(f"Can't write {out}: name a {', '.join(FORMATS)} file.")
    table = open_table(options.file)
    if options.rows is not None:
        table = table.select(range(min(options.rows, len(table))))
    predictor = Predictor(options.run, device=options.device, workers=1)
    predictions = predictor.predict(table)
    bad = [(number, p.error) for number, p in zip(table.numbers, predictions, strict=True) if p.error]
    if out is not None:
        write_predictions(predictions, out, predictor.model.task.labels, options.routing)
    if options.json:
        print(json.dumps([_as_json(p, options.routing) for p in predictions], indent=2, ensure_ascii=False))
    elif out is not None:
        print(f"{len(predictions)} rows are in {out}.")
    else:
        _table(
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
    return (
        ", ".join(label)
        if isinstance(label, list)
        else f"{label:.4g}"
        if isinstance(label, float)
        else str(label)
    )


def params(options: argparse.Namespace) -> None:
    """`mope params CONFIG`."""
    from mope.config import Config
    from mope.data.splits import label_names, open_splits
    from mope.model import empty_model

    config = Config.load(options.config, options.settings)
    labels = config.data.labels or (["label"] if config.task == "regression" else None)
    if labels is None:
        labels = label_names(config, open_splits(config)["train"]) if config.data.train else None
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
    _table(["part", "trained", "frozen"], rows, last_is_sum=True)
    print(f"{share:.2%} of all parameters are trained.")


def data_check(options: argparse.Namespace) -> None:
    """`mope data check FILE`: exit code 2 if a row can't be used."""
    from mope.data.report import check_config, check_table

    if Path(options.file).suffix.lower() in (".yaml", ".yml"):
        if options.image or options.text or options.label or options.labels:
            raise UserError(
                "A config says which columns there are: leave out --image, --text, --label and --labels."
            )
        reports = check_config(options.file)
    else:
        kinds = {**dict.fromkeys(options.image or [], "image"), **dict.fromkeys(options.text or [], "text")}
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
                _table(
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
    )
    manifest = build_scenes(options.out, settings)
    if options.json:
        print(json.dumps(manifest, indent=2))
        return
    rows = [
        [split, str(entry["pictures"]), str(entry["rows"]), str(len(entry["labels"]))]
        for split, entry in manifest["splits"].items()
    ]
    _table(["split", "pictures", "rows", "labels"], rows)
    print(f"The scenes are in {options.out}. {manifest['licence']}")


def encoders_list(options: argparse.Namespace) -> None:
    """`mope encoders list`."""
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
        _table(
            list(rows[0]),
            [["yes" if v is True else "" if v is False else v for v in r.values()] for r in rows],
        )


def encoders_check(options: argparse.Namespace) -> None:
    """`mope encoders check ID`: exit code 2 if a check fails."""
    from dataclasses import asdict

    from mope.encoders import load_encoder
    from mope.encoders.checks import run_checks

    encoder = load_encoder(options.weights, revision=options.revision, kind=options.kind)
    checks = run_checks(encoder, lambda name: None)
    if options.json:
        print(json.dumps([{**asdict(check), "passed": check.passed} for check in checks], indent=2))
    else:
        model = encoder.backbone
        count = sum(p.numel() for p in model.parameters())
        widths = ", ".join(map(str, sorted(set(encoder.layer_dims))))
        print(
            f"{options.weights}: {model.config.model_type}, {count:,} parameters, {len(encoder.layer_dims)} "
            f"layers of width {widths}, prompts by {encoder.insertion}, pooled by {encoder.pooling}"
        )
        rows = [
            [
                check.name,
                f"{check.difference:.1e}",
                f"{check.allowed:.0e}",
                "passed" if check.passed else "FAILED",
            ]
            for check in checks
        ]
        _table(["the same", "difference", "allowed", ""], rows)
    if failed := [check.name for check in checks if not check.passed]:
        raise UserError(
            f"{options.weights} fails {len(failed)} of {len(checks)} checks, such as '{failed[0]}'."
        )


def bench_prompts(options: argparse.Namespace) -> None:
    """`mope bench prompts`."""
    from mope.bench.prompts import BenchSettings
    from mope.bench.prompts import bench_prompts as run

    if min(options.batch, options.repeats) < 1 or options.experts < 2:
        raise UserError("A benchmark takes a batch and repeats of at least 1, and at least 2 experts.")
    settings = BenchSettings(
        model=options.model,
        batch=options.batch,
        experts=options.experts,
        repeats=options.repeats,
        precision=options.precision,
        device=options.device,
        training=not options.no_training,
    )
    result = run(settings)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    inference, training = result["inference"], result.get("training")
    rows = [["forward, prompted over bare", f"{inference['ratio']:.3f}"]]
    rows += [
        [f"routing and mixing of the forward pass, k={k}", f"{share:.2%}"]
        for k, share in result["routing"].items()
    ]
    if training:
        rows.append([f"training step over {training['full']}, time", f"{training['time_ratio']:.3f}"])
        rows.append(
            [f"training step over {training['full']}, peak memory", f"{training['memory_ratio']:.3f}"]
        )
    machine = result["machine"]
    arithmetic = "bf16" if machine["bf16"] else "fp32"
    _table([f"{options.model}, batch {options.batch}, {machine['device']}, {arithmetic}", ""], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], last_is_sum: bool = False) -> None:
    """Print a table; numbers stand to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(header):
        numeric = bool(rows) and all(_is_number(row[place]) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for place, row in enumerate(rows):
        if last_is_sum and place == len(rows) - 1:
            table.add_section()
        table.add_row(*row)
    Console(highlight=False, markup=False, soft_wrap=not sys.stdout.isatty()).print(table)


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "").replace("-", "").isdigit()


if __name__ == "__main__":
    sys.exit(main())
