"""Check on a GPU that every faster way gives what the plain one gives, and say what each takes.

Random weights; no network. Each check is a line that says pass or FAIL, with the largest difference over the
largest value; the process exits with 1 if one fails.

    python dev/gpu.py
    python dev/gpu.py --size tiny --device cpu      # what of it needs no GPU
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mope.bench.models import MODELS, bare_model, build, inputs_of, random_batch, random_inputs
from mope.bench.turns import take_turns
from mope.device import autocast, frozen_dtype, pick_device
from mope.encoders import TransformerEncoder
from mope.encoders.tuning import PRESENT
from mope.errors import UserError
from mope.graphs import Graphs, faster
from mope.methods import find_method
from mope.model import FusionModel

METHODS = ("MoPE", "P-SeqFuse")
# Rounding: of features over the largest one, and of routing scores, whose temperature makes it larger.
ALLOWED = {"fp32": (1e-4, 1e-3), "bf16": (4e-2, 0.15), "fp16": (6e-3, 0.03)}
LONGEST = 512


@dataclass
class Checks:
    """What was checked.

    Attributes:
        failed: names of what failed.
    """

    failed: list[str] = field(default_factory=list)
    count: int = 0

    def add(
        self, name: str, found: list[Tensor], expected: list[Tensor], allowed: tuple[float, float]
    ) -> None:
        """Compare features (first) and routing scores."""
        same = len(found) == len(expected) and all(
            one.shape == other.shape for one, other in zip(found, expected, strict=True)
        )
        differences = [
            float((one.float() - other.float()).abs().max() / other.float().abs().max().clamp(min=1e-9))
            for one, other in (zip(found, expected, strict=True) if same else ())
        ]
        scores = max(differences[1:], default=0.0)
        passed = same and differences[0] <= allowed[0] and scores <= allowed[1]
        said = f"features {differences[0]:.1e}, scores {scores:.1e}" if same else "other shapes"
        self.say(name, passed, said)

    def say(self, name: str, passed: bool, said: str) -> None:
        """Count a check, and print it."""
        self.count += 1
        print(f"{'pass' if passed else 'FAIL'}  {name:58s} {said}", flush=True)
        if not passed:
            self.failed.append(name)


def outputs_of(model: FusionModel) -> Callable[[Any], list[Tensor]]:
    """What is compared of a model: its fused features, and the routing scores of each layer."""

    def function(batch: Any) -> list[Tensor]:
        output = model.fusion(batch)
        return [output.features, *output.scores]

    return function


def some_rows(batch: Any, rows: int) -> dict[str, dict[str, Tensor]]:
    """The first rows of a batch."""
    return {name: {part: value[:rows] for part, value in inputs.items()} for name, inputs in batch.items()}


def with_missing(batch: Any) -> dict[str, dict[str, Tensor]]:
    """The batch with every other text missing."""
    there = torch.arange(len(batch["text"]["input_ids"]), device=batch["text"]["input_ids"].device) % 2 == 0
    return {**batch, "text": {**batch["text"], PRESENT: there}}


def check_bare(checks: Checks, size: str, precision: str, device: torch.device) -> None:
    """The encoder without prompts is transformers' model."""
    for name in (size, "bert-base" if size != "tiny" else "tiny-bert"):
        torch.manual_seed(0)
        with device:  # weights are drawn there, which is quicker
            bare = bare_model(name, device).requires_grad_(False)
        encoder = TransformerEncoder(copy.deepcopy(bare)).eval()
        encoder.freeze(frozen_dtype(precision, device))
        inputs = random_inputs(name, 4, device)
        with torch.inference_mode(), autocast(precision, device):
            found, expected = encoder(**inputs).tokens, bare(**inputs).last_hidden_state
        checks.add(
            f"{name} {precision}: without prompts, the bare model", [found], [expected], ALLOWED[precision]
        )


def check_model(
    checks: Checks, size: str, method: str, precision: str, device: torch.device, compile: bool
) -> None:
    """A method's passes: plain, settled, as graphs, compiled."""
    torch.manual_seed(0)
    with device:
        model = build(find_method(method), size, precision, device).requires_grad_(False)
    plain = outputs_of(model)
    batches = [inputs_of(model, random_batch(size, 8, device)) for _ in range(2)]
    title, allowed = f"{size} {method} {precision}", ALLOWED[precision]
    with torch.inference_mode(), autocast(precision, device):
        cases = [batches[0], batches[1], some_rows(batches[1], 5), some_rows(batches[0], 1)]
        cases.append(with_missing(batches[0]))
        expected = [plain(case) for case in cases]
        unsettled = take_turns({"": lambda: plain(batches[0])}, 5, "", device).medians[""]
        model.settle_prompts()
        kept = len(model.fusion.prompts.projected)  # type: ignore[arg-type]
        checks.say(f"{title}: static prompts are kept", kept > 0, f"of {kept} layers")
        for number, (case, wanted) in enumerate(zip(cases, expected, strict=True)):
            checks.add(f"{title}: settled, batch {number}", plain(case), wanted, allowed)
        ways: dict[str, Callable[[Any], list[Tensor]]] = {}
        if device.type == "cuda":
            ways["graphs"] = faster(plain, "graphs", device, {"text": LONGEST})
        if compile:
            ways["default"] = faster(plain, "default", device, {})
        for name, way in ways.items():
            check_way(checks, f"{title}: {name}", way, cases, expected, allowed)
        variants = {"settled": plain, **ways}
        seconds = take_turns(
            {name: lambda way=way: way(batches[0]) for name, way in variants.items()}, 5, "", device
        ).medians
    times = {"unsettled": unsettled, **seconds}
    print(
        f"      {title}, batch 8, ms: " + ", ".join(f"{n} {1000 * s:.2f}" for n, s in times.items()),
        flush=True,
    )


def check_way(
    checks: Checks,
    title: str,
    way: Callable[[Any], list[Tensor]],
    cases: list[Any],
    expected: list[list[Tensor]],
    allowed: tuple[float, float],
) -> None:
    """A faster way gives the same, also once what other passes left behind is gone."""
    # What comes for the first time runs without a graph, what comes again is recorded.
    for turn in ("first", "second", "third"):
        for number, (case, wanted) in enumerate(zip(cases, expected, strict=True)):
            checks.add(f"{title}, batch {number}, {turn}", way(case), wanted, allowed)
        if not isinstance(way, Graphs):
            return
        # Plain passes of other sizes push masks out of the caches that graphs were recorded with.
        for rows in (2, 3, 6):
            way.function(some_rows(cases[0], rows))
        torch.cuda.empty_cache()
        junk = [torch.full((1 << 22,), float("nan"), device="cuda") for _ in range(16)]
        del junk
    # 8 and 5 rows share a graph; 1 row and the missing texts have their own.
    checks.say(f"{title}, few graphs", len(way) == 3, f"{len(way)} graphs")


def main() -> int:
    """Run the checks that the options name; 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=("all", "swin-b", "vit-b", "tiny"), default="all")
    parser.add_argument("--device", help="without it, the best there is")
    parser.add_argument(
        "--compile", choices=("none", "one", "all"), default="one", help="torch.compile, slow"
    )
    options = parser.parse_args()
    device = pick_device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(f"torch {torch.__version__}, {name}", flush=True)
    checks, started = Checks(), time.monotonic()
    precisions = ("fp32", "bf16", "fp16") if device.type == "cuda" else ("fp32", "bf16")
    for size in ("swin-b", "vit-b") if options.size == "all" else (options.size,):
        assert size in MODELS
        for precision in precisions:
            check_bare(checks, size, precision, device)
            for method in METHODS:
                one = (size, method, precision) == ("vit-b", "MoPE", "bf16")
                compile = options.compile == "all" or (options.compile == "one" and one)
                check_model(checks, size, method, precision, device, compile)
    if device.type != "cuda":
        try:
            faster(lambda batch: [], "graphs", device, {})
            checks.say("graphs are refused without a GPU", False, "")
        except UserError as error:
            checks.say("graphs are refused without a GPU", True, str(error))
    seconds = time.monotonic() - started
    print(f"{checks.count - len(checks.failed)} of {checks.count} checks passed in {seconds:.0f} s")
    for failed in checks.failed:
        print(f"FAILED: {failed}")
    return bool(checks.failed)


if __name__ == "__main__":
    sys.exit(main())
