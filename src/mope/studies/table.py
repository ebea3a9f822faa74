"""A study's table: means over seeds, cost, and paired differences to a chosen row."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from mope.device import describe_machine
from mope.files import replacing, write_json
from mope.run import METRICS
from mope.studies.study import Cell, Study, columns_of, value_of

Done = Sequence[tuple[Cell, Mapping[str, Any]]]


def build_table(study: Study, done: Done) -> dict[str, Any]:
    """The table of what is done so far.

    Args:
        study: its rows, metrics and reference.
        done: runs with the content of their `metrics.json`.

    Returns:
        `title`, `metrics` (see `columns_of`), `reference`, and `rows`: `name`, `size`, `seeds`, `trainable`,
        `step_milliseconds` and `peak_mebibytes` (medians over runs), and `values` by metric: `by_seed` (where
        there are folds, by fold and seed), `mean`, `std` (of a sample; None for one run) and `difference` to
        the reference: `mean`, `low` and `high` of a 95 % interval, paired by seed, and the number of `pairs`.
    """
    names = columns_of(study, done[0][1]["metric"]) if done else study.metrics or []
    groups: dict[tuple[str, int | None], dict[int | str, Mapping[str, Any]]] = {}
    for cell, metrics in done:
        groups.setdefault((cell.row.label, cell.size), {})[cell.draw] = metrics
    rows = []
    for row in study.rows:
        for size in study.sizes or [None]:
            if found := groups.get((row.label, size)):
                against = groups.get((study.reference or "", size), {})
                rows.append(_row(row.label, size, found, against, names, row.label == study.reference))
    return {
        "title": study.title,
        "metrics": names,
        "reference": study.reference,
        "seeds": study.seeds,
        "date": _measured(done).isoformat(),
        "machine": _machines(done),
        "rows": rows,
    }


def _measured(done: Done) -> date:
    """When the last of the runs ended: as it says, else as its file does."""
    found = [date.fromisoformat(metrics["date"]) for _, metrics in done if "date" in metrics]
    files = [cell.folder / METRICS for cell, metrics in done if "date" not in metrics]
    found += [date.fromtimestamp(file.stat().st_mtime) for file in files if file.is_file()]
    return max(found, default=date.today())


def _machines(done: Done) -> str:
    """What the runs say that they were trained on; those of earlier versions don't."""
    found = {metrics.get("machine", "a machine not on record") for _, metrics in done}
    return ", ".join(sorted(found or {describe_machine()}))


def _row(
    name: str,
    size: int | None,
    found: Mapping[int | str, Mapping[str, Any]],
    against: Mapping[int | str, Mapping[str, Any]],
    metrics: Sequence[str],
    is_reference: bool,
) -> dict[str, Any]:
    values = {}
    for metric in metrics:
        by_seed = {draw: value_of(run, metric) for draw, run in sorted(found.items())}
        values[metric] = {"by_seed": by_seed, **_spread(list(by_seed.values())), "difference": None}
        pairs = {
            draw: value - value_of(against[draw], metric)
            for draw, value in by_seed.items()
            if draw in against
        }
        if pairs and not is_reference:
            values[metric]["difference"] = interval(independent(pairs))
    first = next(iter(found.values()))
    return {
        "name": name,
        "size": size,
        "seeds": sorted(found),
        "trainable": first["trainable"],
        "step_milliseconds": _median(run.get("step_milliseconds") for run in found.values()),
        "peak_mebibytes": _median(run.get("peak_mebibytes") for run in found.values()),
        "values": values,
    }


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
    }


def _median(values: Any) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def independent(pairs: Mapping[int | str, float]) -> list[float]:
    """Differences that are drawn independently of each other: by seed, or where there are several folds their
    means, since the seeds of a fold share its rows.

    Args:
        pairs: by `Cell.draw`.
    """
    folds: dict[str, list[float]] = {}
    for draw in sorted(pairs, key=str):
        fold = draw.rpartition(", seed ")[0] if isinstance(draw, str) else ""
        folds.setdefault(fold, []).append(pairs[draw])
    if len(folds) > 1:
        return [statistics.fmean(values) for values in folds.values()]
    return [pairs[draw] for draw in sorted(pairs)]


def interval(differences: Sequence[float], confidence: float = 0.95) -> dict[str, float | None]:
    """Mean of `pairs` differences, and the bounds of Student's interval for it; no bounds for one pair."""
    mean, pairs = statistics.fmean(differences), len(differences)
    if pairs < 2:
        return {"mean": mean, "low": None, "high": None, "pairs": pairs}
    from scipy.stats import t

    error = statistics.stdev(differences) / len(differences) ** 0.5
    reach = float(t.ppf((1 + confidence) / 2, len(differences) - 1)) * error
    return {"mean": mean, "low": mean - reach, "high": mean + reach, "pairs": pairs}


def write_table(study: Study, table: Mapping[str, Any], done: Done) -> None:
    """Write `table.json`, `table.csv`, `table.md` and `plot.png` into the study's folder."""
    folder = Path(study.output)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "table.json", table)
    header, rows = cells_of(study, table)
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    for name, content in (("table.csv", text.getvalue()), ("table.md", markdown(study, table))):
        with replacing(folder / name) as draft:
            draft.write_text(content, encoding="utf-8")
    if table["rows"]:
        from mope.studies.plot import plot

        plot(study, table, done, folder / "plot.png")


def cells_of(study: Study, table: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table as text."""
    sizes = any(row["size"] for row in table["rows"])
    paper = {row.label: row.paper for row in study.rows}
    reported = {metric for values in paper.values() for metric in values}
    header = ["method", *(["training rows"] if sizes else []), "Param (M)"]
    for metric in table["metrics"]:
        header += [metric, *([f"to {table['reference']}"] if table["reference"] else [])]
        header += ["paper"] if metric in reported else []
    header += ["ms per step", "peak MiB", "folds and seeds" if study.folds else "seeds"]
    rows = []
    for row in table["rows"]:
        line = [row["name"], *([str(row["size"] or "all")] if sizes else []), f"{row['trainable'] / 1e6:.3f}"]
        for metric in table["metrics"]:
            value = row["values"][metric]
            spread = f" ± {value['std']:.3f}" if value["std"] is not None else ""
            line.append(f"{value['mean']:.3f}{spread}")
            if table["reference"]:
                line.append(_difference(value["difference"], len(row["seeds"])))
            if metric in reported:
                line.append(str(paper.get(row["name"], {}).get(metric, "")))
        line += [f"{row[key]:.0f}" if row[key] else "" for key in ("step_milliseconds", "peak_mebibytes")]
        rows.append([*line, str(len(row["seeds"]))])
    return header, rows


def _difference(value: Mapping[str, float | None] | None, seeds: int) -> str:
    if value is None:
        return ""
    text = f"{value['mean']:+.3f}"
    if value["low"] is not None:
        text += f" [{value['low']:+.3f}, {value['high']:+.3f}]"
    pairs = value["pairs"]
    return text if pairs == seeds else f"{text} ({pairs} pair{'s' if pairs != 1 else ''})"


def markdown(study: Study, table: Mapping[str, Any]) -> str:
    """The table as Markdown, with what it says of itself."""
    header, rows = cells_of(study, table)
    lines = [f"## {study.title}", ""]
    if study.about:
        lines += [study.about, ""]
    lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    draws, drawn = ("folds and seeds", "fold and seed") if study.folds else ("seeds", "seed")
    rows_of = "Rows of the splits that columns name" if study.evaluate else "Test rows"
    notes = f"{rows_of}; mean ± standard deviation over as many {draws} as a row says."
    if table["reference"]:
        of_folds = ", over the means of folds" if study.folds and len(study.seeds) > 1 else ""
        notes += (
            f" Differences to {table['reference']} are paired by {drawn}, with a 95 % interval "
            f"(Student{of_folds})."
        )
    lines += ["", f"{notes} {table['date']}, {table['machine']}."]
    return "\n".join(lines) + "\n"
