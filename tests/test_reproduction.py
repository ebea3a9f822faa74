"""The paper's claims, judged: by hand, and from published files' miniatures to the page."""

import json
from pathlib import Path

import pytest
import yaml
from miniatures import MINIATURES
from scipy import stats
from study_fixtures import change
from test_published_studies import STUDIES, _Here, tiny

from mope.cli import main
from mope.config import Config
from mope.device import describe_machine
from mope.errors import UserError
from mope.studies.reproduction import cells_of_claims, judge, write_reproduction
from mope.studies.study import Study

pytest_plugins = ["study_fixtures"]
SAYS = {"says": "It is better.", "section": "IV-D"}
CLAIM = {"better": "MoPE", "than": ["P-SeqFuse"], **SAYS}


def table_of(values: dict, metric: str = "accuracy", sizes=(None,)) -> dict:
    """A table as `build_table` makes it, of values by row, size and seed."""
    rows = [
        {"name": name, "size": size, "seeds": [0, 1, 2], "trainable": 10, "step_milliseconds": None}
        | {"peak_mebibytes": None}
        | {"values": {metric: {"by_seed": found, "mean": 0.5, "std": None, "difference": None}}}
        for name, by_size in values.items()
        for size, found in zip(sizes, by_size, strict=True)
    ]
    head = {"metrics": [metric], "reference": None, "date": "2026-01-01", "machine": describe_machine()}
    return {**head, "rows": rows}


def judged(study: Path, table: dict, **changes) -> list[dict]:
    change(study, reference=None, metrics=table["metrics"], **{"claims": [CLAIM], **changes})
    return judge(Study.load(study), table)


OURS, THEIRS = {0: 0.60, 1: 0.61, 2: 0.63}, {0: 0.50, 1: 0.52, 2: 0.51, 3: 0.9}


def test_a_claim_holds_where_the_paired_interval_is_above_zero(study):
    (entry,) = judged(study, table_of({"MoPE": [OURS], "P-SeqFuse": [THEIRS]}))
    low, high = stats.ttest_1samp([0.10, 0.09, 0.12], 0).confidence_interval(0.95)
    assert (entry["difference"]["low"], entry["difference"]["high"]) == pytest.approx((low, high))
    assert entry["difference"]["pairs"] == 3
    assert (entry["verdict"], entry["paper"]) == ("holds", None)
    (entry,) = judged(study, table_of({"MoPE": [THEIRS], "P-SeqFuse": [OURS]}))
    assert entry["verdict"] == "doesn't"


def test_what_is_not_shown_says_why(study):
    (entry,) = judged(study, table_of({"MoPE": [OURS], "P-SeqFuse": [{0: 0.50, 1: 0.70, 2: 0.60}]}))
    low, high = stats.ttest_1samp([0.10, -0.09, 0.03], 0).confidence_interval(0.95)
    assert entry["verdict"] == f"not shown: the interval [{low:+.3f}, {high:+.3f}] has zero in it"
    (entry,) = judged(study, table_of({"MoPE": [OURS], "P-SeqFuse": [{1: 0.1}]}))
    assert entry["verdict"] == "not shown: one pair has no interval"
    assert cells_of_claims([entry])[0][2] == "+0.510"
    (entry,) = judged(study, table_of({"MoPE": [OURS]}))
    assert (entry["verdict"], entry["difference"]) == ("not judged: a row isn't in this table", None)


def test_less_is_better_for_an_error(study, config, tmp_path):
    regression = config.with_settings({"task": "regression", "data.label": "number"}, "a test")
    (tmp_path / "regression.yaml").write_text(regression.dump())
    table = table_of({"MoPE": [THEIRS], "P-SeqFuse": [OURS]}, "rmse")
    (entry,) = judged(study, table, base="regression.yaml")
    assert entry["verdict"] == "holds"


def test_growth_is_a_difference_of_differences(study):
    sizes = (8, None)
    more = {seed: value + 0.2 for seed, value in OURS.items()}
    table = table_of({"MoPE": [OURS, more], "P-SeqFuse": [THEIRS, THEIRS]}, sizes=sizes)
    entry, *others = judged(study, table, claims=[{**CLAIM, "grows": True}, CLAIM])
    assert entry["difference"]["mean"] == pytest.approx(0.2)
    assert entry["size"] == "8 to all"
    assert [other["size"] for other in others] == [8, None]
    header = cells_of_claims([entry])[0]
    assert header[:2] == ["MoPE more and more above P-SeqFuse (IV-D)", "accuracy, 8 to all training rows"]
    one = table_of({"MoPE": [OURS], "P-SeqFuse": [THEIRS]})
    assert judged(study, one, claims=[{**CLAIM, "grows": True}]) == []


def test_the_page_has_the_paper_s_figures_beside_ours(study):
    rows = [
        {"method": "MoPE", "paper": {"accuracy": 73.1}},
        {"method": "P-SeqFuse", "paper": {"accuracy": 67.0}},
    ]
    table = table_of({"MoPE": [OURS], "P-SeqFuse": [THEIRS]})
    (entry,) = judged(study, table, rows=rows)
    assert entry["paper"] == [73.1, 67.0]
    text = write_reproduction(Study.load(study), table, [entry]).read_text()
    assert "“It is better.” (IV-D)" in text
    assert "| holds | 73.1 against 67.0 |" in text
    assert "compares none" in write_reproduction(Study.load(study), table, []).read_text()


def test_a_claim_is_about_its_data_sets(study):
    sets = {"other": {"base": "base.yaml"}, "third": {"published": "mm-imdb"}}
    change(study, published="snli-ve", sets=sets, claims=[{**CLAIM, "sets": ["snli-ve", "third"]}, CLAIM])
    counts = {None: 2, "other": 1, "third": 2}
    assert {name: len(Study.load(study, data_set=name).claims) for name in counts} == counts
    assert len(Study.load(study, quick=True).claims) == 2
    assert [Study.load(study, data_set=name).published for name in counts] == ["snli-ve", None, "mm-imdb"]


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        ({"better": "MOPE"}, "a claim names no row 'MOPE': MoPE, P-SeqFuse"),
        ({"than": []}, "than"),
        ({"then": ["P-SeqFuse"]}, "did you mean 'than'"),
    ],
)
def test_a_wrong_claim_says_what_is_wrong(study, claim, reason):
    change(study, claims=[{**CLAIM, **claim}])
    with pytest.raises(UserError, match=reason):
        Study.load(study)


def test_each_shipped_claim_is_about_rows_that_the_paper_reports():
    count = 0
    for file in sorted({*STUDIES.glob("*.yaml")} - {*STUDIES.glob("*_tuned.yaml")}):
        own = Study.load(file)
        for name in (None, *own.sets):
            study = Study.load(file, data_set=name)
            reported = {row.label for row in study.rows if row.paper}
            for claim in study.claims:
                count += 1
                assert not claim.sets or {*claim.sets} <= {own.published, *own.sets}
                if file.stem not in ("fig5", "fig6", "fig7"):  # pictures, without figures in the text
                    assert {claim.better, *claim.than} & reported, (file.stem, name)
    assert count > 50


ROWS = ["MoPE", "SeqFuse", "P-SeqFuse"]


def shrunk(tmp_path: Path, text: str) -> Path:
    """Three rows of Tab. I and their claims, over tiny encoders; their tables aren't there yet."""
    shipped = STUDIES / "table1.yaml"
    base = tiny(Config.load(Study.load(shipped).base), tmp_path, text)
    splits = ("train", "validation", "test")
    tables = {f"data.{split}": str(tmp_path / "snli_ve" / f"{split}.jsonl") for split in splits}
    (tmp_path / "base.yaml").write_text(base.with_settings(tables, "a test").dump())
    content = yaml.safe_load(shipped.read_text())
    rows = [row for row in content["rows"] if row["method"] in ROWS and "name" not in row]
    claims = [
        {**claim, "than": [row for row in claim["than"] if row in ROWS]}
        for claim in content["claims"]
        if {*claim["than"]} & {*ROWS}
    ]
    content |= {"base": "base.yaml", "output": "study", "tuned": None, "sets": {}, "seeds": [0, 1]}
    file = tmp_path / "table1.yaml"
    file.write_text(yaml.safe_dump({**content, "rows": rows, "claims": claims, "quick": {"seeds": [0]}}))
    return file


@pytest.mark.slow
def test_a_table_from_its_published_files_to_the_verdicts(tmp_path, weights, monkeypatch, capsys):
    monkeypatch.setattr("mope.studies.compare.make_runner", lambda *_: _Here())
    MINIATURES["snli-ve"](tmp_path / "raw", more=8)
    file = shrunk(tmp_path, weights["text"])
    assert main(["reproduce", str(file), "--data", str(tmp_path / "raw")]) == 0
    said = capsys.readouterr().out
    assert (tmp_path / "snli_ve" / "manifest.json").is_file()
    assert "SNLI-VE's tables are in" in said
    text = (tmp_path / "study" / "reproduction.md").read_text()
    assert "“Our method outperforms all prompt-based fusion methods" in text
    assert "73.14 against 67.01" in text
    assert "73.14 against 74.28" in text  # the text says that MoPE is above SeqFuse here
    verdicts = ("holds", "doesn't", "not shown: the interval [")
    lines = [line for line in text.splitlines() if line.startswith("| MoPE above")]
    assert len(lines) == 2
    assert all(any(f"| {verdict}" in line for verdict in verdicts) for line in lines)

    # Again: nothing is prepared or trained anew; and from the tables themselves.
    assert main(["reproduce", str(file), "--data", str(tmp_path / "raw"), "--json"]) == 0
    heard = capsys.readouterr()
    assert "is there already" in heard.err
    assert "6 of 6 runs are done" in heard.err
    assert len(json.loads(heard.out)["claims"]) == 2
    (tmp_path / "snli_ve").rename(tmp_path / "elsewhere")
    words = ["--quick", "--output", str(tmp_path / "small"), "--data", str(tmp_path / "elsewhere")]
    assert main(["reproduce", str(file), *words]) == 0
    assert "not shown: one pair has no interval" in (tmp_path / "small" / "reproduction.md").read_text()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["table11"], "There is no configs/studies/table11.yaml: there are apps, clusters, directions"),
        (["nowhere.yaml"], "nowhere.yaml"),
        (["table1", "--set", "nowhere"], "no data set 'nowhere': there are food101"),
        (["table1", "--set", "all"], "one data set at a time"),
        (["table1", "--data", "{here}/gone"], "There is no folder"),
        (["table1", "--data", "{here}"], "SNLI-VE: there is no flickr30k-images"),
        (["table1", "--quick", "--data", "{here}"], "has no train.csv, the table that"),
        (["table1", "--workers", "0"], "at least one run at a time"),
        (["table1", "--tables"], "knows no option '--tables'"),
        ([], "TABLE"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(words, reason, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(STUDIES.parent.parent)
    assert main(["reproduce", *(word.format(here=tmp_path) for word in words)]) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert said.count("\n") == 1


def test_outside_a_checkout_a_table_s_name_is_no_help(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "table1"]) == 2
    assert "go to a checkout" in capsys.readouterr().err
