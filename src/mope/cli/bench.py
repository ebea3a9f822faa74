"""`mope bench data | prompts | step | experts | methods | serve`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mope.cli.output import add_compile, add_verb, print_table, whole_numbers
from mope.cli.serve import add_bench
from mope.errors import UserError

_FASTER = {"default": "compiled", "graphs": "as CUDA graphs"}


def add(verbs: Any) -> None:
    """Add the commands."""
    bench = verbs.add_parser("bench", help="measure what things cost").add_subparsers(
        dest="what", required=True, metavar="WHAT"
    )
    verb = add_verb(bench, "data", bench_data, "measure reading pictures beside a bare loop of torchvision's")
    verb.add_argument("--rows", type=int, default=256, metavar="N", help="pictures per turn (256)")
    verb.add_argument("--repeats", type=int, default=7, metavar="N", help="turns of each variant (7)")
    verb.add_argument("--size", type=int, default=224, help="side they are resized to (224)")

    verb = add_verb(
        bench, "prompts", bench_prompts, "measure prompts beside the bare model and full fine-tuning"
    )
    verb.add_argument(
        "--model",
        choices=("swin-b", "vit-b", "bert-base", "dinov2-s", "tiny", "tiny-bert"),
        default="swin-b",
        help="with random weights; pictures of 224 pixels (dinov2-s: 112), texts of 64 tokens (swin-b)",
    )
    verb.add_argument("--batch", type=int, default=8, metavar="N", help="rows per pass (8)")
    verb.add_argument("--experts", type=int, default=4, metavar="K", help="experts per layer (4)")
    verb.add_argument("--repeats", type=int, default=15, metavar="N", help="turns of each variant (15)")
    verb.add_argument(
        "--precision", choices=("auto", "bf16", "fp16", "fp32"), default="auto", help="arithmetic; fp16: GPUs"
    )
    verb.add_argument(
        "--insertion",
        choices=("prefix", "tokens"),
        help="prompts as keys and values, or among a layer's tokens (not swin-b); by default the model's way",
    )
    verb.add_argument(
        "--start",
        choices=("published", "quiet"),
        default="published",
        help="quiet: with an offset on prompts' attention logits",
    )
    verb.add_argument("--no-training", action="store_true", help="inference and routing only")
    verb.add_argument("--device", help="cpu, cuda or mps; without it, the best there is")
    add_compile(verb)
    _add_step(bench)
    _add_experts(bench)
    _add_methods(bench)
    add_bench(bench)


def _add_step(bench: Any) -> None:
    verb = add_verb(
        bench, "step", bench_step, "measure the demo's training step beside its bare encoders' passes"
    )
    verb.add_argument("--model", choices=("demo", "tiny"), default="demo", help="with random weights")
    verb.add_argument("--method", default="MoPE-clusters", metavar="NAME", help="(MoPE-clusters)")
    verb.add_argument("--batch", type=int, default=8, metavar="N", help="rows per step (8)")
    verb.add_argument("--repeats", type=int, default=15, metavar="N", help="turns of each variant (15)")
    verb.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="arithmetic")
    verb.add_argument("--device", help="cpu, cuda or mps; without it, the best there is")
    verb.add_argument("--compile", action="store_true", help="the step by torch.compile as well")


def _add_experts(bench: Any) -> None:
    verb = add_verb(bench, "experts", bench_experts, "measure what more experts cost (Tab. VIII)")
    verb.add_argument("--experts", default="4,8,16,32,64,128", metavar="K,K,...", help="numbers k")
    verb.add_argument("--method", default="MoPE", metavar="NAME", help="a method with experts (MoPE)")
    verb.add_argument("--repeats", type=int, default=9, metavar="N", help="turns of each k (9)")
    _add_whole_models(verb, 16)


def _add_methods(bench: Any) -> None:
    verb = add_verb(
        bench, "methods", bench_methods, "measure a forward pass of every method (Tab. I's Speed)"
    )
    verb.add_argument("names", metavar="METHOD", nargs="*", help="only these")
    verb.add_argument("--repeats", type=int, default=7, metavar="N", help="turns of each method (7)")
    _add_whole_models(verb, 4)


def _add_whole_models(verb: argparse.ArgumentParser, batch: int) -> None:
    verb.add_argument(
        "--model", choices=("swin-b", "vit-b", "tiny"), default="swin-b", help="beside BERT-base (swin-b)"
    )
    verb.add_argument("--batch", type=int, default=batch, metavar="N", help=f"rows per pass ({batch})")
    verb.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="arithmetic")
    verb.add_argument("--device", help="cpu, cuda or mps; without it, the best there is")
    verb.add_argument("--out", metavar="FOLDER", help="also write table.json and table.md there")


def bench_data(options: argparse.Namespace) -> None:
    """`mope bench data`."""
    from mope.bench.data import bench_data as run

    if min(options.rows, options.repeats, options.size) < 1:
        raise UserError("A benchmark takes rows, repeats and a size of at least 1.")
    result = run(options.rows, options.repeats, options.size)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    rows = [
        [name, f"{entry['per_second']:.0f}", f"{entry['ratio']:.3f}"]
        for name, entry in result["variants"].items()
    ]
    print_table(["one process, one thread", "pictures per second", "over the bare loop"], rows)


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
        insertion=options.insertion,
        start=options.start,
        training=not options.no_training,
        compile=options.compile,
    )
    result = run(settings)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    inference, training = result["inference"], result.get("training")
    intervals = inference["intervals"]
    weights = "bf16" if result["machine"]["bf16"] else "fp32"
    rows = [
        [
            f"forward, prompted over bare, both with {weights} weights",
            _ratio(inference["ratio"], intervals["ratio"]),
        ],
        [
            "forward, prompted over bare with fp32 weights",
            _ratio(inference["ratio_to_bare"], intervals["ratio_to_bare"]),
        ],
        [
            "forward, prompted over the same without prompts",
            _ratio(inference["ratio_to_unprompted"], intervals["ratio_to_unprompted"]),
        ],
    ]
    if "ratio_faster" in inference:
        rows.append(
            [
                f"forward, prompted over bare, both {_FASTER[options.compile]}",
                _ratio(inference["ratio_faster"], intervals["ratio_faster"]),
            ]
        )
    rows += [
        [f"routing and mixing of the forward pass, k={k}", f"{share:.2%}"]
        for k, share in result["routing"].items()
    ]
    if training:
        time = _ratio(training["time_ratio"], training["time_interval"])
        rows.append([f"training step over {training['full']}, time", time])
        rows.append(
            [f"training step over {training['full']}, peak memory", f"{training['memory_ratio']:.3f}"]
        )
    print_table(["", ""], rows)
    print(_machine(options, result))


def _ratio(median: float, interval: tuple[float, float] | None) -> str:
    from mope.bench.turns import Ratio

    return str(Ratio(median, interval))


def bench_step(options: argparse.Namespace) -> None:
    """`mope bench step`."""
    from mope.bench.step import StepSettings
    from mope.bench.step import bench_step as run

    settings = StepSettings(
        options.model,
        options.method,
        options.batch,
        options.repeats,
        options.precision,
        options.device,
        options.compile,
    )
    result = run(settings)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    rows = [[name, f"{1000 * value:.1f}"] for name, value in result["seconds"].items()]
    ratio = _ratio(result["ratio"], result["interval"])
    rows.append(["step over the sum of bare passes", ratio])
    if (compiled := result.get("compiled")) is not None:
        rows.append(["compiled step over the plain one", _ratio(compiled["ratio"], compiled["interval"])])
    print_table(["", "ms"], rows)
    print(_machine(options, result))


def bench_experts(options: argparse.Namespace) -> None:
    """`mope bench experts`."""
    from mope.bench.experts import ExpertsSettings
    from mope.bench.experts import bench_experts as run

    settings = ExpertsSettings(
        size=options.model,
        method=options.method,
        experts=whole_numbers("experts", options.experts),
        batch=options.batch,
        repeats=options.repeats,
        precision=options.precision,
        device=options.device,
    )
    result = run(settings)
    times, memory = zip(*(_experts_rows(row) for row in result["rows"]), strict=True)
    header = ["k", "forward ms", "to the first", "routing us", "of forward", "paper's %"]
    stored = ["k", "stored MiB", "with gradients, moments", "step's peak", "of the peak", "paper's MiB"]
    _show(options, result, "What experts cost", [(header, times), (stored, memory)])


def _experts_rows(row: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Of one k: its times and its memory."""
    k, paper, peak, share = str(row["k"]), row["paper"], row["step_mebibytes"], row["memory_share"]
    times = [
        k,
        f"{1000 * row['forward_seconds']:.1f}",
        f"{row['forward_ratio']:.3f}",
        f"{1e6 * row['routing_seconds']:.0f}",
        f"{row['routing_share']:.2%}",
        str(paper["percent"]) if paper else "-",
    ]
    memory = [
        k,
        f"{row['experts_mebibytes']:.2f}",
        f"{row['training_mebibytes']:.2f}",
        "-" if peak is None else f"{peak:.0f}",
        "-" if share is None else f"{share:.2%}",
        str(paper["mebibytes"]) if paper else "-",
    ]
    return times, memory


def bench_methods(options: argparse.Namespace) -> None:
    """`mope bench methods`."""
    import sys

    from mope.bench.methods import MethodsSettings
    from mope.bench.methods import bench_methods as run

    settings = MethodsSettings(
        methods=tuple(options.names) or None,
        size=options.model,
        batch=options.batch,
        repeats=options.repeats,
        precision=options.precision,
        device=options.device,
    )
    result = run(settings, lambda line: print(line, file=sys.stderr, flush=True))
    rows = [
        [
            row["method"],
            row["size"],
            f"{row['milliseconds']:.2f}",
            f"{row['ratio']:.3f}",
            "-" if row["paper_milliseconds"] is None else f"{row['paper_milliseconds']:.2f}",
            "-" if row["paper_ratio"] is None else f"{row['paper_ratio']:.3f}",
        ]
        for row in result["rows"]
    ]
    header = ["method", "image encoder", "ms per row", "over bare encoders", "paper's ms", "paper's ratio"]
    _show(options, result, "Forward passes of the methods", [(header, rows)])


def _show(options: argparse.Namespace, result: dict[str, Any], title: str, tables: Sequence[Any]) -> None:
    """Print tables, or the JSON; and write both where that is asked for."""
    if options.out:
        from mope.files import replacing, write_json

        write_json(Path(options.out) / "table.json", result)
        parts = [f"## {title}"]
        for header, rows in tables:
            lines = [header, ["---"] * len(header), *rows]
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        with replacing(Path(options.out) / "table.md") as draft:
            draft.write_text("\n\n".join([*parts, _machine(options, result)]) + "\n", encoding="utf-8")
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for header, rows in tables:
        print_table(header, rows)
    print(_machine(options, result))


def _machine(options: argparse.Namespace, result: dict[str, Any]) -> str:
    machine = result["machine"]
    name = machine["name"] or f"{machine['device']}, {machine['threads']} threads"
    return (
        f"{options.model}, batch {options.batch}, {name}, {machine['arithmetic']}; "
        f"medians of {options.repeats} turns, {machine['clock']} time."
    )
