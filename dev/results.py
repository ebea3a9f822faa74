"""Write what runs measured into the README and docs/results.md, from the runs' own files.

Run by `make results`, after `make demo` and `make demo-baselines`. In docs/results.md a table stands between
a marker that names its study's folder and an end marker; a study not run here keeps the table it has.
"""

import json
import os
import platform
import re
import sys
from datetime import date
from pathlib import Path
from typing import Any

import idle

from mope.device import pick_device, use_bf16
from mope.insight.mixture import ROWS as MIXED_ROWS

ROWS = {
    "runs/demo_image_only": "picture alone (P-ImgOnly)",
    "runs/demo_text_only": "question alone (P-TextOnly)",
    "runs/demo_probe": "both, as frozen features (Probe)",
    "runs/demo_seqfuse": "both, without experts (P-SeqFuse)",
    "runs/demo": "both (MoPE-clusters, k=4)",
}
STUDY, STUDY_END = re.compile(r"<!-- table: (\S+) -->\n"), "<!-- end of table -->\n"
BEGIN, END = "<!-- results: make results -->\n", "<!-- end of results -->\n"


def main() -> int:
    """Fill the README's table; exit code 2 if a run is missing."""
    lines = ["| what the model sees | test accuracy | trained parameters | training |", "|---|---|---|---|"]
    for folder, name in ROWS.items():
        file = Path(folder, "metrics.json")
        if not file.is_file():
            print(f"{file} is missing: run make demo and make demo-baselines first.", file=sys.stderr)
            return 2
        metrics = json.loads(file.read_text())
        share = metrics["trainable"] / (metrics["trainable"] + metrics["frozen"])
        epochs = metrics["history"][-1]["epoch"]
        lines.append(
            f"| {name} | {metrics['test']['accuracy']:.3f} | {metrics['trainable']:,} ({share:.2%}) "
            f"| {epochs:.0f} epoch{'s' if epochs > 1 else ''}, {metrics['seconds'] / 60:.1f} min |"
        )
    rows = metrics["test"]["rows"]
    measured = date.fromtimestamp(file.stat().st_mtime)
    device = pick_device()
    arithmetic = "bf16" if use_bf16("auto", device) else "fp32"
    cores = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    where = f"{cores if device.type == 'cpu' else device.type}, {arithmetic}"
    lines.append("")
    lines.append(f"{rows:,} test rows; {measured:%Y-%m-%d}, {where}.")
    readme = Path("README.md")
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + after)
    print("\n".join(lines))
    for page in ("results", "theory", "speed"):
        fill_studies(Path("docs", f"{page}.md"))
    return 0


def fill_studies(page: Path) -> None:
    """Put each study's table.md, without its heading, between its markers."""
    text = page.read_text(encoding="utf-8")
    parts = STUDY.split(text)
    written = [parts[0]]
    for folder, rest in zip(parts[1::2], parts[2::2], strict=True):
        table, end, after = rest.partition(STUDY_END)
        found = _table(Path(folder))
        if end and found:
            table = found
            print(f"{page}: the table of {folder}")
        written += [f"<!-- table: {folder} -->\n", table, end, after]
    page.write_text("".join(written), encoding="utf-8")


def _table(folder: Path) -> str | None:
    """The table of a study's folder, of a report's (what its experts do in each layer), or of figures."""
    if folder == idle.KEPT:
        return idle.table(folder)
    if folder == idle.GPU:
        return idle.gpu_table(folder)
    if (file := folder / "table.md").is_file():
        return file.read_text(encoding="utf-8").split("\n", 2)[2].strip() + "\n"
    if not (file := folder / "numbers.json").is_file():
        return None
    numbers = json.loads(file.read_text())
    experts = numbers["experts"]
    columns = {"label": experts["information"], **experts["columns"]}
    layers = range(len(experts["effective"]))
    lines = [
        "| layer | " + " | ".join(str(layer + 1) for layer in layers) + " |",
        "|---|" + "---|" * len(layers),
        _line("effective experts", experts["effective"]),
        *(_line(f"bits on `{name}`", values) for name, values in columns.items()),
        "",
        f"{numbers['rows']} test rows, accuracy {numbers['metrics']['accuracy']:.3f}; "
        f"{date.fromtimestamp(file.stat().st_mtime):%Y-%m-%d}."
        + _alike(numbers.get("same_mixture"), numbers["rows"]),
    ]
    return "\n".join(lines) + "\n"


def _alike(found: dict[str, Any] | None, rows: int) -> str:
    """What the metric loses where experts are mixed alike for all rows."""
    if found is None:
        return ""
    count = min(MIXED_ROWS, rows)
    return (
        f" With one mixture of experts for all rows, each layer's mean ({count} of them): {found['metric']} "
        f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]."
    )


def _line(name: str, values: list[float]) -> str:
    return f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |"


if __name__ == "__main__":
    sys.exit(main())
