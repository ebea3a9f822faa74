"""Write the demo's results table into the README, from the runs' own `metrics.json`.

Run by `make results`, after `make demo` and `make demo-baselines`.
"""

import json
import os
import platform
import sys
from datetime import date
from pathlib import Path

from mope.device import pick_device, use_bf16

ROWS = {
    "runs/demo_image_only": "picture alone (P-ImgOnly)",
    "runs/demo_text_only": "question alone (P-TextOnly)",
}
ROWS["runs/demo"] = "**both (MoPE, k=4)**"
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
    device = pick_device()
    arithmetic = "bf16" if use_bf16("auto", device) else "fp32"
    cores = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    where = f"{cores if device.type == 'cpu' else device.type}, {arithmetic}"
    lines.append("")
    lines.append(f"{rows:,} test rows; {date.today():%Y-%m-%d}, {where}.")
    readme = Path("README.md")
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + after)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
