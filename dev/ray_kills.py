"""Kill a worker in each of several studies on a Ray cluster, and compare their tables with one machine's.

Each study trains two tiny methods with two seeds on a cluster of one machine, two runs at a time. At a random
moment the process of one of them is killed (SIGKILL). Ray does the run again, which goes on from its last
checkpoint. Said at the end: how many tables were whole and equal, value for value, to that of a study whose
runs nothing happened to.
"""

import argparse
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import psutil
import yaml
from conftest import make_tables, make_weights
from run_tester import tiny_run

from mope.config import Config
from mope.studies.compare import compare
from mope.studies.study import Study

_WORKER = "ray::_run_here"
_STUDY = {
    "title": "Killed workers",
    "base": "base.yaml",
    "settings": {"training.epochs": 3, "training.save_minutes": 1e-9, "fusion.experts": 2},
    "seeds": [0, 1],
    "metrics": ["accuracy", "f1_macro"],
    "rows": [{"method": "MoPE"}, {"method": "P-SeqFuse"}],
}


def main(arguments: list[str] | None = None) -> int:
    """Run the studies; exit code 1 if a table differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10, help="studies, each with a worker killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args(arguments)
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    from ray.cluster_utils import Cluster

    root = Path(tempfile.mkdtemp())
    for name in ("weights", "tables"):
        (root / name).mkdir()
    weights, tables = make_weights(root / "weights"), make_tables(root / "tables")
    config = Config.parse(tiny_run(weights, tables, root / "base"))
    (root / "base.yaml").write_text(config.dump())
    expected = _values(compare(_study(root, "alone"), workers=2, report=lambda line: None))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    draw, same, kills = random.Random(options.seed), 0, 0
    for trial in range(options.trials):
        ended, killed = threading.Event(), threading.Event()
        moment = draw.uniform(0, 8)
        killer = threading.Thread(target=_kill_one, args=(moment, ended, killed), daemon=True)
        killer.start()
        table = compare(
            _study(root, f"trial{trial}"), address=cluster.address, workers=2, report=lambda line: None
        )
        ended.set()
        killer.join()
        equal = _values(table) == expected
        same, kills = same + equal, kills + killed.is_set()
        fate = f"killed {moment:.1f} s after it began" if killed.is_set() else "none was killed"
        print(f"study {trial + 1}: {'the same' if equal else 'DIFFERENT'}; {fate}", flush=True)
    cluster.shutdown()
    print(f"{same} of {options.trials} tables equal to one machine's; a worker was killed in {kills}.")
    return 0 if same == options.trials else 1


def _study(root: Path, name: str) -> Study:
    (root / f"{name}.yaml").write_text(yaml.safe_dump({**_STUDY, "output": name}))
    return Study.load(root / f"{name}.yaml")


def _values(table: dict) -> list:
    return [
        {name: value["by_seed"] for name, value in row["values"].items() if "by_seed" in value}
        for row in table["rows"]
    ]


def _kill_one(seconds: float, ended: threading.Event, killed: threading.Event) -> None:
    """Kill one of the runs' processes, so long after it was first seen."""
    while not ended.is_set():
        found = [one for one in psutil.process_iter(["cmdline"]) if _is_worker(one)]
        if found:
            time.sleep(seconds)
            try:
                found[0].kill()
            except psutil.NoSuchProcess:
                continue  # it was done: the next one
            killed.set()
            return
        time.sleep(0.05)


def _is_worker(process: psutil.Process) -> bool:
    return any(_WORKER in word for word in process.info["cmdline"] or [])


if __name__ == "__main__":
    sys.exit(main())
