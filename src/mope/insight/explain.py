"""`mope explain`: a run's report, its figures as PNG, and their numbers as JSON."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from mope.data.splits import Report
from mope.data.table import Table, evenly
from mope.errors import UserError
from mope.files import replacing, write_json
from mope.insight import figures
from mope.insight.experts import add_experts
from mope.insight.explanation import Explanation, explain_rows
from mope.insight.looks import add_looks
from mope.insight.pictures import Pictures
from mope.insight.report import Page
from mope.insight.setup import add_setup
from mope.insight.summary import LIKELY, in_words
from mope.predictor import Predictor
from mope.tasks.meaning import MEANINGS
from mope.tasks.metrics import deciding_metric

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
    add_setup(page, predictor, found)
    pictures = Pictures(page, predictor, found.table)
    _performance(page, predictor, found)
    _modalities(page, predictor, found)
    add_experts(page, predictor, found, pictures)
    add_looks(page, predictor, other, found, pictures)
    folder = Path(out) if out is not None else Path(run) / "explain"
    _write(folder, page, numbers)
    report(f"The report is {folder / 'report.html'}; its figures and their numbers are beside it.")
    return numbers


def _some(table: Table, count: int) -> Table:
    """So many rows of a table, evenly spread over it."""
    if count < 1:
        raise UserError(f"--rows is {count}: at least one row is looked at.")
    return table if count >= len(table) else table.select(evenly(len(table), count))


def _summary(page: Page, predictor: Predictor, found: Explanation) -> None:
    """What there is to say in plain words."""
    metric, _ = deciding_metric(predictor.model.task, predictor.settings.training.metric)
    page.heading("In short")
    for sentence in in_words(found, metric, predictor.settings):
        page.parts.append(f"<p>{escape(sentence)}</p>")
    if found.losses or found.same_mixture is not None:
        page.note(LIKELY)


def _performance(page: Page, predictor: Predictor, found: Explanation) -> None:
    if found.targets is None or predictor.settings.picture is not None:
        return
    labels = predictor.model.task.labels
    page.heading("Where it is right and wrong")
    if found.confusion is not None:
        figure = figures.confusion(found.confusion, labels)
        caption = (
            "How often each label (a row) got each answer (a column): what is right is on the diagonal, "
            "and the darker, the more of the label's rows."
        )
        page.figure("confusion", figure, caption)
    if found.label_f1 is not None and (found.confusion is None or len(labels) > figures.CONFUSED):
        counts = None if found.confusion is None else found.confusion.sum(axis=1).tolist()
        caption = "F1: how well each label is found, without false alarms. 1 is best."
        page.figure("label_f1", figures.label_f1(found.label_f1, counts), caption)
    if found.label_f1 is None:
        answers = [prediction.label for prediction in found.predictions]
        figure = figures.scatter([float(target) for target in found.targets], answers)
        page.figure("answers", figure, "Answers and labels: the nearer to the line, the better.")


def _modalities(page: Page, predictor: Predictor, found: Explanation) -> None:
    if not found.losses:
        return
    page.heading(
        "Which input mattered",
        "Each input in turn is taken from another row, so that it looks right but says nothing; then both of "
        "each pair, from the same other row. The worse the metric gets, the more the run relied on it.",
    )
    if predictor.settings.picture is not None:
        page.note(
            "Masks stay with their rows: an answer on another picture is held against the row's own mask."
        )
    metric = found.losses[0].metric
    worse = "left" if MEANINGS[predictor.settings.task][metric].greater_is_better else "right"
    page.figure(
        "shuffled",
        figures.shuffled(found.losses),
        f"How {metric} changes with another row's input: the further to the {worse}, the more it matters. "
        "Lines show where the change over very many such rows likely is; one that crosses 0 may be chance.",
    )


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
