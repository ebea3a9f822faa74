"""What the paper's text says of a table, beside what its study measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mope.files import replacing
from mope.studies.study import Claim, Study, row_config
from mope.studies.table import independent, interval, markdown
from mope.tasks import any_task

REPRODUCTION = "reproduction.md"
"""File of a study's folder."""
HEADER = ("claim", "on", "here", "verdict", "in the paper's own table")


def judge(study: Study, table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Judge each claim by paired differences, as the table has them to its reference.

    Args:
        study: its claims, and what the paper has of each row.
        table: see `build_table`.

    Returns:
        An entry per claim, pair of rows, column that the paper reports (the deciding one, if it reports none)
        and number of training rows: `better`, `than`, `says`, `section`, `column`, `size`, `difference` (see
        `interval`; None if a row isn't there; above zero is what is claimed), `verdict`, and `paper`, the two
        rows' figures there (None if it gives none).
    """
    lower = any_task(row_config(study, study.rows[0])).lower_is_better
    reported = {column for row in study.rows for column in row.paper}
    columns = [column for column in table["metrics"] if column in reported] or table["metrics"][:1]
    sizes = list(dict.fromkeys(row["size"] for row in table["rows"]))
    paper = {row.label: row.paper for row in study.rows}
    found = []
    for claim in study.claims:
        for than in claim.than:
            for column in columns:
                sign = -1 if column.rpartition(" ")[2] in lower else 1
                for first, last in _sizes(claim, sizes):
                    pairs = _differences(table, claim.better, than, column, last)
                    if claim.grows:
                        fewest = _differences(table, claim.better, than, column, first)
                        pairs = {draw: pairs[draw] - fewest[draw] for draw in pairs if draw in fewest}
                    difference = _interval(pairs, sign)
                    figures = [paper.get(row, {}).get(column) for row in (claim.better, than)]
                    found.append(
                        {
                            "better": claim.better,
                            "than": than,
                            "says": claim.says,
                            "section": claim.section,
                            "column": column,
                            "size": f"{first or 'all'} to {last or 'all'}" if claim.grows else last,
                            "difference": difference,
                            "verdict": _verdict(difference),
                            "paper": None if None in figures else figures,
                        }
                    )
    return found


def _sizes(claim: Claim, sizes: Sequence[int | None]) -> list[tuple[int | None, int | None]]:
    """Numbers of training rows that a claim is judged at; of one that is about growth the ends."""
    if not claim.grows:
        return [(size, size) for size in sizes]
    ordered = sorted(sizes, key=lambda size: (size is None, size))
    return [(ordered[0], ordered[-1])] if len(ordered) > 1 else []


def _differences(
    table: Mapping[str, Any], better: str, than: str, column: str, size: int | None
) -> dict[int | str, float]:
    """By what the rows are paired by; empty if one isn't there."""
    rows = {row["name"]: row["values"][column]["by_seed"] for row in table["rows"] if row["size"] == size}
    one, other = rows.get(better, {}), rows.get(than, {})
    return {draw: value - other[draw] for draw, value in one.items() if draw in other}


def _interval(pairs: Mapping[int | str, float], sign: int) -> dict[str, float | None] | None:
    """Of differences that are better where they are greater; None of none."""
    return interval([sign * value for value in independent(pairs)]) if pairs else None


def _verdict(difference: Mapping[str, float | None] | None) -> str:
    if difference is None:
        return "not judged: a row isn't in this table"
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return "not shown: one pair has no interval"
    if low > 0:
        return "holds"
    if high < 0:
        return "doesn't"
    return f"not shown: the interval [{low:+.3f}, {high:+.3f}] has zero in it"


def cells_of_claims(verdicts: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Verdicts as text, under `HEADER`."""
    rows = []
    for entry in verdicts:
        size = f", {entry['size']} training rows" if entry["size"] is not None else ""
        grows = "more and more " if isinstance(entry["size"], str) else ""
        figures = entry["paper"]
        said = "" if figures is None else f"{figures[0]} against {figures[1]}"
        name = f"{entry['better']} {grows}above {entry['than']} ({entry['section']})"
        rows.append([name, f"{entry['column']}{size}", _here(entry["difference"]), entry["verdict"], said])
    return rows


def _here(difference: Mapping[str, float | None] | None) -> str:
    if difference is None:
        return "-"
    low, high = difference["low"], difference["high"]
    bounds = "" if low is None or high is None else f" [{low:+.3f}, {high:+.3f}]"
    return f"{difference['mean']:+.3f}{bounds}"


def write_reproduction(study: Study, table: Mapping[str, Any], verdicts: Sequence[Mapping[str, Any]]) -> Path:
    """Write `reproduction.md` into the study's folder: the table, then each sentence with its verdicts.

    Returns:
        The file.
    """
    lines = [markdown(study, table), "## What the paper says of it", ""]
    if not verdicts:
        lines += ["Its text compares none of these rows."]
    for says, section in dict.fromkeys((entry["says"], entry["section"]) for entry in verdicts):
        about = [entry for entry in verdicts if (entry["says"], entry["section"]) == (says, section)]
        lines += [f"“{says}” ({section})", "", "| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
        lines += [
            "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
            for row in cells_of_claims(about)
        ]
        lines += [""]
    if verdicts:
        lines += [
            "A claim holds where the whole 95 % interval of the paired difference is above zero, and doesn't "
            "where it is below."
        ]
    file = Path(study.output) / REPRODUCTION
    with replacing(file) as draft:
        draft.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file
