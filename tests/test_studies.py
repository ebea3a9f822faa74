"""Studies: what they expand to, how they are run, and what their table says."""

import csv
import json
import statistics
from pathlib import Path

import optuna
import pytest
import yaml
from study_fixtures import change

from mope.cli import main
from mope.config import Config
from mope.data.fields import find_fields
from mope.data.splits import draw
from mope.data.table import open_table
from mope.errors import UserError
from mope.methods import METHODS
from mope.model import empty_model
from mope.run import difference
from mope.studies.compare import _untuned, compare
from mope.studies.counts import paper_counts
from mope.studies.runs import LocalRunner
from mope.studies.study import Study, cells, columns_of, row_config
from mope.studies.table import interval
from mope.studies.tune import tune
from mope.tasks import any_task
from mope.tasks.metrics import deciding_metric

pytest_plugins = ["study_fixtures"]

SHIPPED = sorted((Path(__file__).parent.parent / "configs" / "studies").glob("*.yaml"))
STUDIES = [file for file in SHIPPED if not file.stem.endswith("_tuned")]
PROBED = [
    (file, quick)
    for file in STUDIES
    for quick in (False, True)
    if file.stem not in ("gallery", "table2", "table8")
    and (file.stem != "table4" or not quick)
    and (not quick or yaml.safe_load(file.read_text(encoding="utf-8")).get("quick"))
]
SETS = [(file, name) for file in STUDIES for name in yaml.safe_load(file.read_text()).get("sets", {})]

FACTOR = optuna.distributions.FloatDistribution(0.1, 10.0, log=True)


def test_a_study_is_rows_times_seeds_times_sizes(study):
    found = cells(Study.load(study))
    assert [(cell.row.label, cell.seed) for cell in found] == [
        ("MoPE", 0),
        ("P-SeqFuse", 0),
        ("MoPE", 1),
        ("P-SeqFuse", 1),
    ]
    assert [cell.config.training.epochs for cell in found] == [1, 2, 1, 2]
    assert found[0].config.fusion.experts == 4  # the method's own
    assert found[1].config.fusion.prompts == ["static", "mapped"]
    assert len({cell.folder for cell in found}) == 4
    quick = cells(Study.load(study, quick=True))
    assert [cell.seed for cell in quick] == [5, 5]
    assert {cell.config.data.train_rows for cell in quick} == {16}
    assert {cell.config.training.epochs for cell in quick} == {1, 2}  # settings are merged
    (study.parent / "other.yaml").write_text(
        (study.parent / "base.yaml").read_text().replace("length: 2", "length: 3")
    )
    other = Study.load(study, base=str(study.parent / "other.yaml"), output=str(study.parent / "elsewhere"))
    assert cells(other)[0].config.fusion.length == 3
    assert cells(other)[0].folder.is_relative_to(study.parent / "elsewhere")
    assert Study.load(study).rows[0].paper == {"accuracy": 73.1}
    assert other.rows[0].paper == {}
    sized = cells(Study.load(change(study, sizes=[8, 16])))
    assert len({cell.folder for cell in sized}) == 8
    assert [cell.config.data.train_rows for cell in sized[:2]] == [8, 16]


@pytest.mark.slow
def test_a_study_from_file_to_table(study, capsys):
    assert main(["compare", str(study)]) == 0
    folder = study.parent / "study"
    table = json.loads((folder / "table.json").read_text())
    assert [row["name"] for row in table["rows"]] == ["MoPE", "P-SeqFuse"]
    for row in table["rows"]:
        runs = [
            json.loads((folder / row["name"].lower() / f"seed{seed}" / "metrics.json").read_text())
            for seed in (0, 1)
        ]
        for metric in ("accuracy", "f1_macro"):
            values = [run["test"][metric] for run in runs]
            assert row["values"][metric]["mean"] == pytest.approx(statistics.fmean(values))
            assert row["values"][metric]["std"] == pytest.approx(statistics.stdev(values))
        assert row["trainable"] == runs[0]["trainable"]
        assert row["step_milliseconds"] > 0
        assert row["peak_mebibytes"] > 100
    assert table["rows"][0]["values"]["accuracy"]["difference"] is None
    difference = table["rows"][1]["values"]["accuracy"]["difference"]
    assert difference["low"] <= difference["mean"] <= difference["high"]
    lines = list(csv.reader((folder / "table.csv").open()))
    assert lines[0][:5] == ["method", "Param (M)", "accuracy", "to MoPE", "paper"]
    assert lines[1][4] == "73.1"
    assert (folder / "table.md").read_text().count("\n|") == 4
    assert (folder / "plot.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(folder.glob("*/*/checkpoints"))

    # Done runs are skipped; one that is gone, or was cut short, is run again.
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*/*/model.safetensors")}
    lost = folder / "mope" / "seed1" / "metrics.json"
    lost.unlink()
    assert main(["compare", str(study), "--json"]) == 0
    after = {file: file.stat().st_mtime_ns for file in folder.glob("*/*/model.safetensors")}
    assert [file for file in before if before[file] != after[file]] == [lost.parent / "model.safetensors"]
    assert "3 of 4 runs are done" in capsys.readouterr().err

    # A run of other settings isn't taken for the study's.
    change(study, settings={"training.epochs": 1, "fusion.experts": 3})
    assert main(["compare", str(study)]) == 2
    refused = capsys.readouterr().err
    assert "p-seqfuse/seed0 holds a run with another fusion.experts" in refused
    assert refused.count("\n") == 1
    assert {file: file.stat().st_mtime_ns for file in after} == after


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"training.epochs": 7}, "training.epochs"),
        ({"inputs.text.max_length": 9}, "inputs.text.max_length"),
        ({"data.train": "elsewhere/gone/train.csv"}, None),
        ({"data.train": "elsewhere/train.csv"}, "data.train"),
        ({"data.train": "elsewhere/gone/other.csv"}, "data.train"),
        ({"output": "elsewhere", "training.device": None, "data.workers": 2}, None),
        ({"inputs.image.encoder.revision": "abc"}, None),
        ({"inputs.image.encoder.weights": "./other"}, "inputs.image.encoder.weights"),
    ],
)
def test_what_makes_two_runs_differ(config, changes, key, tmp_path, monkeypatch):
    """Files that are gone are known by their names; those that are there aren't."""
    gone = config.with_settings({"data.train": str(tmp_path / "gone" / "train.csv")}, "a test")
    assert difference(gone, gone.with_settings(changes, "a test")) == key
    assert difference(config, config.with_settings({"data.train": "train.csv"}, "a test")) == "data.train"
    monkeypatch.chdir(Path(config.data.train).parent)
    assert difference(config, config.with_settings({"data.train": "train.csv"}, "a test")) is None


@pytest.mark.slow
def test_a_study_uses_each_gpu_by_its_own_name(study, monkeypatch, tmp_path):
    """The process of a run sees one GPU alone; here it sees none, and runs on the CPU."""
    plugin = tmp_path / "tell.py"
    plugin.write_text(
        "import os, pathlib, mope\n"
        "mope.register_method('Told', 'concat')\n"
        "with (pathlib.Path(__file__).parent / 'seen.txt').open('a') as file:\n"
        "    file.write(os.environ['CUDA_VISIBLE_DEVICES'] + '\\n')\n"
    )
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    change(study, rows=[{"method": "P-TextOnly"}], reference=None, metrics=None)
    compare(Study.load(study), plugins=[str(plugin)], report=lambda line: None)
    assert sorted((tmp_path / "seen.txt").read_text().split()) == ["4", "7"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    runner = LocalRunner()
    assert [runner._devices.get() for _ in range(runner.workers)] == ["0", "1"]


def test_runs_take_no_more_threads_than_openmp_may(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    for allowed, expected in ((8, [8, 4, 1]), (1, [1, 1, 1])):
        monkeypatch.setattr("torch.get_num_threads", lambda allowed=allowed: allowed)
        assert [LocalRunner(workers=workers)._threads for workers in (1, 2, 16)] == expected


@pytest.mark.slow
def test_a_run_that_fails_is_said_and_the_others_go_on(study, tmp_path, capsys):
    rows = [
        {"name": "broken", "settings": {"inputs.text.encoder.weights": "./nowhere"}},
        {"method": "P-TextOnly"},
    ]
    change(study, rows=rows, seeds=[0], reference=None, metrics=None)
    assert main(["compare", str(study)]) == 2
    output = capsys.readouterr()
    assert "broken, seed 0: failed: There are no weights" in output.out
    assert "1 of 2 runs failed, such as broken, seed 0" in output.err
    table = json.loads((tmp_path / "study" / "table.json").read_text())
    assert [row["name"] for row in table["rows"]] == ["P-TextOnly"]
    assert "no weights" in (tmp_path / "study" / "broken" / "seed0" / "error.txt").read_text()


@pytest.mark.slow
def test_tuning_reads_validation_rows_and_writes_rates(study, tmp_path):
    change(
        study,
        rows=[{"method": "P-TextOnly"}],
        reference=None,
        tuned="tuned.yaml",
        tune={"trials": 2, "factor": 10.0, "settings": {"data.test": None, "training.epochs": 1}},
    )
    tune(Study.load(study), report=lambda line: None)
    content = yaml.safe_load((tmp_path / "tuned.yaml").read_text())["rows"]["P-TextOnly"]
    trials = {float(factor): value for factor, value in content["validation"].items()}
    assert len(trials) == 2
    assert 1.0 in trials
    base = Config.load(tmp_path / "base.yaml").training.learning_rate
    best = max(trials, key=lambda factor: trials[factor])
    rate = content["settings"]["training.learning_rate"]
    assert rate == pytest.approx(base * best, rel=0.02)
    assert row_config(Study.load(study), Study.load(study).rows[0]).training.learning_rate == base
    assert cells(Study.load(study))[0].config.training.learning_rate == rate
    lines = []
    tune(Study.load(study), report=lines.append)
    assert lines == []  # its trials are kept
    change(study, tune={"trials": 2, "factor": 10.0, "settings": {"data.test": None, "training.epochs": 2}})
    with pytest.raises(UserError, match=r"had another training\.epochs than P-TextOnly has now"):
        tune(Study.load(study), report=lines.append)
    change(study, tune={"trials": 3, "factor": 10.0, "settings": {"data.test": None, "training.epochs": 1}})
    storage = f"sqlite:///{tmp_path / 'study' / 'tuning' / 'trials.sqlite'}"
    killed = optuna.load_study(study_name="p-textonly", storage=storage).ask({"factor": FACTOR})
    tune(Study.load(study), report=lines.append)
    assert len(lines) == 1
    assert f"rates x {killed.params['factor']:.2f}," in lines[0]


def test_paired_intervals_are_student_s():
    found = interval([0.1, 0.2, 0.4])
    assert found["mean"] == pytest.approx(0.2333, abs=1e-4)
    half = 4.302653 * statistics.stdev([0.1, 0.2, 0.4]) / 3**0.5
    assert found["high"] - found["mean"] == pytest.approx(half, rel=1e-5)
    assert interval([0.1]) == {"mean": 0.1, "low": None, "high": None, "pairs": 1}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rows": []}, "'rows' is"),
        ({"refrence": "MoPE"}, "did you mean 'reference'"),
        ({"reference": "Nobody"}, "the reference 'Nobody' is no row"),
        ({"rows": [{"method": "MoPE"}, {"method": "MoPE"}], "reference": None}, "two rows are called 'MoPE'"),
        ({"rows": [{"method": "MoP"}], "reference": None}, "did you mean 'MoPE'"),
        ({"base": "none.yaml"}, "Can't read the config"),
        ({"settings": {"training.epoch": 1}}, "did you mean 'epochs'"),
        (
            {"settings": {"data.train_rows": 99}, "rows": [{"method": "MoPE"}], "seeds": [0]},
            "data.train_rows asks for 99",
        ),
    ],
)
def test_a_wrong_study_says_what_is_wrong(study, changes, reason, capsys):
    assert main(["compare", str(change(study, **changes))]) == 2
    output = capsys.readouterr()
    assert reason in output.err + output.out


def test_fewer_training_rows_are_some_of_more(tables):
    table = open_table(tables / "train.csv")
    small, large = draw(table, 10, 3), draw(table, 30, 3)
    assert set(small.numbers) < set(large.numbers)
    assert len(small) == 10
    assert draw(table, None, 3) is table
    assert draw(table, 10, 4).numbers != small.numbers


FACTS = [{"shop": "ab"[n % 2], "taken": f"2026-01-0{n + 1}", "weight": n} for n in range(4)]


def builds(study: Study) -> None:
    """Every row has a model, every column a metric."""
    tables = len(study.seeds) * len(study.folds or [None]) * len(study.sizes or [None])
    assert len(cells(study)) == len(study.rows) * tables
    assert len({cell.folder for cell in cells(study)}) == len(cells(study))
    for row in study.rows:
        config = find_fields(row_config(study, row), open_table(FACTS))  # what training rows would say
        model = empty_model(config, config.data.labels or ["a", "b", "c"])
        trained = sum(part["trainable"] for part in model.count_parameters().values())
        assert trained > 0
        assert set(row.paper) <= set(columns_of(study, model.task.metric))
    for metric in study.metrics or []:
        task = any_task(config)
        assert metric in task.evaluated or deciding_metric(task, metric)


@pytest.mark.parametrize("quick", [False, True], ids=["whole", "quick"])
@pytest.mark.parametrize("file", STUDIES, ids=[file.stem for file in STUDIES])
def test_each_shipped_study_is_loaded_and_built(file, quick, monkeypatch):
    monkeypatch.chdir(file.parent.parent.parent)
    if quick and not yaml.safe_load(file.read_text(encoding="utf-8")).get("quick"):
        with pytest.raises(UserError, match="has no quick size: leave out --quick"):
            Study.load(file, quick)
    else:
        builds(Study.load(file, quick))


@pytest.mark.parametrize(("file", "quick"), PROBED, ids=[f"{file.stem}-{quick}" for file, quick in PROBED])
def test_each_table_has_a_linear_probe(file, quick):
    """But for masks, pictures and costs; an audio encoder that begins at random has no features to probe."""
    assert "Probe" in {row.method for row in Study.load(file, quick).rows}


@pytest.mark.parametrize(("file", "name"), SETS, ids=[f"{file.stem}-{name}" for file, name in SETS])
def test_each_shipped_study_is_built_on_each_of_its_data_sets(file, name, monkeypatch):
    monkeypatch.chdir(file.parent.parent.parent)
    own, other = Study.load(file), Study.load(file, data_set=name)
    builds(other)
    assert other.output != own.output
    assert (other.base, other.folds) != (own.base, own.folds)
    assert other.tuned is None or other.tuned != own.tuned
    assert other.title != own.title


def test_the_counts_agree_with_the_paper_or_say_why():
    counts = paper_counts()
    differing = set()
    for name, method in METHODS.items():
        assert counts[name] is not None
        if method.param is not None and abs(counts[name] - method.param) > max(0.1 * method.param, 0.05):
            differing.add(name)
            assert method.note
    assert differing == {"P-LateConcat", "PromptFuse-deep", "BitFit + P_m", "AdaptFormer + P_m"}


def test_the_list_of_methods(capsys):
    assert main(["compare", "--list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in rows} == set(METHODS)
    assert all(row["trained"] and row["source"] for row in rows)
    assert main(["compare"]) == 2
    assert "Name a study" in capsys.readouterr().err


def test_on_another_base_nothing_is_carried_over(study, tmp_path):
    """Neither rates that were tuned on the study's own data set, nor the paper's figures and claims."""
    tuned = {"trials": 1, "rows": {"MoPE": {"settings": {"training.learning_rate": 0.5}}}}
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump(tuned))
    claim = {"better": "MoPE", "than": ["P-SeqFuse"], "says": "It is better.", "section": "V"}
    change(study, tuned="tuned.yaml", claims=[claim])
    own = Study.load(study)
    assert cells(own)[0].config.training.learning_rate == 0.5
    assert len(own.claims) == 1
    other = Study.load(study, base=str(tmp_path / "base.yaml"), output=str(tmp_path / "elsewhere"))
    assert cells(other)[0].config.training.learning_rate != 0.5
    assert other.claims == []
    assert other.tuned == str(tmp_path / "elsewhere" / "tuned.yaml")


def test_rows_that_nobody_tuned_are_said(study):
    change(study, tuned="tuned.yaml", rows=[{"method": "MoPE"}, {"method": "P-SeqFuse"}, {"method": "Probe"}])
    found = Study.load(study)
    assert _untuned(found, cells(found)) == []
    tuned = {"trials": 1, "rows": {"MoPE": {"settings": {"training.learning_rate": 0.5}}}}
    (study.parent / "tuned.yaml").write_text(yaml.safe_dump(tuned))
    assert _untuned(found, cells(found)) == ["P-SeqFuse"]


def test_a_method_by_name_on_the_command_line(config, tmp_path, capsys):
    (tmp_path / "base.yaml").write_text(config.dump())
    assert main(["params", str(tmp_path / "base.yaml"), "--method", "p-textonly", "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)
    assert counted["trainable"] == 6 * 2 * 32 + 32 * 3 + 3
    arguments = ["--method", "MoPE", "--fusion.experts", "2", "--json"]
    assert main(["params", str(tmp_path / "base.yaml"), *arguments]) == 0
    assert main(["params", str(tmp_path / "base.yaml"), "--method", "MoPF"]) == 2
    assert "did you mean 'MoPE'" in capsys.readouterr().err
    with pytest.raises(UserError, match="1 of 1 runs failed"):
        compare(
            Study(
                title="t",
                base=str(tmp_path / "base.yaml"),
                rows=[{"method": "MoPE", "settings": {"data.label": "none"}}],
                seeds=[0],
                output=str(tmp_path / "s"),
            ),
            report=lambda line: None,
        )
