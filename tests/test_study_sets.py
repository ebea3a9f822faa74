"""Studies of several data sets, folds and splits: what they expand to, and what their table says."""

import json
import statistics
from pathlib import Path

import pytest
import yaml
from study_fixtures import change

from mope.cli import main
from mope.config import Config
from mope.errors import UserError
from mope.studies.compare import compare
from mope.studies.runs import After, Outcome
from mope.studies.study import Study, cells, row_config, value_of
from mope.studies.table import build_table, cells_of, independent, markdown

pytest_plugins = ["study_fixtures"]

OTHER = {
    "title": "On other data",
    "base": "other.yaml",
    "settings": {"training.epochs": 3},
    "leave_out": ["P-SeqFuse"],
    "paper": {"MoPE": {"accuracy": 91.5}},
}


@pytest.fixture
def several(study: Path) -> Path:
    """The study with another data set."""
    base = Config.load(study.parent / "base.yaml")
    (study.parent / "other.yaml").write_text(base.with_settings({"fusion.length": 3}).dump())
    return change(study, sets={"other-data": OTHER}, tuned="tuned.yaml")


def test_another_data_set_shares_the_rows(several):
    own, other = Study.load(several), Study.load(several, data_set="other-data")
    assert [row.label for row in own.rows] == ["MoPE", "P-SeqFuse"]
    assert own.rows[0].paper == {"accuracy": 73.1}
    assert [row.label for row in other.rows] == ["MoPE"]
    assert other.rows[0].paper == {"accuracy": 91.5}
    assert (other.title, other.metrics, other.tuned) == ("On other data", own.metrics, None)
    assert Path(other.output).name == "study_other_data"
    (config, _) = (cell.config for cell in cells(other))
    assert (config.fusion.length, config.training.epochs) == (3, 3)
    change(several, sets={"other-data": {**OTHER, "paper": {}}})
    assert Study.load(several, data_set="other-data").rows[0].paper == {}  # none of another data set's


def test_which_input_is_main_is_settled_before_the_method(study):
    """A method's settings of the main and the other encoders are of those that the row makes main."""
    rows = [{"name": main, "method": "MoPE", "settings": {"fusion.main": main}} for main in ("image", "text")]
    for cell in cells(Study.load(change(study, rows=[*rows, {"method": "MoPE-both"}], reference=None))):
        tuned = {name: entry.encoder.tuning for name, entry in cell.config.inputs.items()}
        other = {"image": "text", "text": "image"}.get(cell.row.label)
        assert [name for name in tuned if tuned[name] == "prompt"] == ([other] if other else list(tuned))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--set", "nowhere"], "no data set 'nowhere': there are other-data"),
        (["--set", "other-data", "--quick"], "has no quick size on other-data"),
        (["--set", "all", "--quick"], "--set all is for a study as it is"),
        (["--set", "all", "--output", "x"], "--set all is for a study as it is"),
    ],
)
def test_a_data_set_that_there_is_not(several, words, reason, capsys):
    assert main(["compare", str(several), *words]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"leave_out": ["Nobody"]}, "names no row 'Nobody': MoPE, P-SeqFuse"),
        ({"paper": {"MOPE": {}}}, "names no row 'MOPE'"),
        ({"leave_out": ["MoPE"], "paper": {}}, "the reference 'MoPE' is no row"),
        ({"refrence": "MoPE"}, "did you mean 'reference'"),
    ],
)
def test_a_wrong_data_set_says_what_is_wrong(several, changes, reason):
    change(several, sets={"other-data": {**OTHER, **changes}})
    with pytest.raises(UserError, match=reason):
        Study.load(several, data_set="other-data")


def test_folds_are_tables_of_the_same_names_in_folders_beside(study):
    base = Config.load(study.parent / "base.yaml")
    tables = {f"data.{split}": f"data/first/{split}.csv" for split in ("train", "validation", "test")}
    (study.parent / "base.yaml").write_text(base.with_settings(tables).dump())
    found = cells(Study.load(change(study, folds=["first", "second"])))
    assert [(cell.row.label, cell.fold, cell.seed) for cell in found[:4]] == [
        ("MoPE", "first", 0),
        ("P-SeqFuse", "first", 0),
        ("MoPE", "second", 0),
        ("P-SeqFuse", "second", 0),
    ]
    assert len({cell.folder for cell in found}) == 8
    tested = {Path(cell.config.data.test).parts[-3:] for cell in found if cell.fold == "second"}
    assert tested == {("data", "second", "test.csv")}
    remote = {"data.train": "s3://bucket/first/train.csv", "data.test": None, "data.validation": None}
    (study.parent / "base.yaml").write_text(base.with_settings(remote).dump())
    found = cells(Study.load(study))
    assert found[2].config.data.train == "s3://bucket/second/train.csv"
    assert found[2].config.data.test is None
    (study.parent / "base.yaml").write_text(base.with_settings({**remote, "data.train": None}).dump())
    with pytest.raises(UserError, match=r"let its base name data\.train"):
        cells(Study.load(study))


def test_splits_are_tables_beside_the_test_table(study, capsys):
    (cell, *_) = cells(Study.load(change(study, evaluate=["validation", "test", "testB"])))
    data = cell.config.data
    assert cell.after == After(
        splits={
            "validation": data.validation,
            "test": None,
            "testB": str(Path(data.test).with_name("testB.csv")),
        }
    )
    assert main(["compare", str(study)]) == 2  # before anything is trained
    assert "testB.csv, the table that the study names 'testB'" in capsys.readouterr().err
    base = Config.load(study.parent / "base.yaml")
    (study.parent / "base.yaml").write_text(base.with_settings({"data.test": None}).dump())
    with pytest.raises(UserError, match=r"'testB' is a table beside the test table, and the base names no"):
        cells(Study.load(study))


def test_all_rows_are_a_size_too(study):
    found = cells(Study.load(change(study, sizes=[8, None], seeds=[0])))
    assert [cell.config.data.train_rows for cell in found] == [8, None, 8, None]
    assert [cell.folder.name for cell in found[:2]] == ["rows8-seed0", "seed0"]


def _metrics(*values: float) -> dict:
    splits = {"validation": {"accuracy": values[0]}, "testB": {"accuracy": values[1]}}
    return {"metric": "accuracy", "trainable": 10, "splits": splits, "test": {"accuracy": 0.0}}


def test_the_table_of_folds_and_splits(study):
    """Mean and spread over folds and seeds, differences paired by both; a column per split."""
    change(study, folds=["a", "b"], evaluate=["validation", "testB"], metrics=["accuracy"], sizes=None)
    content = yaml.safe_load(study.read_text())
    content["rows"][0]["paper"] = {"testB accuracy": 60.03}
    change(study, rows=content["rows"])
    loaded = Study.load(study)
    done = [(cell, _metrics(n / 10, n / 20)) for n, cell in enumerate(cells(loaded))]
    table = build_table(loaded, done)
    assert table["metrics"] == ["validation accuracy", "testB accuracy"]
    first, second = table["rows"]
    mine = [n / 20 for n, (cell, _) in enumerate(done) if cell.row.label == "MoPE"]
    assert len(mine) == 4
    values = first["values"]["testB accuracy"]
    assert values["mean"] == pytest.approx(statistics.fmean(mine))
    assert values["std"] == pytest.approx(statistics.stdev(mine))
    assert set(values["by_seed"]) == {f"{fold}, seed {seed}" for fold in "ab" for seed in (0, 1)}
    difference = second["values"]["validation accuracy"]["difference"]
    assert difference["mean"] == pytest.approx(0.1)
    assert difference["pairs"] == 2  # the seeds of a fold share its rows, and count as one
    assert "over the means of folds" in markdown(loaded, table)
    header, rows = cells_of(loaded, table)
    assert header[2:7] == ["validation accuracy", "to MoPE", "testB accuracy", "to MoPE", "paper"]
    assert (header[-1], rows[0][6], rows[0][-1]) == ("folds and seeds", "60.03", "4")
    assert "over as many folds and seeds as a row says" in markdown(loaded, table)
    with pytest.raises(KeyError):
        value_of(_metrics(0, 0), "testA accuracy")


def test_differences_of_several_folds_are_the_folds_own():
    pairs = {f"{fold}, seed {seed}": 0.1 * fold + seed for fold in (1, 2) for seed in (0, 1)}
    assert independent(pairs) == pytest.approx([0.6, 0.7])
    assert independent({"a, seed 0": 0.1, "a, seed 1": 0.3}) == [0.1, 0.3]
    assert independent({2: 0.3, 0: 0.1}) == [0.1, 0.3]


def test_all_data_sets_one_after_another(several, monkeypatch, capsys):
    """Those whose tables aren't there are named at the end; the others have theirs."""
    monkeypatch.setattr("mope.studies.compare.make_runner", lambda *_: _Told())
    other = Config.load(several.parent / "other.yaml").with_settings({"data.train": "gone/train.csv"})
    (several.parent / "gone.yaml").write_text(other.dump())
    sets = {"other-data": OTHER, "gone": {**OTHER, "title": "On what is gone", "base": "gone.yaml"}}
    change(several, sets=sets, metrics=["accuracy"], seeds=[0])
    assert main(["compare", str(several), "--set", "all"]) == 2
    said = capsys.readouterr()
    assert "train.csv, the table that the study names 'train'" in said.err
    assert "1 of 3 data sets have no whole table: On what is gone." in said.err
    for name, rows in (("study", 2), ("study_other_data", 1)):
        assert len(json.loads((several.parent / name / "table.json").read_text())["rows"]) == rows
    assert main(["tune", str(several), "--set", "all"]) == 2
    assert "one data set at a time" in capsys.readouterr().err


class _Told:
    """A runner that trains nothing: it notes what it is asked for, and writes what such a run might say."""

    workers = 1

    def __init__(self) -> None:
        self.asked: list[After] = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def each(self, jobs):
        return ((key, job()) for key, job in jobs.items())

    def run(self, settings, after):
        self.asked.append(after)
        metrics = {"metric": "accuracy", "best_epoch": 1, "trainable": 1, "frozen": 1}
        metrics |= {"history": [], "validation": {}, "test": {"accuracy": 0.5}}
        metrics["splits"] = {split: {"accuracy": 0.4} for split in after.splits}
        folder = Path(settings["output"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(metrics))
        if after.page is not None:
            (folder / "explain").mkdir(exist_ok=True)
            (folder / "explain" / "report.html").write_text("")
        return Outcome(metrics)


def test_what_is_to_be_known_of_a_run_is_found_once(study, monkeypatch, tables):
    """A run that wasn't measured on a split, or has no page yet, is taken up again."""
    told = _Told()
    monkeypatch.setattr("mope.studies.compare.make_runner", lambda *_: told)

    def asked(**changes) -> list[After]:
        told.asked.clear()
        compare(Study.load(change(study, **changes)), report=lambda line: None)
        return list(told.asked)

    assert asked(seeds=[0], metrics=["accuracy"]) == [After(test=True)] * 2
    assert asked() == []
    splits = {"validation": str(tables / "validation.csv"), "test": None}
    assert asked(evaluate=list(splits)) == [After(splits=splits)] * 2
    assert asked() == []
    assert asked(evaluate=None, page=20) == [After(test=True, page=20)] * 2
    assert asked() == []
    with pytest.raises(KeyError):  # a metric that what it told hasn't: asked for in vain
        asked(metrics=["f1_macro"])
    assert told.asked


def test_a_row_may_begin_from_another_run_of_the_same_seed(study):
    rows = [{"method": "MoPE", "settings": {"training.begin_from": "before/mope/seed{seed}"}}]
    found = cells(Study.load(change(study, rows=rows)))
    assert [cell.config.training.begin_from for cell in found] == ["before/mope/seed0", "before/mope/seed1"]
    rows[0]["settings"] = {"training.begin_from": "./before/seed{seed}"}
    (first, _) = cells(Study.load(change(study, rows=rows)))
    assert first.config.training.begin_from == f"./{study.parent / 'before/seed0'}"
    loaded = Study.load(study)
    assert (
        row_config(loaded, loaded.rows[0]).training.begin_from == first.config.training.begin_from
    )  # tuning's


def test_a_table_says_on_which_machines_its_runs_were_made(study):
    """And when, wherever it is laid out: runs may have been copied from elsewhere."""
    loaded = Study.load(study)
    todo = cells(loaded)[:3]
    metrics = {"metric": "accuracy", "trainable": 1, "test": {"accuracy": 0.5, "f1_macro": 0.5}}
    made = [("a GPU", "2026-01-02"), ("another", "2026-01-03"), ("a GPU", "2025-12-30")]
    done = [
        (cell, {**metrics, "machine": where, "date": day})
        for cell, (where, day) in zip(todo, made, strict=True)
    ]
    table = build_table(loaded, done)
    assert (table["machine"], table["date"]) == ("a GPU, another", "2026-01-03")
    assert markdown(loaded, table).rstrip().endswith("2026-01-03, a GPU, another.")
