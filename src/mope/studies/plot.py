"""A study's picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy

from mope.errors import UserError
from mope.files import replacing
from mope.run import read_run
from mope.studies.study import Study


def plot(study: Study, table: Mapping[str, Any], done: Any, file: Path) -> None:
    """Draw a study as a PNG.

    Args:
        study: says which kind of picture.
        table: see `build_table`.
        done: its runs with their metrics, for the importance of experts.
        file: where to.

    Raises:
        UserError: matplotlib isn't installed.
    """
    require_packages()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, max(3.2, 0.3 * len(table["rows"]) + 1.2)), layout="constrained")
    FigureCanvasAgg(figure)
    draw = {"bars": _bars, "lines": _lines, "importance": _importance}[study.plot.kind]
    draw(figure, study, table, done)
    with replacing(file) as draft:
        figure.savefig(draft, dpi=150, format="png")


def require_packages() -> None:
    """Make sure that what a table and its picture take is installed.

    Raises:
        UserError: saying what to install.
    """
    for name in ("matplotlib", "scipy"):
        try:
            __import__(name)
        except ImportError:
            raise UserError(f"A study's table takes {name}: pip install 'mope-fusion[studies]'.") from None


def _bars(figure: Any, study: Study, table: Mapping[str, Any], done: Any) -> None:
    for place, metric in enumerate(table["metrics"]):
        axes = figure.add_subplot(1, len(table["metrics"]), place + 1)
        rows = list(reversed(table["rows"]))
        names = [f"{row['name']} ({row['size']})" if row["size"] else row["name"] for row in rows]
        values = [row["values"][metric] for row in rows]
        colours = ["#d1495b" if row["name"] == table["reference"] else "#30638e" for row in rows]
        axes.barh(names, [v["mean"] for v in values], xerr=[v["std"] or 0 for v in values], color=colours)
        for value, name in zip(values, names, strict=True):
            axes.plot(list(value["by_seed"].values()), [name] * len(value["by_seed"]), "k.", markersize=3)
        axes.set_xlabel(metric)
        if place:
            axes.set_yticklabels([])
    figure.suptitle(study.title)


def _lines(figure: Any, study: Study, table: Mapping[str, Any], done: Any) -> None:
    figure.set_size_inches(3.2 + 3.2 * len(table["metrics"]), 3.8)
    places = {row.label: (row.series, row.x) for row in study.rows}
    whole = _training_rows(done) if study.sizes else {}
    for number, metric in enumerate(table["metrics"]):
        axes = figure.add_subplot(1, len(table["metrics"]), number + 1)
        lines: dict[str, list[tuple[float, float, float]]] = {}
        for row in table["rows"]:
            series, x = places[row["name"]]
            value = row["values"][metric]
            at = row["size"] or whole.get(row["name"], x)
            if at is not None:
                lines.setdefault(series or row["name"], []).append((at, value["mean"], value["std"] or 0))
        for name, points in lines.items():
            xs, means, errors = zip(*sorted(points), strict=True)
            axes.errorbar(xs, means, yerr=errors, marker="o", capsize=3, label=name)
        axes.set_xlabel(study.plot.x or ("training rows" if study.sizes else ""))
        axes.set_ylabel(metric)
        if study.plot.log:
            axes.set_xscale("log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(study.title)


def _training_rows(done: Any) -> dict[str, int]:
    """How many training rows the runs had that took all there are, by row of the table."""
    runs = ((cell.row.label, read_run(cell.folder)[1]) for cell, _ in done if cell.size is None)
    return {label: run["train_rows"] for label, run in runs if "train_rows" in run}


def _importance(figure: Any, study: Study, table: Mapping[str, Any], done: Any) -> None:
    """Share of the routing that each expert of the last layer gets, over training (Fig. 7)."""
    labels = [row.label for row in study.rows]
    figure.set_size_inches(3.4 * len(labels), 3.4)
    axes = figure.subplots(1, len(labels), sharey=True, squeeze=False)[0]
    for place, label in enumerate(labels):
        run = next((metrics for cell, metrics in done if cell.row.label == label), None)
        history = [] if run is None else [entry for entry in run["history"] if "importance" in entry]
        if history:
            shares = numpy.array([entry["importance"][-1] for entry in history])
            axes[place].plot([entry["epoch"] for entry in history], shares, marker=".")
        axes[place].set_title(label, fontsize=9)
        axes[place].set_xlabel("epoch")
        axes[place].set_ylim(0, 1)
    axes[0].set_ylabel("importance, last layer")
    figure.suptitle(study.title)
