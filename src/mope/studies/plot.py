"""A study's picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mope.errors import UserError
from mope.files import replacing, write_json
from mope.insight.routing import effective_experts, routing_course
from mope.run import read_run
from mope.studies.study import Study


def plot(study: Study, table: Mapping[str, Any], done: Any, file: Path) -> None:
    """Draw a study as a PNG; of the importance of experts also write `importance.json` beside it.

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
    if study.plot.kind == "importance":
        content = {
            label: {
                "steps": steps,
                "importance": shares.tolist(),
                "effective_experts": effective_experts(shares).round(3).tolist(),
            }
            for label, (steps, shares) in _courses(study, done).items()
        }
        write_json(file.with_name("importance.json"), content)


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


def _courses(study: Study, done: Any) -> dict[str, tuple[list[float], Any]]:
    """`routing_course` of each row's first run that has experts."""
    found = {}
    for row in study.rows:
        run = next((metrics for cell, metrics in done if cell.row.label == row.label), None)
        history = [] if run is None else [entry for entry in run["history"] if "importance" in entry]
        if history:
            found[row.label] = routing_course(history)
    return found


def _importance(figure: Any, study: Study, table: Mapping[str, Any], done: Any) -> None:
    """Share of the routing that each expert gets, in every layer, by step (Fig. 7): a band for each."""
    courses = _courses(study, done)
    if not courses:
        return
    layers = max(shares.shape[1] for _, shares in courses.values())
    columns = min(layers, 6)
    lines = -(-layers // columns)
    figure.set_size_inches(1.7 * columns + 1.0, 1.3 * lines * len(courses) + 0.9)
    parts = figure.subfigures(len(courses), 1, squeeze=False)[:, 0]
    for part, (label, (steps, shares)) in zip(parts, courses.items(), strict=True):
        part.suptitle(label, fontsize=9)
        axes = part.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
        for place, panel in enumerate(axes):
            if place >= shares.shape[1]:
                panel.set_axis_off()
                continue
            panel.stackplot(steps, shares[:, place].T, linewidth=0.2, edgecolor="white")
            panel.set_title(f"layer {place + 1}", fontsize=7, pad=2)
            panel.tick_params(labelsize=6)
            panel.set(ylim=(0, 1), xlim=(min(steps), max(steps)) if len(steps) > 1 else None)
    figure.supxlabel("step", fontsize=8)
    figure.supylabel("importance", fontsize=8)
