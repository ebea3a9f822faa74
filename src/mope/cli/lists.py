"""What `mope compare --list` prints: the methods, or a study's rows."""

import json
from collections.abc import Sequence
from typing import Any

from mope.cli.output import print_table


def list_methods(as_json: bool) -> None:
    """Print every method: what it trains, where it is from, how many parameters that are."""
    from mope.methods import METHODS
    from mope.studies.counts import paper_counts

    counts = paper_counts()
    if as_json:
        rows = [
            {
                "name": method.name,
                "trained": method.trained,
                "source": method.source,
                "param": counts[method.name],
                "paper": method.param,
                "note": method.note,
            }
            for method in METHODS.values()
        ]
        print(json.dumps(rows, indent=2))
        return
    print_table(
        ["name", "trained", "source", "Param (M)", "paper (M)"],
        [
            [
                method.name,
                method.trained,
                method.source,
                f"{count:.2f}" if (count := counts[method.name]) is not None else "-",
                f"{method.param:.1f}" if method.param is not None else "-",
            ]
            for method in METHODS.values()
        ],
    )
    print("Param: with Swin-B and BERT-base, three labels.")
    for method in METHODS.values():
        if method.note:
            print(f"{method.name}: {method.note}")


def list_rows(studies: Sequence[Any], as_json: bool) -> None:
    """Print what studies are made of, and how many of their runs are done.

    Args:
        studies: each a `Study`.
        as_json: whether as JSON: a mapping per study, of its `title` and `rows`.
    """
    found = [{"title": study.title, "rows": _rows_of(study)} for study in studies]
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for entry in found:
        print(entry["title"])
        print_table(
            ["row", "method", "settings", "done"],
            [
                [
                    row["name"],
                    row["method"] or "the base's",
                    ", ".join(f"{key}: {value}" for key, value in row["settings"].items()),
                    f"{row['done']} of {row['runs']}",
                ]
                for row in entry["rows"]
            ],
        )


def _rows_of(study: Any) -> list[dict[str, Any]]:
    from mope.studies.compare import done_runs
    from mope.studies.study import cells

    todo = cells(study)
    done = [todo[place].row.label for place in done_runs(study, todo)]
    runs = [cell.row.label for cell in todo]
    return [
        {
            "name": row.label,
            "method": row.method,
            "settings": row.settings,
            "runs": runs.count(row.label),
            "done": done.count(row.label),
        }
        for row in study.rows
    ]
