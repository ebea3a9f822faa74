"""`mope explain`: a run's report, its figures as PNG, and their numbers as JSON."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from mope.config import GuidedConfig
from mope.data.splits import Report
from mope.data.table import Table
from mope.errors import UserError
from mope.files import replacing, write_json
from mope.insight import figures
from mope.insight.explanation import Explanation, explain_rows
from mope.insight.looks import add_looks
from mope.insight.pictures import Pictures
from mope.insight.report import Page, expert_html
from mope.insight.summary import in_words
from mope.predictor import Predictor
from mope.run import read_metrics

ROWS = 500
"""Rows that a report looks at, unless told otherwise."""


def explain(
    run: str | Path,
    data: str | Path | None = None,
    *,
    out: str | Path | None = None,
    beside: str | Path | None = None,
    rows: int = ROWS,
    device: str | None = None,
    report: Report = print,
) -> dict[str, Any]:
    """Write a run's report.

    Args:
        run: the run's folder.
        data: a table; None for the test rows of the run's config.
        out: a folder for `report.html`, `numbers.json` and `figures/`; None for `explain` in the run's.
        beside: another run on the same columns, whose attention or masks are shown too.
        rows: look at so many rows, spread evenly over the table.
        device: see `Predictor`.
        report: takes each line that is said.

    Returns:
        The content of `numbers.json`.

    Raises:
        UserError: a folder holds no run, or the table can't be read.
    """
    predictor = Predictor(run, device=device, workers=1)
    other = Predictor(beside, device=device, workers=1) if beside is not None else None
    table = _some(predictor.table(data), rows)
    found = explain_rows(predictor, table)
    if found.left_out:
        report(f"{found.left_out} of {len(table)} rows can't be used and are left out.")
    page = Page(f"What {Path(run).name} does")
    numbers = {"run": str(run), **found.as_json()}
    _summary(page, predictor, found)
    pictures = Pictures(page, predictor, found.table)
    _performance(page, predictor, found)
    _modalities(page, predictor, found)
    _experts(page, predictor, found, pictures)
    add_looks(page, predictor, other, found, pictures)
    folder = Path(out) if out is not None else Path(run) / "explain"
    _write(folder, page, numbers)
    report(f"The report is {folder / 'report.html'}; its figures and their numbers are beside it.")
    return numbers


def _some(table: Table, count: int) -> Table:
    """So many rows of a table, evenly spread over it."""
    if count < 1:
        raise UserError(f"--rows is {count}: at least one row is looked at.")
    if count >= len(table):
        return table
    return table.select([place * len(table) // count for place in range(count)])


def _summary(page: Page, predictor: Predictor, found: Explanation) -> None:
    """What there is to say in plain words; settings and metrics."""
    settings, kept = predictor.settings, read_metrics(predictor.run)
    page.heading("In short")
    for sentence in in_words(found, predictor.model.task.metric):
        page.parts.append(f"<p>{escape(sentence)}</p>")
    page.heading("The run", f"Looked at: {len(found.table)} rows of {found.table.name}.")
    page.table(
        ["input", "kind", "encoder", "tuning"],
        [
            (
                f"{name}{' (main)' if name == settings.fusion.main else ''}",
                entry.kind,
                entry.encoder.weights
                or ("trained from the start" if entry.kind == "table" else "random weights"),
                entry.encoder.tuning,
            )
            for name, entry in settings.inputs.items()
            if name in predictor.readers
        ],
    )
    trained, frozen = kept.get("trainable", 0), kept.get("frozen", 0)
    facts = [("task", settings.task), ("fusion", settings.fusion.method)]
    if found.experts is not None and isinstance(settings.fusion, GuidedConfig):
        facts += [("prompt length, experts", f"{settings.fusion.length}, {settings.fusion.experts}")]
    if trained:
        facts += [("trained parameters", f"{trained:,} ({trained / (trained + frozen):.2%})")]
    page.table(["setting", "value"], facts)
    if found.metrics:
        validation = kept.get("validation", {})
        rows = [
            (name, f"{value:.4f}", f"{validation[name]:.4f}" if name in validation else "-")
            for name, value in found.metrics.items()
        ]
        page.table(["metric", "on these rows", "validation, while training"], rows)


def _performance(page: Page, predictor: Predictor, found: Explanation) -> None:
    if found.targets is None or predictor.settings.picture is not None:
        return
    labels = predictor.model.task.labels
    page.heading("Where it is right and wrong")
    if found.confusion is not None:
        figure = figures.confusion(found.confusion, labels)
        page.figure("confusion", figure, "How often each label (row) got each answer (column).")
    if found.label_f1 is not None and (found.confusion is None or len(labels) > figures.CONFUSED):
        counts = None if found.confusion is None else found.confusion.sum(axis=1).tolist()
        page.figure("label_f1", figures.label_f1(found.label_f1, counts), "F1 of each label.")
    if found.label_f1 is None:
        answers = [prediction.label for prediction in found.predictions]
        figure = figures.scatter([float(target) for target in found.targets], answers)
        page.figure("answers", figure, "Answers and labels.")


def _modalities(page: Page, predictor: Predictor, found: Explanation) -> None:
    if not found.losses:
        return
    page.heading(
        "Which modality mattered",
        "Each input in turn is taken from another row, so that it looks right but says nothing; then both of "
        "each pair, from the same other row. The worse the metric gets, the more the run relied on it.",
    )
    if predictor.settings.picture is not None:
        page.note(
            "Masks stay with their rows: an answer on another picture is held against the row's own mask."
        )
    page.figure(
        "shuffled", figures.shuffled(found.losses), "Change of the metric, with 95 % intervals over rows."
    )


def _experts(page: Page, predictor: Predictor, found: Explanation, pictures: Pictures) -> None:
    experts, fusion = found.experts, predictor.settings.fusion
    page.heading("The experts")
    if experts is None:
        page.note("This run has no router, so there are no experts to look at.")
        return
    guided = "the main encoder" if len(predictor.model.fusion.guided) == 1 else "each guided encoder"
    page.note(
        f"In each layer of {guided} a router mixes prompt experts anew for each row. Blue words "
        "stand out in the texts of the rows that an expert takes, orange ones among their labels (weighted "
        "log-odds against the other rows; hover for z)."
    )
    page.parts.append("<h3>The experts that are easiest to describe</h3>")
    for layer, expert in experts.clearest():
        page.parts.append(_expert(experts, layer, expert, pictures))
    page.figure(
        "importance",
        figures.importance_map(experts.importance, experts.names),
        "How much each expert is used.",
    )
    threshold = None
    if isinstance(fusion, GuidedConfig) and fusion.importance_weight:
        threshold = fusion.importance_threshold
    if (course := figures.training_course(found.history, threshold)) is not None:
        caption = "Over training: how unevenly batches use the experts; the last layer's shares (Fig. 7)."
        page.figure("training", course, caption)
    if len(experts.similarity):
        figure = figures.similarity(experts.similarity, experts.names)
        page.figure("similarity", figure, "How alike the experts themselves are.")
    page.table(
        [
            "layer",
            "effective experts",
            "entropy of a row's scores (nats)",
            "information on the label (bits)",
            *(f"on {column}" for column in experts.columns),
        ],
        [
            (
                experts.names[layer],
                f"{experts.effective[layer]:.2f}",
                f"{experts.entropy[layer]:.3f}",
                "-" if experts.information is None else f"{experts.information.bits[layer]:.3f}",
                *(f"{one.bits[layer]:.3f}" for one in experts.columns.values()),
            )
            for layer in range(len(experts.importance))
        ],
    )
    page.parts.append("<h3>Every layer</h3>")
    for layer in range(len(experts.importance)):
        inner = "".join(_expert(experts, layer, e, pictures) for e in range(experts.importance.shape[1]))
        page.parts.append(
            f"<details><summary>Layer {escape(experts.names[layer])}</summary>{inner}</details>"
        )
    if pictures.image is not None:
        page.figures["gallery"] = _gallery(experts, pictures)


def _expert(experts: Any, layer: int, expert: int, pictures: Pictures) -> str:
    places = experts.top[layer, expert]
    scored = [(int(place), float(experts.scores[place, layer, expert])) for place in places]
    samples = [(pictures.sample(place), score) for place, score in scored if score >= 0.005]
    stand_out = {"words": experts.words[layer][expert], "labels": experts.labels[layer][expert]}
    share = float(experts.importance[layer, expert])
    return expert_html(f"Layer {experts.names[layer]}, expert {expert + 1}", share, stand_out, samples)


def _gallery(experts: Any, pictures: Pictures) -> figures.Figure:
    """The clearest experts' samples as one picture (Fig. 3)."""
    strips, numbers = [], []
    for layer, expert in experts.clearest():
        places = [int(place) for place in experts.top[layer, expert]]
        shown = [(pictures.picture(p), pictures.text(p)) for p in places]
        there = [(picture, text) for picture, text in shown if picture is not None]
        if there:
            strips.append(figures.strip([p for p, _ in there], [t for _, t in there]))
            rows = [pictures.table.numbers[place] for place in places]
            numbers.append({"layer": experts.names[layer], "expert": expert + 1, "rows": rows})
    return (figures.stack(strips) if strips else b""), numbers


def _write(folder: Path, page: Page, numbers: Mapping[str, Any]) -> None:
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for name, (picture, values) in page.figures.items():
        if picture:
            with replacing(folder / "figures" / f"{name}.png") as draft:
                draft.write_bytes(picture)
            with replacing(folder / "figures" / f"{name}.json") as draft:
                draft.write_text(json.dumps(values) + "\n", encoding="utf-8")
    write_json(folder / "numbers.json", numbers)
    with replacing(folder / "report.html") as draft:
        draft.write_text(page.html(), encoding="utf-8")
