"""Studies on a Ray cluster, and runs whose processes die."""

import os
import sys
import threading
import time

import pytest
import torch
from safetensors.torch import load_file
from study_fixtures import change

from mope.cli import main
from mope.studies.compare import compare
from mope.studies.study import Study

pytest_plugins = ["study_fixtures"]

SOON_DEAD = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
"""A machine that doesn't answer is dead after a few seconds."""


@pytest.fixture
def cluster(monkeypatch):
    """A Ray cluster of two machines, which are processes of this one."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # Its processes import what the tests do.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    found = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": SOON_DEAD}
    )
    yield found
    found.shutdown()


@pytest.mark.slow
def test_a_cluster_that_loses_a_machine_gives_the_table_of_one_machine(study, tmp_path, cluster):
    change(study, settings={"training.epochs": 3, "training.save_minutes": 1e-9}, rows=[{"method": "MoPE"}])
    change(study, reference=None, quick={})
    # One thread each, as on the cluster.
    alone = compare(
        Study.load(study, output=str(tmp_path / "alone")), workers=os.cpu_count(), report=lambda line: None
    )
    machine = cluster.add_node(num_cpus=1)
    lost = []

    def lose():
        while len(list(tmp_path.glob("study/*/*/checkpoints/checkpoint-*"))) < 3:
            time.sleep(0.02)
        cluster.remove_node(machine, allow_graceful=False)
        lost.append(machine)

    losing = threading.Thread(target=lose, daemon=True)
    losing.start()
    table = compare(Study.load(study), address=cluster.address, report=lambda line: None)
    losing.join(timeout=60)
    assert lost
    for row, expected in zip(table["rows"], alone["rows"], strict=True):
        assert row["values"]["accuracy"]["by_seed"] == expected["values"]["accuracy"]["by_seed"]
    for file in tmp_path.glob("alone/*/*/model.safetensors"):
        one, other = load_file(file), load_file(tmp_path / "study" / file.relative_to(tmp_path / "alone"))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_cluster_that_is_not_there_is_a_sentence(study, capsys):
    pytest.importorskip("ray")
    assert main(["compare", str(study), "--address", "127.0.0.1:9"]) == 2
    said = capsys.readouterr().err
    assert "There is no Ray cluster at '127.0.0.1:9'" in said
    assert said.count("\n") == 1


@pytest.mark.slow
def test_a_run_whose_process_dies_is_done_again_from_its_checkpoint(study, tmp_path):
    plugin = tmp_path / "die.py"
    plugin.write_text(
        "import os, pathlib, mope\n"
        "mope.register_method('Dying', 'concat')\n"
        "from mope.training.trainer import FusionTrainer\n"
        "note = pathlib.Path(__file__).parent / 'died.txt'\n"
        "step = FusionTrainer.begin_step\n"
        "def begin_step(self):\n"
        "    if self.state.global_step == 4 and not note.exists():\n"
        "        note.write_text('once')\n"
        "        os._exit(9)\n"
        "    step(self)\n"
        "FusionTrainer.begin_step = begin_step\n"
    )
    change(study, rows=[{"method": "P-TextOnly"}], seeds=[0], reference=None, metrics=None)
    change(study, settings={"training.epochs": 2, "training.save_minutes": 1e-9})
    lines = []
    compare(Study.load(study), plugins=[str(plugin)], report=lines.append)
    assert (tmp_path / "died.txt").exists()
    assert "accuracy" in lines[-1]
