"""A run's settings and metrics, as a report tells them."""

from typing import Any

from mope.config import Config, GuidedConfig, RegisteredConfig
from mope.insight.explanation import Explanation
from mope.insight.report import Page
from mope.predictor import Predictor
from mope.run import read_metrics
from mope.tasks.meaning import MEANINGS

_TASKS = {
    "classification": "one label for each row",
    "multilabel": "any number of labels for each row",
    "regression": "a number for each row",
    "referring-segmentation": "the part of a picture that a text means",
}
_TUNING = {
    "frozen": "nothing: it is as it came",
    "prompt": "prompts, learned tokens in each layer; the rest is as it came",
    "full": "all of it",
    "lora": "small matrices beside its own (LoRA)",
    "bitfit": "its biases alone (BitFit)",
    "adaptformer": "small layers beside its own (AdaptFormer)",
}


def add_setup(page: Page, predictor: Predictor, found: Explanation) -> None:
    """The tables of inputs, settings and metrics."""
    settings, kept = predictor.settings, read_metrics(predictor.run)
    guided = isinstance(settings.fusion, GuidedConfig)
    page.heading("The run", f"Looked at: {len(found.table)} rows of {found.table.name}.")
    page.table(
        ["input", "kind", "encoder", "what is trained of it"],
        [
            (
                f"{name}{' (main)' if name == settings.fusion.main else ''}",
                entry.kind,
                entry.encoder.weights
                or ("trained from the start" if entry.kind == "table" else "random weights"),
                _TUNING[entry.encoder.tuning],
            )
            for name, entry in settings.inputs.items()
            if name in predictor.readers
        ],
    )
    if guided:
        page.note("The main input is encoded last, under the guidance of the others.")
    page.table(["setting", "value"], _facts(settings, kept, found))
    if not found.metrics:
        return
    validation, meanings = kept.get("validation", {}), MEANINGS[settings.task]
    page.table(
        ["metric", "what it is", "best is", "on these rows", "validation, while training"],
        [
            (
                name,
                meanings[name].text,
                meanings[name].best,
                f"{value:.4f}",
                f"{validation[name]:.4f}" if name in validation else "-",
            )
            for name, value in found.metrics.items()
        ],
    )


def _facts(settings: Config, kept: dict[str, Any], found: Explanation) -> list[tuple[str, str]]:
    fusion = settings.fusion
    facts = [("what it answers with", _TASKS[settings.task]), ("how inputs are fused", _fused(settings))]
    if found.experts is not None and isinstance(fusion, GuidedConfig):
        facts += [
            ("experts in each layer", str(fusion.experts)),
            ("length of an expert, in tokens", str(fusion.length)),
        ]
    trained, frozen = kept.get("trainable", 0), kept.get("frozen", 0)
    if trained:
        facts.append(("trained parameters", f"{trained:,} ({trained / (trained + frozen):.2%} of all)"))
    return facts


def _fused(settings: Config) -> str:
    """What a method does, as its setting says, and its name."""
    fusion = settings.fusion
    if isinstance(fusion, RegisteredConfig):
        return fusion.method
    said, _, _ = (type(fusion).model_fields["method"].description or "").partition(":")
    return f"{said} ({fusion.method})"
