"""Tab. I's Speed: a forward pass of every method beside the bare encoders."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mope.bench.models import SIZES, Batch, bare_encoders, build, inputs_of, machine_of, random_batch
from mope.bench.turns import take_turns
from mope.device import autocast, pick_device
from mope.errors import UserError
from mope.methods import METHODS, Method, find_method
from mope.model import FusionModel

PAPER = {
    "ImgOnly": 16.45,
    "TextOnly": 7.28,
    "LateConcat": 22.79,
    "SeqFuse": 23.32,
    "MMBT": 15.91,
    "P-ImgOnly": 21.01,
    "P-TextOnly": 7.57,
    "P-LateConcat": 28.59,
    "P-SeqFuse": 28.52,
    "P-MMBT": 16.71,
    "PromptFuse": 28.75,
    "BlindPrompt": 29.52,
    "PromptFuse-deep": 29.26,
    "PMF": 32.21,
    "MoPE": 30.47,
    "MoPE-k16": 30.44,
}
"""Tab. I's Speed in ms; on an RTX 4090, of how many rows isn't said."""


@dataclass(frozen=True)
class MethodsSettings:
    """What is measured.

    Attributes:
        methods: names; None for all of `mope.methods`.
        size: of `mope.bench.models.SIZES`. A method that doesn't take it is measured with "vit-b" instead.
        batch: rows per pass.
        repeats: turns of a method and the bare encoders.
        precision: "auto", "bf16" or "fp32", as in training.
        device: None for the best there is.
    """

    methods: tuple[str, ...] | None = None
    size: str = "swin-b"
    batch: int = 4
    repeats: int = 7
    precision: str = "auto"
    device: str | None = None


def bench_methods(settings: MethodsSettings, report: Callable[[str], Any] = print) -> dict[str, Any]:
    """Measure forward passes, each method's in turns with the bare encoders'.

    Args:
        settings: what is measured.
        report: takes each line that is said.

    Returns:
        `settings`, `machine`, and in `rows` by method: `size`, `milliseconds` per row, `bare_milliseconds` of
        both bare encoders, one after the other, in the same turns, their `ratio`, and the paper's
        `paper_milliseconds` and `paper_ratio`, to its ImgOnly and TextOnly, or None.

    Raises:
        UserError: a number is too small, or there is no such method.
    """
    if min(settings.batch, settings.repeats) < 1:
        raise UserError("A benchmark takes a batch and repeats of at least 1.")
    torch.manual_seed(0)
    device = pick_device(settings.device)
    names: Sequence[str] = settings.methods or list(METHODS)
    rows = []
    for method in [find_method(name) for name in names]:
        report(method.name)
        rows.append(_row(method, settings, device))
    machine = machine_of(settings.precision, device)
    return {"settings": asdict(settings), "machine": machine, "rows": rows}


def _row(method: Method, settings: MethodsSettings, device: torch.device) -> dict[str, Any]:
    model, size = _built(method, settings, device)
    bare, batch = bare_encoders(size, device), random_batch(size, settings.batch, device)
    turns = take_turns(
        {"bare": _bare(bare, batch, settings, device), "method": _whole(model, batch, settings, device)},
        settings.repeats,
        method.name,
        device,
    )
    per_row = {name: 1000 * seconds / settings.batch for name, seconds in turns.medians.items()}
    paper = PAPER.get(method.name)
    return {
        "method": method.name,
        "size": size,
        "milliseconds": per_row["method"],
        "bare_milliseconds": per_row["bare"],
        "ratio": turns.ratio("method", "bare").median,
        "paper_milliseconds": paper,
        "paper_ratio": paper and paper / (PAPER["ImgOnly"] + PAPER["TextOnly"]),
    }


def _built(method: Method, settings: MethodsSettings, device: torch.device) -> tuple[FusionModel, str]:
    """The method's model, and the size it was built with."""
    try:
        return build(method, settings.size, settings.precision, device), settings.size
    except UserError:
        if settings.size not in SIZES or settings.size == "vit-b":
            raise
        return build(method, "vit-b", settings.precision, device), "vit-b"


def _bare(
    encoders: dict[str, Any], batch: Batch, settings: MethodsSettings, device: torch.device
) -> Callable[[], None]:
    @torch.inference_mode()
    def run() -> None:
        with autocast(settings.precision, device):
            for name, encoder in encoders.items():
                encoder(**batch[name])

    return run


def _whole(
    model: FusionModel, batch: Batch, settings: MethodsSettings, device: torch.device
) -> Callable[[], None]:
    inputs = inputs_of(model, batch)

    @torch.inference_mode()
    def run() -> None:
        with autocast(settings.precision, device):
            model(**inputs)

    return run
