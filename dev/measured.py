"""Keep what studies measured in the repository, so that it isn't measured again elsewhere.

`python dev/measured.py keep` copies settings and metrics of finished runs in runs/studies to dev/measured,
but for what each step did to the experts, which Fig. 7 alone draws.
`python dev/measured.py restore` puts them back where they aren't: `mope compare` then runs the others alone.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

KEPT, RUNS = Path("dev/measured"), Path("runs/studies")
CONFIG, METRICS = "config.yaml", "metrics.json"


def main() -> int:
    """Keep or restore, from the repository's root."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("keep", "restore"))
    what = parser.parse_args().what
    source, target = (RUNS, KEPT) if what == "keep" else (KEPT, RUNS)
    count = 0
    for metrics in sorted(source.glob("*/*/*seed*/metrics.json")):
        run = metrics.parent
        if '"test"' not in metrics.read_text(encoding="utf-8"):
            continue
        copy = target / run.relative_to(source)
        if (copy / METRICS).is_file() and what == "restore":
            continue
        copy.mkdir(parents=True, exist_ok=True)
        # A run's config has whole paths, which here are the root's: they are kept relative to it.
        text = (run / CONFIG).read_text(encoding="utf-8")
        (copy / CONFIG).write_text(text.replace(f"{Path.cwd()}/", ""), encoding="utf-8")
        if what == "keep":
            (copy / METRICS).write_text(_short(metrics), encoding="utf-8")
        else:
            shutil.copy(metrics, copy / METRICS)
        count += 1
    print(f"{what}: {count} runs, to {target}")
    return 0


def _short(metrics: Path) -> str:
    """What a run's metrics say, without the experts' course but for Fig. 7."""
    found = json.loads(metrics.read_text(encoding="utf-8"))
    if not metrics.relative_to(RUNS).parts[0].startswith("fig7"):
        for entry in found["history"]:
            entry.pop("course", None)
    return json.dumps(found) + "\n"


if __name__ == "__main__":
    sys.exit(main())
