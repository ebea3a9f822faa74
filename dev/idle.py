"""Measure what docs/speed.md shows, one figure after the other, and keep each as JSON in dev/measured/bench.

For an idle machine, with the demo's run and set (`make demo`). A figure that is kept is measured again only
if it is named; `make results` lays them out.

    python dev/idle.py runs/demo
    python dev/idle.py runs/demo serve runs100
    python dev/idle.py runs/demo first --before ../earlier    # where `make demo` was run, too
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

from mope.bench.models import SIZES
from mope.bench.turns import Ratio, Turns, in_turn
from mope.config import Config
from mope.device import describe_machine, has_fast_bf16, pick_device
from mope.model import FusionModel
from mope.predictor import Predictor
from mope.scenes.build import SceneSettings, build_scenes

KEPT, GPU = Path("dev/measured/bench"), Path("dev/measured/h100")
COMMANDS = {
    "prompts-swin-b": ["prompts", "--model", "swin-b", "--repeats", "18"],
    **{
        f"prompts-{name}": ["prompts", "--model", name, "--no-training"]
        for name in ("vit-b", "bert-base", "dinov2-s")
    },
    "step": ["step"],
    "compiled": ["step", "--compile"],
    "serve": ["serve", "{run}", "--rounds", "15"],
    "runs100": ["serve", "{run}", "--runs", "100", "--rounds", "15"],
}
"""`mope bench` commands by figure; `{run}` is the demo's run."""

ROWS = 500
"""Of `mope explain`."""

_OVER_BARE = "prompted over bare forward pass, batch 8, 13 prompts: "
_ROUTING = "routing and mixing, share of the forward pass: "
LINES = (
    ("prompts-swin-b", ("inference",), _OVER_BARE + "Swin-B, 224 pixels", "1.04"),
    ("prompts-vit-b", ("inference",), _OVER_BARE + "ViT-B, 224 pixels", "1.02"),
    ("prompts-bert-base", ("inference",), _OVER_BARE + "BERT-base, 64 tokens", "1.04"),
    ("prompts-dinov2-s", ("inference",), _OVER_BARE + "DINOv2-small, 112 pixels", "1.05"),
    ("prompts-swin-b", ("routing", "4, clusters"), _ROUTING + "Swin-B, MoPE-clusters, k=4", "-"),
    ("prompts-swin-b", ("routing", "4"), _ROUTING + "as published, k=4", "-"),
    ("prompts-swin-b", ("routing", "128"), _ROUTING + "as published, k=128", "-"),
    (
        "prompts-swin-b",
        ("training", "time"),
        "training step over the fastest full fine-tuning, Swin-B",
        "0.60",
    ),
    ("prompts-swin-b", ("training", "memory"), "the same, peak memory", "0.50"),
    ("step", (), "the demo's training step over the sum of its bare parts", "1.10"),
    ("compiled", ("compiled",), "the demo's training step, compiled by torch.compile over plain", "-"),
    ("serve", ("single",), "a row served over the bare forward pass, demo run", "1.10"),
    ("serve", ("parallel",), "64 clients over rows predicted at once, rows per second", "0.90"),
    ("runs100", ("memory",), "100 runs in one server over one, memory", "1.2"),
    ("runs100", ("rows_per_second",), "rows spread over 100 runs over rows of one, rows per second", "0.90"),
    ("first", (), "`mope predict` of one row, as typed, over an earlier state", "0.5"),
    ("explain", (), "`mope explain` of a Swin-B run over one pass over its rows", "2"),
)
"""Of the table: the figure, where in it, in words, and what is wanted."""


def main() -> int:
    """Measure what is wanted and not kept yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="the demo's run")
    parser.add_argument(
        "figures", nargs="*", help=f"only these: {', '.join([*COMMANDS, 'first', 'explain'])}"
    )
    parser.add_argument("--before", help="another checkout of the repository, for first")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"of explain ({ROWS})")
    options = parser.parse_args()
    if "first" in options.figures and not options.before:
        parser.error("first takes --before, another checkout")
    if options.before and "first" in (options.figures or ["first"]) and Path(options.run).is_absolute():
        parser.error("with --before the run is a path that both checkouts have, such as runs/demo")
    KEPT.mkdir(parents=True, exist_ok=True)
    for figure in [*COMMANDS, "explain", *(["first"] if options.before else [])]:
        file = KEPT / f"{figure}.json"
        if figure not in options.figures and (options.figures or file.is_file()):
            continue
        load = os.getloadavg()[0]
        if figure == "first":
            found = first_answer(options.run, Path(options.before))
        elif figure == "explain":
            found = explaining(options.rows)
        else:
            found = _bench([word.format(run=options.run) for word in COMMANDS[figure]])
        kept = {
            **found,
            "date": f"{date.today()}",
            "on": describe_machine(),
            "bf16": has_fast_bf16(pick_device()),
            "load_before": load,
        }
        file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        print(f"{figure}: {file}", flush=True)
    return 0


def table(folder: Path) -> str | None:
    """The figures that are kept, as Markdown; None for none."""
    lines, said = ["| what | measured | wanted |", "|---|---|---|"], set()
    for figure, place, words, wanted in LINES:
        if not (file := folder / f"{figure}.json").is_file():
            continue
        kept = json.loads(file.read_text(encoding="utf-8"))
        said.add(f"{kept['date']}, {kept['on']}, {'bf16' if kept['bf16'] else 'fp32'}")
        lines.append(f"| {words} | {_measured(kept, place)} | {wanted} |")
    if not said:
        return None
    note = (
        "Medians of ratios turn by turn, with a 95 % interval where there were six turns or more; routing's "
        "shares are of medians, memory and `mope explain` were measured once."
    )
    return "\n".join([*lines, "", f"{note} {'; '.join(sorted(said))}."]) + "\n"


def gpu_table(folder: Path) -> str | None:
    """What a GPU's `bench.jsonl` holds, as Markdown: a line for what each call of `bench_prompts` and
    `bench_step` gave, in one process; None where there is none."""
    if not (file := folder / "bench.jsonl").is_file():
        return None
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    found.sort(key=lambda one: (one["settings"]["precision"] == "fp16", one["settings"]["batch"]))
    rows = [
        "| forward pass | bare, ms | prompted, ms | ratio | CUDA graphs: bare, ms | prompted, ms | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in (one for one in found if "inference" in one):
        part, settings = one["inference"], one["settings"]
        cells = [f"{settings['model']}, batch {settings['batch']}, {settings['precision']}"]
        ways = (("bare held", "prompted", "ratio"), ("bare faster", "prompted faster", "ratio_faster"))
        for *variants, ratio in ways:
            cells += [f"{1000 * part[variant]:.2f}" for variant in variants]
            cells.append(str(Ratio(part[ratio], part["intervals"][ratio])))
        rows.append(f"| {' | '.join(cells)} |")
    rows += ["", "| training step | ms | ratio | to |", "|---|---|---|---|"]
    for one in found:
        settings = one["settings"]
        name = f"{settings.get('size', settings.get('model'))}, batch {settings['batch']}"
        if part := one.get("training"):
            ratio = Ratio(part["time_ratio"], part["time_interval"])
            step, to = part["seconds"]["prompted"], f"{part['full'].replace('full', 'full fine-tuning,')}"
        elif "inference" not in one:
            ratio = Ratio(one["ratio"], one["interval"])
            step, to = one["seconds"]["step"], "its encoders' bare passes, forward and backward"
        else:
            continue
        rows.append(f"| {name} | {1000 * step:.1f} | {ratio} | {to} |")
    machine = found[0]["machine"]
    note = (
        f"{machine['name']}, PyTorch {machine['torch']}; wall time, medians of ratios turn by turn. "
        "Milliseconds compare within a line alone."
    )
    return "\n".join([*rows, "", note]) + "\n"


def _measured(kept: dict[str, Any], place: tuple[str, ...]) -> str:
    if place == ("training", "time"):
        part = kept["training"]
        return str(Ratio(part["time_ratio"], part["time_interval"]))
    if place == ("training", "memory"):
        return f"{kept['training']['memory_ratio']:.3f}"
    if place[:1] == ("routing",):
        return f"{kept['routing'][place[1]]:.2%}"
    for key in place:
        kept = kept[key]
    interval = kept["intervals"]["ratio"] if "intervals" in kept else kept.get("interval")
    return str(Ratio(kept["ratio"], interval))


def _bench(words: list[str]) -> dict[str, Any]:
    """What a `mope bench` command prints, and itself."""
    command = [sys.executable, "-m", "mope", "bench", *words, "--json"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {"command": " ".join(["mope", "bench", *words]), **json.loads(printed)}


def first_answer(run: str, before: Path, turns: int = 7) -> dict[str, Any]:
    """Seconds from the start of `mope predict` until it ends, with one row, here and in another checkout,
    each with its own run of that name, since an earlier state can't read a later one's."""
    table = str(Predictor(run, device="cpu").settings.data.test)
    seconds: dict[str, list[float]] = {"before": [], "now": []}
    for turn in range(-1, turns):  # the first reads the disk
        for name, folder in in_turn([("before", before), ("now", Path())], turn):
            environment = {**os.environ, "PYTHONPATH": str((folder / "src").absolute())}
            started = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "mope", "predict", run, table, "--rows", "1"],
                check=True,
                capture_output=True,
                cwd=folder,
                env=environment,
            )
            if turn >= 0:
                seconds[name].append(time.perf_counter() - started)
    found = Turns(seconds)
    ratio = found.ratio("now", "before")
    commit = subprocess.run(
        ["git", "-C", str(before), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    kept = {"before_commit": commit, "seconds": found.medians}
    return {**kept, "ratio": ratio.median, "interval": ratio.interval}


def explaining(rows: int, folder: Path = Path("runs/bench-explain")) -> dict[str, Any]:
    """Seconds of `mope explain` over those of one pass, for an untrained Swin-B, as the command is typed."""
    data = folder / "scenes"
    if not (data / "test.csv").is_file():
        build_scenes(data, SceneSettings("full", train=4, validation=4, test=rows, size=224))
    run = folder / "run"
    if not (run / "model.safetensors").is_file():
        _swin_run(data, run)
    predictor, table = Predictor(run), data / "test.csv"
    predictor.predict(_first(table, 8), data)
    command = [sys.executable, "-m", "mope", "explain", str(run), "--rows", str(rows), "--json"]

    def one_pass() -> Any:
        return predictor.predict(_first(table, rows), data)

    def explain() -> Any:
        return subprocess.run(command, check=True, capture_output=True)

    before, explained, after = _seconds(one_pass), _seconds(explain), _seconds(one_pass)
    one = statistics.mean((before, after))
    return {"rows": rows, "seconds": {"one_pass": one, "explain": explained}, "ratio": explained / one}


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _first(table: Path, rows: int) -> list[dict[str, Any]]:
    with table.open(newline="", encoding="utf-8") as stream:
        return [row for row, _ in zip(csv.DictReader(stream), range(rows), strict=False)]


def _swin_run(data: Path, run: Path) -> None:
    """MoPE over a random Swin-B at 224 pixels and MiniLM, untrained, with the answers that there are."""
    torch.manual_seed(0)
    content = {
        "inputs": {
            "image": {"kind": "image", "column": "image", "encoder": {"architecture": SIZES["swin-b"][0]}},
            "text": {
                "kind": "text",
                "column": "question",
                "max_length": 40,
                "encoder": {"weights": "package:minilm-l6", "tuning": "prompt"},
            },
        },
        "fusion": {"main": "image"},
        "data": {
            **{name: str(data / f"{name}.csv") for name in ("train", "validation", "test")},
            "label": "answer",
        },
        "output": str(run),
    }
    labels = sorted({row["answer"] for row in _first(data / "test.csv", 10**6)})
    FusionModel.build(Config.parse(content), labels).save_pretrained(run)


if __name__ == "__main__":
    sys.exit(main())
